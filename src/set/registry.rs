//! The registry: which containers were seen at which paths, under which keys, and the fingerprint of each one's key.
//!
//! Must never see: sets beyond their id. See `mod.rs` for the invariants.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, Row, TransactionBehavior, params};
use uuid::Uuid;

use super::model::parse_trouble;
use super::{SetStore, Trouble};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;

const COLUMNS: &str = "uuid, path, kind, set_id, kids, last_seen, last_rewrap, trouble";
const KINDS: [&str; 3] = ["disk", "snapshot", "image"];

/// One container at one path, as its header was when last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRecord {
    /// The container's uuid; copies share it.
    pub uuid: String,
    /// Where: absolute.
    pub path: PathBuf,
    /// `disk`, `snapshot` or `image`.
    pub kind: String,
    /// The set its tokens name; `None` for a container without our token.
    pub set: Option<Uuid>,
    /// The key versions that open it, in the order of its tokens.
    pub kids: Vec<String>,
    /// Unix seconds.
    pub last_seen: i64,
    /// Unix seconds; `None` = never, or not known to whoever records it.
    pub last_rewrap: Option<i64>,
    /// Why it could not be rewrapped when that was last tried.
    pub trouble: Option<Trouble>,
}

impl SetStore {
    /// Notes a container: a new row, or an update of the one with this uuid and path. A `last_rewrap` of `None` keeps
    /// what was known; a trouble stays until a rewrap, or until other key versions open the container. Another container that was seen at this path is not there any more, and is forgotten there.
    ///
    /// # Errors
    /// `InvalidInput` for a bad uuid, a relative path or an unknown kind; `Busy`, `NoSpace`, `Io`.
    pub fn record(&self, c: &ContainerRecord) -> Result<()> {
        let uuid = canonical(&c.uuid)?;
        if !c.path.is_absolute() {
            // A relative path means nothing to the next process.
            return Err(invalid("path", &c.path.display().to_string(), "an absolute path"));
        }
        if !KINDS.contains(&c.kind.as_str()) {
            return Err(invalid("kind", &c.kind, &KINDS.join(", ")));
        }
        self.change(|db| {
            let path = c.path.as_os_str().as_bytes();
            db.execute("DELETE FROM container WHERE path = ? AND uuid <> ?", params![path, uuid])?;
            db.execute(
                &format!(
                    "INSERT INTO container ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, NULL)
                     ON CONFLICT (uuid, path) DO UPDATE SET kind = excluded.kind, set_id = excluded.set_id,
                     trouble = CASE WHEN excluded.last_rewrap IS NULL AND excluded.kids = kids THEN trouble END,
                     kids = excluded.kids, last_seen = excluded.last_seen,
                     last_rewrap = coalesce(excluded.last_rewrap, last_rewrap)"
                ),
                params![
                    uuid,
                    path,
                    c.kind,
                    c.set.map(|id| id.to_string()),
                    serde_json::Value::from(c.kids.clone()).to_string(),
                    c.last_seen,
                    c.last_rewrap
                ],
            )
        })
        .map_err(|e| self.failure("note a container in", &e))?;
        Ok(())
    }

    /// The containers of one set, or all, by path.
    ///
    /// # Errors
    /// `Damaged`, `Busy`, `Io`.
    pub fn containers(&self, set: Option<Uuid>) -> Result<Vec<ContainerRecord>> {
        match set {
            Some(id) => self.select("WHERE set_id = ?", [id.to_string()]),
            None => self.select("", []),
        }
    }

    /// Every path at which the container with this uuid was seen; empty when it never was.
    ///
    /// # Errors
    /// `InvalidInput` when it is no uuid; `Damaged`, `Busy`, `Io`.
    pub fn find(&self, uuid: &str) -> Result<Vec<ContainerRecord>> {
        self.select("WHERE uuid = ?", [canonical(uuid)?])
    }

    /// The fingerprint of the key that the container with this uuid had when it was made or first trusted.
    ///
    /// # Errors
    /// `InvalidInput` when it is no uuid; `Damaged`, `Busy`, `Io`.
    pub fn pinned_fingerprint(&self, uuid: &str) -> Result<Option<[u8; 16]>> {
        let uuid = canonical(uuid)?;
        self.with(|db| {
            db.query_row("SELECT fp FROM fingerprint WHERE uuid = ?", [uuid], |row| row.get(0)).optional()
        })
        .map_err(|e| self.failure("look up a fingerprint in", &e))
    }

