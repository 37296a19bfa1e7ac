//! Are a mount's guests stopped, ended and continued as its guard's reports demand: all of them, only those, and without one
//! that hangs holding up the others? The guests are real QEMUs.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guest_support;
mod support;

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_support::responses::{FENCED, RESUMED, event, responses};
use guest_support::{Qemu, soon};
use support::eventually;
use wrapdisk::error::ErrorKind;
use wrapdisk::guard::Responder;
use wrapdisk::guard::guests::Guests;
use wrapdisk::guard::qmp::RunState;
use wrapdisk::revocation::OnRevoke;

/// A guest that runs, with the disk of this folder.
fn guest(dir: &Path, name: &str) -> Qemu {
    let drive = format!("driver=file,filename={},node-name=d,locking=off", dir.join("disk.img").display());
    let qmp = dir.join(name);
    Qemu::start(&qmp, &["-blockdev", &drive, "-device", "virtio-blk,drive=d,share-rw=on"])
}

fn folder() -> (tempfile::TempDir, Arc<Guests>) {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("disk.img")).unwrap().set_len(1 << 20).unwrap();
    let guests = Arc::new(Guests::new(dir.path().join("disk.img")));
    (dir, guests)
}

#[test]
fn guests_are_stopped_before_the_fence_and_go_on_after_it_and_one_its_owner_paused_stays_paused() {
    let (dir, guests) = folder();
    let dir = dir.path();
    let (running, paused) = (guest(dir, "running"), guest(dir, "paused"));
    paused.monitor().stop().unwrap();
    let responses = responses(dir, &guests, None);
    assert!(!responses.has_guests());
    for qmp in [&running.qmp, &paused.qmp] {
        let seen = guests.add(qmp).unwrap();
        assert_eq!((seen.uses_disk, seen.pid.is_some()), (Some(true), true));
        guests.add(qmp).unwrap(); // again is harmless
    }
    assert!(responses.has_guests());
    responses.before_fence(Duration::ZERO);
    assert_eq!(running.monitor().state().unwrap(), RunState::Paused);
    responses.fenced(&event(dir, FENCED, OnRevoke::Eio));
    let list = guests.look();
    assert_eq!(list.guests.len(), 2);
    assert!(
        list.guests.iter().all(|g| g.state == "paused" && g.stopped == (g.qmp == running.qmp)),
        "{list:?}"
    );
    assert_eq!(list.unregistered, []);
    responses.resumed(&event(dir, RESUMED, OnRevoke::Eio));
    assert_eq!(running.monitor().state().unwrap(), RunState::Running);
    assert_eq!(paused.monitor().state().unwrap(), RunState::Paused);
    // What we continued, and its owner paused then, is the owner's.
    running.monitor().stop().unwrap();
    responses.resumed(&event(dir, RESUMED, OnRevoke::Eio));
    assert_eq!(running.monitor().state().unwrap(), RunState::Paused);
}

#[test]
fn a_guest_is_ended_by_the_policy_shutdown_while_another_hangs_and_a_third_is_not_ours_to_touch() {
    let (dir, guests) = folder();
    let dir = dir.path();
    let (mut registered, mut stranger) = (guest(dir, "registered"), guest(dir, "stranger"));
    let silent = dir.join("silent");
    let _listener = UnixListener::bind(&silent).unwrap();
    guests.add(&registered.qmp).unwrap();
    assert_eq!(guests.add(&silent).unwrap().state, "silent");
    assert_eq!(guests.add(&dir.join("later")).unwrap().state, "gone");
    let list = guests.look();
    let unregistered: Vec<_> = list.unregistered.iter().map(|holder| holder.pid).collect();
    assert_eq!(unregistered, [stranger.child.id()]);
    let responses = responses(dir, &guests, None);
    let start = Instant::now();
    responses.before_fence(Duration::ZERO);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(registered.monitor().state().unwrap(), RunState::Paused);
    std::thread::scope(|scope| {
        scope.spawn(|| responses.fenced(&event(dir, FENCED, OnRevoke::Shutdown)));
        registered.ends();
    });
    assert!(!stranger.has_ended());
    assert_eq!(stranger.monitor().state().unwrap(), RunState::Running);
    let states: Vec<_> = guests.look().guests.into_iter().map(|g| g.state).collect();
    assert_eq!(states, ["gone", "silent", "gone"]);
    // Started again at the same place it is a guest again.
    let again = guest(dir, "registered");
    responses.before_fence(Duration::ZERO);
    assert_eq!(again.monitor().state().unwrap(), RunState::Paused);
}

#[test]
fn the_shutdown_window_ends_as_soon_as_the_last_guest_is_gone() {
    let (dir, guests) = folder();
    let dir = dir.path();
    let mut leaves = guest(dir, "leaves");
    guests.add(&leaves.qmp).unwrap();
    guests.add(&dir.join("never there")).unwrap();
    let responses = responses(dir, &guests, None);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let window = scope.spawn(|| responses.before_fence(Duration::from_secs(60)));
        // Nothing in it listens to its power button, so its end comes from here; the first tries may come before ours, or
        // meet a monitor that is taken.
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(leaves.child.id().try_into().unwrap()),
            nix::sys::signal::SIGTERM,
        )
        .unwrap();
        leaves.ends();
        window.join().unwrap();
    });
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    // And one that does not leave is waited for no longer than that.
    let stays = guest(dir, "leaves");
    let start = Instant::now();
    responses.before_fence(Duration::from_millis(500));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(stays.monitor().state().unwrap(), RunState::Running);
}

#[test]
fn what_cannot_be_a_guest_is_refused_and_a_forgotten_one_is_left_alone() {
    let (dir, guests) = folder();
    let dir = dir.path();
    for path in ["relative".to_owned(), format!("/{}", "x".repeat(200))] {
        assert_eq!(guests.add(Path::new(&path)).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let web = dir.join("web");
    let listener = UnixListener::bind(&web).unwrap();
    std::thread::spawn(move || {
        for peer in listener.incoming().flatten() {
            use std::io::Write;
            let mut peer = peer;
            let _ = peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    assert_eq!(guests.add(&web).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(!guests.any());
    let qemu = guest(dir, "qmp");
    guests.add(&qemu.qmp).unwrap();
    guests.remove(&qemu.qmp).unwrap();
    assert_eq!(guests.remove(&qemu.qmp).unwrap_err().kind(), ErrorKind::NotFound);
    responses(dir, &guests, None).before_fence(Duration::ZERO);
    assert_eq!(qemu.monitor().state().unwrap(), RunState::Running);
    for n in 0..16 {
        guests.add(&dir.join(format!("{n}"))).unwrap();
    }
    assert_eq!(guests.add(&dir.join("one too many")).unwrap_err().kind(), ErrorKind::Exists);
    eventually("a look", || (guests.look().guests.len() == 16).then_some(()));
    let _ = soon();
}
