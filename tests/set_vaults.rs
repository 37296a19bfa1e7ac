//! Do the vaults elsewhere that are configured here stay as they were given, and stay at all while a set needs them?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use uuid::Uuid;
use wrapdisk::envelope::Kid;
use wrapdisk::error::ErrorKind;
use wrapdisk::set::{NewSet, NewVault, SetStore};
use wrapdisk::vault::{Credential, Endpoint, SecretSource};

fn demo(name: &str) -> NewVault {
    NewVault {
        name: name.into(),
        endpoint: Endpoint::parse("https://demo.vault.azure.net/").unwrap(),
        aliases: vec![],
        credential: Credential::ManagedIdentity { client_id: None },
        ca_file: None,
        authority: None,
        local_server: false,
    }
}

fn set_in(vault: Uuid) -> NewSet {
    let active = Kid::parse("https://demo.vault.azure.net/keys/kek/0a").unwrap();
    NewSet {
        name: "prod".into(),
        vault,
        key: active.versionless().into(),
        active,
        pinned: false,
        identity: Uuid::nil(),
    }
}

#[test]
fn an_entry_comes_back_as_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let store = SetStore::open(dir.path()).unwrap();
    let secret = SecretSource::File("/etc/wrapdisk/secret".into());
    for (name, credential) in [
        ("a", Credential::ManagedIdentity { client_id: Some("0-a".into()) }),
        ("b", Credential::WorkloadIdentity { tenant: Some("t".into()), client_id: None }),
        ("c", Credential::ClientSecret { tenant: "t".into(), client_id: "c".into(), secret }),
        ("d", Credential::AzureCli { tenant: None }),
    ] {
        let new = NewVault {
            aliases: vec!["Old.example:443".into(), "10.0.0.1:8443".into()],
            credential,
            ca_file: Some(PathBuf::from("/etc/ca \u{e9}.pem")),
            authority: Some(Endpoint::parse("https://login.example").unwrap()),
            local_server: true,
            ..demo(name)
        };
        let added = store.add_vault(&new).unwrap();
        assert_eq!(added.aliases, ["old.example", "10.0.0.1:8443"]);
        assert_eq!(SetStore::open(dir.path()).unwrap().vault_by_name(&name.to_uppercase()).unwrap(), added);
    }
    let names: Vec<_> = store.vaults().unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[test]
fn a_name_is_taken_once_and_the_embedded_vaults_never() {
    let dir = tempfile::tempdir().unwrap();
    let store = SetStore::open(dir.path()).unwrap();
    store.add_vault(&demo("cloud")).unwrap();
    assert_eq!(store.add_vault(&demo("CLOUD")).unwrap_err().kind(), ErrorKind::Exists);
    for bad in ["local", "LOCAL", "", "a b", "a/b", &"x".repeat(128)] {
        assert_eq!(store.add_vault(&demo(bad)).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad:?}");
    }
    let alias = NewVault { aliases: vec!["https://x".into()], ..demo("other") };
    assert_eq!(store.add_vault(&alias).unwrap_err().kind(), ErrorKind::InvalidInput);
    let e = store.vault_by_name("nope").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert!(e.chain().ends_with("known: cloud"), "{e:?}");
}

#[test]
fn a_vault_that_a_set_needs_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = SetStore::open(dir.path()).unwrap();
    let (needed, idle) = (store.add_vault(&demo("needed")).unwrap(), store.add_vault(&demo("idle")).unwrap());
    store.create(&set_in(needed.id)).unwrap();
    let e = store.remove_vault("needed").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert!(e.chain().contains("in use by the sets: prod"), "{e:?}");
    assert_eq!(store.remove_vault("idle").unwrap(), idle);
    assert_eq!(store.vaults().unwrap(), [needed]);
}

#[test]
fn a_file_of_the_first_schema_keeps_its_sets() {
    let dir = tempfile::tempdir().unwrap();
    let set = SetStore::open(dir.path()).unwrap().create(&set_in(Uuid::new_v4())).unwrap();
    let file = dir.path().join("sets.db");
    // As the first release wrote it.
    let first = "DROP TABLE vault_entry; PRAGMA user_version = 1;";
    let since_then = ["encryption_type", "previous", "rotation_due", "last_rotation", "trouble", "policy"]
        .map(|column| format!("ALTER TABLE disk_set DROP COLUMN {column};"));
    let first = format!("{first} {} ALTER TABLE container DROP COLUMN trouble;", since_then.concat());
    Connection::open(&file).unwrap().execute_batch(&first).unwrap();
    let store = SetStore::open(dir.path()).unwrap();
    assert_eq!(store.by_name("prod").unwrap(), set);
    store.add_vault(&demo("cloud")).unwrap();
}

#[test]
fn an_entry_that_was_tampered_with_is_damaged() {
    for (column, value) in [
        ("endpoint", "http://demo.vault.azure.net"),
        ("aliases", r#"["a/b"]"#),
        ("aliases", "{}"),
        ("credential", r#"{"kind":"client-secret","tenant":"t","client_id":"c","secret":"plain"}"#),
        ("credential", r#"{"kind":"azure-cli","tenant":null,"more":1}"#),
        ("authority", "http://login.example"),
        ("id", "x"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = SetStore::open(dir.path()).unwrap();
        store.add_vault(&demo("cloud")).unwrap();
        change(&dir.path().join("sets.db"), &format!("UPDATE vault_entry SET {column} = ?1"), value);
        let e = store.vaults().unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Damaged, "{column} = {value}: {e:?}");
        assert!(e.chain().contains(column), "{e:?}");
    }
}

fn change(file: &Path, sql: &str, value: &str) {
    assert_eq!(Connection::open(file).unwrap().execute(sql, [value]).unwrap(), 1);
}
