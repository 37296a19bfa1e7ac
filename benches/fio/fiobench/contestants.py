"""Who is measured. A contestant presents one plaintext file of a given size; fio sees only that file.

`start` returns the presented path, ready for I/O; `stop` undoes it and may be called at any time, twice too.
Backing files lie in `place.data/NAME`, so that all share one file system and holes can be looked for.
"""

import os
import pathlib
import subprocess
import time

from . import BenchError, peers, sandbox

PASSWORD = "bench"
START_LIMIT = 60  # seconds: key derivation included
STOP_LIMIT = 20


class Contestant:
    name = ""
    title = ""
    is_peer = False  # a product of others, which "best peer" ranks

    def __init__(self, tools):
        self.tools = tools
        self.place = None

    def check(self):
        """Raises BenchError when a program is missing."""

    def version(self):
        return ""

    def start(self, place, size):
        self.place = place
        self.data = place.data / self.name
        self.data.mkdir()
        return self.present(size)

    def present(self, size):
        raise NotImplementedError

    def stop(self):
        pass

    # Helpers of those below.

    def backing(self, size):
        path = self.data / "backing"
        with open(path, "xb") as f:
            f.truncate(size)
        return path

    def file_mountpoint(self):
        path = self.place.mnt / self.name
        path.touch(mode=0o600)
        return path

    def folder_mountpoint(self):
        path = self.place.mnt / self.name
        path.mkdir()
        return path


class Raw(Contestant):
    name, title = "raw", "bare file"

    def present(self, size):
        return self.backing(size)


class Foreground(Contestant):
    """A FUSE server that stays in the foreground, as a child of ours."""

    process = None
    target = None

    def serve(self, argv, target, env=None):
        """Starts the server and waits until something is mounted at `target`."""
        self.target = target
        log = self.place.logs / f"{self.name}.log"
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=dict(os.environ, **(env or {})),
            )
        end = time.monotonic() + START_LIMIT
        while not sandbox.is_mounted(target):
            code = self.process.poll()
            # Zero may be a server that went to the background by itself; wait for its mount.
            if code or time.monotonic() > end:
                why = f"ended with code {code}" if code else f"no mount after {START_LIMIT} s"
                raise BenchError(f"{self.name}: {argv[0]}: {why}: {_tail(log)}")
            time.sleep(0.02)

    def stop(self):
        if self.target:
            sandbox.unmount(self.target)
        if self.process:
            for end in (lambda: None, self.process.terminate, self.process.kill):
                end()
                try:
                    self.process.wait(STOP_LIMIT)
                    break
                except subprocess.TimeoutExpired:
                    continue
        self.target = self.process = None


class Null(Foreground):
    name, title = "null", "null FUSE"

    def __init__(self, tools, program, name="null", title=None, args=(), env=None):
        super().__init__(tools)
        self.program, self.name, self.args, self.env = program, name, args, env
        self.title = title or self.title

    def check(self):
        _need_built(self.program, self.name, "cargo build --release --examples")

    def present(self, size):
        mountpoint = self.file_mountpoint()
        self.serve([self.program, self.backing(size), mountpoint, *self.args], mountpoint, self.env)
        return mountpoint


class Wrapdisk(Contestant):
    def __init__(self, tools, program, name, title, cache):
        super().__init__(tools)
        self.program, self.name, self.title, self.cache = program, name, title, cache
        self.mountpoint = None

    def check(self):
        _need_built(self.program, self.name, "cargo build --release")

    def version(self):
        return peers.version([str(self.program), "--version"])

    def present(self, size):
        container = self.data / "w.wd"
        self._call("create", container, "--size", str(size))
        self.mountpoint = self.folder_mountpoint()
        self._call("mount", container, self.mountpoint, "--cache-size", str(self.cache))
        return self.mountpoint / "disk.img"

    def stop(self):
        if self.mountpoint and sandbox.is_mounted(self.mountpoint):
            try:
                self._call("umount", self.mountpoint)
            finally:
                sandbox.unmount(self.mountpoint)
        self.mountpoint = None

    def _call(self, *args):
        # Standard error goes to a file: a daemon that kept a pipe open would keep us waiting.
        log = self.place.logs / f"{self.name}.log"
        with open(log, "ab") as out:
            done = subprocess.run(
                [str(self.program), *map(str, args)], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=dict(os.environ, WRAPDISK_HOME=str(self.place.home)), check=False, timeout=START_LIMIT * 2,
            )
        if done.returncode != 0:
            raise BenchError(f"{self.name}: wrapdisk {args[0]}: code {done.returncode}: {_tail(log)}")


