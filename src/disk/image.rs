//! What the FUSE adapter serves: the one seam between a presented file and whatever holds its bytes. The product's is
//! [`PlainDisk`]; the bench's ceiling is a bare file (`examples/nullfuse.rs`) behind the same adapter.

use super::{Asker, Job, PlainDisk, Verdict};
use crate::error::Result;
use crate::units::{ByteLen, ByteOffset};

/// A disk image that can be presented as a file. Semantics as documented at [`PlainDisk`].
#[allow(missing_docs)]
pub trait Image: Send + Sync + 'static {
    fn len(&self) -> ByteLen;
    fn is_read_only(&self) -> bool;
    /// Shows `reply` the bytes: shorter at the end, empty past it.
    ///
    /// # Errors
    /// `Io`, `Revoked`; then `reply` was not called.
    fn read(&self, offset: ByteOffset, len: ByteLen, reply: &mut dyn FnMut(&[u8])) -> Result<()>;
    /// # Errors
    /// `NoSpace`, `ReadOnly`, `Io`, `Revoked`.
    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<()>;
    /// # Errors
    /// As `write`.
    fn discard(&self, offset: ByteOffset, len: ByteLen) -> Result<()>;
    /// # Errors
    /// As `write`.
    fn write_zeroes(&self, offset: ByteOffset, len: ByteLen) -> Result<()>;
    /// # Errors
    /// `Io`.
    fn sync(&self) -> Result<()>;
    /// # Errors
    /// `Io`.
    fn flush(&self) -> Result<()>;
    /// # Errors
    /// `Io`, `Revoked`.
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>>;
    /// # Errors
    /// `Io`, `Revoked`.
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset>;
    /// # Errors
    /// `Io`.
    fn allocated(&self) -> Result<ByteLen>;
    /// What becomes of a request that failed with `Revoked`: `job` is told, now or later.
    fn park(&self, _asker: Asker, _bytes: usize, job: Job) {
        job(Verdict::Refuse);
    }
}

impl Image for PlainDisk {
    fn len(&self) -> ByteLen {
        self.len()
    }
    fn is_read_only(&self) -> bool {
        self.is_read_only()
    }
    fn read(&self, offset: ByteOffset, len: ByteLen, reply: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.read(offset, len, reply)
    }
    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.write_at(offset, data)
    }
    fn discard(&self, offset: ByteOffset, len: ByteLen) -> Result<()> {
        self.discard(offset, len)
    }
    fn write_zeroes(&self, offset: ByteOffset, len: ByteLen) -> Result<()> {
        self.write_zeroes(offset, len)
    }
    fn sync(&self) -> Result<()> {
        self.sync()
    }
    fn flush(&self) -> Result<()> {
        self.flush()
    }
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        self.seek_data(from)
    }
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        self.seek_hole(from)
    }
    fn allocated(&self) -> Result<ByteLen> {
        self.allocated()
    }
    fn park(&self, asker: Asker, bytes: usize, job: Job) {
        self.park(asker, bytes, job);
    }
}
