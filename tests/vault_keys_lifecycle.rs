//! Does a key of the embedded vault live, end and come back as one of Azure's: made, imported, changed, listed in pages,
//! deleted, recovered, purged, with Azure's codes and words where it refuses?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use rusqlite::Connection;
use tempfile::TempDir;
use wrapdisk::envelope::{KeyRef, WrapAlg, WrappedDek};
use wrapdisk::secret::Secret;
use wrapdisk::vault::local::{
    AuditFilter, Fail, IdentityKind, KeyAttributes, KeyUpdate, LocalVault, NewKey, Page, Refusal, RsaBits,
};
use wrapdisk::vault::{Call, Denial, KeyInfo, KeyOperation, KeyVault, VaultError};

const DAY: i64 = 86400;

struct Scene {
    dir: TempDir,
    vault: LocalVault,
    call: Call,
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let call = vault.admin("test");
    Scene { dir, vault, call }
}

impl Scene {
    fn make(&self, name: &str) -> KeyInfo {
        self.vault.create_key(name, &small(), &self.call).unwrap()
    }

    fn sql(&self, change: &str) {
        assert_eq!(self.db().execute(change, []).unwrap(), 1, "{change}");
    }

    fn db(&self) -> Connection {
        Connection::open(self.dir.path().join("vault.db")).unwrap()
    }
}

