//! Where the ciphertext lives. One small trait is the whole seam to the backing file; decorators of the same trait
//! latch failures ([`LatchedStore`]) and inject them ([`FaultyStore`]).
//!
//! Must never see: keys, plaintext, containers, FUSE. Positions are bytes from the start of the store.
//!
//! Invariants of every implementation (tests/store_contract.rs runs one suite over all):
//! 1. Calls from several threads are safe; overlapping writes are the caller's to order (`range_lock`).
//! 2. `read_at` and `write_at` do everything or fail: no short counts leave this module.
//! 3. What `sync` returned `Ok` for is durable.
//! 4. After `punch`, the bytes read as zeros.

use crate::error::Result;
use crate::units::{ByteLen, ByteOffset, Extent};

mod device;
mod faulty;
mod file;
mod latched;
mod lock;
mod memory;
mod signature;

#[doc(hidden)]
pub use faulty::{Fault, FaultPlan, FaultyStore, Op, Stop};
pub use file::{Access, FileStore, StoreId, sync_parent_dir};
pub use latched::LatchedStore;
pub use lock::HeaderLock;
pub use memory::MemoryStore;

/// A flat run of bytes that can be read, written, synced and punched.
#[expect(clippy::len_without_is_empty, reason = "nobody asks whether a store is empty")]
pub trait BackingStore: Send + Sync + std::fmt::Debug {
    /// The length now.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::error::ErrorKind::Io).
    fn len(&self) -> Result<ByteLen>;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `Io`; a read that would pass the end is `Io` too ("unexpected end").
    fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()>;

    /// Writes all of `data` at `offset`. A file grows as needed, a device does not.
    ///
    /// # Errors
    /// `NoSpace`, `Io`, `ReadOnly`.
    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()>;

    /// Makes every earlier write durable (fdatasync).
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    fn sync(&self) -> Result<()>;

    /// Sets the length; new bytes read as zeros.
    ///
    /// # Errors
    /// `Unsupported` on a device, `NoSpace`, `Io`.
    fn set_len(&self, len: ByteLen) -> Result<()>;

    /// Frees the space of `extent` without changing the length; it reads as zeros afterwards.
    ///
    /// # Errors
    /// `Unsupported` where the store cannot (the caller then writes), `Io`.
    fn punch(&self, extent: Extent) -> Result<()>;

    /// The first byte at or after `from` that may hold data; `None` when only a hole follows.
    ///
    /// # Errors
    /// `Io`.
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>>;

    /// The first byte at or after `from` that is in a hole (the end of the store counts as one).
    ///
    /// # Errors
    /// `Io`.
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset>;

    /// Bytes of storage in use, for `st_blocks`. Not part of the contract's precision: an estimate is allowed.
    ///
    /// # Errors
    /// `Io`.
    fn allocated(&self) -> Result<ByteLen>;
}

/// Shared ownership is a store too.
impl<S: BackingStore + ?Sized> BackingStore for std::sync::Arc<S> {
    fn len(&self) -> Result<ByteLen> {
        (**self).len()
    }
    fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()> {
        (**self).read_at(offset, buf)
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        (**self).write_at(offset, data)
    }
    fn sync(&self) -> Result<()> {
        (**self).sync()
    }
    fn set_len(&self, len: ByteLen) -> Result<()> {
        (**self).set_len(len)
    }
    fn punch(&self, extent: Extent) -> Result<()> {
        (**self).punch(extent)
    }
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        (**self).seek_data(from)
    }
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        (**self).seek_hole(from)
    }
    fn allocated(&self) -> Result<ByteLen> {
        (**self).allocated()
    }
}
