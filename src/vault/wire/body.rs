//! Bodies of requests.
//!
//! Unknown members are ignored, `null` is as good as absent. What is wrong is told by line and column, never by quoting:
//! the body may hold a key.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Malformed, from_base64url, shown};
use crate::secret::SecretBytes;
use crate::vault::KeyOperation;

/// Azure's limits of tags.
const MAX_TAGS: usize = 15;
const MAX_TAG_NAME: usize = 512;
const MAX_TAG_VALUE: usize = 256;

/// Owner's notes on a key.
pub type Tags = BTreeMap<String, String>;

/// What a request says of a key's attributes; absent = not said. Times are unix seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Switched on?
    pub enabled: Option<bool>,
    /// Not before.
    pub not_before: Option<i64>,
    /// Expires.
    pub expires: Option<i64>,
}

/// `POST /keys/N/create`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateKey {
    /// Bits, if said.
    pub size: Option<u32>,
    /// If said.
    pub exponent: Option<u64>,
    /// If said.
    pub operations: Option<Vec<KeyOperation>>,
    /// What is said of them.
    pub attributes: Attributes,
    /// If said.
    pub tags: Option<Tags>,
}

/// `PUT /keys/N`.
pub struct ImportKey<'a> {
    /// The key itself, as it came: a JWK with its private part.
    pub jwk: &'a [u8],
    /// If said.
    pub operations: Option<Vec<KeyOperation>>,
    /// What is said of them.
    pub attributes: Attributes,
    /// If said.
    pub tags: Option<Tags>,
}

impl std::fmt::Debug for ImportKey<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImportKey").field("attributes", &self.attributes).finish_non_exhaustive()
    }
}

/// `PATCH /keys/N[/V]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateKey {
    /// If said.
    pub operations: Option<Vec<KeyOperation>>,
    /// What is said of them.
    pub attributes: Attributes,
    /// If said.
    pub tags: Option<Tags>,
}

/// `wrapkey`, `unwrapkey`, `encrypt`, `decrypt`, `sign`.
#[derive(Debug)]
pub struct UseKey {
    /// As it came.
    pub algorithm: String,
    /// Plaintext, ciphertext or digest.
    pub value: SecretBytes,
}

/// `verify`.
#[derive(Debug)]
pub struct VerifyKey {
    /// As it came.
    pub algorithm: String,
    /// Of what was signed.
    pub digest: SecretBytes,
    /// The signature.
    pub value: SecretBytes,
}

#[derive(Deserialize)]
struct RawAttributes {
    enabled: Option<bool>,
    nbf: Option<i64>,
    exp: Option<i64>,
    exportable: Option<bool>,
}

#[derive(Deserialize)]
struct RawKey<'a> {
    #[serde(borrow)]
    kty: Option<Cow<'a, str>>,
    key_size: Option<u32>,
    public_exponent: Option<u64>,
    #[serde(borrow)]
    key_ops: Option<Vec<Cow<'a, str>>>,
    attributes: Option<RawAttributes>,
    tags: Option<Tags>,
    #[serde(rename = "Hsm")]
    hsm: Option<bool>,
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    release_policy: Option<serde::de::IgnoredAny>,
}

impl CreateKey {
    /// # Errors
    /// No JSON, no RSA key, something that this vault does not do.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let raw: RawKey<'_> = json(body)?;
        match raw.kty.as_deref() {
            None => return Err(Malformed::new("kty is missing.")),
            Some("RSA") => {}
            Some(other) => {
                return Err(Malformed(format!(
                    "Keys of kty \"{}\" are not supported by this vault.",
                    shown(other)
                )));
            }
        }
        no_release(&raw)?;
        Ok(Self {
            size: raw.key_size,
            exponent: raw.public_exponent,
            operations: operations(raw.key_ops)?,
            attributes: attributes(raw.attributes)?,
            tags: tags(raw.tags)?,
        })
    }
}

impl<'a> ImportKey<'a> {
    /// # Errors
    /// No JSON, no key, something that this vault does not do.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        #[derive(Deserialize)]
        struct Ops<'a> {
            #[serde(borrow)]
            key_ops: Option<Vec<Cow<'a, str>>>,
        }
        let raw: RawKey<'a> = json(body)?;
        if raw.hsm == Some(true) {
            return Err(Malformed::new("Keys in an HSM are not supported by this vault."));
        }
        no_release(&raw)?;
        let jwk = raw.key.ok_or_else(|| Malformed::new("key is missing."))?.get().as_bytes();
        let ops: Ops<'_> = json(jwk)?;
        Ok(Self {
            jwk,
            operations: operations(ops.key_ops)?,
            attributes: attributes(raw.attributes)?,
            tags: tags(raw.tags)?,
        })
    }
}

