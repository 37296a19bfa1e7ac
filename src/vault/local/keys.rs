//! Keys of the embedded vault: making them, looking at them, changing what may be changed.
//!
//! Must never see: disks, containers.
//!
//! Invariants:
//! 1. Check order (KEY-VAULT section 2): permission, parameters, existence.
//! 2. A name that is deleted but recoverable is taken.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::authz::Permission;
use super::import::ImportedKey;
use super::model::{KeyUpdate, NewKey, Page};
use super::refusal::Fail;
use super::rows::{Life, NewVersion, Version, wrapping_place};
use super::rsa::{GOOD_EXPONENTS, PrivateKey, exponent_is_good};
use super::seal::RootKey;
use super::work::{Task, Work};
use super::{LocalVault, now, uuid_of};
use crate::envelope::{valid_name, valid_version};
use crate::vault::{Call, KeyInfo, KeyOperation, KeyRef};

/// What Azure takes of tags.
const MAX_TAGS: usize = 15;
const MAX_TAG_NAME: usize = 512;
const MAX_TAG_VALUE: usize = 256;

/// The last second of the year 9999, which every form of time can say.
const LAST_SECOND: i64 = 253_402_300_799;

impl LocalVault {
    /// Makes a key; under an existing name, a new version of it.
    ///
    /// # Errors
    /// 400 `BadParameter`, 403, 409 when the name is deleted but recoverable; broken.
    pub fn create_key(&self, name: &str, new: &NewKey, call: &Call) -> Result<KeyInfo, Fail> {
        let path = format!("/keys/{}", shown(name));
        let task =
            Task { operation: "KeyCreate", permission: Permission::Create, path: &path, action: "create" };
        self.in_two_steps(
            task,
            call,
            |work| {
                work.check_new(name, new)?;
                if exponent_is_good(new.exponent) {
                    return Ok(());
                }
                let found = format!("The public exponent is invalid: found {}.", new.exponent);
                Err(work.refuse(|scene| scene.bad_parameter(found, GOOD_EXPONENTS)))
            },
            // Seconds of work.
            |()| Ok(PrivateKey::generate(new.bits, new.exponent)?),
            |work, (), key| work.add_version(name, &key, new),
        )
    }

    /// Takes in a key; under an existing name, as a new version of it. The size is the material's own.
    ///
    /// # Errors
    /// As [`LocalVault::create_key`].
    pub fn import_key(
        &self,
        name: &str,
        material: &ImportedKey,
        as_: &NewKey,
        call: &Call,
    ) -> Result<KeyInfo, Fail> {
        let path = format!("/keys/{}", shown(name));
        let task = Task { operation: "KeyImport", permission: Permission::Import, path: &path, action: "" };
        self.audited(task, call, |work| {
            work.check_new(name, as_)?;
            work.add_version(name, material.key(), as_)
        })
    }

    /// One version; the latest where none is named. A deleted key is not found.
    ///
    /// # Errors
    /// 403, 404 `KeyNotFound`; broken.
    pub fn get_key(&self, key: &KeyRef, call: &Call) -> Result<KeyInfo, Fail> {
        let path = path_of(key);
        let task = Task { operation: "KeyGet", permission: Permission::Get, path: &path, action: "" };
        self.audited(task, call, |work| work.find_for_admin(key)?.info(work))
    }

    /// Changes a version (without version: the latest).
    ///
    /// # Errors
    /// 400 `BadParameter`, 403, 404 `KeyNotFound`; broken.
    pub fn update_key(&self, key: &KeyRef, change: &KeyUpdate, call: &Call) -> Result<KeyInfo, Fail> {
        let path = path_of(key);
        let task = Task { operation: "KeyUpdate", permission: Permission::Update, path: &path, action: "" };
        self.audited(task, call, |work| {
            work.require(Some(&key.name))?;
            work.check_ref(key)?;
            work.check_times([change.not_before, change.expires])?;
            work.check_tags(change.tags.as_ref())?;
            let mut row = work.find_for_admin(key)?;
            work.change = Some(said(change));
            let before = (row.enabled, row.not_before, row.expires, row.key_ops.clone(), row.tags.clone());
            row.enabled = change.enabled.unwrap_or(row.enabled);
            row.not_before = change.not_before.or(row.not_before);
            row.expires = change.expires.or(row.expires);
            if let Some(operations) = &change.operations {
                row.key_ops = ops_json(operations);
            }
            if let Some(tags) = &change.tags {
                row.tags = tags_json(tags);
            }
            if before != (row.enabled, row.not_before, row.expires, row.key_ops.clone(), row.tags.clone()) {
                work.store(&mut row)?;
            }
            row.info(work)
        })
    }

