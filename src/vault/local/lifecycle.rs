//! The end of a key, and the way back: delete, recover, purge (KEY-VAULT section 2, lifecycle).
//!
//! Must never see: disks, sets.
//!
//! Invariants:
//! 1. A deleted key is as good as gone for every operation at once, and keeps its name until it is purged.
//! 2. Purge destroys the key's wrapping key and its rows (`secure_delete` overwrites them), then empties the write-ahead
//!    log. What a copy, a backup or a file system snapshot holds it cannot reach.
//! 3. Under purge protection nobody purges before the schedule.

use rusqlite::params;

use super::authz::Permission;
use super::keys::shown;
use super::model::{DeletedKey, Page};
use super::refusal::Fail;
use super::rows::{Life, Version};
use super::settings;
use super::work::{Task, Work};
use super::{LocalVault, now};
use crate::envelope::KeyRef;
use crate::vault::{Call, KeyInfo, VaultError};

const DAY: i64 = 86400;

impl LocalVault {
    /// Takes a key with all its versions out of use; it can be had back until the schedule.
    ///
    /// # Errors
    /// 403, 404 `KeyNotFound`; broken.
    pub fn delete_key(&self, name: &str, call: &Call) -> Result<DeletedKey, Fail> {
        let path = format!("/keys/{}", shown(name));
        let task = Task { operation: "KeyDelete", permission: Permission::Delete, path: &path, action: "" };
        self.audited(task, call, |work| {
            let mut row = work.find_for_admin(&KeyRef { name: name.to_owned(), version: None })?;
            let days = settings::load(work.tx, work.facts)?.retention_days;
            let deleted = now();
            row.deleted = Some(deleted);
            row.scheduled_purge = Some(deleted + i64::from(days) * DAY);
            work.set_deleted(&row)?;
            row.to_deleted(work)
        })
    }

    /// A deleted key.
    ///
    /// # Errors
    /// 403, 404 `KeyNotFound`; broken.
    pub fn get_deleted_key(&self, name: &str, call: &Call) -> Result<DeletedKey, Fail> {
        let path = format!("/deletedkeys/{}", shown(name));
        let task = Task { operation: "KeyGetDeleted", permission: Permission::Get, path: &path, action: "" };
        self.audited(task, call, |work| work.deleted(name)?.to_deleted(work))
    }

    /// The deleted keys, by name.
    ///
    /// # Errors
    /// 403; broken.
    pub fn list_deleted_keys(&self, page: &Page, call: &Call) -> Result<Vec<DeletedKey>, Fail> {
        let task = Task {
            operation: "KeyListDeleted",
            permission: Permission::List,
            path: "/deletedkeys",
            action: "",
        };
        self.audited(task, call, |work| {
            work.require(None)?;
            let rows = work.latest(Life::Deleted, page.after.as_deref(), page.limit())?;
            rows.iter().map(|row| deleted_key(row, row.to_info(work.facts)?)).collect()
        })
    }

    /// Brings a deleted key back, with all its versions.
    ///
    /// # Errors
    /// 403, 404 `KeyNotFound`; broken.
    pub fn recover_key(&self, name: &str, call: &Call) -> Result<KeyInfo, Fail> {
        let path = format!("/deletedkeys/{}", shown(name));
        let task =
            Task { operation: "KeyRecover", permission: Permission::Recover, path: &path, action: "recover" };
        self.audited(task, call, |work| {
            work.require(Some(name))?;
            work.check_name(name)?;
            let Some(mut row) = work.find_deleted(name)? else {
                return Err(work.refuse(|scene| scene.key_not_found(name)));
            };
            (row.deleted, row.scheduled_purge) = (None, None);
            work.set_deleted(&row)?;
            row.info(work)
        })
    }

    /// Destroys a deleted key for good.
    ///
    /// # Errors
    /// 403 (permission, purge protection), 404 `KeyNotFound`; broken.
    pub fn purge_key(&self, name: &str, call: &Call) -> Result<(), Fail> {
        self.purge(name, false, call)?;
        self.empty_log();
        Ok(())
    }

