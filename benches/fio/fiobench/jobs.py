"""What is measured: a table of jobs, and how a job becomes fio options.

A job never knows who runs it. Sizes are bytes.
"""

import dataclasses
import fnmatch

KIB = 1024
MIB = 1024 * KIB

# A hot set that fits the default cache (64 MiB) with room to spare.
HOT_REGION = 32 * MIB
RAMP = "500ms"


@dataclasses.dataclass(frozen=True)
class Job:
    name: str
    rw: str  # fio's word
    bs: int
    depth: int = 1
    jobs: int = 1
    direct: bool = True
    # Touch each byte at most once per sample: a second pass over a buffered file would measure the page cache.
    cold: bool = False
    # None: the whole file.
    region: int | None = None
    # None: every contestant but the cached one, which differs only where something is read twice.
    who: tuple[str, ...] | None = None

    @property
    def unit(self):
        return "MiB/s" if self.bs >= MIB else "IOPS"

    @property
    def reads(self):
        return self.rw in ("read", "randread")

    @property
    def mixed(self):
        return self.rw == "randrw"

    def wants(self, contestant, cached_everywhere):
        if self.who is not None:
            return contestant in self.who
        return contestant != "wrapdisk-cache" or cached_everywhere


def _jobs():
    for depth, jobs in ((1, 1), (16, 1), (16, 2)):
        suffix = f"d{depth}" + (f"x{jobs}" if jobs > 1 else "")
        yield Job(f"4k-randread-{suffix}", "randread", 4 * KIB, depth, jobs)
        yield Job(f"4k-randwrite-{suffix}", "randwrite", 4 * KIB, depth, jobs)
        yield Job(f"4k-mix-{suffix}", "randrw", 4 * KIB, depth, jobs)
    for depth in (1, 16):
        yield Job(f"1m-read-d{depth}", "read", MIB, depth)
        yield Job(f"1m-write-d{depth}", "write", MIB, depth)
    yield Job("buffered-1m-read", "read", MIB, direct=False, cold=True)
    yield Job("buffered-1m-write", "write", MIB, direct=False)
    yield Job("buffered-4k-randread", "randread", 4 * KIB, direct=False, cold=True)
    yield Job("buffered-4k-randwrite", "randwrite", 4 * KIB, direct=False)
    # Where the kernel's page cache helps whoever lets it: shown, because it is the price of FOPEN_DIRECT_IO.
    yield Job("buffered-4k-reread", "randread", 4 * KIB, direct=False, region=HOT_REGION)
    yield Job(
        "hot-4k-randread-d16",
        "randread",
        4 * KIB,
        16,
        region=HOT_REGION,
        who=("null", "lab", "wrapdisk", "wrapdisk-cache"),
    )


JOBS = tuple(_jobs())


def matching(pattern):
    """Jobs that a pattern of --only names: a name, else a glob or the beginning of a name."""
    exact = [j for j in JOBS if j.name == pattern]
    return exact or [j for j in JOBS if fnmatch.fnmatch(j.name, pattern) or j.name.startswith(pattern)]


def _common(job, path, invalidate):
    return [
        f"--name={job.name}",
        # fio splits file names at colons.
        "--filename=" + str(path).replace(":", "\\:"),
        f"--bs={job.bs}",
        f"--direct={int(job.direct)}",
        "--thread",
        "--group_reporting",
        "--fallocate=none",
        f"--invalidate={int(invalidate)}",
        "--output-format=json",
        "--eta=never",
    ]


def measure_args(job, path, size, runtime, engine):
    """fio options of one sample.

    One request at a time, and whatever is buffered, goes by plain pread/pwrite, as cp and dd do: an asynchronous engine
    only adds its own hand-over there (io_uring passes files without NOWAIT to a worker thread: 20 k instead of 570 k
    IOPS on a bare tmpfs file at depth 1), and that would be measured instead.
    """
    region = min(job.region or size, size)
    # What was warmed on purpose must stay warm.
    args = _common(job, path, invalidate=job.region is None) + [
        f"--rw={job.rw}",
        f"--size={region}",
        f"--runtime={runtime}",
        f"--numjobs={job.jobs}",
        f"--iodepth={job.depth}",
        f"--ioengine={engine if job.direct and job.depth > 1 else 'psync'}",
    ]
    if job.mixed:
        args.append("--rwmixread=70")
    if not job.cold:
        args += ["--time_based", f"--ramp_time={RAMP}", "--norandommap"]
    return args


def warm_args(job, path, engine):
    """One pass over the hot set, each block once, so that the sample does not depend on what its ramp reached."""
    return _common(job, path, invalidate=True) + [
        f"--rw={job.rw}",
        f"--size={job.region}",
        f"--iodepth={job.depth}",
        f"--ioengine={engine if job.direct else 'psync'}",
    ]


def verify_steps(job, path, region, engine):
    """fio options of the twin, step by step: same shape, every block written once and checked.

    A header in each 4 KiB names its offset, so that a swapped, torn or lost piece is seen, not only a damaged one. The
    buffered twins run at depth 16: one request at a time does not find concurrency faults.
    """
    share = region // job.jobs
    depth = job.depth if job.direct else 16
    base = _common(job, path, invalidate=True) + [
        f"--size={share}",
        f"--numjobs={job.jobs}",
        f"--offset_increment={share}",
        "--verify=crc32c",
        "--verify_interval=4096",
        "--verify_fatal=1",
    ]
    shaped = [f"--iodepth={depth}", f"--ioengine={engine}", f"--rw={job.rw}"]
    if job.reads:
        # Laid down one by one, so that a fault found here is a fault of reading.
        lay = ["--rw=write", "--do_verify=0", "--iodepth=1", "--ioengine=psync"]
        return [base + lay, base + shaped]
    if job.mixed:
        # fio checks the reads of a mix only if they come from its backlog of writes.
        return [base + shaped + ["--rwmixread=70", "--verify_backlog=64", "--do_verify=1"]]
    return [base + shaped + ["--do_verify=1"]]
