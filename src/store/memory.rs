//! A store in memory: the reference of the suite, and what benches and model tests run on.

use std::sync::RwLock;

use super::BackingStore;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteLen, ByteOffset, Extent};

/// A growable run of zeros and what was written over them.
#[derive(Debug, Default)]
pub struct MemoryStore {
    bytes: RwLock<Vec<u8>>,
}

impl MemoryStore {
    /// `len` zeros.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self { bytes: RwLock::new(vec![0; len]) }
    }

    /// A copy of everything, to compare images.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.bytes.read().expect("no panic under this lock").clone()
    }
}

impl From<Vec<u8>> for MemoryStore {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes) }
    }
}

fn range(offset: ByteOffset, len: usize) -> Result<std::ops::Range<usize>> {
    usize::try_from(offset.get())
        .ok()
        .and_then(|start| Some(start..start.checked_add(len)?))
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "memory store: offset does not fit in memory"))
}

impl BackingStore for MemoryStore {
    fn len(&self) -> Result<ByteLen> {
        Ok(ByteLen::of(&self.bytes.read().expect("no panic under this lock")))
    }

    fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let bytes = self.bytes.read().expect("no panic under this lock");
        match bytes.get(range(offset, buf.len())?) {
            Some(from) => {
                buf.copy_from_slice(from);
                Ok(())
            }
            None => Err(Error::new(ErrorKind::Io, format!("read at {offset}: unexpected end"))),
        }
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        // As pwrite does: nothing written, nothing grown.
        if data.is_empty() {
            return Ok(());
        }
        let range = range(offset, data.len())?;
        let mut bytes = self.bytes.write().expect("no panic under this lock");
        if bytes.len() < range.end {
            bytes.resize(range.end, 0);
        }
        bytes[range].copy_from_slice(data);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        let len = len.to_usize().ok_or_else(|| Error::new(ErrorKind::NoSpace, "memory store: too long"))?;
        self.bytes.write().expect("no panic under this lock").resize(len, 0);
        Ok(())
    }

    fn punch(&self, extent: Extent) -> Result<()> {
        let mut bytes = self.bytes.write().expect("no panic under this lock");
        let extent = extent.clamp_to(ByteLen::of(&bytes));
        if !extent.is_empty() {
            let len = extent.len().to_usize().unwrap_or(0);
            bytes[range(extent.start(), len)?].fill(0);
        }
        Ok(())
    }

    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        Ok((from.get() < self.len()?.get()).then_some(from))
    }

    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        let end = self.len()?.get().max(from.get());
        Ok(ByteOffset::new(end).expect("a Vec is shorter than 2^63"))
    }

    fn allocated(&self) -> Result<ByteLen> {
        self.len()
    }
}
