//! Does a disk tell the truth when its store tears a write, refuses reads, is full, or fails half way through a long discard?
//! And do fsync and close remember what they must? (tests/faults_in_the_disk.rs lets every single operation fail once.)
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod disk_support;

use disk_support::{Rig, kind, length, noise, offset, shapes};
use wrapdisk::disk::PlainDisk;
use wrapdisk::error::{ErrorKind, Result};
use wrapdisk::store::{Fault, Op, Stop};

const SIZE: u64 = (2 << 20) + 1536;

/// A write of several runs, with a partial sector at both ends.
const AT: u64 = 4096 * 7 + 100;
const LEN: usize = 400_000;

/// Full of noise, and all of it in the cache, where there is one.
fn full() -> impl Iterator<Item = Rig> {
    shapes(SIZE).map(|shape| {
        let rig = Rig::new(shape);
        rig.write(0, &noise(1, usize::try_from(SIZE).unwrap())).unwrap();
        rig.warm();
        rig.tells_the_truth("at first");
        rig
    })
}

type Change = fn(&PlainDisk) -> Result<()>;

/// Every way to change a disk, each over several runs and with ragged ends.
const CHANGES: [(&str, Change); 4] = [
    ("write", |disk| disk.write_at(offset(AT), &noise(2, LEN))),
    ("small write", |disk| disk.write_at(offset(AT), &noise(3, 700))),
    ("discard", |disk| disk.discard(offset(AT), length(LEN as u64))),
    ("write zeroes", |disk| disk.write_zeroes(offset(AT), length(LEN as u64))),
];

#[test]
fn a_torn_write_is_read_as_the_store_has_it() {
    for rig in full() {
        for (name, change) in CHANGES {
            for nth in [1, 2] {
                for keep in [0, 1, 511, 512, 4096, 5000, 70_000] {
                    rig.warm();
                    rig.plan.tear_write(nth, keep, Stop::Errors);
                    let done = change(&rig.disk);
                    let torn = rig.plan.stopped();
                    rig.plan.clear();
                    assert_eq!(done.is_err(), torn, "{name}: write {nth}");
                    rig.tells_the_truth(&format!("{name}: {keep} bytes of write {nth} came through"));
                }
            }
        }
    }
}

#[test]
fn a_failed_read_says_so_shows_nothing_and_leaves_nothing_in_the_cache() {
    for shape in shapes(SIZE) {
        let rig = Rig::new(shape);
        rig.write(0, &noise(1, usize::try_from(SIZE).unwrap())).unwrap();
        for (at, len) in [(0, 4096), (8292, 200), (16_000, 60_000), (100_000, 400_000), (SIZE - 700, 700)] {
            let blocks = rig.cached_blocks();
            rig.plan.fail_nth(Op::Read, 1, Fault::Eio);
            let read =
                rig.disk.read(offset(at), length(len), |_| panic!("shown, though it could not be read"));
            assert_eq!(kind(read), ErrorKind::Io, "{len} at {at}");
            assert_eq!(rig.cached_blocks(), blocks, "{len} at {at}");
            let found = rig.read(at, usize::try_from(len).unwrap()).unwrap();
            assert_eq!(found, rig.truth()[usize::try_from(at).unwrap()..][..found.len()], "{len} at {at}");
        }
        rig.disk.sync().expect("a failed read loses nothing, so it does not latch");
    }
}

#[test]
fn a_full_store_is_told_and_forgotten_when_there_is_space_again() {
    for rig in full() {
        for (name, change) in CHANGES {
            rig.plan.fail_from(Op::Write, 1, Fault::Enospc);
            rig.plan.fail_from(Op::Punch, 1, Fault::Enospc);
            let full = change(&rig.disk).unwrap_err();
            assert_eq!((full.kind(), full.kind().errno()), (ErrorKind::NoSpace, libc::ENOSPC), "{name}");
            rig.disk.sync().unwrap_or_else(|e| panic!("{name}: ENOSPC latched: {e:?}"));
            rig.plan.clear();
            change(&rig.disk).unwrap();
            rig.disk.sync().unwrap();
            assert_eq!(rig.store.latched(), None, "{name}");
            rig.tells_the_truth(name);
        }
    }
}

