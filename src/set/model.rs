//! What a set is: the words of `set show`, and how its row in `sets.db` is read.
//!
//! Must never see: SQL beyond one row's columns.

use std::str::FromStr;

use rusqlite::Row;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::revocation::Policy;
use crate::vault::Kid;

/// In the order of [`SetRow::read`].
pub(super) const COLUMNS: &str = "id, name, vault, key, active, pinned, identity, created, encryption_type, previous, \
                                  rotation_due, last_rotation, trouble, policy";

/// What [`SetStore::create`](super::SetStore::create) needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSet {
    /// 1 to [`MAX_NAME`](super::MAX_NAME) of `[A-Za-z0-9._-]`, the first one a letter or digit; unique without regard to
    /// case.
    pub name: String,
    /// Id of the vault that holds the key.
    pub vault: Uuid,
    /// Its identifier without version.
    pub key: String,
    /// The version that wraps now.
    pub active: Kid,
    /// Stay with this version instead of following the latest.
    pub pinned: bool,
    /// In whose name the vault is asked.
    pub identity: Uuid,
}

/// Azure's name for what is done here: disks are encrypted under the owner's key, at rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EncryptionType {
    /// The one there is.
    #[default]
    CustomerKey,
}

impl EncryptionType {
    /// As Azure has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CustomerKey => "EncryptionAtRestWithCustomerKey",
        }
    }
}

impl FromStr for EncryptionType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: &str| Err(Error::new(ErrorKind::Unsupported, format!("encryption type: {why}")));
        match text.to_ascii_lowercase().as_str() {
            "encryptionatrestwithcustomerkey" => Ok(Self::CustomerKey),
            "encryptionatrestwithplatformandcustomerkeys" => refused(
                "EncryptionAtRestWithPlatformAndCustomerKeys encrypts a second time under a key of the platform's; there is no platform here",
            ),
            "confidentialvmencryptedwithcustomerkey" => refused(
                "ConfidentialVmEncryptedWithCustomerKey needs a confidential VM, which holds the key; a mount does here",
            ),
            _ => {
                let shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
                refused(&format!("found \"{shown}\", allowed {}", Self::default().name()))
            }
        }
    }
}

/// A key version that containers of a set may still need, and how it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousKey {
    /// With version.
    #[serde(with = "text")]
    pub kid: Kid,
    /// The vault that holds it.
    #[serde(with = "text")]
    pub vault: Uuid,
    /// In whose name it is asked.
    #[serde(with = "text")]
    pub identity: Uuid,
    /// Unix seconds: when it stopped being the active one.
    pub since: i64,
}

/// Why something that should happen by itself does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Unix seconds: when it began.
    pub since: i64,
    /// Unix seconds: when it was last tried.
    pub time: i64,
    /// The key version that was wanted, where one was known.
    pub kid: Option<String>,
    /// A stable word: `KeyVaultKeyNotEnabled`, `KeyVaultAccessForbidden`, `Missing`, ...
    pub code: String,
    /// For people.
    pub message: String,
    /// The next try may well succeed: an outage.
    pub transient: bool,
}

/// How long an outage lasts before it is an error.
const OUTAGE: i64 = 3600;

impl Trouble {
    /// An outage is told once it has lasted an hour; anything else at once.
    #[must_use]
    pub const fn is_serious(&self) -> bool {
        !self.transient || self.time - self.since >= OUTAGE
    }

    /// The same trouble goes on since when it began.
    #[must_use]
    pub fn after(mut self, before: Option<&Self>) -> Self {
        if let Some(before) = before.filter(|before| before.code == self.code) {
            self.since = before.since;
        }
        self
    }

    /// As `autoKeyRotationError`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({ "time": time(self.time), "since": time(self.since), "kid": self.kid, "code": self.code, "message": self.message })
    }
}

/// A disk encryption set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// What containers refer to.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// Id of the vault that holds the key.
    pub vault: Uuid,
    /// Its identifier without version.
    pub key: String,
    /// The version that wraps now.
    pub active: Kid,
    /// Stays with this version instead of following the latest.
    pub pinned: bool,
    /// In whose name the vault is asked.
    pub identity: Uuid,
    /// Unix seconds.
    pub created: i64,
    /// In Azure's words.
    pub encryption_type: EncryptionType,
    /// Versions that containers may still need; empty unless a rotation is on its way.
    pub previous: Vec<PreviousKey>,
    /// Unix seconds: by when every container is to be under the active version.
    pub rotation_due: Option<i64>,
    /// Unix seconds: when the last rotation ended.
    pub last_rotation: Option<i64>,
    /// Why the set does not rotate by itself.
    pub trouble: Option<Trouble>,
    /// What its mounts do when the key is taken away.
    pub policy: Policy,
}

impl Set {
    /// `NAME/UUID`, the value of a token's `wrapdisk-set` (ON-DISK section 4): ASCII, at most 117 bytes.
    #[must_use]
    pub fn token_label(&self) -> String {
        format!("{}/{}", self.name, self.id)
    }

    /// Follows the key's latest version.
    #[must_use]
    pub const fn is_auto(&self) -> bool {
        !self.pinned
    }

    /// Containers may still be under another version than the active one.
    #[must_use]
    pub const fn is_rotating(&self) -> bool {
        !self.previous.is_empty()
    }

    /// The vault that is asked for a key version, and in whose name; `None` for one that the set does not use.
    #[must_use]
    pub fn way_to(&self, kid: &Kid) -> Option<(Uuid, Uuid)> {
        if kid.versionless() == self.key {
            return Some((self.vault, self.identity));
        }
        let old = self.previous.iter().find(|old| old.kid.versionless() == kid.versionless())?;
        Some((old.vault, old.identity))
    }

