//! Are failures of the backing store told, and remembered when they must be? And does the store that fails on purpose
//! fail exactly as its plan says?
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod store_support;

use store_support::Mounted;
use wrapdisk::error::{ErrorKind, Result};
use wrapdisk::store::{
    BackingStore, Fault, FaultPlan, FaultyStore, FileStore, LatchedStore, MemoryStore, Op, Stop,
};
use wrapdisk::units::{ByteLen, ByteOffset, Extent};

type Faulty = FaultyStore<MemoryStore>;

fn put(store: &dyn BackingStore, at: u32, data: &[u8]) -> Result<()> {
    store.write_at(ByteOffset::from(at), data)
}
fn get(store: &dyn BackingStore, at: u32, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    store.read_at(ByteOffset::from(at), &mut buf).unwrap();
    buf
}
fn extent(at: u64, len: u64) -> Extent {
    Extent::from_raw(at, len).unwrap()
}
fn kind(result: Result<()>) -> Option<ErrorKind> {
    result.err().map(|e| e.kind())
}

/// A latched store over a faulty one over 16 zeros.
fn latched() -> (LatchedStore<Faulty>, FaultPlan) {
    let plan = FaultPlan::default();
    (LatchedStore::new(FaultyStore::new(MemoryStore::new(16), plan.clone())), plan)
}

// ---- the latch

#[test]
fn eio_from_any_change_or_sync_fails_every_later_sync() {
    type Attempt = fn(&dyn BackingStore) -> Result<()>;
    let attempts: [(Op, Attempt); 4] = [
        (Op::Write, |s| put(s, 0, b"x")),
        (Op::Punch, |s| s.punch(extent(0, 4))),
        (Op::SetLen, |s| s.set_len(ByteLen::from(20))),
        (Op::Sync, |s| s.sync()),
    ];
    for (op, attempt) in attempts {
        let (store, plan) = latched();
        attempt(&store).unwrap();
        store.sync().unwrap();
        assert_eq!(store.latched(), None);

        plan.fail_nth(op, 1, Fault::Eio);
        let first = attempt(&store).unwrap_err();
        assert_eq!(first.kind(), ErrorKind::Io);
        assert!(
            !first.to_string().contains("earlier"),
            "{op:?}: the first failure is told as it is: {first}"
        );
        assert_eq!(store.latched(), Some(first.chain()), "{op:?}");

        // The medium is well again; what it lost is not.
        for _ in 0..2 {
            attempt(&store).map_or_else(|e| assert_eq!(op, Op::Sync, "{e:?}"), drop);
            let e = store.sync().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Io);
            assert_eq!(e.to_string(), "an earlier write failed; unmount and check the disk", "{op:?}");
            assert!(e.chain().ends_with(&first.chain()), "names the cause: {}", e.chain());
            assert!(e.advice().is_some());
        }
    }
}

#[test]
fn a_latched_store_still_reads_writes_and_flushes_what_it_can() {
    let (store, plan) = latched();
    plan.fail_nth(Op::Write, 1, Fault::Eio);
    put(&store, 0, b"lost").unwrap_err();
    put(&store, 0, b"kept").unwrap();
    assert_eq!(get(&store, 0, 4), b"kept");
    let syncs = plan.count(Op::Sync);
    store.sync().unwrap_err();
    assert_eq!(plan.count(Op::Sync), syncs + 1, "the sync reached the store below");
}

#[test]
fn the_first_failure_is_the_one_that_is_remembered() {
    let (store, plan) = latched();
    plan.fail_from(Op::Write, 1, Fault::Eio);
    put(&store, 0, b"x").unwrap_err();
    let first = store.latched();
    plan.fail_nth(Op::Sync, 1, Fault::Enospc);
    let e = store.sync().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Io, "the latch speaks even when the sync below fails otherwise: {e:?}");
    assert_eq!(store.latched(), first);
    assert!(first.is_some());
}