#[test]
fn after_eio_no_fsync_succeeds_but_reads_and_writes_are_still_tried() {
    for op in [Op::Write, Op::Sync] {
        for rig in full() {
            rig.disk.sync().unwrap();
            rig.disk.flush().unwrap();
            rig.plan.fail_nth(op, 1, Fault::Eio);
            let done = rig.write(AT, &noise(5, LEN)).and_then(|()| rig.disk.sync());
            assert_eq!(done.unwrap_err().kind().errno(), libc::EIO, "{op:?}");
            let first = rig.store.latched().expect("latched");
            // The medium is well again.
            rig.write(AT, &noise(6, LEN)).unwrap();
            rig.disk.discard(offset(0), length(8192)).unwrap();
            rig.tells_the_truth("latched");
            assert_eq!(rig.read(AT, LEN).unwrap(), noise(6, LEN));
            let syncs = rig.plan.count(Op::Sync);
            for sync in [PlainDisk::sync, PlainDisk::flush, PlainDisk::sync] {
                let e = sync(&rig.disk).expect_err("what was lost is not back");
                assert_eq!((e.kind(), e.kind().errno()), (ErrorKind::Io, libc::EIO));
                assert!(e.chain().ends_with(&first), "{op:?}: {}", e.chain());
            }
            assert_eq!(rig.plan.count(Op::Sync), syncs + 3, "the store below was asked all the same");
        }
    }
}

/// A discard goes in steps of 64 MiB; the second one fails.
#[test]
fn a_discard_that_fails_half_way_leaves_zeros_before_and_the_old_bytes_after() {
    const STEP: u64 = 64 << 20;
    for op in [Op::Punch, Op::Write] {
        let shape = disk_support::Shape { size: STEP * 2, ..shapes(0).next().unwrap() };
        let rig = Rig::new(shape);
        let pieces = [0, STEP - 8192, STEP, STEP * 2 - 8192];
        for at in pieces {
            rig.write(at, &noise(at, 8192)).unwrap();
            rig.read(at, 4096).unwrap();
            rig.read(at + 4096, 4096).unwrap();
        }
        assert_eq!(rig.cached_blocks(), 8);
        if op == Op::Write {
            // What cannot be punched is written: 128 KiB at a time, so this is the first write of the second step.
            rig.brake.refuse_holes();
        }
        rig.plan.fail_nth(op, if op == Op::Punch { 2 } else { STEP / (128 << 10) + 1 }, Fault::Eio);
        assert_eq!(kind(rig.disk.discard(offset(0), length(STEP * 2))), ErrorKind::Io);
        let left: Vec<_> = pieces.iter().map(|at| rig.read(*at, 8192).unwrap()).collect();
        assert!(left[..2].concat().iter().all(|b| *b == 0), "{op:?}: the first step was done");
        assert_eq!(left[2..].concat(), [noise(STEP, 8192), noise(STEP * 2 - 8192, 8192)].concat(), "{op:?}");
        let truth = rig.truth();
        for (at, left) in pieces.iter().zip(left) {
            assert_eq!(left, truth[usize::try_from(*at).unwrap()..][..8192], "{op:?}");
        }
    }
}

#[test]
fn a_store_without_holes_gets_encrypted_zeros() {
    for rig in full() {
        rig.brake.refuse_holes();
        rig.disk.discard(offset(AT), length(LEN as u64)).unwrap();
        assert!(rig.read(AT, LEN).unwrap().iter().all(|b| *b == 0));
        rig.tells_the_truth("after the discard");
        rig.disk.sync().expect("a punch that cannot be is no failure");
        assert_eq!(
            rig.read(AT - 1, 1).unwrap(),
            noise(1, usize::try_from(AT).unwrap())[usize::try_from(AT).unwrap() - 1..]
        );
    }
}
