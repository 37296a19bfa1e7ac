//! Keys of the embedded vault: administration, and the two operations with a data key.
//!
//! Must never see: disks, containers.
//!
//! Invariants:
//! 1. Check order (KEY-VAULT section 2): permission, parameters, existence, enabled, key_ops, time window, operation.
//! 2. A data key is wrapped with the public half of the sealed private key, never with the row's `n` and `e`: an edited
//!    row cannot make us wrap under somebody else's key, and what was wrapped can be unwrapped.
//! 3. The latest version is the one of the highest `seq`, even when it is disabled.

use rusqlite::{OptionalExtension, Row, params};
use uuid::Uuid;

use super::authz::Permission;
use super::import::ImportedKey;
use super::refusal::{Fail, transient};
use super::rsa::{PrivateKey, RsaBits, UnwrapError};
use super::seal::Place;
use super::{LocalVault, Task, Work, now};
use crate::envelope::{valid_name, valid_version};
use crate::secret::Secret;
use crate::vault::{Call, KeyInfo, KeyOperation, KeyRef, KeyVault, Kid, VaultError, WrapAlg, WrappedDek};

/// What a key that was made here may do; an imported one may do all six (KEY-VAULT section 2).
const WRAPPING: &str = r#"["wrapKey","unwrapKey"]"#;
const ALL_SIX: &str = r#"["encrypt","decrypt","sign","verify","wrapKey","unwrapKey"]"#;

type Answer<T> = Result<T, VaultError>;

impl LocalVault {
    /// Makes a key (e = 65537); under an existing name, a new version of it.
    ///
    /// # Errors
    /// `Rejected` (`BadParameter`: name), `Denied`, `Transient`.
    pub fn create_key(&self, name: &str, bits: RsaBits, call: &Call) -> Result<KeyInfo, Fail> {
        // Seconds of work: before the transaction, which others would have to wait for.
        let key = PrivateKey::generate(bits)?;
        let path = format!("/keys/{}", shown(name));
        let task =
            Task { operation: "KeyCreate", permission: Permission::Create, path: &path, action: "create" };
        self.audited(task, call, |work| work.add_version(name, &key, WRAPPING))
    }

    /// Takes in a key; under an existing name, as a new version of it.
    ///
    /// # Errors
    /// As [`LocalVault::create_key`].
    pub fn import_key(&self, name: &str, material: &ImportedKey, call: &Call) -> Result<KeyInfo, Fail> {
        let path = format!("/keys/{}", shown(name));
        let task = Task { operation: "KeyImport", permission: Permission::Import, path: &path, action: "" };
        self.audited(task, call, |work| work.add_version(name, material.key(), ALL_SIX))
    }

    /// The latest version of every key, by name.
    ///
    /// # Errors
    /// `Denied`, `Transient`.
    pub fn list_keys(&self, call: &Call) -> Result<Vec<KeyInfo>, Fail> {
        let task = Task { operation: "KeyList", permission: Permission::List, path: "/keys", action: "" };
        self.audited(task, call, |work| {
            work.require(None)?;
            work.infos(None, "v.seq = (SELECT max(seq) FROM key_version WHERE key = k.id)")
        })
    }

    /// Every version of a key, oldest first.
    ///
    /// # Errors
    /// `Rejected` (`KeyNotFound`), `Denied`, `Transient`.
    pub fn list_versions(&self, name: &str, call: &Call) -> Result<Vec<KeyInfo>, Fail> {
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
            let found = work.infos(Some(name), "TRUE")?;
            if found.is_empty() {
                return Err(work.refuse(|scene| scene.key_not_found(name)));
            }
            Ok(found)
        })
    }

    /// Switches a version on or off (without version: the latest). Off, every operation with it is refused.
    ///
    /// # Errors
    /// `Rejected` (`KeyNotFound`), `Denied`, `Transient`.
    pub fn set_enabled(&self, key: &KeyRef, enabled: bool, call: &Call) -> Result<KeyInfo, Fail> {
        let path = path_of(key);
        let task = Task { operation: "KeyUpdate", permission: Permission::Update, path: &path, action: "" };
        self.audited(task, call, |work| {
            let mut row = work.find_for_admin(key)?;
            work.change = Some(format!("enabled={enabled}"));
            if row.enabled != enabled {
                row.enabled = enabled;
                row.updated = now();
                work.tx.execute(
                    "UPDATE key_version SET enabled = ?1, updated = ?2 WHERE version = ?3",
                    params![row.enabled, row.updated, row.version],
                )?;
                work.bump_generation()?;
            }
            row.info(work)
        })
    }

    /// The public half as PEM (without version: of the latest), for wrapping elsewhere.
    ///
    /// # Errors
    /// `Rejected` (`KeyNotFound`), `Denied`, `Transient`.
    pub fn public_pem(&self, key: &KeyRef, call: &Call) -> Result<String, Fail> {
        let path = path_of(key);
        let task = Task { operation: "KeyGet", permission: Permission::Get, path: &path, action: "" };
        self.audited(task, call, |work| {
            let row = work.find_for_admin(key)?;
            Ok(row.open(work)?.public_pem()?)
        })
    }
}

