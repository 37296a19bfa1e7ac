//! Reply buffers: plaintext on its way to a reader, wiped as soon as it was handed over.

use std::sync::{Mutex, PoisonError};

use zeroize::Zeroize;

use crate::cache::BLOCK;
use crate::error::Result;
use crate::secret::{SecretBytes, scrub_registers};

/// Buffers that wait for the next read, all zeros. As many as reads were ever in flight at once.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    // Not crate::sync: nothing waits for another lock while holding this one, so there is no schedule to explore.
    idle: Mutex<Vec<SecretBytes>>,
}

impl Buffers {
    /// Lends `len` zeros, and wipes what became of them. So the fence finds no plaintext here but that of reads between
    /// crypto and reply: none of a read that waits for the store, whatever was read before.
    pub(super) fn with<R>(&self, len: usize, use_it: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        let reused = self.list().pop().filter(|buf| buf.len() >= len);
        let mut buf = match reused {
            Some(buf) => buf,
            None => SecretBytes::zeroed(len.max(MIN))?,
        };
        let lent = &mut buf.expose_mut()[..len];
        let result = use_it(lent);
        lent.zeroize();
        // A copy from the cache went through them.
        scrub_registers();
        buf.is_zero_again();
        self.list().push(buf);
        Ok(result)
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<SecretBytes>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The largest read the kernel sends, in whole blocks wherever it starts: then one buffer serves every request, whatever
/// came first.
const MIN: usize = 1024 * 1024 + BLOCK;
