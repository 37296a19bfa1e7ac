//! A plaintext disk: bytes to read, write, discard and flush, over the cache and the encrypted volume; and the fence
//! that takes the key away.
//!
//! Must never see: FUSE, vaults, headers. Positions are bytes from the start of the disk.
//!
//! Invariants:
//! 1. Reads past the end are short, writes past it are `NoSpace`, and neither wraps.
//! 2. After [`PlainDisk::fence`] returned, no I/O is served and no plaintext or key of this disk is left in its memory. So
//!    plaintext never lies in a buffer while its request waits for the store: reads do all I/O first, then all crypto.
//! 3. A failed write drops what it touched from the cache: nobody knows what the store holds then.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::{BLOCK, BlockCache, BlockIndex, CacheStats};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteLen, ByteOffset, Extent};
use crate::volume::EncryptedVolume;
use crate::xts::XtsCipher;

mod buffers;
mod image;
mod park;

pub use image::Image;
pub use park::{Asker, Kept, Verdict};

/// A request that can be done again.
pub type Job = Box<dyn FnOnce(Verdict) + Send>;

/// Reads of at least this many bytes go past the cache: they are streams, which would push out what is worth keeping and
/// gain nothing (at this size, decrypting costs a tenth of the trip through FUSE).
const BYPASS: usize = 128 * 1024;

/// Bytes between two reports of progress.
const OVERWRITE_STEP: u64 = 64 * 1024 * 1024;

/// What was done so far, in requests and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IoStats {
    /// Requests.
    pub reads: u64,
    /// Bytes handed out.
    pub read_bytes: u64,
    /// Requests.
    pub writes: u64,
    /// Bytes taken in.
    pub written_bytes: u64,
    /// Discards and write-zeroes.
    pub discards: u64,
    /// Syncs.
    pub flushes: u64,
    /// Requests of any kind that failed.
    pub errors: u64,
}

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    discards: AtomicU64,
    flushes: AtomicU64,
    errors: AtomicU64,
}

/// See the module's header.
#[derive(Debug)]
pub struct PlainDisk {
    volume: EncryptedVolume,
    cache: Option<BlockCache>,
    read_only: bool,
    buffers: buffers::Buffers,
    parking: park::Parking,
    // Changes that came back from the store, and how many of them a finished sync covers: close(2) of a file nobody wrote
    // to costs no sync.
    changes: AtomicU64,
    synced: AtomicU64,
    counters: Counters,
}

impl PlainDisk {
    /// A disk over an open volume.
    #[must_use]
    pub fn new(volume: EncryptedVolume, cache: Option<BlockCache>, read_only: bool) -> Self {
        Self {
            volume,
            cache,
            read_only,
            buffers: buffers::Buffers::default(),
            parking: park::Parking::default(),
            changes: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            counters: Counters::default(),
        }
    }

    /// The volume below.
    #[must_use]
    pub const fn volume(&self) -> &EncryptedVolume {
        &self.volume
    }

    /// Bytes of the disk.
    #[must_use]
    pub const fn len(&self) -> ByteLen {
        self.volume.layout().size
    }

    /// True when writes are refused.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Reads up to `len` bytes and shows them to `reply`: shorter at the end of the disk, empty past it. They lie in memory
    /// that is wiped as soon as `reply` returns.
    ///
    /// # Errors
    /// `Io`, `Revoked`.
    pub fn read<R>(&self, offset: ByteOffset, len: ByteLen, reply: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let extent = Extent::new(offset, len)
            .unwrap_or(Extent::new(offset, ByteLen::ZERO).expect("an offset alone fits"));
        let extent = extent.clamp_to(self.len());
        let blocks = self.blocks_around(extent)?;
        let len = blocks.len().to_usize().ok_or_else(|| too_large(extent))?;
        let done = self.buffers.with(len, |buf| {
            self.fill(blocks, buf)?;
            Ok(reply(part(buf, blocks, extent)))
        });
        let done = done.and_then(|r| r);
        self.count(&done, &self.counters.reads, &self.counters.read_bytes, extent.len());
        done
    }