#[test]
fn a_sync_without_space_latches_because_acknowledged_writes_are_lost_with_it() {
    let (store, plan) = latched();
    put(&store, 0, b"x").unwrap();
    plan.fail_nth(Op::Sync, 1, Fault::Enospc);
    assert_eq!(kind(store.sync()), Some(ErrorKind::NoSpace), "the first failure is told as it is");
    assert_eq!(kind(store.sync()), Some(ErrorKind::Io));
}

#[test]
fn enospc_of_a_change_a_failed_read_and_a_punch_that_cannot_be_do_not_latch() {
    let (store, plan) = latched();
    for op in [Op::Write, Op::Punch, Op::SetLen] {
        plan.fail_nth(op, 1, Fault::Enospc);
    }
    plan.fail_nth(Op::Read, 1, Fault::Eio);
    assert_eq!(kind(put(&store, 0, b"x")), Some(ErrorKind::NoSpace));
    assert_eq!(kind(store.punch(extent(0, 1))), Some(ErrorKind::NoSpace));
    assert_eq!(kind(store.set_len(ByteLen::from(4))), Some(ErrorKind::NoSpace));
    assert_eq!(kind(store.read_at(ByteOffset::ZERO, &mut [0])), Some(ErrorKind::Io));
    assert_eq!(store.latched(), None);
    store.sync().unwrap();

    let poor = Mounted::virtual_fs("ramfs", "mode=700");
    let store = LatchedStore::new(FileStore::create_new(&poor.path().join("vm.wd")).unwrap());
    put(&store, 0, &[1; 8192]).unwrap();
    assert_eq!(kind(store.punch(extent(0, 4096))), Some(ErrorKind::Unsupported));
    assert_eq!(store.latched(), None);
    store.sync().unwrap();
}

#[test]
fn a_write_that_fails_during_a_sync_fails_that_sync() {
    /// A store whose sync runs something before it returns.
    #[derive(Debug)]
    struct Meanwhile(std::sync::Weak<LatchedStore<Meanwhile>>, Faulty);
    impl BackingStore for Meanwhile {
        fn len(&self) -> Result<ByteLen> {
            self.1.len()
        }
        fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()> {
            self.1.read_at(offset, buf)
        }
        fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
            self.1.write_at(offset, data)
        }
        fn sync(&self) -> Result<()> {
            let above = self.0.upgrade().unwrap();
            std::thread::spawn(move || put(&*above, 0, b"x")).join().unwrap().expect_err("armed to fail");
            self.1.sync()
        }
        fn set_len(&self, len: ByteLen) -> Result<()> {
            self.1.set_len(len)
        }
        fn punch(&self, extent: Extent) -> Result<()> {
            self.1.punch(extent)
        }
        fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
            self.1.seek_data(from)
        }
        fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
            self.1.seek_hole(from)
        }
        fn allocated(&self) -> Result<ByteLen> {
            self.1.allocated()
        }
    }
    let plan = FaultPlan::default();
    plan.fail_nth(Op::Write, 1, Fault::Eio);
    let faulty = FaultyStore::new(MemoryStore::new(16), plan);
    let store = std::sync::Arc::new_cyclic(|above| LatchedStore::new(Meanwhile(above.clone(), faulty)));
    assert_eq!(kind(store.sync()), Some(ErrorKind::Io));
}

