//! Does the audit show who tampered with it? The chain is recomputed here from its published formula, and every way to edit
//! the file without the root key is tried.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use wrapdisk::envelope::{KeyRef, WrapAlg};
use wrapdisk::error::ErrorKind;
use wrapdisk::secret::Secret;
use wrapdisk::vault::local::{AuditFilter, IdentityKind, LocalVault, NewKey, Page, Role, RsaBits};
use wrapdisk::vault::{Call, KeyVault};

/// A vault with a dozen records, and its folder.
fn vault() -> (TempDir, LocalVault) {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "Default").unwrap();
    let admin = vault.admin("audit test");
    for i in 0..11 {
        vault.create_identity(&format!("user-{i}"), IdentityKind::User, &admin).unwrap();
    }
    (dir, vault)
}

/// Somebody with write access to vault.db: the triggers are no obstacle to him.
fn tamper(dir: &TempDir, sql: &str) {
    let db = Connection::open(dir.path().join("vault.db")).unwrap();
    db.execute_batch("DROP TRIGGER audit_no_update; DROP TRIGGER audit_no_delete;").unwrap();
    db.execute_batch(sql).unwrap();
}

#[test]
fn the_chain_is_what_its_formula_says() {
    let (dir, vault) = vault();
    let head = vault.verify_audit().unwrap();
    assert_eq!(head.seq, 12);
    let db = Connection::open(dir.path().join("vault.db")).unwrap();
    let mut prev = [0u8; 32];
    for seq in 1..=12u64 {
        let (record, hash): (String, [u8; 32]) = db
            .query_row("SELECT record, hash FROM audit WHERE seq = ?1", [seq], |r| Ok((r.get(0)?, r.get(1)?)))
            .unwrap();
        let mut h = Sha256::new();
        h.update(b"wrapdisk audit v1");
        h.update(prev);
        h.update(seq.to_be_bytes());
        h.update(u32::try_from(record.len()).unwrap().to_be_bytes());
        h.update(&record);
        prev = h.finalize().into();
        assert_eq!(hash, prev, "record {seq}");
    }
    assert_eq!(head.hash, prev);
}

#[test]
fn every_edit_without_the_root_key_is_found_and_named() {
    let edits = [
        ("UPDATE audit SET record = replace(record, 'user', 'usex') WHERE seq = 5", "record 5 "),
        ("UPDATE audit SET record = record || ' ' WHERE seq = 1", "record 1 "),
        ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 7", "record 7 "),
        ("UPDATE audit SET prev_hash = zeroblob(32) WHERE seq = 7", "record 7 "),
        ("DELETE FROM audit WHERE seq = 6", "after record 5 comes 7"),
        ("DELETE FROM audit WHERE seq = 1", "after record 0 comes 2"),
        ("DELETE FROM audit WHERE seq > 9", "ends at record 9, its head says 12"),
        ("DELETE FROM audit", "ends at record 0, its head says 12"),
        (
            "UPDATE audit SET seq = 100 WHERE seq = 4; UPDATE audit SET seq = 4 WHERE seq = 5;
             UPDATE audit SET seq = 5 WHERE seq = 100",
            "record 4 ",
        ),
        (
            "INSERT INTO audit SELECT 13, record, prev_hash, hash FROM audit WHERE seq = 12",
            "record 13 does not have its hash",
        ),
        ("DELETE FROM audit_head", "its head is missing"),
        ("UPDATE audit_head SET mac = zeroblob(32)", "not written with this vault's root key"),
        (
            "DELETE FROM audit WHERE seq > 9;
             UPDATE audit_head SET seq = 9, hash = (SELECT hash FROM audit WHERE seq = 9)",
            "not written with this vault's root key",
        ),
    ];
    for (edit, found) in edits {
        let (dir, vault) = vault();
        vault.verify_audit().unwrap();
        tamper(&dir, edit);
        let e = vault.verify_audit().expect_err(edit);
        assert_eq!(e.kind(), ErrorKind::Damaged, "{e:?}");
        assert!(e.to_string().contains(found), "{edit}: {e:?}");
    }
}

#[test]
fn a_broken_chain_stays_broken_when_writing_goes_on() {
    for edit in [
        "DELETE FROM audit WHERE seq > 9",
        "DELETE FROM audit WHERE seq > 9;
         UPDATE audit_head SET seq = 9, hash = (SELECT hash FROM audit WHERE seq = 9)",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET broken_seq = 1",
    ] {
        let (dir, vault) = vault();
        tamper(&dir, edit);
        let admin = vault.admin("go on");
        for name in ["next", "and-next"] {
            vault.create_identity(name, IdentityKind::User, &admin).unwrap(); // it must not lock anybody out
        }
        let e = vault.verify_audit().expect_err(edit);
        assert!(e.to_string().contains("a writer found it broken before record"), "{edit}: {e:?}");
    }
}

#[test]
fn a_head_kept_elsewhere_finds_an_older_file_put_back() {
    let (dir, vault) = vault();
    let db = dir.path().join("vault.db");
    let copy = dir.path().join("old");
    Connection::open(&db).unwrap().execute("VACUUM INTO ?1", params![copy.to_str().unwrap()]).unwrap();
    std::fs::set_permissions(&copy, std::fs::metadata(&db).unwrap().permissions()).unwrap();
    vault.create_identity("later", IdentityKind::User, &vault.admin("x")).unwrap();
    let kept = vault.verify_audit().unwrap();
    vault.create_identity("last", IdentityKind::User, &vault.admin("x")).unwrap();
    assert_eq!(vault.verify_audit_against(&kept).unwrap().seq, 14, "a longer chain still contains it");
    drop(vault);
    std::fs::rename(&copy, &db).unwrap();
    let vault = LocalVault::open(dir.path()).unwrap();
    assert!(vault.verify_audit().is_ok(), "the older file is consistent in itself");
    let e = vault.verify_audit_against(&kept).unwrap_err();
    assert!(e.to_string().contains("ends at record 12, before the head kept elsewhere"), "{e:?}");
    vault.create_identity("other", IdentityKind::User, &vault.admin("x")).unwrap();
    let e = vault.verify_audit_against(&kept).unwrap_err();
    assert!(e.to_string().contains("record 13 is not the one of the head kept elsewhere"), "{e:?}");
}

