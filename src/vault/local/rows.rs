//! The rows of keys and their versions: finding them, and what they say.
//!
//! Must never see: permissions, the audit.
//!
//! Invariants:
//! 1. The latest version is the one of the highest `seq`, even when it is disabled.
//! 2. A deleted key is not found by the queries of this file that do not say `deleted`.
//! 3. A private key is sealed under its key's own wrapping key, that one under the root key.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use uuid::Uuid;

use super::keys::{ops_json, tags_json};
use super::refusal::Fail;
use super::rsa::PrivateKey;
use super::seal::{FIRST_GENERATION, Place, RootKey};
use super::work::Work;
use super::{Facts, uuid_of};
use crate::secret::SecretBytes;
use crate::vault::{KeyInfo, KeyOperation, Kid, VaultError};

/// Which keys a query is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Those that can be used.
    Live,
    /// Those that can be had back.
    Deleted,
}

impl Life {
    const fn condition(self) -> &'static str {
        match self {
            Self::Live => "k.deleted_at IS NULL",
            Self::Deleted => "k.deleted_at IS NOT NULL",
        }
    }
}

/// The latest version of each key.
const LATEST: &str = "v.seq = (SELECT max(seq) FROM key_version WHERE key = k.id)";

const COLUMNS: &str = "k.id, k.name, k.wrapping, k.deleted_at, k.scheduled_purge, k.policy, v.version, v.bits, v.private, v.enabled,
    v.nbf, v.exp, v.created, v.updated, v.key_ops, v.tags, v.n, v.e, v.notified";

impl Work<'_> {
    /// A version of a key that is not deleted; the latest where none is named.
    pub(super) fn find(&self, name: &str, version: Option<&str>) -> rusqlite::Result<Option<Version>> {
        self.find_where(name, version, Life::Live)
    }

    /// The same, of a deleted key.
    pub(super) fn find_deleted(&self, name: &str) -> rusqlite::Result<Option<Version>> {
        self.find_where(name, None, Life::Deleted)
    }

    fn find_where(&self, name: &str, version: Option<&str>, life: Life) -> rusqlite::Result<Option<Version>> {
        let condition = format!("{} AND k.name = ?1 AND (?2 IS NULL OR v.version = ?2)", life.condition());
        self.tx
            .prepare_cached(&select(&condition, "v.seq DESC LIMIT 1"))?
            .query_row(params![name, version.map(str::to_lowercase)], Version::from_row)
            .optional()
    }

    /// The latest versions, by name; those after `after`, at most `limit` (negative: all).
    pub(super) fn latest(
        &self,
        life: Life,
        after: Option<&str>,
        limit: i64,
    ) -> rusqlite::Result<Vec<Version>> {
        let condition = format!("{} AND (?1 IS NULL OR k.name > ?1) AND {LATEST}", life.condition());
        self.rows(&condition, "k.name LIMIT ?2", params![after, limit])
    }

    /// The latest versions of live keys for which a policy can ask anything.
    pub(super) fn latest_with_times(&self) -> rusqlite::Result<Vec<Version>> {
        let condition = format!(
            "{} AND (k.policy IS NOT NULL OR v.exp IS NOT NULL) AND {LATEST}",
            Life::Live.condition()
        );
        self.rows(&condition, "k.name", [])
    }

    /// The versions of a key, oldest first; those after the version `after`.
    pub(super) fn versions(
        &self,
        name: &str,
        after: Option<&str>,
        limit: i64,
    ) -> rusqlite::Result<Vec<Version>> {
        let condition = "k.deleted_at IS NULL AND k.name = ?1
             AND (?2 IS NULL OR v.seq > (SELECT seq FROM key_version WHERE version = ?2))";
        self.rows(condition, "v.seq LIMIT ?3", params![name, after.map(str::to_lowercase), limit])
    }

    fn rows(
        &self,
        condition: &str,
        order: &str,
        params: impl rusqlite::Params,
    ) -> rusqlite::Result<Vec<Version>> {
        self.tx.prepare_cached(&select(condition, order))?.query_map(params, Version::from_row)?.collect()
    }
}

fn select(condition: &str, order: &str) -> String {
    format!(
        "SELECT {COLUMNS} FROM key_version v JOIN key k ON k.id = v.key WHERE {condition} ORDER BY {order}"
    )
}

