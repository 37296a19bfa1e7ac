//! Question: does every use of a key by the program leave a record in the vault that says which key, in whose name, for
//! which disk and why, also when it was refused; and does what uses no key leave none?
//!
//! Reads `vault.db` as an auditor does: the file itself, read-only, without the product's code.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cryptsetup_support;
mod support;

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use support::Home;

/// The records after number `after`.
fn records(home: &Home, after: usize) -> Vec<Value> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = Connection::open_with_flags(home.path("home/state/vault.db"), flags).unwrap();
    let mut query = db.prepare("SELECT record FROM audit ORDER BY seq").unwrap();
    let all = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
    all.skip(after).map(|record| serde_json::from_str(&record.unwrap()).unwrap()).collect()
}

/// Operation, outcome, kid, identity, and the reason (without program and process number).
fn told(record: &Value) -> [String; 5] {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let properties = &record["properties"];
    let client = text(&properties["clientInfo"]);
    let reason = client.splitn(3, ' ').nth(2).unwrap_or_default().to_owned();
    [
        text(&record["operationName"]),
        text(&record["resultSignature"]),
        text(&properties["id"]),
        text(&record["identity"]["claim"]["oid"]),
        reason,
    ]
}

/// What the records of `run` say.
fn trail(home: &Home, run: impl FnOnce()) -> Vec<[String; 5]> {
    let before = records(home, 0).len();
    run();
    records(home, before).iter().map(told).collect()
}

fn row(operation: &str, outcome: &str, (kid, identity): (&str, &str), reason: String) -> [String; 5] {
    [operation.into(), outcome.into(), kid.into(), identity.into(), reason]
}

/// As a reason names the disk and its set.
fn which(home: &Home) -> String {
    format!("disk={} set=default", home.json(["info", "vm.wd"])["uuid"].as_str().unwrap())
}

#[test]
fn every_use_of_a_key_says_which_disk_it_was_for_in_whose_name_and_why() {
    let home = Home::ready();
    let set = home.json(["set", "show", "default"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let kid = text(&set["properties"]["activeKey"]["keyUrl"]);
    let by = (kid.as_str(), text(&set["identity"]["principalId"]));
    let by = (by.0, by.1.as_str());
    let (disk, place) = (home.text("vm.wd"), home.text("vm.wd.mnt"));

    // A wrap is proven by an unwrap.
    let made = trail(&home, || drop(home.create("vm.wd", "4M", &[])));
    let create = format!("create {disk}");
    assert_eq!(made, [row("KeyWrap", "OK", by, create.clone()), row("KeyUnwrap", "OK", by, create)]);

    let unwrap = |reason: String| [row("KeyUnwrap", "OK", by, reason)];
    let which = which(&home);
    let mounted = trail(&home, || home.mount("vm.wd", &[]).unmount());
    assert_eq!(mounted, unwrap(format!("mount {disk} on {place} {which}")));
    let checked = trail(&home, || drop(home.wrapdisk(["check", "vm.wd"]).ok()));
    assert_eq!(checked, unwrap(format!("check {disk}")));
    let given = trail(&home, || {
        cryptsetup_support::volume_key(&home, "vm.wd");
    });
    assert_eq!(given, unwrap(format!("volume-key {disk} {which}")));
    let sealed = trail(&home, || drop(home.wrapdisk(["seal", "vm.wd"]).ok()));
    assert_eq!(sealed, unwrap(format!("seal {disk} {which}")));

    let looked = trail(&home, || {
        home.wrapdisk(["info", "vm.wd"]).ok();
        home.wrapdisk(["status"]).ok();
        home.wrapdisk(["set", "show", "default"]).ok();
    });
    assert_eq!(looked, Vec::<[String; 5]>::new());
}

#[test]
fn a_refused_use_is_recorded_as_well() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let set = home.json(["set", "show", "default"]);
    let kid = set["properties"]["activeKey"]["keyUrl"].as_str().unwrap();
    let by = (kid, set["identity"]["principalId"].as_str().unwrap());
    let (disk, place) = (home.text("vm.wd"), home.text("vm.wd.mnt"));
    let which = which(&home);
    std::fs::create_dir(place).unwrap();
    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    let refused = trail(&home, || drop(home.wrapdisk(["mount", disk, place]).fails(3)));
    assert_eq!(refused, [row("KeyUnwrap", "Forbidden", by, format!("mount {disk} on {place} {which}"))]);
    let refused = trail(&home, || drop(home.wrapdisk(["volume-key", disk, "--yes", "-o", "key"]).fails(3)));
    assert_eq!(refused, [row("KeyUnwrap", "Forbidden", by, format!("volume-key {disk} {which}"))]);
    assert!(!home.path("key").exists());
}

#[test]
fn a_disk_that_is_opened_without_the_vault_is_recorded_there_all_the_same() {
    let home = Home::ready();
    let disk = home.create("vm.wd", "4M", &[]);
    let disk = disk.to_str().unwrap();
    let passphrase = cryptsetup_support::put(&home, "passphrase", b"the spare key");
    let key = cryptsetup_support::volume_key(&home, "vm.wd");
    cryptsetup_support::add_slot(disk, key, passphrase, &cryptsetup_support::CHEAP);
    let uuid = home.json(["info", disk])["uuid"].as_str().unwrap().to_owned();

    let opened = trail(&home, || home.mount("vm.wd", &["--passphrase-file", passphrase]).unmount());
    assert_eq!(opened.len(), 1, "{opened:?}");
    let [operation, outcome, subject, _, reason] = &opened[0];
    assert_eq!((operation.as_str(), outcome.as_str()), ("DiskRecoveryOpen", "OK"));
    assert!(subject.ends_with(&format!("/disks/{uuid}")), "{subject}");
    assert_eq!(*reason, format!("mount {disk} on {}", home.text("vm.wd.mnt")));

    let wrong = cryptsetup_support::put(&home, "wrong", b"not the spare key");
    let place = home.text("vm.wd.mnt");
    let refused =
        trail(&home, || drop(home.wrapdisk(["mount", disk, place, "--passphrase-file", wrong]).fails(3)));
    assert_eq!(refused, Vec::<[String; 5]>::new(), "nothing was opened, and the vault was not asked");
}

#[test]
fn the_process_of_the_record_is_the_mounts() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let before = records(&home, 0).len();
    let mount = home.mount("vm.wd", &[]);
    let [record] = <[Value; 1]>::try_from(records(&home, before)).unwrap();
    let client = record["properties"]["clientInfo"].as_str().unwrap();
    assert!(client.contains(&format!(" pid={} ", mount.pid)), "{client}");
    mount.unmount();
}

#[test]
fn without_a_record_there_is_no_mount() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    std::fs::create_dir(home.path("place")).unwrap();
    let before = records(&home, 0).len();
    // Nobody may write to the vault while this is open.
    let db = Connection::open(home.path("home/state/vault.db")).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = home.wrapdisk(["mount", "vm.wd", home.text("place")]).fails(4);
    db.execute_batch("ROLLBACK").unwrap();
    drop(db);
    assert!(
        refused.contains("vault.db") || refused.contains("locked") || refused.contains("busy"),
        "{refused}"
    );
    assert!(wrapdisk::fuse::mountpoint::mounted_at(Path::new(home.text("place"))).unwrap().is_none());
    assert_eq!(records(&home, 0).len(), before);
}
