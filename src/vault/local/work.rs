//! One operation of the embedded vault: a transaction, who asks, what was decided, and the record of it.
//!
//! Must never see: RSA.
//!
//! Invariants: those of the vault (see its header): one transaction an operation, no answer without a record, a refusal
//! changes nothing but the audit.

use std::time::Instant;

use rusqlite::{Transaction, TransactionBehavior};

use super::authz::{Caller, Permission};
use super::refusal::{self, Fail, Scene, transient};
use super::seal::{ROOT_KEY, RootKey};
use super::{Facts, LocalVault, audit};
use crate::vault::{Call, VaultError};

impl LocalVault {
    /// Runs one operation: `body` reads and changes rows through `Work`, and either answers or refuses. A refusal's changes
    /// are undone; either way the record is appended and committed before the answer leaves.
    pub(super) fn audited<T>(
        &self,
        task: Task<'_>,
        call: &Call,
        body: impl FnOnce(&mut Work<'_>) -> std::result::Result<T, Fail>,
    ) -> std::result::Result<T, Fail> {
        let started = Instant::now();
        let mut db = self.current().map_err(Fail::Broken)?;
        // Whatever is wrong with the root key's file, it is not a denial (RULINGS 20).
        let root = RootKey::load(&self.dir.join(ROOT_KEY)).map_err(|e| Fail::Broken(transient(e.chain())))?;
        let tx = db.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let caller = Caller::load(&tx, call.identity)?;
        tx.execute_batch("SAVEPOINT body")?;
        let mut work = Work {
            tx: &tx,
            root: &root,
            facts: &self.facts,
            caller: &caller,
            permission: task.permission,
            subject: format!("https://{}.vault.localhost{}", self.facts.id, task.path),
            allowed: false,
            bits: None,
            change: None,
        };
        let answer = match body(&mut work) {
            Ok(answer) => Ok(answer),
            Err(Fail::Refused(refusal)) => {
                tx.execute_batch("ROLLBACK TO body")?;
                Err(refusal)
            }
            // A sealed key that does not open is worth a record; the rows can still be written.
            Err(Fail::Broken(VaultError::Corrupt(message))) => {
                tx.execute_batch("ROLLBACK TO body")?;
                Err(refusal::Refusal::damaged(message))
            }
            Err(broken) => return Err(broken), // dropping the transaction undoes it
        };
        let Work { subject, allowed, bits, change, .. } = work;
        let event = audit::Event {
            operation: task.operation,
            vault_name: &self.facts.name,
            status: answer.as_ref().err().map_or(200, |r| r.status),
            signature: answer.as_ref().err().map_or("OK", |r| r.signature),
            description: answer.as_ref().err().map(|r| r.description.as_str()),
            duration: started.elapsed(),
            call,
            client_id: caller.known.as_ref().map(|k| k.client_id.as_str()),
            subject: &subject,
            action: task.action,
            policy_match: allowed,
            bits,
            change: change.as_deref(),
        };
        audit::append(&tx, &root, &self.facts.id, &event)?;
        tx.commit()?;
        answer.map_err(Fail::Refused)
    }
}

/// What is asked, before the rows are looked at.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    /// Azure's name in the audit: `KeyUnwrap`.
    pub(super) operation: &'static str,
    pub(super) permission: Permission,
    /// Of the resource: `/keys/NAME`.
    pub(super) path: &'a str,
    /// After the resource: `unwrapkey`, or nothing.
    pub(super) action: &'static str,
}

/// One operation in progress.
pub(super) struct Work<'a> {
    pub(super) tx: &'a Transaction<'a>,
    pub(super) root: &'a RootKey,
    pub(super) facts: &'a Facts,
    pub(super) caller: &'a Caller,
    pub(super) permission: Permission,
    /// URL of what the operation is about; replaced by the kid once that is known.
    pub(super) subject: String,
    /// A grant matched.
    pub(super) allowed: bool,
    /// Size of the key that was used.
    pub(super) bits: Option<u32>,
    /// Administration: what is being changed; set when every check has passed.
    pub(super) change: Option<String>,
}

impl Work<'_> {
    /// Refuses unless the caller may do this with this key (by name), or with the vault.
    pub(super) fn require(&mut self, key: Option<&str>) -> std::result::Result<(), Fail> {
        self.allowed = self.caller.may(self.tx, self.permission, key)?;
        if self.allowed {
            return Ok(());
        }
        Err(self.refuse(|scene| scene.no_permission(self.caller.advice())))
    }

    pub(super) fn refuse(&self, say: impl FnOnce(&Scene<'_>) -> refusal::Refusal) -> Fail {
        let identity = self.caller.label();
        Fail::Refused(say(&Scene {
            operation: self.permission.name(),
            key: &self.subject,
            identity: &identity,
            vault: &self.facts.name,
        }))
    }

    /// Keys, grants or identities were changed.
    pub(super) fn bump_generation(&self) -> rusqlite::Result<()> {
        self.tx.execute("UPDATE vault SET policy_generation = policy_generation + 1", []).map(|_| ())
    }
}
