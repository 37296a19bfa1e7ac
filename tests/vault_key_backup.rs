//! Does a backup of a key bring back everything, and open only where it may: in its own vault, or under its passphrase?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use rusqlite::Connection;
use tempfile::TempDir;
use wrapdisk::envelope::{KeyRef, Kid, WrapAlg, WrappedDek};
use wrapdisk::secret::Secret;
use wrapdisk::vault::local::{
    AuditFilter, Fail, KeyAttributes, KeyUpdate, LocalVault, NewKey, Page, Refusal, RotationPolicy, RsaBits,
};
use wrapdisk::vault::{Call, KeyInfo, KeyOperation, KeyVault};

struct Scene {
    dir: TempDir,
    vault: LocalVault,
    call: Call,
}

fn empty() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let call = vault.admin("test");
    Scene { dir, vault, call }
}

/// A key of two versions that differ in everything, a policy, and a data key under the first version.
fn scene() -> (Scene, Secret<64>, WrappedDek) {
    let s = empty();
    let first = NewKey {
        attributes: KeyAttributes { enabled: true, not_before: Some(1), expires: Some(4_000_000_000) },
        tags: BTreeMap::from([("env".into(), "prod".into())]),
        ..NewKey::wrapping(RsaBits::B2048)
    };
    let kid = s.vault.create_key("Disk-Kek", &first, &s.call).unwrap().kid;
    let dek = Secret::random().unwrap();
    let wrapped = s.vault.wrap(&kid, WrapAlg::RsaOaep256, &dek, &s.call).unwrap();
    s.vault.create_key("disk-kek", &NewKey { bits: RsaBits::B2048, ..NewKey::default() }, &s.call).unwrap();
    let off = KeyUpdate { enabled: Some(false), ..KeyUpdate::default() };
    s.vault.update_key(&KeyRef::parse("disk-kek").unwrap(), &off, &s.call).unwrap();
    let policy =
        br#"{"lifetimeActions":[{"trigger":{"timeAfterCreate":"P60D"},"action":{"type":"Rotate"}}]}"#;
    let policy = RotationPolicy::from_json(policy).unwrap();
    s.vault.set_rotation_policy("disk-kek", &policy, &s.call).unwrap();
    (s, dek, wrapped)
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Fail>) -> Refusal {
    match answer {
        Err(Fail::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

type Facts =
    (String, bool, Option<i64>, Option<i64>, i64, i64, Vec<KeyOperation>, BTreeMap<String, String>, Vec<u8>);

/// All of a version but the vault in its kid.
fn facts(info: KeyInfo) -> Facts {
    let name = format!("{}/{}", info.kid.name(), info.kid.version());
    let (enabled, nbf, exp) = (info.enabled, info.not_before, info.expires);
    (name, enabled, nbf, exp, info.created, info.updated, info.operations, info.tags, info.n)
}

fn versions(s: &Scene) -> Vec<Facts> {
    let found = s.vault.list_versions("disk-kek", &Page::default(), &s.call).unwrap();
    found.into_iter().map(facts).collect()
}

fn remove(s: &Scene) {
    s.vault.delete_key("disk-kek", &s.call).unwrap();
    s.vault.purge_key("disk-kek", &s.call).unwrap();
}

#[test]
fn a_purged_key_comes_back_from_its_backup_with_everything() {
    let (s, dek, wrapped) = scene();
    let (before, policy) = (versions(&s), s.vault.rotation_policy("disk-kek", &s.call).unwrap());
    let blob = s.vault.backup_key("disk-kek", &s.call).unwrap();
    remove(&s);
    assert!(s.vault.unwrap(&wrapped, &s.call).is_err());
    let back = s.vault.restore_key(&blob, &s.call).unwrap();
    assert_eq!((back.kid.name(), back.enabled), ("Disk-Kek", false), "the latest version, as it was");
    assert_eq!(versions(&s), before);
    assert_eq!(s.vault.rotation_policy("disk-kek", &s.call).unwrap(), policy);
    assert!(s.vault.unwrap(&wrapped, &s.call).unwrap().ct_eq(&dek), "a disk under it opens again");
    // It lives on as any other.
    s.vault.rotate_key("disk-kek", &s.call).unwrap();
    assert_eq!(versions(&s).len(), 3);
    LocalVault::open(s.dir.path()).unwrap().verify_audit().unwrap();
}

#[test]
fn a_name_that_is_taken_or_deleted_is_not_restored_over() {
    let (s, ..) = scene();
    let blob = s.vault.backup_key("disk-kek", &s.call).unwrap();
    let refusal = refused(s.vault.restore_key(&blob, &s.call));
    assert_eq!((refusal.status, refusal.signature, refusal.inner), (409, "Conflict", None));
    s.vault.delete_key("disk-kek", &s.call).unwrap();
    let refusal = refused(s.vault.restore_key(&blob, &s.call));
    assert_eq!((refusal.status, refusal.inner), (409, Some("ObjectIsDeletedButRecoverable")));
    s.vault.purge_key("disk-kek", &s.call).unwrap();
    s.vault.restore_key(&blob, &s.call).unwrap();
}

#[test]
fn a_backup_opens_in_its_own_vault_only_and_a_portable_one_under_its_passphrase_anywhere() {
    let (s, dek, wrapped) = scene();
    let before = versions(&s);
    let blob = s.vault.backup_key("disk-kek", &s.call).unwrap();
    let other = empty();
    let words = "Backup blob contains invalid or corrupt version.";
    let check = |refusal: Refusal| {
        assert_eq!((refusal.status, refusal.signature), (400, "Malformed backup blob"));
        assert_eq!(refusal.description, words);
    };
    check(refused(other.vault.restore_key(&blob, &other.call)));
    check(refused(other.vault.restore_key_portable(&blob, b"secret", &other.call)));

    let portable = s.vault.backup_key_portable("disk-kek", b"correct horse", &s.call).unwrap();
    assert!(LocalVault::backup_is_portable(&portable) && !LocalVault::backup_is_portable(&blob));
    check(refused(other.vault.restore_key(&portable, &other.call)));
    check(refused(other.vault.restore_key_portable(&portable, b"battery staple", &other.call)));
    let restored = other.vault.restore_key_portable(&portable, b"correct horse", &other.call).unwrap();
    assert!(restored.kid.host().starts_with(&other.vault.id().to_string()), "a key of that vault now");
    assert_eq!(versions(&other), before);
    let kid = Kid::local(&other.vault.id(), "disk-kek", wrapped.kid.version()).unwrap();
    let there = WrappedDek { kid, ..wrapped };
    assert!(other.vault.unwrap(&there, &other.call).unwrap().ct_eq(&dek));
}

#[test]
fn every_changed_or_missing_byte_is_refused_and_leaves_no_key() {
    let (s, ..) = scene();
    let blob = s.vault.backup_key("disk-kek", &s.call).unwrap();
    remove(&s);
    let refuse = |bytes: &[u8], what: &str| {
        let refusal = refused(s.vault.restore_key(bytes, &s.call));
        assert_eq!(refusal.status, 400, "{what}");
    };
    for at in (0..64).chain((64..blob.len()).step_by(97)).chain([blob.len() - 1]) {
        let mut bad = blob.clone();
        bad[at] ^= 1;
        refuse(&bad, &format!("byte {at}"));
        refuse(&blob[..at], &format!("cut at {at}"));
    }
    refuse(&[&blob[..], &[0]].concat(), "longer");
    refuse(&vec![b'x'; 1 << 20], "noise");
    refuse(&vec![b'x'; (1 << 20) + 1], "too long");
    // A cost that would take the machine down is not paid.
    let portable = s.vault.backup_key("disk-kek", &s.call);
    assert_eq!(refused(portable).status, 404);
    for cost in [[0xff; 12], [0; 12]] {
        let bad = [&b"wdKVbk1\n\x02"[..], &cost, &[0; 16 + 200]].concat();
        assert_eq!(refused(s.vault.restore_key_portable(&bad, b"x", &s.call)).status, 400);
    }
    assert!(s.vault.list_keys(&Page::default(), &s.call).unwrap().is_empty());
}

#[test]
fn a_backup_shows_no_private_key_and_leaves_a_record() {
    let (s, ..) = scene();
    let pem = s.vault.public_pem(&KeyRef::parse("disk-kek").unwrap(), &s.call).unwrap();
    assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----"));
    for blob in [
        s.vault.backup_key("disk-kek", &s.call).unwrap(),
        s.vault.backup_key_portable("disk-kek", b"pass", &s.call).unwrap(),
    ] {
        let has = |needle: &[u8]| blob.windows(needle.len()).any(|w| w == needle);
        assert!(!has(b"disk-kek") && !has(b"Disk-Kek") && !has(b"private"), "the document is in the clear");
        assert!(has(b"wdKVbk1"), "the search finds what is there");
    }
    let filter = AuditFilter { operation: Some("KeyBackup".into()), ..Default::default() };
    let records = s.vault.audit(&filter).unwrap();
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|r| !r.json.contains("\"pass\"")));
    // What is in the database: sealed, and for its place only.
    let db = Connection::open(s.dir.path().join("vault.db")).unwrap();
    let swapped = db.execute(
        "UPDATE key_version SET private = (SELECT o.private FROM key_version o WHERE o.version <> key_version.version)",
        [],
    );
    assert_eq!(swapped.unwrap(), 2);
    let blob = s.vault.backup_key("disk-kek", &s.call).unwrap();
    remove(&s);
    assert_eq!(refused(s.vault.restore_key(&blob, &s.call)).status, 400, "swapped private parts come back");
}