    /// The latest version of every key, by name.
    ///
    /// # Errors
    /// 403; broken.
    pub fn list_keys(&self, page: &Page, call: &Call) -> Result<Vec<KeyInfo>, Fail> {
        let task = Task { operation: "KeyList", permission: Permission::List, path: "/keys", action: "" };
        self.audited(task, call, |work| {
            work.require(None)?;
            infos(work, &work.latest(Life::Live, page.after.as_deref(), page.limit())?)
        })
    }

    /// The versions of a key, oldest first; of one that does not exist there are none, and that is no error, as at Azure.
    ///
    /// # Errors
    /// 403; broken.
    pub fn list_versions(&self, name: &str, page: &Page, call: &Call) -> Result<Vec<KeyInfo>, Fail> {
        let path = format!("/keys/{}", shown(name));
        let task = Task {
            operation: "KeyListVersions",
            permission: Permission::List,
            path: &path,
            action: "versions",
        };
        self.audited(task, call, |work| {
            work.require(Some(name))?;
            work.check_name(name)?;
            infos(work, &work.versions(name, page.after.as_deref(), page.limit())?)
        })
    }

    /// Switches a version on or off (without version: the latest). Off, every operation with it is refused.
    ///
    /// # Errors
    /// As [`LocalVault::update_key`].
    pub fn set_enabled(&self, key: &KeyRef, enabled: bool, call: &Call) -> Result<KeyInfo, Fail> {
        self.update_key(key, &KeyUpdate { enabled: Some(enabled), ..KeyUpdate::default() }, call)
    }

    /// The public half as PEM (without version: of the latest), for wrapping elsewhere.
    ///
    /// # Errors
    /// As [`LocalVault::get_key`].
    pub fn public_pem(&self, key: &KeyRef, call: &Call) -> Result<String, Fail> {
        let path = path_of(key);
        let task = Task { operation: "KeyGet", permission: Permission::Get, path: &path, action: "" };
        self.audited(task, call, |work| {
            let row = work.find_for_admin(key)?;
            row.info(work)?;
            Ok(row.open(work.root, work.facts)?.public_pem()?)
        })
    }
}

impl Work<'_> {
    /// Permission and parameters of what makes a version.
    fn check_new(&mut self, name: &str, new: &NewKey) -> Result<(), Fail> {
        self.require(Some(name))?;
        self.check_name(name)?;
        self.check_times([new.attributes.not_before, new.attributes.expires])?;
        self.check_tags(Some(&new.tags))?;
        self.name_is_free_or_live(name)
    }

    /// A deleted key keeps its name until it is purged.
    pub(super) fn name_is_free_or_live(&self, name: &str) -> Result<(), Fail> {
        match self.find_deleted(name)? {
            Some(row) => Err(self.refuse(|scene| scene.deleted_but_recoverable(&row.name))),
            None => Ok(()),
        }
    }

    /// A new version under a name that is free or live. Every check has passed.
    pub(super) fn add_version(
        &mut self,
        name: &str,
        key: &PrivateKey,
        new: &NewKey,
    ) -> Result<KeyInfo, Fail> {
        let (id, wrapping) = self.key_row(name)?;
        let version = random_version()?;
        let time = now();
        self.insert(&NewVersion {
            key: &id,
            wrapping: &wrapping,
            version: &version,
            private: key,
            enabled: new.attributes.enabled,
            not_before: new.attributes.not_before,
            expires: new.attributes.expires,
            created: time,
            updated: time,
            operations: new.operations.as_deref().unwrap_or(&KeyOperation::ALL),
            tags: &new.tags,
            notified: false,
        })?;
        self.bump_generation()?;
        let row = self.find(name, Some(&version))?.ok_or_else(|| self.refuse(|s| s.key_not_found(name)))?;
        row.info(self)
    }

    /// The key's row and its wrapping key, made when missing.
    fn key_row(&self, name: &str) -> Result<(Uuid, RootKey), Fail> {
        let found = self
            .tx
            .query_row("SELECT id, wrapping FROM key WHERE name = ?1", [name], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))
            })
            .optional()?;
        if let Some((id, wrapping)) = found {
            let id = uuid_of(&id)?;
            let place = wrapping_place(self.facts, &id);
            return Ok((id, self.root.open_wrapping(place, self.facts.generation, &wrapping)?));
        }
        let id = Uuid::new_v4();
        let (wrapping, sealed) =
            self.root.new_wrapping(wrapping_place(self.facts, &id), self.facts.generation)?;
        self.tx.execute(
            "INSERT INTO key (id, name, created, wrapping) VALUES (?1, ?2, ?3, ?4)",
            params![id.to_string(), name, now(), sealed],
        )?;
        Ok((id, wrapping))
    }

    /// Writes what can change of a version.
    fn store(&self, row: &mut Version) -> Result<(), Fail> {
        row.updated = now();
        self.tx.execute(
            "UPDATE key_version SET enabled = ?1, nbf = ?2, exp = ?3, key_ops = ?4, tags = ?5, updated = ?6
              WHERE version = ?7",
            params![
                row.enabled,
                row.not_before,
                row.expires,
                row.key_ops,
                row.tags,
                row.updated,
                row.version
            ],
        )?;
        Ok(self.bump_generation()?)
    }

    /// Permission and existence, for a command that names a key of this vault.
    pub(super) fn find_for_admin(&mut self, key: &KeyRef) -> Result<Version, Fail> {
        self.require(Some(&key.name))?;
        self.check_ref(key)?;
        self.find(&key.name, key.version.as_deref())?
            .ok_or_else(|| self.refuse(|scene| scene.key_not_found(&shown_ref(key))))
    }

    pub(super) fn check_ref(&self, key: &KeyRef) -> Result<(), Fail> {
        self.check_name(&key.name)?;
        if key.version.as_deref().is_none_or(valid_version) {
            return Ok(());
        }
        Err(self.refuse(|scene| {
            scene.bad_parameter("The version is invalid.".into(), "allowed are 1 to 64 of [0-9A-Za-z]")
        }))
    }

    fn check_times(&self, times: [Option<i64>; 2]) -> Result<(), Fail> {
        let Some(found) = times.into_iter().flatten().find(|t| !(0..=LAST_SECOND).contains(t)) else {
            return Ok(());
        };
        Err(self.refuse(|scene| {
            scene.bad_parameter(
                format!("The time is invalid: found {found}."),
                "allowed are unix seconds from 1970 to 9999",
            )
        }))
    }

    fn check_tags(&self, tags: Option<&BTreeMap<String, String>>) -> Result<(), Fail> {
        let Some(tags) = tags else { return Ok(()) };
        let long = |(name, value): (&String, &String)| {
            name.is_empty() || name.chars().count() > MAX_TAG_NAME || value.chars().count() > MAX_TAG_VALUE
        };
        if tags.len() <= MAX_TAGS && !tags.iter().any(long) {
            return Ok(());
        }
        Err(self.refuse(|scene| {
            scene.bad_parameter(
                format!("The tags are invalid: found {} of them, or one that is too long.", tags.len()),
                "allowed are 15 tags with a name of 1 to 512 and a value of at most 256 characters",
            )
        }))
    }
}

