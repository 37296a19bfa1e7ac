//! Where a new container is built, so that its name never leads to half of one: a file gets its name when it is complete
//! and durable; whatever ends the program before that leaves nothing behind.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::context::Context;
use super::{unlock, usage};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::store::{Access as StoreAccess, FileStore, sync_parent_dir};

/// What is to become the container; looked at, not changed.
pub(super) enum Target {
    Device(FileStore),
    File {
        path: PathBuf,
        /// What is replaced, kept locked until it is, so that nobody mounts it meanwhile.
        replaced: Option<FileStore>,
    },
}

impl Target {
    /// # Errors
    /// `Exists` without `force`, `Busy` for a mounted disk, `InvalidInput` for a folder and the like.
    pub(super) fn choose(context: &Context, disk: &Path, force: bool) -> Result<Self> {
        let meta = match std::fs::metadata(disk) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !disk.is_symlink() => {
                // It would be refused only at the very end.
                if disk.file_name().is_none() || disk.as_os_str().as_bytes().ends_with(b"/") {
                    return Err(usage(format!("{}: not the name of a file", disk.display())));
                }
                return Ok(Self::File { path: disk.to_owned(), replaced: None });
            }
            meta => meta.io_at("create", disk)?,
        };
        if meta.is_file() && !force {
            return Err(Error::new(ErrorKind::Exists, "exists already")
                .at(disk)
                .hint("choose another name, or replace it with --force (its data is lost)"));
        }
        let store = unlock::lock(context, disk, StoreAccess::ReadWrite)?;
        if !meta.file_type().is_block_device() {
            // A link stays a link: what it leads to is replaced.
            let path = disk.canonicalize().io_at("resolve", disk)?;
            return Ok(Self::File { path, replaced: Some(store) });
        }
        match store.find_signature()?.filter(|_| !force) {
            Some(found) => Err(Error::new(ErrorKind::Exists, format!("the device holds {found}"))
                .at(disk)
                .hint("if it may be overwritten, add --force")),
            None => Ok(Self::Device(store)),
        }
    }

    /// The store to build in.
    ///
    /// # Errors
    /// `NotFound` (no such folder), `PermissionDenied`, `ReadOnly`, `NoSpace`.
    pub(super) fn open(self) -> Result<(FileStore, Pending)> {
        let (path, replaced) = match self {
            Self::Device(store) => return Ok((store, Pending::Device)),
            Self::File { path, replaced } => (path, replaced),
        };
        match FileStore::create_unnamed(&path) {
            Ok(store) => Ok((store, Pending::Unnamed { path, replaced })),
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                let named = Named::watch(beside(&path))?;
                let store = FileStore::create_new(&named.temporary).map_err(|e| e.at(&path))?;
                Ok((store, Pending::Named { named, path, replaced }))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Err(e.hint("make its folder first, with mkdir")),
            Err(e) => Err(e),
        }
    }
}

/// A container that nobody can see yet, or a device, which is there for all to see.
pub(super) enum Pending {
    Device,
    /// Nothing of it is left when the process ends.
    Unnamed {
        path: PathBuf,
        replaced: Option<FileStore>,
    },
    /// On file systems without unnamed files (FAT, FUSE, some network ones).
    Named {
        named: Named,
        path: PathBuf,
        replaced: Option<FileStore>,
    },
}

impl Pending {
    /// Gives a complete container its name.
    ///
    /// # Errors
    /// `Exists` when somebody else took the name meanwhile; `Io`, ...
    pub(super) fn keep(self, store: &FileStore) -> Result<()> {
        let (path, made) = match &self {
            Self::Device => return Ok(()),
            Self::Unnamed { path, replaced: None } => (path, store.give_name(path)),
            Self::Unnamed { path, replaced: Some(_) } => {
                // link(2) replaces nothing, rename(2) needs a name.
                let named = Named::watch(beside(path))?;
                store.give_name(&named.temporary)?;
                (path, std::fs::rename(&named.temporary, path).io_at("replace", path))
            }
            Self::Named { named, path, replaced: Some(_) } => {
                (path, std::fs::rename(&named.temporary, path).io_at("replace", path))
            }
            Self::Named { named, path, replaced: None } => (path, named.become_new(path)),
        };
        made.map_err(|e| match e.kind() {
            ErrorKind::Exists => {
                Error::new(ErrorKind::Exists, "exists already: made by somebody else meanwhile").at(path)
            }
            _ => e,
        })?;
        sync_parent_dir(path)
    }
}

/// A temporary name in the folder of `path`: hidden, and saying what it belongs to.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.new", uuid::Uuid::new_v4().simple()))
}

/// A temporary name that is removed when dropped, and when a signal ends the program.
pub(super) struct Named {
    temporary: PathBuf,
    watcher: Handle,
}

impl Named {
    fn watch(temporary: PathBuf) -> Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).io_at("watch signals for", &temporary)?;
        let watcher = signals.handle();
        let doomed = temporary.clone();
        let wait = move || {
            if let Some(signal) = signals.forever().next() {
                let _ = std::fs::remove_file(doomed);
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        };
        std::thread::Builder::new().spawn(wait).io_at("start a thread for", &temporary)?;
        Ok(Self { temporary, watcher })
    }

    /// Under a name that nobody has: link(2) refuses an existing one, in one step.
    fn become_new(&self, path: &Path) -> Result<()> {
        match std::fs::hard_link(&self.temporary, path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(e).io_at("name", path),
            // No hard links here either.
            Err(_) => std::fs::rename(&self.temporary, path).io_at("name", path),
            Ok(()) => Ok(()),
        }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.temporary);
        self.watcher.close();
    }
}
