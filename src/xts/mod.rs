//! AES-256-XTS (IEEE 1619-2018) over runs of sectors, with the plain64 tweak of dm-crypt (ON-DISK.md section 6).
//!
//! One [`XtsCipher`] serves a disk and all its threads, or a LUKS2 keyslot area (512-byte sectors from sector 0).
//! Engines that compute the same bytes: `awslc` (AES-NI; wide with AVX-512), `vaes` (wide without AVX-512), and
//! `rustcrypto` (portable).
//!
//! Invariants:
//! - The tweak counts 512-byte units from the start of the segment, whatever the sector size.
//! - The key and its schedules live in locked memory that stays out of core dumps, and dropping the cipher wipes
//!   every schedule: nothing that outlives it (thread-local, static) ever held one.
//! - A run that cannot be computed stops the thread. It never leaves as plaintext.
//!
//! Must never see: stores, containers, vaults. No I/O, no clock.

#[cfg(feature = "aws-lc")]
mod awslc;
mod rustcrypto;
mod selftest;
#[cfg(target_arch = "x86_64")]
mod vaes;

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::{Secret, scrub_registers};
use crate::units::{Sector, SectorSize};

pub use selftest::self_test;

/// The 64 bytes that encrypt a disk: key1 (data) and key2 (tweak), which differ (FIPS 140-2 IG A.9).
#[derive(Debug)]
pub struct VolumeKey(Secret<64>);

impl VolumeKey {
    /// A new one from the operating system's generator.
    ///
    /// # Errors
    /// No memory or no generator.
    pub fn generate() -> Result<Self> {
        Self::new(Secret::random()?)
    }

    /// Checked: the halves differ.
    ///
    /// # Errors
    /// `Damaged` when they are equal.
    pub fn new(bytes: Secret<64>) -> Result<Self> {
        let (data, tweak) = halves(&bytes);
        if bool::from(subtle::ConstantTimeEq::ct_eq(data.as_slice(), tweak.as_slice())) {
            return Err(Error::new(
                ErrorKind::Damaged,
                "volume key: found key1 == key2, allowed two different halves",
            )
            .hint(
                "the key does not come from a random generator: restore it from a backup, or make a new disk",
            ));
        }
        Ok(Self(bytes))
    }

    /// The bytes, as the vault wraps them.
    #[must_use]
    pub const fn secret(&self) -> &Secret<64> {
        &self.0
    }
}

/// key1 (data) and key2 (tweak).
fn halves(key: &Secret<64>) -> (&[u8; 32], &[u8; 32]) {
    let (halves, _) = key.expose().as_chunks::<32>();
    (&halves[0], &halves[1])
}

/// Which code does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// aws-lc through EVP: AES-NI, and VAES where the CPU has AVX-512.
    #[cfg(feature = "aws-lc")]
    AwsLc,
    /// Our own, for CPUs with VAES in 256-bit registers.
    #[cfg(target_arch = "x86_64")]
    Vaes,
    /// The portable crate `aes`, in batches.
    RustCrypto,
}

impl Engine {
    /// All that are compiled in and run on this CPU, the fastest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut engines = Vec::new();
        #[cfg(feature = "aws-lc")]
        engines.push(Self::AwsLc);
        #[cfg(target_arch = "x86_64")]
        if vaes::is_supported() {
            // Measured without AVX-512: this one is ahead by 1.5 to 1.9. With it, aws-lc is known to reach 12 GB/s, which
            // this one, at 9, is not expected to; the two were not compared on such a CPU.
            let place = if vaes::has_avx512() { engines.len() } else { 0 };
            engines.insert(place, Self::Vaes);
        }
        engines.push(Self::RustCrypto);
        engines
    }

    /// The fastest one.
    #[must_use]
    pub fn best() -> Self {
        Self::available()[0]
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => "aws-lc",
            #[cfg(target_arch = "x86_64")]
            Self::Vaes => "vaes",
            Self::RustCrypto => "rustcrypto",
        })
    }
}

/// A cipher for one disk. Shared by all threads: every method takes `&self` and may run at once with any other.
#[derive(Debug)]
pub struct XtsCipher {
    sector_size: SectorSize,
    worker: Worker,
}

#[derive(Debug)]
enum Worker {
    #[cfg(feature = "aws-lc")]
    AwsLc(awslc::Pool),
    #[cfg(target_arch = "x86_64")]
    Vaes(vaes::Vaes),
    RustCrypto(rustcrypto::Portable),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Encrypt,
    Decrypt,
}

impl XtsCipher {
    /// Expands the key.
    ///
    /// Make it after the last `fork` of the process: a child does not inherit memory locks.
    ///
    /// # Errors
    /// No memory.
    pub fn new(key: &VolumeKey, sector_size: SectorSize, engine: Engine) -> Result<Self> {
        let worker = match engine {
            #[cfg(feature = "aws-lc")]
            Engine::AwsLc => Worker::AwsLc(awslc::Pool::new(key)?),
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes => Worker::Vaes(vaes::Vaes::new(key)?),
            Engine::RustCrypto => Worker::RustCrypto(rustcrypto::Portable::new(key)),
        };
        scrub_registers();
        Ok(Self { sector_size, worker })
    }

    /// The data unit.
    #[must_use]
    pub const fn sector_size(&self) -> SectorSize {
        self.sector_size
    }

