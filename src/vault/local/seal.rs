//! The root key and what it seals: private keys at rest, and the MAC of the audit head.
//!
//! Must never see: the database, RSA, permissions.
//!
//! Invariants:
//! 1. The root key is read when it is needed (root_file.rs) and wiped afterwards.
//! 2. It is used through sub-keys only (HKDF-SHA256, RFC 5869), one label a purpose.
//! 3. A sealed blob opens only where it was put: the AAD binds vault, key, version, format and root key generation.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::secret::{Secret, SecretBytes, random, scrubbed};

/// Its file, beside the database.
pub(super) const ROOT_KEY: &str = "root.key";

/// Generation of a vault's first root key.
pub(super) const FIRST_GENERATION: u32 = 1;

pub(super) const LEN: usize = 32;
const SEAL_LABEL: &str = "wrapdisk/vault/seal/v1";
const BACKUP_LABEL: &str = "wrapdisk/vault/backup/v1";
const AUDIT_LABEL: &str = "wrapdisk/vault/audit/v1";

/// Layout of a sealed blob: format u32be, generation u32be, nonce, ciphertext, tag.
const FORMAT: u32 = 1;
pub(super) const NONCE: usize = 24;
pub(super) const TAG: usize = 16;
const HEADER: usize = 8 + NONCE;

/// The 32 bytes everything in a vault hangs on.
#[derive(Debug)]
pub(super) struct RootKey(Secret<LEN>);

/// Where a sealed blob belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The vault.
    pub(super) vault: &'a Uuid,
    /// The key's row; nil for what belongs to the vault itself.
    pub(super) key: &'a Uuid,
    /// The key's version, or what of the vault it is.
    pub(super) version: &'a str,
}

impl Place<'_> {
    fn aad(&self, format: u32, generation: u32) -> Vec<u8> {
        let mut aad = Vec::with_capacity(40 + self.version.len());
        aad.extend_from_slice(&format.to_be_bytes());
        aad.extend_from_slice(&generation.to_be_bytes());
        aad.extend_from_slice(self.vault.as_bytes());
        aad.extend_from_slice(self.key.as_bytes());
        aad.extend_from_slice(self.version.as_bytes()); // last: the only part of variable length
        aad
    }
}

impl RootKey {
    /// A new one.
    ///
    /// # Errors
    /// No memory, no random generator.
    pub(super) fn random() -> Result<Self> {
        Ok(Self(Secret::random()?))
    }

