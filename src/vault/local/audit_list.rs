//! Reading the audit, and moving its earlier parts out.
//!
//! Must never see: private keys, data keys.
//!
//! Invariants:
//! 1. Records go by one at a time, however many there are.
//! 2. What is archived is on the medium, and was verified on its way, before a row is deleted; its last hash stays as the
//!    new beginning, under the MAC.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, ToSql, params_from_iter};
use serde_json::json;
use uuid::Uuid;

use super::audit::{AuditHead, AuditRecord, Head, Link, Start, chain};
use super::audit_verify::broken;
use super::refusal::{Fail, transient};
use super::{LocalVault, Permission, Task, db};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::vault::{Call, VaultError};

/// Which records to list.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Only records after this number.
    pub after: u64,
    /// Only this `operationName`, compared without case.
    pub operation: Option<String>,
    /// Only calls in this identity's name.
    pub identity: Option<Uuid>,
    /// Only what is about this key, by name.
    pub key: Option<String>,
    /// Only these outcomes.
    pub result: Option<AuditResult>,
    /// Only from this time on, unix seconds.
    pub since: Option<i64>,
    /// Only before this time, unix seconds.
    pub until: Option<i64>,
    /// Only the last so many of what is left.
    pub last: Option<usize>,
}

/// An outcome, as a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditResult {
    /// It was done.
    Ok,
    /// It was refused.
    Refused,
    /// This HTTP status.
    Status(u16),
}

impl AuditFilter {
    /// The conditions, and what stands for their question marks.
    fn sql(&self) -> (String, Vec<Box<dyn ToSql>>) {
        let mut conditions = vec!["seq > ?"];
        let mut values: Vec<Box<dyn ToSql>> = vec![Box::new(i64::try_from(self.after).unwrap_or(i64::MAX))];
        let mut add = |condition, value: Box<dyn ToSql>| {
            conditions.push(condition);
            values.push(value);
        };
        if let Some(operation) = &self.operation {
            add("record ->> '$.operationName' = ? COLLATE NOCASE", Box::new(operation.clone()));
        }
        if let Some(identity) = self.identity {
            add("record ->> '$.identity.claim.oid' = ?", Box::new(identity.to_string()));
        }
        if let Some(key) = &self.key {
            // `https://HOST/keys/NAME` or `.../NAME/VERSION`; a name has no letter that instr could mistake.
            add(
                "instr(lower(record ->> '$.properties.id') || '/', ?) > 0",
                Box::new(format!("/keys/{}/", key.to_lowercase())),
            );
        }
        match self.result {
            Some(AuditResult::Ok) => add("record ->> '$.properties.httpStatusCode' < ?", Box::new(400)),
            Some(AuditResult::Refused) => add("record ->> '$.properties.httpStatusCode' >= ?", Box::new(400)),
            Some(AuditResult::Status(status)) => {
                add("record ->> '$.properties.httpStatusCode' = ?", Box::new(status));
            }
            None => {}
        }
        // Times have one form, so that their texts have their order.
        let text =
            |t: i64| jiff::Timestamp::from_second(t).map_or_else(|_| String::new(), |t| format!("{t:.7}"));
        if let Some(since) = self.since {
            add("record ->> '$.time' >= ?", Box::new(text(since)));
        }
        if let Some(until) = self.until {
            add("record ->> '$.time' < ?", Box::new(text(until)));
        }
        let records = format!("SELECT seq, record FROM audit WHERE {}", conditions.join(" AND "));
        match self.last {
            None => (format!("{records} ORDER BY seq"), values),
            Some(last) => {
                values.push(Box::new(i64::try_from(last).unwrap_or(i64::MAX)));
                (format!("SELECT * FROM ({records} ORDER BY seq DESC LIMIT ?) ORDER BY seq"), values)
            }
        }
    }
}

const ARCHIVE: Task<'static> =
    Task { operation: "AuditArchive", permission: Permission::Manage, path: "/audit", action: "" };

impl LocalVault {
    /// Audit records in order, all at once. Not a record itself, as [`LocalVault::audit_each`] is not.
    ///
    /// # Errors
    /// `Unreachable`, `Damaged`.
    pub fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRecord>> {
        let mut records = Vec::new();
        self.audit_each(filter, |record| {
            records.push(record);
            Ok(())
        })?;
        Ok(records)
    }

    /// Hands audit records to `each`, in order, until that fails. For the owner of the files.
    ///
    /// # Errors
    /// `Unreachable`, `Damaged`, or what `each` says.
    pub fn audit_each(
        &self,
        filter: &AuditFilter,
        mut each: impl FnMut(AuditRecord) -> Result<()>,
    ) -> Result<()> {
        let db = self.current()?;
        let (sql, values) = filter.sql();
        let mut query = db.conn.prepare(&sql).map_err(|e| db::sql(&e))?;
        let mut rows = query.query(params_from_iter(values)).map_err(|e| db::sql(&e))?;
        while let Some(row) = rows.next().map_err(|e| db::sql(&e))? {
            let record = || Ok(AuditRecord { seq: row.get(0)?, json: row.get(1)? });
            each(record().map_err(|e: rusqlite::Error| db::sql(&e))?)?;
        }
        Ok(())
    }

    /// The end of the chain as it is written, unverified.
    ///
    /// # Errors
    /// `Unreachable`, `Damaged`.
    pub fn audit_head(&self) -> Result<AuditHead> {
        let head = Head::load(&self.current()?.conn).map_err(|e| db::sql(&e))?;
        head.map(|head| AuditHead { seq: head.seq, hash: head.hash })
            .ok_or_else(|| broken("its head is missing"))
    }

