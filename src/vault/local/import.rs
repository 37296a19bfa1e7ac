//! Reading a private key that somebody brings: PEM and DER (PKCS#8, encrypted PKCS#8, PKCS#1), JWK (RFC 7518 6.3).
//! The bytes are hostile input; what comes out passed every check of [`super::rsa`].
//!
//! Must never see: the database, permissions, files.
//! Invariant: decoded secrets live in [`SecretBytes`] or in the DER crate's document, which wipes itself.

use ::rsa::pkcs1;
use ::rsa::pkcs8::der::Decode;
use ::rsa::pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef, SecretDocument};
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::rsa::{Parts, PrivateKey};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::SecretBytes;

/// A 4096-bit key needs 3.2 KiB of PEM; with text around it a file may be longer.
const MAX_FILE: usize = 64 * 1024;

const FORMS: &str = "PEM or DER of a PKCS#8, encrypted PKCS#8 or PKCS#1 RSA private key, or a JWK";

/// base64url; padding accepted, never needed (RFC 7515 section 2).
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A private key from outside that passed every check: exact size, n = p*q, d*e = 1, factors prime.
#[derive(Debug)]
pub struct ImportedKey(PrivateKey);

impl ImportedKey {
    /// From a PEM or DER file. `passphrase` is used for encrypted PKCS#8 only.
    ///
    /// # Errors
    /// `InvalidInput` (another format, a bad key), `WrongKey` (passphrase missing or wrong).
    pub fn from_pem(bytes: &[u8], passphrase: Option<&[u8]>) -> Result<Self> {
        check_size(bytes)?;
        if !bytes.windows(11).any(|w| w == b"-----BEGIN ") {
            return from_der(bytes, passphrase);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| unknown("a PEM file that is not text"))?;
        if text.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(unknown("PKCS#1 under OpenSSL's old encryption")
                .hint("convert it: openssl pkcs8 -topk8 -in FILE -out NEW"));
        }
        let (label, document) = SecretDocument::from_pem(block(text))
            .map_err(|e| unknown("damaged PEM").caused_by(e.to_string()))?;
        match label {
            "PRIVATE KEY" => from_pkcs8(document.as_bytes()),
            "RSA PRIVATE KEY" => from_pkcs1(document.as_bytes()),
            "ENCRYPTED PRIVATE KEY" => from_encrypted(document.as_bytes(), passphrase),
            other => Err(unknown(&format!("PEM of a \"{}\"", other.escape_debug()))),
        }
    }

    /// From a JSON Web Key with `n e d p q`; `dp dq qi` are computed anew.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn from_jwk(json: &[u8]) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Jwk<'a> {
            // Borrowed: a secret is never copied into a string of serde's.
            kty: &'a str,
            n: &'a str,
            e: &'a str,
            d: &'a str,
            p: &'a str,
            q: &'a str,
        }
        check_size(json)?;
        let jwk: Jwk<'_> = serde_json::from_slice(json).map_err(|e| {
            // serde's message could quote a value; its position cannot.
            unknown(&format!("JSON without a whole RSA JWK (line {}, column {})", e.line(), e.column()))
                .hint("needed: kty \"RSA\" and n, e, d, p, q as base64url strings")
        })?;
        // An HSM key's kty is "RSA-HSM": it never leaves its HSM, so it cannot come from a file.
        if jwk.kty != "RSA" {
            return Err(unknown(&format!("a JWK of kty \"{}\"", short(jwk.kty))));
        }
        let (n, e, d) = (decode("n", jwk.n)?, decode("e", jwk.e)?, decode("d", jwk.d)?);
        let (p, q) = (decode("p", jwk.p)?, decode("q", jwk.q)?);
        let parts = Parts { n: n.expose(), e: e.expose(), d: d.expose(), p: p.expose(), q: q.expose() };
        PrivateKey::from_parts(&parts).map(Self)
    }

    pub(super) const fn key(&self) -> &PrivateKey {
        &self.0
    }
}

/// PKCS#8 with every check of a file that somebody brings.
///
/// # Errors
/// As [`ImportedKey::from_pem`].
pub(super) fn checked_pkcs8(der: &SecretBytes) -> Result<PrivateKey> {
    from_pkcs8(der.expose()).map(|key| key.0)
}