    /// Takes the bytes of one and wipes the source; `None` when there are more or fewer than 32.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn take(bytes: &mut [u8]) -> Result<Option<Self>> {
        Ok(Secret::take(bytes)?.map(Self))
    }

    fn sub_key(&self, label: &str) -> Result<Secret<LEN>> {
        Secret::try_from_fn(|out| {
            scrubbed(|| Hkdf::<Sha256>::new(None, self.0.expose()).expand(label.as_bytes(), out))
                .map_err(|_| Error::new(ErrorKind::Other, "derive a sub-key of the root key"))
        })
    }

    /// Seals `plain` for one place (XChaCha20-Poly1305, random nonce).
    ///
    /// # Errors
    /// No memory, no random generator.
    pub(super) fn seal(&self, place: Place<'_>, generation: u32, plain: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0u8; NONCE];
        random(&mut nonce)?;
        // Encrypted where it is wiped: the plaintext never touches the blob's own memory.
        let mut work = SecretBytes::zeroed(plain.len())?;
        work.expose_mut().copy_from_slice(plain);
        let tag = self
            .cipher()?
            .encrypt_inout_detached(
                &XNonce::from(nonce),
                &place.aad(FORMAT, generation),
                work.expose_mut().into(),
            )
            .map_err(|_| Error::new(ErrorKind::Other, "seal a private key"))?;
        let mut blob = Vec::with_capacity(HEADER + plain.len() + TAG);
        blob.extend_from_slice(&FORMAT.to_be_bytes());
        blob.extend_from_slice(&generation.to_be_bytes());
        blob.extend_from_slice(&nonce);
        blob.extend_from_slice(work.expose());
        blob.extend_from_slice(&tag);
        Ok(blob)
    }

    /// Opens what [`RootKey::seal`] made for the same place.
    ///
    /// # Errors
    /// `Damaged`: cut, changed, moved from elsewhere, or sealed under another root key.
    pub(super) fn unseal(&self, place: Place<'_>, generation: u32, blob: &[u8]) -> Result<SecretBytes> {
        let damaged = |found: String| Error::new(ErrorKind::Damaged, format!("open a sealed key: {found}"));
        let (header, rest) = blob.split_at_checked(HEADER).ok_or_else(|| {
            damaged(format!("found {} bytes, allowed {} or more", blob.len(), HEADER + TAG))
        })?;
        let (body, tag) = rest.split_last_chunk::<TAG>().ok_or_else(|| {
            damaged(format!("found {} bytes, allowed {} or more", blob.len(), HEADER + TAG))
        })?;
        let (numbers, nonce) = header.split_at(8);
        let format = be32(&numbers[..4]);
        let sealed_under = be32(&numbers[4..]);
        if format != FORMAT {
            return Err(damaged(format!("found format {format}, allowed {FORMAT}")));
        }
        if sealed_under != generation {
            return Err(damaged(format!("found root key generation {sealed_under}, allowed {generation}")));
        }
        let nonce: [u8; NONCE] = nonce.try_into().expect("the header ends with the nonce");
        let mut plain = SecretBytes::zeroed(body.len())?;
        plain.expose_mut().copy_from_slice(body);
        self.cipher()?
            .decrypt_inout_detached(
                &XNonce::from(nonce),
                &place.aad(format, sealed_under),
                plain.expose_mut().into(),
                &Tag::from(*tag),
            )
            .map_err(|_| damaged("it was changed, moved, or sealed under another root.key".into()))?;
        Ok(plain)
    }

    /// What backups of keys are sealed under.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn backup_key(&self) -> Result<Self> {
        self.sub_key(BACKUP_LABEL).map(Self)
    }

    /// A key that does not come from `root.key`: a passphrase's, a retired sub-key.
    pub(super) const fn from_secret(key: Secret<LEN>) -> Self {
        Self(key)
    }

    /// Its bytes, to be sealed elsewhere.
    pub(super) fn expose(&self) -> &[u8; LEN] {
        self.0.expose()
    }

    /// A key's own wrapping key, and the same sealed for `place`: what it seals dies with that blob (RULINGS 32), and a new
    /// root key seals only these again. It seals under [`FIRST_GENERATION`], always.
    ///
    /// # Errors
    /// No memory, no random generator.
    pub(super) fn new_wrapping(&self, place: Place<'_>, generation: u32) -> Result<(Self, Vec<u8>)> {
        let wrapping = Secret::<LEN>::random()?;
        let blob = self.seal(place, generation, wrapping.expose())?;
        Ok((Self(wrapping), blob))
    }

    /// Opens what [`RootKey::new_wrapping`] sealed.
    ///
    /// # Errors
    /// As [`RootKey::unseal`].
    pub(super) fn open_wrapping(&self, place: Place<'_>, generation: u32, blob: &[u8]) -> Result<Self> {
        let mut plain = self.unseal(place, generation, blob)?;
        let wrapping = Secret::take(plain.expose_mut())?;
        wrapping
            .map(Self)
            .ok_or_else(|| Error::new(ErrorKind::Damaged, "a key's wrapping key has another length"))
    }

    /// HMAC-SHA256 over `message` under the audit sub-key.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn audit_mac(&self, message: &[u8]) -> Result<[u8; 32]> {
        let key = self.sub_key(AUDIT_LABEL)?;
        Ok(scrubbed(|| {
            let mut mac =
                <Hmac<Sha256> as KeyInit>::new_from_slice(key.expose()).expect("HMAC takes any key length");
            mac.update(message);
            mac.finalize().into_bytes().into()
        }))
    }

    /// Whether `mac` is [`RootKey::audit_mac`] of `message`, in constant time.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn audit_mac_is(&self, message: &[u8], mac: &[u8]) -> Result<bool> {
        Ok(self.audit_mac(message)?.ct_eq(mac).into())
    }

    fn cipher(&self) -> Result<XChaCha20Poly1305> {
        let key = self.sub_key(SEAL_LABEL)?;
        // It copies the key and wipes the copy when dropped (feature `zeroize`).
        Ok(XChaCha20Poly1305::new(key.expose().into()))
    }
}

