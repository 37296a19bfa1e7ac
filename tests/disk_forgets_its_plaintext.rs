//! Is the plaintext gone from memory when the fence returns, also while a read hangs in the store: what it has put together so
//! far, and what its buffer held before? And is a reply gone as soon as it was given?
//!
//! Searches the process's own memory. One test in this file: others at the same time would only cost time.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod disk_support;
mod memory_support;

use disk_support::{Rig, Shape, kind, length, noise, offset};
use memory_support::{Needle, list, needles, search};
use wrapdisk::error::{ErrorKind, Result};
use wrapdisk::store::Op;
use wrapdisk::units::SectorSize;
use zeroize::Zeroize;

const SIZE: usize = 2 << 20;

/// Writes noise, and forgets it: what is found later is the disk's.
fn fill(rig: &Rig) -> Vec<Needle> {
    let mut plain = noise(77, SIZE);
    let found = plain.chunks(4096).flat_map(|block| needles("plaintext", &block[4080..])).collect();
    rig.write(0, &plain).unwrap();
    plain.zeroize();
    found
}

fn read(rig: &Rig, at: u64, len: u64) -> Result<()> {
    rig.disk.read(offset(at), length(len), |_| ())
}

#[track_caller]
fn is_clean(needles: &[Needle], when: &str) {
    let left = list(&search("self", needles));
    assert!(left.is_empty(), "{when}:\n{left}");
}

#[test]
fn no_plaintext_outlives_its_reply_or_the_fence() {
    for cache in [0, 1 << 20] {
        let rig = Rig::new(Shape { size: SIZE as u64, sector: SectorSize::B4096, cache });
        let needles = fill(&rig);
        is_clean(&needles, "after a write");
        for (at, len) in [(0, 1 << 20), (100, 300_000), (5, 100), (40_000, 100_000)] {
            let reads = rig.plan.count(Op::Read);
            read(&rig, at, len).unwrap();
            assert!(
                rig.plan.count(Op::Read) <= reads + 1,
                "{len} at {at}: what came first waits for the rest"
            );
            // A buffer that waits for the next read holds nothing.
            let hits = search("self", &needles).len();
            assert_eq!(hits as u64, rig.cached_blocks(), "after a read of {len} at {at}");
        }
        assert_eq!(rig.cached_blocks() > 20, cache > 0, "the search finds what there is");

        // Past the cache; and, where there is one, with the first blocks in it and the rest to be read.
        for (name, at, len) in [("long", 100, 300_000), ("half cached", 39_000, 100_000)] {
            assert!(rig.disk.fence() && rig.disk.resume(rig.cipher()));
            read(&rig, 32_768, 30_000).unwrap();
            rig.brake.arm(Op::Read);
            std::thread::scope(|s| {
                let stuck =
                    s.spawn(|| rig.disk.read(offset(at), length(len), |_| panic!("shown after the fence")));
                rig.brake.wait_until_stuck();
                let fenced = rig.disk.fence();
                let hits = search("self", &needles);
                rig.brake.release();
                assert!(fenced);
                assert!(hits.is_empty(), "{name}, while it hangs, after the fence:\n{}", list(&hits));
                assert_eq!(kind(stuck.join().unwrap()), ErrorKind::Revoked);
            });
            is_clean(&needles, &format!("{name}, when it came back"));
            assert!(rig.disk.resume(rig.cipher()));
        }
        rig.disk.fence();
    }
}
