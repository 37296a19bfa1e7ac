//! Memory for secrets: its own pages, locked against swap where the limit allows, left out of core dumps,
//! wiped when dropped. [`Secret`] is a key of fixed length, [`SecretBytes`] anything else (a passphrase, a PEM file,
//! the block cache's plaintext). And what happens to copies that other crates make: [`WipingAllocator`], [`scrubbed`].
//!
//! Must never see: anything else of the crate but errors. No `Clone`, no `PartialEq`, no `Serialize`; `Debug` is redacted.
//! One of the few modules with `unsafe`: mappings, registers, and the allocator.

mod pages;
mod registers;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::error::{Error, ErrorKind, Result};

use pages::Pages;
pub use pages::{all_locked, guard_foreign};
pub use registers::scrub_registers;

/// Bytes in pages of their own. Zero when made, wiped when dropped.
pub struct SecretBytes {
    // None only once it is dropped.
    pages: Option<Pages>,
    len: usize,
    // Somebody may have written here since it was last known to be all zeros.
    touched: bool,
}

impl SecretBytes {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// No memory.
    pub fn zeroed(len: usize) -> Result<Self> {
        Ok(Self { pages: Some(Pages::zeroed(len)?), len, touched: false })
    }

    /// Moves `bytes` here and wipes the source.
    ///
    /// # Errors
    /// No memory.
    pub fn take(bytes: &mut [u8]) -> Result<Self> {
        let mut secret = Self::zeroed(bytes.len())?;
        secret.expose_mut().copy_from_slice(bytes);
        bytes.zeroize();
        Ok(secret)
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True when there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes. Do not copy them into memory that is not a secret's.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.pages.as_ref().expect(ALIVE).bytes()[..self.len]
    }

    /// The bytes, to be filled in place.
    #[must_use]
    pub fn expose_mut(&mut self) -> &mut [u8] {
        self.touched = true;
        &mut self.pages.as_mut().expect(ALIVE).bytes_mut()[..self.len]
    }

    /// The owner has wiped every byte that was used: dropping it need not bring in the pages that never were, which for a
    /// large cache could be more than the machine has.
    pub fn is_zero_again(&mut self) {
        self.touched = false;
    }

    /// Shortens it; what is cut off is wiped.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.expose_mut()[len..].zeroize();
            self.len = len;
        }
    }
}

const ALIVE: &str = "only a drop takes the pages";

impl Drop for SecretBytes {
    fn drop(&mut self) {
        if self.touched {
            self.expose_mut().zeroize();
        }
        self.pages.take().into_iter().for_each(Pages::put_back);
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.len)
    }
}

/// A secret of exactly `N` bytes.
pub struct Secret<const N: usize>(SecretBytes);

impl<const N: usize> Secret<N> {
    /// Filled in place, so that no stray copy exists.
    ///
    /// # Errors
    /// No memory, or what `fill` says.
    pub fn try_from_fn(fill: impl FnOnce(&mut [u8; N]) -> Result<()>) -> Result<Self> {
        let mut secret = Self(SecretBytes::zeroed(N)?);
        fill(secret.expose_mut())?;
        Ok(secret)
    }

    /// From the operating system's generator.
    ///
    /// # Errors
    /// No memory, or no generator.
    pub fn random() -> Result<Self> {
        Self::try_from_fn(|bytes| random(bytes))
    }

    /// Moves `bytes` here and wipes the source; `None` when it has another length (it is wiped all the same).
    ///
    /// # Errors
    /// No memory.
    pub fn take(bytes: &mut [u8]) -> Result<Option<Self>> {
        let right = bytes.len() == N;
        let secret = SecretBytes::take(bytes)?;
        Ok(right.then_some(Self(secret)))
    }

    /// The bytes. Do not copy them into memory that is not a secret's.
    #[must_use]
    pub fn expose(&self) -> &[u8; N] {
        self.0.expose().first_chunk().expect("a Secret<N> has N bytes by construction")
    }

    /// The bytes, to be filled in place.
    #[must_use]
    pub fn expose_mut(&mut self) -> &mut [u8; N] {
        self.0.expose_mut().first_chunk_mut().expect("a Secret<N> has N bytes by construction")
    }

    /// Equality in constant time.
    #[must_use]
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({N} bytes)")
    }
}

/// Fills `bytes` from the operating system's generator.
///
/// # Errors
/// The system has none.
pub fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes)
        .map_err(|e| Error::new(ErrorKind::Other, "random generator").caused_by(e.to_string()))
}

/// Overwrites what returned callees left below the current frame, and in registers: copies of keys that a cipher, a hash or a
/// MAC spilled there. 16 KiB, since a development build (the deepest frames) left copies down to 12.7 KiB.
/// tests/xts_forgets_its_keys.rs and tests/luks2_forgets_its_keys.rs look for what is left.
#[inline(never)]
pub fn scrub_stack() {
    std::hint::black_box(&mut [0u64; 2048]);
    scrub_registers();
}

