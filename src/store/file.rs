//! A regular file or a block device as the store.
//!
//! Must never see: what the bytes mean (the one exception, [`FileStore::find_signature`], only recognises formats that
//! must not be overwritten by accident).
//!
//! Invariants:
//! 1. The lock is taken before the first read and kept for life: exclusive for [`Access::ReadWrite`], shared for
//!    [`Access::ReadOnly`] (RULINGS 10, ON-DISK section 7). It is never waited for.
//! 2. A read-only store changes nothing, whatever it is asked.
//! 3. Nobody else writes below us: a file that backs a loop device and a device that is mounted are refused.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::unistd::{Whence, linkat, lseek};

use super::{BackingStore, device, lock, signature};
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

impl StoreId {
    /// Of something that was looked at with stat(2).
    pub(super) fn of(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}

/// The two kinds of file that can hold a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Regular,
    Block {
        /// Discards must be whole blocks of this many bytes.
        logical_block: u64,
        /// The kernel can zero it without writing.
        zeroes: bool,
    },
}

/// A backing file, locked for as long as this lives.
#[derive(Debug)]
pub struct FileStore {
    file: File,
    path: PathBuf,
    access: Access,
    kind: Kind,
    id: StoreId,
    /// Taken with the header lock: an OFD lock does not keep two threads of one open file apart.
    header_turn: Mutex<()>,
    /// Every write is durable when it returns.
    ranged: bool,
}