fn small() -> NewKey {
    NewKey { bits: RsaBits::B2048, ..NewKey::default() }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Fail>) -> Refusal {
    match answer {
        Err(Fail::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// Status, outer code, inner code, and Azure's sentence.
fn code(refusal: &Refusal) -> (u16, &str, Option<&str>, &str) {
    (refusal.status, refusal.signature, refusal.inner, &refusal.description)
}

fn key(name: &str) -> KeyRef {
    KeyRef::parse(name).unwrap()
}

fn not_found(name: &str) -> String {
    format!(
        "A key with (name/id) {name} was not found in this key vault. If you recently deleted this key you may be able to \
         recover it using the correct recovery command. For help resolving this issue, please see \
         https://go.microsoft.com/fwlink/?linkid=2125182"
    )
}

#[test]
fn a_key_is_made_as_asked_and_changed_as_asked() {
    let s = scene();
    let new = NewKey {
        exponent: 65539,
        attributes: KeyAttributes { enabled: false, not_before: Some(10), expires: Some(20) },
        operations: Some(vec![KeyOperation::Verify, KeyOperation::Sign, KeyOperation::Sign]),
        tags: BTreeMap::from([("env".into(), "prod".into())]),
        ..small()
    };
    let made = s.vault.create_key("app", &new, &s.call).unwrap();
    assert_eq!((made.bits, made.enabled, made.not_before, made.expires), (2048, false, Some(10), Some(20)));
    assert_eq!(made.operations, [KeyOperation::Verify, KeyOperation::Sign], "each once, as they came");
    assert_eq!((made.tags.len(), made.e.as_slice(), made.n.len()), (1, &[1, 0, 3][..], 256));
    // What is absent stays.
    let change = KeyUpdate { enabled: Some(true), expires: Some(30), ..KeyUpdate::default() };
    let changed = s.vault.update_key(&key("app"), &change, &s.call).unwrap();
    assert_eq!((changed.enabled, changed.not_before, changed.expires), (true, Some(10), Some(30)));
    assert_eq!((&changed.operations, &changed.tags), (&made.operations, &made.tags));
    let change = KeyUpdate {
        operations: Some(vec![KeyOperation::Encrypt]),
        tags: Some(BTreeMap::new()),
        ..KeyUpdate::default()
    };
    let changed = s.vault.update_key(&key("app"), &change, &s.call).unwrap();
    assert_eq!((changed.operations, changed.tags.len()), (vec![KeyOperation::Encrypt], 0));
    // Nothing said: all six, as over REST.
    assert_eq!(s.make("plain").operations, KeyOperation::ALL);
    let record =
        s.vault.audit(&AuditFilter { operation: Some("KeyUpdate".into()), ..Default::default() }).unwrap();
    assert_eq!(record[0].value()["properties"]["change"], "enabled=true, exp=30");
}

#[test]
fn parameters_that_are_none_are_refused() {
    let s = scene();
    let tags = |n: usize, name: usize, value: usize| {
        (0..n).map(|i| (format!("{i:0name$}"), "v".repeat(value))).collect::<BTreeMap<_, _>>()
    };
    let attributes = |expires| KeyAttributes { expires: Some(expires), ..KeyAttributes::default() };
    for new in [
        NewKey { exponent: 3, ..small() },
        NewKey { exponent: 65538, ..small() },
        NewKey { exponent: 1 << 33, ..small() },
        NewKey { attributes: attributes(-1), ..small() },
        NewKey { attributes: attributes(i64::MAX), ..small() },
        NewKey { tags: tags(16, 2, 1), ..small() },
        NewKey { tags: tags(1, 513, 1), ..small() },
        NewKey { tags: tags(1, 1, 257), ..small() },
    ] {
        let refusal = refused(s.vault.create_key("k", &new, &s.call));
        assert_eq!((refusal.status, refusal.signature), (400, "BadParameter"), "{new:?}");
    }
    assert!(s.vault.create_key("k", &NewKey { tags: tags(15, 512, 256), ..small() }, &s.call).is_ok());
    // Into the past is allowed, as at Azure.
    let past = KeyUpdate { expires: Some(1), ..KeyUpdate::default() };
    assert_eq!(s.vault.update_key(&key("k"), &past, &s.call).unwrap().expires, Some(1));
}

#[test]
fn lists_come_in_pages_that_survive_changes() {
    let s = scene();
    for name in ["b", "A", "d", "c", "e"] {
        s.make(name);
    }
    let page = |after: Option<&str>, limit| Page { after: after.map(str::to_owned), limit };
    let names = |page: &Page| {
        let keys = s.vault.list_keys(page, &s.call).unwrap();
        keys.iter().map(|k| k.kid.name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&Page::default()), ["A", "b", "c", "d", "e"]);
    assert_eq!(names(&page(None, Some(2))), ["A", "b"]);
    s.vault.delete_key("b", &s.call).unwrap();
    assert_eq!(names(&page(Some("B"), Some(2))), ["c", "d"], "the last one seen is gone");
    assert_eq!(names(&page(Some("d"), Some(2))), ["e"]);
    assert_eq!(names(&page(Some("e"), Some(2))), Vec::<String>::new());

    let versions: Vec<_> = (0..3).map(|_| s.make("c").kid.version().to_owned()).collect();
    let found = |after: Option<&str>, limit| {
        let found = s.vault.list_versions("c", &page(after, limit), &s.call).unwrap();
        found.iter().map(|k| k.kid.version().to_owned()).collect::<Vec<_>>()
    };
    let all = found(None, None);
    assert_eq!((all.len(), &all[1..]), (4, &versions[..]));
    assert_eq!(found(Some(&all[1]), Some(1)), [all[2].clone()]);
    assert!(s.vault.list_versions("none", &Page::default(), &s.call).unwrap().is_empty(), "as at Azure");
}

#[test]
fn a_deleted_key_is_gone_at_once_and_comes_back_whole() {
    let s = scene();
    let old = s.make("kek");
    let dek = Secret::random().unwrap();
    let wrapped = s.vault.wrap(&old.kid, WrapAlg::RsaOaep256, &dek, &s.call).unwrap();
    let new = s.make("kek");
    let generation = s.vault.policy_generation().unwrap();
    let deleted = s.vault.delete_key("KEK", &s.call).unwrap();
    assert_eq!(deleted.key.kid, new.kid, "the latest version");
    assert_eq!(deleted.scheduled_purge - deleted.deleted, 90 * DAY);
    assert!(s.vault.policy_generation().unwrap() > generation);

    let refusal = refused(s.vault.get_key(&key("kek"), &s.call));
    assert_eq!(code(&refusal), (404, "KeyNotFound", None, not_found("kek").as_str()));
    let Err(VaultError::Denied(Denial::Deleted, message)) = s.vault.unwrap(&wrapped, &s.call) else {
        panic!("a deleted key still unwraps");
    };
    assert!(message.contains("wrapdisk key recover kek"), "{message}");
    assert!(s.vault.list_keys(&Page::default(), &s.call).unwrap().is_empty());
    assert!(s.vault.list_versions("kek", &Page::default(), &s.call).unwrap().is_empty());
    let taken = "Key kek is currently in a deleted but recoverable state, and its name cannot be reused; in this state, the \
                 key can only be recovered or purged.";
    let refusal = refused(s.vault.create_key("KEK", &small(), &s.call));
    assert_eq!(code(&refusal), (409, "Conflict", Some("ObjectIsDeletedButRecoverable"), taken));
    for refusal in [
        refused(s.vault.delete_key("kek", &s.call)),
        refused(s.vault.rotate_key("kek", &s.call)),
        refused(s.vault.update_key(&key("kek"), &KeyUpdate::default(), &s.call)),
        refused(s.vault.backup_key("kek", &s.call)),
        refused(s.vault.rotation_policy("kek", &s.call)),
    ] {
        assert_eq!((refusal.status, refusal.signature), (404, "KeyNotFound"), "{refusal:?}");
    }
    let shown = s.vault.get_deleted_key("kek", &s.call).unwrap();
    assert_eq!((shown.key.kid.as_str(), shown.deleted), (new.kid.as_str(), deleted.deleted));
    let listed = s.vault.list_deleted_keys(&Page::default(), &s.call).unwrap();
    assert_eq!(listed.iter().map(|d| d.key.kid.name()).collect::<Vec<_>>(), ["kek"]);

    assert_eq!(s.vault.recover_key("kek", &s.call).unwrap().kid, new.kid);
    assert!(s.vault.unwrap(&wrapped, &s.call).unwrap().ct_eq(&dek), "both versions are back");
    let refusal = refused(s.vault.recover_key("kek", &s.call));
    assert_eq!(code(&refusal), (404, "KeyNotFound", None, not_found("kek").as_str()));
    let refusal = refused(s.vault.get_deleted_key("kek", &s.call));
    assert_eq!(code(&refusal), (404, "KeyNotFound", None, "Deleted Key not found: kek"));
}

#[test]
fn purge_leaves_nothing_of_the_key_in_the_files() {
    let s = scene();
    s.make("other");
    let old = s.make("kek");
    let refusal = refused(s.vault.purge_key("kek", &s.call));
    assert_eq!(
        code(&refusal),
        (404, "KeyNotFound", None, "Deleted Key not found: kek"),
        "only what is deleted"
    );
    let blobs: Vec<Vec<u8>> = {
        let db = s.db();
        let sealed = "SELECT wrapping FROM key WHERE name = 'kek' UNION ALL
                      SELECT private FROM key_version v JOIN key k ON k.id = v.key WHERE k.name = 'kek'";
        let mut query = db.prepare(sealed).unwrap();
        query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(blobs.len(), 2);
    let in_files = |needle: &[u8]| {
        ["vault.db", "vault.db-wal"].iter().any(|file| {
            let bytes = std::fs::read(s.dir.path().join(file)).unwrap();
            bytes.windows(needle.len()).any(|w| w == needle)
        })
    };
    // The judge sees what is there. (A long blob goes over several pages: its first bytes lie in one.)
    assert!(blobs.iter().all(|b| in_files(&b[..64])), "the search finds nothing where there is something");
    s.vault.delete_key("kek", &s.call).unwrap();
    s.vault.purge_key("kek", &s.call).unwrap();
    assert!(!blobs.iter().any(|b| in_files(&b[..64])), "a purged key is still in the files");
    assert_eq!(std::fs::metadata(s.dir.path().join("vault.db-wal")).unwrap().len(), 0);
    // The name is free, and a new key of it is another key.
    assert_ne!(s.make("kek").kid, old.kid);
    assert_eq!(refused(s.vault.get_key(&KeyRef::from(&old.kid), &s.call)).status, 404);
    assert_eq!(s.vault.list_keys(&Page::default(), &s.call).unwrap().len(), 2);
    s.vault.verify_audit().unwrap();
}

#[test]
fn purge_protection_holds_until_the_schedule_and_is_never_taken_back() {
    let s = scene();
    s.make("kek");
    assert_eq!(s.vault.settings().unwrap().recovery_level(), "Recoverable+Purgeable");
    let settings = s.vault.set_retention(Some(7), None, &s.call).unwrap();
    assert_eq!((settings.retention_days, settings.recovery_level()), (7, "CustomizedRecoverable+Purgeable"));
    for days in [0, 6, 91] {
        assert_eq!(refused(s.vault.set_retention(Some(days), None, &s.call)).status, 400, "{days}");
    }
    let settings = s.vault.set_retention(None, Some(true), &s.call).unwrap();
    assert_eq!(settings.recovery_level(), "CustomizedRecoverable");
    assert_eq!(refused(s.vault.set_retention(None, Some(false), &s.call)).status, 400);
    let undo = s.db().execute("UPDATE vault SET purge_protection = 0", []);
    assert!(undo.is_err(), "the schema says it as well");

    let deleted = s.vault.delete_key("kek", &s.call).unwrap();
    assert_eq!(deleted.scheduled_purge - deleted.deleted, 7 * DAY);
    let refusal = refused(s.vault.purge_key("kek", &s.call));
    let words = "Operation \"purge\" is not allowed because purge protection is enabled for this vault. Key Vault service will \
                 automatically purge it after the retention period has passed.";
    assert_eq!(code(&refusal), (403, "Forbidden", None, words));
    // Not before its time, and then by itself.
    assert_eq!(s.vault.purge_overdue(&s.call).unwrap(), 0);
    s.sql("UPDATE key SET scheduled_purge = 1 WHERE name = 'kek'");
    let reopened = LocalVault::open(s.dir.path()).unwrap();
    assert!(reopened.list_deleted_keys(&Page::default(), &s.call).unwrap().is_empty(), "purged at open");
    s.make("kek");
    let purges = AuditFilter { operation: Some("KeyPurge".into()), ..Default::default() };
    let statuses: Vec<_> = s
        .vault
        .audit(&purges)
        .unwrap()
        .iter()
        .map(|r| r.value()["properties"]["httpStatusCode"].clone())
        .collect();
    assert_eq!(statuses, [403, 200]);
}

#[test]
fn what_is_overdue_goes_and_what_is_not_stays() {
    let s = scene();
    for name in ["a", "b", "c"] {
        s.make(name);
        s.vault.delete_key(name, &s.call).unwrap();
    }
    s.sql("UPDATE key SET scheduled_purge = 1 WHERE name = 'a'");
    s.sql("UPDATE key SET scheduled_purge = 1 WHERE name = 'c'");
    let before = s.vault.verify_audit().unwrap().seq;
    assert_eq!(s.vault.purge_overdue(&s.call).unwrap(), 2);
    assert_eq!(s.vault.verify_audit().unwrap().seq, before + 2, "one record each");
    assert_eq!(s.vault.purge_overdue(&s.call).unwrap(), 0);
    assert_eq!(s.vault.verify_audit().unwrap().seq, before + 2, "nothing to do leaves no record");
    assert_eq!(s.vault.get_deleted_key("b", &s.call).unwrap().key.kid.name(), "b");
}

#[test]
fn whoever_has_no_grant_learns_nothing() {
    let s = scene();
    s.make("kek");
    let oid = s.vault.create_identity("eve", IdentityKind::User, &s.call).unwrap();
    let eve = Call::new(oid, "look around");
    for name in ["kek", "none"] {
        for refusal in [
            refused(s.vault.get_key(&key(name), &eve)),
            refused(s.vault.create_key(name, &small(), &eve)),
            refused(s.vault.delete_key(name, &eve)),
            refused(s.vault.get_deleted_key(name, &eve)),
            refused(s.vault.recover_key(name, &eve)),
            refused(s.vault.purge_key(name, &eve)),
            refused(s.vault.backup_key(name, &eve)),
            refused(s.vault.restore_key(b"", &eve)),
            refused(s.vault.rotate_key(name, &eve)),
            refused(s.vault.rotation_policy(name, &eve)),
            refused(s.vault.list_versions(name, &Page::default(), &eve)),
        ] {
            assert_eq!(code(&refusal).0, 403);
            assert_eq!(refusal.inner, Some("ForbiddenByPolicy"));
            let words = "does not have keys ";
            assert!(refusal.description.starts_with("The user, group or application 'appid="), "{refusal:?}");
            assert!(refusal.description.contains(&format!(";oid={oid};iss=https://")), "{refusal:?}");
            assert!(refusal.description.contains(words), "{refusal:?}");
            assert!(
                refusal.description.contains("on key vault 'default;location=local'. For help"),
                "{refusal:?}"
            );
        }
    }
    assert_eq!(s.vault.list_keys(&Page::default(), &s.call).unwrap().len(), 1, "and nothing was done");
}

#[test]
fn no_unwrap_succeeds_after_the_record_of_its_keys_end() {
    let s = scene();
    let info = s.make("kek");
    let dek = Secret::random().unwrap();
    let wrapped = s.vault.wrap(&info.kid, WrapAlg::RsaOaep256, &dek, &s.call).unwrap();
    let handles: Vec<_> = (0..3).map(|_| LocalVault::open(s.dir.path()).unwrap()).collect();
    let toggling = std::sync::atomic::AtomicBool::new(true);
    let order = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        for vault in &handles {
            scope.spawn(|| {
                while toggling.load(order) {
                    let _ = vault.unwrap(&wrapped, &s.call);
                }
            });
        }
        for _ in 0..15 {
            for enabled in [false, true] {
                s.vault.set_enabled(&key("kek"), enabled, &s.call).unwrap();
            }
            s.vault.delete_key("kek", &s.call).unwrap();
            s.vault.recover_key("kek", &s.call).unwrap();
        }
        toggling.store(false, order);
    });
    // RSA runs between two looks at the rows; the audit says in which order things were decided.
    let (mut usable, mut good, mut bad) = (true, 0, 0);
    for record in s.vault.audit(&AuditFilter::default()).unwrap() {
        let value = record.value();
        let change = value["properties"]["change"].as_str().unwrap_or_default().to_owned();
        match (
            value["operationName"].as_str().unwrap(),
            value["properties"]["httpStatusCode"].as_u64().unwrap(),
        ) {
            ("KeyUpdate", 200) => usable = change == "enabled=true",
            ("KeyDelete", 200) => usable = false,
            ("KeyRecover", 200) => usable = true,
            ("KeyUnwrap", 200) => {
                assert!(usable, "record {} unwraps with a key that was out of use", record.seq);
                good += 1;
            }
            ("KeyUnwrap", _) => bad += 1,
            _ => {}
        }
    }
    assert!(good > 0 && bad > 0, "{good} good, {bad} refused: nothing raced");
    s.vault.verify_audit().unwrap();
}

#[test]
fn a_key_of_schema_1_gets_a_wrapping_key_and_opens() {
    let s = scene();
    let info = s.make("kek");
    let dek = Secret::random().unwrap();
    let wrapped = s.vault.wrap(&info.kid, WrapAlg::RsaOaep256, &dek, &s.call).unwrap();
    drop(s.vault);
    // As the first release left it: the private key directly under the root key.
    back_to_schema_1(s.dir.path(), info.kid.version());
    let vault = LocalVault::open(s.dir.path()).unwrap();
    let back = vault.unwrap(&WrappedDek { ..wrapped }, &s.call).unwrap();
    assert!(back.ct_eq(&dek));
    let db = Connection::open(s.dir.path().join("vault.db")).unwrap();
    let whole: bool = db.query_row("SELECT wrapping IS NOT NULL FROM key", [], |row| row.get(0)).unwrap();
    assert!(whole);
}

/// Opens the blobs as their format says (see local/seal.rs), with nothing of the product.
fn back_to_schema_1(dir: &std::path::Path, version: &str) {
    use chacha20poly1305::aead::{Aead, KeyInit, Payload};
    use chacha20poly1305::{XChaCha20Poly1305, XNonce};
    let db = Connection::open(dir.join("vault.db")).unwrap();
    let text = |sql: &str| db.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    let blob = |sql: &str| db.query_row(sql, [], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    let id = |text: String| *uuid::Uuid::parse_str(&text).unwrap().as_bytes();
    let (vault, key) = (id(text("SELECT id FROM vault")), id(text("SELECT id FROM key")));
    let cipher = |secret: &[u8]| {
        let mut sub = [0; 32];
        hkdf::Hkdf::<sha2::Sha256>::new(None, secret).expand(b"wrapdisk/vault/seal/v1", &mut sub).unwrap();
        XChaCha20Poly1305::new(&sub.into())
    };
    let aad = |place: &str| [&[0, 0, 0, 1, 0, 0, 0, 1][..], &vault, &key, place.as_bytes()].concat();
    let nonce = |blob: &[u8]| XNonce::from(<[u8; 24]>::try_from(&blob[8..32]).unwrap());
    let open = |secret: &[u8], place: &str, blob: &[u8]| {
        let payload = Payload { msg: &blob[32..], aad: &aad(place) };
        cipher(secret).decrypt(&nonce(blob), payload).unwrap()
    };
    let root = std::fs::read(dir.join("root.key")).unwrap();
    let wrapping = open(&root, "wrapping", &blob("SELECT wrapping FROM key"));
    let private = open(&wrapping, version, &blob("SELECT private FROM key_version"));
    let header = [&[0, 0, 0, 1, 0, 0, 0, 1][..], &[9; 24]].concat();
    let payload = Payload { msg: &private, aad: &aad(version) };
    let sealed = [&header[..], &cipher(&root).encrypt(&nonce(&header), payload).unwrap()].concat();
    db.execute("UPDATE key_version SET private = ?1", [sealed]).unwrap();
    db.execute("UPDATE key SET wrapping = NULL", []).unwrap();
}