/// The stack alone, after a leaf with a small frame that runs too often for 16 KiB.
#[inline(never)]
pub fn scrub_shallow_stack() {
    std::hint::black_box(&mut [0u64; 256]);
}

/// Runs `work` in a frame of its own, then overwrites that: HMAC, for one, leaves its key on the stack.
pub fn scrubbed<T>(work: impl FnOnce() -> T) -> T {
    #[inline(never)]
    fn apart<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    let done = apart(work);
    scrub_stack();
    done
}

/// As [`scrub_stack`], after a way through a vault: a database and big integers leave frames behind that reach deep.
#[inline(never)]
pub fn scrub_deep_stack() {
    std::hint::black_box(&mut [0u64; 32 * 1024]);
    scrub_registers();
}

/// The system's allocator, but what is freed is wiped first: parts of an RSA key were found on the heap of a mount, left
/// there by big integers that nobody wipes. The program installs it; a library must not choose for others.
#[derive(Clone, Copy, Debug, Default)]
pub struct WipingAllocator;

/// Larger blocks have a mapping of their own, always (`DEFAULT_MMAP_THRESHOLD_MAX` of glibc on 64 bits): freed, they go back
/// to the kernel, which hands out no page before it has cleared it.
const OWN_MAPPING: usize = 32 << 20;

// SAFETY: every call is handed on to `System` as it came, so its contract is ours. `realloc` is the trait's own: it
// allocates, copies, and frees (and so wipes) the old block.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract. (Not by the trait's own: it would touch every page of a large block.)
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if layout.size() <= OWN_MAPPING {
            // SAFETY: by the caller's contract `ptr` is a block of `layout.size()` bytes that nobody uses any more.
            unsafe { libc::explicit_bzero(ptr.cast(), layout.size()) };
        }
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Keeps this process's memory from other processes of the same user and out of core dumps.
///
/// # Errors
/// The kernel refuses, which it does not.
pub fn harden_process() -> Result<()> {
    let failed = |e: nix::Error| Error::io("protect the process from core dumps", e.into());
    nix::sys::prctl::set_dumpable(false).map_err(failed)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_allocator_frees_and_moves_is_wiped() {
        let heap = WipingAllocator;
        let layout = Layout::array::<u8>(4000).unwrap();
        for moves in [false, true] {
            // SAFETY: each block is freed once, with the layout it has. What is read afterwards is read through the
            // kernel, which says so when a page is gone, and not through the pointer.
            let at = unsafe {
                let ptr = heap.alloc(layout);
                ptr.write_bytes(0xA5, layout.size());
                if moves {
                    let moved = heap.realloc(ptr, layout, 8000);
                    heap.dealloc(moved, Layout::array::<u8>(8000).unwrap());
                } else {
                    heap.dealloc(ptr, layout);
                }
                ptr as u64
            };
            let mut found = [0; 4000];
            let memory = std::fs::File::open("/proc/self/mem").unwrap();
            if std::os::unix::fs::FileExt::read_exact_at(&memory, &mut found, at).is_ok() {
                let left = found.iter().filter(|b| **b == 0xA5).count();
                assert!(left < 16, "moves: {moves}: {left} bytes are left"); // others may have taken the block
            }
        }
    }

    #[test]
    fn debug_shows_no_byte() {
        let s = Secret::<64>::random().unwrap();
        assert_eq!(format!("{s:?}"), "Secret(64 bytes)");
        assert_eq!(format!("{:?}", SecretBytes::zeroed(9).unwrap()), "SecretBytes(9 bytes)");
    }

    #[test]
    fn take_wipes_the_source_whether_it_fits_or_not() {
        let mut right = [7u8; 32];
        let mut wrong = [7u8; 33];
        assert_eq!(Secret::<32>::take(&mut right).unwrap().unwrap().expose(), &[7; 32]);
        assert!(Secret::<32>::take(&mut wrong).unwrap().is_none());
        assert_eq!((right, wrong), ([0; 32], [0; 33]));
    }

    #[test]
    fn the_pages_are_marked_in_the_kernels_books() {
        let s = Secret::<64>::random().unwrap();
        let at = s.expose().as_ptr() as usize;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut ours = false;
        let mut flags = None;
        for line in smaps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((a, b)) = range.split_once('-')
                && let (Ok(a), Ok(b)) = (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16))
            {
                ours = a <= at && at < b;
            } else if ours && line.starts_with("VmFlags:") {
                flags = Some(line.to_owned());
            }
        }
        let flags = flags.expect("the mapping is listed");
        assert!(flags.contains(" dd"), "not excluded from dumps: {flags}");
        assert!(!all_locked() || flags.contains(" lo"), "not locked: {flags}");
    }
}
