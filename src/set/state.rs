//! How a set changes: a rotation begins and ends, what hinders it is noted, the set goes.
//!
//! Must never see: vaults, headers.
//!
//! Invariants:
//! 1. A rotation is begun by whoever first replaces the active version he saw; the others see that it was done.
//! 2. It ends only in a transaction that finds no container of the set under another version in the registry.
//! 3. A set that a container names stays.

use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::model::{COLUMNS, SetRow};
use super::{PreviousKey, Set, SetStore, Trouble, db};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;
use crate::vault::Kid;

/// What a set is to be under next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextKey {
    /// The vault that holds it.
    pub vault: Uuid,
    /// With version.
    pub kid: Kid,
    /// Stay with it, or follow the key's latest from there.
    pub pinned: bool,
    /// In whose name it is asked.
    pub identity: Uuid,
    /// Unix seconds: by when every container is to be under it.
    pub due: i64,
}

impl SetStore {
    /// Makes `next` the active version of a set and keeps the one before among the previous ones, until no container needs
    /// it. `None` when somebody else changed the active version since `seen` was read.
    ///
    /// # Errors
    /// `NotFound` for a set that is gone; `Busy`, `NoSpace`, `Io`.
    pub fn begin_rotation(&self, seen: &Set, next: &NextKey, now: i64) -> Result<Option<Set>> {
        self.on_set(seen.id, |tx, set| {
            if set.active != seen.active || set.vault != seen.vault {
                return Ok(None);
            }
            let mut previous = set.previous.clone();
            previous.retain(|old| old.kid != next.kid && old.kid != set.active);
            if set.active != next.kid {
                previous.push(PreviousKey {
                    kid: set.active.clone(),
                    vault: set.vault,
                    identity: set.identity,
                    since: now,
                });
            }
            tx.execute(
                "UPDATE disk_set SET vault = ?, key = ?, active = ?, pinned = ?, identity = ?, previous = ?,
                 rotation_due = ?, trouble = NULL WHERE id = ?",
                params![
                    next.vault.to_string(),
                    next.kid.versionless(),
                    next.kid.as_str(),
                    next.pinned,
                    next.identity.to_string(),
                    json(&previous)?,
                    next.due,
                    set.id.to_string()
                ],
            )?;
            one(tx, set.id).map(Some)
        })
    }

    /// Ends a rotation, when the registry shows every container of the set under its active version only. Says whether it
    /// did.
    ///
    /// # Errors
    /// As [`SetStore::begin_rotation`]; `Damaged`.
    pub fn end_rotation(&self, set: Uuid, now: i64) -> Result<bool> {
        self.on_set(set, |tx, set| {
            if !set.is_rotating() {
                return Ok(false);
            }
            let mut rows = tx.prepare_cached("SELECT kids FROM container WHERE set_id = ?")?;
            let rows = rows.query_map([set.id.to_string()], |row| row.get::<_, String>(0))?;
            for kids in rows {
                // What cannot be read is not done.
                let kids: Vec<String> = serde_json::from_str(&kids?).unwrap_or_default();
                if !set.is_done(&kids) {
                    return Ok(false);
                }
            }
            tx.execute(
                "UPDATE disk_set SET previous = '[]', rotation_due = NULL, last_rotation = ?, trouble = NULL
                 WHERE id = ?",
                params![now, set.id.to_string()],
            )?;
            Ok(true)
        })
    }

    /// Has a set stay with its active version, or follow the key's latest.
    ///
    /// # Errors
    /// As [`SetStore::begin_rotation`].
    pub fn set_pinned(&self, set: Uuid, pinned: bool) -> Result<()> {
        self.on_set(set, |tx, set| {
            tx.execute("UPDATE disk_set SET pinned = ? WHERE id = ?", params![pinned, set.id.to_string()])
                .map(drop)
        })
    }

    /// Notes why a set does not rotate by itself, or that nothing hinders it any more.
    ///
    /// # Errors
    /// As [`SetStore::begin_rotation`].
    pub fn set_trouble(&self, set: Uuid, trouble: Option<&Trouble>) -> Result<()> {
        self.on_set(set, |tx, set| {
            let trouble = trouble.map(|new| new.clone().after(set.trouble.as_ref()));
            if trouble != set.trouble {
                let text = trouble.as_ref().map(json).transpose()?;
                tx.execute(
                    "UPDATE disk_set SET trouble = ? WHERE id = ?",
                    params![text, set.id.to_string()],
                )?;
            }
            Ok(())
        })
    }

    /// Notes why a container could not be rewrapped.
    ///
    /// # Errors
    /// As [`SetStore::begin_rotation`].
    pub fn container_trouble(&self, uuid: &str, path: &std::path::Path, trouble: &Trouble) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let done = self.transaction(|tx| {
            let path = path.as_os_str().as_bytes();
            let before: Option<Option<String>> = tx
                .prepare_cached("SELECT trouble FROM container WHERE uuid = ? AND path = ?")?
                .query_row(params![uuid, path], |row| row.get(0))
                .optional()?;
            let before = before.flatten().and_then(|text| super::model::parse_trouble(&text).ok());
            let trouble = json(&trouble.clone().after(before.as_ref()))?;
            tx.execute(
                "UPDATE container SET trouble = ? WHERE uuid = ? AND path = ?",
                params![trouble, uuid, path],
            )
        });
        done.map(drop).map_err(|e| self.failure("note a container in", &e))
    }

    /// Takes a set out.
    ///
    /// # Errors
    /// `Busy`, saying which containers need it; `NotFound`, `NoSpace`, `Io`.
    pub fn delete(&self, set: &Set) -> Result<()> {
        let needed = self.on_set(set.id, |tx, set| {
            let needed: i64 = tx.query_row(
                "SELECT count(*) FROM container WHERE set_id = ?",
                [set.id.to_string()],
                |row| row.get(0),
            )?;
            if needed == 0 {
                tx.execute("DELETE FROM disk_set WHERE id = ?", [set.id.to_string()])?;
            }
            Ok(needed)
        })?;
        if needed == 0 {
            return Ok(());
        }
        let message = format!("found {needed} container(s) that need it, allowed none");
        Err(Error::new(ErrorKind::Busy, message).on(super::subject(&set.name)).hint(format!(
            "see them with: wrapdisk set list-associated-resources {0}; give each another set: wrapdisk disk update DISK --set OTHER; \
             those that are gone: wrapdisk set forget DISK",
            set.name
        )))
    }

    /// One transaction on a set as it is now.
    fn on_set<T>(
        &self,
        id: Uuid,
        work: impl FnOnce(&Transaction<'_>, &Set) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let done = self.transaction(|tx| {
            let set = one(tx, id)?;
            work(tx, &set)
        });
        done.map_err(|e| match e {
            rusqlite::Error::QueryReturnedNoRows => {
                Error::new(ErrorKind::NotFound, "no such set any more").on(format!("set {id}"))
            }
            e => self.failure("change a set in", &e),
        })
    }

    fn transaction<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut db = lock(&self.db);
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&tx)?;
        tx.commit()?;
        Ok(done)
    }
}

fn one(tx: &Transaction<'_>, id: Uuid) -> rusqlite::Result<Set> {
    let row = tx
        .prepare_cached(&format!("SELECT {COLUMNS} FROM disk_set WHERE id = ?"))?
        .query_row([id.to_string()], SetRow::read)?;
    row.parse().map_err(|e| db::odd(&e))
}

fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}
