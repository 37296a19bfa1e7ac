//! What an identity proves itself with at the token endpoints: client secrets and identity headers.
//!
//! Must never see: keys, grants, tokens.
//!
//! Invariants:
//! 1. Only an HMAC of a secret is kept, and its key is sealed under the root key: a thief of `vault.db` alone cannot even
//!    guess. It is bound to kind and, for client secrets, to the identity, so two equal secrets do not show.
//! 2. A secret leaves this module once, when it was generated.

use hmac::{Hmac, KeyInit, Mac};
use rusqlite::params;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::identities::{GET, PATCH};
use super::refusal::Fail;
use super::{LocalVault, Work, now};
use crate::error::Result;
use crate::secret::{SecretBytes, random, scrubbed};
use crate::vault::Call;

/// The name of the HMAC's key among the vault's secrets.
const HASH_KEY: &str = "credentials";
const HASH_DOMAIN: &[u8] = b"wrapdisk credential v1";
/// Of a secret that somebody brings. A generated one has 43 characters, 256 bits.
const LENGTHS: std::ops::RangeInclusive<usize> = 16..=1024;
/// Old and new one during a change, with room; so that checking stays cheap.
const MOST_PER_IDENTITY: u32 = 16;

/// What a credential is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// `client_secret` of the client credentials flow.
    ClientSecret,
    /// `X-IDENTITY-HEADER` of the managed identity endpoint: it selects the identity as well.
    IdentityHeader,
}

impl CredentialKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::ClientSecret, Self::IdentityHeader];

    /// As the database and the command line have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClientSecret => "client-secret",
            Self::IdentityHeader => "identity-header",
        }
    }
}

/// A credential, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Names it to [`LocalVault::remove_credential`].
    pub id: i64,
    /// What it is for.
    pub kind: CredentialKind,
    /// Unix seconds.
    pub created: i64,
    /// Unix seconds; `None`: never.
    pub expires: Option<i64>,
}

impl LocalVault {
    /// Gives an identity a credential beside those it has; generated when none is given. The secret comes back.
    ///
    /// # Errors
    /// Refused: 404 (identity), 400 (length, expiry in the past, too many, the administrator), 409 (secret in use), 403.
    /// Broken.
    pub fn add_credential(
        &self,
        oid: Uuid,
        kind: CredentialKind,
        secret: Option<&SecretBytes>,
        expires: Option<i64>,
        call: &Call,
    ) -> Result<SecretBytes, Fail> {
        let secret = match secret {
            Some(given) => copy(given.expose())?,
            None => generate()?,
        };
        self.audited(PATCH, call, |work| {
            work.require(None)?;
            let identity = work.subordinate(oid)?;
            work.check_credential(oid, &secret, expires)?;
            let hash = hash(&work.hash_key()?, kind, oid, secret.expose());
            let taken = work.tx.prepare("SELECT 1 FROM credential WHERE hash = ?1")?.exists([hash])?;
            if taken {
                return Err(work.refuse(|scene| {
                    scene.conflict("This secret is in use.".into(), "let the vault generate one")
                }));
            }
            work.change =
                Some(format!("identity {} ({oid}) got a credential: {}", identity.name, kind.name()));
            work.tx.execute(
                "INSERT INTO credential (identity, kind, hash, created, expires) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![oid.to_string(), kind.name(), hash, now(), expires],
            )?;
            Ok(())
        })?;
        Ok(secret)
    }

