//! The fast engine: AES-XTS of aws-lc through its public EVP calls (VAES and AVX-512 where the CPU has them).
//!
//! Invariants:
//! - An EVP context is used by one thread at a time: setting the tweak and processing a sector write into it.
//!   (Sharing one set of schedules under per-call copies of the outer struct would look cheaper, but aws-lc keeps
//!   its "this tweak was used" flag beside the schedules, so that would be a data race.)
//! - The schedules are where aws-lc allocates them. That memory is guarded *before* the key enters it, and
//!   `EVP_CIPHER_CTX_free` wipes it (`OPENSSL_free` cleanses all it frees). Two ways to put them into memory of
//!   our own were dropped: `CRYPTO_set_mem_functions` turns that cleansing off and is global, and replacing
//!   `cipher_data` would trust a private struct's size with memory safety. The guard needs that size too, but a
//!   wrong one there costs a lock, not a buffer overflow; tests/xts_forgets_its_keys.rs checks the outcome.
//!
//! Must never see: sector sizes it does not get from the tweaks. `unsafe` for the foreign calls only.

use std::ffi::c_int;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};
// Not crate::sync: nothing waits for another lock while holding one of these, so there is no schedule to explore.
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use aws_lc_sys as ffi;

use super::{Direction, Tweaks, VolumeKey};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::guard_foreign;

/// Context pairs for several threads, all with the same key.
pub(super) struct Pool {
    slots: Box<[Slot]>,
}

/// Its own cache lines (pairs of 64 bytes, as the prefetcher takes them), so that the locks of two threads never
/// share one.
#[repr(align(128))]
struct Slot(Mutex<Pair>);

struct Pair {
    encrypt: Context,
    decrypt: Context,
}

impl Pool {
    /// Twice the CPUs: a thread that is descheduled inside a run then blocks nobody. Bounded on large machines,
    /// since every slot holds two schedules in locked memory.
    const SLOTS: std::ops::RangeInclusive<usize> = 4..=64;

    pub(super) fn new(key: &VolumeKey) -> Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let slots = (2 * cpus).clamp(*Self::SLOTS.start(), *Self::SLOTS.end());
        (0..slots)
            .map(|_| {
                let encrypt = Context::new(key, Direction::Encrypt)?;
                let decrypt = Context::new(key, Direction::Decrypt)?;
                Ok(Slot(Mutex::new(Pair { encrypt, decrypt })))
            })
            .collect::<Result<_>>()
            .map(|slots| Self { slots })
    }

    pub(super) fn crypt(
        &self,
        direction: Direction,
        mut tweaks: Tweaks,
        from: Option<&[u8]>,
        run: &mut [u8],
    ) {
        let mut pair = self.claim();
        let context = match direction {
            Direction::Encrypt => &mut pair.encrypt,
            Direction::Decrypt => &mut pair.decrypt,
        };
        let sector = tweaks.sector();
        match from {
            None => run.chunks_exact_mut(sector).for_each(|out| context.in_place(tweaks.take(), out)),
            Some(from) => from
                .chunks_exact(sector)
                .zip(run.chunks_exact_mut(sector))
                .for_each(|(from, out)| context.out_of_place(tweaks.take(), from, out)),
        }
    }

    /// The calling thread's own slot if it is free, else the next free one, else its own when that becomes free.
    fn claim(&self) -> MutexGuard<'_, Pair> {
        let home = home() % self.slots.len();
        let (before, from_home) = self.slots.split_at(home);
        for slot in from_home.iter().chain(before) {
            match slot.0.try_lock() {
                Ok(pair) => return pair,
                // A thread that panicked inside left nothing behind: every sector sets its own tweak.
                Err(TryLockError::Poisoned(pair)) => return pair.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.slots[home].0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} context pairs)", self.slots.len())
    }
}

/// A number of the calling thread, dense over threads. The only thread-local, and it knows no secret.
fn home() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static HOME: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    // While a thread is torn down its locals may be gone: any slot will do then.
    HOME.try_with(|home| *home).unwrap_or(0)
}

/// An EVP context with its key set, for one direction.
struct Context(NonNull<ffi::EVP_CIPHER_CTX>);

// SAFETY: a context is plain heap memory without ties to the thread that made it; `&mut self` on every use and
// the slot's mutex keep it to one thread at a time.
unsafe impl Send for Context {}

impl Context {
    /// An upper estimate of aws-lc's private `EVP_AES_XTS_CTX`: two schedules, each padded to 8 bytes, four
    /// pointers and a flag. Used to guard memory, never to access it.
    const STATE: usize =
        2 * size_of::<ffi::AES_KEY>().next_multiple_of(8) + 4 * size_of::<usize>() + size_of::<u64>();

