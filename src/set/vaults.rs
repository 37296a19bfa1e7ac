//! The vaults elsewhere that this machine may ask: the table `vault_entry` of `sets.db`. Beside the sets, because a set
//! without its vault is of no use, and one transaction can keep an entry that a set needs.
//!
//! Must never see: a secret, a network.
//!
//! Invariants:
//! 1. An entry that a set refers to stays.
//! 2. No entry is named like the embedded vault, or carries its id.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rusqlite::{OptionalExtension, Row, TransactionBehavior, params};
use uuid::Uuid;

use super::{SetStore, now};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;
use crate::vault::{Credential, Endpoint, VaultEntry, checked_host};

/// The embedded vault, where a vault is named.
pub const LOCAL: &str = "local";

const COLUMNS: &str = "id, name, endpoint, aliases, credential, ca_file, authority, local_server, created";

/// What [`SetStore::add_vault`] needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVault {
    /// 1 to 127 letters, digits and dashes; unique without regard to case.
    pub name: String,
    /// Where it is asked.
    pub endpoint: Endpoint,
    /// Other hosts that key identifiers may name.
    pub aliases: Vec<String>,
    /// In whose name.
    pub credential: Credential,
    /// Certificates to trust.
    pub ca_file: Option<PathBuf>,
    /// Who issues tokens.
    pub authority: Option<Endpoint>,
    /// A `vault serve`.
    pub local_server: bool,
}

impl NewVault {
    /// As an entry that is not stored, under a new id: to try it first.
    ///
    /// # Errors
    /// `InvalidInput` for the name or an alias.
    pub fn entry(&self) -> Result<VaultEntry> {
        if !crate::envelope::valid_name(&self.name) || self.name.eq_ignore_ascii_case(LOCAL) {
            let shown: String = self.name.chars().take(64).flat_map(char::escape_debug).collect();
            let found = format!(
                "vault name: found \"{shown}\", allowed 1 to 127 of [0-9A-Za-z-] but \"{LOCAL}\", which is the embedded one"
            );
            return Err(Error::new(ErrorKind::InvalidInput, found));
        }
        Ok(VaultEntry {
            id: Uuid::new_v4(),
            name: self.name.clone(),
            endpoint: self.endpoint.clone(),
            aliases: self.aliases.iter().map(|alias| checked_host(alias)).collect::<Result<_>>()?,
            credential: self.credential.clone(),
            ca_file: self.ca_file.clone(),
            authority: self.authority.clone(),
            local_server: self.local_server,
            created: now(),
        })
    }
}

impl SetStore {
    /// Adds a vault elsewhere.
    ///
    /// # Errors
    /// `InvalidInput`; `Exists` for a name that is taken.
    pub fn add_vault(&self, new: &NewVault) -> Result<VaultEntry> {
        let entry = new.entry()?;
        let json = |e: serde_json::Error| Error::new(ErrorKind::Other, "encode").caused_by(e);
        let aliases = serde_json::to_string(&entry.aliases).map_err(json)?;
        let credential = serde_json::to_string(&entry.credential).map_err(json)?;
        let added = self.with(|db| {
            db.execute(
                &format!(
                    "INSERT INTO vault_entry ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
                ),
                params![
                    entry.id.to_string(),
                    entry.name,
                    entry.endpoint.url(),
                    aliases,
                    credential,
                    entry.ca_file.as_ref().map(|file| file.as_os_str().as_bytes()),
                    entry.authority.as_ref().map(Endpoint::url),
                    entry.local_server,
                    entry.created
                ],
            )
        });
        if added.map_err(|e| self.failure("add a vault to", &e))? == 0 {
            return Err(Error::new(ErrorKind::Exists, "a vault of this name exists (case does not count)")
                .on(subject(&new.name))
                .hint("choose another name, or take that one out first: wrapdisk vault remove"));
        }
        Ok(entry)
    }

    /// All vaults elsewhere, by name.
    ///
    /// # Errors
    /// `Damaged`, `Busy`, `Io`.
    pub fn vaults(&self) -> Result<Vec<VaultEntry>> {
        let rows = self.with(|db| {
            db.prepare_cached(&format!("SELECT {COLUMNS} FROM vault_entry ORDER BY name"))?
                .query_map([], EntryRow::read)?
                .collect::<rusqlite::Result<Vec<_>>>()
        });
        let rows = rows.map_err(|e| self.failure("list the vaults of", &e))?;
        rows.into_iter().map(|row| row.parse().map_err(|e| e.at(&self.path))).collect()
    }

