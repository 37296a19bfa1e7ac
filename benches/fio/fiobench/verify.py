"""The verify twins: the same shapes, every block checked. Speed without this means nothing.

Before each twin the region is overwritten with a pattern without headers, so that a lost write shows as a missing
header and not as an old block that still looks fine. The oracle is first shown to fail.
"""

import sys

from . import BenchError, fio, jobs, measure

POISON = b"\xa5" * 4096
LIMIT = 180  # seconds for one step


def twin(job, path, region, engine):
    """None if every block was right, else what fio said."""
    try:
        measure.fill(path, region, POISON)
    except OSError as e:
        return f"write before the job: {e.strerror}"
    for args in jobs.verify_steps(job, path, region, engine):
        sample = fio.run(args, LIMIT)
        if sample.error:
            return sample.error
    return None


def run(plan, files, region, engine):
    """{job name: {contestant: None or error}}"""
    results = {}
    for job, names in plan:
        for name in names:
            error = twin(job, files[name], region, engine)
            results.setdefault(job.name, {})[name] = error
            print(f"[verify] {job.name:<24} {name:<15} {error or 'ok'}", file=sys.stderr, flush=True)
    return results


def prove_oracle(folder, engine):
    """A sound file must pass; a flipped bit, a lost write and a block from elsewhere must each fail."""
    path = folder / "oracle"
    region = 1 << 20
    job = next(j for j in jobs.JOBS if j.name == "4k-randread-d16")
    lay, check = jobs.verify_steps(job, path, region, engine)

    def damaged(damage):
        measure.fill(path, region, POISON)
        laid = fio.run(lay, LIMIT)
        if laid.error:
            raise BenchError(f"verify: laying blocks on a bare file failed: {laid.error}")
        data = bytearray(path.read_bytes())
        damage(data)
        path.write_bytes(data)
        return fio.run(check, LIMIT).error

    def flip(data):
        data[region // 2 + 2048] ^= 1

    def lose(data):
        data[40960:45056] = POISON

    def misplace(data):
        data[40960:45056] = data[81920:86016]

    try:
        error = damaged(lambda data: None)
        if error:
            raise BenchError(f"verify: a sound bare file does not verify: {error}")
        for damage in (flip, lose, misplace):
            if not damaged(damage):
                raise BenchError(f"verify: the oracle misses a block that was damaged by `{damage.__name__}`")
    finally:
        path.unlink(missing_ok=True)
