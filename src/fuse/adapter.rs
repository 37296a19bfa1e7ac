//! FUSE requests to [`Image`] calls, one to one. Errors become errnos by the table of `error`; nothing is decided here.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::look::{FILE_NAME, Look, Presented};
use super::served::Served;
use crate::disk::{Asker, Image};
use crate::error::{Error, ErrorKind};
use crate::units::{ByteLen, ByteOffset};

/// The size of a disk changes only through us, so the kernel may believe its attributes for long; a write or discard
/// through the kernel makes it ask again.
const TTL: Duration = Duration::from_secs(3600);

/// Requests that the kernel may have in flight in the background (default 12, far below what two busy queues need).
const MAX_BACKGROUND: u16 = 1024;

pub(super) struct Adapter<I> {
    served: Arc<Served<I>>,
    max_request: u32,
}

impl<I: Image> Adapter<I> {
    pub(super) fn new(image: Arc<I>, presented: Presented, max_request: u32) -> Self {
        let look = Look::new(presented, image.is_read_only());
        Self { served: Arc::new(Served { image, look }), max_request }
    }

    fn file_attr(&self) -> FileAttr {
        let allocated = self.served.image.allocated().unwrap_or_else(|_| self.served.image.len());
        self.served.look.file_attr(self.served.image.len(), allocated)
    }
}

pub(super) fn errno(e: &Error) -> Errno {
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
        // All answer with the nearest value they accept; taking it is all there is to do.
        if let Err(nearest) = config.set_max_write(self.max_request) {
            let _ = config.set_max_write(nearest);
        }
        // Or reads could be as large as the kernel reads ahead.
        if let Err(nearest) = config.set_max_readahead(self.max_request) {
            let _ = config.set_max_readahead(nearest);
        }
        if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
            let _ = config.set_max_background(nearest);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && self.served.look.is_folder() && name == FILE_NAME {
            reply.entry(&TTL, &self.file_attr(), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if ino == self.served.look.file() {
            reply.attr(&TTL, &self.file_attr());
        } else if ino == INodeNo::ROOT {
            reply.attr(&TTL, &self.served.look.folder_attr());
        } else {
            reply.error(Errno::ENOENT);
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
        if ino != self.served.look.file() || !self.served.look.is_owner(uid, gid) {
            return reply.error(Errno::EPERM);
        }
        if size.is_some_and(|size| size != self.served.image.len().get()) {
            log::warn!("{FILE_NAME}: a disk keeps its size; truncating or growing it by its file is refused");
            return reply.error(Errno::EPERM);
        }
        self.served.look.set(mode, atime, mtime);
        reply.attr(&TTL, &self.file_attr());
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if ino != self.served.look.file() {
            return reply.error(Errno::EISDIR);
        }
        if self.served.image.is_read_only() && flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        // Direct for everybody: no second copy of plaintext in the page cache, and one coherent view for direct and
        // buffered users. Parallel writes are safe because ranges are locked below.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    fn read(
        &self,
        req: &Request,
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
        self.served.read(Asker(req.pid()), offset, len, reply);
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(offset) = ByteOffset::new(offset) else { return reply.error(Errno::EINVAL) };
        // No fsync follows a direct write: the kernel leaves O_SYNC (which includes O_DSYNC) and RWF_DSYNC to us.
        let durable = flags.0 & libc::O_DSYNC != 0;
        self.served.write(Asker(req.pid()), offset, data, durable, reply);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        match self.served.image.flush() {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match self.served.image.sync() {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != INodeNo::ROOT || !self.served.look.is_folder() {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (self.served.look.file(), FileType::RegularFile, FILE_NAME),
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
        let blocks = self.served.image.len().get().div_ceil(4096);
        let used = self.served.image.allocated().map_or(blocks, |used| used.get().div_ceil(4096)).min(blocks);
        reply.statfs(blocks, blocks - used, blocks - used, 1, 0, 4096, 255, 4096);
    }

    fn fallocate(
        &self,
        req: &Request,
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
        // Plain preallocation cannot be promised through encryption: glibc then writes instead, which is the honest thing.
        let kind = mode & !libc::FALLOC_FL_KEEP_SIZE;
        if kind != libc::FALLOC_FL_PUNCH_HOLE && kind != libc::FALLOC_FL_ZERO_RANGE {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.served.zero(Asker(req.pid()), offset, len, mode, reply);
    }

    fn lseek(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let from = u64::try_from(offset).ok().and_then(ByteOffset::new);
        let Some(from) = from.filter(|from| from.get() < self.served.image.len().get()) else {
            return reply.error(Errno::ENXIO);
        };
        self.served.seek(Asker(req.pid()), from, whence, reply);
    }

    // The folder holds one file and always will. Each of these says EPERM, as their pages in section 2 of the manual do of a
    // file system that cannot; without an answer the kernel says ENOSYS.

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _link_name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }
}
