//! The process behind a mount, seen from outside: started where its exit code can be had, signalled, and looked for.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Home, eventually, finish};

/// A mount in the foreground, as a service manager runs it. Gone when dropped.
pub(crate) struct Foreground {
    child: Child,
    pub(crate) place: PathBuf,
    /// The plaintext.
    pub(crate) file: PathBuf,
}

impl Foreground {
    /// Mounts a disk of this home on a new folder `NAME.mnt`, and returns when it says that it is usable.
    #[track_caller]
    pub(crate) fn start(home: &Home, name: &str, more: &[&str]) -> Self {
        let place = home.path(&format!("{name}.mnt"));
        std::fs::create_dir_all(&place).expect("a mountpoint");
        let mut command =
            home.command([&["mount", "--foreground", name, place.to_str().expect("UTF-8")], more].concat());
        Self::run(&mut command, &place)
    }

    /// Runs this command, which mounts on `place`.
    #[track_caller]
    pub(crate) fn run(command: &mut Command, place: &Path) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("wrapdisk starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("reads");
        let ended = if line.is_empty() { child.wait().ok() } else { None };
        assert_eq!(ended, None, "ended before it was usable");
        Self { child, place: place.to_owned(), file: PathBuf::from(line.trim_end()) }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// What it says on a piped standard error until its end.
    #[track_caller]
    pub(crate) fn messages(&mut self) -> String {
        let mut said = String::new();
        self.child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("reads");
        said
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Waits for its end, and how that was.
    #[track_caller]
    pub(crate) fn end(&mut self) -> ExitStatus {
        eventually("the end of the process", || self.child.try_wait().expect("it is our child"))
    }

    /// Waits for its end, which must be by itself and with this code.
    #[track_caller]
    pub(crate) fn ends_with(&mut self, code: i32) {
        let status = self.end();
        assert_eq!(status.signal(), None);
        assert_eq!(status.code(), Some(code));
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = finish(Command::new("umount").arg("-l").arg(&self.place));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
pub(crate) fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("there is such a process");
}

/// Is anything mounted exactly here, dead or alive?
pub(crate) fn is_mounted(place: &Path) -> bool {
    wrapdisk::fuse::mountpoint::mounted_at(place).expect("mountinfo").is_some()
}

/// The control sockets of this home.
pub(crate) fn sockets(home: &Home) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(home.path("home/run")).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.extension().is_none_or(|x| x != "log")).collect()
}

/// Numbers of the processes that have this text in their command line. Zombies have none.
pub(crate) fn processes_naming(text: &str) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let names = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(text.len()).any(|w| w == text.as_bytes())
    };
    pids.filter(names).collect()
}

/// The errno of a failure.
#[track_caller]
pub(crate) fn errno<T: std::fmt::Debug>(done: std::io::Result<T>) -> i32 {
    done.expect_err("it fails").raw_os_error().expect("the kernel's error")
}
