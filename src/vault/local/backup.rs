//! A key out of the vault and back: all versions, attributes and the policy as one sealed blob (KEY-VAULT section 2).
//!
//! Layout: magic, method, [salt and cost of argon2id], then what the root key's `seal` makes of: the key's wrapping key (32
//! bytes), JSON. In the JSON the private parts are sealed under that wrapping key, as in the database, so that no private
//! key is in the clear while a backup is made.
//!
//! Must never see: files.
//!
//! Invariants:
//! 1. Under the backup sub-key a blob opens in its own vault only; under a passphrase, in any vault.
//! 2. A blob is hostile until it has opened: its length and the cost it asks for are bounded first.
//! 3. What is public of a restored version is computed from its private part; version ids stay.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::authz::Permission;
use super::keys::shown;
use super::passphrase::{self, Cost, SALT};
use super::policy::RotationPolicy;
use super::refusal::Fail;
use super::rows::{NewVersion, Version, wrapping_place};
use super::rsa::PrivateKey;
use super::seal::{FIRST_GENERATION, Place, RootKey, sealed_generation};
use super::work::{Task, Work};
use super::{Facts, LocalVault, import, now};
use crate::envelope::{valid_name, valid_version};
use crate::error::Result as Plain;
use crate::secret::{Secret, SecretBytes, random};
use crate::vault::{Call, KeyInfo, KeyOperation};

const MAGIC: &[u8; 8] = b"wdKVbk1\n";
const UNDER_VAULT: u8 = 1;
const UNDER_PASSPHRASE: u8 = 2;
/// What the REST API takes; some hundred versions.
const MAX_BLOB: usize = 1 << 20;
const WRAPPING: usize = 32;

/// What a blob is sealed under.
enum Under<'a> {
    Vault,
    Passphrase(&'a [u8], Cost, [u8; SALT]),
}

#[derive(Serialize, Deserialize)]
struct Document {
    /// Where its private parts are sealed for: uuids of the vault and of the key's row.
    vault: String,
    key: String,
    name: String,
    policy: Option<String>,
    policy_created: Option<i64>,
    policy_updated: Option<i64>,
    versions: Vec<SavedVersion>,
}

#[derive(Serialize, Deserialize)]
struct SavedVersion {
    version: String,
    enabled: bool,
    nbf: Option<i64>,
    exp: Option<i64>,
    created: i64,
    updated: i64,
    key_ops: Vec<String>,
    tags: BTreeMap<String, String>,
    notified: bool,
    /// Sealed, in Base64.
    private: String,
}

impl SavedVersion {
    fn of(row: &Version) -> Result<Self, Fail> {
        Ok(Self {
            version: row.version.clone(),
            enabled: row.enabled,
            nbf: row.not_before,
            exp: row.expires,
            created: row.created,
            updated: row.updated,
            key_ops: row.operations()?.iter().map(|op| op.name().to_owned()).collect(),
            tags: row.tags()?,
            notified: row.notified,
            private: STANDARD.encode(row.sealed()),
        })
    }
}

/// A document that opened, with the private keys that passed their checks.
struct Opened {
    document: Document,
    keys: Vec<(PrivateKey, Vec<KeyOperation>)>,
}

impl LocalVault {
    /// A key with all its versions, for this vault.
    ///
    /// # Errors
    /// 403, 404 `KeyNotFound`; broken.
    pub fn backup_key(&self, name: &str, call: &Call) -> Result<Vec<u8>, Fail> {
        self.backup(name, &Under::Vault, call)
    }

    /// The same under a passphrase, for any vault.
    ///
    /// # Errors
    /// As [`LocalVault::backup_key`].
    pub fn backup_key_portable(&self, name: &str, passphrase: &[u8], call: &Call) -> Result<Vec<u8>, Fail> {
        let mut salt = [0; SALT];
        random(&mut salt)?;
        self.backup(name, &Under::Passphrase(passphrase, Cost::default(), salt), call)
    }

    /// Brings a key back under its name, with its version ids.
    ///
    /// # Errors
    /// 400 (no backup, of another vault, or under a passphrase), 403, 409 when the name is taken; broken.
    pub fn restore_key(&self, blob: &[u8], call: &Call) -> Result<KeyInfo, Fail> {
        self.restore(blob, None, call)
    }

