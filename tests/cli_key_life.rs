//! Do the commands of a key's life do what they say: attributes, rotation, policies, delete and recover, purge that is refused
//! while something needs the key, backups, downloads?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::fs;

use cli_support::{Terminal, mode};
use serde_json::{Value, json};
use support::{Home, run};

const SMALL: [&str; 2] = ["--size", "2048"];

fn make<'a>(home: &Home, name: &'a str, more: &[&'a str]) -> Value {
    home.json([&["key", "create", name][..], &SMALL, more].concat())
}

#[test]
fn attributes_are_set_at_birth_and_later() {
    let home = Home::ready();
    let made = make(
        &home,
        "app",
        &[
            "--ops",
            "sign",
            "verify",
            "--tags",
            "env=prod",
            "team=a=b",
            "--disabled",
            "--expires",
            "2030-01-31",
        ],
    );
    assert_eq!(made["key"]["keyOps"], json!(["sign", "verify"]));
    assert_eq!(made["tags"], json!({ "env": "prod", "team": "a=b" }));
    let attributes = &made["attributes"];
    assert_eq!(
        (&attributes["enabled"], &attributes["expires"]),
        (&json!(false), &json!("2030-01-31T00:00:00Z"))
    );
    assert_eq!(attributes["recoveryLevel"], "Recoverable+Purgeable");
    assert_eq!(make(&home, "plain", &[])["key"]["keyOps"], json!(["wrapKey", "unwrapKey"]));

    let set = |more: &[&'static str]| home.json([&["key", "set-attributes", "app"][..], more].concat());
    let changed = set(&["--enabled", "true", "--not-before", "2026-01-02T03:04:05Z"]);
    let attributes = &changed["attributes"];
    assert_eq!(
        (&attributes["enabled"], &attributes["notBefore"]),
        (&json!(true), &json!("2026-01-02T03:04:05Z"))
    );
    assert_eq!((&attributes["expires"], &changed["tags"]), (&json!("2030-01-31T00:00:00Z"), &made["tags"]));
    assert_eq!(set(&["--tags"])["tags"], json!({}), "taken away");
    assert_eq!(set(&["--ops", "encrypt,decrypt"])["key"]["keyOps"], json!(["encrypt", "decrypt"]));
    for bad in [
        &["key", "set-attributes", "app"][..],
        &["key", "set-attributes", "app", "--expires", "soon"],
        &["key", "set-attributes", "app", "--ops", "dance"],
        &["key", "set-attributes", "app", "--tags", "novalue"],
    ] {
        home.wrapdisk(bad).fails(2);
    }
    assert_eq!(home.json(["key", "show", "app"])["key"]["keyOps"], json!(["encrypt", "decrypt"]));
}

#[test]
fn a_key_rotates_and_a_policy_goes_out_and_in_as_json() {
    let home = Home::ready();
    let old = make(&home, "app", &["--tags", "a=b"]);
    let new = home.json(["key", "rotate", "app"]);
    assert_ne!(new["version"], old["version"]);
    assert_eq!(
        (&new["size"], &new["tags"], &new["key"]["keyOps"]),
        (&old["size"], &old["tags"], &old["key"]["keyOps"])
    );

    let shown = home.wrapdisk(["key", "rotation-policy", "show", "app", "--output", "json"]).ok();
    let policy: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(policy["lifetimeActions"][0]["trigger"]["timeBeforeExpiry"], "P30D");
    assert!(policy["id"].as_str().unwrap().ends_with("/keys/app/rotationpolicy"));
    let mut wanted = policy;
    wanted["lifetimeActions"][0] = json!({ "trigger": { "timeAfterCreate": "P90D", "timeBeforeExpiry": null }, "action": { "type": "Rotate" } });
    wanted["attributes"]["expiryTime"] = "P1Y".into();
    fs::write(home.path("policy.json"), wanted.to_string()).unwrap();
    let set = home.json(["key", "rotation-policy", "update", "app", "--value", "policy.json"]);
    assert_eq!(set["attributes"]["expiryTime"], "P1Y");
    assert_eq!(home.json(["key", "rotation-policy", "show", "app"]), set);
    assert_eq!(
        home.wrapdisk(["key", "rotation-policy", "show", "app"]).ok(),
        "rotate:                 timeAfterCreate P90D\nnotify:                 timeBeforeExpiry P30D\n\
         a new version is valid: P1Y"
    );
    assert!(home.json(["key", "rotate", "app"])["attributes"]["expires"].is_string());

    fs::write(home.path("bad.json"), wanted.to_string().replace("P1Y", "P9D")).unwrap();
    let err = home.wrapdisk(["key", "rotation-policy", "update", "app", "--value", "bad.json"]).fails(1);
    assert!(err.contains("expiryTime: found 9 days, allowed P28D or more"), "{err}");
    fs::write(home.path("none.json"), "no policy").unwrap();
    let err = home.wrapdisk(["key", "rotation-policy", "update", "app", "--value", "none.json"]).fails(1);
    assert!(err.starts_with("wrapdisk: none.json: rotation policy: found no JSON"), "{err}");
}

#[test]
fn a_deleted_key_denies_its_disks_until_it_is_recovered() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let done = home.wrapdisk(["key", "delete", "disk-kek", "--output", "json"]);
    assert!(done.err.contains("vm.wd will not mount any more\n"), "{}", done.err);
    assert!(done.err.contains("  set default makes no disks any more\n"), "{}", done.err);
    let deleted: Value = serde_json::from_str(&done.ok()).unwrap();
    assert!(deleted["recoveryId"].as_str().unwrap().ends_with("/deletedkeys/disk-kek"));
    let done = home.wrapdisk(["check", "vm.wd"]);
    assert_eq!(done.code(), 3);
    assert!(done.out.contains("wrapdisk key recover disk-kek"), "{}{}", done.out, done.err);
    home.wrapdisk(["key", "show", "disk-kek"]).fails(1);
    let err = home.wrapdisk(["key", "create", "disk-kek"]).fails(1);
    assert!(err.contains("deleted but recoverable state"), "{err}");
    assert_eq!(home.json(["key", "list-deleted"]), json!([deleted]));
    assert_eq!(home.json(["key", "show-deleted", "disk-kek"]), deleted);
    assert!(home.wrapdisk(["key", "list-deleted"]).ok().starts_with("NAME      TYPE      DELETED"));

    home.wrapdisk(["key", "recover", "disk-kek"]).ok();
    home.wrapdisk(["check", "vm.wd"]).ok();
    assert_eq!(home.json(["key", "list-deleted"]), json!([]));
}