fn infos(work: &Work<'_>, rows: &[Version]) -> Result<Vec<KeyInfo>, Fail> {
    rows.iter().map(|row| row.to_info(work.facts)).collect()
}

/// For the audit: what was changed. Tags may be long, and are not needed to understand a refusal later.
fn said(change: &KeyUpdate) -> String {
    let mut said = Vec::new();
    said.extend(change.enabled.map(|on| format!("enabled={on}")));
    said.extend(change.not_before.map(|t| format!("nbf={t}")));
    said.extend(change.expires.map(|t| format!("exp={t}")));
    said.extend(change.operations.as_ref().map(|ops| format!("key_ops={}", ops_json(ops))));
    said.extend(change.tags.as_ref().map(|tags| format!("{} tags", tags.len())));
    said.join(", ")
}

/// Each once, in the order given: Azure gives them back so.
pub(super) fn ops_json(operations: &[KeyOperation]) -> String {
    let mut names = Vec::new();
    for name in operations.iter().map(|op| op.name()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    serde_json::json!(names).to_string()
}

pub(super) fn tags_json(tags: &BTreeMap<String, String>) -> String {
    serde_json::json!(tags).to_string()
}

/// 128 random bits, as Azure's versions look.
pub(super) fn random_version() -> crate::error::Result<String> {
    use std::fmt::Write;
    let mut bytes = [0u8; 16];
    crate::secret::random(&mut bytes)?;
    Ok(bytes.iter().fold(String::with_capacity(32), |mut text, b| {
        let _ = write!(text, "{b:02x}"); // a String takes everything
        text
    }))
}

/// A name for the audit's URL; a hostile one is refused later, but recorded.
pub(super) fn shown(name: &str) -> String {
    if valid_name(name) { name.to_owned() } else { "(invalid)".to_owned() }
}

pub(super) fn shown_ref(key: &KeyRef) -> String {
    match &key.version {
        Some(version) => format!("{}/{version}", key.name),
        None => key.name.clone(),
    }
}

pub(super) fn path_of(key: &KeyRef) -> String {
    match &key.version {
        Some(version) if valid_version(version) => format!("/keys/{}/{version}", shown(&key.name)),
        _ => format!("/keys/{}", shown(&key.name)),
    }
}