class Qemu(Foreground):
    name, title, is_peer = "qemu", "qemu LUKS export", True

    def check(self):
        self.tools.need("qemu-img", self.name)
        self.tools.qemu()

    def version(self):
        return peers.version([self.tools.qemu(), "--version"])

    def present(self, size):
        image = self.data / "image.luks"
        secret = f"secret,id=s0,data={PASSWORD}"
        make = [self.tools.need("qemu-img", self.name), "create", "-q", "-f", "luks", "--object", secret,
                "-o", "key-secret=s0,iter-time=10", str(image), str(size)]
        _quiet(make, self.name)
        mountpoint = self.file_mountpoint()
        self.serve(
            [self.tools.qemu(), "--object", secret,
             "--blockdev", f"driver=file,filename={image},node-name=f,cache.direct=off",
             "--blockdev", "driver=luks,file=f,key-secret=s0,node-name=l",
             "--export", f"type=fuse,id=e,node-name=l,mountpoint={mountpoint},writable=on"],
            mountpoint,
        )
        return mountpoint


class Gocryptfs(Foreground):
    name, title, is_peer = "gocryptfs", "gocryptfs (GCM)", True

    def check(self):
        self.tools.need("gocryptfs", self.name)

    def version(self):
        return peers.version([self.tools.need("gocryptfs", self.name), "--version"])

    def present(self, size):
        program = self.tools.need("gocryptfs", self.name)
        password = self.place.home / "gocryptfs.password"
        password.write_text(PASSWORD + "\n")
        _quiet([program, "-init", "-q", "-nosyslog", "-scryptn", "10", "-passfile", password, self.data], self.name)
        mountpoint = self.folder_mountpoint()
        self.serve([program, "-fg", "-q", "-nosyslog", "-passfile", password, self.data, mountpoint], mountpoint)
        return mountpoint / "disk.img"


class Securefs(Foreground):
    # It hands O_DIRECT down to its backing file and then reads unaligned: direct jobs work on tmpfs only, elsewhere
    # they are shown as errors.
    name, title, is_peer = "securefs", "securefs", True

    def check(self):
        self.tools.need("securefs", self.name)

    def version(self):
        return "securefs (Debian)" if pathlib.Path("/etc/debian_version").exists() else "securefs"

    def present(self, size):
        program = self.tools.need("securefs", self.name)
        cheap = ["--pbkdf", "pkcs5-pbkdf2-hmac-sha256", "-r", "1000"]
        _quiet([program, "create", "--pass", PASSWORD, *cheap, self.data], self.name)
        mountpoint = self.folder_mountpoint()
        self.serve([program, "mount", "--pass", PASSWORD, self.data, mountpoint], mountpoint)
        return mountpoint / "disk.img"


def _need_built(program, name, build):
    if not os.access(program, os.X_OK):
        raise BenchError(f"{name}: {program}: not there; `{build}` makes it, --without {name} leaves it out")


def _quiet(argv, who):
    done = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{who}: {pathlib.Path(argv[0]).name}: {(done.stderr or done.stdout).strip()[-300:]}")


def _tail(log):
    text = log.read_text(errors="replace").strip()
    return text[-400:] if text else "it said nothing"


NAMES = ("raw", "null", "lab", "lab-xts", "wrapdisk", "wrapdisk-cache", "qemu", "gocryptfs", "securefs")


def everyone(options, tools):
    """All contestants in the order of the tables; `lab` and `lab-xts` only with --lab."""
    yield Raw(tools)
    yield Null(tools, options.null, args=options.null_args)
    if options.lab:
        yield Null(tools, options.lab, "lab", "lab null", options.lab_args)
        yield Null(tools, options.lab, "lab-xts", "lab null + XTS", options.lab_args, {"XTS": "1"})
    yield Wrapdisk(tools, options.wrapdisk, "wrapdisk", "wrapdisk, cache off", 0)
    yield Wrapdisk(tools, options.wrapdisk, "wrapdisk-cache", "wrapdisk, cache on", options.cache_size)
    yield Qemu(tools)
    yield Gocryptfs(tools)
    yield Securefs(tools)