    /// The same of a blob under a passphrase.
    ///
    /// # Errors
    /// As [`LocalVault::restore_key`].
    pub fn restore_key_portable(&self, blob: &[u8], passphrase: &[u8], call: &Call) -> Result<KeyInfo, Fail> {
        self.restore(blob, Some(passphrase), call)
    }

    /// Whether a blob needs a passphrase.
    #[must_use]
    pub fn backup_is_portable(blob: &[u8]) -> bool {
        blob.strip_prefix(MAGIC).and_then(<[u8]>::first) == Some(&UNDER_PASSPHRASE)
    }

    fn backup(&self, name: &str, under: &Under<'_>, call: &Call) -> Result<Vec<u8>, Fail> {
        let path = format!("/keys/{}", shown(name));
        let task =
            Task { operation: "KeyBackup", permission: Permission::Backup, path: &path, action: "backup" };
        self.in_two_steps(
            task,
            call,
            |work| {
                work.require(Some(name))?;
                work.check_name(name)?;
                work.find(name, None)?.ok_or_else(|| work.refuse(|scene| scene.key_not_found(name)))
            },
            |_| match under {
                Under::Vault => Ok(None),
                Under::Passphrase(passphrase, cost, salt) => {
                    Ok(Some(RootKey::from_secret(passphrase::derive(passphrase, salt, *cost)?)))
                }
            },
            |work, row, derived| {
                row.info(work)?;
                // Of the root key that this transaction is on: it may have been rotated meanwhile.
                let key = derived.map_or_else(|| work.root.backup_key(), Ok)?;
                let document = work.document(&row)?;
                work.change = Some(format!("{} versions", document.versions.len()));
                let json = serde_json::to_vec(&document).map_err(|e| row.damaged("backup", e))?;
                let mut plain = SecretBytes::zeroed(WRAPPING + json.len())?;
                let (wrapping, rest) = plain.expose_mut().split_at_mut(WRAPPING);
                wrapping.copy_from_slice(row.open_wrapping(work.root, work.facts)?.expose());
                rest.copy_from_slice(&json);
                let sealed =
                    key.seal(under.place(work.facts), under.generation(work.facts), plain.expose())?;
                let blob = [&under.header()[..], &sealed].concat();
                if blob.len() > MAX_BLOB {
                    // Better now than when it is needed.
                    let found = "The key has more versions than one backup holds.".to_owned();
                    let next = "back up the whole vault: wrapdisk vault backup";
                    return Err(work.refuse(|scene| scene.bad_parameter(found, next)));
                }
                Ok(blob)
            },
        )
    }

    fn restore(&self, blob: &[u8], passphrase: Option<&[u8]>, call: &Call) -> Result<KeyInfo, Fail> {
        let task = Task {
            operation: "KeyRestore",
            permission: Permission::Restore,
            path: "/keys",
            action: "restore",
        };
        self.in_two_steps(
            task,
            call,
            |work| {
                work.require(None)?;
                let malformed = |why: &str| work.refuse(|scene| scene.malformed_backup(why));
                let (under, sealed) = read_header(blob, passphrase).map_err(malformed)?;
                let key = match &under {
                    Under::Vault => work.backup_key_of(sealed)?,
                    Under::Passphrase(..) => None,
                };
                Ok((under, sealed, key))
            },
            |(under, sealed, key)| {
                let derived;
                let key = match (under, key) {
                    (Under::Passphrase(passphrase, cost, salt), _) => {
                        derived = RootKey::from_secret(passphrase::derive(passphrase, salt, *cost)?);
                        Some(&derived)
                    }
                    (Under::Vault, key) => key.as_ref(),
                };
                Ok(key.and_then(|key| open(key, under.place(&self.facts), sealed).ok()))
            },
            |work, (under, ..), opened| match opened {
                Some(opened) => work.put_back(&opened),
                None => {
                    let why = match under {
                        Under::Vault => "it is damaged, or of another vault",
                        Under::Passphrase(..) => "it is damaged, or the passphrase is wrong",
                    };
                    Err(work.refuse(|scene| scene.malformed_backup(why)))
                }
            },
        )
    }
}

