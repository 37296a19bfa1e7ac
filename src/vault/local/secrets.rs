//! Secrets that the vault keeps for itself under its root key, by name: the key of the credentials' hashes, the CA's key,
//! the sub-keys of retired root keys.
//!
//! Must never see: keys, identities, what a secret is for.
//! Invariant: a blob opens only under the name it was stored under, in the vault it was stored in.

use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::refusal::{Fail, transient};
use super::seal::Place;
use super::{Facts, LocalVault, Permission, Task, Work, now};
use crate::secret::SecretBytes;
use crate::vault::Call;

/// Where a secret of the vault itself belongs.
pub(super) const fn place<'a>(facts: &'a Facts, name: &'a str) -> Place<'a> {
    Place { vault: &facts.id, key: const { &Uuid::nil() }, version: name }
}

impl Work<'_> {
    /// The secret of this name.
    pub(super) fn secret(&self, name: &str) -> Result<Option<SecretBytes>, Fail> {
        let sealed: Option<Vec<u8>> = self
            .tx
            .prepare_cached("SELECT sealed FROM sealed_secret WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()?;
        let Some(sealed) = sealed else { return Ok(None) };
        Ok(Some(self.root.unseal(place(self.facts, name), self.facts.generation, &sealed)?))
    }

    /// Keeps a secret; an older one of this name is gone then.
    pub(super) fn keep_secret(&self, name: &str, secret: &[u8]) -> Result<(), Fail> {
        let sealed = self.root.seal(place(self.facts, name), self.facts.generation, secret)?;
        self.tx.execute(
            "INSERT OR REPLACE INTO sealed_secret (name, sealed, created) VALUES (?1, ?2, ?3)",
            params![name, sealed, now()],
        )?;
        Ok(())
    }
}

impl LocalVault {
    /// A secret that the vault keeps for a part of this program, such as the key of its CA. The administrator's alone.
    ///
    /// # Errors
    /// Refused: no permission. Broken.
    pub fn vault_secret(&self, name: &str, call: &Call) -> Result<Option<SecretBytes>, Fail> {
        let task = Task { operation: "VaultGet", permission: Permission::Manage, path: "", action: "" };
        self.audited(task, call, |work| {
            work.require(None)?;
            work.change = Some(format!("the vault's secret {name} was read"));
            work.secret(name)
        })
    }

    /// Keeps a secret under a name, unless there is one by now; the one that counts comes back.
    ///
    /// # Errors
    /// As [`LocalVault::vault_secret`].
    pub fn keep_vault_secret(&self, name: &str, secret: &[u8], call: &Call) -> Result<SecretBytes, Fail> {
        let task = Task { operation: "VaultPatch", permission: Permission::Manage, path: "", action: "" };
        self.audited(task, call, |work| {
            work.require(None)?;
            if let Some(kept) = work.secret(name)? {
                return Ok(kept);
            }
            work.change = Some(format!("the vault's secret {name} was stored"));
            work.keep_secret(name, secret)?;
            work.secret(name)?.ok_or_else(|| Fail::Broken(transient("a secret just stored is gone")))
        })
    }
}
