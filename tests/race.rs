//! Can a reader that missed bring back what a writer has overtaken, can a write to part of a sector lose the other part, does
//! anything outlive the fence? The disk itself, explored over thread schedules with shuttle:
//! `cargo test --features shuttle --test race`. A bug of that kind is planted in one test, and must be found.
#![cfg(feature = "shuttle")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use shuttle::sync::Mutex;
use shuttle::thread;
use wrapdisk::cache::{BLOCK, BlockCache, BlockIndex};
use wrapdisk::disk::PlainDisk;
use wrapdisk::error::{ErrorKind, Result};
use wrapdisk::range_lock::RangeLocks;
use wrapdisk::secret::Secret;
use wrapdisk::store::BackingStore;
use wrapdisk::units::{ByteLen, ByteOffset, Extent, SectorSize};
use wrapdisk::volume::{EncryptedVolume, Gate, Layout};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};

const ROUNDS: usize = 2_000;
/// Two blocks, so that there is a read of more than one.
const SIZE: usize = 2 * BLOCK;

/// Random schedules, and those with few but well-placed switches.
fn explore(history: fn()) {
    shuttle::check_random(history, ROUNDS);
    shuttle::check_pct(history, ROUNDS, 3);
}

// --- a disk whose store lets others run in the middle of everything ---

/// Reads and writes are not atomic: each half of a block goes by itself, and everybody may come in between.
#[derive(Debug)]
struct Torn(Mutex<Vec<u8>>);

impl Torn {
    fn halves(&self, at: ByteOffset, len: usize, mut each: impl FnMut(&mut [u8], std::ops::Range<usize>)) {
        let at = usize::try_from(at.get()).unwrap();
        for start in (0..len).step_by(BLOCK / 2) {
            let part = start..(start + BLOCK / 2).min(len);
            // The lock lets others run. Not yield_now: for the second scheduler that means "anybody else first".
            each(&mut self.0.lock().unwrap()[at + part.start..at + part.end], part);
        }
    }
}

impl BackingStore for Torn {
    fn len(&self) -> Result<ByteLen> {
        Ok(ByteLen::of(&self.0.lock().unwrap()))
    }
    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.halves(at, buf.len(), |stored, part| buf[part].copy_from_slice(stored));
        Ok(())
    }
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.halves(at, data.len(), |stored, part| stored.copy_from_slice(&data[part]));
        Ok(())
    }
    fn punch(&self, extent: Extent) -> Result<()> {
        let len = usize::try_from(extent.len().get()).unwrap();
        self.halves(extent.start(), len, |stored, _| stored.fill(0));
        Ok(())
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    fn set_len(&self, _: ByteLen) -> Result<()> {
        unreachable!("a disk keeps its size")
    }
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        Ok(Some(from))
    }
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        Ok(from)
    }
    fn allocated(&self) -> Result<ByteLen> {
        self.len()
    }
}

fn cipher() -> XtsCipher {
    let key = Secret::try_from_fn(|bytes: &mut [u8; 64]| {
        bytes.iter_mut().zip(0..).for_each(|(b, n)| *b = n);
        Ok(())
    });
    XtsCipher::new(&VolumeKey::new(key.unwrap()).unwrap(), SectorSize::B4096, Engine::best()).unwrap()
}

fn over(store: Arc<Torn>, cache: u32) -> PlainDisk {
    let layout = Layout {
        offset: ByteOffset::ZERO,
        sector_size: SectorSize::B4096,
        size: ByteLen::from(u32::try_from(SIZE).unwrap()),
        zero_holes: true,
        discards: true,
    };
    let volume = EncryptedVolume::new(store, layout, Gate::open(cipher())).unwrap();
    PlainDisk::new(volume, BlockCache::new(ByteLen::from(cache)).unwrap(), false)
}

/// The disk under test, and its store.
#[derive(Clone)]
struct World {
    disk: Arc<PlainDisk>,
    store: Arc<Torn>,
}

