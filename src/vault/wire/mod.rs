//! What goes over the wire in Azure Key Vault's REST API: paths and queries ([`Route`]), hosts and audiences, bodies of
//! requests ([`body`]) and of answers ([`answer`]). Text in, values out, and back: no I/O.
//!
//! Must never see: sockets, the database, permissions, private keys.
//!
//! Invariants:
//! 1. Everything that comes in is hostile: it is bounded before it is parsed, and what is wrong with it is said without
//!    quoting a value that may be a secret.
//! 2. Bytes are base64url without padding on the way out; padding is accepted on the way in (RFC 4648 section 5).
//! 3. A value that may be a key lives in [`SecretBytes`]; JSON text around it is wiped by the program's allocator.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::secret::SecretBytes;

pub mod answer;
pub mod body;
mod form;
mod fuzz;
mod host;
mod route;

pub use self::form::Form;
#[doc(hidden)]
pub use self::fuzz::{fuzz_body, fuzz_route};
pub use self::host::{Audience, Host};
pub use self::route::{Page, Place, Query, Route, SignInPlace, Unroutable, place};

/// Longest body of a request.
pub const MAX_BODY: usize = 64 * 1024;

/// Longest body of a restore.
pub const MAX_RESTORE_BODY: usize = 1024 * 1024;

/// base64url; padding accepted, never written.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is wrong with a request, for a 400 `BadParameter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl Malformed {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// As text.
#[must_use]
pub fn to_base64url(bytes: &[u8]) -> String {
    BASE64URL.encode(bytes)
}

/// From text, into memory that is wiped.
///
/// # Errors
/// It is no base64url.
pub fn from_base64url(text: &str) -> Result<SecretBytes, Malformed> {
    let no_memory = |_| Malformed::new("the value is too long");
    let mut bytes = SecretBytes::zeroed(text.len() + 3).map_err(no_memory)?; // at least what comes out
    let len = BASE64URL
        .decode_slice(text, bytes.expose_mut())
        .map_err(|_| Malformed::new("the value is not base64url"))?;
    bytes.truncate(len);
    Ok(bytes)
}

/// A hostile text, short and printable.
#[must_use]
pub fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}