impl FileStore {
    /// Opens and locks an existing regular file or block device.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`; `InvalidInput` for a folder, pipe, socket or character device; `Busy` when
    /// another process holds the lock (it is named where it can be found), when a device is mounted or when the file is
    /// the backing file of a loop device (both for read-write only).
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        // Looked at before it is opened: opening a pipe would block, opening some character devices acts.
        let meta = std::fs::metadata(path).io_at("open", path)?;
        check_type(&meta, path)?;
        let file = open_file(path, &meta, access)
            .map_err(|e| device::explain_busy(e, &meta, access == Access::ReadWrite).at(path))?;
        let store = Self::adopt(file, path, access)?;
        lock::take(&store.file, path, access, store.is_block_device())?;
        if access == Access::ReadWrite
            && let Some(name) = store.backs_loop_device()?
        {
            // dm-crypt keeps no lock once it is active, so the lock alone does not show that somebody else writes.
            return Err(Error::new(ErrorKind::Busy, format!("is the backing file of {name}"))
                .at(path)
                .hint(format!("detach it with losetup -d {name} (or cryptsetup close what is open on it)")));
        }
        Ok(store)
    }

    /// Opens for reading without a lock, beside a holder that is known: for a header, whose two checksummed copies make that
    /// safe, never for data.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`.
    pub fn peek(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).io_at("open", path)?;
        check_type(&meta, path)?;
        let file = open_file(path, &meta, Access::ReadOnly).io_at("open", path)?;
        Self::adopt(file, path, Access::ReadOnly)
    }

    /// Creates a new file (O_EXCL, mode 0600) and locks it. The caller makes its name durable with
    /// [`sync_parent_dir`] once the content is.
    ///
    /// # Errors
    /// `Exists`, `PermissionDenied`, `NoSpace`, `NotFound` (no such folder), `ReadOnly`.
    pub fn create_new(path: &Path) -> Result<Self> {
        let mut options = File::options();
        let file =
            options.read(true).write(true).create_new(true).mode(0o600).open(path).io_at("create", path)?;
        let store = Self::adopt(file, path, Access::ReadWrite)?;
        lock::take(&store.file, path, Access::ReadWrite, false)
            // The empty file is ours and of no use to anybody: a second attempt must not find it.
            .inspect_err(|_| drop(std::fs::remove_file(path)))?;
        Ok(store)
    }

    /// Creates a file without a name (O_TMPFILE) in the folder of `path`, and locks it: the kernel takes it away again
    /// when this process ends, however it ends, unless [`FileStore::give_name`] came first.
    ///
    /// # Errors
    /// `Unsupported` where the file system has no such files; otherwise as [`FileStore::create_new`].
    pub fn create_unnamed(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE)
            .open(folder_of(path))
            .io_at("create", path)?;
        let store = Self::adopt(file, path, Access::ReadWrite)?;
        lock::take(&store.file, path, Access::ReadWrite, false)?;
        Ok(store)
    }

    /// Gives a file of [`FileStore::create_unnamed`] its name, in one step. The caller makes it durable with
    /// [`sync_parent_dir`].
    ///
    /// # Errors
    /// `Exists`; `PermissionDenied`, `NoSpace`, `Io`.
    pub fn give_name(&self, path: &Path) -> Result<()> {
        linkat(AT_FDCWD, &lock::proc_path(&self.file), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)
            .io_at("name", path)
    }

    fn adopt(file: File, path: &Path, access: Access) -> Result<Self> {
        let meta = file.metadata().io_at("stat", path)?;
        check_type(&meta, path)?;
        let kind = if meta.file_type().is_block_device() {
            let logical_block = device::logical_block_size(&file).io_at("ask the block size of", path)?;
            Kind::Block { logical_block, zeroes: device::can_write_zeroes(meta.rdev()) }
        } else {
            Kind::Regular
        };
        let id = StoreId::of(&meta);
        Ok(Self { file, path: path.to_owned(), access, kind, id, header_turn: Mutex::new(()), ranged: false })
    }

    /// The same file opened once more for writing, without a lock of its own: what a header commit of a read-only store
    /// writes through. Only [`FileStore::lock_header`] hands it out.
    pub(super) fn reopen_for_header(&self, ranged: bool) -> Result<Self> {
        let name = lock::proc_path(&self.file);
        let meta = self.file.metadata().io_at("stat", &self.path)?;
        let file = if ranged {
            File::options().read(true).write(true).custom_flags(libc::O_DSYNC).open(&name)
        } else {
            open_file(&name, &meta, Access::ReadWrite)
        };
        let file = file.map_err(|e| device::explain_busy(e, &meta, true).at(&self.path))?;
        Ok(Self { ranged, ..Self::adopt(file, &self.path, Access::ReadWrite)? })
    }

    /// Takes the exclusive lock on bytes 0..32768 that a header commit needs (RULINGS 10) and gives it back when the
    /// guard is dropped. Write the header through [`HeaderLock::store`](lock::HeaderLock::store): on a read-only store
    /// it is a second, writable handle.
    ///
    /// # Errors
    /// `Busy` when another process (or another thread) is committing; `PermissionDenied` or `ReadOnly` when the file
    /// cannot be opened for writing.
    pub fn lock_header(&self) -> Result<lock::HeaderLock<'_>> {
        lock::HeaderLock::take(self, &self.header_turn, false)
    }

    /// The same for a file whose data somebody is writing meanwhile: each write of the header is durable when it returns
    /// (O_DSYNC), and a sync of the handle does nothing. A sync of the file would wait for all the data that is in the page
    /// cache, six times a rewrap, and requests would wait behind it.
    ///
    /// # Errors
    /// As [`FileStore::lock_header`].
    pub fn lock_header_in_use(&self) -> Result<lock::HeaderLock<'_>> {
        lock::HeaderLock::take(self, &self.header_turn, true)
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path by which it can be opened now; `None` when it has no name any more.
    #[must_use]
    pub fn path_now(&self) -> Option<PathBuf> {
        let path = std::fs::read_link(lock::proc_path(&self.file)).ok()?;
        let meta = std::fs::metadata(&path).ok()?;
        (StoreId::of(&meta) == self.id).then_some(path)
    }

    /// Which file this is, whatever its path.
    #[must_use]
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// How it was opened.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// True for a block device: its length is fixed and holes cannot be told from data.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        matches!(self.kind, Kind::Block { .. })
    }

    /// The loop device (`/dev/loop3`) whose backing file this is, if any.
    ///
    /// # Errors
    /// `Io` when `/sys/block` cannot be listed.
    pub fn backs_loop_device(&self) -> Result<Option<String>> {
        device::loop_over(self.id)
    }

    /// What is already here, as a noun phrase ("an xfs file system"), so that `create` can refuse to overwrite it
    /// (RULINGS 11). `None` proves nothing: only well-known formats are recognised.
    ///
    /// # Errors
    /// `Io`.
    pub fn find_signature(&self) -> Result<Option<String>> {
        signature::find(self)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn failed(&self, what: impl Into<String>, e: io::Error) -> Error {
        Error::io(what, e).at(&self.path)
    }

    fn check_writable(&self, what: &str) -> Result<()> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => {
                Err(Error::new(ErrorKind::ReadOnly, format!("{what}: it was opened read-only"))
                    .at(&self.path))
            }
        }
    }

    fn fallocate(&self, mode: FallocateFlags, extent: Extent) -> io::Result<()> {
        let (start, len) = (signed(extent.start().get()), signed(extent.len().get()));
        loop {
            match fallocate(&self.file, mode | FallocateFlags::FALLOC_FL_KEEP_SIZE, start, len) {
                Err(nix::Error::EINTR) => {}
                done => return done.map_err(io::Error::from),
            }
        }
    }

    /// A device frees whole logical blocks only; what is left at the two ends is written.
    fn punch_device(&self, extent: Extent, logical_block: u64, zeroes: bool) -> Result<()> {
        let extent = extent.clamp_to(self.len()?);
        let inner = extent.inner(logical_block);
        if inner.is_empty() {
            return self.write_zeros(extent.start(), extent.end());
        }
        // Asked beforehand: where the kernel cannot, fallocate says EOPNOTSUPP only after it has dropped the pages of the
        // range, unwritten data included (seen on 6.18). A refusal must leave the device as it was.
        if !zeroes {
            let message = format!("punch {extent}: the device has no WRITE ZEROES");
            return Err(Error::new(ErrorKind::Unsupported, message).at(&self.path));
        }
        self.free_or_zero(inner).map_err(|e| self.failed(format!("punch {inner}"), e))?;
        self.write_zeros(extent.start(), inner.start())?;
        self.write_zeros(inner.end(), extent.end())?;
        self.check_zeroed(inner, logical_block)
    }

    /// A hole in a device is WRITE ZEROES that may unmap. Some devices refuse the command only when they get it; the
    /// content is lost by then, so the kernel is told to finish the job by writing.
    fn free_or_zero(&self, blocks: Extent) -> io::Result<()> {
        match self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, blocks) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, blocks)
            }
            done => done,
        }
    }

    fn write_zeros(&self, from: ByteOffset, to: ByteOffset) -> Result<()> {
        let count = to.saturating_since(from).to_usize().expect("less than two logical blocks");
        if count == 0 { Ok(()) } else { self.write_at(from, &vec![0; count]) }
    }

    /// A device that lies about WRITE ZEROES would hand old ciphertext out as a hole. Reading everything back would cost
    /// as much as writing it; the first and the last block tell a device that does nothing.
    fn check_zeroed(&self, punched: Extent, logical_block: u64) -> Result<()> {
        let mut block = vec![0; usize::try_from(logical_block).expect("at most a few pages")];
        for at in [punched.start().get(), punched.end().get() - logical_block] {
            let at = ByteOffset::new(at).expect("inside an extent");
            self.read_at(at, &mut block)?;
            if block.iter().any(|&b| b != 0) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "punch {punched}: the device reported success, but the block at {at} is not zero"
                    ),
                )
                .at(&self.path));
            }
        }
        Ok(())
    }
}

