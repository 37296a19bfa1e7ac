//! What tests of the whole program stand on: a home of its own for each test, the program as a user runs it, and mounts
//! that are gone when the test is.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tempfile::TempDir;

/// The program under test.
pub(crate) const WRAPDISK: &str = env!("CARGO_BIN_EXE_wrapdisk");

/// How long anything may take before a test calls it hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    /// The exit code; a signal is -1.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Standard output, trimmed, of a program that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.status.success(), "{}\n{}{}", self.status, self.out, self.err);
        self.out.trim().to_owned()
    }

    /// Standard error, trimmed, of a program that must have failed with exactly this code.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code(), code, "\n{}{}", self.out, self.err);
        self.err.trim().to_owned()
    }
}

/// Runs a command to its end with nothing on standard input.
#[track_caller]
pub(crate) fn finish(command: &mut Command) -> Done {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|e| panic!("{:?} must be installed: {e}", command.get_program()));
    let pid = Pid::from_raw(child.id().try_into().expect("a pid"));
    let (ended, hung) = std::sync::mpsc::channel::<()>();
    // A program that waits for ever must not hang the tests: it is killed, and what it said is shown.
    let watchdog = std::thread::spawn(move || {
        if hung.recv_timeout(5 * PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
    });
    let done = child.wait_with_output().expect("wait");
    drop(ended);
    watchdog.join().expect("the watchdog");
    Done {
        status: done.status,
        out: String::from_utf8_lossy(&done.stdout).into_owned(),
        err: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}

/// Runs a program that must succeed; its output, trimmed.
#[track_caller]
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    finish(Command::new(program).args(args)).ok()
}

/// Looks again until there is something, or fails the test.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not after {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One user's world: a folder with its own vault, sets and disks. What is still mounted below it when it goes is detached.
pub(crate) struct Home {
    dir: TempDir,
}

impl Home {
    /// On the file system of the temporary folder. No vault yet: the first `create` makes one.
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    /// With a vault, a key and the set "default": a copy of one that is made once for each test program, because making an
    /// RSA key takes seconds.
    pub(crate) fn ready() -> Self {
        static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
        let template = TEMPLATE.get_or_init(template);
        let home = Self::new();
        run("cp", [OsStr::new("-a"), template.as_os_str(), home.path("home").as_os_str()]);
        home
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    /// A path in this home.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str) -> &'static str {
        self.path(name).to_str().expect("temporary paths are UTF-8").to_owned().leak()
    }

    /// The program with these arguments, in this home, not yet started.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(WRAPDISK);
        command.args(args).env("WRAPDISK_HOME", self.path("home")).current_dir(self.root());
        command
    }

    /// Runs the program to its end.
    #[track_caller]
    pub(crate) fn wrapdisk<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        finish(&mut self.command(args))
    }

    /// A new disk of this home.
    #[track_caller]
    pub(crate) fn create(&self, name: &str, size: &str, more: &[&str]) -> PathBuf {
        self.wrapdisk([&["create", name, "--size", size], more].concat()).ok();
        self.path(name)
    }

    /// Mounts a disk of this home on a new folder `NAME.mnt`.
    #[track_caller]
    pub(crate) fn mount(&self, name: &str, more: &[&str]) -> Mount<'_> {
        let place = self.path(&format!("{name}.mnt"));
        if !place.exists() {
            std::fs::create_dir(&place).expect("a mountpoint");
        }
        self.mount_at(name, &place, more)
    }

    /// Mounts a disk of this home on what is there.
    #[track_caller]
    pub(crate) fn mount_at(&self, name: &str, place: &Path, more: &[&str]) -> Mount<'_> {
        let args = [&["mount", name, place.to_str().expect("UTF-8")], more].concat();
        self.wrapdisk(args).ok();
        self.adopt(place)
    }

    /// A mount of this home that was made otherwise.
    #[track_caller]
    pub(crate) fn adopt(&self, place: &Path) -> Mount<'_> {
        let status: serde_json::Value = self.json(["status", place.to_str().expect("UTF-8")]);
        let pid = status[0]["pid"].as_u64().and_then(|n| i32::try_from(n).ok()).expect("a pid in status");
        let file = status[0]["file"].as_str().map(PathBuf::from).expect("a file in status");
        Mount { home: self, place: place.to_owned(), file, pid }
    }

    /// What a listing says with `--output json`.
    #[track_caller]
    pub(crate) fn json<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> serde_json::Value {
        let out = self.wrapdisk(args.into_iter().chain(["--output", "json"])).ok();
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }
}