/// A row of `key_version`, with its key's name.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) key: Uuid,
    pub(super) name: String,
    wrapping: Option<Vec<u8>>,
    pub(super) deleted: Option<i64>,
    pub(super) scheduled_purge: Option<i64>,
    pub(super) policy: Option<String>,
    pub(super) version: String,
    pub(super) bits: u32,
    sealed: Vec<u8>,
    pub(super) enabled: bool,
    pub(super) not_before: Option<i64>,
    pub(super) expires: Option<i64>,
    pub(super) created: i64,
    pub(super) updated: i64,
    pub(super) key_ops: String,
    pub(super) tags: String,
    n: Vec<u8>,
    e: Vec<u8>,
    pub(super) notified: bool,
}

impl Version {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            key: uuid_of(&row.get::<_, String>(0)?)?,
            name: row.get(1)?,
            wrapping: row.get(2)?,
            deleted: row.get(3)?,
            scheduled_purge: row.get(4)?,
            policy: row.get(5)?,
            version: row.get(6)?,
            bits: row.get(7)?,
            sealed: row.get(8)?,
            enabled: row.get(9)?,
            not_before: row.get(10)?,
            expires: row.get(11)?,
            created: row.get(12)?,
            updated: row.get(13)?,
            key_ops: row.get(14)?,
            tags: row.get(15)?,
            n: row.get(16)?,
            e: row.get(17)?,
            notified: row.get(18)?,
        })
    }

    pub(super) fn kid(&self, facts: &Facts) -> Result<Kid, Fail> {
        Kid::local(&facts.id, &self.name, &self.version).map_err(|e| {
            Fail::Broken(VaultError::Corrupt(format!("a key's name or version in vault.db: {}", e.chain())))
        })
    }

    pub(super) fn to_info(&self, facts: &Facts) -> Result<KeyInfo, Fail> {
        Ok(KeyInfo {
            kid: self.kid(facts)?,
            bits: self.bits,
            enabled: self.enabled,
            not_before: self.not_before,
            expires: self.expires,
            created: self.created,
            updated: self.updated,
            operations: self.operations()?,
            tags: self.tags()?,
            n: self.n.clone(),
            e: self.e.clone(),
        })
    }

    pub(super) fn tags(&self) -> Result<BTreeMap<String, String>, Fail> {
        serde_json::from_str(&self.tags).map_err(|e| self.damaged("tags", e))
    }

    pub(super) fn exponent(&self) -> Result<u64, Fail> {
        if self.e.len() > 8 {
            return Err(self.damaged("e", "more than 64 bits"));
        }
        Ok(self.e.iter().fold(0, |e, b| e << 8 | u64::from(*b)))
    }

    pub(super) fn operations(&self) -> Result<Vec<KeyOperation>, Fail> {
        let names: Vec<String> =
            serde_json::from_str(&self.key_ops).map_err(|e| self.damaged("key_ops", e))?;
        names
            .iter()
            .map(|name| KeyOperation::parse(name))
            .collect::<Result<_, _>>()
            .map_err(|e| self.damaged("key_ops", e))
    }

    pub(super) fn damaged(&self, column: &str, found: impl std::fmt::Display) -> Fail {
        let (name, version) = (&self.name, &self.version);
        Fail::Broken(VaultError::Corrupt(format!("key {name}/{version} in vault.db: {column}: {found}")))
    }

    /// [`Version::to_info`], and the audit record is about this version.
    pub(super) fn info(&self, work: &mut Work<'_>) -> Result<KeyInfo, Fail> {
        let info = self.to_info(work.facts)?;
        info.kid.as_str().clone_into(&mut work.subject);
        work.bits = Some(self.bits);
        Ok(info)
    }

    /// The private part, sealed under the key's wrapping key.
    pub(super) fn sealed(&self) -> &[u8] {
        &self.sealed
    }

    /// What the key's versions are sealed under.
    pub(super) fn open_wrapping(&self, root: &RootKey, facts: &Facts) -> Result<RootKey, Fail> {
        let wrapping = self.wrapping.as_deref().ok_or_else(|| self.damaged("wrapping", "nothing"))?;
        Ok(root.open_wrapping(wrapping_place(facts, &self.key), facts.generation, wrapping)?)
    }

    /// The private key; wiped when dropped.
    pub(super) fn open(&self, root: &RootKey, facts: &Facts) -> Result<PrivateKey, Fail> {
        Ok(PrivateKey::from_pkcs8(&self.unsealed(root, facts)?)?)
    }

    /// The private key's bytes, for [`PrivateKey::from_pkcs8`].
    pub(super) fn unsealed(&self, root: &RootKey, facts: &Facts) -> Result<SecretBytes, Fail> {
        let wrapping = self.open_wrapping(root, facts)?;
        Ok(wrapping.unseal(self.place(facts), FIRST_GENERATION, &self.sealed)?)
    }

    fn place<'a>(&'a self, facts: &'a Facts) -> Place<'a> {
        Place { vault: &facts.id, key: &self.key, version: &self.version }
    }
}

