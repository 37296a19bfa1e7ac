//! What administration of keys takes and gives: plain values, no behaviour but parsing.
//!
//! Must never see: the database, private keys.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::rsa::RsaBits;
use crate::error::{Error, ErrorKind, Result};
use crate::vault::{KeyInfo, KeyOperation};

/// How a new version of a key shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// Size of the modulus.
    pub bits: RsaBits,
    /// Public exponent: odd, 65537 to 2^33.
    pub exponent: u64,
    /// Switched on, and when it is valid.
    pub attributes: KeyAttributes,
    /// What it may be used for; all six when `None`.
    pub operations: Option<Vec<KeyOperation>>,
    /// The owner's notes.
    pub tags: BTreeMap<String, String>,
}

impl Default for NewKey {
    fn default() -> Self {
        Self {
            bits: RsaBits::default(),
            exponent: 65537,
            attributes: KeyAttributes::default(),
            operations: None,
            tags: BTreeMap::new(),
        }
    }
}

impl NewKey {
    /// A key for data keys and nothing else: what a disk encryption set needs.
    #[must_use]
    pub fn wrapping(bits: RsaBits) -> Self {
        Self {
            bits,
            operations: Some(vec![KeyOperation::WrapKey, KeyOperation::UnwrapKey]),
            ..Self::default()
        }
    }
}

/// What can be set of a version. Times are unix seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyAttributes {
    /// Switched on?
    pub enabled: bool,
    /// Not before.
    pub not_before: Option<i64>,
    /// Expires.
    pub expires: Option<i64>,
}

impl Default for KeyAttributes {
    fn default() -> Self {
        Self { enabled: true, not_before: None, expires: None }
    }
}

/// A change of one version; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyUpdate {
    /// Switch on or off.
    pub enabled: Option<bool>,
    /// Not before, in unix seconds.
    pub not_before: Option<i64>,
    /// Expires, in unix seconds.
    pub expires: Option<i64>,
    /// What it may be used for.
    pub operations: Option<Vec<KeyOperation>>,
    /// The owner's notes, all of them.
    pub tags: Option<BTreeMap<String, String>>,
}

/// A piece of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The last name (or version) of the piece before; valid even when that is gone by now.
    pub after: Option<String>,
    /// At most so many; all when `None`.
    pub limit: Option<usize>,
}

impl Page {
    /// For SQLite, where a negative limit is none.
    pub(super) fn limit(&self) -> i64 {
        self.limit.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX))
    }
}

/// A key that was deleted and can be had back. Times are unix seconds.
#[derive(Clone, Debug)]
pub struct DeletedKey {
    /// Its latest version.
    pub key: KeyInfo,
    /// When it was deleted.
    pub deleted: i64,
    /// When it goes for good.
    pub scheduled_purge: i64,
}

/// The vault's own properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultSettings {
    /// Part of every kid.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// Like a directory's.
    pub tenant_id: Uuid,
    /// A label.
    pub location: String,
    /// How long a deleted key can be had back: 7 to 90.
    pub retention_days: u32,
    /// Deleted keys stay until then, whatever anybody says.
    pub purge_protection: bool,
}

impl VaultSettings {
    /// Azure's word for what happens to a deleted key.
    #[must_use]
    pub const fn recovery_level(&self) -> &'static str {
        match (self.purge_protection, self.retention_days < MAX_RETENTION) {
            (false, false) => "Recoverable+Purgeable",
            (true, false) => "Recoverable",
            (false, true) => "CustomizedRecoverable+Purgeable",
            (true, true) => "CustomizedRecoverable",
        }
    }
}

/// The longest retention, and the default.
pub(super) const MAX_RETENTION: u32 = 90;

/// A cipher of RFC 7518 section 4.3; RSA1_5 is served nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherAlg {
    /// RSAES-OAEP with SHA-1: for other clients, never for a disk.
    RsaOaep,
    /// RSAES-OAEP with SHA-256.
    RsaOaep256,
}

impl CipherAlg {
    /// The names of RFC 7518.
    pub const ALL: [Self; 2] = [Self::RsaOaep, Self::RsaOaep256];

    /// As in `alg`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RsaOaep => "RSA-OAEP",
            Self::RsaOaep256 => "RSA-OAEP-256",
        }
    }

    /// By its name.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        by_name("algorithm", text, &Self::ALL, Self::name)
    }
}

/// A signature of RFC 7518 sections 3.3 and 3.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignAlg {
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
}

impl SignAlg {
    /// Every one.
    pub const ALL: [Self; 6] = [Self::Ps256, Self::Ps384, Self::Ps512, Self::Rs256, Self::Rs384, Self::Rs512];

    /// As in `alg`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
        }
    }

    /// Length of the digest that is signed.
    #[must_use]
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Ps256 | Self::Rs256 => 32,
            Self::Ps384 | Self::Rs384 => 48,
            Self::Ps512 | Self::Rs512 => 64,
        }
    }

    /// By its name.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        by_name("algorithm", text, &Self::ALL, Self::name)
    }
}

fn by_name<T: Copy>(what: &str, text: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T> {
    all.iter().copied().find(|one| name(*one) == text).ok_or_else(|| {
        let shown: String = text.chars().take(32).flat_map(char::escape_debug).collect();
        let allowed = all.iter().map(|one| name(*one)).collect::<Vec<_>>().join(", ");
        Error::new(ErrorKind::InvalidInput, format!("{what}: found \"{shown}\", allowed {allowed}"))
    })
}
