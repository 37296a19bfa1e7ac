//! Verifying the audit: the chain in the database, archives of its earlier parts, and a head that was kept elsewhere.
//! Streaming: a million records take seconds and no more memory than a few.
//!
//! Must never see: private keys, data keys.
//! Invariant: nothing that is read here is believed before its hash, or its MAC, was compared.

use std::io::{BufRead, BufReader};
use std::path::Path;

use rusqlite::Connection;
use serde_json::Value;
use uuid::Uuid;

use super::audit::{AuditHead, Hash, Head, Link, Start, chain};
use super::refusal::from_sqlite;
use super::seal::RootKey;
use super::{LocalVault, db, root_change};
use crate::error::{Error, ErrorKind, IoContext, Result};

/// A head that was kept elsewhere: a record's hash, and its number if that was kept as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptHead {
    seq: Option<u64>,
    hash: Hash,
}

impl KeptHead {
    /// `HASH`, or `SEQ HASH` as `audit head` and the journal have it.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        let (seq, hash) = match text.trim().rsplit_once(char::is_whitespace) {
            Some((before, hash)) => (before.split_whitespace().next_back(), hash),
            None => (None, text.trim()),
        };
        let seq = seq.map(str::parse).transpose().ok();
        seq.zip(unhex(hash)).map(|(seq, hash)| Self { seq, hash }).ok_or_else(|| {
            let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
            Error::new(
                ErrorKind::InvalidInput,
                format!("audit head: found \"{shown}\", allowed SEQ HASH or HASH (64 hex digits)"),
            )
        })
    }
}

impl From<&AuditHead> for KeptHead {
    fn from(head: &AuditHead) -> Self {
        Self { seq: Some(head.seq), hash: head.hash }
    }
}

pub(super) fn unhex(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(hash)
}

impl LocalVault {
    /// Recomputes the audit chain and checks its head.
    ///
    /// # Errors
    /// `Damaged` names the first record that is not what it must be.
    pub fn verify_audit(&self) -> Result<AuditHead> {
        self.verify_audit_with(&[], None)
    }

    /// [`LocalVault::verify_audit`], and the chain must contain a head that was kept elsewhere: only this finds a chain
    /// that was rewritten by somebody with the root key, or an older `vault.db` put back.
    ///
    /// # Errors
    /// As there.
    pub fn verify_audit_against(&self, kept: &AuditHead) -> Result<AuditHead> {
        self.verify_audit_with(&[], Some(&kept.into()))
    }

    /// Both, and through archives of earlier parts, oldest first.
    ///
    /// # Errors
    /// As there; `Damaged`, `NotFound`, ... of an archive.
    pub fn verify_audit_with(&self, archives: &[&Path], kept: Option<&KeptHead>) -> Result<AuditHead> {
        let mut walk = Walk { last: Link::BEGINNING, kept, seen: kept.is_none() };
        let mut before = None;
        for archive in archives {
            before = Some(read_archive(archive, &self.id(), before, &mut walk)?);
        }
        let mut db = self.current()?;
        // One snapshot: records, head and root key belong together.
        let tx = db.conn.transaction().map_err(|e| db::sql(&e))?;
        let (root, facts) = root_change::current(&self.dir, &self.unlock, &tx)?;
        verify(&tx, &root, &facts.id, before, walk)
    }
}

/// How far the chain was followed, and whether the kept head was met.
struct Walk<'a> {
    last: Link,
    kept: Option<&'a KeptHead>,
    seen: bool,
}

impl Walk<'_> {
    /// The chain begins behind this record.
    fn begin(&mut self, at: Link) -> Result<()> {
        self.last = at;
        self.meet(at)
    }

    fn step(&mut self, seq: u64, record: &[u8], prev: &[u8], hash: &[u8]) -> Result<()> {
        if seq != self.last.seq + 1 {
            return Err(broken(format!("after record {} comes {seq}", self.last.seq)));
        }
        let computed = chain(&self.last.hash, seq, record);
        if prev != self.last.hash || hash != computed {
            return Err(broken(format!(
                "record {seq} does not have its hash: it, or its place, was changed"
            )));
        }
        self.last = Link { seq, hash: computed };
        self.meet(self.last)
    }

    fn meet(&mut self, at: Link) -> Result<()> {
        // (Nobody keeps the head of an empty chain, and its zeros must not be a head that always fits.)
        let Some(kept) = self.kept.filter(|_| at != Link::BEGINNING) else { return Ok(()) };
        if kept.hash == at.hash && kept.seq.is_none_or(|seq| seq == at.seq) {
            self.seen = true;
        } else if kept.seq == Some(at.seq) {
            return Err(broken(format!("record {} is not the one of the head kept elsewhere", at.seq)));
        }
        Ok(())
    }
}