/// A version to be written, with everything but what its private key says.
pub(super) struct NewVersion<'a> {
    pub(super) key: &'a Uuid,
    pub(super) wrapping: &'a RootKey,
    pub(super) version: &'a str,
    pub(super) private: &'a PrivateKey,
    pub(super) enabled: bool,
    pub(super) not_before: Option<i64>,
    pub(super) expires: Option<i64>,
    pub(super) created: i64,
    pub(super) updated: i64,
    pub(super) operations: &'a [KeyOperation],
    pub(super) tags: &'a BTreeMap<String, String>,
    pub(super) notified: bool,
}

impl Work<'_> {
    /// Writes a version behind those that the key has.
    pub(super) fn insert(&self, new: &NewVersion<'_>) -> Result<(), Fail> {
        let place = Place { vault: &self.facts.id, key: new.key, version: new.version };
        let sealed = new.wrapping.seal(place, FIRST_GENERATION, new.private.to_pkcs8()?.expose())?;
        let (n, e) = new.private.public();
        self.tx.execute(
            "INSERT INTO key_version (key, version, seq, kty, bits, n, e, private, enabled, nbf, exp, created, updated,
                                      key_ops, tags, notified)
             VALUES (?1, ?2, (SELECT ifnull(max(seq), 0) + 1 FROM key_version WHERE key = ?1),
                     'RSA', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            params![
                new.key.to_string(),
                new.version,
                new.private.bits().get(),
                n,
                e,
                sealed,
                new.enabled,
                new.not_before,
                new.expires,
                new.created,
                new.updated,
                ops_json(new.operations),
                tags_json(new.tags),
                new.notified
            ],
        )?;
        Ok(())
    }
}

/// For what a key's wrapping key is sealed; no version is called so.
pub(super) fn wrapping_place<'a>(facts: &'a Facts, key: &'a Uuid) -> Place<'a> {
    Place { vault: &facts.id, key, version: "wrapping" }
}

/// Keys of schema 1 have no wrapping key of their own: they get one when the vault is first opened with schema 2.
pub(super) fn adopt(conn: &mut Connection, root: &RootKey, facts: &Facts) -> Result<(), Fail> {
    let missing = "SELECT id FROM key WHERE wrapping IS NULL";
    if conn.query_row(missing, [], |_| Ok(())).optional()?.is_none() {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let keys: Vec<String> =
        tx.prepare(missing)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for text in keys {
        let key = uuid_of(&text)?;
        let (wrapping, sealed) = root.new_wrapping(wrapping_place(facts, &key), facts.generation)?;
        tx.execute("UPDATE key SET wrapping = ?1 WHERE id = ?2", params![sealed, text])?;
        let versions: Vec<(String, Vec<u8>)> = tx
            .prepare("SELECT version, private FROM key_version WHERE key = ?1")?
            .query_map([&text], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        for (version, private) in versions {
            let place = Place { vault: &facts.id, key: &key, version: &version };
            // One that does not open is damaged already; what can be saved is saved.
            let Ok(der) = root.unseal(place, facts.generation, &private) else { continue };
            let sealed = wrapping.seal(place, FIRST_GENERATION, der.expose())?;
            tx.execute("UPDATE key_version SET private = ?1 WHERE version = ?2", params![sealed, version])?;
        }
    }
    Ok(tx.commit()?)
}
