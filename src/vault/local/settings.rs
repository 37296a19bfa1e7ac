//! The vault's own settings: how long deleted keys stay, and whether anybody may shorten that.
//!
//! Must never see: keys.
//! Invariant: purge protection is never taken back (the schema's trigger says so as well).

use rusqlite::Connection;

use super::authz::Permission;
use super::model::{MAX_RETENTION, VaultSettings};
use super::refusal::Fail;
use super::work::{Task, Work};
use super::{Facts, LocalVault};
use crate::vault::Call;

/// The shortest retention.
const MIN_RETENTION: u32 = 7;

impl LocalVault {
    /// What everybody may know of the vault. Not audited.
    ///
    /// # Errors
    /// Broken only.
    pub fn settings(&self) -> Result<VaultSettings, Fail> {
        let db = self.current().map_err(Fail::Broken)?;
        Ok(load(&db.conn, &self.facts)?)
    }

    /// Changes the retention of what is deleted from now on, and switches purge protection on; `None` keeps.
    ///
    /// # Errors
    /// 400 `BadParameter` (retention, or protection that is on and should go off), 403; broken.
    pub fn set_retention(
        &self,
        days: Option<u32>,
        purge_protection: Option<bool>,
        call: &Call,
    ) -> Result<VaultSettings, Fail> {
        let task = Task { operation: "VaultPatch", permission: Permission::Manage, path: "", action: "" };
        self.audited(task, call, |work| {
            work.require(None)?;
            let mut settings = load(work.tx, work.facts)?;
            if let Some(days) = days {
                work.check_retention(days, &settings)?;
                settings.retention_days = days;
            }
            if purge_protection == Some(false) && settings.purge_protection {
                return Err(work.refuse(|scene| {
                    scene.bad_parameter(
                        "The property \"enablePurgeProtection\" cannot be set to false.".into(),
                        "purge protection stays for good",
                    )
                }));
            }
            settings.purge_protection |= purge_protection == Some(true);
            work.change = Some(format!(
                "retention_days={}, purge_protection={}",
                settings.retention_days, settings.purge_protection
            ));
            work.tx.execute(
                "UPDATE vault SET retention_days = ?1, purge_protection = ?2",
                (settings.retention_days, settings.purge_protection),
            )?;
            Ok(settings)
        })
    }
}

/// The settings as they are now.
pub(super) fn load(conn: &Connection, facts: &Facts) -> rusqlite::Result<VaultSettings> {
    conn.prepare_cached("SELECT retention_days, purge_protection FROM vault")?.query_row([], |row| {
        Ok(VaultSettings {
            id: facts.id,
            name: facts.name.clone(),
            tenant_id: facts.tenant,
            location: facts.location.clone(),
            retention_days: row.get(0)?,
            purge_protection: row.get(1)?,
        })
    })
}

impl Work<'_> {
    fn check_retention(&self, days: u32, now: &VaultSettings) -> Result<(), Fail> {
        // Under protection a shorter retention would be a way around it.
        let least = if now.purge_protection { now.retention_days } else { MIN_RETENTION };
        if (least..=MAX_RETENTION).contains(&days) {
            return Ok(());
        }
        Err(self.refuse(|scene| {
            scene.bad_parameter(
                format!("The retention is invalid: found {days} days."),
                &format!("allowed are {least} to {MAX_RETENTION}"),
            )
        }))
    }
}