    /// Destroys what was deleted so long ago that its schedule has come. Cheap when there is nothing.
    ///
    /// # Errors
    /// As [`LocalVault::purge_key`], of the first one that could not be purged.
    pub fn purge_overdue(&self, call: &Call) -> Result<usize, Fail> {
        let task = Task {
            operation: "KeyListDeleted",
            permission: Permission::Purge,
            path: "/deletedkeys",
            action: "",
        };
        let overdue: Vec<String> = self.peek(task, call, |work| {
            let mut query = work.tx.prepare_cached("SELECT name FROM key WHERE scheduled_purge <= ?1")?;
            Ok(query.query_map([now()], |row| row.get(0))?.collect::<Result<_, _>>()?)
        })?;
        let mut purged = 0;
        for name in &overdue {
            purged += usize::from(self.purge(name, true, call)?);
        }
        if purged > 0 {
            self.empty_log();
        }
        Ok(purged)
    }

    /// `only_overdue`: what is not (any more) is left alone.
    fn purge(&self, name: &str, only_overdue: bool, call: &Call) -> Result<bool, Fail> {
        let path = format!("/deletedkeys/{}", shown(name));
        let task = Task { operation: "KeyPurge", permission: Permission::Purge, path: &path, action: "" };
        self.audited(task, call, |work| {
            work.require(Some(name))?;
            work.check_name(name)?;
            let Some(row) = work.find_deleted(name)? else {
                if only_overdue {
                    return Ok(false);
                }
                return Err(work.refuse(|scene| scene.deleted_key_not_found(name)));
            };
            let overdue = row.scheduled_purge.is_some_and(|t| t <= now());
            if only_overdue && !overdue {
                return Ok(false);
            }
            if !overdue && settings::load(work.tx, work.facts)?.purge_protection {
                return Err(work.refuse(|scene| scene.purge_protected()));
            }
            work.change = Some(format!("key {name} was purged with all its versions"));
            let id = row.key.to_string();
            work.tx.execute("UPDATE key SET wrapping = zeroblob(length(wrapping)) WHERE id = ?1", [&id])?;
            work.tx.execute("DELETE FROM key WHERE id = ?1", [&id])?;
            work.bump_generation()?;
            Ok(true)
        })
    }

    /// The rows that were overwritten still lie in the write-ahead log: into the database with it, and cut. A reader that
    /// does not end keeps it; then the next purge, or the last process that closes the vault, does it.
    fn empty_log(&self) {
        let done = self.current().map_err(Fail::Broken).and_then(|db| {
            Ok(db.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0))?)
        });
        match done {
            Ok(false) => {}
            Ok(true) => log::warn!("a purged key is still in vault.db-wal: another process reads the vault"),
            Err(e) => log::warn!("a purged key may still be in vault.db-wal: {}", VaultError::from(e)),
        }
    }

    /// What the clock asks for: purges and rotations that are due. Never in the way of what the vault was opened for.
    pub(super) fn upkeep(&self) {
        let call = self.admin("upkeep");
        let trouble = |what: &str, e: Fail| log::warn!("{what}: {}", VaultError::from(e));
        self.purge_overdue(&call).map_or_else(|e| trouble("purge what is overdue", e), |_| ());
        self.rotate_due(&call).map_or_else(|e| trouble("rotate what is due", e), |_| ());
    }
}

impl Work<'_> {
    /// Permission and existence among the deleted keys.
    fn deleted(&mut self, name: &str) -> Result<Version, Fail> {
        self.require(Some(name))?;
        self.check_name(name)?;
        self.find_deleted(name)?.ok_or_else(|| self.refuse(|scene| scene.deleted_key_not_found(name)))
    }

    fn set_deleted(&self, row: &Version) -> Result<(), Fail> {
        self.tx.execute(
            "UPDATE key SET deleted_at = ?1, scheduled_purge = ?2 WHERE id = ?3",
            params![row.deleted, row.scheduled_purge, row.key.to_string()],
        )?;
        Ok(self.bump_generation()?)
    }
}

impl Version {
    fn to_deleted(&self, work: &mut Work<'_>) -> Result<DeletedKey, Fail> {
        deleted_key(self, self.info(work)?)
    }
}

fn deleted_key(row: &Version, key: KeyInfo) -> Result<DeletedKey, Fail> {
    match (row.deleted, row.scheduled_purge) {
        (Some(deleted), Some(scheduled_purge)) => Ok(DeletedKey { key, deleted, scheduled_purge }),
        _ => Err(row.damaged("scheduled_purge", "nothing")),
    }
}
