//! FUSE requests to [`Image`] calls, one to one. Errors become errnos by the table of `error`; nothing is decided here
//! but how a file looks.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::disk::Image;
use crate::error::{Error, ErrorKind};
use crate::units::{ByteLen, ByteOffset};

/// Name of the image in a directory mountpoint.
pub(super) const FILE_NAME: &str = "disk.img";

/// The size of a disk changes only through us, so the kernel may believe its attributes for long; a write or discard
/// through the kernel makes it ask again.
const TTL: Duration = Duration::from_secs(3600);

/// Requests that the kernel may have in flight in the background (default 12, far below what two busy queues need).
const MAX_BACKGROUND: u16 = 1024;

/// Whether the mountpoint is a folder that shows `disk.img`, or a regular file that becomes the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A folder.
    Directory,
    /// A regular file.
    File,
}

/// How the image looks to others.
#[derive(Clone, Copy, Debug)]
pub struct Presented {
    /// Folder or file.
    pub layout: Layout,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Largest request in bytes.
    pub max_request: u32,
}

pub(super) struct Adapter<I> {
    image: Arc<I>,
    look: Presented,
    mode: AtomicU32,
    // Nanoseconds since 1970. Kept for this mount only: a container has no room for times, and needs none.
    accessed: AtomicU64,
    modified: AtomicU64,
}

impl<I: Image> Adapter<I> {
    pub(super) fn new(image: Arc<I>, look: Presented) -> Self {
        let mode = if image.is_read_only() { 0o400 } else { 0o600 };
        let now = nanos(SystemTime::now());
        Self {
            image,
            look,
            mode: AtomicU32::new(mode),
            accessed: AtomicU64::new(now),
            modified: AtomicU64::new(now),
        }
    }

    fn file(&self) -> INodeNo {
        match self.look.layout {
            Layout::File => INodeNo::ROOT,
            Layout::Directory => INodeNo(INodeNo::ROOT.0 + 1),
        }
    }

    fn file_attr(&self) -> FileAttr {
        let blocks = self.image.allocated().unwrap_or_else(|_| self.image.len());
        let mode = u16::try_from(self.mode.load(Ordering::Relaxed) & 0o7777).unwrap_or(0o600);
        self.attr(
            self.file(),
            FileType::RegularFile,
            self.image.len().get(),
            blocks.get().div_ceil(512),
            mode,
            1,
        )
    }