impl World {
    fn new() -> Self {
        let store = Arc::new(Torn(Mutex::new(vec![0; SIZE])));
        Self { disk: Arc::new(over(Arc::clone(&store), 16 * 4096)), store }
    }

    fn write(&self, at: usize, data: &[u8]) -> Result<()> {
        self.disk.write_at(ByteOffset::new(at as u64).unwrap(), data)
    }

    fn read(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        let len = ByteLen::new(len as u64).unwrap();
        self.disk.read(ByteOffset::new(at as u64).unwrap(), len, <[u8]>::to_vec)
    }

    /// The value of a block that is only ever written as a whole.
    #[track_caller]
    fn value(&self, at: usize, len: usize) -> u8 {
        let bytes = self.read(at, len).unwrap();
        let block = bytes.first_chunk::<BLOCK>().unwrap();
        assert!(block.iter().all(|b| *b == block[0]), "a torn block was read");
        block[0]
    }

    fn cached_blocks(&self) -> u64 {
        self.disk.cache_stats().unwrap().blocks
    }

    /// When nothing runs any more: what the cache has is what the store has.
    #[track_caller]
    fn is_consistent(&self) -> Vec<u8> {
        let truth = over(Arc::clone(&self.store), 0);
        let mut stored = vec![0; SIZE];
        truth.read_at(ByteOffset::ZERO, &mut stored).unwrap();
        for at in [0, BLOCK] {
            assert!(self.read(at, BLOCK).unwrap() == stored[at..at + BLOCK], "an overtaken block came back");
        }
        stored
    }

    fn spawn(&self, work: impl FnOnce(&Self) + Send + 'static) -> thread::JoinHandle<()> {
        let world = self.clone();
        thread::spawn(move || work(&world))
    }
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    for t in threads {
        t.join().unwrap();
    }
}

// --- the histories ---

#[test]
fn a_miss_never_brings_back_an_overtaken_block() {
    explore(|| {
        let w = World::new();
        let reader = |len: usize| {
            move |w: &World| {
                let first = w.value(0, len);
                let second = w.value(0, len);
                assert!(first <= second, "time went backwards: {first}, then {second}");
            }
        };
        let writer = w.spawn(|w| {
            for value in 1..=2 {
                w.write(0, &[value; BLOCK]).unwrap();
                // An acknowledged write is what everybody sees from here on.
                assert_eq!(w.value(0, BLOCK), value, "an overtaken block came back");
            }
        });
        join(vec![w.spawn(reader(BLOCK)), w.spawn(reader(SIZE)), writer]);
        assert_eq!(w.is_consistent()[0], 2);
    });
}

#[test]
fn writes_to_parts_of_one_sector_lose_neither_part() {
    explore(|| {
        let w = World::new();
        let mut threads = vec![w.spawn(|w| drop(w.read(0, SIZE).unwrap()))];
        for (at, value) in [(0, 1), (1000, 2), (BLOCK - 500, 3)] {
            threads.push(w.spawn(move |w| {
                w.write(at, &[value; 1000]).unwrap();
                assert!(w.read(at, 1000).unwrap() == [value; 1000], "part of a write is lost");
            }));
        }
        join(threads);
        let mut expected = vec![0; SIZE];
        for (at, value) in [(0, 1), (1000, 2), (BLOCK - 500, 3)] {
            expected[at..at + 1000].fill(value);
        }
        assert!(w.is_consistent() == expected, "part of a write is lost");
    });
}

#[test]
fn a_discarded_block_does_not_come_back() {
    explore(|| {
        let w = World::new();
        w.write(0, &[1; SIZE]).unwrap();
        let discard = w.spawn(|w| {
            w.disk.discard(ByteOffset::ZERO, ByteLen::from(u32::try_from(BLOCK).unwrap())).unwrap();
            assert_eq!(w.value(0, BLOCK), 0, "a discarded block came back");
        });
        let reader = w.spawn(|w| {
            let (first, second) = (w.value(0, BLOCK), w.value(0, SIZE));
            assert!(first >= second, "time went backwards: {first}, then {second}");
        });
        join(vec![discard, reader]);
        assert_eq!(w.is_consistent(), [[0; BLOCK], [1; BLOCK]].concat());
    });
}

