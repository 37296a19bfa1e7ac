//! A machine on which a real systemd runs and wrapdisk is installed as packaging/install.sh installs it: namespaces of this
//! one, whose files it sees and cannot change. It needs root and nothing of what runs here as process 1.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Done, WRAPDISK, eventually, finish};

/// What it takes, for whoever reads that it does not start.
const NEEDS: &str = "systemd does not start in namespaces here: that needs root with CAP_SYS_ADMIN (in a container: \
                     --privileged), cgroup2, overlayfs, and the packages of tests/run --setup-only; see above";

/// Gone when dropped, with everything that runs on it. A test that fails shows its journal.
pub(crate) struct Machine {
    holder: Child,
    /// systemd, as this machine counts processes.
    pid: String,
    _dir: TempDir,
}

impl Machine {
    /// Returns when the basic system is up and the journal listens; no unit of ours has been started.
    #[track_caller]
    pub(crate) fn boot() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::tempdir().expect("a temporary folder");
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh"]).arg(repository.join("tests/systemd_support/boot.sh")).arg(dir.path());
        command.arg(format!("wrapdisk-units-{}-{number}", std::process::id())).arg(repository).arg(WRAPDISK);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare");
        let mut line = String::new();
        let said = holder.stdout.take().expect("a pipe");
        BufReader::new(said).read_line(&mut line).expect("a pid");
        let parent: u32 = line.trim().parse().unwrap_or_else(|_| panic!("{NEEDS}"));
        let mut machine = Self { holder, pid: String::new(), _dir: dir };
        machine.pid = machine.find_systemd(parent);
        eventually("systemd", || machine.is_up().then_some(()));
        machine
    }

    /// The only child of `parent`.
    #[track_caller]
    fn find_systemd(&mut self, parent: u32) -> String {
        eventually("the first process", || {
            assert!(Path::new(&format!("/proc/{parent}")).exists(), "{NEEDS}");
            let done = finish(Command::new("pgrep").args(["-P", &parent.to_string()]));
            let pid = done.out.trim().to_owned();
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (comm == "systemd\n").then_some(pid)
        })
    }

    #[track_caller]
    fn is_up(&self) -> bool {
        assert!(Path::new(&format!("/proc/{}", self.pid)).exists(), "{NEEDS}");
        let up = |unit| self.run(["systemctl", "is-active", unit]).out.trim() == "active";
        up("basic.target") && up("systemd-journald.service")
    }

    /// A file of it.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// Writes a file of root's alone, and makes its folder.
    #[track_caller]
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        file.as_mut().expect("a file").write_all(text.as_bytes()).expect("written");
    }

    /// Runs a command on it, as root at a terminal would.
    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Done {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.pid, "--all", "--wd"]).args(command);
        // Nothing of whoever runs the tests: a proxy, a WRAPDISK_HOME.
        nsenter.env_clear().env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        finish(&mut nsenter)
    }

    /// The same for the words of a line.
    #[track_caller]
    pub(crate) fn sh(&self, line: &str) -> Done {
        self.run(["sh", "-euc", line])
    }

    /// What a command of ours says with `--output json`.
    #[track_caller]
    pub(crate) fn json(&self, line: &str) -> Value {
        let out = self.sh(&format!("wrapdisk {line} --output json")).ok();
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }

    #[track_caller]
    pub(crate) fn systemctl(&self, verb: &str, unit: &str) -> Done {
        self.run(["systemctl", verb, unit])
    }

    /// A property of a unit.
    #[track_caller]
    pub(crate) fn show(&self, unit: &str, property: &str) -> String {
        self.run(["systemctl", "show", "--property", property, "--value", unit]).ok()
    }

    /// How it ended: its state, its result, the program's exit code.
    #[track_caller]
    pub(crate) fn outcome(&self, unit: &str) -> [String; 3] {
        ["ActiveState", "Result", "ExecMainStatus"].map(|property| self.show(unit, property))
    }

    /// Adds to a unit that is installed.
    #[track_caller]
    pub(crate) fn add(&self, unit: &str, text: &str) {
        self.write(&format!("/run/units/{unit}.d/test.conf"), text);
        self.run(["systemctl", "daemon-reload"]).ok();
    }

    /// The entries of the journal that match.
    #[track_caller]
    pub(crate) fn journal(&self, matches: &[&str]) -> Vec<Value> {
        self.run(["journalctl", "--sync"]).ok();
        let done = self.run([&["journalctl", "--quiet", "--output", "json"], matches].concat());
        done.ok().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.pid.is_empty() {
            let said = self.run(["journalctl", "--quiet", "--no-pager"]);
            eprintln!("{}{}", said.out, said.err);
        }
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
