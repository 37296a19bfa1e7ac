//! Can a reader that missed bring back what a writer has overtaken? Explored over thread schedules with shuttle:
//! `cargo test --features shuttle --test race`. The bug it looks for is planted in one test, and must be found.
#![cfg(feature = "shuttle")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use shuttle::sync::Mutex;
use shuttle::thread;
use wrapdisk::cache::{BLOCK, BlockCache, BlockIndex};
use wrapdisk::range_lock::RangeLocks;
use wrapdisk::units::{ByteLen, ByteOffset, Extent};

const ROUNDS: usize = 2_000;

/// One block of a "store", a cache in front of it, and the locks.
struct World {
    store: Mutex<u8>,
    cache: BlockCache,
    locks: RangeLocks,
}

fn block() -> Extent {
    Extent::from_raw(0, BLOCK as u64).unwrap()
}

fn world() -> Arc<World> {
    let cache = BlockCache::new(ByteLen::from(16 * 4096)).unwrap().unwrap();
    Arc::new(World { store: Mutex::new(0), cache, locks: RangeLocks::default() })
}

/// As the disk reads: a hit needs no lock; a miss is read and inserted under a shared range lock.
fn read(w: &World, locked: bool) -> u8 {
    let mut out = [0; 1];
    let index = BlockIndex::of(ByteOffset::ZERO);
    if w.cache.read(index, 0, &mut out) {
        return out[0];
    }
    // Without the lock over both steps, a writer fits between them.
    let guard = locked.then(|| w.locks.shared(block()));
    let value = *w.store.lock().unwrap();
    let late = guard.is_none().then(|| w.locks.shared(block()));
    w.cache.insert(guard.as_ref().or(late.as_ref()).unwrap(), index, &[value; BLOCK]);
    value
}

/// As the disk writes: store first, then the cached block, under an exclusive range lock.
fn write(w: &World, value: u8) {
    let guard = w.locks.exclusive(block());
    *w.store.lock().unwrap() = value;
    w.cache.update(&guard, ByteOffset::ZERO, &[value; BLOCK]);
}

fn history(locked: bool) {
    let w = world();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let w = Arc::clone(&w);
            thread::spawn(move || {
                read(&w, locked);
                read(&w, locked);
            })
        })
        .collect();
    let writer = {
        let w = Arc::clone(&w);
        thread::spawn(move || {
            for value in 1..=2 {
                write(&w, value);
                // An acknowledged write is what everybody sees from here on.
                assert_eq!(read(&w, true), value, "an overtaken block came back");
            }
        })
    };
    for t in readers {
        t.join().unwrap();
    }
    writer.join().unwrap();
    assert_eq!(read(&w, true), 2, "an overtaken block came back");
}

#[test]
fn a_miss_never_brings_back_an_overtaken_block() {
    shuttle::check_random(|| history(true), ROUNDS);
    shuttle::check_pct(|| history(true), ROUNDS, 3);
}

#[test]
#[should_panic(expected = "an overtaken block came back")]
fn the_checker_finds_it_when_the_lock_comes_too_late() {
    shuttle::check_random(|| history(false), ROUNDS);
}

#[test]
fn a_fence_leaves_no_block_behind() {
    shuttle::check_random(
        || {
            let w = world();
            let (a, b) = (Arc::clone(&w), Arc::clone(&w));
            // The gate's rule in small: inserts happen under a read lock, the fence closes under the write lock.
            let gate = Arc::new(shuttle::sync::RwLock::new(true));
            let (g1, g2) = (Arc::clone(&gate), gate);
            let reader = thread::spawn(move || {
                let guard = a.locks.shared(block());
                let value = *a.store.lock().unwrap();
                let open = g1.read().unwrap();
                if *open {
                    a.cache.insert(&guard, BlockIndex::of(ByteOffset::ZERO), &[value; BLOCK]);
                }
            });
            let fence = thread::spawn(move || {
                let mut open = g2.write().unwrap();
                *open = false;
                b.cache.wipe();
            });
            reader.join().unwrap();
            fence.join().unwrap();
            assert_eq!(w.cache.stats().blocks, 0);
        },
        ROUNDS,
    );
}