#[test]
fn purge_is_refused_while_something_needs_the_key_and_asks() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    home.wrapdisk(["key", "delete", "disk-kek", "--yes"]).ok();
    let err = home.wrapdisk(["key", "purge", "disk-kek", "--yes"]).fails(1);
    assert!(err.contains("disk-kek: purge: found a key which "), "{err}");
    assert!(err.contains("disk(s) and 1 set(s) need, allowed one that nothing needs"), "{err}");
    make(&home, "idle", &[]);
    let err = home.wrapdisk(["key", "purge", "idle", "--yes"]).fails(1);
    assert!(err.contains("Deleted Key not found: idle"), "{err}");
    assert_eq!(home.wrapdisk(["key", "delete", "idle"]).err, "", "nothing hangs on it");
    let err = home.wrapdisk(["key", "purge", "idle"]).fails(2);
    assert!(err.contains("--yes"), "{err}");
    let done = home.wrapdisk(["key", "purge", "idle", "--yes"]);
    assert!(done.err.contains("snapshots of the file system may still hold it"), "{}", done.err);
    done.ok();
    make(&home, "idle", &[]);
    home.wrapdisk(["key", "purge", "disk-kek", "--force", "--yes"]).ok();
    home.wrapdisk(["check", "vm.wd"]).fails(3);
}

#[test]
fn on_a_terminal_delete_and_purge_ask_first() {
    let home = Home::ready();
    let mut terminal = Terminal::start(&home.command(["key", "delete", "disk-kek"]));
    terminal.answer("need. Type yes to go on: ", "no");
    let (done, _) = terminal.end();
    assert_eq!(done.code(), 1, "{}", done.out);
    assert_eq!(home.json(["key", "list-deleted"]), json!([]));
    let mut terminal = Terminal::start(&home.command(["key", "delete", "disk-kek"]));
    terminal.answer("need. Type yes to go on: ", "yes");
    assert!(terminal.end().0.status.success());
    let mut terminal = Terminal::start(&home.command(["key", "purge", "disk-kek", "--force"]));
    terminal.answer("Type yes to go on: ", "y");
    assert_eq!(terminal.end().0.code(), 1);
    assert_eq!(home.json(["key", "list-deleted"]).as_array().unwrap().len(), 1);
}