    /// Moves every record up to `until` (a number) out of the vault, into a new file; how many they were.
    ///
    /// # Errors
    /// Refused: 403, 400 (nothing to archive). Broken: `Exists` and other trouble with the file, a chain that does not hold.
    pub fn archive_audit(&self, until: u64, file: &Path, call: &Call) -> std::result::Result<u64, Fail> {
        let written = {
            let mut db = self.current().map_err(Fail::Broken)?;
            let tx = db.conn.transaction()?;
            write_archive(&tx, &self.id(), until, file)?
        };
        let Some((start, end)) = written else {
            return self.audited(ARCHIVE, call, |work| {
                work.require(None)?;
                Err(work.refuse(|scene| {
                    scene.bad_parameter(
                        format!("There is no record up to {until} to archive."),
                        "see the numbers: wrapdisk audit list",
                    )
                }))
            });
        };
        let done = self.audited(ARCHIVE, call, |work| {
            work.require(None)?;
            let now = Start::load(work.tx)?.map_or(Link::BEGINNING, |start| start.at);
            let last: Option<[u8; 32]> = work
                .tx
                .query_row("SELECT hash FROM audit WHERE seq = ?1", [end.seq], |row| row.get(0))
                .optional()?;
            if now != start || last != Some(end.hash) {
                return Err(Fail::Broken(transient("the audit was archived by another process meanwhile")));
            }
            let (from, to) = (start.seq + 1, end.seq);
            work.change =
                Some(format!("records {from} to {to} were archived; hash {}", AuditHead::from(end)));
            let trigger: String = work.tx.query_row(
                "SELECT sql FROM sqlite_schema WHERE type = 'trigger' AND name = 'audit_no_delete'",
                [],
                |row| row.get(0),
            )?;
            work.tx.execute_batch("DROP TRIGGER audit_no_delete")?;
            work.tx.execute("DELETE FROM audit WHERE seq <= ?1", [end.seq])?;
            work.tx.execute_batch(&trigger)?;
            Start::store(work.tx, end, work.root, &work.facts.id)?;
            Ok(end.seq - start.seq)
        });
        if done.is_err() {
            let _ = std::fs::remove_file(file);
        }
        done
    }
}

impl From<Link> for AuditHead {
    fn from(at: Link) -> Self {
        Self { seq: at.seq, hash: at.hash }
    }
}

/// Where the archive begins and ends; `None`, and no file: it would be empty.
fn write_archive(
    db: &Connection,
    vault: &Uuid,
    until: u64,
    path: &Path,
) -> std::result::Result<Option<(Link, Link)>, Fail> {
    let start = Start::load(db)?.map_or(Link::BEGINNING, |start| start.at);
    let until = i64::try_from(until).unwrap_or(i64::MAX);
    let end = db
        .query_row("SELECT seq, hash FROM audit WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1", [until], |row| {
            Ok(Link { seq: row.get(0)?, hash: row.get(1)? })
        })
        .optional()?;
    let Some(end) = end else { return Ok(None) };
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = made.io_at("make the archive", path).map_err(|e| Fail::Broken(file_trouble(&e)))?;
    let mut out = std::io::BufWriter::new(file);
    let written = (|| -> Result<Link> {
        let io = |e| Error::io("write the archive", e).at(path);
        let link = |at: Link| json!({ "seq": at.seq, "hash": AuditHead::from(at).hex() });
        let head = json!({ "wrapdisk": "audit archive", "format": 1, "vault": vault.to_string(),
                           "after": link(start), "until": link(end) });
        writeln!(out, "{head}").map_err(io)?;
        let mut last = start;
        let mut query = db
            .prepare("SELECT seq, record, prev_hash, hash FROM audit WHERE seq <= ?1 ORDER BY seq")
            .map_err(|e| db::sql(&e))?;
        let mut rows = query.query([end.seq]).map_err(|e| db::sql(&e))?;
        while let Some(row) = rows.next().map_err(|e| db::sql(&e))? {
            let row = || Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
            let (seq, record, prev, hash): (u64, String, [u8; 32], [u8; 32]) =
                row().map_err(|e: rusqlite::Error| db::sql(&e))?;
            if seq != last.seq + 1 || prev != last.hash || hash != chain(&prev, seq, record.as_bytes()) {
                return Err(broken(format!("record {seq} is not what it must be; nothing was archived")));
            }
            let (before, this) = (AuditHead { seq, hash: prev }.hex(), AuditHead { seq, hash }.hex());
            writeln!(out, "{}", json!({ "seq": seq, "prev": before, "hash": this, "record": record }))
                .map_err(io)?;
            last = Link { seq, hash };
        }
        out.flush().and_then(|()| out.get_ref().sync_all()).map_err(io)?;
        Ok(last)
    })();
    match written {
        Ok(last) if last == end => Ok(Some((start, end))),
        outcome => {
            let _ = std::fs::remove_file(path);
            let e = outcome.err().unwrap_or_else(|| broken("it changed while it was read"));
            Err(Fail::Broken(file_trouble(&e)))
        }
    }
}

/// Trouble with the archive's file keeps its words; the caller sees no denial in it.
fn file_trouble(e: &Error) -> VaultError {
    match e.kind() {
        ErrorKind::Damaged => VaultError::Corrupt(e.chain()),
        ErrorKind::Exists => VaultError::Rejected { code: "Conflict", message: e.chain() },
        _ => transient(e.chain()),
    }
}