#[test]
fn nothing_is_put_in_after_the_fence() {
    explore(|| {
        let w = World::new();
        // Few steps, so that the schedules in which the whole fence fits between two steps of a read are among them.
        let reader = w.spawn(|w| drop(w.read(0, BLOCK)));
        let fence = w.spawn(|w| {
            assert!(w.disk.fence());
            assert_eq!(w.cached_blocks(), 0, "a block is left after the fence");
        });
        join(vec![reader, fence]);
        assert_eq!(w.cached_blocks(), 0, "a block was put in after the fence");
    });
}

#[test]
fn nothing_is_served_after_the_fence() {
    explore(|| {
        let w = World::new();
        w.write(0, &[1; SIZE]).unwrap();
        w.value(0, BLOCK);
        let user = |len: usize| {
            move |w: &World| {
                let results =
                    [w.read(0, len).map(drop), w.write(BLOCK - 1, &[1; 2]), w.read(0, len).map(drop)];
                assert!(results.iter().all(Result::is_ok) || !w.disk.volume().gate().is_open());
            }
        };
        let fence = w.spawn(|w| {
            assert!(w.disk.fence());
            for refused in [w.read(0, BLOCK).map(drop), w.read(0, SIZE).map(drop), w.write(0, &[2; 10])] {
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::Revoked, "served after the fence");
            }
        });
        join(vec![w.spawn(user(BLOCK)), w.spawn(user(SIZE)), fence]);
        assert_eq!(w.cached_blocks(), 0, "a block was put in after the fence");
    });
}

#[test]
fn a_write_that_a_fence_and_a_resume_overtake_leaves_nothing_stale() {
    explore(|| {
        let w = World::new();
        let writer = w.spawn(|w| {
            for value in 1..=2 {
                let done = w.write(0, &[value; SIZE]);
                assert!(done.is_ok() || done.unwrap_err().kind() == ErrorKind::Revoked);
            }
        });
        let reader = w.spawn(|w| {
            for len in [BLOCK, SIZE] {
                let read = w.read(0, len);
                assert!(read.is_ok() || read.unwrap_err().kind() == ErrorKind::Revoked);
            }
        });
        let guard = w.spawn(|w| assert!(w.disk.fence() && w.disk.resume(cipher())));
        join(vec![writer, reader, guard]);
        w.is_consistent();
    });
}

// --- and the checker finds what it looks for ---

/// The protocol of the disk in small, without the lock over both steps of a miss.
fn unlocked_history() {
    let store = Arc::new(Mutex::new(0));
    let cache = Arc::new(BlockCache::new(ByteLen::from(16 * 4096)).unwrap().unwrap());
    let locks = Arc::new(RangeLocks::default());
    let (index, extent) = (BlockIndex::of(ByteOffset::ZERO), Extent::from_raw(0, BLOCK as u64).unwrap());
    let reader = {
        let (store, cache, locks) = (Arc::clone(&store), Arc::clone(&cache), Arc::clone(&locks));
        thread::spawn(move || {
            let value = *store.lock().unwrap();
            // A writer fits in here.
            cache.insert(&locks.shared(extent), index, &[value; BLOCK]);
        })
    };
    let guard = locks.exclusive(extent);
    *store.lock().unwrap() = 1;
    cache.update(&guard, ByteOffset::ZERO, &[1; BLOCK]);
    drop(guard);
    reader.join().unwrap();
    let mut seen = [0; 1];
    assert!(!cache.read(index, 0, &mut seen) || seen == [1], "an overtaken block came back");
}

#[test]
#[should_panic(expected = "an overtaken block came back")]
fn the_checker_finds_it_when_the_lock_comes_too_late() {
    shuttle::check_random(unlocked_history, ROUNDS);
}