/// The private key among what else a PEM file holds (certificates, text before and after); else the first block.
fn block(text: &str) -> &str {
    const BEGIN: &str = "-----BEGIN ";
    const END: &str = "-----END ";
    const DASHES: &str = "-----";
    let mut blocks = text.match_indices(BEGIN).map(|(at, _)| &text[at..]);
    let first = blocks.clone().next().unwrap_or(text);
    let from = blocks
        .find(|b| b.lines().next().is_some_and(|line| line.trim_end().ends_with("PRIVATE KEY-----")))
        .unwrap_or(first);
    let end = from.find(END).and_then(|at| {
        let label = at + END.len();
        from[label..].find(DASHES).map(|len| label + len + DASHES.len())
    });
    end.map_or(from, |end| &from[..end])
}

fn from_der(der: &[u8], passphrase: Option<&[u8]>) -> Result<ImportedKey> {
    // The three forms differ in their second element: an algorithm, a version followed by one, a bare modulus.
    if PrivateKeyInfoRef::from_der(der).is_ok() {
        from_pkcs8(der)
    } else if EncryptedPrivateKeyInfoRef::from_der(der).is_ok() {
        from_encrypted(der, passphrase)
    } else if pkcs1::RsaPrivateKeyRef::from_der(der).is_ok() {
        from_pkcs1(der)
    } else {
        Err(unknown("something else"))
    }
}

fn from_pkcs8(der: &[u8]) -> Result<ImportedKey> {
    let info =
        PrivateKeyInfoRef::from_der(der).map_err(|e| unknown("damaged PKCS#8").caused_by(e.to_string()))?;
    if info.algorithm.oid != pkcs1::ALGORITHM_OID {
        return Err(unknown(&format!("a key of algorithm {} (not rsaEncryption)", info.algorithm.oid)));
    }
    from_pkcs1(info.private_key.as_bytes())
}

fn from_pkcs1(der: &[u8]) -> Result<ImportedKey> {
    let key = pkcs1::RsaPrivateKeyRef::from_der(der)
        .map_err(|e| unknown("damaged PKCS#1").caused_by(e.to_string()))?;
    if key.version() != pkcs1::Version::TwoPrime {
        return Err(unknown("a key of more than two primes"));
    }
    let parts = Parts {
        n: key.modulus.as_bytes(),
        e: key.public_exponent.as_bytes(),
        d: key.private_exponent.as_bytes(),
        p: key.prime1.as_bytes(),
        q: key.prime2.as_bytes(),
    };
    PrivateKey::from_parts(&parts).map(ImportedKey)
}

fn from_encrypted(der: &[u8], passphrase: Option<&[u8]>) -> Result<ImportedKey> {
    let info = EncryptedPrivateKeyInfoRef::from_der(der)
        .map_err(|e| unknown("damaged encrypted PKCS#8").caused_by(e.to_string()))?;
    let wrong =
        |found: &str| Error::new(ErrorKind::WrongKey, format!("read an encrypted private key: {found}"));
    let passphrase = passphrase.ok_or_else(|| {
        wrong("found no passphrase")
            .hint("give the passphrase of the key file, or decrypt it: openssl pkey -in FILE")
    })?;
    let document = info.decrypt(passphrase).map_err(|e| {
        wrong(
            "the passphrase does not open it, or its cipher is not one of PBES2 with AES (PBKDF2 or scrypt)",
        )
        .caused_by(e.to_string())
    })?;
    from_pkcs8(document.as_bytes())
}

fn decode(member: &str, text: &str) -> Result<SecretBytes> {
    let refuse = || unknown(&format!("a JWK whose {member} is not base64url"));
    let mut bytes = SecretBytes::zeroed(text.len() + 3)?; // at least what comes out
    let len = BASE64URL.decode_slice(text, bytes.expose_mut()).map_err(|_| refuse())?;
    bytes.truncate(len);
    Ok(bytes)
}

fn check_size(bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() || bytes.len() > MAX_FILE {
        return Err(unknown(&format!("{} bytes (allowed 1 to {MAX_FILE})", bytes.len())));
    }
    Ok(())
}

fn short(text: &str) -> String {
    text.chars().take(32).flat_map(char::escape_debug).collect()
}

fn unknown(found: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("read a private key: found {found}, allowed {FORMS}"))
}