impl BackingStore for FileStore {
    fn len(&self) -> Result<ByteLen> {
        let len = match self.kind {
            Kind::Regular => self.file.metadata().io_at("stat", &self.path)?.len(),
            // stat says 0 for a device. The position that lseek moves is used by nobody.
            Kind::Block { .. } => {
                u64::try_from(lseek(&self.file, 0, Whence::SeekEnd).io_at("ask the length of", &self.path)?)
                    .expect("lseek reports errors apart")
            }
        };
        ByteLen::new(len).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("is {len} bytes long, allowed are 0..=2^63-1"))
                .at(&self.path)
        })
    }

    fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, offset.get()).map_err(|e| {
            let what = format!("read {} bytes at {offset}", buf.len());
            if e.kind() == io::ErrorKind::UnexpectedEof {
                return Error::new(ErrorKind::Io, format!("{what}: unexpected end")).at(&self.path);
            }
            self.failed(what, e)
        })
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.check_writable("write")?;
        self.file
            .write_all_at(data, offset.get())
            .map_err(|e| self.failed(format!("write {} bytes at {offset}", data.len()), e))
    }

    fn sync(&self) -> Result<()> {
        if self.ranged {
            return Ok(());
        }
        // fdatasync also makes a changed length durable (fdatasync(2)).
        self.file.sync_data().map_err(|e| self.failed("sync", e))
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.check_writable("set the length")?;
        if self.is_block_device() {
            return Err(Error::new(ErrorKind::Unsupported, "a block device keeps its length").at(&self.path));
        }
        self.file.set_len(len.get()).map_err(|e| self.failed(format!("set the length to {len}"), e))
    }

    fn punch(&self, extent: Extent) -> Result<()> {
        self.check_writable("punch")?;
        if extent.is_empty() {
            return Ok(());
        }
        match self.kind {
            Kind::Regular => self
                .fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, extent)
                .map_err(|e| self.failed(format!("punch {extent}"), e)),
            Kind::Block { logical_block, zeroes } => self.punch_device(extent, logical_block, zeroes),
        }
    }

    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        if self.is_block_device() {
            return Ok((from.get() < self.len()?.get()).then_some(from));
        }
        match lseek(&self.file, signed(from.get()), Whence::SeekData) {
            Ok(at) => Ok(Some(position(at))),
            Err(nix::Error::ENXIO) => Ok(None),
            Err(e) => Err(self.failed(format!("seek data from {from}"), e.into())),
        }
    }

    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        if self.is_block_device() {
            let end = self.len()?.get().max(from.get());
            return Ok(ByteOffset::new(end).expect("the larger of two that are in range"));
        }
        match lseek(&self.file, signed(from.get()), Whence::SeekHole) {
            Ok(at) => Ok(position(at)),
            // At or past the end: everything from here on is the hole behind the store.
            Err(nix::Error::ENXIO) => Ok(from),
            Err(e) => Err(self.failed(format!("seek a hole from {from}"), e.into())),
        }
    }

    fn allocated(&self) -> Result<ByteLen> {
        if self.is_block_device() {
            return self.len();
        }
        // st_blocks counts units of 512 bytes whatever the file system (stat(2)).
        let blocks = self.file.metadata().io_at("stat", &self.path)?.blocks();
        blocks.checked_mul(512).and_then(ByteLen::new).ok_or_else(|| {
            Error::new(ErrorKind::Io, format!("st_blocks is {blocks}, more than a file can have"))
                .at(&self.path)
        })
    }
}

