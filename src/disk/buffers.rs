//! Reply buffers: plaintext on its way to a reader, in memory that is wiped at the fence.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::secret::SecretBytes;

/// Buffers that wait for the next read. As many as reads were ever in flight at once.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    idle: Mutex<Vec<SecretBytes>>,
    // Set while the gate is closed: what comes back is dropped (and so wiped), not kept.
    closed: AtomicBool,
}

impl Buffers {
    /// Lends a buffer of at least `len` bytes; its first `len` hold whatever was there.
    pub(super) fn with<R>(&self, len: usize, use_it: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        let reused = self.list().pop().filter(|buf| buf.len() >= len);
        let mut buf = match reused {
            Some(buf) => buf,
            None => SecretBytes::zeroed(len.max(MIN))?,
        };
        let result = use_it(&mut buf.expose_mut()[..len]);
        let mut idle = self.list();
        if !self.closed.load(Ordering::Acquire) {
            idle.push(buf);
        }
        Ok(result)
    }

    /// Wipes the idle ones; those in use are wiped when they come back.
    pub(super) fn wipe(&self) {
        let mut idle = self.list();
        self.closed.store(true, Ordering::Release);
        idle.clear();
    }

    /// Keeps buffers again.
    pub(super) fn reopen(&self) {
        self.closed.store(false, Ordering::Release);
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<SecretBytes>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The largest read the kernel sends: then one buffer serves every request, whatever came first.
const MIN: usize = 1024 * 1024;
