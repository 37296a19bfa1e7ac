//! Does I/O on a live mount end when its key is taken away, whichever way, and go on by itself on the same mount, through the
//! same open file, when it comes back? A real mount on /dev/fuse, its key in the embedded vault, the program as a user runs it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Home, Mount, eventually, noise};

/// The embedded vault is looked at every second; twice the default interval is promised.
const SOON: Duration = Duration::from_secs(20);

fn open(mount: &Mount<'_>) -> File {
    OpenOptions::new().read(true).write(true).open(&mount.file).unwrap()
}

fn read(file: &File, len: usize) -> io::Result<Vec<u8>> {
    let mut found = vec![0; len];
    file.read_exact_at(&mut found, 0).map(|()| found)
}

fn is_refused<T>(done: io::Result<T>) -> Option<()> {
    done.err().map(|e| assert_eq!(e.raw_os_error(), Some(libc::EIO), "{e}"))
}

/// On a thread of its own, since it may wait.
fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (tell, told) = channel();
    std::thread::spawn(move || drop(tell.send(work())));
    told
}

#[test]
fn io_ends_whichever_way_the_key_is_taken_and_goes_on_when_it_is_back() {
    let home = Home::ready();
    home.create("vm.wd", "8M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let identity = home.json(["set", "show", "default"])["identity"]["principalId"].clone();
    let identity = identity.as_str().unwrap();
    let file = open(&mount);
    let ways: [(&[&str], &[&str], &str); 4] = [
        (&["key", "disable", "disk-kek", "--yes"], &["key", "enable", "disk-kek"], "disabled"),
        (&["key", "delete", "disk-kek", "--yes"], &["key", "recover", "disk-kek"], "deleted"),
        (&["revoke", "--set", "default", "--yes"], &["grant", "--set", "default"], "no-permission"),
        (
            &["vault", "identity", "disable", identity],
            &["vault", "identity", "enable", identity],
            "no-permission",
        ),
    ];
    for (n, (take, give, why)) in ways.into_iter().enumerate() {
        let content = noise(n as u64 + 1, 300_000);
        file.write_all_at(&content, 0).unwrap();
        file.sync_all().unwrap();
        assert_eq!(read(&file, content.len()).unwrap(), content);

        home.wrapdisk(take).ok();
        let taken = Instant::now();
        eventually("I/O ends", || is_refused(read(&file, 10)));
        assert!(taken.elapsed() < SOON, "{take:?}: after {:?}", taken.elapsed());
        println!("{take:?}: the last read {:?} after the command", taken.elapsed());
        is_refused(file.write_all_at(b"refused", 0)).expect("writes as well");
        is_refused(read(&open(&mount), 10)).expect("through a new open file as well");
        assert_eq!(file.metadata().unwrap().len(), 8 << 20, "it can be looked at");
        file.sync_all().expect("what was acknowledged can be synced");
        let status = mount.status();
        assert_eq!(status["state"], "revoked", "{status}");
        assert_eq!(status["guard"]["why"], why, "{status}");
        assert_eq!(status["guard"]["fences"], n + 1, "{status}");

        home.wrapdisk(give).ok();
        let given = Instant::now();
        let found = eventually("I/O goes on", || read(&file, content.len()).ok());
        println!("{give:?}: the first read {:?} after the command", given.elapsed());
        assert!(found == content, "{take:?}: what was synced is there");
        assert!(given.elapsed() < SOON);
        assert_eq!(mount.status()["state"], "ready");
    }
    let log = eventually("every event in the log", || {
        let log = std::fs::read_to_string(home.path("home/run/mount.log")).unwrap();
        (log.matches(": resumed, I/O goes on").count() == ways.len()).then_some(log)
    });
    assert_eq!(log.matches(": REVOKED, I/O has ended").count(), ways.len(), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    drop(file);
    mount.unmount();
}

#[test]
fn every_probe_is_in_the_audit_with_disk_set_and_mount() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let uuid = home.json(["info", "vm.wd"])["uuid"].as_str().unwrap().to_owned();
    let mount = home.mount("vm.wd", &["--probe-interval", "5s"]);
    let what = format!("disk={uuid} set=default mount={}", mount.place.display());
    let probes = || {
        let audit = home.wrapdisk(["audit", "list", "--output", "json"]).ok();
        audit.matches(&format!("probe {what}")).count()
    };
    let counted = || mount.status()["guard"]["probes"].as_u64().unwrap();
    eventually("two probes", || (probes() >= 2 && counted() >= 2).then_some(()));
    mount.unmount();
}

#[test]
fn frozen_requests_wait_for_the_key_while_the_rest_is_answered() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let mount = home.mount("vm.wd", &["--on-revoke", "freeze", "--freeze-max", "60s"]);
    let file = open(&mount);
    let content = noise(7, 100_000);
    file.write_all_at(&content, 0).unwrap();
    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    eventually("the fence", || (mount.status()["state"] == "revoked").then_some(()));

    let (reader, writer, zeroer) = (open(&mount), open(&mount), open(&mount));
    let read_later = apart(move || read(&reader, 100_000));
    let late = noise(8, 50_000);
    let write_later = apart(move || writer.write_all_at(&noise(8, 50_000), 1 << 20));
    let zero_later = apart(move || {
        use nix::fcntl::{FallocateFlags, fallocate};
        fallocate(
            &zeroer,
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            0,
            4096,
        )
    });
    // The third one waits in the kernel, for the lock that the write holds on the file.
    eventually("two requests wait", || (mount.status()["guard"]["waiting"] == 2).then_some(()));
    assert_eq!(file.metadata().unwrap().len(), 4 << 20, "everything else is answered");
    assert!(read_later.try_recv().is_err() && write_later.try_recv().is_err());

    home.wrapdisk(["key", "enable", "disk-kek"]).ok();
    let patience = Duration::from_secs(60);
    let found = read_later.recv_timeout(patience).expect("it goes on").unwrap();
    write_later.recv_timeout(patience).expect("it goes on").unwrap();
    zero_later.recv_timeout(patience).expect("it goes on").unwrap();
    assert!(found[4096..] == content[4096..], "read and punch may come in any order");
    let mut written = vec![0; late.len()];
    file.read_exact_at(&mut written, 1 << 20).unwrap();
    assert!(written == late);
    drop(file);
    mount.unmount();
}

