//! Do we and a real cryptsetup keep out of each other's way? The lock is the one of flock(2) on the file: cryptsetup waits
//! for it, we refuse and name the holder (ON-DISK section 7).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cryptsetup_support;
mod support;

use std::process::Command;

use cryptsetup_support::{Background, cryptsetup, put};
use nix::sys::signal::Signal;
use support::{Home, eventually, run};

/// Starts cryptsetup and sees it wait for the lock.
#[track_caller]
fn waits(args: &[&str]) -> Background {
    let mut waiting = Background::start(Command::new("cryptsetup").args(args));
    eventually("cryptsetup waits", || {
        assert_eq!(waiting.ended(), None, "{args:?} did not wait");
        (waiting.locks(true).len() == 1).then_some(())
    });
    waiting
}

#[test]
fn while_a_disk_is_mounted_for_writing_cryptsetup_waits_and_only_looks_without_a_lock() {
    let home = Home::ready();
    home.create("a.wd", "4M", &[]);
    let disk = home.text("a.wd");
    let mount = home.mount("a.wd", &[]);
    run("blkid", ["-p", disk]);
    for look in ["isLuks", "luksDump", "luksUUID"] {
        cryptsetup([look, "--disable-locks", disk]).ok();
    }
    let reader = waits(&["luksDump", disk]);
    let prober = waits(&["isLuks", disk]);
    let writer = waits(&["config", "--label", "later", disk]);
    assert_eq!(home.json(["info", "a.wd"])["label"], "", "the label was changed under a mount");
    mount.unmount();
    assert_eq!([reader.end(), prober.end(), writer.end()], [0, 0, 0]);
    assert_eq!(home.json(["info", "a.wd"])["label"], "later");
    home.mount("a.wd", &[]).unmount();
}

#[test]
fn while_it_is_mounted_read_only_cryptsetup_reads_and_its_changes_wait() {
    let home = Home::ready();
    home.create("a.wd", "4M", &[]);
    let disk = home.text("a.wd");
    let mount = home.mount("a.wd", &["--read-only"]);
    cryptsetup(["luksDump", disk]).ok();
    let writer = waits(&["config", "--label", "later", disk]);
    mount.unmount();
    assert_eq!(writer.end(), 0);
    assert_eq!(home.json(["info", "a.wd"])["label"], "later");
}

#[test]
fn what_cryptsetup_holds_is_refused_and_it_is_named() {
    let home = Home::ready();
    home.create("a.wd", "4M", &[]);
    let disk = home.text("a.wd");
    std::fs::create_dir(home.path("m")).unwrap();
    let holder = stopped_with_the_lock(disk);
    let who = format!("in use by another process (pid {}, cryptsetup)", holder.pid());
    let words = put(&home, "p", b"words");
    for args in [
        &["mount", "a.wd", "m"][..],
        &["mount", "a.wd", "m", "--passphrase-file", words],
        &["seal", "a.wd"],
        &["header", "erase", "a.wd", "--yes"],
        &["create", "a.wd", "--size", "4M", "--force"],
    ] {
        let said = home.wrapdisk(args).fails(1);
        let expected = "unmount it or end that process first";
        let shown = if args[0] == "create" { "a.wd" } else { disk };
        assert_eq!(said, format!("wrapdisk: {shown}: {who}\n  {expected}"), "{args:?}");
    }
    for args in [&["mount", "a.wd", "m", "--read-only"][..], &["info", "a.wd"], &["check", "a.wd"]] {
        let said = home.wrapdisk(args).fails(1);
        assert!(said.starts_with(&format!("wrapdisk: {disk}: {who}\n  ")), "{args:?}: {said}");
    }
    holder.signal(Signal::SIGCONT);
    assert_eq!(holder.end(), 0);
    home.mount("a.wd", &[]).unmount();
    assert_eq!(home.json(["info", "a.wd"])["label"], "theirs");
}

/// A cryptsetup that changes the label, stopped while it holds the lock: some milliseconds, so it is caught in one of a few
/// attempts.
fn stopped_with_the_lock(disk: &str) -> Background {
    for _ in 0..1000 {
        let mut running =
            Background::start(Command::new("cryptsetup").args(["config", "--label", "theirs", disk]));
        while running.ended().is_none() {
            if running.locks(false).is_empty() {
                continue;
            }
            running.signal(Signal::SIGSTOP);
            eventually("cryptsetup stops", || running.is_stopped().then_some(()));
            if running.locks(false).iter().any(|lock| lock.contains("WRITE")) {
                return running;
            }
            running.signal(Signal::SIGCONT);
        }
    }
    panic!("cryptsetup was never caught with the lock");
}
