//! Where secrets lie: private mappings of whole pages, locked against swap where the limit allows, left out of core dumps.
//!
//! A page that a secret leaves is kept for the next one. An unwrap behind a vault's server makes a dozen secrets, and to map
//! and unmap each was a fifth of its time: every other CPU must be told.
//!
//! Invariants: idle pages are all zeros, and there are at most [`MAX_IDLE`]. The program never forks (a child's locks would be
//! gone).
//!
//! Must never see: what lies in them. `unsafe` for the mapping itself.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
// Not crate::sync: nothing waits for another lock while holding this one, so there is no schedule to explore.
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::error::{Error, ErrorKind, Result};

/// Cleared when a lock was refused (RLIMIT_MEMLOCK): `status` then says that secrets may reach swap.
static ALL_LOCKED: AtomicBool = AtomicBool::new(true);

/// False once the kernel refused to lock any secret memory of this process.
#[must_use]
pub fn all_locked() -> bool {
    ALL_LOCKED.load(Ordering::Relaxed)
}

/// What the secrets of one request need, on every CPU of a small machine. 128 KiB of a limit that is 8 MiB for most.
const MAX_IDLE: usize = 32;

static IDLE: Mutex<Vec<Pages>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<Pages>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A private anonymous mapping of `len` bytes that nobody else has.
pub(super) struct Pages {
    ptr: NonNull<c_void>,
    len: usize,
}

// SAFETY: the mapping is reached through this value alone, and hands out `&[u8]` for `&self` only.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// At least `len` zero bytes, in whole pages.
    pub(super) fn zeroed(len: usize) -> Result<Self> {
        let page = page_size();
        let len = len
            .max(1)
            .checked_next_multiple_of(page)
            .and_then(NonZeroUsize::new)
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "secret memory: length overflows"))?;
        let reused = if len.get() == page { idle().pop() } else { None };
        reused.map_or_else(|| Self::map(len), Ok)
    }

    fn map(len: NonZeroUsize) -> Result<Self> {
        // SAFETY: a fresh private anonymous mapping; no existing memory is touched.
        let ptr = unsafe {
            mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
        }
        .map_err(|e| Error::io("map secret memory", e.into()))?;
        let pages = Self { ptr, len: len.get() };
        // SAFETY: the mapping made above.
        unsafe { guard(pages.ptr, pages.len) };
        Ok(pages)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as `self` and was zero-initialised by the kernel.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().cast(), self.len) }
    }

    /// Gives back what the caller has wiped.
    pub(super) fn put_back(self) {
        if self.len == page_size() {
            let mut idle = idle();
            if idle.len() < MAX_IDLE {
                idle.push(self);
            }
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and nobody can hold a reference into it any more.
        let unmapped = unsafe { munmap(self.ptr, self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Best effort for key schedules that a C library allocates: their pages are locked and left out of dumps.
/// The lock is never undone, because a neighbour on the page may need it.
pub fn guard_foreign(ptr: NonNull<u8>, len: usize) {
    let page = page_size();
    let start = ptr.as_ptr() as usize / page * page;
    let end = (ptr.as_ptr() as usize + len).next_multiple_of(page);
    let Some(base) = NonNull::new(start as *mut c_void) else { return };
    // SAFETY: whole pages that hold the caller's live allocation.
    unsafe { guard(base, end - start) };
}

/// Locks pages as they are first touched (MLOCK_ONFAULT), so that a large cache costs nothing until it is used, and leaves
/// them out of core dumps.
///
/// # Safety
/// `base..base + len` must be mapped.
unsafe fn guard(base: NonNull<c_void>, len: usize) {
    // SAFETY: by the contract above; neither call changes any content.
    unsafe {
        if libc::mlock2(base.as_ptr(), len, libc::MLOCK_ONFAULT) != 0 {
            ALL_LOCKED.store(false, Ordering::Relaxed);
        }
        // Since Linux 3.4; where it fails, PR_SET_DUMPABLE and the core limit still hold.
        let _ = madvise(base, len, MmapAdvise::MADV_DONTDUMP);
    }
}

fn page_size() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_pages_are_kept_than_said() {
        let many: Vec<_> = (0..3 * MAX_IDLE).map(|_| Pages::zeroed(1).unwrap()).collect();
        many.into_iter().for_each(Pages::put_back);
        assert!(idle().len() <= MAX_IDLE);
        Pages::zeroed(1 << 20).unwrap().put_back();
        assert!(idle().iter().all(|pages| pages.len == page_size()));
    }
}
