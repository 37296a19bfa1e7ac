//! What a vault says of a key, and what may be done with one, in Azure's words.
//!
//! Must never see: private parts of keys.

use std::collections::BTreeMap;

use crate::envelope::Kid;
use crate::error::{Error, ErrorKind, Result};

/// An operation that a key can be allowed (`key_ops`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyOperation {
    /// With the public half.
    Encrypt,
    /// With the private half.
    Decrypt,
    /// With the private half.
    Sign,
    /// With the public half.
    Verify,
    /// With the public half: encrypt a key.
    WrapKey,
    /// With the private half: decrypt a key.
    UnwrapKey,
}

impl KeyOperation {
    /// Every operation, in the order in which Azure lists them.
    pub const ALL: [Self; 6] =
        [Self::Encrypt, Self::Decrypt, Self::Sign, Self::Verify, Self::WrapKey, Self::UnwrapKey];

    /// As in `key_ops`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Sign => "sign",
            Self::Verify => "verify",
            Self::WrapKey => "wrapKey",
            Self::UnwrapKey => "unwrapKey",
        }
    }

    /// By its name, without regard to case.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|op| op.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let shown: String = text.chars().take(32).flat_map(char::escape_debug).collect();
            let allowed = Self::ALL.map(Self::name).join(", ");
            Error::new(
                ErrorKind::InvalidInput,
                format!("key operation: found \"{shown}\", allowed {allowed}"),
            )
        })
    }
}

/// What a vault says of one version of a key; no private part. Times are unix seconds.
#[derive(Clone, Debug)]
pub struct KeyInfo {
    /// With version.
    pub kid: Kid,
    /// 2048, 3072 or 4096.
    pub bits: u32,
    /// Switched on?
    pub enabled: bool,
    /// Not before.
    pub not_before: Option<i64>,
    /// Expires.
    pub expires: Option<i64>,
    /// Made, or imported.
    pub created: i64,
    /// Last changed.
    pub updated: i64,
    /// What it may be used for.
    pub operations: Vec<KeyOperation>,
    /// The owner's notes.
    pub tags: BTreeMap<String, String>,
    /// Modulus, big-endian, without leading zeros.
    pub n: Vec<u8>,
    /// Public exponent, likewise.
    pub e: Vec<u8>,
}