#[test]
fn the_database_itself_refuses_to_change_a_record() {
    let (dir, _vault) = vault();
    let db = Connection::open(dir.path().join("vault.db")).unwrap();
    for sql in ["UPDATE audit SET record = 'x' WHERE seq = 3", "DELETE FROM audit WHERE seq = 3"] {
        let e = db.execute(sql, []).unwrap_err().to_string();
        assert!(e.contains("audit records are never"), "{sql}: {e}");
    }
}

#[test]
fn a_record_says_who_did_what_with_which_key_in_azures_words() {
    let (_dir, vault) = vault();
    let admin = vault.admin("create vm.wd");
    let key = vault.create_key("disk-kek", &NewKey::wrapping(RsaBits::B2048), &admin).unwrap();
    let oid = vault.create_identity("prod", IdentityKind::System, &admin).unwrap();
    vault.grant(oid, Role::CryptoServiceEncryptionUser, Some("disk-kek"), &admin).unwrap();
    let call = Call::new(oid, format!("mount /mnt/\"x\"\n{}", "y".repeat(1000)));
    let dek = Secret::random().unwrap();
    let wrapped = vault.wrap(&key.kid, WrapAlg::RsaOaep256, &dek, &call).unwrap();
    vault.set_enabled(&KeyRef::parse("disk-kek").unwrap(), false, &admin).unwrap();
    vault.unwrap(&wrapped, &call).unwrap_err();
    let records = vault.audit(&AuditFilter { identity: Some(oid), ..AuditFilter::default() }).unwrap();
    let grants = vault.audit(&AuditFilter { operation: Some("VaultPatch".into()), ..AuditFilter::default() });
    assert_eq!(
        grants.unwrap().last().unwrap().value()["properties"]["change"],
        format!("role crypto service encryption user on key disk-kek was granted to {oid}")
    );
    let [wrap, unwrap] = &records[..] else { panic!("{records:#?}") };
    let (wrap, unwrap) = (wrap.value(), unwrap.value());
    assert_eq!(wrap["operationName"], "KeyWrap");
    assert_eq!(wrap["resultSignature"], "OK");
    assert_eq!(wrap["properties"]["httpStatusCode"], 200);
    assert!(wrap.get("resultDescription").is_none());
    assert_eq!(unwrap["category"], "AuditEvent");
    assert_eq!(unwrap["resourceId"], "/WRAPDISK/VAULTS/DEFAULT");
    assert_eq!(unwrap["operationName"], "KeyUnwrap");
    assert_eq!(unwrap["resultType"], "Success");
    assert_eq!(unwrap["resultSignature"], "Forbidden");
    assert_eq!(unwrap["resultDescription"], "Operation unwrapKey is not allowed on a disabled key.");
    assert_eq!(unwrap["correlationId"], call.correlation.to_string());
    assert_eq!(unwrap["identity"]["claim"]["oid"], oid.to_string());
    assert_eq!(unwrap["identity"]["claim"]["appid"].as_str().unwrap().len(), 36);
    let properties = &unwrap["properties"];
    assert_eq!(properties["id"], key.kid.as_str());
    assert_eq!(properties["requestUri"], format!("{}/unwrapkey?api-version=2025-07-01", key.kid));
    assert_eq!(properties["httpStatusCode"], 403);
    assert_eq!(properties["isAccessPolicyMatch"], true);
    assert_eq!(properties["keyProperties"]["size"], 2048);
    let client = properties["clientInfo"].as_str().unwrap();
    assert!(client.starts_with(&format!("wrapdisk/{} pid=", env!("CARGO_PKG_VERSION"))), "{client}");
    assert!(client.contains("mount /mnt/\"x\"\n") && client.len() < 320, "{client}");
    assert!(unwrap["durationMs"].as_str().unwrap().parse::<u64>().is_ok());
    let time = unwrap["time"].as_str().unwrap();
    let (_, fraction) = time.split_once('.').unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok() && fraction.len() == 8, "{time}");
}

#[test]
fn a_listing_is_filtered_by_number_operation_and_length() {
    let (_dir, vault) = vault();
    let admin = vault.admin("x");
    vault.list_keys(&Page::default(), &admin).unwrap();
    let seqs =
        |filter: AuditFilter| -> Vec<u64> { vault.audit(&filter).unwrap().iter().map(|r| r.seq).collect() };
    assert_eq!(seqs(AuditFilter::default()), (1..=13).collect::<Vec<_>>());
    assert_eq!(seqs(AuditFilter { after: 11, ..AuditFilter::default() }), [12, 13]);
    assert_eq!(seqs(AuditFilter { operation: Some("keylist".into()), ..AuditFilter::default() }), [13]);
    assert_eq!(seqs(AuditFilter { last: Some(2), ..AuditFilter::default() }), [12, 13]);
    assert!(seqs(AuditFilter { operation: Some("KeyPurge".into()), ..AuditFilter::default() }).is_empty());
}
