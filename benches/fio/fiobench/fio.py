"""One fio process: start it, bound its time, turn its JSON into a sample."""

import dataclasses
import json
import shutil
import subprocess

from . import BenchError

MIB = 1024 * 1024


@dataclasses.dataclass
class Sample:
    iops: float = 0.0
    mib_s: float = 0.0
    mean_us: float = 0.0
    p99_us: float = 0.0
    error: str | None = None

    def value(self, unit):
        """The figure a table shows, or None after an error."""
        if self.error:
            return None
        return self.iops if unit == "IOPS" else self.mib_s


def require():
    if not shutil.which("fio"):
        raise BenchError("fio: command not found; `apt-get install fio`, or run with --install")


def version():
    return subprocess.run(["fio", "--version"], capture_output=True, text=True, check=False).stdout.strip()


def run(args, timeout):
    """Runs fio. An I/O error, a failed verification and a time-out are a sample with `error`, never an exception."""
    try:
        done = subprocess.run(
            ["fio", *args], capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Sample(error=f"no end after {timeout:.0f} s")
    return parse(done.returncode, done.stdout, done.stderr)


def parse(code, stdout, stderr):
    said = _first_complaint(stderr + "\n" + stdout[: max(stdout.find("{"), 0)])
    try:
        # fio may print notes before (and after) the JSON document.
        doc, _ = json.JSONDecoder().raw_decode(stdout[stdout.index("{"):])
        job = doc["jobs"][0]
    except (ValueError, KeyError, IndexError):
        return Sample(error=said or f"fio ended with code {code} and printed no JSON")
    if code != 0 or job.get("error"):
        return Sample(error=said or f"fio ended with code {code}, job error {job.get('error')}")
    read, write = job["read"], job["write"]
    ios = read["total_ios"] + write["total_ios"]
    if ios == 0:
        return Sample(error="fio did no I/O")
    busier = max(read, write, key=lambda d: d["total_ios"])
    clat = busier["clat_ns"]
    return Sample(
        iops=read["iops"] + write["iops"],
        mib_s=(read["bw_bytes"] + write["bw_bytes"]) / MIB,
        mean_us=clat["mean"] / 1000,
        p99_us=clat.get("percentile", {}).get("99.000000", 0) / 1000,
    )


def _first_complaint(text):
    """The line that says why; fio prints several, the first with a cause is the useful one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for word in ("verify", "crc32c", "error=", "does not support", "fio:"):
        for line in lines:
            if word in line and "note:" not in line:
                return line[:200]
    return lines[0][:200] if lines else None


def pick_engine(folder):
    """io_uring where fio and the kernel allow it (containers often do not), else libaio."""
    probe = folder / "engine-probe"
    for engine in ("io_uring", "libaio"):
        sample = run(
            ["--name=probe", f"--filename={probe}", "--rw=write", "--bs=4k", "--size=64k", f"--ioengine={engine}",
             "--output-format=json", "--eta=never"],
            timeout=30,
        )
        probe.unlink(missing_ok=True)
        if not sample.error:
            return engine
    raise BenchError(f"fio can use neither io_uring nor libaio here: {sample.error}")
