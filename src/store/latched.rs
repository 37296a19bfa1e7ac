//! Failures that must not be forgotten (RULINGS 16).
//!
//! The kernel reports a failed write-back once and then calls the page clean: a second fsync would say yes to data that
//! is gone. So the first failure of a mount is kept, and every later `sync` fails until the store is opened anew.
//!
//! Must never see: more of the store than the trait.
//!
//! Invariants:
//! 1. Once latched, always latched, and no `sync` returns `Ok`.
//! 2. A change that is refused for lack of space, by a read-only store or as malformed does not latch: nothing that was
//!    acknowledged is lost. A sync that fails does, for whatever reason: where space is found out of late (a thin device,
//!    NFS, a quota), pages of acknowledged writes are dropped with it.
//! 3. Reads and writes are still tried.

use std::sync::OnceLock;

use super::BackingStore;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteLen, ByteOffset, Extent};

/// Once a sync failed, or a change with anything but `NoSpace`, `ReadOnly` or `InvalidInput`, every later `sync` fails.
#[derive(Debug)]
pub struct LatchedStore<S> {
    inner: S,
    first_failure: OnceLock<String>,
}

impl<S: BackingStore> LatchedStore<S> {
    /// Not latched yet.
    pub fn new(inner: S) -> Self {
        Self { inner, first_failure: OnceLock::new() }
    }

    /// The store below.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The first failure, in words; `None` while all is well.
    #[must_use]
    pub fn latched(&self) -> Option<String> {
        self.first_failure.get().cloned()
    }

    /// For what goes to the same medium another way.
    ///
    /// # Errors
    /// `Io` once latched, as every `sync`.
    pub fn check(&self) -> Result<()> {
        self.refusal().map_or(Ok(()), Err)
    }

    fn refusal(&self) -> Option<Error> {
        let first = self.first_failure.get()?;
        Some(
            Error::new(ErrorKind::Io, "an earlier write failed; unmount and check the disk")
                .hint("after the unmount, check the backing file system and the kernel log, then mount again")
                .caused_by(first.as_str()),
        )
    }

    /// Of failures of several threads at once, one is first; which one does not matter.
    fn latch(&self, e: &Error) {
        drop(self.first_failure.set(e.chain()));
    }

    fn note<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|e| match e.kind() {
            ErrorKind::NoSpace | ErrorKind::ReadOnly | ErrorKind::InvalidInput => {}
            _ => self.latch(e),
        })
    }

    /// As [`LatchedStore::note`], for calls that a store may refuse by its nature (the caller then does without).
    fn note_unless_unsupported<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(e) if e.kind() == ErrorKind::Unsupported => Err(e),
            other => self.note(other),
        }
    }
}

impl<S: BackingStore> BackingStore for LatchedStore<S> {
    fn len(&self) -> Result<ByteLen> {
        self.inner.len()
    }

    fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.note(self.inner.write_at(offset, data))
    }

    fn sync(&self) -> Result<()> {
        let before = self.refusal();
        // Tried even when latched: what can still be saved is.
        let now = self.inner.sync().inspect_err(|e| self.latch(e));
        match before {
            Some(refusal) => Err(refusal),
            // Looked at once more: a write may have failed on another thread meanwhile.
            None => now.and_then(|()| self.check()),
        }
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.note_unless_unsupported(self.inner.set_len(len))
    }

    fn punch(&self, extent: Extent) -> Result<()> {
        self.note_unless_unsupported(self.inner.punch(extent))
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
