//! One encrypted segment of a store, seen as plaintext: sectors decrypted and encrypted on the way, holes, partial
//! sectors, and the locks on ranges that make both safe.
//!
//! Must never see: the cache, FUSE, vaults, headers. It gets its [`Layout`] and its cipher (behind the [`Gate`]) as values.
//!
//! Invariants:
//! 1. Ciphertext is read or written only under a range lock over whole sectors: a sector torn between two writers, or
//!    between a writer and a reader, would decrypt to garbage.
//! 2. Two writes to parts of one sector never lose either part (read-modify-write under an exclusive lock).
//! 3. The caller's buffer never holds ciphertext of a write: encryption goes into this module's scratch.
//! 4. No sector beyond `Layout::size`, rounded up, is touched.

use std::cell::RefCell;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::range_lock::{RangeGuard, RangeLocks};
use crate::store::BackingStore;
use crate::units::{ByteLen, ByteOffset, Extent, SectorSize};

mod gate;

pub use gate::{Gate, Ticket};

/// Bytes encrypted before the store is asked again, and bytes in one crypto section: the run and its image stay in the
/// second-level cache (half a MiB to 2 MiB on machines of today), which 1 MiB at a time would not.
const RUN: u64 = RUN_LEN as u64;
const RUN_LEN: usize = 128 * 1024;

/// Bytes punched or overwritten with encrypted zeros under one range lock, so that other I/O can pass in between.
const DISCARD_STEP: u64 = 64 * 1024 * 1024;

crate::sync::thread_local! {
    /// Ciphertext on its way to the store. Never plaintext when no crypto section runs.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Where the segment lies and what its bytes mean (ON-DISK section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// First byte of the segment in the store.
    pub offset: ByteOffset,
    /// XTS data unit.
    pub sector_size: SectorSize,
    /// Plaintext bytes, a multiple of 512.
    pub size: ByteLen,
    /// An all-zero ciphertext sector reads as zeros.
    pub zero_holes: bool,
    /// Discards may punch the store.
    pub discards: bool,
}

/// See the module's header.
#[derive(Debug)]
pub struct EncryptedVolume {
    store: Arc<dyn BackingStore>,
    layout: Layout,
    gate: Gate,
    locks: RangeLocks,
}

impl EncryptedVolume {
    /// A volume over a segment that is known to be long enough.
    ///
    /// # Errors
    /// `Damaged` when the segment's end passes 2^63.
    pub fn new(store: Arc<dyn BackingStore>, layout: Layout, gate: Gate) -> Result<Self> {
        let rounded = layout.size.round_up(layout.sector_size.bytes());
        if rounded.and_then(|size| Extent::new(layout.offset, size)).is_none() {
            return Err(Error::new(
                ErrorKind::Damaged,
                format!("size: found {}, allowed an end below 2^63", layout.size),
            ));
        }
        Ok(Self { store, layout, gate, locks: RangeLocks::default() })
    }

    /// The layout.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// The key gate.
    #[must_use]
    pub const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &dyn BackingStore {
        &*self.store
    }

