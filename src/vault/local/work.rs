//! One operation of the embedded vault, from the question to the recorded answer.
//!
//! Must never see: RSA, SQL of keys or identities.
//!
//! Invariants:
//! 1. The record is appended, committed and on the medium before the answer leaves; a refusal's changes are undone.
//! 2. Work that takes long (RSA) holds no lock: rows are read, the work is done, and in the transaction that records it
//!    the rows are read again. So what was disabled meanwhile is refused, whoever disabled it.

use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::authz::{Caller, Permission};
use super::db::DATABASE;
use super::durable::relaxed;
use super::refusal::{Fail, Refusal, Scene, transient};
use super::seal::RootKey;
use super::{Facts, LocalVault, audit, root_change};
use crate::vault::{Call, VaultError};

impl LocalVault {
    /// Runs one operation: `body` reads and changes rows through `Work`, and either answers or refuses. A refusal's changes
    /// are undone; either way the record is appended and committed before the answer leaves.
    pub(super) fn audited<T>(
        &self,
        task: Task<'_>,
        call: &Call,
        body: impl FnOnce(&mut Work<'_>) -> Result<T, Fail>,
    ) -> Result<T, Fail> {
        self.audited_since(Instant::now(), task, call, body)?.map_err(Fail::Refused)
    }

    /// An operation with long work in it: `check` decides on the rows, `labour` works without holding anybody up, `finish`
    /// writes and answers after the rows have been checked once more.
    pub(super) fn in_two_steps<C, P, T>(
        &self,
        task: Task<'_>,
        call: &Call,
        check: impl Fn(&mut Work<'_>) -> Result<C, Fail>,
        labour: impl FnOnce(&C) -> Result<P, Fail>,
        finish: impl FnOnce(&mut Work<'_>, C, P) -> Result<T, Fail>,
    ) -> Result<T, Fail> {
        let started = Instant::now();
        let done = match self.peek(task, call, &check).and_then(|checked| labour(&checked)) {
            Err(Fail::Broken(e)) if !matches!(e, VaultError::Corrupt(_)) => return Err(Fail::Broken(e)),
            done => done,
        };
        // A refusal stands even if the rows allow it by now: it was true while the caller waited.
        let finish = |work: &mut Work<'_>| check(work).and_then(|checked| finish(work, checked, done?));
        self.audited_since(started, task, call, finish)?.map_err(Fail::Refused)
    }

    /// Reads rows, in one snapshot that nobody waits for. Nothing is recorded yet.
    pub(super) fn peek<T>(
        &self,
        task: Task<'_>,
        call: &Call,
        body: impl FnOnce(&mut Work<'_>) -> Result<T, Fail>,
    ) -> Result<T, Fail> {
        let mut db = self.current().map_err(Fail::Broken)?;
        let tx = db.conn.transaction()?;
        let (root, facts) = self.root(&tx)?;
        let caller = Caller::load(&tx, call.identity)?;
        body(&mut Work::new(&tx, &root, &facts, &caller, task))
    }

    /// The root key that seals what `tx` reads. Whatever is wrong with its file, it is not a denial (RULINGS 20).
    fn root(&self, tx: &Transaction<'_>) -> Result<(RootKey, Facts), Fail> {
        root_change::current(&self.dir, &self.unlock, tx).map_err(|e| Fail::Broken(transient(e.chain())))
    }

    /// The inner result is the recorded answer, the outer one says that there is none.
    fn audited_since<T>(
        &self,
        started: Instant,
        task: Task<'_>,
        call: &Call,
        body: impl FnOnce(&mut Work<'_>) -> Result<T, Fail>,
    ) -> Result<Result<T, Refusal>, Fail> {
        let mut db = self.current().map_err(Fail::Broken)?;
        let answer = relaxed(&mut db.conn, |conn| self.recorded(conn, started, task, call, body))?;
        let ticket = self.durable.committed();
        drop(db); // whoever is next need not wait for the medium
        self.durable.wait(ticket, &self.dir.join(DATABASE)).map_err(Fail::Broken)?;
        Ok(answer)
    }

    fn recorded<T>(
        &self,
        conn: &mut Connection,
        started: Instant,
        task: Task<'_>,
        call: &Call,
        body: impl FnOnce(&mut Work<'_>) -> Result<T, Fail>,
    ) -> Result<Result<T, Refusal>, Fail> {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (root, facts) = self.root(&tx)?;
        let caller = Caller::load(&tx, call.identity)?;
        tx.execute_batch("SAVEPOINT body")?;
        let mut work = Work::new(&tx, &root, &facts, &caller, task);
        let answer = match body(&mut work) {
            Ok(answer) => Ok(answer),
            Err(Fail::Refused(refusal)) => {
                tx.execute_batch("ROLLBACK TO body")?;
                Err(refusal)
            }
            // A sealed key that does not open is worth a record; the rows can still be written.
            Err(Fail::Broken(VaultError::Corrupt(message))) => {
                tx.execute_batch("ROLLBACK TO body")?;
                Err(Refusal::damaged(message))
            }
            Err(broken) => return Err(broken), // dropping the transaction undoes it
        };
        let head = record(&work, task, call, answer.as_ref().err(), started.elapsed())?;
        tx.commit()?;
        if let Some(head) = head {
            audit::tell(&head, &facts.id);
        }
        Ok(answer)
    }
}

/// Appends the record of an operation; part of its transaction. A head that comes back is to be told after the commit.
pub(super) fn record(
    work: &Work<'_>,
    task: Task<'_>,
    call: &Call,
    refusal: Option<&Refusal>,
    duration: Duration,
) -> Result<Option<audit::AuditHead>, Fail> {
    let event = audit::Event {
        operation: task.operation,
        vault_name: &work.facts.name,
        status: refusal.map_or(200, |r| r.status),
        signature: refusal.map_or("OK", |r| r.signature),
        description: refusal.map(|r| r.description.as_str()),
        duration,
        call,
        client_id: work.caller.known.as_ref().map(|k| k.client_id.as_str()),
        subject: &work.subject,
        action: task.action,
        policy_match: work.allowed,
        bits: work.bits,
        change: work.change.as_deref(),
    };
    audit::append(work.tx, work.root, &work.facts.id, &event)
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

impl<'a> Work<'a> {
    pub(super) fn new(
        tx: &'a Transaction<'a>,
        root: &'a RootKey,
        facts: &'a Facts,
        caller: &'a Caller,
        task: Task<'_>,
    ) -> Self {
        Self {
            tx,
            root,
            facts,
            caller,
            permission: task.permission,
            subject: format!("https://{}.vault.localhost{}", facts.id, task.path),
            allowed: false,
            bits: None,
            change: None,
        }
    }

    /// Refuses unless the caller may do this with this key (by name), or with the vault.
    pub(super) fn require(&mut self, key: Option<&str>) -> Result<(), Fail> {
        self.allowed = self.caller.may(self.tx, self.permission, key)?;
        if self.allowed {
            return Ok(());
        }
        Err(self.refuse(|scene| scene.no_permission(self.caller.advice())))
    }

    pub(super) fn refuse(&self, say: impl FnOnce(&Scene<'_>) -> Refusal) -> Fail {
        let (identity, facts) = (self.caller.label(), self.facts);
        let appid = self.caller.known.as_ref().map_or("", |known| &known.client_id);
        let issuer = format!("https://{}.vault.localhost/{}/", facts.id, facts.tenant);
        let claims = format!("appid={appid};oid={};iss={issuer}", self.caller.oid);
        Fail::Refused(say(&Scene {
            operation: self.permission.name(),
            key: &self.subject,
            identity: &identity,
            claims: &claims,
            vault: &facts.name,
            location: &facts.location,
        }))
    }

    /// Keys, grants or identities were changed.
    pub(super) fn bump_generation(&self) -> rusqlite::Result<()> {
        self.tx.execute("UPDATE vault SET policy_generation = policy_generation + 1", []).map(|_| ())
    }
}
