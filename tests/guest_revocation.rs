//! Does a real virtual machine (Debian's kernel under QEMU) that lives on a mount end with its key and live again with it:
//! key disabled and enabled, deleted and recovered, grant revoked and restored, another set assigned; with nothing lost that
//! it had synced, and a file system that is clean: after journal replay, or without one where a shutdown window let it shut
//! down?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guest_support;
mod support;

use std::path::Path;

use guest_support::linux::{Booted, Machine, check};
use support::{Home, Mount, eventually, run};

/// A home with a disk that holds an ext4 file system.
fn home_with_a_file_system() -> Home {
    let home = Home::ready();
    let image = home.path("fs.img");
    run("truncate", ["-s", "48M", image.to_str().unwrap()]);
    run("mkfs.ext4", ["-q", "-O", "^resize_inode", image.to_str().unwrap()]);
    home.create("vm.wd", "48M", &[]);
    let mount = home.mount("vm.wd", &[]);
    run(
        "dd",
        [
            &format!("if={}", image.display()),
            &format!("of={}", mount.text()),
            "bs=1M",
            "conv=notrunc,sparse,fsync",
            "status=none",
        ],
    );
    mount.unmount();
    home
}

#[track_caller]
fn is(mount: &Mount<'_>, state: &str) {
    eventually(state, || (mount.status()["state"] == state).then_some(()));
}

/// The journal had something to replay or not, and the file system is clean after it.
#[track_caller]
fn is_clean(mount: &Mount<'_>, scratch: &Path) -> bool {
    let (code, replay) = check(&mount.file, scratch);
    assert!(code == 0 || code == 1, "e2fsck: {code}");
    replay
}

/// Everything a guest had synced is there for the next one.
#[track_caller]
fn keeps(guest: &Booted, synced: u32) {
    let kept = eventually("the guest's file system", || guest.last("guest: kept"));
    assert!(kept >= synced, "found {kept} files, {synced} were synced");
}

#[test]
fn a_guest_ends_with_its_key_and_boots_again_with_it() {
    let home = home_with_a_file_system();
    let machine = Machine::new(home.root());
    let qmp = home.path("vm.qmp");
    let mount = home.mount("vm.wd", &["--qmp", qmp.to_str().unwrap()]);
    let scratch = home.path("scratch.img");
    let key = "disk-kek";
    let ways: [(&[&str], &[&str]); 3] = [
        (&["key", "disable", key, "--yes"], &["key", "enable", key]),
        (&["key", "delete", key, "--yes"], &["key", "recover", key]),
        (&["revoke", "--set", "default", "--yes"], &["grant", "--set", "default"]),
    ];
    let mut synced = 0;
    for (take, give) in ways {
        let mut guest = machine.boot(&mount.file, &qmp);
        guest.writes(5);
        keeps(&guest, synced);
        assert_eq!(mount.status()["guests"][0]["state"], "running");
        home.wrapdisk(take.iter().copied()).ok();
        let (last, shut_down) = guest.ended();
        assert!(!shut_down, "it was ended, not asked");
        synced = last;
        is(&mount, "revoked");
        assert!(std::fs::read(&mount.file).is_err(), "I/O is fenced");
        assert_eq!(mount.status()["guests"][0]["state"], "gone");
        home.wrapdisk(give.iter().copied()).ok();
        is(&mount, "ready");
        is_clean(&mount, &scratch);
    }
    // And once more, down by its own button: nothing was lost on the way.
    let mut guest = machine.boot(&mount.file, &qmp);
    guest.writes(1);
    keeps(&guest, synced);
    guest.qemu.monitor().powerdown().unwrap();
    let (_, shut_down) = guest.ended();
    assert!(shut_down);
    assert!(!is_clean(&mount, &scratch), "nothing to replay");
    mount.unmount();
}