    /// Locks the whole sectors around `extent` for reading.
    ///
    /// # Errors
    /// `InvalidInput` past 2^63.
    pub fn lock_shared(&self, extent: Extent) -> Result<RangeGuard<'_>> {
        Ok(self.locks.shared(self.outer(extent)?))
    }

    /// Locks the whole blocks around `extent` for changing: at least sectors, and whole cache blocks where those are larger.
    /// The gate is asked before, so that nobody who comes after the fence waits for a write that hangs in the store, and
    /// again afterwards: the ticket is of the time when the lock was got.
    ///
    /// # Errors
    /// `InvalidInput` past 2^63, `Revoked`.
    pub fn lock_exclusive(&self, extent: Extent) -> Result<(RangeGuard<'_>, Ticket)> {
        let _open = self.gate.enter()?;
        let guard = self.locks.exclusive(self.outer(extent)?);
        Ok((guard, self.gate.enter()?))
    }

    // Locks are on 4096 bytes also when sectors are smaller, so that a cache block is always covered.
    fn outer(&self, extent: Extent) -> Result<Extent> {
        extent
            .outer(4096)
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, format!("range {extent}: too large")))
    }

    fn unit(&self) -> u64 {
        self.layout.sector_size.bytes()
    }

    /// Where a plaintext offset lies in the store. Cannot overflow: `new` checked the end.
    fn place(&self, offset: ByteOffset) -> ByteOffset {
        ByteOffset::new(self.layout.offset.get() + offset.get()).expect("the segment's end is below 2^63")
    }

    /// Reads whole sectors into `buf` (its length a multiple of the sector) and decrypts them there: first all of the I/O,
    /// then all of the crypto, so that no plaintext waits in `buf` for a store that hangs.
    ///
    /// # Errors
    /// `Io` from the store, `Revoked` from the gate; `buf` then holds no plaintext of this read.
    ///
    /// # Panics
    /// When `guard` does not cover the range or it is not aligned: a bug.
    pub fn read_sectors(
        &self,
        ticket: Ticket,
        guard: &RangeGuard<'_>,
        at: ByteOffset,
        buf: &mut [u8],
    ) -> Result<()> {
        let extent = Extent::new(at, ByteLen::of(buf)).expect("within the disk");
        assert!(guard.covers(extent) && extent.inner(self.unit()) == extent, "read without the range lock");
        let read = self.store.read_at(self.place(at), buf).and_then(|()| self.decrypt(ticket, extent, buf));
        if read.is_err() {
            zeroize::Zeroize::zeroize(buf);
        }
        read
    }

    /// A run at a time, so that a fence need not wait for more.
    fn decrypt(&self, ticket: Ticket, extent: Extent, mut rest: &mut [u8]) -> Result<()> {
        for run in extent.chunks(RUN) {
            let (now, later) = rest.split_at_mut(run.len().to_usize().expect("at most RUN"));
            rest = later;
            self.gate.with_cipher(ticket, |cipher| self.decrypt_run(cipher, run.start(), now))?;
        }
        Ok(())
    }

    /// Decrypts in place, leaving holes as the zeros they are.
    fn decrypt_run(&self, cipher: &crate::xts::XtsCipher, at: ByteOffset, run: &mut [u8]) {
        let size = self.layout.sector_size;
        let first = size.sector_of(at);
        if !self.layout.zero_holes {
            return cipher.decrypt(first, run);
        }
        let mut sector = first.get();
        // Runs of sectors that are alike, so that the engine sees long runs.
        for same in run.same_sectors_mut(size.len()) {
            let count = (same.bytes.len() / size.len()) as u64;
            if !same.hole {
                cipher.decrypt(crate::units::Sector::new(sector).expect("within the disk"), same.bytes);
            }
            sector += count;
        }
    }

    /// Writes any bytes of the disk: whole sectors are encrypted into the scratch, partial ones at the two ends are read,
    /// changed and written back.
    ///
    /// # Errors
    /// `NoSpace`, `Io`, `Revoked` (also when the gate closed during the last of the I/O: then all was written, but nobody
    /// may say so). What was written before the failure is unknown; drop it from any cache.
    ///
    /// # Panics
    /// When `guard` does not own the range: a bug.
    pub fn write(&self, ticket: Ticket, guard: &RangeGuard<'_>, at: ByteOffset, data: &[u8]) -> Result<()> {
        let extent = Extent::new(at, ByteLen::of(data)).expect("within the disk");
        assert!(guard.owns(extent), "write without the range lock");
        let mut rest = data;
        for run in extent.chunks(RUN) {
            let (now, later) = rest.split_at(run.len().to_usize().expect("at most RUN"));
            rest = later;
            self.write_run(ticket, run, now)?;
        }
        self.gate.check(ticket)
    }

    fn write_run(&self, ticket: Ticket, run: Extent, data: &[u8]) -> Result<()> {
        let outer = run.outer(self.unit()).expect("within the disk");
        let len = outer.len().to_usize().expect("at most RUN and two sectors");
        SCRATCH.with(|scratch| {
            let mut scratch = scratch.borrow_mut();
            if scratch.len() < len {
                scratch.resize(len, 0);
            }
            let scratch = &mut scratch[..len];
            if outer == run {
                self.gate.with_cipher(ticket, |cipher| {
                    cipher.encrypt_to(self.layout.sector_size.sector_of(run.start()), data, scratch);
                })?;
            } else {
                self.merge_edges(ticket, run, outer, data, scratch)?;
            }
            self.store.write_at(self.place(outer.start()), scratch)
        })
    }

    /// Read-modify-write of a run with a partial sector at one or both ends.
    fn merge_edges(
        &self,
        ticket: Ticket,
        run: Extent,
        outer: Extent,
        data: &[u8],
        scratch: &mut [u8],
    ) -> Result<()> {
        let unit = self.layout.sector_size.len();
        let last = scratch.len() - unit;
        // Both ends are read even when only one is partial: a run this short is rare and one sector more is cheap.
        self.store.read_at(self.place(outer.start()), &mut scratch[..unit])?;
        if last > 0 {
            let tail = ByteOffset::new(outer.end().get() - self.unit()).expect("within the disk");
            self.store.read_at(self.place(tail), &mut scratch[last..])?;
        }
        let from = run.start().saturating_since(outer.start()).to_usize().expect("less than a sector");
        self.gate.with_cipher(ticket, |cipher| {
            let first = self.layout.sector_size.sector_of(outer.start());
            self.decrypt_run(cipher, outer.start(), &mut scratch[..unit]);
            if last > 0 {
                let tail = ByteOffset::new(outer.end().get() - self.unit()).expect("within the disk");
                self.decrypt_run(cipher, tail, &mut scratch[last..]);
            }
            scratch[from..][..data.len()].copy_from_slice(data);
            cipher.encrypt(first, scratch);
        })
    }

    /// Makes `extent` read as zeros. With `free`, whole sectors are given back to the store where the container allows it
    /// (discards on, holes read as zeros) and the store can; everything else becomes encrypted zeros.
    ///
    /// # Errors
    /// As [`EncryptedVolume::write`].
    pub fn zero(
        &self,
        extent: Extent,
        free: bool,
        mut each: impl FnMut(&RangeGuard<'_>, Extent),
    ) -> Result<()> {
        for step in extent.chunks(DISCARD_STEP) {
            let (guard, ticket) = self.lock_exclusive(step)?;
            // Before the change: whoever looks must not find the old bytes once it has begun.
            each(&guard, step);
            let whole = step.inner(self.unit());
            if !(free && self.layout.discards && self.layout.zero_holes) || whole.is_empty() {
                self.write_zeros(ticket, &guard, step)?;
                continue;
            }
            match self
                .store
                .punch(Extent::new(self.place(whole.start()), whole.len()).expect("within the segment"))
            {
                Ok(()) => {
                    for edge in [(step.start(), whole.start()), (whole.end(), step.end())] {
                        let edge =
                            Extent::new(edge.0, edge.1.saturating_since(edge.0)).expect("within the disk");
                        self.write_zeros(ticket, &guard, edge)?;
                    }
                    self.gate.check(ticket)?;
                }
                Err(e) if e.kind() == ErrorKind::Unsupported => self.write_zeros(ticket, &guard, step)?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_zeros(&self, ticket: Ticket, guard: &RangeGuard<'_>, extent: Extent) -> Result<()> {
        static ZEROS: [u8; RUN_LEN] = [0; RUN_LEN];
        for run in extent.chunks(RUN) {
            let len = run.len().to_usize().expect("at most RUN");
            self.write(ticket, guard, run.start(), &ZEROS[..len])?;
        }
        Ok(())
    }

    /// Replaces every hole by encrypted zeros, so that the segment means the same to dm-crypt (`seal`). The caller syncs
    /// and commits the header. `progress` gets the bytes done.
    ///
    /// # Errors
    /// As [`EncryptedVolume::write`]; run it again to go on.
    pub fn fill_holes(&self, mut progress: impl FnMut(ByteLen)) -> Result<()> {
        let end = self.layout.size.round_up(self.unit()).expect("checked by new");
        let whole = Extent::new(ByteOffset::ZERO, end).expect("checked by new");
        let mut buf = Zeroizing::new(vec![0; RUN_LEN]);
        for run in whole.chunks(RUN) {
            let (guard, ticket) = self.lock_exclusive(run)?;
            let now = &mut buf[..run.len().to_usize().expect("at most RUN")];
            self.store.read_at(self.place(run.start()), now)?;
            let mut at = run.start();
            for same in now.same_sectors_mut(self.layout.sector_size.len()) {
                let extent = Extent::new(at, ByteLen::of(same.bytes)).expect("within the disk");
                if same.hole {
                    self.write_zeros(ticket, &guard, extent)?;
                }
                at = extent.end();
            }
            progress(ByteLen::new(run.end().get()).expect("within the disk"));
        }
        Ok(())
    }
}

/// A run of sectors that are all holes, or all data.
struct SameSectors<'a> {
    hole: bool,
    bytes: &'a mut [u8],
}

trait SameSectorsMut {
    fn same_sectors_mut(&mut self, unit: usize) -> impl Iterator<Item = SameSectors<'_>>;
}

impl SameSectorsMut for [u8] {
    fn same_sectors_mut(&mut self, unit: usize) -> impl Iterator<Item = SameSectors<'_>> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let hole = is_zero(rest.get(..unit)?);
            let sectors = rest.chunks_exact(unit).take_while(|s| is_zero(s) == hole).count();
            let (bytes, later) = std::mem::take(&mut rest).split_at_mut(sectors * unit);
            rest = later;
            Some(SameSectors { hole, bytes })
        })
    }
}

/// Ciphertext almost never starts with sixteen zero bytes, so the long look is rare.
fn is_zero(sector: &[u8]) -> bool {
    sector[..16] == [0; 16] && sector.iter().all(|b| *b == 0)
}
