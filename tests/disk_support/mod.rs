//! A disk whose store fails, tears, or blocks when told to, and what that store really holds.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use wrapdisk::cache::BlockCache;
use wrapdisk::disk::PlainDisk;
use wrapdisk::error::{Error, ErrorKind, Result};
use wrapdisk::store::{BackingStore, FaultPlan, FaultyStore, LatchedStore, MemoryStore, Op};
use wrapdisk::units::{ByteLen, ByteOffset, Extent, SectorSize};
use wrapdisk::volume::{EncryptedVolume, Gate, Layout};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};

/// Where the segment starts in the store.
const SEGMENT: u32 = 8192;

/// What a disk under test is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) size: u64,
    pub(crate) sector: SectorSize,
    /// Bytes; 0: none.
    pub(crate) cache: u32,
}

/// With and without a cache, large and small sectors.
pub(crate) fn shapes(size: u64) -> impl Iterator<Item = Shape> {
    [(SectorSize::B4096, 8 << 20), (SectorSize::B512, 8 << 20), (SectorSize::B4096, 0), (SectorSize::B512, 0)]
        .into_iter()
        .map(move |(sector, cache)| Shape { size, sector, cache })
}

type Store = LatchedStore<Slow<FaultyStore<Arc<MemoryStore>>>>;

/// A disk of noise over a store that does what the plan and the brake say, latched as a mount's is.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) disk: PlainDisk,
    pub(crate) plan: FaultPlan,
    pub(crate) brake: Arc<Brake>,
    pub(crate) store: Arc<Store>,
    medium: Arc<MemoryStore>,
    key: VolumeKey,
    shape: Shape,
}

impl Rig {
    pub(crate) fn new(shape: Shape) -> Self {
        let len = u64::from(SEGMENT) + shape.size.next_multiple_of(4096);
        let medium = Arc::new(MemoryStore::new(usize::try_from(len).unwrap()));
        let (plan, brake) = (FaultPlan::default(), Arc::new(Brake::default()));
        let faulty = FaultyStore::new(Arc::clone(&medium), plan.clone());
        let store = Arc::new(LatchedStore::new(Slow { inner: faulty, brake: Arc::clone(&brake) }));
        let key = VolumeKey::generate().unwrap();
        let disk = plain_disk(Arc::clone(&store) as _, &key, shape);
        Self { disk, plan, brake, store, medium, key, shape }
    }

    /// The whole disk as the store has it now: decrypted by a second disk, without a cache and without faults.
    pub(crate) fn truth(&self) -> Vec<u8> {
        let second = plain_disk(Arc::clone(&self.medium) as _, &self.key, Shape { cache: 0, ..self.shape });
        let mut all = vec![0; usize::try_from(self.shape.size).unwrap()];
        second.read_at(ByteOffset::ZERO, &mut all).unwrap();
        all
    }

    pub(crate) fn cipher(&self) -> XtsCipher {
        XtsCipher::new(&self.key, self.shape.sector, Engine::best()).unwrap()
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0xee; len];
        let n = self.disk.read_at(offset(at), &mut buf)?;
        buf.truncate(n);
        Ok(buf)
    }

    pub(crate) fn write(&self, at: u64, data: &[u8]) -> Result<()> {
        self.disk.write_at(offset(at), data)
    }

    pub(crate) fn cached_blocks(&self) -> u64 {
        self.disk.cache_stats().map_or(0, |s| s.blocks)
    }

    /// Reads every block, so that all that fits is in the cache.
    pub(crate) fn warm(&self) {
        for at in (0..self.shape.size).step_by(4096) {
            self.read(at, 4096).unwrap();
        }
    }

    /// Block by block (which asks the cache) and in long runs, the disk reads as its store does.
    #[track_caller]
    pub(crate) fn tells_the_truth(&self, when: &str) {
        let truth = self.truth();
        for step in [4096, 100_000] {
            for (n, expected) in truth.chunks(step).enumerate() {
                let at = (n * step) as u64;
                let found = self.read(at, expected.len()).unwrap();
                let differs = found.iter().zip(expected).position(|(a, b)| a != b);
                assert_eq!(
                    (found.len(), differs),
                    (expected.len(), None),
                    "{when}: {step} bytes at {at}, {:?}",
                    self.shape
                );
            }
        }
    }
}

