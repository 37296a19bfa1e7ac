"""Fill the files, then one interleaved run: every round visits every job, every job visits every contestant.

Neighbours in time share the machine's mood, so a ratio is taken within a round, and the median over the rounds.
"""

import os
import pathlib
import random
import sys

from . import BenchError, fio, jobs

MIB = 1024 * 1024


def fill(path, size, pattern=None):
    """Writes the whole file through the mount. Random bytes unless a pattern is given; a hole would not be I/O."""
    chunk = pattern * (MIB // len(pattern)) if pattern else os.urandom(MIB)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        at = 0
        while at < size:
            at += os.pwrite(fd, chunk[: size - at], at)
        os.fsync(fd)
    finally:
        os.close(fd)


def prepare(contestant, place, size):
    """Starts and fills; the presented file is at least `size` long and the backing has no holes."""
    path = contestant.start(place, size)
    try:
        fill(path, size)
    except OSError as e:
        raise BenchError(f"{contestant.name}: write {path}: {e.strerror}") from e
    found = os.stat(path).st_size
    if found < size:
        raise BenchError(f"{contestant.name}: the presented file has {found} bytes, {size} were asked for")
    allocated = sum(f.stat().st_blocks * 512 for f in pathlib.Path(contestant.data).rglob("*") if f.is_file())
    if allocated < size:
        raise BenchError(
            f"{contestant.name}: {allocated} bytes allocated after writing {size}: there are holes, figures would lie"
        )
    return path


def run(plan, files, options, engine):
    """Yields (round, job name, contestant name, Sample) as they come.

    plan: [(Job, [contestant names])]; files: name -> presented path.
    """
    shuffler = random.Random(options.seed)
    for round_number in range(1, options.rounds + 1):
        for job, names in plan:
            # Shuffled anew each time: nobody always runs behind the heaviest.
            for name in shuffler.sample(names, len(names)):
                sample = _sample(job, files[name], options, engine)
                _progress(round_number, options.rounds, job, name, sample)
                yield round_number, job.name, name, sample


def _sample(job, path, options, engine):
    limit = options.runtime * 3 + 60
    if job.region is not None:
        warmed = fio.run(jobs.warm_args(job, path, engine), limit)
        if warmed.error:
            return warmed
    return fio.run(jobs.measure_args(job, path, options.size, options.runtime, engine), limit)


def _progress(number, rounds, job, name, sample):
    value = sample.value(job.unit)
    said = f"{value:,.0f} {job.unit}" if value is not None else f"ERROR {sample.error}"
    print(f"[{number}/{rounds}] {job.name:<24} {name:<15} {said}", file=sys.stderr, flush=True)