/// A home in the build folder, because nobody drops a static: the next test program removes what this one leaves.
fn template() -> PathBuf {
    let shelf = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for entry in std::fs::read_dir(shelf).expect("cargo's folder for tests").flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix("home-")?.parse().ok());
        if pid.is_some_and(|pid| !is_alive(pid)) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let home = Home::new();
    home.create("first.wd", "512", &[]);
    let kept = shelf.join(format!("home-{}", std::process::id()));
    run("cp", [OsStr::new("-a"), home.path("home").as_os_str(), kept.as_os_str()]);
    kept
}

impl Drop for Home {
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = |line: &str| line.split(' ').nth(4).map(PathBuf::from);
        for place in table.lines().rev().filter_map(below).filter(|p| p.starts_with(self.root())) {
            let _ = finish(Command::new("umount").arg("-l").arg(place));
        }
    }
}

/// A live mount. Dropping it unmounts lazily; [`Mount::unmount`] is how a user ends it.
pub(crate) struct Mount<'a> {
    home: &'a Home,
    pub(crate) place: PathBuf,
    /// The plaintext.
    pub(crate) file: PathBuf,
    /// The daemon.
    pub(crate) pid: i32,
}

impl Mount<'_> {
    /// The presented file as text.
    pub(crate) fn text(&self) -> &str {
        self.file.to_str().expect("temporary paths are UTF-8")
    }

    /// `wrapdisk status` of this mount.
    #[track_caller]
    pub(crate) fn status(&self) -> serde_json::Value {
        self.home.json(["status", self.text()])[0].take()
    }

    /// Unmounts and waits for the daemon's end.
    #[track_caller]
    pub(crate) fn unmount(self) {
        let place = self.place.to_str().expect("temporary paths are UTF-8");
        // A program that another test starts holds copies of open files between its fork and its exec.
        eventually("unmount", || {
            let done = self.home.wrapdisk(["umount", place]);
            assert!(done.status.success() || done.err.contains("still in use"), "{}", done.err);
            done.status.success().then_some(())
        });
    }

    /// Waits until the daemon is gone.
    #[track_caller]
    pub(crate) fn wait_for_end(&self) {
        eventually("the end of the daemon", || (!is_alive(self.pid)).then_some(()));
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = finish(Command::new("umount").arg("-l").arg(&self.place));
    }
}

/// Does a process of this number run? A zombie does not, once its other threads are through as well: until then it may
/// hold locks and open files.
pub(crate) fn is_alive(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    threads > 1 || state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// A regular file over a loop device, gone when dropped. Needs root.
pub(crate) struct Loop(pub(crate) String);

impl Loop {
    /// `losetup --find` with more options, for instance `--sector-size 4096`.
    #[track_caller]
    pub(crate) fn over(file: &Path, more: &[&str]) -> Self {
        let file = file.to_str().expect("temporary paths are UTF-8");
        Self(run("losetup", [&["--find", "--show", "--direct-io=on"], more, &[file]].concat()))
    }

    /// Waits until nothing is left of it: detaching alone ends with the device's last user.
    #[track_caller]
    pub(crate) fn detach(mut self) {
        // Not detached a second time: by then the name may be another test's.
        let device = std::mem::take(&mut self.0);
        let name = Path::new(&device).file_name().expect("a device has a name");
        let backing = || std::fs::read(Path::new("/sys/block").join(name).join("loop/backing_file")).ok();
        let ours = backing();
        run("losetup", ["-d", &device]);
        eventually("detach", || (ours.is_none() || backing() != ours).then_some(()));
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            let _ = finish(Command::new("losetup").arg("-d").arg(&self.0));
        }
    }
}

/// A mounted file system, gone when dropped. Needs root.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    /// `mount MORE DEVICE PLACE`; the place is made.
    #[track_caller]
    pub(crate) fn new(device: &Loop, place: &Path, more: &[&str]) -> Self {
        std::fs::create_dir_all(place).expect("a mountpoint");
        run("mount", [more, &[&device.0, place.to_str().expect("temporary paths are UTF-8")]].concat());
        Self(place.to_owned())
    }

    /// Unmounts, as soon as nobody uses it.
    #[track_caller]
    pub(crate) fn unmount(self) {
        // A program that another test starts holds copies of open files between its fork and its exec.
        eventually("unmount", || {
            let done = finish(Command::new("umount").arg(&self.0));
            assert!(done.status.success() || done.err.contains("busy"), "{}", done.err);
            done.status.success().then_some(())
        });
    }

    /// Everything on its way to the device.
    #[track_caller]
    pub(crate) fn sync(&self) {
        run("sync", ["-f".as_ref(), self.0.as_os_str()]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = finish(Command::new("umount").arg("-l").arg(&self.0));
    }
}

/// Bytes that look like nothing else and are the same in every run.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
