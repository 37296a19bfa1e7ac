//! Disk encryption sets and the registry of containers, in `sets.db` in the state folder. A set says which key of which
//! vault wraps its disks' keys, in whose name, and whether it follows the key's latest version. The registry says which
//! containers were seen where.
//!
//! Must never see: keys, plaintext, FUSE. It stores identifiers only; nothing in this file is secret, but who can write
//! it can point a set at another key, so it is private to its owner.
//!
//! Invariants:
//! 1. Every change is one transaction: several processes (the command line, each mount) share the file.
//! 2. A set's active key is a version of the set's key.
//! 3. Headers are the truth, the registry is an index of them: copies of a container share its uuid, every path is kept.
//! 4. A pinned fingerprint is never overwritten: a container that comes back with another key was replaced
//!    (ON-DISK section 5 (c)).

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::revocation::Policy;
use crate::sync::{Mutex, lock};

use self::model::{COLUMNS, SetRow};

pub mod access;
pub mod container;
mod db;
pub mod find;
pub mod first_use;
mod model;
mod policy;
pub mod probe;
mod providers;
pub mod provision;
mod registry;
pub mod rewrap;
pub mod rotation;
mod state;
mod vaults;

pub use model::{EncryptionType, NewSet, PreviousKey, Set, Trouble};
pub use providers::Provider;
pub use registry::ContainerRecord;
pub use state::NextKey;
pub use vaults::{LOCAL, NewVault};

/// Longest name of a set in bytes. `NAME/UUID` must fit the 128 bytes of a token's `wrapdisk-set` (ON-DISK section 4);
/// 80 is also Azure's limit for the name of a disk encryption set.
pub const MAX_NAME: usize = 80;

/// `sets.db`, open. May be shared by threads.
#[derive(Debug)]
pub struct SetStore {
    db: Mutex<Connection>,
    path: PathBuf,
}

impl SetStore {
    /// Opens `sets.db` in the state folder; makes both when missing.
    ///
    /// # Errors
    /// `PermissionDenied` (also for a file that others can reach), `Unsupported` for a newer schema, `InvalidInput` for
    /// another program's database, `Damaged`, `Busy`, `NoSpace`, `Io`.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join("sets.db");
        Ok(Self { db: Mutex::new(db::open(&path)?), path })
    }

    /// A copy as of this moment, for a backup: `sets.db` in a folder of its own, which is gone when dropped.
    ///
    /// # Errors
    /// `Busy`, `NoSpace`, `Io`.
    pub fn snapshot(&self) -> Result<tempfile::TempDir> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let scratch = tempfile::Builder::new().prefix(".backup-").tempdir_in(folder); // 0700
        let scratch = scratch.map_err(|e| Error::io("make a folder", e).at(folder))?;
        let copy = scratch.path().join("sets.db");
        lock(&self.db)
            .execute("VACUUM INTO ?1", [copy.to_string_lossy()])
            .map_err(|e| db::failure(&self.path, "copy", &e))?;
        Ok(scratch)
    }

    /// Adds a set under a new id.
    ///
    /// # Errors
    /// `InvalidInput` for a bad name or an active version of another key; `Exists` for a name that is taken.
    pub fn create(&self, new: &NewSet) -> Result<Set> {
        check_name(&new.name)?;
        if new.active.versionless() != new.key {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("active key: found \"{}\", allowed a version of \"{}\"", new.active, new.key),
            )
            .on(subject(&new.name)));
        }
        let set = Set {
            id: Uuid::new_v4(),
            name: new.name.clone(),
            vault: new.vault,
            key: new.key.clone(),
            active: new.active.clone(),
            pinned: new.pinned,
            identity: new.identity,
            created: now(),
            encryption_type: EncryptionType::default(),
            previous: Vec::new(),
            rotation_due: None,
            last_rotation: None,
            trouble: None,
            policy: Policy::default(),
        };
        // The primary key is random: the one thing that can collide is the name.
        let added = self
            .with(|db| {
                db.execute(
                    "INSERT INTO disk_set (id, name, vault, key, active, pinned, identity, created)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    params![
                        set.id.to_string(),
                        set.name,
                        set.vault.to_string(),
                        set.key,
                        set.active.as_str(),
                        set.pinned,
                        set.identity.to_string(),
                        set.created
                    ],
                )
            })
            .map_err(|e| self.failure("add a set to", &e))?;
        if added == 0 {
            return Err(Error::new(ErrorKind::Exists, "a set of this name exists (case does not count)")
                .on(subject(&new.name))
                .hint("choose another name, or use that set: wrapdisk set show"));
        }
        Ok(set)
    }

    /// All sets, by name.
    ///
    /// # Errors
    /// `Damaged`, `Busy`, `Io`.
    pub fn list(&self) -> Result<Vec<Set>> {
        let rows = self.with(|db| {
            db.prepare_cached(&format!("SELECT {COLUMNS} FROM disk_set ORDER BY name"))?
                .query_map([], SetRow::read)?
                .collect::<rusqlite::Result<Vec<_>>>()
        });
        let rows = rows.map_err(|e| self.failure("list the sets of", &e))?;
        rows.into_iter().map(|row| row.parse().map_err(|e| e.at(&self.path))).collect()
    }

    /// The set of this name, without regard to case.
    ///
    /// # Errors
    /// `NotFound`, naming the sets there are; `Damaged`, `Busy`, `Io`.
    pub fn by_name(&self, name: &str) -> Result<Set> {
        if let Some(set) = self.one("name", name)? {
            return Ok(set);
        }
        let known: Vec<String> = self.list()?.into_iter().map(|s| s.name).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(Error::new(
            ErrorKind::NotFound,
            format!("no such set in {}; known: {known}", self.path.display()),
        )
        .on(subject(name))
        .hint("see what there is: wrapdisk set list"))
    }

    /// The set with this id, as containers name it.
    ///
    /// # Errors
    /// `Damaged`, `Busy`, `Io`.
    pub fn by_id(&self, id: Uuid) -> Result<Option<Set>> {
        self.one("id", &id.to_string())
    }

    fn one(&self, column: &str, value: &str) -> Result<Option<Set>> {
        let row = self.with(|db| {
            db.prepare_cached(&format!("SELECT {COLUMNS} FROM disk_set WHERE {column} = ?"))?
                .query_row([value], SetRow::read)
                .optional()
        });
        let row = row.map_err(|e| self.failure("look up a set in", &e))?;
        row.map(|row| row.parse().map_err(|e| e.at(&self.path))).transpose()
    }

    fn with<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        work(&lock(&self.db))
    }

    fn failure(&self, what: &str, e: &rusqlite::Error) -> Error {
        db::failure(&self.path, what, e)
    }
}

/// The name goes into tokens, file names and shell lines: no separator, no leading dash or dot.
fn check_name(name: &str) -> Result<()> {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if letters && first && name.len() <= MAX_NAME {
        return Ok(());
    }
    let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "set name: found \"{shown}\", allowed 1 to {MAX_NAME} of [A-Za-z0-9._-], the first a letter or digit"
        ),
    ))
}

fn subject(name: &str) -> String {
    let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
    format!("set \"{shown}\"")
}

/// Unix seconds; 0 for a clock before 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