    fn new(key: &VolumeKey, direction: Direction) -> Result<Self> {
        let enc = c_int::from(direction == Direction::Encrypt);
        let no_memory = || Error::new(ErrorKind::Other, "aws-lc: no memory for an AES-XTS context");
        // SAFETY: no arguments; null when there is no memory.
        let context = Self(NonNull::new(unsafe { ffi::EVP_CIPHER_CTX_new() }).ok_or_else(no_memory)?);
        let ctx = context.0.as_ptr();
        // SAFETY: `ctx` is ours and alive; key and IV are null, which chooses the cipher and allocates its state.
        let chosen = unsafe {
            ffi::EVP_CipherInit_ex(
                ctx,
                ffi::EVP_aes_256_xts(),
                ptr::null_mut(),
                ptr::null(),
                ptr::null(),
                enc,
            )
        };
        if chosen != 1 {
            return Err(no_memory());
        }
        // SAFETY: `ctx` is alive; the public field points to the state allocated by the call above.
        let state = NonNull::new(unsafe { (*ctx).cipher_data }.cast::<u8>()).ok_or_else(no_memory)?;
        guard_foreign(state, Self::STATE);
        let bytes = key.secret().expose().as_ptr();
        // SAFETY: the cipher is AES-256-XTS, whose key is the 64 bytes at `bytes`. It reads them into the state.
        let keyed =
            unsafe { ffi::EVP_CipherInit_ex(ctx, ptr::null(), ptr::null_mut(), bytes, ptr::null(), enc) };
        if keyed != 1 {
            return Err(Error::new(ErrorKind::Other, "aws-lc: AES-256-XTS refuses the volume key"));
        }
        Ok(context)
    }

    fn in_place(&mut self, tweak: [u8; 16], sector: &mut [u8]) {
        let at = sector.as_mut_ptr();
        // SAFETY: `at` is valid for reads and writes of `sector.len()` bytes, and EVP allows out == in.
        unsafe { self.update(tweak, at, at, sector.len()) }
    }

    fn out_of_place(&mut self, tweak: [u8; 16], from: &[u8], out: &mut [u8]) {
        assert_eq!(from.len(), out.len(), "aws-lc: two sectors of one length");
        // SAFETY: both are valid for `out.len()` bytes, and do not overlap since `out` is exclusive.
        unsafe { self.update(tweak, from.as_ptr(), out.as_mut_ptr(), out.len()) }
    }

    /// One sector.
    ///
    /// # Safety
    /// `from` must be valid for reads and `out` for writes of `len` bytes; they are equal or do not overlap.
    unsafe fn update(&mut self, tweak: [u8; 16], from: *const u8, out: *mut u8, len: usize) {
        let ctx = self.0.as_ptr();
        let want = c_int::try_from(len).expect("a sector has at most 4096 bytes");
        let mut done = 0;
        // SAFETY: `ctx` is alive, exclusive and has its key; it copies the 16 bytes of `tweak`, which is the IV
        // length of XTS. -1 keeps the direction. The caller answers for `from`, `out` and `len`; XTS writes
        // exactly as many bytes as it reads.
        let ok = unsafe {
            ffi::EVP_CipherInit_ex(ctx, ptr::null(), ptr::null_mut(), ptr::null(), tweak.as_ptr(), -1) == 1
                && ffi::EVP_CipherUpdate(ctx, out, &raw mut done, from, want) == 1
        };
        // Not an error value: there is no input that leads here, and going on would hand out plaintext.
        assert!(ok && done == want, "aws-lc: AES-256-XTS processed {done} of {want} bytes");
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by EVP_CIPHER_CTX_new, freed once; wipes the schedules before it frees them.
        unsafe { ffi::EVP_CIPHER_CTX_free(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_slot_is_passed_over_and_not_waited_for() {
        let pool = Pool::new(&VolumeKey::generate().unwrap()).unwrap();
        let all: Vec<_> = pool.slots.iter().map(|_| ptr::from_ref(&*pool.claim())).collect();
        assert!(all.windows(2).all(|w| w[0] == w[1]), "an idle pool gives a thread its own slot");
        let held: Vec<_> = pool.slots.iter().map(|_| pool.claim()).collect();
        let mut pairs: Vec<_> = held.iter().map(|pair| ptr::from_ref(&**pair)).collect();
        pairs.sort_unstable();
        pairs.dedup();
        assert_eq!(pairs.len(), pool.slots.len());
    }
}