fn plain_disk(store: Arc<dyn BackingStore>, key: &VolumeKey, shape: Shape) -> PlainDisk {
    let cipher = XtsCipher::new(key, shape.sector, Engine::best()).unwrap();
    let layout = Layout {
        offset: ByteOffset::from(SEGMENT),
        sector_size: shape.sector,
        size: ByteLen::new(shape.size).unwrap(),
        zero_holes: true,
        discards: true,
    };
    let volume = EncryptedVolume::new(store, layout, Gate::open(cipher)).unwrap();
    PlainDisk::new(volume, BlockCache::new(ByteLen::from(shape.cache)).unwrap(), false)
}

pub(crate) fn offset(at: u64) -> ByteOffset {
    ByteOffset::new(at).unwrap()
}

pub(crate) fn length(len: u64) -> ByteLen {
    ByteLen::new(len).unwrap()
}

#[track_caller]
pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.expect_err("must fail").kind()
}

/// Makes one operation of a kind wait, as a hanging device or network does.
#[derive(Debug, Default)]
pub(crate) struct Brake {
    state: Mutex<Braked>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Braked {
    armed: Option<Op>,
    stuck: bool,
    /// Punches are refused, as on a store that knows no holes.
    no_holes: bool,
}

impl Brake {
    /// The next `op` will wait.
    pub(crate) fn arm(&self, op: Op) {
        self.state.lock().unwrap().armed = Some(op);
    }

    /// Returns once it does.
    pub(crate) fn wait_until_stuck(&self) {
        let state = self.state.lock().unwrap();
        let (state, late) =
            self.changed.wait_timeout_while(state, Duration::from_secs(60), |s| !s.stuck).unwrap();
        assert!(!late.timed_out(), "nothing asked the store for {:?}", state.armed);
    }

    /// Lets it go on.
    pub(crate) fn release(&self) {
        self.state.lock().unwrap().stuck = false;
        self.changed.notify_all();
    }

    pub(crate) fn refuse_holes(&self) {
        self.state.lock().unwrap().no_holes = true;
    }

    fn pass(&self, op: Op) {
        let mut state = self.state.lock().unwrap();
        if state.armed == Some(op) {
            (state.armed, state.stuck) = (None, true);
            self.changed.notify_all();
            drop(self.changed.wait_while(state, |s| s.stuck).unwrap());
        }
    }
}

/// A store with a brake.
#[derive(Debug)]
pub(crate) struct Slow<S> {
    inner: S,
    brake: Arc<Brake>,
}

impl<S: BackingStore> BackingStore for Slow<S> {
    fn len(&self) -> Result<ByteLen> {
        self.inner.len()
    }
    fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.brake.pass(Op::Read);
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.brake.pass(Op::Write);
        self.inner.write_at(offset, data)
    }
    fn sync(&self) -> Result<()> {
        self.brake.pass(Op::Sync);
        self.inner.sync()
    }
    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.inner.set_len(len)
    }
    fn punch(&self, extent: Extent) -> Result<()> {
        self.brake.pass(Op::Punch);
        if self.brake.state.lock().unwrap().no_holes {
            return Err(Error::new(ErrorKind::Unsupported, "no holes here"));
        }
        self.inner.punch(extent)
    }
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        self.inner.seek_data(from)
    }
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        self.inner.seek_hole(from)
    }
    fn allocated(&self) -> Result<ByteLen> {
        self.inner.allocated()
    }
}

/// Bytes that no mistake of an offset or a version can repeat.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut word).flatten().take(len).collect()
}
