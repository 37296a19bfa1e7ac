//! The audit: one record an operation, chained by hashes (KEY-VAULT section 2, RULINGS 32).
//!
//! `hash = SHA-256("wrapdisk audit v1" || prev_hash || seq u64be || len u32be || record)`, the first `prev_hash` is zeros.
//! The head (last seq and hash) carries a MAC under the audit sub-key.
//!
//! What it shows: a changed, missing, swapped or added record, and a cut end, to whoever edits the file without
//! the root key. Who can also read the root key, or puts back an older file, is found only by a head kept elsewhere.
//!
//! Must never see: private keys, data keys.
//!
//! Invariants:
//! 1. A record is written in the transaction of its operation and committed before the answer leaves.
//! 2. A writer that meets a broken chain goes on (a bit error must not lock everybody out) but says so under the MAC,
//!    so that the break cannot be healed over.

use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::refusal::Fail;
use super::seal::RootKey;
use crate::error::Result;
use crate::vault::Origin;

const CHAIN_DOMAIN: &[u8] = b"wrapdisk audit v1";
const HEAD_DOMAIN: &[u8] = b"wrapdisk audit head v1";
const START_DOMAIN: &[u8] = b"wrapdisk audit start v1";
/// A head is told to the journal at every so many records, and at the first of a day.
const TELL_EVERY: u64 = 1000;

pub(super) type Hash = [u8; 32];

/// One record.
#[derive(Clone, Debug)]
pub struct AuditRecord {
    /// 1, 2, 3, ...
    pub seq: u64,
    /// The exact JSON text that is hashed, in Azure's AuditEvent schema.
    pub json: String,
}

impl AuditRecord {
    /// The JSON, parsed; `Null` for a record that is none.
    #[must_use]
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.json).unwrap_or(Value::Null)
    }
}

/// The end of the chain: keep it elsewhere to find out later whether the chain was rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditHead {
    /// Number of the last record.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl AuditHead {
    /// The hash in hex.
    #[must_use]
    pub fn hex(&self) -> String {
        self.hash.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl std::fmt::Display for AuditHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.seq, self.hex())
    }
}

/// What a record says.
pub(super) struct Event<'a> {
    pub(super) operation: &'static str,
    pub(super) vault_name: &'a str,
    pub(super) status: u16,
    pub(super) signature: &'a str,
    pub(super) description: Option<&'a str>,
    pub(super) duration: std::time::Duration,
    pub(super) call: &'a crate::vault::Call,
    pub(super) client_id: Option<&'a str>,
    /// The key's URL with version, as far as known.
    pub(super) subject: &'a str,
    /// What of it: `unwrapkey`; empty for the resource itself.
    pub(super) action: &'a str,
    pub(super) policy_match: bool,
    pub(super) bits: Option<u32>,
    /// Administration: what was changed.
    pub(super) change: Option<&'a str>,
}

impl Event<'_> {
    fn to_json(&self) -> String {
        let mut claim = json!({ "oid": self.call.identity.to_string() });
        if let Some(id) = self.client_id {
            claim["appid"] = id.into();
        }
        // A caller's text: JSON escapes it, and it cannot grow a record without bound.
        let short = |text: &str| text.chars().take(256).collect::<String>();
        let (address, client) = match &self.call.origin {
            Origin::Process => {
                let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
                ("127.0.0.1".to_owned(), format!("wrapdisk/{version} pid={pid} {}", short(&self.call.reason)))
            }
            Origin::Network { address, agent, .. } => (address.to_string(), short(agent)),
        };
        let slash = if self.action.is_empty() { "" } else { "/" };
        let mut properties = json!({
            "id": self.subject,
            "clientInfo": client,
            "requestUri": format!("{}{slash}{}?api-version={API_VERSION}", self.subject, self.action),
            "httpStatusCode": self.status,
            "isAccessPolicyMatch": self.policy_match,
        });
        if let Some(bits) = self.bits {
            properties["keyProperties"] = json!({ "type": "RSA", "size": bits });
        }
        if let Origin::Network { tls, .. } = self.call.origin {
            properties["tlsVersion"] = tls.into();
        }
        if let Some(change) = self.change {
            properties["change"] = change.into();
        }
        let mut record = json!({
            "time": format!("{:.7}", jiff::Timestamp::now()),
            "resourceId": format!("/WRAPDISK/VAULTS/{}", self.vault_name.to_uppercase()),
            "category": "AuditEvent",
            "operationName": self.operation,
            "operationVersion": API_VERSION,
            // Azure writes Success for refusals too; the truth is in the status and the signature.
            "resultType": "Success",
            "resultSignature": self.signature,
        });
        if let Some(description) = self.description {
            record["resultDescription"] = description.into();
        }
        record["durationMs"] = self.duration.as_millis().to_string().into();
        record["callerIpAddress"] = address.into();
        record["correlationId"] = self.call.correlation.to_string().into();
        record["identity"] = json!({ "claim": claim });
        record["properties"] = properties;
        record.to_string()
    }
}