    /// Reads into the caller's memory; returns the number of bytes.
    ///
    /// # Errors
    /// As [`PlainDisk::read`].
    pub fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<usize> {
        self.read(offset, ByteLen::of(buf), |bytes| {
            buf[..bytes.len()].copy_from_slice(bytes);
            bytes.len()
        })
    }

    /// The whole blocks that a read fetches: sectors are decrypted as a whole anyway, and a whole block can be kept. The last
    /// one ends with the last sector.
    fn blocks_around(&self, extent: Extent) -> Result<Extent> {
        if extent.is_empty() {
            return Ok(extent);
        }
        let layout = self.volume.layout();
        let blocks = extent.outer(BLOCK as u64).zip(layout.size.round_up(layout.sector_size.bytes()));
        blocks.map(|(blocks, end)| blocks.clamp_to(end)).ok_or_else(|| too_large(extent))
    }

    fn fill(&self, blocks: Extent, buf: &mut [u8]) -> Result<()> {
        let ticket = self.volume.gate().enter()?;
        if blocks.is_empty() {
            return Ok(());
        }
        let Some(cache) = self.cache.as_ref().filter(|_| buf.len() < BYPASS) else {
            let guard = self.volume.lock_shared(blocks)?;
            return self.volume.read_sectors(ticket, &guard, blocks.start(), buf);
        };
        // The common case, one block, takes no range lock when the block is here.
        if buf.len() <= BLOCK && cached(cache, blocks, buf) {
            return self.volume.gate().check(ticket);
        }
        let guard = self.volume.lock_shared(blocks)?;
        if buf.len() > BLOCK && cached(cache, blocks, buf) {
            return self.volume.gate().check(ticket);
        }
        self.volume.read_sectors(ticket, &guard, blocks.start(), buf)?;
        // Inside a crypto section, so that the fence, which waits for those and then wipes, cannot miss an insert.
        self.volume.gate().with_cipher(ticket, |_| {
            for block in blocks.inner(BLOCK as u64).chunks(BLOCK as u64) {
                cache.insert(&guard, BlockIndex::of(block.start()), part(buf, blocks, block));
            }
        })
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    /// `NoSpace` past the end (nothing is written then), `ReadOnly`, `Io`, `Revoked`.
    pub fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        let done = self.write_checked(offset, data);
        self.count(&done, &self.counters.writes, &self.counters.written_bytes, ByteLen::of(data));
        done
    }

    fn write_checked(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        let extent = self.writable(offset, ByteLen::of(data))?;
        if extent.is_empty() {
            return Ok(());
        }
        let (guard, ticket) = self.volume.lock_exclusive(extent)?;
        let written = self.volume.write(ticket, &guard, offset, data);
        // Also of a failed one, which may have changed something. After it, or a sync in between would count it as covered.
        self.changes.fetch_add(1, Ordering::AcqRel);
        let Some(cache) = &self.cache else { return written };
        match written {
            Ok(()) => self.volume.gate().with_cipher(ticket, |_| cache.update(&guard, offset, data)),
            Err(e) => {
                cache.remove(&guard, extent);
                Err(e)
            }
        }
    }

