"""Private namespaces and folders: nothing stays mounted or running, whatever ends the run.

As root the run happens in its own mount and PID namespace: when its first process dies (also by SIGKILL), the kernel
ends every daemon and with the last of them every mount. Without that (not root, or forbidden) the folders are the
same and `Place.close` does the work alone.
"""

import ctypes
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from . import BenchError

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
MS_REC_PRIVATE = 0x4000 | 0x40000
PR_SET_PDEATHSIG = 1
PASSED_ON = (signal.SIGTERM, signal.SIGHUP)
_libc = ctypes.CDLL(None, use_errno=True)


def run(work):
    """Calls `work(base)` with a private folder and returns its exit code; in namespaces of its own where allowed.

    The folder is made and removed out here, where mounts of the namespace cannot be seen, let alone entered.
    """
    base = pathlib.Path(tempfile.mkdtemp(prefix="wrapdisk-bench-"))
    try:
        if os.geteuid() == 0 and _libc.unshare(CLONE_NEWPID) == 0:
            return _supervise(lambda: _init(lambda: work(base)))
        for number in PASSED_ON:
            signal.signal(number, _interrupt)
        return work(base)
    finally:
        if not _mounts_below(base):
            shutil.rmtree(base, ignore_errors=True)
        else:
            print(f"left behind, still mounted: {base}", file=sys.stderr)


def _interrupt(_number, _frame):
    raise KeyboardInterrupt


def _fork(body):
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            code = body()
        except BaseException as e:  # noqa: BLE001  the copy of the parent's stack must not unwind
            print(f"bench: {type(e).__name__}: {e}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def _supervise(body):
    """The process outside: passes signals on, waits. Ctrl-C reaches the whole group by itself."""
    child = _fork(body)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in PASSED_ON:
        signal.signal(number, lambda n, _f: os.kill(child, n))
    return _code(os.waitpid(child, 0)[1])


def _init(work):
    """PID 1 of the namespace: takes in orphans (a daemon that waits for a pid to vanish would wait for a zombie)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _libc.unshare(CLONE_NEWNS) != 0 or _libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None) != 0:
        raise BenchError(f"a private mount namespace: {os.strerror(ctypes.get_errno())}")
    _libc.mount(b"proc", b"/proc", b"proc", 0, None)

    def harness():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in PASSED_ON:
            signal.signal(number, _interrupt)
        return work()

    child = _fork(harness)
    for number in PASSED_ON:
        signal.signal(number, lambda n, _f: os.kill(child, n))
    while True:
        pid, status = os.wait()
        if pid == child:
            return _code(status)


def _code(status):
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def mounts():
    """Mountpoints of this namespace, newest last."""
    for line in pathlib.Path("/proc/self/mountinfo").read_bytes().splitlines():
        # Spaces and the like are octal escapes: "\\040".
        path = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), line.split()[4])
        yield pathlib.Path(os.fsdecode(path))


def is_mounted(path):
    return path in mounts()


def _mounts_below(folder):
    return [m for m in mounts() if m == folder or folder in m.parents]


def unmount(path):
    """Unmounts, lazily if someone still holds it. Quiet: the caller looks at `is_mounted` if it matters."""
    tool = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    lazy = ["-l"] if os.geteuid() == 0 else ["-z"]
    for extra in ([], lazy):
        if not is_mounted(path):
            return
        subprocess.run([*tool, *extra, str(path)], capture_output=True, check=False)


class Place:
    """Where the files of a run lie: `data` on the file system under test, `mnt` for mountpoints, `home` for state."""

    def __init__(self, base, chosen, need):
        self.base = base
        self.mnt, self.home, self.logs = base / "mnt", base / "home", base / "log"
        for folder in (self.mnt, self.home, self.logs):
            folder.mkdir()
        self._outside = None
        if chosen is not None:
            self.data = self._outside = pathlib.Path(tempfile.mkdtemp(prefix="wrapdisk-bench-", dir=chosen))
        elif os.geteuid() == 0:
            self.data = self._tmpfs(base / "fs", need)
        else:
            # A user may not mount a tmpfs, but this is one.
            self.data = self._outside = pathlib.Path(tempfile.mkdtemp(prefix="wrapdisk-bench-", dir="/dev/shm"))
        try:
            self._check_space(need)
        except BenchError:
            self.close()
            raise

    @staticmethod
    def _tmpfs(folder, need):
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={need},mode=0700", "wrapdisk-bench", str(folder)],
            capture_output=True, text=True, check=False,
        )
        if done.returncode != 0:
            raise BenchError(f"mount a tmpfs: {done.stderr.strip()}; name a folder with --dir instead")
        return folder

    def _check_space(self, need):
        stat = os.statvfs(self.data)
        free = stat.f_bavail * stat.f_frsize
        where = str(self.data)
        if self.fs_type() == "tmpfs":
            # The pages of a tmpfs are memory, whatever its size option promises.
            available = _mem_available()
            if available < free:
                free, where = available, "memory"
        if free < need:
            raise BenchError(
                f"the files need {need >> 20} MiB, found {free >> 20} MiB free in {where}; "
                "use a smaller --size, fewer contestants (--only), or --dir"
            )

    def fs_type(self):
        done = subprocess.run(
            ["stat", "-f", "-c", "%T", str(self.data)], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    def close(self):
        for mount in reversed(_mounts_below(self.base)):
            unmount(mount)
        if self._outside:
            shutil.rmtree(self._outside, ignore_errors=True)


def _mem_available():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