    fn attr(&self, ino: INodeNo, kind: FileType, size: u64, blocks: u64, perm: u16, nlink: u32) -> FileAttr {
        let modified = time(self.modified.load(Ordering::Relaxed));
        FileAttr {
            ino,
            size,
            blocks,
            atime: time(self.accessed.load(Ordering::Relaxed)),
            mtime: modified,
            ctime: modified,
            crtime: modified,
            kind,
            perm,
            nlink,
            uid: self.look.uid,
            gid: self.look.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn attr_of(&self, ino: INodeNo) -> Option<FileAttr> {
        if ino == self.file() {
            Some(self.file_attr())
        } else if ino == INodeNo::ROOT {
            Some(self.attr(ino, FileType::Directory, 0, 0, 0o700, 2))
        } else {
            None
        }
    }

    fn touch(&self) {
        self.modified.store(nanos(SystemTime::now()), Ordering::Relaxed);
    }
}

fn nanos(t: SystemTime) -> u64 {
    t.duration_since(UNIX_EPOCH).ok().and_then(|d| u64::try_from(d.as_nanos()).ok()).unwrap_or(0)
}

fn time(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}

fn errno(e: &Error) -> Errno {
    match e.kind() {
        // What a full disk, a read-only one or a refused range says is no news; a failing store is.
        ErrorKind::NoSpace | ErrorKind::ReadOnly | ErrorKind::InvalidInput => log::debug!("{}", e.chain()),
        ErrorKind::Unsupported | ErrorKind::Revoked => log::debug!("{}", e.chain()),
        _ => log::error!("{}", e.chain()),
    }
    Errno::from_i32(e.kind().errno())
}

fn range(offset: u64, len: u64) -> Result<(ByteOffset, ByteLen), Errno> {
    ByteOffset::new(offset).zip(ByteLen::new(len)).ok_or(Errno::EINVAL)
}

impl<I: Image> fuser::Filesystem for Adapter<I> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        if let Err(missing) = config.add_capabilities(wanted) {
            log::info!("this kernel lacks {missing:?}: slower, or without shared mmap");
            let _ = config.add_capabilities(wanted & !missing);
        }
        // Both answer with the nearest value they accept; taking it is all there is to do.
        if let Err(nearest) = config.set_max_write(self.look.max_request) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
            let _ = config.set_max_background(nearest);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && self.look.layout == Layout::Directory && name == FILE_NAME {
            reply.entry(&TTL, &self.file_attr(), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr_of(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if ino != self.file() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        if size.is_some_and(|size| size != self.image.len().get()) {
            log::warn!("{FILE_NAME}: a disk keeps its size; truncating or growing it by its file is refused");
            return reply.error(Errno::EPERM);
        }
        if let Some(mode) = mode {
            self.mode.store(mode & 0o777, Ordering::Relaxed);
        }
        for (slot, new) in [(&self.accessed, atime), (&self.modified, mtime)] {
            match new {
                Some(TimeOrNow::SpecificTime(t)) => slot.store(nanos(t), Ordering::Relaxed),
                Some(TimeOrNow::Now) => slot.store(nanos(SystemTime::now()), Ordering::Relaxed),
                None => {}
            }
        }
        reply.attr(&TTL, &self.file_attr());
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if ino != self.file() {
            return reply.error(Errno::EISDIR);
        }
        if self.image.is_read_only() && flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        // Direct for everybody: no second copy of plaintext in the page cache, and one coherent view for direct and
        // buffered users. Parallel writes are safe because ranges are locked below.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (offset, len) = match range(offset, u64::from(size)) {
            Ok(range) => range,
            Err(errno) => return reply.error(errno),
        };
        let mut reply = Some(reply);
        let done = self.image.read(offset, len, &mut |bytes| {
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        });
        if let (Err(e), Some(reply)) = (done, reply) {
            reply.error(errno(&e));
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(offset) = ByteOffset::new(offset) else { return reply.error(Errno::EINVAL) };
        let Ok(len) = u32::try_from(data.len()) else { return reply.error(Errno::EINVAL) };
        match self.image.write(offset, data) {
            Ok(()) => {
                self.touch();
                reply.written(len);
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        match self.image.flush() {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match self.image.sync() {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != INodeNo::ROOT || self.look.layout != Layout::Directory {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (self.file(), FileType::RegularFile, FILE_NAME),
        ];
        for (next, (ino, kind, name)) in (1..).zip(entries) {
            if next > offset && reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    /// Without an answer here loop devices offer no discard (they read f_bsize).
    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = self.image.len().get().div_ceil(4096);
        let used = self.image.allocated().map_or(blocks, |used| used.get().div_ceil(4096)).min(blocks);
        reply.statfs(blocks, blocks - used, blocks - used, 1, 0, 4096, 255, 4096);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (offset, len) = match range(offset, length) {
            Ok(range) => range,
            Err(errno) => return reply.error(errno),
        };
        // Zeroing and punching are asked for with or without KEEP_SIZE; the size never changes here. Plain preallocation
        // cannot be promised through encryption: glibc then writes instead, which is the honest thing.
        let done = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE => self.image.discard(offset, len),
            libc::FALLOC_FL_ZERO_RANGE => self.image.write_zeroes(offset, len),
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        match done {
            Ok(()) => {
                self.touch();
                reply.ok();
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let from = u64::try_from(offset).ok().and_then(ByteOffset::new);
        let Some(from) = from.filter(|from| from.get() < self.image.len().get()) else {
            return reply.error(Errno::ENXIO);
        };
        let found = match whence {
            libc::SEEK_DATA => self.image.seek_data(from),
            libc::SEEK_HOLE => self.image.seek_hole(from).map(Some),
            _ => return reply.error(Errno::EINVAL),
        };
        match found {
            Ok(Some(at)) => match i64::try_from(at.get()) {
                Ok(at) => reply.offset(at),
                Err(_) => reply.error(Errno::EOVERFLOW),
            },
            Ok(None) => reply.error(Errno::ENXIO),
            Err(e) => reply.error(errno(&e)),
        }
    }
}
