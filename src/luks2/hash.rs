//! The hashes that a header may name, for digests, keyslots and the splitter: `luksFormat --hash` sets all three.

use sha2::{Digest, Sha256, Sha512};

use super::fields::Fields;
use super::refuse::{quoted, unsupported};
use crate::error::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    /// The member `hash` of an object.
    pub(super) fn parse(fields: &Fields<'_>) -> Result<Self> {
        match fields.string("hash")? {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            other => Err(unsupported(fields.path("hash"), quoted(other), "\"sha256\" or \"sha512\"")),
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Bytes of its output.
    pub(super) const fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// PBKDF2 with its HMAC; the caller scrubs the stack.
    pub(super) fn pbkdf2(self, secret: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
        match self {
            Self::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(secret, salt, iterations, out),
            Self::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(secret, salt, iterations, out),
        }
    }

    /// Replaces `chunk`, as long as the hash's output, by the hash of a number and itself.
    pub(super) fn replace(self, number: u32, chunk: &mut [u8]) {
        let number = number.to_be_bytes();
        match self {
            Self::Sha256 => hash_of::<Sha256>(number, chunk),
            Self::Sha512 => hash_of::<Sha512>(number, chunk),
        }
    }
}

fn hash_of<H: Digest>(number: [u8; 4], chunk: &mut [u8]) {
    let hash = H::new().chain_update(number).chain_update(&*chunk).finalize();
    chunk.copy_from_slice(&hash);
}
