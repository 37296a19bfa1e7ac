//! Does a set come back exactly as it was made, and is every bad one refused with a message that helps?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;
use wrapdisk::dirs::Dirs;
use wrapdisk::envelope::Kid;
use wrapdisk::error::ErrorKind;
use wrapdisk::set::{MAX_NAME, NewSet, SetStore, first_use};

const VERSION: &str = "0123456789abcdef0123456789abcdef";

fn new_set(name: &str) -> NewSet {
    let vault = Uuid::new_v4();
    let active = Kid::local(&vault, "disk-kek", VERSION).unwrap();
    let key = active.versionless().to_owned();
    NewSet { name: name.into(), vault, key, active, pinned: false, identity: Uuid::new_v4() }
}

fn store() -> (TempDir, SetStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SetStore::open(&dir.path().join("state")).unwrap();
    (dir, store)
}

#[test]
fn a_set_survives_reopening_with_every_field() {
    let (dir, store) = store();
    let new = NewSet { pinned: true, ..new_set("Prod.eu_1-a") };
    let made = store.create(&new).unwrap();
    drop(store);

    let store = SetStore::open(&dir.path().join("state")).unwrap();
    let found = store.by_name("Prod.eu_1-a").unwrap();
    assert_eq!(found, made);
    assert_eq!(
        (&found.name, found.vault, &found.key, &found.active, found.pinned, found.identity),
        (&new.name, new.vault, &new.key, &new.active, new.pinned, new.identity)
    );
    assert_eq!(store.by_id(made.id).unwrap(), Some(made));
    assert_eq!(store.by_id(Uuid::new_v4()).unwrap(), None);
}

#[test]
fn sets_are_listed_by_name_without_regard_to_case() {
    let (_dir, store) = store();
    assert_eq!(store.list().unwrap(), []);
    for name in ["b", "C", "a"] {
        store.create(&new_set(name)).unwrap();
    }
    let names: Vec<_> = store.list().unwrap().into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["a", "b", "C"]);
    assert_eq!(store.by_name("c").unwrap().name, "C");
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let (dir, store) = store();
    let file = dir.path().join("state/sets.db");
    let none = store.by_name("prod").unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
    assert_eq!(none.chain(), format!("set \"prod\": no such set in {}; known: none", file.display()));

    store.create(&new_set("test")).unwrap();
    store.create(&new_set("default")).unwrap();
    let some = store.by_name("prod").unwrap_err();
    assert_eq!(
        some.chain(),
        format!("set \"prod\": no such set in {}; known: default, test", file.display())
    );
    assert_eq!(some.advice(), Some("see what there is: wrapdisk set list"));
}

#[test]
fn a_name_is_taken_in_any_case() {
    let (_dir, store) = store();
    let first = store.create(&new_set("prod")).unwrap();
    let again = store.create(&new_set("PROD")).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Exists);
    assert_eq!(again.chain(), "set \"PROD\": a set of this name exists (case does not count)");
    assert_eq!(store.list().unwrap(), [first]);
}

#[test]
fn a_name_that_a_token_or_a_shell_cannot_carry_is_refused() {
    let (_dir, store) = store();
    let too_long = "n".repeat(MAX_NAME + 1);
    for bad in ["", "a/b", "a b", "-x", ".x", "_x", "a\n", "n\u{e4}me", "a\"b", &too_long] {
        let e = store.create(&new_set(bad)).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidInput, "{bad:?}");
        assert!(e.chain().starts_with("set name: found \""), "{bad:?}: {e}");
    }
    assert_eq!(
        store.create(&new_set("a b")).unwrap_err().chain(),
        "set name: found \"a b\", allowed 1 to 80 of [A-Za-z0-9._-], the first a letter or digit"
    );
    assert_eq!(store.list().unwrap(), []);
}

#[test]
fn the_longest_name_still_makes_a_valid_token_label() {
    let (_dir, store) = store();
    let set = store.create(&new_set(&"n".repeat(MAX_NAME))).unwrap();
    let label = set.token_label();
    assert_eq!(label, format!("{}/{}", set.name, set.id));
    assert!(label.len() <= 128, "{}", label.len());
    assert!(label.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b)), "{label}");
}

#[test]
fn an_active_key_that_is_no_version_of_the_sets_key_is_refused() {
    let (_dir, store) = store();
    let new = NewSet { key: "https://demo.vault.example/keys/other".into(), ..new_set("prod") };
    let e = store.create(&new).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidInput);
    assert_eq!(
        e.chain(),
        format!(
            "set \"prod\": active key: found \"{}\", allowed a version of \"https://demo.vault.example/keys/other\"",
            new.active
        )
    );
}

#[test]
fn the_json_has_the_shape_of_set_show() {
    let (_dir, store) = store();
    let follows = store.create(&new_set("follows")).unwrap();
    let mut expected = json!({
        "name": "follows",
        "id": follows.id.to_string(),
        "identity": {
            "type": "SystemAssigned", "principalId": follows.identity.to_string(), "tenantId": null
        },
        "properties": {
            "activeKey": {
                "sourceVault": { "id": follows.vault.to_string() },
                "keyUrl": format!("https://{}.vault.localhost/keys/disk-kek/{VERSION}", follows.vault)
            },
            "keyReference": format!("https://{}.vault.localhost/keys/disk-kek", follows.vault),
            "previousKeys": [],
            "encryptionType": "EncryptionAtRestWithCustomerKey",
            "rotationToLatestKeyVersionEnabled": true,
            "lastKeyRotationTimestamp": null,
            "autoKeyRotationError": null,
            "revocationPolicy": {
                "probeInterval": "60s", "outageGrace": "24h", "authGrace": "1h", "firewallGrace": "15m",
                "freezeMax": "10m", "shutdownWindow": "0", "recoveryMounts": true
            },
            "provisioningState": "Succeeded"
        }
    });
    assert_eq!(follows.to_json(), expected);

    let pinned = wrapdisk::set::Set { pinned: true, ..follows.clone() };
    expected["properties"]["rotationToLatestKeyVersionEnabled"] = json!(false);
    expected["properties"]["keyReference"] = json!(follows.active.as_str());
    assert_eq!(pinned.to_json(), expected);
}

#[test]
fn a_set_named_default_in_any_case_is_the_default_set() {
    let home = tempfile::tempdir().unwrap();
    let dirs = Dirs::under(home.path());
    let theirs = SetStore::open(&dirs.state).unwrap().create(&new_set("Default")).unwrap();
    // Names have no case: making "default" as well would fail, now and at every later use.
    let (access, made) = first_use::ensure(&dirs).unwrap();
    assert!(made.is_none());
    assert_eq!(access.sets.by_name(first_use::DEFAULT_SET).unwrap(), theirs);
}
