//! Who may do what: grants on the vault or on one key.
//!
//! Must never see: keys' private parts, credentials.
//! Invariant: only the built-in administrator gets here ([`Permission::Manage`] is in no role).

use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::identities::{GET, PATCH};
use super::refusal::Fail;
use super::{Grant, LocalVault, Permission, Role, Work, now};
use crate::vault::Call;

impl LocalVault {
    /// Grants a role or permissions on one key (by name), or on the whole vault. Granting twice is harmless.
    ///
    /// # Errors
    /// Refused: 404 (no such key or identity), 400 (not grantable), 403. Broken.
    pub fn grant(
        &self,
        identity: Uuid,
        what: impl Into<Grant>,
        key: Option<&str>,
        call: &Call,
    ) -> Result<(), Fail> {
        let what = what.into();
        self.audited(PATCH, call, |work| {
            work.require(None)?;
            let id = work.scope(identity, key)?;
            work.change = Some(format!("{what} {} was granted to {identity}", on(key)));
            let mut added = 0;
            for (table, column, name) in work.rows_of(&what)? {
                added += work.tx.execute(
                    &format!("INSERT OR IGNORE INTO {table} (identity, key, {column}, created) VALUES (?1, ?2, ?3, ?4)"),
                    params![identity.to_string(), id, name, now()],
                )?;
            }
            work.bump_if(added)
        })
    }

    /// Takes a role or permissions away again; what was not granted is taken away already. A role stays whole: to take a
    /// part of it, revoke it and grant the rest.
    ///
    /// # Errors
    /// As [`LocalVault::grant`].
    pub fn revoke(
        &self,
        identity: Uuid,
        what: impl Into<Grant>,
        key: Option<&str>,
        call: &Call,
    ) -> Result<(), Fail> {
        let what = what.into();
        self.audited(PATCH, call, |work| {
            work.require(None)?;
            let id = work.scope(identity, key)?;
            work.change = Some(format!("{what} {} was taken from {identity}", on(key)));
            let mut removed = 0;
            for (table, column, name) in work.rows_of(&what)? {
                removed += work.tx.execute(
                    &format!("DELETE FROM {table} WHERE identity = ?1 AND key IS ?2 AND {column} = ?3"),
                    params![identity.to_string(), id, name],
                )?;
            }
            work.bump_if(removed)
        })
    }

    /// Takes everything away that was granted to an identity; what it was comes back.
    ///
    /// # Errors
    /// As [`LocalVault::grant`].
    pub fn revoke_all(&self, identity: Uuid, call: &Call) -> Result<Vec<(Grant, Option<String>)>, Fail> {
        self.audited(PATCH, call, |work| {
            work.require(None)?;
            work.scope(identity, None)?;
            let before = work.grants_of(identity)?;
            let list: Vec<_> =
                before.iter().map(|(grant, key)| format!("{grant} {}", on(key.as_deref()))).collect();
            work.change = Some(format!("everything was taken from {identity}: {}", list.join("; ")));
            let mut removed = 0;
            for table in ["access_policy", "access_permission"] {
                removed += work
                    .tx
                    .execute(&format!("DELETE FROM {table} WHERE identity = ?1"), [identity.to_string()])?;
            }
            work.bump_if(removed)?;
            Ok(before)
        })
    }

    /// What was granted to an identity, and on which key (`None`: on the vault); permissions in one list a scope.
    ///
    /// # Errors
    /// As [`LocalVault::grant`].
    pub fn grants(&self, identity: Uuid, call: &Call) -> Result<Vec<(Grant, Option<String>)>, Fail> {
        self.audited(GET, call, |work| {
            work.require(None)?;
            work.scope(identity, None)?;
            work.grants_of(identity)
        })
    }
}

fn on(key: Option<&str>) -> String {
    key.map_or("on the vault".into(), |name| format!("on key {name}"))
}

impl Work<'_> {
    /// Table, column and value of each row that a grant is made of.
    fn rows_of(&self, what: &Grant) -> Result<Vec<(&'static str, &'static str, &'static str)>, Fail> {
        match what {
            Grant::Role(role) => Ok(vec![("access_policy", "role", role.name())]),
            Grant::Permissions(list) => match list.iter().find(|p| !Permission::ALL.contains(p)) {
                Some(p) => Err(self.refuse(|scene| {
                    scene.bad_parameter(
                        format!("The permission {} cannot be granted.", p.name()),
                        "it is the administrator's",
                    )
                })),
                None => Ok(list.iter().map(|p| ("access_permission", "permission", p.name())).collect()),
            },
        }
    }

    fn grants_of(&self, identity: Uuid) -> Result<Vec<(Grant, Option<String>)>, Fail> {
        let mut query = self.tx.prepare_cached(
            "SELECT k.name, p.role, NULL FROM access_policy p LEFT JOIN key k ON k.id = p.key WHERE p.identity = ?1
             UNION ALL
             SELECT k.name, NULL, p.permission FROM access_permission p LEFT JOIN key k ON k.id = p.key
              WHERE p.identity = ?1 ORDER BY 1, 2, 3",
        )?;
        let mut rows = query.query([identity.to_string()])?;
        let mut grants: Vec<(Grant, Option<String>)> = Vec::new();
        while let Some(row) = rows.next()? {
            let (key, role): (Option<String>, Option<String>) = (row.get(0)?, row.get(1)?);
            // Words of a newer schema grant nothing here, and are not shown.
            if let Some(role) = role {
                grants.extend(Role::parse(&role).ok().map(|role| (Grant::Role(role), key)));
                continue;
            }
            let Ok(permission) = Permission::parse(&row.get::<_, String>(2)?) else { continue };
            let list = grants.iter_mut().find_map(|(grant, on)| match grant {
                Grant::Permissions(list) if *on == key => Some(list),
                _ => None,
            });
            match list {
                Some(list) => list.push(permission),
                None => grants.push((Grant::Permissions(vec![permission]), key)),
            }
        }
        for (grant, _) in &mut grants {
            if let Grant::Permissions(list) = grant {
                list.sort_unstable();
            }
        }
        Ok(grants)
    }

    /// The key's id in the database; both it and the identity must exist, or a typing error would be a silent grant.
    fn scope(&self, identity: Uuid, key: Option<&str>) -> Result<Option<String>, Fail> {
        self.identity(identity)?;
        let Some(name) = key else { return Ok(None) };
        self.check_name(name)?;
        self.tx
            .query_row("SELECT id FROM key WHERE name = ?1", [name], |row| row.get(0))
            .optional()?
            .map(Some)
            .ok_or_else(|| self.refuse(|scene| scene.key_not_found(name)))
    }

    pub(super) fn bump_if(&self, changed: usize) -> Result<(), Fail> {
        if changed > 0 {
            self.bump_generation()?;
        }
        Ok(())
    }
}