    /// The extent of a change, or why not.
    fn writable(&self, offset: ByteOffset, len: ByteLen) -> Result<Extent> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the disk is mounted read-only"));
        }
        match Extent::new(offset, len) {
            Some(extent) if extent.clamp_to(self.len()) == extent => Ok(extent),
            _ => Err(Error::new(
                ErrorKind::NoSpace,
                format!("write of {len} bytes at {offset}: past the end of the disk ({} bytes)", self.len()),
            )),
        }
    }

    /// Makes a range read as zeros and gives its space back where the container allows it.
    ///
    /// # Errors
    /// As [`PlainDisk::write_at`].
    pub fn discard(&self, offset: ByteOffset, len: ByteLen) -> Result<()> {
        self.zero(offset, len, true)
    }

    /// Makes a range read as zeros, keeping its space: encrypted zeros are written.
    ///
    /// # Errors
    /// As [`PlainDisk::write_at`].
    pub fn write_zeroes(&self, offset: ByteOffset, len: ByteLen) -> Result<()> {
        self.zero(offset, len, false)
    }

    fn zero(&self, offset: ByteOffset, len: ByteLen, free: bool) -> Result<()> {
        let done = self.writable(offset, len).and_then(|extent| {
            let zeroed = self.volume.zero(extent, free, |guard, step| {
                if let Some(cache) = &self.cache {
                    cache.remove(guard, step);
                }
            });
            self.changes.fetch_add(1, Ordering::AcqRel);
            zeroed
        });
        self.count(&done, &self.counters.discards, &self.counters.discards, ByteLen::ZERO);
        done
    }

    /// Writes encrypted zeros over the whole disk, whatever is there: a new container on a device.
    ///
    /// # Errors
    /// As [`PlainDisk::write_at`].
    pub fn overwrite(&self, mut progress: impl FnMut(ByteLen)) -> Result<()> {
        let whole = Extent::new(ByteOffset::ZERO, self.len()).expect("a disk's length is an extent");
        for step in whole.chunks(OVERWRITE_STEP) {
            self.write_zeroes(step.start(), step.len())?;
            progress(step.end().saturating_since(ByteOffset::ZERO));
        }
        self.sync()
    }

    /// Makes every acknowledged write durable.
    ///
    /// # Errors
    /// `Io`, and again at every later call once a write or sync failed.
    pub fn sync(&self) -> Result<()> {
        let covered = self.changes.load(Ordering::Acquire);
        let done = self.volume.store().sync();
        if done.is_ok() {
            self.synced.fetch_max(covered, Ordering::AcqRel);
        }
        self.count(&done, &self.counters.flushes, &self.counters.flushes, ByteLen::ZERO);
        done
    }

    /// [`PlainDisk::sync`], if anything was written since the last one.
    ///
    /// # Errors
    /// As `sync`.
    pub fn flush(&self) -> Result<()> {
        let clean = self.synced.load(Ordering::Acquire) == self.changes.load(Ordering::Acquire);
        if clean { Ok(()) } else { self.sync() }
    }

    /// The first byte at or after `from` that may be data; `None` when only a hole follows.
    ///
    /// # Errors
    /// `Io`, `Revoked`.
    pub fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        let layout = self.volume.layout();
        let _open = self.volume.gate().enter()?;
        if from.get() >= self.len().get() || !layout.zero_holes {
            return Ok((from.get() < self.len().get()).then_some(from));
        }
        let found = self.volume.store().seek_data(self.in_store(from)?)?;
        Ok(found.map(|at| self.in_disk(at).max(from)).filter(|at| at.get() < self.len().get()))
    }

    /// The first byte at or after `from` that is in a hole; the end of the disk counts as one.
    ///
    /// # Errors
    /// `Io`, `Revoked`.
    pub fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        let layout = self.volume.layout();
        let _open = self.volume.gate().enter()?;
        let end = ByteOffset::new(self.len().get()).expect("a length is an offset");
        if from >= end || !layout.zero_holes {
            return Ok(end.max(from));
        }
        let found = self.volume.store().seek_hole(self.in_store(from)?)?;
        Ok(self.in_disk(found).max(from).min(end))
    }

    fn in_store(&self, at: ByteOffset) -> Result<ByteOffset> {
        at.checked_add(self.volume.layout().offset.saturating_since(ByteOffset::ZERO))
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, format!("offset {at}: too large")))
    }

    fn in_disk(&self, at: ByteOffset) -> ByteOffset {
        ByteOffset::new(at.saturating_since(self.volume.layout().offset).get()).expect("shorter than it was")
    }

    /// Bytes of storage behind the disk, for `st_blocks`: all that the store takes, its header too, up to the disk's length.
    ///
    /// # Errors
    /// `Io`.
    pub fn allocated(&self) -> Result<ByteLen> {
        let store = self.volume.store().allocated()?.get();
        Ok(ByteLen::new(store.min(self.len().get())).expect("bounded by the disk's length"))
    }

    /// Takes the key away: new I/O is refused at once, crypto that runs is waited for (microseconds), key, schedules and
    /// cache are wiped; reply buffers hold plaintext only between crypto and reply. Returns false when it was closed already.
    /// The store is not synced here: that may block, and is the caller's to do afterwards.
    pub fn fence(&self) -> bool {
        self.volume.gate().close(|| {
            if let Some(cache) = &self.cache {
                cache.wipe();
            }
        })
    }

    /// Serves again, with a cipher derived anew, what waits first. Returns false when the gate was open. A change that hangs
    /// in the store since before the fence keeps its range locked: whoever wants that waits for it, nobody else does.
    pub fn resume(&self, cipher: XtsCipher) -> bool {
        let resumed = self.volume.gate().reopen(cipher);
        self.parking.thaw();
        resumed
    }

    /// From now on, what meets the closed gate waits for the key, at most this long, instead of being refused. Say so before
    /// the fence.
    ///
    /// # Errors
    /// No thread that could end the waiting: it is refused then.
    pub fn freeze(&self, max: std::time::Duration) -> Result<()> {
        self.parking.freeze(max).map_err(|e| Error::io("start a thread", e))
    }

    /// For a request that the gate has refused: sets it aside if requests are to wait (`bytes` is what it keeps in memory), or
    /// says at once what becomes of it.
    pub fn park(&self, asker: Asker, bytes: usize, job: Job) {
        self.parking.park(asker, bytes, job, self.volume.gate().is_open());
    }

    /// Requests that wait for the key.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.parking.waiting()
    }

    /// Requests so far.
    #[must_use]
    pub fn io_stats(&self) -> IoStats {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        IoStats {
            reads: get(&self.counters.reads),
            read_bytes: get(&self.counters.read_bytes),
            writes: get(&self.counters.writes),
            written_bytes: get(&self.counters.written_bytes),
            discards: get(&self.counters.discards),
            flushes: get(&self.counters.flushes),
            errors: get(&self.counters.errors),
        }
    }

    /// The cache's counters; `None` when it is off.
    #[must_use]
    pub fn cache_stats(&self) -> Option<CacheStats> {
        self.cache.as_ref().map(BlockCache::stats)
    }

    fn count<T>(&self, done: &Result<T>, requests: &AtomicU64, bytes: &AtomicU64, len: ByteLen) {
        if done.is_ok() {
            requests.fetch_add(1, Ordering::Relaxed);
            if !len.is_zero() {
                bytes.fetch_add(len.get(), Ordering::Relaxed);
            }
        } else {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn too_large(extent: Extent) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("range {extent}: too large"))
}

/// Takes all blocks from the cache, or nothing: what has to be read is read in one go, and no plaintext waits for it.
fn cached(cache: &BlockCache, blocks: Extent, out: &mut [u8]) -> bool {
    let (mut found, mut wanted) = (0, 0);
    for block in blocks.chunks(BLOCK as u64) {
        found += usize::from(cache.read(BlockIndex::of(block.start()), 0, part_mut(out, blocks, block)));
        wanted += 1;
    }
    if 0 < found && found < wanted {
        zeroize::Zeroize::zeroize(out);
    }
    found == wanted
}

/// The bytes of `piece` in the memory of `whole`.
fn part_mut(bytes: &mut [u8], whole: Extent, piece: Extent) -> &mut [u8] {
    let (start, len) = place(whole, piece);
    &mut bytes[start..][..len]
}

fn part(bytes: &[u8], whole: Extent, piece: Extent) -> &[u8] {
    let (start, len) = place(whole, piece);
    &bytes[start..][..len]
}

fn place(whole: Extent, piece: Extent) -> (usize, usize) {
    debug_assert!(whole.contains(piece));
    let start = piece.start().saturating_since(whole.start()).to_usize().expect("within memory");
    (start, piece.len().to_usize().expect("within memory"))
}