impl KeyVault for LocalVault {
    fn describe(&self, key: &KeyRef, call: &Call) -> Answer<KeyInfo> {
        let path = path_of(key);
        let task = Task { operation: "KeyGet", permission: Permission::Get, path: &path, action: "" };
        let done = self.audited(task, call, |work| {
            work.require(Some(&key.name))?;
            work.check_ref(key)?;
            match work.find(&key.name, key.version.as_deref())? {
                Some(row) => row.info(work),
                None => Err(work.refuse(|scene| scene.deleted(&shown_ref(key)))),
            }
        });
        done.map_err(VaultError::from)
    }

    fn wrap(&self, kid: &Kid, alg: WrapAlg, dek: &Secret<64>, call: &Call) -> Answer<WrappedDek> {
        let WrapAlg::RsaOaep256 = alg;
        let path = format!("/keys/{}/{}", kid.name(), kid.version());
        let task =
            Task { operation: "KeyWrap", permission: Permission::WrapKey, path: &path, action: "wrapkey" };
        let done = self.audited(task, call, |work| {
            let row = work.usable(kid)?;
            row.in_window(work)?;
            let bytes = row.open(work)?.wrap(dek)?;
            Ok(WrappedDek { kid: row.kid(work)?, alg, bytes })
        });
        done.map_err(VaultError::from)
    }

    fn unwrap(&self, wrapped: &WrappedDek, call: &Call) -> Answer<Secret<64>> {
        let WrapAlg::RsaOaep256 = wrapped.alg;
        let path = format!("/keys/{}/{}", wrapped.kid.name(), wrapped.kid.version());
        let task = Task {
            operation: "KeyUnwrap",
            permission: Permission::UnwrapKey,
            path: &path,
            action: "unwrapkey",
        };
        let done = self.audited(task, call, |work| {
            // No time window here: outside it an old wrap still opens, as at Azure.
            let row = work.usable(&wrapped.kid)?;
            row.open(work)?.unwrap(&wrapped.bytes).map_err(|e| match e {
                UnwrapError::Bad => work.refuse(|scene| scene.bad_ciphertext()),
                UnwrapError::NoRandom => Fail::Broken(transient("unwrap a data key: no random numbers")),
            })
        });
        done.map_err(VaultError::from)
    }
}