    /// The vault of this name, without regard to case.
    ///
    /// # Errors
    /// `NotFound`, naming those there are; `Damaged`, `Busy`, `Io`.
    pub fn vault_by_name(&self, name: &str) -> Result<VaultEntry> {
        let all = self.vaults()?;
        if let Some(entry) = all.iter().find(|entry| entry.name.eq_ignore_ascii_case(name)) {
            return Ok(entry.clone());
        }
        let known: Vec<&str> = all.iter().map(|entry| entry.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(Error::new(
            ErrorKind::NotFound,
            format!("no such vault in {}; known: {known}", self.path.display()),
        )
        .on(subject(name))
        .hint("add it: wrapdisk vault add NAME https://HOST"))
    }

    /// Takes a vault out.
    ///
    /// # Errors
    /// `NotFound`; `Busy`, naming the sets that use it.
    pub fn remove_vault(&self, name: &str) -> Result<VaultEntry> {
        let entry = self.vault_by_name(name)?;
        let users = self.with_transaction(|tx| {
            let users = tx
                .prepare("SELECT name FROM disk_set WHERE vault = ? ORDER BY name")?
                .query_map([entry.id.to_string()], |row| row.get::<_, String>(0))?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            if users.is_empty() {
                tx.execute("DELETE FROM vault_entry WHERE id = ?", [entry.id.to_string()])?;
            }
            Ok(users)
        })?;
        if users.is_empty() {
            return Ok(entry);
        }
        Err(Error::new(ErrorKind::Busy, format!("in use by the sets: {}", users.join(", ")))
            .on(subject(name))
            .hint("their disks could not be opened any more; delete the sets first"))
    }

    fn with_transaction<T>(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut db = lock(&self.db);
        let change = || {
            let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = work(&tx)?;
            tx.commit().map(|()| done)
        };
        change().map_err(|e| self.failure("change the vaults of", &e))
    }

    /// Whether a vault elsewhere has this id.
    ///
    /// # Errors
    /// `Busy`, `Io`.
    pub fn is_vault_elsewhere(&self, id: Uuid) -> Result<bool> {
        let found = self.with(|db| {
            db.prepare_cached("SELECT 1 FROM vault_entry WHERE id = ?")?
                .query_row([id.to_string()], |_| Ok(()))
                .optional()
        });
        Ok(found.map_err(|e| self.failure("look up a vault in", &e))?.is_some())
    }
}

/// A row as SQLite has it.
struct EntryRow {
    id: String,
    name: String,
    endpoint: String,
    aliases: String,
    credential: String,
    ca_file: Option<Vec<u8>>,
    authority: Option<String>,
    local_server: bool,
    created: i64,
}

impl EntryRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            name: row.get(1)?,
            endpoint: row.get(2)?,
            aliases: row.get(3)?,
            credential: row.get(4)?,
            ca_file: row.get(5)?,
            authority: row.get(6)?,
            local_server: row.get(7)?,
            created: row.get(8)?,
        })
    }

    fn parse(self) -> Result<VaultEntry> {
        let damaged = |column: &str, e: String| {
            let name = self.name.escape_debug();
            Error::new(ErrorKind::Damaged, format!("vault \"{name}\": {column}")).caused_by(e)
        };
        let endpoint =
            |column: &str, text: &str| Endpoint::parse(text).map_err(|e| damaged(column, e.chain()));
        let aliases: Vec<String> =
            serde_json::from_str(&self.aliases).map_err(|e| damaged("aliases", e.to_string()))?;
        Ok(VaultEntry {
            id: Uuid::parse_str(&self.id).map_err(|e| damaged("id", e.to_string()))?,
            endpoint: endpoint("endpoint", &self.endpoint)?,
            aliases: aliases
                .iter()
                .map(|alias| checked_host(alias).map_err(|e| damaged("aliases", e.chain())))
                .collect::<Result<_>>()?,
            credential: serde_json::from_str(&self.credential)
                .map_err(|e| damaged("credential", e.to_string()))?,
            authority: self.authority.as_deref().map(|url| endpoint("authority", url)).transpose()?,
            name: self.name,
            ca_file: self.ca_file.map(|bytes| PathBuf::from(OsString::from_vec(bytes))),
            local_server: self.local_server,
            created: self.created,
        })
    }
}

fn subject(name: &str) -> String {
    let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
    format!("vault \"{shown}\"")
}