#[test]
fn whoever_waits_for_the_key_can_be_killed() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let mount = home.mount("vm.wd", &["--on-revoke", "freeze", "--freeze-max", "1h"]);
    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    eventually("the fence", || (mount.status()["state"] == "revoked").then_some(()));
    let waiting = |count: usize| (mount.status()["guard"]["waiting"] == count).then_some(());
    let late = open(&mount);
    let other = apart(move || read(&late, 10));
    eventually("one waits who stays", || waiting(1));
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut reader = Command::new("cat").arg(&mount.file).stdout(Stdio::null()).spawn().unwrap();
        eventually("he waits", || waiting(2));
        kill(Pid::from_raw(reader.id().try_into().unwrap()), signal).unwrap();
        let status = eventually("he ends", || reader.try_wait().unwrap());
        assert_eq!(status.signal(), Some(signal as i32));
        eventually("his request is gone", || waiting(1));
    }
    home.wrapdisk(["key", "enable", "disk-kek"]).ok();
    other.recv_timeout(Duration::from_secs(60)).expect("the other goes on").unwrap();
    mount.unmount();
}

#[test]
fn frozen_requests_fail_in_the_end() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let mount = home.mount("vm.wd", &["--on-revoke", "freeze", "--freeze-max", "3s"]);
    let file = open(&mount);
    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    eventually("the fence", || (mount.status()["state"] == "revoked").then_some(()));
    let late = open(&mount);
    let waits = apart(move || read(&late, 10));
    is_refused(waits.recv_timeout(Duration::from_secs(60)).expect("it ends")).expect("with an error");
    is_refused(read(&file, 10)).expect("and so does whoever comes afterwards, at once");
    home.wrapdisk(["key", "enable", "disk-kek"]).ok();
    eventually("I/O goes on", || read(&file, 10).ok());
    drop(file);
    mount.unmount();
}

#[test]
fn options_of_the_mount_are_checked_and_shown_and_are_options_of_mount8_too() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    std::fs::create_dir(home.path("place")).unwrap();
    for (option, value) in [
        ("--probe-interval", "1s"),
        ("--probe-interval", "2h"),
        ("--on-revoke", "explode"),
        ("--outage-grace", "soon"),
        ("--shutdown-window", "31s"),
    ] {
        let done = home.wrapdisk(["mount", "vm.wd", "place", option, value]);
        assert!([1, 2].contains(&done.code()), "{option} {value}: {}", done.err);
        assert!(done.err.contains("allowed") || done.err.contains("invalid value"), "{}", done.err);
    }
    let more =
        ["--on-revoke", "eio", "--probe-interval", "10s", "--outage-grace", "never", "--auth-grace", "2m"];
    let mount = home.mount("vm.wd", &more);
    let guard = mount.status()["guard"].clone();
    assert_eq!(guard["onRevoke"], "eio");
    assert_eq!(guard["policy"]["probeInterval"], "10s");
    assert_eq!(guard["policy"]["outageGrace"], "never");
    assert_eq!(guard["policy"]["authGrace"], "2m");
    let text = home.wrapdisk(["status"]).ok();
    assert!(text.contains("asked every 10s at least, an outage is forgiven for never"), "{text}");
    mount.unmount();
}

#[test]
fn a_set_says_what_its_mounts_do_and_may_forbid_mounts_that_no_revocation_reaches() {
    let home = Home::ready();
    let passphrase = home.text("passphrase");
    std::fs::write(passphrase, "a passphrase to recover with").unwrap();
    std::fs::set_permissions(passphrase, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    home.create("vm.wd", "1M", &["--recovery-file", passphrase]);
    home.wrapdisk(["set", "update", "default", "--on-revoke", "freeze", "--probe-interval", "30s"]).ok();
    let policy = home.json(["set", "show", "default"])["properties"]["revocationPolicy"].clone();
    assert_eq!(
        (&policy["onRevoke"], &policy["probeInterval"]),
        (&"freeze".into(), &"30s".into()),
        "{policy}"
    );
    let mount = home.mount("vm.wd", &["--probe-interval", "10s"]);
    let guard = mount.status()["guard"].clone();
    assert_eq!(guard["onRevoke"], "freeze", "the set's");
    assert_eq!(guard["policy"]["probeInterval"], "10s", "the mount's own");
    mount.unmount();

    let by_passphrase = ["--passphrase-file", passphrase];
    let mount = home.mount("vm.wd", &by_passphrase);
    assert_eq!(mount.status()["unguarded"], true);
    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    read(&open(&mount), 10).expect("a recovery needs no vault");
    mount.unmount();
    home.wrapdisk(["set", "update", "default", "--recovery-mounts", "deny"]).ok();
    let place = home.text("vm.wd.mnt");
    let refused = home.wrapdisk([&["mount", "vm.wd", place][..], &by_passphrase].concat()).fails(3);
    assert!(refused.contains("forbids opening its disks by passphrase"), "{refused}");
}
