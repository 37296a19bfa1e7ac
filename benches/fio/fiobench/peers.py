"""Programs of others: where they are, and with --install, how they come here."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from . import BenchError

# One by one, because one that cannot be installed must not keep the others away.
PACKAGES = ("fio", "gocryptfs", "securefs", "qemu-utils", "qemu-system-common")
QEMU = "qemu-storage-daemon"


class Tools:
    """Finds programs; `cache` holds what --install unpacked without installing it."""

    def __init__(self, cache):
        self.cache = cache

    def find(self, name):
        found = shutil.which(name)
        if found is None:
            unpacked = self.cache / "usr/bin" / name
            found = str(unpacked) if os.access(unpacked, os.X_OK) else None
        return found

    def need(self, name, who):
        found = self.find(name)
        if found is None:
            raise BenchError(
                f"{who}: {name}: command not found; --install fetches it, --without {who} leaves it out"
            )
        return found

    def qemu(self):
        """The daemon, if it was built with FUSE exports and its libraries are here."""
        found = self.need(QEMU, "qemu")
        done = subprocess.run([found, "--help"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"qemu: {found} does not run: {done.stderr.strip()[:200]}")
        if "[type=]fuse" not in done.stdout:
            raise BenchError(f"qemu: {found} was built without FUSE exports; --without qemu leaves it out")
        return found

    def install(self):
        if not shutil.which("apt-get"):
            raise BenchError(f"--install knows apt only; install {', '.join(PACKAGES)} by hand")
        for package in PACKAGES:
            if package == "qemu-system-common" and self.find(QEMU):
                continue
            env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
            done = subprocess.run(
                ["apt-get", "install", "-y", "--no-install-recommends", package],
                env=env, capture_output=True, text=True, check=False,
            )
            if done.returncode == 0:
                print(f"installed {package}", file=sys.stderr)
            elif package == "qemu-system-common":
                # A backported qemu-utils conflicts with it; one program out of it is all that is wanted.
                self._unpack(package)
            else:
                raise BenchError(f"apt-get install {package}: {_last_line(done.stderr)}")

    def _unpack(self, package):
        self.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            # apt drops root for downloads and needs to write here.
            os.chmod(folder, 0o777)
            done = subprocess.run(
                ["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False
            )
            packages = list(pathlib.Path(folder).glob("*.deb"))
            if done.returncode != 0 or not packages:
                raise BenchError(f"apt-get download {package}: {_last_line(done.stderr)}")
            subprocess.run(["dpkg", "-x", str(packages[0]), str(self.cache)], check=True)
        print(f"unpacked {package} into {self.cache}", file=sys.stderr)


def _last_line(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


def version(argv):
    """First line that a program says about itself, or "?"."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "?"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "?"
