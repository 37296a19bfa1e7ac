//! Requests that `vault serve` refuses before the vault does anything: malformed ones, and those from an address that may
//! not ask. They are on record like every other.
//!
//! Must never see: keys, bodies.
//! Invariant: of a malformed request the permission is checked first, so that who has none learns nothing.

use std::convert::Infallible;
use std::net::IpAddr;

use rusqlite::OptionalExtension;
use uuid::Uuid;

use super::refusal::{Fail, from_sqlite, transient};
use super::{IdentityKind, LocalVault, Permission, Task};
use crate::envelope::valid_name;
use crate::vault::{Call, VaultError};

/// Why a request is turned down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnedDown {
    /// What is wrong with it.
    Malformed(String),
    /// It comes from here.
    Firewall(IpAddr),
}

impl LocalVault {
    /// Refuses a request and records that. `permissions`: what it needed, of which key: the operation's own, and a more
    /// general one that does as well; none: a token was enough.
    pub fn turn_down(
        &self,
        operation: &'static str,
        permissions: &[Permission],
        key: Option<&str>,
        why: TurnedDown,
        call: &Call,
    ) -> Fail {
        let path = match key {
            Some(name) if valid_name(name) => format!("/keys/{name}"),
            Some(_) => "/keys/(invalid)".to_owned(),
            None => "/keys".to_owned(),
        };
        let needed = *permissions.first().unwrap_or(&Permission::Get);
        let task = Task { operation, permission: needed, path: &path, action: "" };
        let done = self.audited(task, call, |work| -> Result<Infallible, Fail> {
            let message = match why {
                TurnedDown::Firewall(address) => return Err(work.refuse(|scene| scene.firewall(address))),
                TurnedDown::Malformed(message) => message,
            };
            match permissions {
                [] => {}
                [_] => work.require(key)?,
                [_, general, ..] => work.require_either(key, *general)?,
            }
            Err(work.refuse(|scene| scene.bad_parameter(message, "correct the request")))
        });
        match done {
            Err(fail) => fail,
            Ok(never) => match never {},
        }
    }

    /// What an identity stands for; `None` when there is no such. It never changes.
    ///
    /// # Errors
    /// `Transient`, `Corrupt`.
    pub fn identity_kind(&self, oid: Uuid) -> Result<Option<IdentityKind>, VaultError> {
        let db = self.current()?;
        let kind: Option<String> = db
            .conn
            .prepare_cached("SELECT kind FROM identity WHERE oid = ?1")
            .and_then(|mut q| q.query_row([oid.to_string()], |row| row.get(0)).optional())
            .map_err(|e| from_sqlite(&e))?;
        Ok(match kind.as_deref() {
            None => None,
            Some("system") => Some(IdentityKind::System),
            Some("user") => Some(IdentityKind::User),
            Some("admin") => Some(IdentityKind::Admin),
            Some(_) => return Err(transient("an identity of a kind that only a newer wrapdisk knows")),
        })
    }
}
