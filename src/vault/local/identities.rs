//! Administration of identities and grants.
//!
//! Must never see: keys' private parts.
//! Invariant: only the built-in administrator gets here ([`Permission::Manage`] is in no role).

use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::authz::{IdentityKind, Permission, Role};
use super::refusal::Fail;
use super::{LocalVault, Task, Work, now};
use crate::envelope::valid_name;
use crate::vault::Call;

impl LocalVault {
    /// Makes an identity, enabled and without grants; a set's own is [`IdentityKind::System`].
    ///
    /// # Errors
    /// `Rejected` (`BadParameter`: name; `Conflict`: another user has it), `Denied`, `Transient`.
    pub fn create_identity(&self, name: &str, kind: IdentityKind, call: &Call) -> Result<Uuid, Fail> {
        self.audited(MANAGE, call, |work| {
            work.require(None)?;
            work.check_name(name)?;
            if kind == IdentityKind::User && user_exists(work, name)? {
                return Err(work.refuse(|scene| {
                    scene.conflict(format!("An identity named {name} exists already."), "choose another name")
                }));
            }
            let oid = Uuid::new_v4();
            work.change = Some(format!("{} identity {name} ({oid}) was made", kind.name()));
            work.tx.execute(
                "INSERT INTO identity (oid, client_id, name, kind, enabled, created) VALUES (?1, ?2, ?3, ?4, 1, ?5)",
                params![oid.to_string(), Uuid::new_v4().to_string(), name, kind.name(), now()],
            )?;
            work.bump_generation()?;
            Ok(oid)
        })
    }

    /// Grants a role on one key (by name), or on the whole vault. Granting twice is harmless.
    ///
    /// # Errors
    /// `Rejected` (`KeyNotFound`, `BadParameter`: no such identity), `Denied`, `Transient`.
    pub fn grant(&self, identity: Uuid, role: Role, key: Option<&str>, call: &Call) -> Result<(), Fail> {
        self.audited(MANAGE, call, |work| {
            work.require(None)?;
            let id = work.scope(identity, key)?;
            work.change = Some(format!("role {} {} was granted to {identity}", role.name(), on(key)));
            let added = work.tx.execute(
                "INSERT OR IGNORE INTO access_policy (identity, key, role, created) VALUES (?1, ?2, ?3, ?4)",
                params![identity.to_string(), id, role.name(), now()],
            )?;
            work.bump_if(added)
        })
    }

    /// Takes a role away again; what was not granted is taken away already.
    ///
    /// # Errors
    /// As [`LocalVault::grant`].
    pub fn revoke(&self, identity: Uuid, role: Role, key: Option<&str>, call: &Call) -> Result<(), Fail> {
        self.audited(MANAGE, call, |work| {
            work.require(None)?;
            let id = work.scope(identity, key)?;
            work.change = Some(format!("role {} {} was taken from {identity}", role.name(), on(key)));
            let removed = work.tx.execute(
                "DELETE FROM access_policy WHERE identity = ?1 AND key IS ?2 AND role = ?3",
                params![identity.to_string(), id, role.name()],
            )?;
            work.bump_if(removed)
        })
    }
}

const MANAGE: Task<'static> =
    Task { operation: "VaultPatch", permission: Permission::Manage, path: "", action: "" };

fn on(key: Option<&str>) -> String {
    key.map_or("on the vault".into(), |name| format!("on key {name}"))
}

fn user_exists(work: &Work<'_>, name: &str) -> rusqlite::Result<bool> {
    work.tx
        .query_row("SELECT 1 FROM identity WHERE name = ?1 AND kind <> 'system'", [name], |_| Ok(()))
        .optional()
        .map(|found| found.is_some())
}

impl Work<'_> {
    pub(super) fn check_name(&self, name: &str) -> Result<(), Fail> {
        if valid_name(name) {
            return Ok(());
        }
        let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
        Err(self.refuse(|scene| {
            scene.bad_parameter(
                format!("The name is invalid: found \"{shown}\"."),
                "allowed are 1 to 127 of [0-9A-Za-z-]",
            )
        }))
    }

    /// The key's id in the database; both it and the identity must exist, or a typing error would be a silent grant.
    fn scope(&self, identity: Uuid, key: Option<&str>) -> Result<Option<String>, Fail> {
        let known = self
            .tx
            .query_row("SELECT 1 FROM identity WHERE oid = ?1", [identity.to_string()], |_| Ok(()))
            .optional()?;
        if known.is_none() {
            return Err(self.refuse(|scene| {
                scene.bad_parameter(
                    format!("The identity {identity} was not found in this key vault."),
                    "use the identity that `wrapdisk set show` prints",
                )
            }));
        }
        let Some(name) = key else { return Ok(None) };
        self.check_name(name)?;
        self.tx
            .query_row("SELECT id FROM key WHERE name = ?1", [name], |row| row.get(0))
            .optional()?
            .map(Some)
            .ok_or_else(|| self.refuse(|scene| scene.key_not_found(name)))
    }

    fn bump_if(&self, changed: usize) -> Result<(), Fail> {
        if changed > 0 {
            self.bump_generation()?;
        }
        Ok(())
    }
}