    /// The credentials of an identity, oldest first.
    ///
    /// # Errors
    /// Refused: 404, 403. Broken.
    pub fn credentials(&self, oid: Uuid, call: &Call) -> Result<Vec<Credential>, Fail> {
        self.audited(GET, call, |work| {
            work.require(None)?;
            work.identity(oid)?;
            let mut query = work.tx.prepare_cached(
                "SELECT id, kind, created, expires FROM credential WHERE identity = ?1 ORDER BY id",
            )?;
            let rows = query.query_map([oid.to_string()], |row| {
                let kind: String = row.get(1)?;
                let kind = CredentialKind::ALL.into_iter().find(|k| k.name() == kind);
                Ok(Credential {
                    id: row.get(0)?,
                    kind: kind.ok_or(rusqlite::Error::InvalidQuery)?,
                    created: row.get(2)?,
                    expires: row.get(3)?,
                })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Takes a credential away. Tokens that were issued for it go on until they expire: disable the identity to stop them.
    ///
    /// # Errors
    /// Refused: 404 (identity or credential), 403. Broken.
    pub fn remove_credential(&self, oid: Uuid, id: i64, call: &Call) -> Result<(), Fail> {
        self.audited(PATCH, call, |work| {
            work.require(None)?;
            let identity = work.identity(oid)?;
            work.change = Some(format!("credential {id} of identity {} ({oid}) was removed", identity.name));
            let removed = work.tx.execute(
                "DELETE FROM credential WHERE id = ?1 AND identity = ?2",
                params![id, oid.to_string()],
            )?;
            if removed == 0 {
                return Err(work.refuse(|scene| {
                    scene.bad_parameter(
                        format!("The identity has no credential {id}."),
                        "see which there are: wrapdisk vault identity show",
                    )
                }));
            }
            Ok(())
        })
    }
}

impl Work<'_> {
    fn check_credential(&self, oid: Uuid, secret: &SecretBytes, expires: Option<i64>) -> Result<(), Fail> {
        let refuse =
            |found: String, next: &str| Err(self.refuse(|scene| scene.bad_parameter(found.clone(), next)));
        let (len, clean) = (secret.len(), secret.expose().iter().all(u8::is_ascii_graphic));
        if !LENGTHS.contains(&len) || !clean {
            return refuse(
                format!("The secret is invalid: found {len} bytes."),
                "allowed are 16 to 1024 visible ASCII characters; or let the vault generate one",
            );
        }
        if expires.is_some_and(|t| t <= now()) {
            return refuse("The expiry is invalid: it is in the past.".into(), "give a time to come");
        }
        let count: u32 = self.tx.query_row(
            "SELECT count(*) FROM credential WHERE identity = ?1",
            [oid.to_string()],
            |row| row.get(0),
        )?;
        if count >= MOST_PER_IDENTITY {
            return refuse(
                format!("The identity has {count} credentials."),
                "remove one first: wrapdisk vault identity credential remove",
            );
        }
        Ok(())
    }

    /// Made on first use.
    fn hash_key(&self) -> Result<SecretBytes, Fail> {
        if let Some(key) = self.secret(HASH_KEY)? {
            return Ok(key);
        }
        let mut key = SecretBytes::zeroed(32)?;
        random(key.expose_mut())?;
        self.keep_secret(HASH_KEY, key.expose())?;
        Ok(key)
    }

    /// The credential of this identity (of anybody's, where the kind selects the identity) with this secret: its id and
    /// whose it is. All are compared, in constant time.
    pub(super) fn matching(
        &self,
        kind: CredentialKind,
        oid: Option<Uuid>,
        secret: &[u8],
    ) -> Result<Option<Uuid>, Fail> {
        // Without it there is no credential yet.
        let Some(key) = self.secret(HASH_KEY)? else { return Ok(None) };
        let wanted = hash(&key, kind, oid.unwrap_or_default(), secret);
        let mut query = self.tx.prepare_cached(
            "SELECT identity, hash FROM credential
              WHERE kind = ?1 AND (?2 IS NULL OR identity = ?2) AND (expires IS NULL OR expires > ?3)",
        )?;
        let mut rows = query.query(params![kind.name(), oid.map(|oid| oid.to_string()), now()])?;
        let mut found = None;
        while let Some(row) = rows.next()? {
            let hash: [u8; 32] = row.get(1)?;
            if hash.ct_eq(&wanted).into() {
                found = Some(super::uuid_of(&row.get::<_, String>(0)?)?);
            }
        }
        Ok(found)
    }
}

fn hash(key: &SecretBytes, kind: CredentialKind, oid: Uuid, secret: &[u8]) -> [u8; 32] {
    let oid = if kind == CredentialKind::ClientSecret { oid } else { Uuid::nil() };
    scrubbed(|| {
        let mut mac =
            <Hmac<Sha256> as KeyInit>::new_from_slice(key.expose()).expect("HMAC takes any key length");
        mac.update(HASH_DOMAIN);
        mac.update(oid.as_bytes());
        mac.update(kind.name().as_bytes());
        mac.update(&[0]);
        mac.update(secret);
        mac.finalize().into_bytes().into()
    })
}

fn copy(bytes: &[u8]) -> Result<SecretBytes> {
    let mut secret = SecretBytes::zeroed(bytes.len())?;
    secret.expose_mut().copy_from_slice(bytes);
    Ok(secret)
}

/// 256 random bits as base64url, straight into secret memory.
pub(super) fn generate() -> Result<SecretBytes> {
    use base64::Engine;
    let mut raw = SecretBytes::zeroed(32)?;
    random(raw.expose_mut())?;
    let mut text = SecretBytes::zeroed(43)?;
    let written = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .encode_slice(raw.expose(), text.expose_mut())
        .expect("32 bytes are 43 characters");
    text.truncate(written);
    Ok(text)
}