    /// Pins the fingerprint of a container's key. The first one stays for good: pinning the same again does nothing,
    /// and of two processes that race with different ones the second is refused.
    ///
    /// # Errors
    /// `Damaged` when another one is pinned; `InvalidInput` when it is no uuid; `Busy`, `NoSpace`, `Io`.
    pub fn pin(&self, uuid: &str, fp: [u8; 16]) -> Result<()> {
        let uuid = canonical(uuid)?;
        let stored: [u8; 16] = self
            .change(|db| {
                db.execute(
                    "INSERT INTO fingerprint (uuid, fp) VALUES (?, ?) ON CONFLICT DO NOTHING",
                    params![uuid, fp],
                )?;
                db.query_row("SELECT fp FROM fingerprint WHERE uuid = ?", [&uuid], |row| row.get(0))
            })
            .map_err(|e| self.failure("pin a fingerprint in", &e))?;
        // A fingerprint is no secret: it cannot be turned back into the key, so the order of comparison is free.
        if stored == fp {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Damaged,
            "key fingerprint: found another one than this container had before, so it was replaced as a whole",
        )
        .on(format!("container {uuid}"))
        .hint("do not trust what is on it; get the container back from a copy or backup that you trust"))
    }

    /// Drops the paths at which a container that is at `path` was before it moved: nothing is there now, but the folder is
    /// (a folder that is missing may be a disk that is not plugged in, with a copy on it). Which they were.
    ///
    /// # Errors
    /// As [`SetStore::forget`].
    pub fn drop_moved(&self, uuid: &str, path: &Path) -> Result<Vec<PathBuf>> {
        let mut moved = Vec::new();
        for other in self.find(uuid)?.into_iter().filter(|other| other.path != path) {
            let is_gone = |path: &Path| {
                std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
            };
            if is_gone(&other.path) && other.path.parent().is_some_and(Path::is_dir) {
                log::info!("container {uuid}: moved from {} to {}", other.path.display(), path.display());
                self.forget(uuid, &other.path)?;
                moved.push(other.path);
            }
        }
        Ok(moved)
    }

    /// Drops one path of a container. Its fingerprint stays pinned: the same uuid may come back from elsewhere.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` when it is no uuid; `Busy`, `Io`.
    pub fn forget(&self, uuid: &str, path: &Path) -> Result<()> {
        let uuid = canonical(uuid)?;
        let gone = self
            .with(|db| {
                db.execute(
                    "DELETE FROM container WHERE uuid = ? AND path = ?",
                    params![uuid, path.as_os_str().as_bytes()],
                )
            })
            .map_err(|e| self.failure("forget a container in", &e))?;
        if gone == 0 {
            return Err(Error::new(ErrorKind::NotFound, format!("not registered at {}", path.display()))
                .on(format!("container {uuid}"))
                .hint("see where it was seen with: wrapdisk set show"));
        }
        Ok(())
    }

    fn select(&self, condition: &str, values: impl rusqlite::Params) -> Result<Vec<ContainerRecord>> {
        let rows = self.with(|db| {
            db.prepare_cached(&format!("SELECT {COLUMNS} FROM container {condition} ORDER BY path, uuid"))?
                .query_map(values, ContainerRow::read)?
                .collect::<rusqlite::Result<Vec<_>>>()
        });
        let rows = rows.map_err(|e| self.failure("list the containers of", &e))?;
        rows.into_iter().map(|row| row.parse().map_err(|e| e.at(&self.path))).collect()
    }

    /// One write transaction: what it reads, nobody changes before it commits.
    fn change<T>(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut db = lock(&self.db);
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = work(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }
}

struct ContainerRow {
    record: ContainerRecord,
    set: Option<String>,
    kids: String,
    trouble: Option<String>,
}

impl ContainerRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            record: ContainerRecord {
                uuid: row.get(0)?,
                path: PathBuf::from(OsString::from_vec(row.get(1)?)),
                kind: row.get(2)?,
                set: None,
                kids: Vec::new(),
                last_seen: row.get(5)?,
                last_rewrap: row.get(6)?,
                trouble: None,
            },
            set: row.get(3)?,
            kids: row.get(4)?,
            trouble: row.get(7)?,
        })
    }

    fn parse(mut self) -> Result<ContainerRecord> {
        let uuid = &self.record.uuid;
        let damaged = |column: &str, found: &str, allowed: &str| {
            let found = found.escape_debug();
            Error::new(
                ErrorKind::Damaged,
                format!("container {uuid}: {column}: found \"{found}\", allowed {allowed}"),
            )
        };
        let set = self.set.as_deref();
        self.record.set = set
            .map(|text| Uuid::parse_str(text).map_err(|e| damaged("set_id", text, "a uuid").caused_by(e)))
            .transpose()?;
        self.record.kids = serde_json::from_str(&self.kids)
            .map_err(|e| damaged("kids", &self.kids, "a JSON array of strings").caused_by(e))?;
        self.record.trouble = (self.trouble.as_deref().map(parse_trouble).transpose())
            .map_err(|e| damaged("trouble", self.trouble.as_deref().unwrap_or(""), "JSON").caused_by(e))?;
        Ok(self.record)
    }
}

/// Lower case with dashes, however a person typed it.
fn canonical(uuid: &str) -> Result<String> {
    Uuid::parse_str(uuid)
        .map(|u| u.hyphenated().to_string())
        .map_err(|e| invalid("uuid", uuid, "a uuid").caused_by(e))
}

fn invalid(what: &str, found: &str, allowed: &str) -> Error {
    let shown: String = found.chars().take(64).flat_map(char::escape_debug).collect();
    Error::new(ErrorKind::InvalidInput, format!("container {what}: found \"{shown}\", allowed {allowed}"))
}
