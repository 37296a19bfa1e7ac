//! Vaults with records, and somebody who can forge them: the chain and its MACs from their published formulas.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use uuid::Uuid;
use wrapdisk::vault::local::{IdentityKind, LocalVault};

type Hash = [u8; 32];

pub(crate) fn vault(records: usize) -> (TempDir, LocalVault) {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    for i in 1..records {
        vault.create_identity(&format!("user-{i}"), IdentityKind::User, &vault.admin("test")).unwrap();
    }
    (dir, vault)
}

/// Somebody who can write the database and read the root key.
pub(crate) struct Insider {
    pub(crate) db: Connection,
    mac_key: Hash,
    vault: Uuid,
}

impl Insider {
    pub(crate) fn new(dir: &Path, vault: &LocalVault) -> Self {
        let root = std::fs::read(dir.join("root.key")).unwrap();
        let mut mac_key = [0; 32];
        Hkdf::<Sha256>::new(None, &root).expand(b"wrapdisk/vault/audit/v1", &mut mac_key).unwrap();
        let db = Connection::open(dir.join("vault.db")).unwrap();
        db.execute_batch("DROP TRIGGER IF EXISTS audit_no_update; DROP TRIGGER IF EXISTS audit_no_delete;")
            .unwrap();
        Self { db, mac_key, vault: vault.id() }
    }

    pub(crate) fn rows(&self) -> Vec<String> {
        let mut query = self.db.prepare("SELECT record FROM audit ORDER BY seq").unwrap();
        query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// Writes a whole new chain of these records, with a head that is right.
    pub(crate) fn forge(&mut self, records: impl Iterator<Item = String>) {
        let tx = self.db.transaction().unwrap();
        tx.execute("DELETE FROM audit", []).unwrap();
        let (mut seq, mut prev) = (0u64, [0; 32]);
        for record in records {
            seq += 1;
            let hash = chain(&prev, seq, &record);
            tx.prepare_cached("INSERT INTO audit VALUES (?1, ?2, ?3, ?4)")
                .unwrap()
                .execute(params![seq, record, prev, hash])
                .unwrap();
            prev = hash;
        }
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.mac_key).unwrap();
        mac.update(b"wrapdisk audit head v1");
        mac.update(self.vault.as_bytes());
        mac.update(&seq.to_be_bytes());
        mac.update(&prev);
        mac.update(&0u64.to_be_bytes());
        let mac: Hash = mac.finalize().into_bytes().into();
        tx.execute(
            "UPDATE audit_head SET seq = ?1, hash = ?2, broken_seq = 0, mac = ?3",
            params![seq, prev, mac],
        )
        .unwrap();
        tx.commit().unwrap();
    }
}

fn chain(prev: &Hash, seq: u64, record: &str) -> Hash {
    let mut h = Sha256::new();
    h.update(b"wrapdisk audit v1");
    h.update(prev);
    h.update(seq.to_be_bytes());
    h.update(u32::try_from(record.len()).unwrap().to_be_bytes());
    h.update(record);
    h.finalize().into()
}
