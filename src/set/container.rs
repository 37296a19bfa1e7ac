//! The container of a live mount: its header behind one lock, so that the guard reads the token it must probe while a
//! rotation commits a new one.
//!
//! Must never see: keys, plaintext.
//!
//! Invariant: the header in memory is the one on the medium, as far as this process knows: a change that could not be
//! committed is taken back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Result;
use crate::luks2::Header;
use crate::store::BackingStore;
use crate::sync::{Mutex, lock};

/// See the module's header.
#[derive(Debug)]
pub struct MountedContainer {
    path: PathBuf,
    store: Arc<dyn BackingStore>,
    header: Mutex<Header>,
    read_only: bool,
}

impl MountedContainer {
    /// Of a container that this process has locked.
    #[must_use]
    pub fn new(path: PathBuf, store: Arc<dyn BackingStore>, header: Header, read_only: bool) -> Self {
        Self { path, store, header: Mutex::new(header), read_only }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The container's bytes.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn BackingStore> {
        &self.store
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

    /// Changes the header; `change` commits what it changes. Nobody reads a half-changed one meanwhile.
    ///
    /// # Errors
    /// Those of `change`; the header is as before then.
    pub fn change<T>(&self, change: impl FnOnce(&mut Header, &dyn BackingStore) -> Result<T>) -> Result<T> {
        let mut header = lock(&self.header);
        let mut changed = header.clone();
        let done = change(&mut changed, &*self.store)?;
        *header = changed;
        Ok(done)
    }
}