    /// Encrypts a run of whole sectors, the first of which is number `first`, from `plain` into `out`
    /// (same length, a multiple of the sector size).
    ///
    /// # Panics
    /// On lengths that break this contract, and on a run that ends past [`crate::units::MAX_BYTES`].
    pub fn encrypt_to(&self, first: Sector, plain: &[u8], out: &mut [u8]) {
        self.crypt(Direction::Encrypt, first, Some(plain), out);
    }

    /// Encrypts a run of whole sectors in place.
    ///
    /// # Panics
    /// As [`Self::encrypt_to`].
    pub fn encrypt(&self, first: Sector, run: &mut [u8]) {
        self.crypt(Direction::Encrypt, first, None, run);
    }

    /// Decrypts a run of whole sectors from `cipher` into `out` (same length, a multiple of the sector size).
    ///
    /// # Panics
    /// As [`Self::encrypt_to`].
    pub fn decrypt_to(&self, first: Sector, cipher: &[u8], out: &mut [u8]) {
        self.crypt(Direction::Decrypt, first, Some(cipher), out);
    }

    /// Decrypts a run of whole sectors in place.
    ///
    /// # Panics
    /// As [`Self::encrypt_to`].
    pub fn decrypt(&self, first: Sector, run: &mut [u8]) {
        self.crypt(Direction::Decrypt, first, None, run);
    }

    /// From `from`, or in place when there is none.
    fn crypt(&self, direction: Direction, first: Sector, from: Option<&[u8]>, run: &mut [u8]) {
        let sector = self.sector_size.len();
        assert!(
            run.len().is_multiple_of(sector) && from.is_none_or(|from| from.len() == run.len()),
            "xts: a run of {} bytes from {:?}: allowed equal lengths, a multiple of {sector}",
            run.len(),
            from.map(<[u8]>::len),
        );
        if run.is_empty() {
            return;
        }
        let tweaks = Tweaks::new(first, self.sector_size, run.len());
        match &self.worker {
            #[cfg(feature = "aws-lc")]
            Worker::AwsLc(pool) => pool.crypt(direction, tweaks, from, run),
            #[cfg(target_arch = "x86_64")]
            Worker::Vaes(wide) => wide.crypt(direction, tweaks, from, run),
            Worker::RustCrypto(portable) => portable.crypt(direction, tweaks, from, run),
        }
        // Round keys and plaintext. Before the gate's crypto section ends, so that a fence finds none in any thread.
        scrub_registers();
    }
}

/// The plain64 tweaks of a run, one per sector: a little-endian u64 that counts **512-byte units, even with
/// 4096-byte sectors** (dm-crypt without `iv_large_sectors`), then eight zero bytes.
#[derive(Clone, Copy, Debug)]
struct Tweaks {
    next: u64,
    step: u64,
    sector: usize,
}

impl Tweaks {
    const UNIT: u64 = 512;

    /// Checked once for the whole run: a count that wrapped would silently reuse another sector's tweak.
    fn new(first: Sector, size: SectorSize, run: usize) -> Self {
        let end = first.get().checked_mul(size.bytes()).and_then(|start| start.checked_add(run as u64));
        assert!(
            end.is_some_and(|end| end <= crate::units::MAX_BYTES),
            "xts: {run} bytes at sector {first}: allowed up to byte {}",
            crate::units::MAX_BYTES,
        );
        let step = size.bytes() / Self::UNIT;
        Self { next: first.get() * step, step, sector: size.len() }
    }

    /// Bytes in a sector.
    const fn sector(&self) -> usize {
        self.sector
    }

    /// The tweak of the next sector.
    fn take(&mut self) -> [u8; 16] {
        let tweak = u128::from(self.next).to_le_bytes();
        self.next += self.step;
        tweak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(n: u64) -> Sector {
        Sector::new(n).unwrap()
    }

    #[test]
    fn plain64_counts_512_byte_units_whatever_the_sector() {
        let mut small = Tweaks::new(sector(7), SectorSize::B512, 1024);
        let mut large = Tweaks::new(sector(7), SectorSize::B4096, 8192);
        let taken = [small.take(), small.take(), large.take(), large.take()].map(u128::from_le_bytes);
        assert_eq!(taken, [7, 8, 56, 64]);
    }

    #[test]
    fn the_last_sector_of_the_largest_disk_has_a_tweak() {
        let last = (crate::units::MAX_BYTES + 1) / 4096 - 2;
        let mut tweaks = Tweaks::new(sector(last), SectorSize::B4096, 4096);
        assert_eq!(u128::from_le_bytes(tweaks.take()), u128::from(last) * 8);
    }

    #[test]
    #[should_panic(expected = "allowed up to byte")]
    fn a_run_past_the_largest_disk_is_refused() {
        let last = (crate::units::MAX_BYTES + 1) / 4096 - 1;
        Tweaks::new(sector(last), SectorSize::B4096, 4096);
    }

    #[test]
    #[should_panic(expected = "allowed up to byte")]
    fn a_sector_whose_tweak_would_wrap_is_refused() {
        Tweaks::new(sector(1 << 61), SectorSize::B4096, 4096);
    }

    #[test]
    fn equal_halves_are_refused_and_the_message_shows_no_byte() {
        let same = Secret::try_from_fn(|key: &mut [u8; 64]| {
            key.fill(0x5a);
            Ok(())
        });
        let e = VolumeKey::new(same.unwrap()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Damaged);
        assert_eq!(e.to_string(), "volume key: found key1 == key2, allowed two different halves");
    }
}