impl Work<'_> {
    fn add_version(&mut self, name: &str, key: &PrivateKey, key_ops: &str) -> Result<KeyInfo, Fail> {
        self.require(Some(name))?;
        self.check_name(name)?;
        let id = match self
            .tx
            .query_row("SELECT id FROM key WHERE name = ?1", [name], |row| row.get::<_, String>(0))
            .optional()?
        {
            Some(id) => super::uuid_of(&id)?,
            None => {
                let id = Uuid::new_v4();
                self.tx.execute(
                    "INSERT INTO key (id, name, created) VALUES (?1, ?2, ?3)",
                    params![id.to_string(), name, now()],
                )?;
                id
            }
        };
        let version = random_version()?;
        let place = Place { vault: &self.facts.id, key: &id, version: &version };
        let sealed = self.root.seal(place, self.facts.generation, key.to_pkcs8()?.expose())?;
        let (n, e) = key.public();
        self.tx.execute(
            "INSERT INTO key_version (key, version, seq, kty, bits, n, e, private, enabled, created, updated, key_ops, tags)
             VALUES (?1, ?2, (SELECT ifnull(max(seq), 0) + 1 FROM key_version WHERE key = ?1),
                     'RSA', ?3, ?4, ?5, ?6, 1, ?7, ?7, ?8, '{}')",
            params![id.to_string(), version, key.bits().get(), n, e, sealed, now(), key_ops],
        )?;
        self.bump_generation()?;
        let row = self.find(name, Some(&version))?.ok_or_else(|| self.refuse(|s| s.deleted(name)))?;
        row.info(self)
    }

    /// Permission and existence, for a command that names a key of this vault.
    fn find_for_admin(&mut self, key: &KeyRef) -> Result<Version, Fail> {
        self.require(Some(&key.name))?;
        self.check_ref(key)?;
        self.find(&key.name, key.version.as_deref())?
            .ok_or_else(|| self.refuse(|scene| scene.key_not_found(&shown_ref(key))))
    }

    /// The version of this kid if the caller may now use it: everything up to key_ops of the check order.
    fn usable(&mut self, kid: &Kid) -> Result<Version, Fail> {
        kid.as_str().clone_into(&mut self.subject);
        if !kid.host().eq_ignore_ascii_case(&format!("{}.vault.localhost", self.facts.id)) {
            // Nothing of ours can leak, and "no permission" would send people to the wrong vault.
            return Err(self.refuse(|scene| scene.wrong_vault(&self.facts.id)));
        }
        self.require(Some(kid.name()))?;
        let Some(row) = self.find(kid.name(), Some(kid.version()))? else {
            let key = format!("{}/{}", kid.name(), kid.version());
            return Err(self.refuse(|scene| scene.deleted(&key)));
        };
        self.bits = Some(row.bits);
        if !row.enabled {
            return Err(self.refuse(|scene| scene.disabled(&row.name, &row.version)));
        }
        if !row.operations()?.iter().any(|op| op.name() == self.permission.name()) {
            return Err(self.refuse(|scene| scene.operation_forbidden()));
        }
        Ok(row)
    }

    fn check_ref(&self, key: &KeyRef) -> Result<(), Fail> {
        self.check_name(&key.name)?;
        if key.version.as_deref().is_none_or(valid_version) {
            return Ok(());
        }
        Err(self.refuse(|scene| {
            scene.bad_parameter("The version is invalid.".into(), "allowed are 1 to 64 of [0-9A-Za-z]")
        }))
    }

    fn find(&self, name: &str, version: Option<&str>) -> rusqlite::Result<Option<Version>> {
        self.tx
            .prepare_cached(&select("k.name = ?1 AND (?2 IS NULL OR v.version = ?2)", "v.seq DESC LIMIT 1"))?
            .query_row(params![name, version.map(str::to_lowercase)], Version::from_row)
            .optional()
    }

    fn infos(&self, name: Option<&str>, which: &str) -> Result<Vec<KeyInfo>, Fail> {
        let rows = self
            .tx
            .prepare_cached(&select(&format!("(?1 IS NULL OR k.name = ?1) AND {which}"), "k.name, v.seq"))?
            .query_map([name], Version::from_row)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        rows.iter().map(|row| row.to_info(self)).collect()
    }
}

fn select(condition: &str, order: &str) -> String {
    format!(
        "SELECT k.id, k.name, v.version, v.bits, v.private, v.enabled, v.nbf, v.exp, v.created, v.updated, v.key_ops, v.tags, v.n, v.e
           FROM key_version v JOIN key k ON k.id = v.key WHERE {condition} ORDER BY {order}"
    )
}

/// A row of `key_version`, with its key's name.
struct Version {
    key: Uuid,
    name: String,
    version: String,
    bits: u32,
    sealed: Vec<u8>,
    enabled: bool,
    not_before: Option<i64>,
    expires: Option<i64>,
    created: i64,
    updated: i64,
    key_ops: String,
    tags: String,
    n: Vec<u8>,
    e: Vec<u8>,
}

