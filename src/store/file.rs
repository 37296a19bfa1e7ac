//! A regular file or block device as the store. (stub: completed by its owner)

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::BackingStore;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::units::{ByteLen, ByteOffset, Extent};

/// Whether the store may be changed; decides the lock that is taken (flock EX or SH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Shared lock; nothing is ever written.
    ReadOnly,
    /// Exclusive lock: one writer.
    ReadWrite,
}

/// Which file this is, whatever its path: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
}

/// A backing file, locked for as long as this lives.
#[derive(Debug)]
pub struct FileStore {
    file: File,
    path: PathBuf,
}

impl FileStore {
    /// Opens and locks.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `Busy` (locked by another process).
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let file =
            File::options().read(true).write(access == Access::ReadWrite).open(path).io_at("open", path)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Creates a new file (O_EXCL, mode 0600) and locks it.
    ///
    /// # Errors
    /// `Exists`, `PermissionDenied`, `NoSpace`.
    pub fn create_new(path: &Path) -> Result<Self> {
        let file =
            File::options().read(true).write(true).create_new(true).open(path).io_at("create", path)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl BackingStore for FileStore {
    fn len(&self) -> Result<ByteLen> {
        let len = self.file.metadata().io_at("stat", &self.path)?.len();
        ByteLen::new(len).ok_or_else(|| Error::new(ErrorKind::Unsupported, "too long").at(&self.path))
    }
    fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, offset.get()).io_at("read", &self.path)
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.file.write_all_at(data, offset.get()).io_at("write", &self.path)
    }
    fn sync(&self) -> Result<()> {
        self.file.sync_data().io_at("sync", &self.path)
    }
    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.file.set_len(len.get()).io_at("set the length of", &self.path)
    }
    fn punch(&self, _extent: Extent) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "punch"))
    }
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        Ok((from.get() < self.len()?.get()).then_some(from))
    }
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        let end = self.len()?.get().max(from.get());
        Ok(ByteOffset::new(end).expect("bounded by len"))
    }
    fn allocated(&self) -> Result<ByteLen> {
        self.len()
    }
}