    /// Is a container under these versions behind, at `now`, the hour it had?
    #[must_use]
    pub fn is_late(&self, kids: &[String], now: i64) -> bool {
        self.rotation_due.is_some_and(|due| now > due) && !self.is_done(kids)
    }

    /// Is a container under these versions where it should be?
    #[must_use]
    pub fn is_done(&self, kids: &[String]) -> bool {
        let is_old = |kid: &String| {
            let of_key = kid.strip_prefix(&self.key).is_some_and(|rest| rest.starts_with('/'));
            kid != self.active.as_str() && (of_key || self.previous.iter().any(|old| old.kid.as_str() == kid))
        };
        kids.iter().any(|kid| kid == self.active.as_str()) && !kids.iter().any(is_old)
    }

    /// The shape of `set show` (KEY-VAULT section 6). `tenantId` is null here: the vault knows it, a set does not.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let previous = self.previous.iter().map(|old| {
            json!({ "sourceVault": { "id": old.vault.to_string() }, "keyUrl": old.kid.as_str(), "since": time(old.since) })
        });
        let trouble = self.trouble.as_ref().filter(|trouble| trouble.is_serious());
        json!({
            "name": self.name,
            "id": self.id.to_string(),
            "identity": {
                "type": "SystemAssigned",
                "principalId": self.identity.to_string(),
                "tenantId": null,
            },
            "properties": {
                "activeKey": {
                    "sourceVault": { "id": self.vault.to_string() },
                    "keyUrl": self.active.as_str(),
                },
                // As the user gave it: with a version when pinned, without when following.
                "keyReference": if self.pinned { self.active.as_str() } else { &self.key },
                "previousKeys": previous.collect::<Vec<_>>(),
                "encryptionType": self.encryption_type.name(),
                "rotationToLatestKeyVersionEnabled": !self.pinned,
                "lastKeyRotationTimestamp": self.last_rotation.map(time),
                "autoKeyRotationError": trouble.map(Trouble::to_json),
                "revocationPolicy": self.policy,
                "provisioningState": if self.is_rotating() { "Updating" } else { "Succeeded" },
            },
        })
    }
}

/// RFC 3339 in UTC.
pub(super) fn time(unix: i64) -> String {
    jiff::Timestamp::from_second(unix).map_or_else(|_| unix.to_string(), |t| t.to_string())
}

/// What has a text form, as that text; parsed on the way in.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A row as SQLite has it; [`SetRow::parse`] makes a [`Set`] of it or says which column is wrong.
pub(super) struct SetRow {
    id: String,
    name: String,
    vault: String,
    key: String,
    active: String,
    pinned: bool,
    identity: String,
    created: i64,
    encryption_type: String,
    previous: String,
    rotation_due: Option<i64>,
    last_rotation: Option<i64>,
    trouble: Option<String>,
    policy: Option<String>,
}

impl SetRow {
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            name: row.get(1)?,
            vault: row.get(2)?,
            key: row.get(3)?,
            active: row.get(4)?,
            pinned: row.get(5)?,
            identity: row.get(6)?,
            created: row.get(7)?,
            encryption_type: row.get(8)?,
            previous: row.get(9)?,
            rotation_due: row.get(10)?,
            last_rotation: row.get(11)?,
            trouble: row.get(12)?,
            policy: row.get(13)?,
        })
    }

    pub(super) fn parse(self) -> Result<Set> {
        let damaged = |column: &str, found: &str, allowed: &str| {
            let found = found.escape_debug();
            let name = self.name.escape_debug();
            Error::new(
                ErrorKind::Damaged,
                format!("set \"{name}\": {column}: found \"{found}\", allowed {allowed}"),
            )
        };
        let uuid = |column: &str, text: &str| {
            Uuid::parse_str(text).map_err(|e| damaged(column, text, "a uuid").caused_by(e))
        };
        let active = Kid::parse(&self.active)?;
        if active.versionless() != self.key {
            return Err(damaged("active", &self.active, &format!("a version of \"{}\"", self.key)));
        }
        let previous = serde_json::from_str(&self.previous)
            .map_err(|e| damaged("previous", &self.previous, "a JSON array of keys").caused_by(e))?;
        let trouble = self.trouble.as_deref().map(parse_trouble).transpose();
        let policy = self.policy.as_deref().map(serde_json::from_str).transpose();
        Ok(Set {
            id: uuid("id", &self.id)?,
            vault: uuid("vault", &self.vault)?,
            identity: uuid("identity", &self.identity)?,
            encryption_type: self.encryption_type.parse().map_err(|e: Error| {
                damaged("encryption_type", &self.encryption_type, "one of ours").caused_by(e.to_string())
            })?,
            trouble: trouble.map_err(|e| {
                damaged("trouble", self.trouble.as_deref().unwrap_or(""), "JSON").caused_by(e)
            })?,
            policy: policy
                .map_err(|e| {
                    damaged("policy", self.policy.as_deref().unwrap_or(""), "a policy").caused_by(e)
                })?
                .unwrap_or_default(),
            previous,
            name: self.name,
            key: self.key,
            active,
            pinned: self.pinned,
            created: self.created,
            rotation_due: self.rotation_due,
            last_rotation: self.last_rotation,
        })
    }
}

pub(super) fn parse_trouble(text: &str) -> serde_json::Result<Trouble> {
    serde_json::from_str(text)
}