/// A file system that is really full.
#[test]
fn a_full_file_system_is_told_and_nothing_acknowledged_is_lost() {
    let full = Mounted::virtual_fs("tmpfs", "size=1m");
    let store = LatchedStore::new(FileStore::create_new(&full.path().join("vm.wd")).unwrap());
    store.set_len(ByteLen::from(4 << 20)).unwrap();
    let block = |i: u32| vec![u8::try_from(i % 250 + 1).unwrap(); 64 << 10];
    let mut acknowledged = 0;
    let refusal = loop {
        match put(&store, acknowledged << 16, &block(acknowledged)) {
            Ok(()) => acknowledged += 1,
            Err(e) => break e,
        }
        assert!(acknowledged < 64, "4 MiB do not fit in 1 MiB");
    };
    assert_eq!(refusal.kind(), ErrorKind::NoSpace, "{refusal:?}");
    assert!(acknowledged >= 8, "about 1 MiB fits, {acknowledged} blocks did");
    assert_eq!(store.latched(), None);
    store.sync().unwrap();
    for i in 0..acknowledged {
        assert_eq!(get(&store, i << 16, 64 << 10), block(i), "acknowledged block {i}");
    }

    store.punch(extent(0, 128 << 10)).unwrap();
    put(&store, acknowledged << 16, &block(acknowledged)).expect("there is space again");
    store.sync().expect("ENOSPC did not latch");
}

// ---- the store that fails on purpose

#[test]
fn the_nth_operation_of_a_kind_fails_once_and_changes_nothing() {
    for (fault, expected) in [(Fault::Eio, ErrorKind::Io), (Fault::Enospc, ErrorKind::NoSpace)] {
        let plan = FaultPlan::default();
        let store = FaultyStore::new(MemoryStore::from(vec![1; 4]), plan.clone());
        put(&store, 0, b"a").unwrap();
        plan.fail_nth(Op::Write, 2, fault);
        assert_eq!(get(&store, 0, 1), b"a", "reads are counted apart");
        store.sync().unwrap();
        let outcomes = [b"b", b"c", b"d"].map(|data| kind(put(&store, 0, data)));
        assert_eq!(outcomes, [None, Some(expected), None], "counted from the moment of arming");
        plan.fail_nth(Op::Write, 1, fault);
        put(&store, 2, b"z").unwrap_err();
        plan.fail_nth(Op::Punch, 1, fault);
        assert_eq!(kind(store.punch(extent(0, 4))), Some(expected));
        plan.fail_nth(Op::SetLen, 1, fault);
        assert_eq!(kind(store.set_len(ByteLen::ZERO)), Some(expected));
        assert_eq!(store.inner().snapshot(), b"d\x01\x01\x01");
        assert_eq!(plan.count(Op::Write), 5, "failed ones included");
    }
}

#[test]
fn from_the_nth_on_all_fail_until_the_plan_is_cleared() {
    let plan = FaultPlan::default();
    let store = FaultyStore::new(MemoryStore::new(4), plan.clone());
    plan.fail_from(Op::Read, 2, Fault::Eio);
    let read = || kind(store.read_at(ByteOffset::ZERO, &mut [0]));
    assert_eq!([read(), read(), read()], [None, Some(ErrorKind::Io), Some(ErrorKind::Io)]);
    put(&store, 0, b"writes are not concerned"[..4].as_ref()).unwrap();
    plan.clear();
    assert_eq!(read(), None);
}

#[test]
fn a_machine_stops_after_the_nth_change() {
    for (stop, told) in [(Stop::Silent, None), (Stop::Errors, Some(ErrorKind::Io))] {
        for n in 0..=3 {
            let plan = FaultPlan::default();
            let store = FaultyStore::new(MemoryStore::new(4), plan.clone());
            plan.stop_after(n, stop);
            let outcomes = [
                kind(put(&store, 0, b"ab")),
                kind(store.punch(extent(0, 1))),
                kind(put(&store, 2, b"c")),
                kind(store.sync()),
            ];
            let n = usize::try_from(n).unwrap();
            let expected: [&[u8]; 4] = [b"\0\0\0\0", b"ab\0\0", b"\0b\0\0", b"\0bc\0"];
            assert_eq!(store.inner().snapshot(), expected[n], "{stop:?} after {n}");
            for (i, outcome) in outcomes.into_iter().enumerate() {
                assert_eq!(outcome, if i < n { None } else { told }, "{stop:?} after {n}: call {i}");
            }
            assert!(plan.stopped());
            assert_eq!(get(&store, 1, 1), expected[n][1..2], "reads show what is really there");
        }
    }
    let plan = FaultPlan::default();
    plan.stop_after(2, Stop::Silent);
    put(&FaultyStore::new(MemoryStore::new(4), plan.clone()), 0, b"a").unwrap();
    assert!(!plan.stopped(), "a walk through the crash points must see that it has passed the last one");
}

