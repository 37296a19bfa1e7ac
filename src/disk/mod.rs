//! A plaintext disk: bytes to read, write, discard and flush, over the cache and the encrypted volume; and the fence
//! that takes the key away.
//!
//! Must never see: FUSE, vaults, headers. Positions are bytes from the start of the disk.
//!
//! Invariants:
//! 1. Reads past the end are short, writes past it are `NoSpace`, and neither wraps.
//! 2. After [`PlainDisk::fence`] returned, no I/O is served and no plaintext or key of this disk is left in its memory.
//! 3. A failed write drops what it touched from the cache: nobody knows what the store holds then.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::{BLOCK, BlockCache, BlockIndex, CacheStats};
use crate::error::{Error, ErrorKind, Result};
use crate::range_lock::RangeGuard;
use crate::units::{ByteLen, ByteOffset, Extent};
use crate::volume::{EncryptedVolume, Ticket};
use crate::xts::XtsCipher;

mod buffers;
mod image;

pub use image::Image;

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

    /// Reads up to `len` bytes and shows them to `reply` in memory that the fence wipes: shorter at the end of the disk,
    /// empty past it.
    ///
    /// # Errors
    /// `Io`, `Revoked`.
    pub fn read<R>(&self, offset: ByteOffset, len: ByteLen, reply: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let extent = Extent::new(offset, len)
            .unwrap_or(Extent::new(offset, ByteLen::ZERO).expect("an offset alone fits"));
        let extent = extent.clamp_to(self.len());
        let len = extent.len().to_usize().ok_or_else(|| too_large(extent))?;
        let done = self.buffers.with(len, |buf| {
            self.fill(extent, buf)?;
            Ok(reply(buf))
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

    fn fill(&self, extent: Extent, buf: &mut [u8]) -> Result<()> {
        let ticket = self.volume.gate().enter()?;
        if extent.is_empty() {
            return Ok(());
        }
        let Some(cache) = self.cache.as_ref().filter(|_| buf.len() < BYPASS) else {
            let guard = self.volume.lock_shared(extent)?;
            return self.fill_past(ticket, &guard, extent, buf);
        };
        // The common case, a request within one block, takes no range lock when the block is here.
        if extent.outer(BLOCK as u64).is_some_and(|outer| outer.len().get() == BLOCK as u64) {
            if read_cached(cache, extent, buf) {
                return self.volume.gate().check(ticket);
            }
            let guard = self.volume.lock_shared(extent)?;
            return self.load(cache, ticket, &guard, extent, buf);
        }
        let guard = self.volume.lock_shared(extent)?;
        self.fill_through(cache, ticket, &guard, extent, buf)
    }

    /// Block by block from the cache; what is missing is read in runs as long as possible.
    fn fill_through(
        &self,
        cache: &BlockCache,
        ticket: Ticket,
        guard: &RangeGuard<'_>,
        extent: Extent,
        buf: &mut [u8],
    ) -> Result<()> {
        let mut missing: Option<Extent> = None;
        for piece in extent.chunks(BLOCK as u64) {
            let out = part_mut(buf, extent, piece);
            if read_cached(cache, piece, out) {
                if let Some(run) = missing.take() {
                    self.load(cache, ticket, guard, run, part_mut(buf, extent, run))?;
                }
            } else {
                let start = missing.map_or(piece.start(), Extent::start);
                let len = piece.end().saturating_since(start);
                missing = Extent::new(start, len);
            }
        }
        match missing {
            Some(run) => self.load(cache, ticket, guard, run, part_mut(buf, extent, run)),
            None => self.volume.gate().check(ticket),
        }
    }

    /// Reads a run from the volume and puts its whole blocks into the cache, inside the gate.
    fn load(
        &self,
        cache: &BlockCache,
        ticket: Ticket,
        guard: &RangeGuard<'_>,
        run: Extent,
        out: &mut [u8],
    ) -> Result<()> {
        self.fill_past(ticket, guard, run, out)?;
        let whole = run.inner(BLOCK as u64);
        // Inside a crypto section, so that the fence, which waits for those and then wipes, cannot miss an insert.
        self.volume.gate().with_cipher(ticket, |_| {
            for block in whole.chunks(BLOCK as u64) {
                cache.insert(guard, BlockIndex::of(block.start()), part_mut(out, run, block));
            }
        })
    }

    /// From the volume: whole sectors straight into the buffer, partial ones at the two ends through a small secret.
    fn fill_past(
        &self,
        ticket: Ticket,
        guard: &RangeGuard<'_>,
        extent: Extent,
        out: &mut [u8],
    ) -> Result<()> {
        let size = self.volume.layout().sector_size;
        let whole = extent.inner(size.bytes());
        if !whole.is_empty() {
            self.volume.read_sectors(ticket, guard, whole.start(), part_mut(out, extent, whole))?;
        }
        if whole == extent {
            return Ok(());
        }
        let mut sector = zeroize::Zeroizing::new([0; 4096]);
        let sector = &mut sector[..size.len()];
        for piece in extent.chunks(size.bytes()).filter(|p| p.len().get() < size.bytes()) {
            let outer = piece.outer(size.bytes()).ok_or_else(|| too_large(piece))?;
            self.volume.read_sectors(ticket, guard, outer.start(), sector)?;
            part_mut(out, extent, piece).copy_from_slice(part(sector, outer, piece));
        }
        Ok(())
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
        let guard = self.volume.lock_exclusive(extent)?;
        let ticket = self.volume.gate().enter()?;
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

    /// Takes the key away: new I/O is refused at once, crypto that runs is waited for (microseconds), key, schedules,
    /// cache and reply buffers are wiped. Returns false when it was closed already. The store is not synced here: that may
    /// block, and is the caller's to do afterwards.
    pub fn fence(&self) -> bool {
        self.volume.gate().close(|| {
            if let Some(cache) = &self.cache {
                cache.wipe();
            }
            self.buffers.wipe();
        })
    }

    /// Serves again, with a cipher derived anew. Returns false when the gate was open.
    pub fn resume(&self, cipher: XtsCipher) -> bool {
        self.buffers.reopen();
        self.volume.gate().reopen(cipher)
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

/// A piece that lies within one block.
fn read_cached(cache: &BlockCache, piece: Extent, out: &mut [u8]) -> bool {
    let block = BlockIndex::of(piece.start());
    let within = piece.start().saturating_since(block.extent().start());
    cache.read(block, within.to_usize().expect("less than a block"), out)
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