/// `before`: where the archives that were read end.
fn verify(
    db: &Connection,
    root: &RootKey,
    vault: &Uuid,
    before: Option<Link>,
    mut walk: Walk<'_>,
) -> Result<AuditHead> {
    let sql = |e: rusqlite::Error| Error::from(from_sqlite(&e));
    let start = match Start::load(db).map_err(sql)? {
        Some(start) if start.is_ours(root, vault)? => start.at,
        Some(_) => return Err(broken("its beginning was not written with this vault's root key")),
        None => Link::BEGINNING,
    };
    if before.is_some_and(|before| before != start) {
        let found = before.map_or(0, |before| before.seq);
        return Err(broken(format!("the archives end at record {found}, it begins behind {}", start.seq)));
    }
    walk.begin(start)?;
    verify_records(db, &mut walk).map_err(sql)??;
    let last = walk.last;
    if !walk.seen {
        return Err(match walk.kept.and_then(|kept| kept.seq) {
            Some(seq) if seq < start.seq && before.is_none() => Error::new(
                ErrorKind::InvalidInput,
                format!("the head kept elsewhere, record {seq}, was archived"),
            )
            .hint("name the archives, oldest first: --archive FILE"),
            Some(seq) if seq > last.seq => {
                broken(format!("it ends at record {}, before the head kept elsewhere", last.seq))
            }
            _ => broken("no record has the hash of the head kept elsewhere"),
        });
    }
    let head = Head::load(db).map_err(sql)?.ok_or_else(|| broken("its head is missing"))?;
    if !root.audit_mac_is(&head.message(vault), &head.mac)? {
        return Err(broken("its head was not written with this vault's root key"));
    }
    if !head.is_at(&last) {
        return Err(broken(format!("it ends at record {}, its head says {}", last.seq, head.seq)));
    }
    if head.broken != 0 {
        return Err(broken(format!("a writer found it broken before record {}", head.broken)));
    }
    Ok(AuditHead { seq: last.seq, hash: last.hash })
}

/// The outer result is the database's, the inner one the chain's.
fn verify_records(db: &Connection, walk: &mut Walk<'_>) -> rusqlite::Result<Result<()>> {
    let mut query = db.prepare("SELECT seq, record, prev_hash, hash FROM audit ORDER BY seq")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let bytes = |at: usize| Ok::<_, rusqlite::Error>(row.get_ref(at)?.as_bytes().unwrap_or_default());
        if let Err(e) = walk.step(row.get(0)?, bytes(1)?, bytes(2)?, bytes(3)?) {
            return Ok(Err(e));
        }
    }
    Ok(Ok(()))
}

/// The longest line of an archive: a record is a few kilobytes, twice as much in JSON.
const LONGEST_LINE: u64 = 1 << 20;

/// Follows one archive; where it ends.
fn read_archive(path: &Path, vault: &Uuid, before: Option<Link>, walk: &mut Walk<'_>) -> Result<Link> {
    let mut file = BufReader::new(std::fs::File::open(path).io_at("open the archive", path)?);
    let damaged = |what: &str| Error::new(ErrorKind::Damaged, format!("the archive: {what}")).at(path);
    let mut line = String::new();
    let mut next = |line: &mut String| -> Result<bool> {
        line.clear();
        let read = std::io::Read::take(&mut file, LONGEST_LINE).read_line(line);
        Ok(read.io_at("read the archive", path)? > 0)
    };
    next(&mut line)?;
    let head: Value = serde_json::from_str(&line).map_err(|e| damaged("its first line").caused_by(e))?;
    if head["wrapdisk"] != "audit archive" || head["format"] != 1 || head["vault"] != vault.to_string() {
        return Err(damaged("found another file, or another vault's, allowed an archive of this vault"));
    }
    let link =
        |value: &Value| Some(Link { seq: value["seq"].as_u64()?, hash: unhex(value["hash"].as_str()?)? });
    let (after, until) =
        link(&head["after"]).zip(link(&head["until"])).ok_or_else(|| damaged("its first line"))?;
    if before.is_some_and(|before| before != after) {
        return Err(damaged("it does not follow the one before: name them oldest first, and none left out"));
    }
    walk.begin(after).map_err(|e| e.at(path))?;
    while next(&mut line)? {
        let row: Value = serde_json::from_str(&line).map_err(|e| damaged("a line").caused_by(e))?;
        let (Some(seq), Some(record), Some(prev), Some(hash)) = (
            row["seq"].as_u64(),
            row["record"].as_str(),
            row["prev"].as_str().and_then(unhex),
            row["hash"].as_str().and_then(unhex),
        ) else {
            return Err(damaged("a line without seq, record, prev or hash"));
        };
        walk.step(seq, record.as_bytes(), &prev, &hash).map_err(|e| e.at(path))?;
    }
    if walk.last != until {
        return Err(damaged(&format!("it ends at record {}, and says {}", walk.last.seq, until.seq)));
    }
    Ok(until)
}

pub(super) fn broken(found: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("the audit chain is broken: {found}"))
        .hint("somebody edited vault.db, or it is damaged: keep a copy of it, and compare with a backup or an export")
}
