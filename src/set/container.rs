//! The container of a live mount: its header behind one lock, so that the guard reads the token it must probe while a
//! rotation commits a new one.
//!
//! Must never see: keys, plaintext.
//!
//! Invariant: the header in memory is one that was on the medium. Several read-only mounts may share a container, each in a
//! process of its own, so what another one committed is taken over by [`MountedContainer::reload`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::rewrap::Place;
use crate::error::Result;
use crate::luks2::Header;
use crate::store::{BackingStore, FileStore, LatchedStore};
use crate::sync::{Mutex, MutexGuard, lock};

/// See the module's header.
#[derive(Debug)]
pub struct MountedContainer {
    path: PathBuf,
    store: Arc<LatchedStore<FileStore>>,
    header: Mutex<Header>,
    read_only: bool,
    turn: Mutex<()>,
}

impl MountedContainer {
    /// Of a container that this process has locked.
    #[must_use]
    pub fn new(path: PathBuf, store: Arc<LatchedStore<FileStore>>, header: Header, read_only: bool) -> Self {
        // What a killed process left of a header in the page cache must be durable before a copy is torn; now, when nothing
        // waits for it. A failure is latched, and refuses every commit.
        if !read_only && let Err(e) = store.sync() {
            log::error!("{}", e.at(&path).chain());
        }
        Self { path, store, header: Mutex::new(header), read_only, turn: Mutex::new(()) }
    }

    /// 36 characters; no change of the header changes it.
    #[must_use]
    pub fn uuid(&self) -> String {
        lock(&self.header).uuid().to_owned()
    }

    /// Where it was when it was mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is now, also when it was moved since; `None` when its file has no name any more.
    #[must_use]
    pub fn path_now(&self) -> Option<PathBuf> {
        self.store.inner().path_now()
    }

    /// Whether the data are mounted read-only. The header may be changed all the same (RULINGS 10).
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// A copy of the header as it is now.
    #[must_use]
    pub fn header(&self) -> Header {
        lock(&self.header).clone()
    }

    /// The right to change the header, held while a vault is asked; readers go on.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    /// Takes over a header that was committed.
    pub fn adopt(&self, header: Header) {
        *lock(&self.header) = header;
    }

    /// Reads the header from the medium. Says whether an older one was in memory.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn reload(&self) -> Result<bool> {
        let found = Header::load(&*self.store).map_err(|e| e.at(&self.path))?;
        let changed = found.seqid() > self.header().seqid();
        if changed {
            self.adopt(found);
        }
        Ok(changed)
    }
}

impl Place for MountedContainer {
    fn locked(&self, commit: &mut dyn FnMut(&dyn BackingStore) -> Result<()>) -> Result<()> {
        let store = self.store.inner();
        if self.read_only {
            return commit(store.lock_header()?.store());
        }
        if store.is_block_device() {
            // One that is claimed cannot be opened once more. Through the latch: a failed write-back of data that this sync
            // hears of must not be forgotten.
            let _lock = store.lock_header()?;
            return commit(&*self.store);
        }
        self.store.check()?;
        commit(store.lock_header_in_use()?.store())
    }
}
