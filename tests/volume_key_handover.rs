//! The one command that gives a key away: is the file private, is the use in the audit, and does a failure leave nothing?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cryptsetup_support;
mod support;

use std::os::unix::fs::PermissionsExt;

use cryptsetup_support::{CHEAP, add_slot, cryptsetup, put, volume_key};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use support::Home;

/// The audit's records of one operation, oldest first.
fn audited(home: &Home, operation: &str) -> Vec<Value> {
    let path = home.path("home/state/vault.db");
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut query = db.prepare("SELECT record FROM audit ORDER BY seq").unwrap();
    let records = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let records = records.map(|r| serde_json::from_str::<Value>(&r.unwrap()).unwrap());
    records.filter(|r| r["operationName"] == operation).collect()
}

#[test]
fn the_file_is_private_and_new_and_holds_the_key() {
    let home = Home::ready();
    home.create("a.wd", "4M", &[]);
    let file = volume_key(&home, "a.wd");
    let meta = std::fs::metadata(file).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o7777), (64, 0o400));
    let key = std::fs::read(file).unwrap();

    let said = home.wrapdisk(["volume-key", "a.wd", "--yes", "--output", file]).fails(1);
    assert_eq!(said, format!("wrapdisk: {file}: create: File exists (os error 17)"));
    assert_eq!(std::fs::read(file).unwrap(), key);

    // A mounted disk has the same one, by each of its names.
    let uuid = home.json(["info", "a.wd"])["uuid"].as_str().unwrap().to_owned();
    let mount = home.mount("a.wd", &[]);
    for (n, name) in ["a.wd", "a.wd.mnt", &uuid].into_iter().enumerate() {
        let again = home.text(&format!("{n}.vk"));
        home.wrapdisk(["volume-key", name, "--yes", "--output", again]).ok();
        assert_eq!(std::fs::read(again).unwrap(), key, "{name}");
    }
    mount.unmount();
}

#[test]
fn each_use_is_in_the_audit_with_what_it_was_for() {
    let home = Home::ready();
    let disk = home.create("a.wd", "4M", &[]).display().to_string();
    let before = audited(&home, "KeyUnwrap").len();
    volume_key(&home, "a.wd");
    let records = audited(&home, "KeyUnwrap");
    assert_eq!(records.len(), before + 1);
    let record = records.last().unwrap();
    let client = record["properties"]["clientInfo"].as_str().unwrap();
    assert!(client.contains(&format!(" volume-key {disk} disk=")), "{client}");
    let kid = home.json(["info", "a.wd"])["tokens"][0]["kid"].as_str().unwrap().to_owned();
    assert_eq!(record["properties"]["id"], kid.as_str());
    assert_eq!(record["properties"]["httpStatusCode"], 200);
}

/// A passphrase asks no vault, and is in its audit all the same where there is one (RULINGS 27).
#[test]
fn by_passphrase_it_is_the_same_key_and_audited_as_a_recovery() {
    let home = Home::ready();
    let disk = home.create("a.wd", "4M", &[]);
    let key = volume_key(&home, "a.wd");
    let p = put(&home, "p", b"words");
    add_slot(disk.to_str().unwrap(), key, p, &CHEAP);
    let by_passphrase = |home: &Home, out: &str, file: &str| {
        home.wrapdisk(["volume-key", "a.wd", "--yes", "--passphrase-file", file, "--output", out])
    };
    by_passphrase(&home, "again.vk", p).ok();
    assert_eq!(std::fs::read(home.path("again.vk")).unwrap(), std::fs::read(key).unwrap());
    let uuid = home.json(["info", "a.wd"])["uuid"].as_str().unwrap().to_owned();
    let records = audited(&home, "DiskRecoveryOpen");
    assert_eq!(records.len(), 1, "{records:?}");
    let text = records[0].to_string();
    assert!(text.contains(&uuid) && text.contains(&format!("volume-key {}", disk.display())), "{text}");

    let said = by_passphrase(&home, "wrong.vk", put(&home, "q", b"word")).fails(3);
    assert_eq!(said, format!("wrapdisk: {}: no keyslot opens with this passphrase", disk.display()));
    assert!(!home.path("wrong.vk").exists(), "a failure left a file");
    assert_eq!(audited(&home, "DiskRecoveryOpen").len(), 1);
}

#[test]
fn a_denied_key_leaves_no_file_and_a_record_of_the_refusal() {
    let home = Home::ready();
    home.create("a.wd", "4M", &[]);
    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    let said = home.wrapdisk(["volume-key", "a.wd", "--yes", "--output", "a.vk"]).fails(3);
    assert!(said.contains("disabled"), "{said}");
    assert!(!home.path("a.vk").exists());
    let refusal = audited(&home, "KeyUnwrap").pop().unwrap();
    assert_eq!(refusal["properties"]["httpStatusCode"], 403);
    home.wrapdisk(["key", "enable", "disk-kek"]).ok();
    let key = volume_key(&home, "a.wd");
    let open =
        ["open", "--test-passphrase", "--volume-key-file", key, "--key-size", "512", home.text("a.wd")];
    cryptsetup(open).ok();
}
