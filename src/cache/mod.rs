//! The block cache: plaintext blocks of a disk, least recently used out first, within a budget of bytes.
//!
//! Must never see: keys, stores, ciphertext. It knows block numbers and bytes.
//!
//! Invariants:
//! 1. A cached block equals what decrypting the store would give, under the range lock that covers it: whoever inserts
//!    or changes a block shows a [`RangeGuard`] over it, so a reader that missed cannot insert what a writer has
//!    overtaken.
//! 2. Plaintext lies in [`SecretBytes`] only: out of dumps, locked where the limit allows, zero after [`BlockCache::wipe`].

use lru::LruCache;

use crate::error::Result;
use crate::range_lock::RangeGuard;
use crate::secret::SecretBytes;
use crate::sync::{Mutex, lock};
use crate::units::{ByteLen, ByteOffset, Extent};

/// Bytes in a block: one 4096-byte sector, eight 512-byte ones.
pub const BLOCK: usize = 4096;

/// Locks the cache is cut into. More than any machine's I/O threads, few enough that a small budget still gives each stripe
/// room to choose what to evict.
const STRIPES: usize = 1 << STRIPE_BITS;
const STRIPE_BITS: u32 = 4;

/// Index of a block on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockIndex(u64);

impl BlockIndex {
    /// The block that holds the byte at `offset`.
    #[must_use]
    pub const fn of(offset: ByteOffset) -> Self {
        Self(offset.get() / BLOCK as u64)
    }

    /// The bytes it covers.
    #[must_use]
    pub fn extent(self) -> Extent {
        Extent::from_raw(self.0 * BLOCK as u64, BLOCK as u64).expect("made from an offset below 2^63")
    }
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CacheStats {
    /// Blocks served from memory.
    pub hits: u64,
    /// Blocks that had to be read.
    pub misses: u64,
    /// Blocks put in.
    pub inserts: u64,
    /// Blocks pushed out by others.
    pub evictions: u64,
    /// Blocks held now.
    pub blocks: u64,
    /// Blocks that fit.
    pub capacity: u64,
}

#[derive(Debug)]
struct Stripe {
    slots: LruCache<BlockIndex, usize>,
    memory: SecretBytes,
    free: Vec<usize>,
    stats: CacheStats,
}

impl Stripe {
    fn slot(&mut self, slot: usize) -> &mut [u8] {
        &mut self.memory.expose_mut()[slot * BLOCK..][..BLOCK]
    }

    /// A slot to fill: a free one, or the least recently used.
    fn take_slot(&mut self) -> Option<usize> {
        self.free.pop().or_else(|| {
            let (_, slot) = self.slots.pop_lru()?;
            self.stats.evictions += 1;
            Some(slot)
        })
    }
}

/// See the module's header.
#[derive(Debug)]
pub struct BlockCache {
    stripes: Vec<Mutex<Stripe>>,
    /// Blocks that fit.
    capacity: u64,
}

impl BlockCache {
    /// A cache of at most `budget` bytes of plaintext (rounded down to whole blocks per stripe); `None` when that is
    /// not even one block per stripe: no cache.
    ///
    /// # Errors
    /// No memory.
    pub fn new(budget: ByteLen) -> Result<Option<Self>> {
        let per_stripe = budget.to_usize().unwrap_or(usize::MAX) / BLOCK / STRIPES;
        if per_stripe == 0 {
            return Ok(None);
        }
        let stripe = || {
            Ok(Mutex::new(Stripe {
                // Unbounded, because the slots are the bound; a bounded map would allocate all its nodes at once.
                slots: LruCache::unbounded(),
                memory: SecretBytes::zeroed(per_stripe.saturating_mul(BLOCK))?,
                free: (0..per_stripe).rev().collect(),
                stats: CacheStats::default(),
            }))
        };
        let stripes = (0..STRIPES).map(|_| stripe()).collect::<Result<_>>()?;
        Ok(Some(Self { stripes, capacity: (per_stripe * STRIPES) as u64 }))
    }

    fn stripe(&self, block: BlockIndex) -> &Mutex<Stripe> {
        // Fibonacci hashing: neighbours fall to different stripes, and so do blocks at any regular distance (the tables of
        // an image lie at multiples of its clusters). By the remainder, those would share one stripe, a sixteenth of all.
        let hash = block.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - STRIPE_BITS);
        &self.stripes[usize::try_from(hash).expect("less than STRIPES")]
    }

    /// Copies `out.len()` bytes from `within` bytes into the block; false when it is not here.
    #[must_use]
    pub fn read(&self, block: BlockIndex, within: usize, out: &mut [u8]) -> bool {
        let mut stripe = lock(self.stripe(block));
        match stripe.slots.get(&block).copied() {
            Some(slot) => {
                out.copy_from_slice(&stripe.slot(slot)[within..][..out.len()]);
                stripe.stats.hits += 1;
                true
            }
            None => {
                stripe.stats.misses += 1;
                false
            }
        }
    }

