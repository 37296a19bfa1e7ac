//! How a disk looks as a file: its name, owner, mode and times, and the folder around it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::units::ByteLen;

/// Name of the image in a directory mountpoint.
pub(super) const FILE_NAME: &str = "disk.img";

/// Whether the mountpoint is a folder that shows `disk.img`, or a regular file that becomes the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A folder.
    Directory,
    /// A regular file.
    File,
}

/// What the mount decides about the look of the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Presented {
    pub(super) layout: Layout,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Others than the owner may come here; the file's mode still decides.
    pub(super) shared: bool,
}

impl Presented {
    /// The inode of the image.
    pub(super) fn file(&self) -> INodeNo {
        match self.layout {
            Layout::Directory => INodeNo(INodeNo::ROOT.0 + 1),
            Layout::File => INodeNo::ROOT,
        }
    }
}

/// The look of now. Mode and times are kept for this mount only: a container has no room for them, and needs none.
#[derive(Debug)]
pub(super) struct Look {
    presented: Presented,
    mode: AtomicU32,
    // Nanoseconds since 1970.
    accessed: AtomicU64,
    modified: AtomicU64,
    changed: AtomicU64,
}

impl Look {
    pub(super) fn new(presented: Presented, read_only: bool) -> Self {
        let now = || AtomicU64::new(nanos(SystemTime::now()));
        Self {
            presented,
            mode: AtomicU32::new(if read_only { 0o400 } else { 0o600 }),
            accessed: now(),
            modified: now(),
            changed: now(),
        }
    }

    pub(super) fn is_folder(&self) -> bool {
        self.presented.layout == Layout::Directory
    }

    /// The inode of the image.
    pub(super) fn file(&self) -> INodeNo {
        self.presented.file()
    }

    pub(super) fn file_attr(&self, len: ByteLen, allocated: ByteLen) -> FileAttr {
        FileAttr {
            size: len.get(),
            blocks: allocated.get().div_ceil(512),
            ..self.attr(self.file(), FileType::RegularFile, self.mode.load(Ordering::Relaxed), 1)
        }
    }

    /// Nobody can add to the folder or take from it, so nobody may write.
    pub(super) fn folder_attr(&self) -> FileAttr {
        let mode = if self.presented.shared { 0o555 } else { 0o500 };
        self.attr(INodeNo::ROOT, FileType::Directory, mode, 2)
    }

    fn attr(&self, ino: INodeNo, kind: FileType, mode: u32, nlink: u32) -> FileAttr {
        let time = |slot: &AtomicU64| UNIX_EPOCH + Duration::from_nanos(slot.load(Ordering::Relaxed));
        FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: time(&self.accessed),
            mtime: time(&self.modified),
            ctime: time(&self.changed),
            crtime: UNIX_EPOCH,
            kind,
            perm: u16::try_from(mode).unwrap_or(0),
            nlink,
            uid: self.presented.uid,
            gid: self.presented.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Is this the owner and group it has already?
    pub(super) fn is_owner(&self, uid: Option<u32>, gid: Option<u32>) -> bool {
        uid.is_none_or(|uid| uid == self.presented.uid) && gid.is_none_or(|gid| gid == self.presented.gid)
    }

    /// chmod, utimes.
    pub(super) fn set(&self, mode: Option<u32>, accessed: Option<TimeOrNow>, modified: Option<TimeOrNow>) {
        if let Some(mode) = mode {
            self.mode.store(mode & 0o777, Ordering::Relaxed);
        }
        for (slot, new) in [(&self.accessed, accessed), (&self.modified, modified)] {
            match new {
                Some(TimeOrNow::SpecificTime(t)) => slot.store(nanos(t), Ordering::Relaxed),
                Some(TimeOrNow::Now) => slot.store(nanos(SystemTime::now()), Ordering::Relaxed),
                None => {}
            }
        }
        self.changed.store(nanos(SystemTime::now()), Ordering::Relaxed);
    }

    /// The content changed.
    pub(super) fn touch(&self) {
        let now = nanos(SystemTime::now());
        self.modified.store(now, Ordering::Relaxed);
        self.changed.store(now, Ordering::Relaxed);
    }
}

fn nanos(t: SystemTime) -> u64 {
    t.duration_since(UNIX_EPOCH).ok().and_then(|d| u64::try_from(d.as_nanos()).ok()).unwrap_or(0)
}