/// The API whose records these look like.
const API_VERSION: &str = "2025-07-01";

/// Appends a record; part of the caller's transaction. A head comes back when it is time to tell one to the journal.
pub(super) fn append(
    db: &Connection,
    root: &RootKey,
    vault: &Uuid,
    event: &Event<'_>,
) -> std::result::Result<Option<AuditHead>, Fail> {
    let head = Head::load(db)?;
    let (last, day) = last_record(db)?;
    let broken = match &head {
        Some(head) if head.broken != 0 => head.broken,
        Some(head) if root.audit_mac_is(&head.message(vault), &head.mac)? && head.is_at(&last) => 0,
        None if last == Link::BEGINNING => 0,
        _ => last.seq + 1,
    };
    let seq = last.seq + 1;
    let record = event.to_json();
    let hash = chain(&last.hash, seq, record.as_bytes());
    db.prepare_cached("INSERT INTO audit (seq, record, prev_hash, hash) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![seq, record, last.hash, hash])?;
    let mut new = Head { seq, hash, broken, mac: [0; 32] };
    new.mac = root.audit_mac(&new.message(vault))?;
    new.store(db)?;
    let time_to_tell = seq.is_multiple_of(TELL_EVERY) || record.get(DATE) != Some(&day);
    Ok(time_to_tell.then_some(AuditHead { seq, hash }))
}

/// Tells the head to the journal, which whoever edits the database later may not reach. Nobody listening is no failure.
pub(super) fn tell(head: &AuditHead, vault: &Uuid) {
    let text = format!("audit head of vault {vault}: {head}");
    log::info!("{text}");
    tell_to(std::path::Path::new("/dev/log"), &text);
}

fn tell_to(socket: &std::path::Path, text: &str) {
    /// Facility authpriv, level info (RFC 5424).
    const PRIORITY: u8 = 10 * 8 + 6;
    let line = format!("<{PRIORITY}>wrapdisk[{}]: {text}", std::process::id());
    if let Ok(sender) = std::os::unix::net::UnixDatagram::unbound() {
        let _ = sender.set_nonblocking(true).and_then(|()| sender.send_to(line.as_bytes(), socket));
    }
}

/// Puts the head's MAC under the next root key; part of its rotation. A head that was not ours stays one that was not.
pub(super) fn resign(
    db: &Connection,
    old: &RootKey,
    next: &RootKey,
    vault: &Uuid,
) -> std::result::Result<(), Fail> {
    let (last, _) = last_record(db)?;
    let found = Head::load(db)?;
    let ours = match &found {
        Some(head) => old.audit_mac_is(&head.message(vault), &head.mac)? && head.is_at(&last),
        None => false,
    };
    let broken = match found {
        Some(head) if ours => head.broken,
        _ => last.seq + 1,
    };
    let mut head = Head { seq: last.seq, hash: last.hash, broken, mac: [0; 32] };
    head.mac = next.audit_mac(&head.message(vault))?;
    head.store(db)?;
    match Start::load(db)? {
        // One that is not ours is left as it is, and found.
        Some(start) if start.is_ours(old, vault)? => Start::store(db, start.at, next, vault),
        _ => Ok(()),
    }
}

/// A place in the chain: a record, or the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) hash: Hash,
}

impl Link {
    /// Before the first record ever.
    pub(super) const BEGINNING: Self = Self { seq: 0, hash: [0; 32] };
}

pub(super) struct Head {
    pub(super) seq: u64,
    pub(super) hash: Hash,
    /// 0, or the first record that was written onto a broken chain.
    pub(super) broken: u64,
    pub(super) mac: Hash,
}

