//! QEMU as a user runs it, and its end.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wrapdisk::guard::qmp::Qmp;

use crate::support::eventually;

pub(crate) mod linux;
pub(crate) mod responses;

/// A QEMU process without a display, gone when dropped.
pub(crate) struct Qemu {
    pub(crate) child: Child,
    pub(crate) qmp: PathBuf,
}

impl Qemu {
    /// A machine that does not run anything (`-S`) or an empty one, with a monitor at `qmp`.
    #[track_caller]
    pub(crate) fn start(qmp: &Path, more: &[&str]) -> Self {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-m", "64"]);
        command.args(more).stdin(Stdio::null());
        Self::run(&mut command, qmp)
    }

    /// Runs this command with a monitor at `qmp`, and returns when that answers.
    #[track_caller]
    pub(crate) fn run(command: &mut Command, qmp: &Path) -> Self {
        let _ = std::fs::remove_file(qmp);
        let at = format!("unix:{},server=on,wait=off", qmp.display());
        let child = command.args(["-qmp", &at]).spawn().expect("qemu-system-x86_64 must be installed");
        let mut qemu = Self { child, qmp: qmp.to_owned() };
        eventually("a monitor", || {
            assert_eq!(qemu.child.try_wait().expect("it is our child"), None, "qemu ended");
            qmp.exists().then_some(())
        });
        qemu
    }

    /// A conversation with its monitor.
    #[track_caller]
    pub(crate) fn monitor(&self) -> Qmp {
        Qmp::connect(&self.qmp, soon()).unwrap_or_else(|e| panic!("{}", e.chain()))
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    #[track_caller]
    pub(crate) fn ends(&mut self) {
        eventually("the end of qemu", || self.has_ended().then_some(()));
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A deadline that only something stuck misses.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}
