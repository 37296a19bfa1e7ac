//! Failures that are told: by the medium, and by another program that was faster.

use std::sync::Arc;

use wrapdisk::error::ErrorKind;
use wrapdisk::luks2::keyslot::{self, Kdf};
use wrapdisk::luks2::{Committed, Header, backup};
use wrapdisk::store::{BackingStore, Fault, FaultPlan, FaultyStore, LatchedStore, MemoryStore, Op, Stop};

use crate::luks2_support::{HDR, small_json, vector_key};
use crate::machine::container;

const UNKNOWN: &str = "write the header: the outcome is unknown";

fn start() -> Vec<u8> {
    container(Some((1, &small_json())), Some((1, &small_json())))
}

fn faulty(start: Vec<u8>) -> (FaultyStore<MemoryStore>, FaultPlan) {
    let plan = FaultPlan::default();
    (FaultyStore::new(MemoryStore::from(start), plan.clone()), plan)
}

fn secondary_of(store: &FaultyStore<MemoryStore>) -> Vec<u8> {
    store.inner().snapshot()[HDR..2 * HDR].to_vec()
}

#[test]
fn a_failure_of_the_primary_or_its_sync_leaves_the_outcome_unknown_and_the_secondary_alone() {
    for (fault, kind) in [(Fault::Eio, ErrorKind::Io), (Fault::Enospc, ErrorKind::NoSpace)] {
        for op in [Op::Write, Op::Sync] {
            let (store, plan) = faulty(start());
            let mut header = Header::load(&store).unwrap();
            // The first sync is the one before anything is written.
            plan.fail_nth(op, if op == Op::Write { 1 } else { 2 }, fault);
            let e = header.commit(&store).unwrap_err();
            assert_eq!((e.to_string().as_str(), e.kind()), (UNKNOWN, kind), "{op:?}");
            assert!(e.chain().contains("faulty store"), "the cause is told: {}", e.chain());
            assert!(secondary_of(&store) == start()[HDR..2 * HDR], "{op:?}");
            assert_eq!((plan.count(Op::Write), header.seqid()), (1, 1), "{op:?}: nothing was tried after it");
        }
    }
}

#[test]
fn a_failure_before_anything_is_written_says_no_more_than_that() {
    let (store, plan) = faulty(start());
    let mut header = Header::load(&store).unwrap();
    plan.fail_nth(Op::Sync, 1, Fault::Eio);
    let e = header.commit(&store).unwrap_err();
    assert_eq!((e.to_string().as_str(), e.kind()), ("faulty store: sync", ErrorKind::Io));
    assert_eq!(plan.count(Op::Write), 0);
    // A read error is no verdict about a copy.
    for nth in 1..=4 {
        let (store, plan) = faulty(start());
        plan.fail_nth(Op::Read, nth, Fault::Eio);
        let e = Header::load(&store).unwrap_err();
        assert_eq!((e.to_string().as_str(), e.kind()), ("faulty store: read", ErrorKind::Io), "read {nth}");
    }
}

#[test]
fn a_failure_of_the_secondary_is_a_commit_with_a_stale_copy() {
    for (op, nth) in [(Op::Write, 2), (Op::Sync, 3)] {
        let (store, plan) = faulty(start());
        let mut header = Header::load(&store).unwrap();
        plan.fail_nth(op, nth, Fault::Eio);
        match header.commit(&store).unwrap() {
            Committed::SecondaryStale(e) => assert_eq!(e.kind(), ErrorKind::Io),
            Committed::Both => panic!("{op:?} failed"),
        }
        assert_eq!(header.seqid(), 2);
        let again = Header::load(&store).unwrap();
        assert_eq!(again.seqid(), 2);
        if op == Op::Write {
            assert_eq!(again.warnings(), ["the secondary header is older (seqid 1) than the primary (2)"]);
        }
        // The same program commits again without a repair in between: that comes first by itself.
        header.commit(&store).unwrap();
        let again = Header::load(&store).unwrap();
        assert_eq!((again.seqid(), again.warnings()), (3, [].as_slice()));
    }
}

/// An erase that leaves the wraps in the secondary has not erased.
#[test]
fn an_erase_with_a_stale_secondary_has_failed() {
    let (store, plan) = faulty(start());
    // The keyslots area in pieces that end at multiples of 64 KiB, the primary, then the secondary.
    let pieces = (4 * 258_048u64 + 32768).div_ceil(65536);
    plan.fail_nth(Op::Write, pieces + 2, Fault::Eio);
    let e = backup::erase(&store).unwrap_err();
    assert_eq!((e.kind(), e.to_string().as_str()), (ErrorKind::Io, "faulty store: write"));
    let header = Header::load(&store).unwrap();
    assert_eq!((header.seqid(), header.is_plain(), header.warnings().len()), (2, true, 1));
}

