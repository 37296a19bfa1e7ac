//! Failures that must not be forgotten. (stub: completed by its owner)

use super::BackingStore;
use crate::error::Result;
use crate::units::{ByteLen, ByteOffset, Extent};

/// Once a write or sync failed with anything but `NoSpace`, every later `sync` fails (RULINGS 16).
#[derive(Debug)]
pub struct LatchedStore<S> {
    inner: S,
}

impl<S: BackingStore> LatchedStore<S> {
    /// Not latched yet.
    pub fn new(inner: S) -> Self {
        Self { inner }
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
        self.inner.write_at(offset, data)
    }
    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.inner.set_len(len)
    }
    fn punch(&self, extent: Extent) -> Result<()> {
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
