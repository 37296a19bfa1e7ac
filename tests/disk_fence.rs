//! Does the fence hold when the store hangs? It returns all the same, new I/O is refused at once, and whatever comes back
//! from the store later is refused too, and leaves nothing behind (RULINGS 14).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod disk_support;

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use disk_support::{Rig, kind, length, noise, offset, shapes};
use wrapdisk::disk::PlainDisk;
use wrapdisk::error::{ErrorKind, Result};
use wrapdisk::store::Op;

const SIZE: u64 = 2 << 20;
const AT: u64 = 4096 * 5 + 100;
const LEN: usize = 300_000;

/// Against hangs only.
const LONG: Duration = Duration::from_secs(60);
/// How long something that must wait is watched.
const A_WHILE: Duration = Duration::from_millis(100);

fn full() -> impl Iterator<Item = Rig> {
    shapes(SIZE).map(|shape| {
        let rig = Rig::new(shape);
        rig.write(0, &noise(1, usize::try_from(SIZE).unwrap())).unwrap();
        rig
    })
}

type Request = fn(&PlainDisk) -> Result<()>;

const READ: Request = |disk| disk.read(offset(AT), length(LEN as u64), |_| panic!("shown after the fence"));
const SMALL_READ: Request = |disk| disk.read(offset(AT), length(100), |_| panic!("shown after the fence"));
const WRITE: Request = |disk| disk.write_at(offset(AT), &noise(2, LEN));
const SMALL_WRITE: Request = |disk| disk.write_at(offset(AT), &noise(3, 100));
const DISCARD: Request = |disk| disk.discard(offset(AT), length(LEN as u64));
const WHOLE: Request = |disk| disk.discard(offset(8192), length(65_536));
const ZERO: Request = |disk| disk.write_zeroes(offset(AT), length(LEN as u64));

/// Each, and where in the store it hangs.
const REQUESTS: [(&str, Request, Op); 9] = [
    ("read", READ, Op::Read),
    ("small read", SMALL_READ, Op::Read),
    ("write", WRITE, Op::Write),
    ("write, at its first sector", WRITE, Op::Read),
    ("small write", SMALL_WRITE, Op::Write),
    ("discard", DISCARD, Op::Punch),
    ("discard of whole blocks", WHOLE, Op::Punch),
    ("discard, at its first sector", DISCARD, Op::Write),
    ("write zeroes", ZERO, Op::Write),
];

/// Runs `request` on another thread until it hangs in the store, then `meanwhile`, then lets it go; its outcome.
fn hanging(rig: &Rig, (request, op): (Request, Op), meanwhile: impl FnOnce()) -> Result<()> {
    // An empty cache, or a read would not come as far.
    assert!(rig.disk.fence() && rig.disk.resume(rig.cipher()));
    rig.brake.arm(op);
    std::thread::scope(|s| {
        let stuck = s.spawn(|| request(&rig.disk));
        rig.brake.wait_until_stuck();
        // A panic in here must not leave the other thread hanging.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        rig.brake.release();
        let outcome = stuck.join().unwrap();
        done.unwrap_or_else(|e| std::panic::resume_unwind(e));
        outcome
    })
}

/// On a thread of its own, since it may wait.
fn apart<'scope, T: Send + 'scope>(
    s: &'scope std::thread::Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Receiver<T> {
    let (tell, told) = channel();
    s.spawn(move || drop(tell.send(work())));
    told
}

#[test]
fn what_hangs_during_the_fence_is_refused_when_it_comes_back() {
    for rig in full() {
        for (name, request, op) in REQUESTS {
            let outcome = hanging(&rig, (request, op), || {
                rig.read(0, 4096).unwrap();
                assert!(rig.disk.fence(), "{name}: it waits for no store");
                assert_eq!(rig.cached_blocks(), 0, "{name}");
            });
            assert_eq!(kind(outcome), ErrorKind::Revoked, "{name}");
            assert_eq!(rig.cached_blocks(), 0, "{name}: put in after the fence");
            assert!(rig.disk.resume(rig.cipher()));
            rig.tells_the_truth(name);
        }
    }
}

#[test]
fn what_hangs_during_a_fence_and_a_resume_is_refused_too() {
    for rig in full() {
        for (name, request, op) in REQUESTS {
            let outcome = hanging(&rig, (request, op), || {
                assert!(rig.disk.fence() && rig.disk.resume(rig.cipher()), "{name}");
            });
            assert_eq!(kind(outcome), ErrorKind::Revoked, "{name}: its ticket was of the time before");
            assert_eq!(rig.cached_blocks(), 0, "{name}");
            rig.tells_the_truth(name);
        }
    }
}

#[test]
fn after_the_fence_nobody_waits_for_what_hangs() {
    for rig in full() {
        let rig = &rig;
        let outcome = hanging(rig, (WRITE, Op::Write), || {
            rig.disk.fence();
            std::thread::scope(|s| {
                // All of them want the range that the hanging write has locked.
                for (name, request, _) in REQUESTS {
                    let told = apart(s, move || request(&rig.disk)).recv_timeout(LONG);
                    let told = told.inspect_err(|_| rig.brake.release());
                    let refused = told.unwrap_or_else(|e| panic!("{name} after the fence: {e}"));
                    assert_eq!(kind(refused), ErrorKind::Revoked, "{name}");
                }
            });
        });
        assert_eq!(kind(outcome), ErrorKind::Revoked);
    }
}

#[test]
fn after_a_resume_the_range_of_a_hanging_write_stays_locked_and_the_rest_is_served() {
    for rig in full() {
        let rig = &rig;
        std::thread::scope(|s| {
            let mut late = None;
            let outcome = hanging(rig, (WRITE, Op::Write), || {
                assert!(rig.disk.fence() && rig.disk.resume(rig.cipher()));
                let far = SIZE - 8192;
                let elsewhere =
                    apart(s, move || rig.write(far, &noise(4, 4096)).and_then(|()| rig.read(far, 4096)));
                let elsewhere = elsewhere.recv_timeout(LONG).inspect_err(|_| rig.brake.release());
                assert_eq!(elsewhere.expect("served").unwrap(), noise(4, 4096));
                let waits = apart(s, || rig.read(AT, LEN));
                assert!(waits.recv_timeout(A_WHILE).is_err(), "it read what is being written");
                late = Some(waits);
            });
            assert_eq!(kind(outcome), ErrorKind::Revoked);
            let read = late.unwrap().recv_timeout(LONG).unwrap().unwrap();
            let at = usize::try_from(AT).unwrap();
            assert_eq!(read, rig.truth()[at..][..LEN], "after the write, whatever came of it");
        });
        rig.tells_the_truth("in the end");
    }
}

#[test]
fn a_sync_that_hangs_holds_up_neither_the_fence_nor_its_own_answer() {
    for rig in full() {
        let outcome = hanging(&rig, (PlainDisk::sync, Op::Sync), || assert!(rig.disk.fence()));
        outcome.expect("what was acknowledged before the fence is durable");
    }
}

/// Negative: without a fence, what hangs is answered in the end.
#[test]
fn what_hangs_without_a_fence_succeeds() {
    for rig in full() {
        for (name, request, op) in REQUESTS.into_iter().filter(|(.., op)| *op == Op::Write) {
            hanging(&rig, (request, op), || ()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            rig.tells_the_truth(name);
        }
    }
}