/// Under which generation of the root key a blob was sealed; `None` for what is too short to be one.
pub(super) fn sealed_generation(blob: &[u8]) -> Option<u32> {
    Some(be32(blob.get(4..8)?))
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("the callers cut four bytes"))
}

pub(super) fn wrong_length(path: &Path) -> Error {
    Error::new(
        ErrorKind::Damaged,
        format!("the vault's root key: found another length or form, allowed {LEN} bytes, or a sealed one"),
    )
    .at(path)
    .hint("restore root.key from your backup")
}

/// A root key that others could have read is not one (KEY-VAULT section 2).
pub(super) fn check_private(file: &File, path: &Path) -> Result<()> {
    let meta = file.metadata().io_at("look at the vault's root key", path)?;
    let refuse = |found: String, hint: String| {
        Err(Error::new(ErrorKind::PermissionDenied, format!("the vault's root key: {found}"))
            .at(path)
            .hint(hint))
    };
    if !meta.is_file() {
        return refuse(
            "found something else, allowed a regular file".into(),
            "restore it from your backup".into(),
        );
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return refuse(
            format!("found mode {mode:04o}, allowed 0600 (others could read it)"),
            format!("chmod 600 {}, and consider who may have read it", path.display()),
        );
    }
    // Root may use another user's state (RULINGS 1), nobody else may.
    let me = nix::unistd::geteuid();
    if !me.is_root() && meta.uid() != me.as_raw() {
        return refuse(
            format!("found owner uid {}, allowed {me}", meta.uid()),
            "use your own vault, or run as its owner".into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_opens_only_in_the_place_it_was_sealed_for() {
        let root = RootKey::random().unwrap();
        let (vault, key, other) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
        let place = Place { vault: &vault, key: &key, version: "v1" };
        let blob = root.seal(place, 1, b"private").unwrap();
        assert_eq!(root.unseal(place, 1, &blob).unwrap().expose(), b"private");
        for elsewhere in [
            Place { vault: &other, ..place },
            Place { key: &other, ..place },
            Place { version: "v2", ..place },
        ] {
            assert!(root.unseal(elsewhere, 1, &blob).is_err(), "{elsewhere:?}");
        }
        assert!(root.unseal(place, 2, &blob).is_err());
        let stranger = RootKey(Secret::random().unwrap());
        assert!(stranger.unseal(place, 1, &blob).is_err());
    }

    #[test]
    fn every_changed_or_missing_byte_of_a_blob_is_found() {
        let root = RootKey(Secret::random().unwrap());
        let id = Uuid::new_v4();
        let place = Place { vault: &id, key: &id, version: "v" };
        let blob = root.seal(place, 7, b"private").unwrap();
        for at in 0..blob.len() {
            let mut bad = blob.clone();
            bad[at] ^= 1;
            assert!(root.unseal(place, 7, &bad).is_err(), "byte {at}");
            assert!(root.unseal(place, 7, &blob[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn sub_keys_are_hkdf_sha256_of_the_published_labels() {
        // Judge: openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt hexkey:00..1f -kdfopt info:LABEL HKDF
        let mut bytes: Vec<u8> = (0..32).collect();
        let root = RootKey(Secret::take(&mut bytes).unwrap().unwrap());
        for label in [SEAL_LABEL, BACKUP_LABEL, AUDIT_LABEL] {
            let judge = std::process::Command::new("openssl")
                .args(["kdf", "-keylen", "32", "-kdfopt", "digest:SHA256"])
                .args(["-kdfopt", "hexkey:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"])
                .args(["-kdfopt", &format!("info:{label}"), "HKDF"])
                .output()
                .expect("the test needs the openssl command");
            assert!(judge.status.success(), "{}", String::from_utf8_lossy(&judge.stderr));
            let theirs = String::from_utf8(judge.stdout).unwrap().trim().replace(':', "").to_lowercase();
            let ours: String =
                root.sub_key(label).unwrap().expose().iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(ours, theirs, "{label}");
        }
    }
}