impl Version {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            key: super::uuid_of(&row.get::<_, String>(0)?)?,
            name: row.get(1)?,
            version: row.get(2)?,
            bits: row.get(3)?,
            sealed: row.get(4)?,
            enabled: row.get(5)?,
            not_before: row.get(6)?,
            expires: row.get(7)?,
            created: row.get(8)?,
            updated: row.get(9)?,
            key_ops: row.get(10)?,
            tags: row.get(11)?,
            n: row.get(12)?,
            e: row.get(13)?,
        })
    }

    fn kid(&self, work: &Work<'_>) -> Result<Kid, Fail> {
        Kid::local(&work.facts.id, &self.name, &self.version).map_err(|e| {
            Fail::Broken(VaultError::Corrupt(format!("a key's name or version in vault.db: {}", e.chain())))
        })
    }

    fn to_info(&self, work: &Work<'_>) -> Result<KeyInfo, Fail> {
        Ok(KeyInfo {
            kid: self.kid(work)?,
            bits: self.bits,
            enabled: self.enabled,
            not_before: self.not_before,
            expires: self.expires,
            created: self.created,
            updated: self.updated,
            operations: self.operations()?,
            tags: serde_json::from_str(&self.tags).map_err(|e| self.damaged("tags", e))?,
            n: self.n.clone(),
            e: self.e.clone(),
        })
    }

    fn operations(&self) -> Result<Vec<KeyOperation>, Fail> {
        let names: Vec<String> =
            serde_json::from_str(&self.key_ops).map_err(|e| self.damaged("key_ops", e))?;
        names
            .iter()
            .map(|name| KeyOperation::parse(name))
            .collect::<Result<_, _>>()
            .map_err(|e| self.damaged("key_ops", e))
    }

    fn damaged(&self, column: &str, found: impl std::fmt::Display) -> Fail {
        let (name, version) = (&self.name, &self.version);
        Fail::Broken(VaultError::Corrupt(format!("key {name}/{version} in vault.db: {column}: {found}")))
    }

    /// [`Version::to_info`], and the audit record is about this version.
    fn info(&self, work: &mut Work<'_>) -> Result<KeyInfo, Fail> {
        let info = self.to_info(work)?;
        info.kid.as_str().clone_into(&mut work.subject);
        work.bits = Some(self.bits);
        Ok(info)
    }

    fn open(&self, work: &mut Work<'_>) -> Result<PrivateKey, Fail> {
        self.info(work)?;
        let place = Place { vault: &work.facts.id, key: &self.key, version: &self.version };
        let der = work.root.unseal(place, work.facts.generation, &self.sealed)?;
        Ok(PrivateKey::from_pkcs8(&der)?)
    }

    fn in_window(&self, work: &Work<'_>) -> Result<(), Fail> {
        let now = now();
        if self.not_before.is_none_or(|t| t <= now) && self.expires.is_none_or(|t| now < t) {
            return Ok(());
        }
        let bound = |t: Option<i64>| {
            t.and_then(|t| jiff::Timestamp::from_second(t).ok()).map_or("ever".into(), |t| t.to_string())
        };
        let window = format!("from {} until {}", bound(self.not_before), bound(self.expires));
        Err(work.refuse(|scene| scene.expired(&window)))
    }
}

/// 128 random bits, as Azure's versions look.
fn random_version() -> crate::error::Result<String> {
    use std::fmt::Write;
    let mut bytes = [0u8; 16];
    crate::secret::random(&mut bytes)?;
    Ok(bytes.iter().fold(String::with_capacity(32), |mut text, b| {
        let _ = write!(text, "{b:02x}"); // a String takes everything
        text
    }))
}

/// A name for the audit's URL; a hostile one is refused later, but recorded.
fn shown(name: &str) -> String {
    if valid_name(name) { name.to_owned() } else { "(invalid)".to_owned() }
}

fn shown_ref(key: &KeyRef) -> String {
    match &key.version {
        Some(version) => format!("{}/{version}", key.name),
        None => key.name.clone(),
    }
}

fn path_of(key: &KeyRef) -> String {
    match &key.version {
        Some(version) if valid_version(version) => format!("/keys/{}/{version}", shown(&key.name)),
        _ => format!("/keys/{}", shown(&key.name)),
    }
}
