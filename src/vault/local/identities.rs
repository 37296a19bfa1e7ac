//! Administration of identities: making, finding, disabling, removing them.
//!
//! Must never see: keys' private parts, credentials.
//! Invariant: only the built-in administrator gets here ([`Permission::Manage`] is in no role).

use rusqlite::{OptionalExtension, Row, params};
use uuid::Uuid;

use super::refusal::Fail;
use super::{IdentityKind, LocalVault, Permission, Task, Work, now};
use crate::envelope::valid_name;
use crate::vault::Call;

/// Somebody, or something, in whose name the vault is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Object id: what records and grants name.
    pub oid: Uuid,
    /// What it signs in with, besides its name.
    pub client_id: Uuid,
    /// For people.
    pub name: String,
    /// What it stands for.
    pub kind: IdentityKind,
    /// A disabled one may nothing, and cannot sign in.
    pub enabled: bool,
    /// Unix seconds.
    pub created: i64,
}

impl LocalVault {
    /// Makes an identity, enabled and without grants; a set's own is [`IdentityKind::System`].
    ///
    /// # Errors
    /// Refused: 400 (name, kind), 409 (another user has the name), 403. Broken.
    pub fn create_identity(&self, name: &str, kind: IdentityKind, call: &Call) -> Result<Uuid, Fail> {
        self.audited(PATCH, call, |work| {
            work.require(None)?;
            work.check_name(name)?;
            if kind == IdentityKind::Admin {
                return Err(work.refuse(|scene| {
                    scene.bad_parameter(
                        "A vault has one administrator: the owner of its files.".into(),
                        "make a user and grant it the role crypto officer",
                    )
                }));
            }
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

    /// Every identity, by name.
    ///
    /// # Errors
    /// Refused: 403. Broken.
    pub fn identities(&self, call: &Call) -> Result<Vec<Identity>, Fail> {
        self.audited(GET, call, |work| {
            work.require(None)?;
            let mut query = work.tx.prepare_cached(&select("TRUE ORDER BY name, created"))?;
            Ok(query.query_map([], Identity::from_row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// One identity, by object id, client id or name.
    ///
    /// # Errors
    /// Refused: 404; 400 when several sets' identities have this name; 403. Broken.
    pub fn find_identity(&self, name_or_id: &str, call: &Call) -> Result<Identity, Fail> {
        self.audited(GET, call, |work| {
            work.require(None)?;
            let mut found = {
                let mut query = work.tx.prepare_cached(&select(
                    "oid = ?2 OR client_id = ?2 OR name = ?1 ORDER BY created LIMIT 2",
                ))?;
                let rows =
                    query.query_map(params![name_or_id, name_or_id.to_lowercase()], Identity::from_row)?;
                rows.collect::<rusqlite::Result<Vec<_>>>()?
            };
            match (found.pop(), found.pop()) {
                (Some(one), None) => Ok(one),
                (None, _) => Err(work.refuse(|scene| scene.identity_not_found(name_or_id))),
                (Some(_), Some(_)) => Err(work.refuse(|scene| {
                    scene.bad_parameter(
                        format!("Several identities are named {}.", shown(name_or_id)),
                        "name the one you mean by its object id: wrapdisk vault identity list",
                    )
                })),
            }
        })
    }

    /// Switches an identity off or on. Off, it has no permission from its next call on (RULINGS 23).
    ///
    /// # Errors
    /// Refused: 404, 400 (the administrator), 403. Broken.
    pub fn set_identity_enabled(&self, oid: Uuid, enabled: bool, call: &Call) -> Result<(), Fail> {
        self.audited(PATCH, call, |work| {
            work.require(None)?;
            let identity = work.subordinate(oid)?;
            let word = if enabled { "enabled" } else { "disabled" };
            work.change = Some(format!("identity {} ({oid}) was {word}", identity.name));
            work.tx.execute(
                "UPDATE identity SET enabled = ?1 WHERE oid = ?2",
                params![enabled, oid.to_string()],
            )?;
            work.bump_if(usize::from(identity.enabled != enabled))
        })
    }

    /// Removes an identity with its grants and credentials. Tokens it holds read as "no permission" until they expire.
    ///
    /// # Errors
    /// As [`LocalVault::set_identity_enabled`].
    pub fn remove_identity(&self, oid: Uuid, call: &Call) -> Result<(), Fail> {
        self.audited(PATCH, call, |work| {
            work.require(None)?;
            let identity = work.subordinate(oid)?;
            work.change = Some(format!("identity {} ({oid}) was removed", identity.name));
            let removed = work.tx.execute("DELETE FROM identity WHERE oid = ?1", [oid.to_string()])?;
            work.bump_if(removed)
        })
    }
}

/// Changes to identities, grants and credentials.
pub(super) const PATCH: Task<'static> =
    Task { operation: "VaultPatch", permission: Permission::Manage, path: "", action: "" };
/// Looking at them.
pub(super) const GET: Task<'static> =
    Task { operation: "VaultGet", permission: Permission::Manage, path: "", action: "" };

pub(super) fn select(condition: &str) -> String {
    format!("SELECT oid, client_id, name, kind, enabled, created FROM identity WHERE {condition}")
}

impl Identity {
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            oid: super::uuid_of(&row.get::<_, String>(0)?)?,
            client_id: super::uuid_of(&row.get::<_, String>(1)?)?,
            name: row.get(2)?,
            kind: IdentityKind::of(&row.get::<_, String>(3)?),
            enabled: row.get(4)?,
            created: row.get(5)?,
        })
    }
}

fn user_exists(work: &Work<'_>, name: &str) -> rusqlite::Result<bool> {
    work.tx
        .query_row("SELECT 1 FROM identity WHERE name = ?1 AND kind <> 'system'", [name], |_| Ok(()))
        .optional()
        .map(|found| found.is_some())
}

/// A hostile text, for a message.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

impl Work<'_> {
    pub(super) fn check_name(&self, name: &str) -> Result<(), Fail> {
        if valid_name(name) {
            return Ok(());
        }
        Err(self.refuse(|scene| {
            scene.bad_parameter(
                format!("The name is invalid: found \"{}\".", shown(name)),
                "allowed are 1 to 127 of [0-9A-Za-z-]",
            )
        }))
    }

    pub(super) fn identity(&self, oid: Uuid) -> Result<Identity, Fail> {
        self.tx
            .prepare_cached(&select("oid = ?1"))?
            .query_row([oid.to_string()], Identity::from_row)
            .optional()?
            .ok_or_else(|| self.refuse(|scene| scene.identity_not_found(&oid.to_string())))
    }

    /// Anybody but the administrator, who cannot lock himself out.
    pub(super) fn subordinate(&self, oid: Uuid) -> Result<Identity, Fail> {
        let identity = self.identity(oid)?;
        if identity.kind != IdentityKind::Admin {
            return Ok(identity);
        }
        Err(self.refuse(|scene| {
            scene.bad_parameter(
                "The identity admin is the owner of the vault's files.".into(),
                "its access is the files' mode and owner; use another identity",
            )
        }))
    }
}