#[test]
fn a_torn_write_leaves_exactly_its_first_bytes() {
    for (stop, told) in [(Stop::Silent, None), (Stop::Errors, Some(ErrorKind::Io))] {
        for keep in [0, 3, 4, 9] {
            let plan = FaultPlan::default();
            let store = FaultyStore::new(MemoryStore::new(8), plan.clone());
            plan.tear_write(2, keep, stop);
            put(&store, 0, b"1111").unwrap();
            assert_eq!(kind(put(&store, 2, b"2222")), told);
            assert_eq!(kind(put(&store, 6, b"33")), told, "the machine has stopped");
            let mut expected = *b"1111\0\0\0\0";
            expected[2..][..keep.min(4)].fill(b'2');
            assert_eq!(store.inner().snapshot(), expected, "keep {keep}");
        }
    }
}

#[test]
fn a_crash_keeps_what_was_synced_and_any_part_of_what_was_not() {
    let plan = FaultPlan::default();
    let store = FaultyStore::recording(MemoryStore::from(b"........".to_vec()), plan.clone()).unwrap();
    put(&store, 0, b"aa").unwrap();
    assert_eq!((store.unsynced(), store.crash_image(|_| false)), (1, b"........".to_vec()));
    store.sync().unwrap();
    assert_eq!((store.unsynced(), store.crash_image(|_| false)), (0, b"aa......".to_vec()));

    put(&store, 1, b"bb").unwrap();
    store.punch(extent(0, 1)).unwrap();
    store.set_len(ByteLen::from(6)).unwrap();
    put(&store, 6, b"cc").unwrap();
    assert_eq!(store.unsynced(), 4);
    assert_eq!(store.crash_image(|_| false), b"aa......");
    assert_eq!(store.crash_image(|_| true), store.inner().snapshot());
    assert_eq!(store.inner().snapshot(), b"\0bb...cc");
    assert_eq!(store.crash_image(|i| i == 3), b"aa....cc", "the last one overtook the others");
    assert_eq!(store.crash_image(|i| i == 1), b"\0a......");
    assert_eq!(store.crash_image(|i| i == 2), b"aa....");

    plan.fail_nth(Op::Sync, 1, Fault::Eio);
    store.sync().unwrap_err();
    assert_eq!(store.crash_image(|_| false), b"aa......", "a sync that failed made nothing durable");
    plan.fail_nth(Op::Write, 1, Fault::Eio);
    put(&store, 0, b"never").unwrap_err();
    assert_eq!(store.unsynced(), 4, "a write that failed cannot survive");
    plan.stop_after(0, Stop::Silent);
    store.sync().unwrap();
    assert_eq!(store.crash_image(|_| false), b"aa......", "nor did one that never happened");
}

/// The whole idea: a program that forgets a sync is caught.
#[test]
fn a_crash_image_tells_a_journal_with_its_sync_from_one_without() {
    let torn = |syncs: bool| {
        let store = FaultyStore::recording(MemoryStore::from(vec![0; 2]), FaultPlan::default()).unwrap();
        put(&store, 0, b"D").unwrap(); // data
        if syncs {
            store.sync().unwrap();
        }
        put(&store, 1, b"C").unwrap(); // "the data is there"
        let subsets = (0..1u32 << store.unsynced()).map(|mask| store.crash_image(|i| mask >> i & 1 == 1));
        subsets.into_iter().any(|image| image == b"\0C")
    };
    assert!(torn(false), "without the sync some crash leaves the mark without the data");
    assert!(!torn(true), "with it none does");
}