impl Under<'_> {
    fn header(&self) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        match self {
            Self::Vault => header.push(UNDER_VAULT),
            Self::Passphrase(_, cost, salt) => {
                header.push(UNDER_PASSPHRASE);
                header.extend_from_slice(&cost.to_bytes());
                header.extend_from_slice(salt);
            }
        }
        header
    }

    const fn place<'a>(&self, facts: &'a Facts) -> Place<'a> {
        let vault = match self {
            Self::Vault => &facts.id,
            Self::Passphrase(..) => const { &Uuid::nil() },
        };
        Place { vault, key: const { &Uuid::nil() }, version: "key backup" }
    }

    const fn generation(&self, facts: &Facts) -> u32 {
        match self {
            Self::Vault => facts.generation,
            Self::Passphrase(..) => FIRST_GENERATION,
        }
    }
}

/// Under which name the vault keeps the backup sub-key of a retired root key (RULINGS 31): 32 bytes.
pub(super) fn retired_backup_key(generation: u32) -> String {
    format!("backup-sub-key-{generation}")
}

fn key_from(bytes: &[u8]) -> Plain<RootKey> {
    let wrong = || crate::error::Error::new(crate::error::ErrorKind::Damaged, "a key of another length");
    Secret::try_from_fn(|out| {
        out.copy_from_slice(bytes.get(..WRAPPING).filter(|b| b.len() == bytes.len()).ok_or_else(wrong)?);
        Ok(())
    })
    .map(RootKey::from_secret)
}

/// The method and the sealed rest, or what is wrong.
fn read_header<'a>(
    blob: &'a [u8],
    passphrase: Option<&'a [u8]>,
) -> Result<(Under<'a>, &'a [u8]), &'static str> {
    if blob.len() > MAX_BLOB {
        return Err("it is longer than 1 MiB");
    }
    let rest = blob.strip_prefix(MAGIC).ok_or("it is no backup of a key")?;
    let (method, rest) = rest.split_first().ok_or("it is cut")?;
    match (*method, passphrase) {
        (UNDER_VAULT, None) => Ok((Under::Vault, rest)),
        (UNDER_VAULT, Some(_)) => Err("it is not under a passphrase"),
        (UNDER_PASSPHRASE, None) => Err("it is under a passphrase"),
        (UNDER_PASSPHRASE, Some(passphrase)) => {
            let (cost, rest) = rest.split_first_chunk().ok_or("it is cut")?;
            let cost = Cost::from_bytes(*cost).ok_or("it asks for more work than allowed")?;
            let (salt, rest) = rest.split_first_chunk::<SALT>().ok_or("it is cut")?;
            Ok((Under::Passphrase(passphrase, cost, *salt), rest))
        }
        _ => Err("it is of a newer form"),
    }
}

/// For the fuzz target `body`: what is done with a blob before it has opened, and that a key that is not its own opens none.
/// Returns whether the header was accepted.
///
/// # Panics
/// When it opens: a bug.
#[doc(hidden)]
#[must_use]
pub fn fuzz_backup(blob: &[u8], portable: bool) -> bool {
    let Ok((_, sealed)) = read_header(blob, portable.then_some(b"passphrase")) else { return false };
    let nowhere = Place { vault: &Uuid::nil(), key: &Uuid::nil(), version: "key backup" };
    assert!(key_from(&[7; WRAPPING]).and_then(|key| open(&key, nowhere, sealed)).is_err());
    true
}