/// Behind which record the chain begins, once a part was archived.
pub(super) struct Start {
    pub(super) at: Link,
    mac: Hash,
}

impl Start {
    pub(super) fn load(db: &Connection) -> rusqlite::Result<Option<Self>> {
        db.prepare_cached("SELECT seq, hash, mac FROM audit_start")?
            .query_row([], |row| {
                Ok(Self { at: Link { seq: row.get(0)?, hash: row.get(1)? }, mac: row.get(2)? })
            })
            .optional()
    }

    pub(super) fn is_ours(&self, root: &RootKey, vault: &Uuid) -> Result<bool> {
        root.audit_mac_is(&Self::message(self.at, vault), &self.mac)
    }

    pub(super) fn store(
        db: &Connection,
        at: Link,
        root: &RootKey,
        vault: &Uuid,
    ) -> std::result::Result<(), Fail> {
        let mac = root.audit_mac(&Self::message(at, vault))?;
        db.execute(
            "INSERT OR REPLACE INTO audit_start (one, seq, hash, mac) VALUES (1, ?1, ?2, ?3)",
            params![at.seq, at.hash, mac],
        )?;
        Ok(())
    }

    fn message(at: Link, vault: &Uuid) -> Vec<u8> {
        [START_DOMAIN, vault.as_bytes(), &at.seq.to_be_bytes(), &at.hash].concat()
    }
}

impl Head {
    pub(super) fn load(db: &Connection) -> rusqlite::Result<Option<Self>> {
        db.prepare_cached("SELECT seq, hash, broken_seq, mac FROM audit_head")?
            .query_row([], |row| {
                Ok(Self { seq: row.get(0)?, hash: row.get(1)?, broken: row.get(2)?, mac: row.get(3)? })
            })
            .optional()
    }

    fn store(&self, db: &Connection) -> std::result::Result<(), Fail> {
        db.prepare_cached(
            "INSERT OR REPLACE INTO audit_head (one, seq, hash, broken_seq, mac) VALUES (1, ?1, ?2, ?3, ?4)",
        )?
        .execute(params![self.seq, self.hash, self.broken, self.mac])?;
        Ok(())
    }

    pub(super) fn message(&self, vault: &Uuid) -> Vec<u8> {
        let mut m = HEAD_DOMAIN.to_vec();
        m.extend_from_slice(vault.as_bytes());
        m.extend_from_slice(&self.seq.to_be_bytes());
        m.extend_from_slice(&self.hash);
        m.extend_from_slice(&self.broken.to_be_bytes());
        m
    }

    pub(super) fn is_at(&self, last: &Link) -> bool {
        self.seq == last.seq && self.hash == last.hash
    }
}

/// Where `{"time":"2026-11-24T...` has its date: the time is the first member of every record.
const DATE: std::ops::Range<usize> = 9..19;

/// The last record, and its date.
fn last_record(db: &Connection) -> rusqlite::Result<(Link, String)> {
    let last = db
        .prepare_cached("SELECT seq, hash, substr(record, 10, 10) FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| Ok((Link { seq: row.get(0)?, hash: row.get(1)? }, row.get(2)?)))
        .optional()?;
    match last {
        Some(last) => Ok(last),
        None => Ok((Start::load(db)?.map_or(Link::BEGINNING, |start| start.at), String::new())),
    }
}

pub(super) fn chain(prev: &Hash, seq: u64, record: &[u8]) -> Hash {
    // Ours are a few kilobytes; whatever somebody put there is hashed as it is.
    let len = u32::try_from(record.len()).unwrap_or(u32::MAX);
    let mut h = Sha256::new();
    h.update(CHAIN_DOMAIN);
    h.update(prev);
    h.update(seq.to_be_bytes());
    h.update(len.to_be_bytes());
    h.update(record);
    h.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reaches_the_journal_s_socket_and_nobody_there_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        tell_to(&path, "nobody");
        let journal = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        tell_to(&path, "audit head of vault v: 1000 00ff");
        let mut line = [0; 256];
        let len = journal.recv(&mut line).unwrap();
        let line = String::from_utf8_lossy(&line[..len]);
        assert!(
            line.starts_with("<86>wrapdisk[") && line.ends_with("]: audit head of vault v: 1000 00ff"),
            "{line}"
        );
    }
}