#[test]
fn purge_protection_and_retention_are_settings_of_the_vault() {
    let home = Home::ready();
    make(&home, "app", &[]);
    home.wrapdisk(["vault", "update"]).fails(2);
    home.wrapdisk(["vault", "update", "--retention-days", "6"]).fails(2);
    let settings = home.json(["vault", "update", "--retention-days", "10", "--enable-purge-protection"]);
    assert_eq!(settings["softDeleteRetentionInDays"], 10);
    assert_eq!(home.json(["key", "show", "app"])["attributes"]["recoveryLevel"], "CustomizedRecoverable");
    home.wrapdisk(["key", "delete", "app"]).ok();
    let err = home.wrapdisk(["key", "purge", "app", "--yes", "--force"]).fails(3);
    assert!(err.contains("purge protection is enabled for this vault"), "{err}");
    home.wrapdisk(["vault", "update", "--retention-days", "9"]).fails(1);
    home.wrapdisk(["key", "recover", "app"]).ok();
}

#[test]
fn a_backup_is_a_private_file_that_brings_the_key_back_here_or_elsewhere() {
    let home = Home::ready();
    let key = make(&home, "app", &[]);
    home.wrapdisk(["key", "backup", "app", "--file", "app.backup"]).ok();
    assert_eq!(mode(&home.path("app.backup")), "0600");
    home.wrapdisk(["key", "backup", "app", "--file", "app.backup"]).fails(1);
    fs::write(home.path("pass"), "over there\n").unwrap();
    let portable = ["--portable", "--passphrase-file", "pass"];
    home.wrapdisk([&["key", "backup", "app", "--file", "app.portable"][..], &portable].concat()).ok();
    home.wrapdisk(["key", "backup", "app", "--file", "x", "--passphrase-file", "pass"]).fails(2);

    home.wrapdisk(["key", "restore", "--file", "app.backup"]).fails(1);
    home.wrapdisk(["key", "delete", "app"]).ok();
    home.wrapdisk(["key", "purge", "app", "--yes"]).ok();
    assert_eq!(home.json(["key", "restore", "--file", "app.backup"]), key);

    let other = Home::new(); // not a copy: of the same vault it would be no other
    other.wrapdisk(["vault", "init"]).ok();
    for file in ["app.backup", "app.portable", "pass"] {
        fs::copy(home.path(file), other.path(file)).unwrap();
    }
    let err = other.wrapdisk(["key", "restore", "--file", "app.backup"]).fails(1);
    assert!(err.contains("Backup blob contains invalid or corrupt version"), "{err}");
    fs::write(other.path("wrong"), "not it").unwrap();
    other.wrapdisk(["key", "restore", "--file", "app.portable", "--passphrase-file", "wrong"]).fails(1);
    let there = other.json(["key", "restore", "--file", "app.portable", "--passphrase-file", "pass"]);
    assert_eq!((&there["version"], &there["key"]["n"]), (&key["version"], &key["key"]["n"]));
}

#[test]
fn the_public_half_is_downloaded_as_openssl_reads_it() {
    let home = Home::ready();
    make(&home, "app", &[]);
    home.wrapdisk(["key", "download", "app", "--file", "app.pem"]).ok();
    home.wrapdisk(["key", "download", "app", "--file", "app.der", "--encoding", "der"]).ok();
    home.wrapdisk(["key", "download", "app", "--file", "app.pem"]).fails(1);
    let pem = run("openssl", ["pkey", "-pubin", "-in", home.text("app.pem")]);
    assert_eq!(run("openssl", ["pkey", "-pubin", "-inform", "DER", "-in", home.text("app.der")]), pem);
    assert_eq!(home.wrapdisk(["key", "show", "app", "--pem"]).ok(), pem);
    home.wrapdisk(["key", "download", "none", "--file", "x"]).fails(1);
    assert!(!home.path("x").exists());
}