    /// Puts in a whole block that was read under `guard`.
    ///
    /// # Panics
    /// When `guard` does not cover the block, or `plain` is not a block: a bug that would break invariant 1.
    pub fn insert(&self, guard: &RangeGuard<'_>, block: BlockIndex, plain: &[u8]) {
        assert!(guard.covers(block.extent()) && plain.len() == BLOCK, "insert without the range lock");
        let mut stripe = lock(self.stripe(block));
        let slot = match stripe.slots.get(&block).copied() {
            Some(slot) => slot,
            None => {
                let Some(slot) = stripe.take_slot() else { return };
                stripe.slots.put(block, slot);
                stripe.stats.inserts += 1;
                slot
            }
        };
        stripe.slot(slot).copy_from_slice(plain);
    }

    /// Carries a finished write over to the blocks that are here; it brings in no new ones.
    ///
    /// # Panics
    /// When `guard` does not own the range.
    pub fn update(&self, guard: &RangeGuard<'_>, offset: ByteOffset, data: &[u8]) {
        let extent = Extent::new(offset, ByteLen::of(data)).expect("the write was within the disk");
        assert!(guard.owns(extent), "update without the range lock");
        let mut rest = data;
        for chunk in extent.chunks(BLOCK as u64) {
            let (now, later) = rest.split_at(chunk.len().to_usize().expect("at most a block"));
            rest = later;
            let block = BlockIndex::of(chunk.start());
            let within = chunk.start().saturating_since(block.extent().start());
            let within = within.to_usize().expect("less than a block");
            let mut stripe = lock(self.stripe(block));
            if let Some(slot) = stripe.slots.peek(&block).copied() {
                stripe.slot(slot)[within..][..now.len()].copy_from_slice(now);
            }
        }
    }

    /// Drops every block that touches `extent`: after a discard, or a write whose outcome is unknown.
    ///
    /// # Panics
    /// When `guard` does not own the range.
    pub fn remove(&self, guard: &RangeGuard<'_>, extent: Extent) {
        assert!(guard.owns(extent), "remove without the range lock");
        let blocks = extent.len().get() / BLOCK as u64;
        if blocks > self.capacity {
            // Cheaper to look at what is here than to ask for every block of a large range.
            for stripe in &self.stripes {
                let mut stripe = lock(stripe);
                let gone: Vec<_> = stripe
                    .slots
                    .iter()
                    .filter(|(b, _)| extent.overlaps(b.extent()))
                    .map(|(b, _)| *b)
                    .collect();
                for block in gone {
                    Self::drop_block(&mut stripe, block);
                }
            }
        } else {
            for chunk in extent.chunks(BLOCK as u64) {
                let block = BlockIndex::of(chunk.start());
                Self::drop_block(&mut lock(self.stripe(block)), block);
            }
        }
    }

    fn drop_block(stripe: &mut Stripe, block: BlockIndex) {
        if let Some(slot) = stripe.slots.pop(&block) {
            zeroize::Zeroize::zeroize(stripe.slot(slot));
            stripe.free.push(slot);
        }
    }

    /// Forgets and zeroes everything (the fence).
    pub fn wipe(&self) {
        for stripe in &self.stripes {
            let mut stripe = lock(stripe);
            // A slot in no block is zero already: untouched, or zeroed by `drop_block`. An evicted one is refilled at once.
            while let Some((_, slot)) = stripe.slots.pop_lru() {
                zeroize::Zeroize::zeroize(stripe.slot(slot));
                stripe.free.push(slot);
            }
            stripe.memory.is_zero_again();
        }
    }

    /// The sums over all stripes.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let none = CacheStats { capacity: self.capacity, ..CacheStats::default() };
        self.stripes.iter().fold(none, |sum, stripe| {
            let stripe = lock(stripe);
            CacheStats {
                hits: sum.hits + stripe.stats.hits,
                misses: sum.misses + stripe.stats.misses,
                inserts: sum.inserts + stripe.stats.inserts,
                evictions: sum.evictions + stripe.stats.evictions,
                blocks: sum.blocks + stripe.slots.len() as u64,
                capacity: sum.capacity,
            }
        })
    }
}

