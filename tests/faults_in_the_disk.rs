//! Question: whichever operation of the store fails, and with what, does the disk above it still show exactly what the
//! store holds, lose nothing that it acknowledged before, and remember the failure as long as it must?
//!
//! Every n-th operation of a fixed script fails once; then the cached view is compared with a fresh one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use support::noise;
use wrapdisk::cache::BlockCache;
use wrapdisk::disk::PlainDisk;
use wrapdisk::error::{ErrorKind, Result};
use wrapdisk::store::{BackingStore, Fault, FaultPlan, FaultyStore, LatchedStore, MemoryStore, Op};
use wrapdisk::units::{ByteLen, ByteOffset, SectorSize};
use wrapdisk::volume::{EncryptedVolume, Gate, Layout};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};

const SIZE: usize = 1 << 20;

type Store = LatchedStore<FaultyStore<MemoryStore>>;

fn disk(store: Arc<dyn BackingStore>, key: &VolumeKey, sector: SectorSize, cache: u32) -> PlainDisk {
    let layout = Layout {
        offset: ByteOffset::from(4096),
        sector_size: sector,
        size: ByteLen::from(u32::try_from(SIZE).unwrap()),
        zero_holes: true,
        discards: true,
    };
    let cipher = XtsCipher::new(key, sector, Engine::best()).unwrap();
    let volume = EncryptedVolume::new(store, layout, Gate::open(cipher)).unwrap();
    PlainDisk::new(volume, BlockCache::new(ByteLen::from(cache)).unwrap(), false)
}

fn contents(disk: &PlainDisk, step: usize) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for at in (0..SIZE).step_by(step) {
        let offset = ByteOffset::new(at as u64).unwrap();
        assert_eq!(disk.read_at(offset, &mut bytes[at..at + step]).unwrap(), step);
    }
    bytes
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Write { seed: u64, at: u32, len: usize },
    Discard { at: u32, len: u32 },
    Zero { at: u32, len: u32 },
}

/// Whole blocks, a part of one, many runs with both ends partial, a hole, zeros, and the very end.
const SCRIPT: [Change; 6] = [
    Change::Write { seed: 11, at: 0, len: 8192 },
    Change::Write { seed: 12, at: 5000, len: 10 },
    Change::Write { seed: 13, at: 99_999, len: 400_001 },
    Change::Discard { at: 70_000, len: 100_000 },
    Change::Zero { at: 400_100, len: 50_000 },
    Change::Write { seed: 14, at: 1_048_000, len: 576 },
];

impl Change {
    fn apply(self, disk: &PlainDisk) -> Result<()> {
        match self {
            Self::Write { seed, at, len } => disk.write_at(ByteOffset::from(at), &noise(seed, len)),
            Self::Discard { at, len } => disk.discard(ByteOffset::from(at), ByteLen::from(len)),
            Self::Zero { at, len } => disk.write_zeroes(ByteOffset::from(at), ByteLen::from(len)),
        }
    }

    fn bytes(self) -> (usize, Vec<u8>) {
        let (at, bytes) = match self {
            Self::Write { seed, at, len } => (at, noise(seed, len)),
            Self::Discard { at, len } | Self::Zero { at, len } => {
                (at, vec![0; usize::try_from(len).unwrap()])
            }
        };
        (usize::try_from(at).unwrap(), bytes)
    }

    fn model(self, bytes: &mut [u8]) {
        let (at, new) = self.bytes();
        bytes[at..at + new.len()].copy_from_slice(&new);
    }
}

/// Each sector is as it was or as it would be, and nothing else has changed.
#[track_caller]
fn is_partly_done(change: Change, old: &[u8], now: &[u8], sector: usize) {
    let mut new = old.to_vec();
    change.model(&mut new);
    for at in (0..SIZE).step_by(sector) {
        let part = at..at + sector;
        assert!(
            now[part.clone()] == old[part.clone()] || now[part.clone()] == new[part],
            "{change:?}: neither old nor new at {at}"
        );
    }
}

/// Runs the script with the nth operation of a kind failing; false when it has fewer.
fn script_with_a_fault(sector: SectorSize, op: Op, nth: u64, fault: Fault) -> bool {
    let plan = FaultPlan::default();
    let store = FaultyStore::new(MemoryStore::new(SIZE + 4096), plan.clone());
    let store: Arc<Store> = Arc::new(LatchedStore::new(store));
    let key = VolumeKey::generate().unwrap();
    let cached = disk(Arc::clone(&store) as _, &key, sector, 2 << 20);
    let mut model = noise(10, SIZE);
    cached.write_at(ByteOffset::ZERO, &model).unwrap();
    cached.sync().unwrap();
    // Half of it is in the cache.
    for at in (0..SIZE as u64).step_by(8192) {
        cached.read_at(ByteOffset::new(at).unwrap(), &mut [0; 4096]).unwrap();
    }

    plan.fail_nth(op, nth, fault);
    let failed = SCRIPT.into_iter().find_map(|change| match change.apply(&cached) {
        Ok(()) => {
            change.model(&mut model);
            None
        }
        Err(e) => Some((change, e)),
    });
    plan.clear();
    let truth = contents(&disk(Arc::clone(&store) as _, &key, sector, 0), 65536);
    assert!(contents(&cached, 4096) == truth, "{op:?} {nth}: the cache shows something else than the store");
    let Some((change, e)) = failed else {
        assert!(truth == model, "an acknowledged change is not there");
        return false;
    };
    is_partly_done(change, &model, &truth, sector.len());
    assert_eq!(e.kind(), if fault == Fault::Eio { ErrorKind::Io } else { ErrorKind::NoSpace }, "{e:?}");
    let latches = fault == Fault::Eio && op != Op::Read;
    for _ in 0..2 {
        assert_eq!(cached.sync().is_err(), latches, "{op:?} {nth}, {fault:?}");
    }
    // The store is well again: reads and writes are tried, and the change can be repeated.
    change.apply(&cached).unwrap();
    change.model(&mut model);
    assert!(contents(&cached, 4096) == model);
    true
}

#[test]
fn whatever_fails_the_disk_shows_what_the_store_holds() {
    for sector in [SectorSize::B512, SectorSize::B4096] {
        for (op, least) in [(Op::Read, 6), (Op::Write, 10), (Op::Punch, 1)] {
            for fault in [Fault::Eio, Fault::Enospc] {
                let faults = (1..).take_while(|nth| script_with_a_fault(sector, op, *nth, fault)).count();
                assert!(faults >= least, "the script has only {faults} operations of kind {op:?}");
            }
        }
    }
}

#[test]
fn a_sync_that_failed_is_repeated_by_the_next_close() {
    let plan = FaultPlan::default();
    let store = FaultyStore::new(MemoryStore::new(SIZE + 4096), plan.clone());
    let disk = disk(Arc::new(store), &VolumeKey::generate().unwrap(), SectorSize::B4096, 0);
    disk.write_at(ByteOffset::ZERO, b"x").unwrap();
    plan.fail_nth(Op::Sync, 1, Fault::Enospc);
    assert_eq!(disk.flush().unwrap_err().kind(), ErrorKind::NoSpace);
    let syncs = plan.count(Op::Sync);
    disk.flush().unwrap();
    assert_eq!(plan.count(Op::Sync), syncs + 1, "what was written is still to be synced");
    disk.flush().unwrap();
    assert_eq!(plan.count(Op::Sync), syncs + 1, "and then it is not");
}