#[test]
fn a_torn_write_that_is_told() {
    for keep in [0, 100, 4096, 4200] {
        let (store, plan) = faulty(start());
        let mut header = Header::load(&store).unwrap();
        header.remove_token(1).unwrap();
        plan.tear_write(1, keep, Stop::Errors);
        let e = header.commit(&store).unwrap_err();
        assert_eq!((e.to_string().as_str(), e.kind()), (UNKNOWN, ErrorKind::Io));
        assert_eq!(Header::load(&store).unwrap().seqid(), 1, "the secondary opens it");
    }
}

/// After a failed write of a header, the mount's latch lets no second one begin.
#[test]
fn a_latched_store_takes_no_further_commit() {
    let (store, plan) = faulty(start());
    let store = Arc::new(LatchedStore::new(store));
    let mut header = Header::load(&store).unwrap();
    plan.fail_nth(Op::Write, 1, Fault::Eio);
    header.commit(&store).unwrap_err();
    let e = header.commit(&store).unwrap_err();
    assert_eq!(e.to_string(), "an earlier write failed; unmount and check the disk");
    assert_eq!(plan.count(Op::Write), 1);
}

#[test]
fn a_header_that_another_program_changed_is_not_overwritten() {
    let (store, plan) = faulty(start());
    let (mut ours, mut theirs) = (Header::load(&store).unwrap(), Header::load(&store).unwrap());
    theirs.remove_token(1).unwrap();
    theirs.commit(&store).unwrap();
    let (image, writes) = (store.inner().snapshot(), plan.count(Op::Write));
    ours.seal(&vector_key()).unwrap();
    let e = ours.commit(&store).unwrap_err();
    assert_eq!(e.to_string(), "seqid: found 2, allowed 1: changed by another program");
    assert_eq!((e.kind(), e.advice()), (ErrorKind::Conflict, Some("run the command again")));
    assert_eq!(plan.count(Op::Write), writes);
    assert!(store.inner().snapshot() == image);

    // Another container under the same name, with the same count.
    let mut other = Header::load(&MemoryStore::from(image)).unwrap();
    let (replaced, plan) = faulty(container(Some((2, &small_json())), None));
    let mut bytes = replaced.inner().snapshot();
    bytes[168..176].copy_from_slice(b"00000000");
    let sum = crate::luks2_support::checksum(&bytes[..HDR]);
    bytes[448..480].copy_from_slice(&sum);
    replaced.inner().write_at(wrapdisk::units::ByteOffset::ZERO, &bytes).unwrap();
    let e = other.commit(&replaced).unwrap_err();
    assert_eq!((e.kind(), plan.count(Op::Write)), (ErrorKind::Conflict, 0));
}

/// A failure leaves the header in memory as it was, so that the next commit does not carry half a change.
#[test]
fn a_keyslot_that_failed_is_not_in_the_header() {
    let kdf = Kdf::Pbkdf2Sha256 { iterations: 1000 };
    let (store, plan) = faulty(start());
    let mut header = Header::load(&store).unwrap();
    for (op, nth) in [(Op::Write, 1), (Op::Sync, 1), (Op::Write, 2)] {
        plan.fail_nth(op, nth, Fault::Eio);
        keyslot::add(&mut header, &store, &vector_key(), b"pass", &kdf).unwrap_err();
        assert_eq!((header.keyslots().len(), header.seqid()), (0, 1), "{op:?} {nth}");
    }
    assert_eq!(keyslot::add(&mut header, &store, &vector_key(), b"pass", &kdf).unwrap(), 0);
    plan.fail_nth(Op::Write, 1, Fault::Enospc);
    keyslot::remove(&mut header, &store, 0).unwrap_err();
    assert_eq!(header.keyslots().len(), 1, "still listed: nobody knows what is left of its area");
    keyslot::remove(&mut header, &store, 0).unwrap();
    assert_eq!((header.keyslots().len(), Header::load(&store).unwrap().keyslots().len()), (0, 0));
}

#[test]
fn a_read_only_open_writes_nothing() {
    for start in [
        container(Some((2, &small_json())), Some((1, &small_json()))),
        container(None, Some((1, &small_json()))),
    ] {
        let (store, plan) = faulty(start.clone());
        let header = Header::load(&store).unwrap();
        assert_eq!(header.warnings().len(), 1);
        assert_eq!((plan.count(Op::Write), plan.count(Op::Sync)), (0, 0));
        assert!(store.inner().snapshot() == start);
    }
}