impl Drop for BlockCache {
    fn drop(&mut self) {
        // Only what was used: dropping the memory as a whole would bring in every page of it.
        self.wipe();
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
#[allow(clippy::unwrap_used)] // clippy knows cfg(test) only when it stands alone
mod tests {
    use super::*;
    use crate::range_lock::RangeLocks;

    fn at(n: u64) -> ByteOffset {
        ByteOffset::new(n * BLOCK as u64).unwrap()
    }

    fn whole() -> Extent {
        Extent::from_raw(0, 1 << 30).unwrap()
    }

    #[test]
    fn least_recently_used_goes_first_and_is_counted() {
        let cache =
            BlockCache::new(ByteLen::from(u32::try_from(2 * STRIPES * BLOCK).unwrap())).unwrap().unwrap();
        let locks = RangeLocks::default();
        let guard = locks.shared(whole());
        let home = |n: &u64| std::ptr::from_ref(cache.stripe(BlockIndex::of(at(*n))));
        let rivals: Vec<u64> = (0..1000).filter(|n| home(n) == home(&0)).take(3).collect();
        let mut out = [0; 1];
        for n in &rivals[..2] {
            cache.insert(&guard, BlockIndex::of(at(*n)), &[1; BLOCK]);
        }
        assert!(cache.read(BlockIndex::of(at(0)), 0, &mut out));
        cache.insert(&guard, BlockIndex::of(at(rivals[2])), &[9; BLOCK]);
        assert!(!cache.read(BlockIndex::of(at(rivals[1])), 0, &mut out), "the older one had to go");
        assert!(cache.read(BlockIndex::of(at(0)), 0, &mut out));
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses, stats.inserts, stats.evictions, stats.blocks), (2, 1, 3, 1, 2));
    }

    #[test]
    fn blocks_at_a_regular_distance_fill_the_whole_cache() {
        let locks = RangeLocks::default();
        let guard = locks.shared(Extent::from_raw(0, 1 << 50).unwrap());
        for distance in [1, 2, 3, 15, 16, 17, 64, 100, 1024, 1 << 20] {
            let cache = BlockCache::new(ByteLen::from(4 << 20)).unwrap().unwrap();
            // Three quarters of what fits.
            for n in 0..768 {
                cache.insert(&guard, BlockIndex::of(at(n * distance)), &[1; BLOCK]);
            }
            assert_eq!(cache.stats().evictions, 0, "every {distance} blocks");
        }
    }

    #[test]
    fn a_large_cache_that_was_hardly_used_is_dropped_without_bringing_it_in() {
        use nix::sys::resource::{UsageWho, getrusage};
        let cache = BlockCache::new(ByteLen::from(1 << 30)).unwrap().unwrap();
        let locks = RangeLocks::default();
        for n in 0..100 {
            cache.insert(&locks.shared(whole()), BlockIndex::of(at(n)), &[1; BLOCK]);
        }
        let faults = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().minor_page_faults();
        let before = faults();
        drop(cache);
        // A whole GiB would be 512 of the largest pages.
        assert!(faults() - before < 200, "{} pages were brought in", faults() - before);
    }

    #[test]
    fn an_update_reaches_part_of_a_block_and_brings_in_none() {
        let cache = BlockCache::new(ByteLen::from(1 << 20)).unwrap().unwrap();
        let locks = RangeLocks::default();
        let guard = locks.exclusive(whole());
        cache.insert(&guard, BlockIndex::of(at(0)), &[1; BLOCK]);
        cache.update(&guard, ByteOffset::from(4000), &[2; 200]);
        let mut block = [0; BLOCK];
        assert!(cache.read(BlockIndex::of(at(0)), 0, &mut block));
        assert!(block[..4000].iter().all(|b| *b == 1) && block[4000..].iter().all(|b| *b == 2));
        assert!(!cache.read(BlockIndex::of(at(1)), 0, &mut block));
    }

    #[test]
    fn wipe_leaves_nothing_behind() {
        let cache = BlockCache::new(ByteLen::from(1 << 20)).unwrap().unwrap();
        let locks = RangeLocks::default();
        cache.insert(&locks.shared(whole()), BlockIndex::of(at(5)), &[0xAA; BLOCK]);
        cache.wipe();
        assert!(!cache.read(BlockIndex::of(at(5)), 0, &mut [0; 1]));
        assert!(cache.stripes.iter().all(|s| lock(s).memory.expose().iter().all(|b| *b == 0)));
        assert_eq!(cache.stats().blocks, 0);
    }

    #[test]
    fn a_budget_below_one_block_per_stripe_means_no_cache() {
        assert!(BlockCache::new(ByteLen::ZERO).unwrap().is_none());
        assert!(BlockCache::new(ByteLen::from(65535)).unwrap().is_none());
        assert!(BlockCache::new(ByteLen::from(65536)).unwrap().is_some());
    }

    #[test]
    #[should_panic(expected = "without the range lock")]
    fn an_insert_without_its_lock_is_a_bug() {
        let cache = BlockCache::new(ByteLen::from(1 << 20)).unwrap().unwrap();
        let locks = RangeLocks::default();
        cache.insert(&locks.shared(Extent::from_raw(0, 512).unwrap()), BlockIndex::of(at(0)), &[1; BLOCK]);
    }
}