impl UpdateKey {
    /// # Errors
    /// No JSON, unknown operations.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let raw: RawKey<'_> = json(body)?;
        no_release(&raw)?;
        Ok(Self {
            operations: operations(raw.key_ops)?,
            attributes: attributes(raw.attributes)?,
            tags: tags(raw.tags)?,
        })
    }
}

#[derive(Deserialize)]
struct RawUse<'a> {
    #[serde(borrow)]
    alg: Option<Cow<'a, str>>,
    #[serde(borrow)]
    value: Option<Cow<'a, str>>,
    #[serde(borrow)]
    digest: Option<Cow<'a, str>>,
}

impl UseKey {
    /// # Errors
    /// No JSON, a member missing, no base64url.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let raw: RawUse<'_> = json(body)?;
        Ok(Self { algorithm: algorithm(raw.alg)?, value: bytes("value", raw.value)? })
    }
}

impl VerifyKey {
    /// # Errors
    /// As [`UseKey::parse`].
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let raw: RawUse<'_> = json(body)?;
        Ok(Self {
            algorithm: algorithm(raw.alg)?,
            digest: bytes("digest", raw.digest)?,
            value: bytes("value", raw.value)?,
        })
    }
}

/// `POST /keys/restore`: the blob.
///
/// # Errors
/// No JSON, no base64url.
pub fn restore(body: &[u8]) -> Result<SecretBytes, Malformed> {
    let raw: RawUse<'_> = json(body)?;
    bytes("value", raw.value)
}

/// `POST /rng`: how many bytes.
///
/// # Errors
/// No JSON, not 1 to 128.
pub fn random(body: &[u8]) -> Result<usize, Malformed> {
    #[derive(Deserialize)]
    struct Raw {
        count: Option<u64>,
    }
    let raw: Raw = json(body)?;
    raw.count
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| (1..=128).contains(n))
        .ok_or_else(|| Malformed::new("count: allowed 1 to 128."))
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Malformed> {
    if body.is_empty() {
        return Err(Malformed::new("The request body is missing."));
    }
    serde_json::from_slice(body).map_err(|e| {
        // serde's own message could quote a value; a position cannot.
        Malformed(format!(
            "The request body is not the JSON that is wanted (line {}, column {}).",
            e.line(),
            e.column()
        ))
    })
}

fn no_release(raw: &RawKey<'_>) -> Result<(), Malformed> {
    match raw.release_policy {
        Some(_) => Err(Malformed::new("Secure key release is not supported by this vault.")),
        None => Ok(()),
    }
}

fn attributes(raw: Option<RawAttributes>) -> Result<Attributes, Malformed> {
    let Some(raw) = raw else { return Ok(Attributes::default()) };
    if raw.exportable == Some(true) {
        return Err(Malformed::new("Exportable keys are not supported by this vault."));
    }
    // Year 9999: what a client can show.
    let fits = |t: Option<i64>| t.is_none_or(|t| (0..=253_402_300_799).contains(&t));
    if !fits(raw.nbf) || !fits(raw.exp) {
        return Err(Malformed::new("attributes: nbf and exp are unix seconds."));
    }
    Ok(Attributes { enabled: raw.enabled, not_before: raw.nbf, expires: raw.exp })
}

fn operations(raw: Option<Vec<Cow<'_, str>>>) -> Result<Option<Vec<KeyOperation>>, Malformed> {
    let Some(names) = raw else { return Ok(None) };
    let mut found = Vec::new();
    for name in &names {
        let operation = KeyOperation::parse(name).map_err(|_| {
            Malformed(format!("key_ops: \"{}\" is not supported by this vault.", shown(name)))
        })?;
        if !found.contains(&operation) {
            found.push(operation);
        }
    }
    Ok(Some(found))
}

fn tags(raw: Option<Tags>) -> Result<Option<Tags>, Malformed> {
    let Some(tags) = raw else { return Ok(None) };
    if tags.len() > MAX_TAGS {
        return Err(Malformed(format!("tags: found {}, allowed {MAX_TAGS}.", tags.len())));
    }
    if tags.iter().any(|(name, value)| name.len() > MAX_TAG_NAME || value.len() > MAX_TAG_VALUE) {
        return Err(Malformed(format!(
            "tags: a name may have {MAX_TAG_NAME} bytes and a value {MAX_TAG_VALUE}."
        )));
    }
    Ok(Some(tags))
}

fn algorithm(raw: Option<Cow<'_, str>>) -> Result<String, Malformed> {
    raw.map(Cow::into_owned).ok_or_else(|| Malformed::new("alg is missing."))
}

fn bytes(member: &str, raw: Option<Cow<'_, str>>) -> Result<SecretBytes, Malformed> {
    let text = raw.ok_or_else(|| Malformed(format!("{member} is missing.")))?;
    from_base64url(&text).map_err(|_| Malformed(format!("{member} is not base64url.")))
}
