//! AES-256-XTS (IEEE 1619-2018) over runs of sectors, with the plain64 tweak of dm-crypt. (stub: completed by its owner)
//!
//! Must never see: stores, containers, vaults. No I/O, no clock.

use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;
use crate::units::{Sector, SectorSize};

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
        let (data, tweak) = bytes.expose().split_at(32);
        if bool::from(subtle::ConstantTimeEq::ct_eq(data, tweak)) {
            return Err(Error::new(
                ErrorKind::Damaged,
                "volume key: found key1 == key2, allowed two different halves",
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

/// Which code does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// aws-lc through EVP: VAES where the CPU has it.
    #[cfg(feature = "aws-lc")]
    AwsLc,
    /// The portable crate `aes`, in batches.
    RustCrypto,
}

/// A cipher for one disk. Shared by all threads.
#[derive(Debug)]
pub struct XtsCipher {
    sector_size: SectorSize,
}

impl XtsCipher {
    /// Expands the key.
    ///
    /// # Errors
    /// No memory.
    pub fn new(_key: &VolumeKey, sector_size: SectorSize, _engine: Engine) -> Result<Self> {
        Ok(Self { sector_size })
    }

    /// The data unit.
    #[must_use]
    pub const fn sector_size(&self) -> SectorSize {
        self.sector_size
    }

    /// Encrypts a run of whole sectors, the first of which is number `first`, from `plain` into `out`
    /// (same length, a multiple of the sector size).
    pub fn encrypt_to(&self, _first: Sector, plain: &[u8], out: &mut [u8]) {
        out.copy_from_slice(plain);
    }

    /// Encrypts a run of whole sectors in place.
    pub fn encrypt(&self, _first: Sector, _run: &mut [u8]) {}

    /// Decrypts a run of whole sectors in place.
    pub fn decrypt(&self, _first: Sector, _run: &mut [u8]) {}
}

impl Engine {
    /// The fastest one compiled in.
    #[must_use]
    pub const fn best() -> Self {
        #[cfg(feature = "aws-lc")]
        {
            Self::AwsLc
        }
        #[cfg(not(feature = "aws-lc"))]
        {
            Self::RustCrypto
        }
    }
}

/// Known answers of IEEE 1619 on the chosen engine, run once at start.
///
/// # Errors
/// `Other` when an engine computes something else: nothing may be encrypted with it.
pub fn self_test(_engine: Engine) -> Result<()> {
    Ok(())
}