/// Opens and checks everything before a row is written.
fn open(key: &RootKey, place: Place<'_>, sealed: &[u8]) -> Plain<Opened> {
    let damaged = |what: &str| crate::error::Error::new(crate::error::ErrorKind::Damaged, what.to_owned());
    let generation = sealed_generation(sealed).ok_or_else(|| damaged("cut"))?;
    let plain = key.unseal(place, generation, sealed)?;
    let (wrapping, json) = plain.expose().split_at_checked(WRAPPING).ok_or_else(|| damaged("short"))?;
    let wrapping = key_from(wrapping)?;
    let document: Document = serde_json::from_slice(json).map_err(|_| damaged("no document"))?;
    let policy = document.policy.as_deref().map(|text| RotationPolicy::from_json(text.as_bytes()));
    policy.transpose()?;
    let good = |v: &SavedVersion| valid_version(&v.version);
    if !valid_name(&document.name) || document.versions.is_empty() || !document.versions.iter().all(good) {
        return Err(damaged("names"));
    }
    let uuid = |text: &str| Uuid::parse_str(text).map_err(|_| damaged("ids"));
    let (vault, key) = (uuid(&document.vault)?, uuid(&document.key)?);
    let keys = document
        .versions
        .iter()
        .map(|saved| {
            let place = Place { vault: &vault, key: &key, version: &saved.version };
            let private = STANDARD.decode(&saved.private).map_err(|_| damaged("Base64"))?;
            let operations = saved.key_ops.iter().map(|op| KeyOperation::parse(op)).collect::<Plain<_>>()?;
            // Whoever has the passphrase can have made this: as much is checked as of an imported key.
            Ok((import::checked_pkcs8(&wrapping.unseal(place, FIRST_GENERATION, &private)?)?, operations))
        })
        .collect::<Plain<_>>()?;
    Ok(Opened { document, keys })
}

impl Work<'_> {
    /// The sub-key under which a blob of this vault was sealed, if it is (still) known.
    fn backup_key_of(&self, sealed: &[u8]) -> Result<Option<RootKey>, Fail> {
        match sealed_generation(sealed) {
            Some(generation) if generation == self.facts.generation => Ok(Some(self.root.backup_key()?)),
            Some(generation) => {
                let retired = self.secret(&retired_backup_key(generation))?;
                Ok(retired.map(|key| key_from(key.expose())).transpose()?)
            }
            None => Ok(None),
        }
    }

    fn document(&self, row: &Version) -> Result<Document, Fail> {
        let id = row.key.to_string();
        let (policy, policy_created, policy_updated) = self.tx.query_row(
            "SELECT policy, policy_created, policy_updated FROM key WHERE id = ?1",
            [&id],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let versions = self.versions(&row.name, None, -1)?;
        let versions = versions.iter().map(SavedVersion::of).collect::<Result<_, _>>()?;
        let (vault, key, name) = (self.facts.id.to_string(), id, row.name.clone());
        Ok(Document { vault, key, name, policy, policy_created, policy_updated, versions })
    }

    /// Writes the rows; the name must be free.
    fn put_back(&mut self, opened: &Opened) -> Result<KeyInfo, Fail> {
        let document = &opened.document;
        self.name_is_free_or_live(&document.name)?;
        let taken = |version: &str| {
            self.tx
                .query_row("SELECT 1 FROM key_version WHERE version = ?1", [version], |_| Ok(()))
                .optional()
                .map(|found| found.is_some())
        };
        if self.find(&document.name, None)?.is_some() {
            return Err(self.name_taken(&format!("The key {} already exists.", document.name)));
        }
        for saved in &document.versions {
            if taken(&saved.version)? {
                return Err(self.name_taken(&format!("The version {} already exists.", saved.version)));
            }
        }
        let id = Uuid::new_v4();
        let (wrapping, sealed) =
            self.root.new_wrapping(wrapping_place(self.facts, &id), self.facts.generation)?;
        self.tx.execute(
            "INSERT INTO key (id, name, created, wrapping, policy, policy_created, policy_updated)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                id.to_string(),
                document.name,
                now(),
                sealed,
                document.policy,
                document.policy_created,
                document.policy_updated
            ],
        )?;
        for (saved, (private, operations)) in document.versions.iter().zip(&opened.keys) {
            self.insert(&NewVersion {
                key: &id,
                wrapping: &wrapping,
                version: &saved.version,
                private,
                enabled: saved.enabled,
                not_before: saved.nbf,
                expires: saved.exp,
                created: saved.created,
                updated: saved.updated,
                operations,
                tags: &saved.tags,
                notified: saved.notified,
            })?;
        }
        self.change = Some(format!("{} versions", document.versions.len()));
        self.bump_generation()?;
        let row = self
            .find(&document.name, None)?
            .ok_or_else(|| self.refuse(|scene| scene.key_not_found(&document.name)))?;
        row.info(self)
    }

    fn name_taken(&self, description: &str) -> Fail {
        self.refuse(|scene| {
            scene.conflict(description.to_owned(), "delete and purge the key first, or keep what is there")
        })
    }
}