#[test]
fn a_shutdown_window_lets_a_guest_shut_down_and_its_file_system_needs_no_replay() {
    let home = home_with_a_file_system();
    let machine = Machine::new(home.root());
    let qmp = home.path("vm.qmp");
    let mount = home.mount("vm.wd", &["--qmp", qmp.to_str().unwrap(), "--shutdown-window", "30s"]);
    let mut guest = machine.boot(&mount.file, &qmp);
    guest.writes(3);
    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    let (synced, shut_down) = guest.ended();
    assert!(shut_down, "it unmounted its file system");
    // Not after the 30 s: as soon as the guest is gone.
    is(&mount, "revoked");
    assert!(std::fs::read(&mount.file).is_err(), "I/O is fenced");
    home.wrapdisk(["key", "enable", "disk-kek"]).ok();
    is(&mount, "ready");
    assert!(!is_clean(&mount, &home.path("scratch.img")), "nothing to replay");
    assert!(synced >= 3);
    mount.unmount();
}

#[test]
fn a_guest_that_is_only_stopped_never_notices() {
    let home = home_with_a_file_system();
    let machine = Machine::new(home.root());
    let qmp = home.path("vm.qmp");
    let mount = home.mount("vm.wd", &["--qmp", qmp.to_str().unwrap(), "--on-revoke", "eio"]);
    let mut guest = machine.boot(&mount.file, &qmp);
    for _ in 0..2 {
        guest.writes(3);
        home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
        is(&mount, "revoked");
        eventually("the guest's stop", || (mount.status()["guests"][0]["state"] == "paused").then_some(()));
        assert!(!guest.qemu.has_ended());
        home.wrapdisk(["key", "enable", "disk-kek"]).ok();
        is(&mount, "ready");
        eventually("the guest's life", || (mount.status()["guests"][0]["state"] == "running").then_some(()));
    }
    guest.writes(3);
    assert!(!guest.said("guest: i/o error"), "its disk was only slow");
    guest.qemu.monitor().powerdown().unwrap();
    assert!(guest.ended().1);
    assert!(!is_clean(&mount, &home.path("scratch.img")));
    mount.unmount();
}

#[test]
fn a_new_set_brings_a_guest_back_where_somebody_may_still_use_the_old_key() {
    let home = home_with_a_file_system();
    let machine = Machine::new(home.root());
    let qmp = home.path("vm.qmp");
    let mount = home.mount("vm.wd", &["--qmp", qmp.to_str().unwrap()]);
    let place = mount.place.to_str().unwrap();
    home.wrapdisk(["key", "create", "other", "--size", "2048"]).ok();
    home.wrapdisk(["set", "create", "prod", "--key", "other", "--grant"]).ok();
    let mut guest = machine.boot(&mount.file, &qmp);
    guest.writes(3);
    home.wrapdisk(["revoke", "--set", "default", "--yes"]).ok();
    let (synced, _) = guest.ended();
    is(&mount, "revoked");
    // Nobody may use the old key, and the disk has neither another token nor a passphrase.
    let refused = home.wrapdisk(["disk", "update", place, "--set", "prod"]).fails(3);
    for way in ["an identity that is granted the old key", "another token", "recovery passphrase"] {
        assert!(refused.contains(way), "{refused}");
    }
    is(&mount, "revoked");
    assert!(std::fs::read(&mount.file).is_err(), "I/O is fenced");
    // The identity of a second set over the same key may.
    home.wrapdisk(["set", "create", "helper", "--key", "disk-kek", "--grant"]).ok();
    home.wrapdisk(["disk", "update", place, "--set", "prod"]).ok();
    is(&mount, "ready");
    assert!(mount.status()["key"].as_str().unwrap().contains("/keys/other/"));
    // The old key is nothing to it any more.
    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    let mut guest = machine.boot(&mount.file, &qmp);
    guest.writes(3);
    keeps(&guest, synced);
    drop(guest);
    assert_eq!(mount.status()["guard"]["fences"], 1);
    mount.unmount();
}