/// Makes the name of a file that was just created or renamed durable.
///
/// # Errors
/// `Io`, `PermissionDenied` (the folder cannot be read).
pub fn sync_parent_dir(path: &Path) -> Result<()> {
    let dir = folder_of(path);
    match File::open(dir).io_at("open folder", dir)?.sync_all() {
        // Some network and FUSE file systems have no fsync for folders: there is nothing more to be done.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        done => done.io_at("sync folder", dir),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn check_type(meta: &Metadata, path: &Path) -> Result<()> {
    let kind = meta.file_type();
    let found = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () => "of an unknown type",
    };
    Err(Error::new(ErrorKind::InvalidInput, format!("is {found}, not a regular file or a block device"))
        .at(path)
        .hint("name the container itself"))
}

/// O_EXCL without O_CREAT claims a block device: the kernel then refuses one that is mounted or claimed by device
/// mapper, and refuses to mount ours. (std sets O_CLOEXEC.)
fn open_file(path: &Path, meta: &Metadata, access: Access) -> io::Result<File> {
    let write = access == Access::ReadWrite;
    let mut options = File::options();
    options.read(true).write(write);
    if write && meta.file_type().is_block_device() {
        options.custom_flags(libc::O_EXCL);
    }
    options.open(path)
}

/// For the kernel, whose offsets are signed.
fn signed(n: u64) -> i64 {
    i64::try_from(n).expect("units are at most i64::MAX")
}

fn position(at: i64) -> ByteOffset {
    u64::try_from(at).ok().and_then(ByteOffset::new).expect("lseek reports errors apart")
}
