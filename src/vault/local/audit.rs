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

use super::refusal::{Fail, from_sqlite};
use super::seal::RootKey;
use crate::error::{Error, ErrorKind, Result};
use crate::vault::Origin;

const CHAIN_DOMAIN: &[u8] = b"wrapdisk audit v1";
const HEAD_DOMAIN: &[u8] = b"wrapdisk audit head v1";

type Hash = [u8; 32];

/// Which records to list.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Only records after this number.
    pub after: u64,
    /// Only this `operationName`, compared without case.
    pub operation: Option<String>,
    /// Only calls in this identity's name.
    pub identity: Option<Uuid>,
    /// Only the last so many of what is left.
    pub last: Option<usize>,
}

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

impl std::fmt::Display for AuditHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.seq)?;
        self.hash.iter().try_for_each(|b| write!(f, "{b:02x}"))
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

/// Appends a record; part of the caller's transaction.
pub(super) fn append(
    db: &Connection,
    root: &RootKey,
    vault: &Uuid,
    event: &Event<'_>,
) -> std::result::Result<(), Fail> {
    let head = Head::load(db)?;
    let last = last_record(db)?;
    let broken = match &head {
        Some(head) if head.broken != 0 => head.broken,
        Some(head) if root.audit_mac_is(&head.message(vault), &head.mac)? && head.is_at(&last) => 0,
        None if last.seq == 0 => 0,
        _ => last.seq + 1,
    };
    let seq = last.seq + 1;
    let record = event.to_json();
    let hash = chain(&last.hash, seq, &record);
    db.prepare_cached("INSERT INTO audit (seq, record, prev_hash, hash) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![seq, record, last.hash, hash])?;
    let mut new = Head { seq, hash, broken, mac: [0; 32] };
    new.mac = root.audit_mac(&new.message(vault))?;
    new.store(db)
}

/// Puts the head's MAC under the next root key; part of its rotation. A head that was not ours stays one that was not.
pub(super) fn resign(
    db: &Connection,
    old: &RootKey,
    next: &RootKey,
    vault: &Uuid,
) -> std::result::Result<(), Fail> {
    let last = last_record(db)?;
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
    head.store(db)
}

/// Records in order.
pub(super) fn list(db: &Connection, filter: &AuditFilter) -> rusqlite::Result<Vec<AuditRecord>> {
    let mut query = db.prepare_cached(
        "SELECT seq, record FROM audit
          WHERE seq > ?1
            AND (?2 IS NULL OR record ->> '$.operationName' = ?2 COLLATE NOCASE)
            AND (?3 IS NULL OR record ->> '$.identity.claim.oid' = ?3)
          ORDER BY seq DESC LIMIT ?4",
    )?;
    let after = i64::try_from(filter.after).unwrap_or(i64::MAX);
    let last = filter.last.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX)); // SQLite: negative = all
    let mut records = query
        .query_map(params![after, filter.operation, filter.identity.map(|id| id.to_string()), last], |row| {
            Ok(AuditRecord { seq: row.get(0)?, json: row.get(1)? })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    records.reverse();
    Ok(records)
}

/// Recomputes the whole chain; `kept` is a head that was put away earlier.
///
/// # Errors
/// `Damaged`: what was found broken, and where. `Unreachable`: the database did not answer.
pub(super) fn verify(
    db: &Connection,
    root: &RootKey,
    vault: &Uuid,
    kept: Option<&AuditHead>,
) -> Result<AuditHead> {
    let sql = |e: rusqlite::Error| Error::from(from_sqlite(&e));
    let last = verify_records(db, kept).map_err(sql)??;
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
fn verify_records(db: &Connection, kept: Option<&AuditHead>) -> rusqlite::Result<Result<Link>> {
    let mut last = Link { seq: 0, hash: [0; 32] };
    let mut kept_seen = kept.is_none();
    let mut query = db.prepare("SELECT seq, record, prev_hash, hash FROM audit ORDER BY seq")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let (seq, record): (u64, String) = (row.get(0)?, row.get(1)?);
        let (prev, hash): (Hash, Hash) = (row.get(2)?, row.get(3)?);
        if seq != last.seq + 1 {
            return Ok(Err(broken(format!("after record {} comes {seq}", last.seq))));
        }
        if prev != last.hash || hash != chain(&last.hash, seq, &record) {
            return Ok(Err(broken(format!(
                "record {seq} does not have its hash: it, or its place, was changed"
            ))));
        }
        if let Some(k) = kept.filter(|k| k.seq == seq) {
            if k.hash != hash {
                return Ok(Err(broken(format!("record {seq} is not the one of the head kept elsewhere"))));
            }
            kept_seen = true;
        }
        last = Link { seq, hash };
    }
    if !kept_seen {
        return Ok(Err(broken(format!("it ends at record {}, before the head kept elsewhere", last.seq))));
    }
    Ok(Ok(last))
}

fn broken(found: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("the audit chain is broken: {found}"))
        .hint("somebody edited vault.db, or it is damaged: keep a copy of it, and compare with a backup or an export")
}

struct Link {
    seq: u64,
    hash: Hash,
}

struct Head {
    seq: u64,
    hash: Hash,
    /// 0, or the first record that was written onto a broken chain.
    broken: u64,
    mac: Hash,
}

impl Head {
    fn load(db: &Connection) -> rusqlite::Result<Option<Self>> {
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

    fn message(&self, vault: &Uuid) -> Vec<u8> {
        let mut m = HEAD_DOMAIN.to_vec();
        m.extend_from_slice(vault.as_bytes());
        m.extend_from_slice(&self.seq.to_be_bytes());
        m.extend_from_slice(&self.hash);
        m.extend_from_slice(&self.broken.to_be_bytes());
        m
    }

    fn is_at(&self, last: &Link) -> bool {
        self.seq == last.seq && self.hash == last.hash
    }
}

fn last_record(db: &Connection) -> rusqlite::Result<Link> {
    Ok(db
        .prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| Ok(Link { seq: row.get(0)?, hash: row.get(1)? }))
        .optional()?
        .unwrap_or(Link { seq: 0, hash: [0; 32] }))
}

fn chain(prev: &Hash, seq: u64, record: &str) -> Hash {
    let len = u32::try_from(record.len()).expect("a record is a few kilobytes");
    let mut h = Sha256::new();
    h.update(CHAIN_DOMAIN);
    h.update(prev);
    h.update(seq.to_be_bytes());
    h.update(len.to_be_bytes());
    h.update(record.as_bytes());
    h.finalize().into()
}
