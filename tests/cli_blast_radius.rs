//! Before a key is taken away: are all the disks, mounts, users and sets shown that would stop, and nothing done in a dry
//! run?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Home, run};

/// Every command that stops disks, but for `--dry-run`.
fn stops(home: &Home) -> Vec<Vec<String>> {
    let oid = home.json(["set", "show", "default"])["identity"]["principalId"].as_str().unwrap().to_owned();
    let commands = [
        "key disable disk-kek",
        "key set-attributes disk-kek --enabled false",
        "key delete disk-kek",
        "revoke --set default",
        &format!("vault revoke {oid} --all"),
        &format!("vault identity disable {oid}"),
    ];
    commands.iter().map(|c| c.split(' ').map(str::to_owned).collect()).collect()
}

fn paths(radius: &Value) -> Vec<String> {
    radius["disks"].as_array().unwrap().iter().map(|d| d["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_dry_run_names_disks_mounts_and_who_uses_them_and_does_nothing() {
    let home = Home::ready();
    home.create("idle.wd", "1M", &[]);
    home.create("gone.wd", "1M", &[]);
    home.create("up.wd", "1M", &[]);
    let uuid = home.json(["info", "up.wd"])["uuid"].clone();
    fs::rename(home.path("gone.wd"), home.path("elsewhere.wd")).unwrap();
    let mount = home.mount("up.wd", &[]);
    let open = File::open(&mount.file).unwrap();
    let device = run("losetup", ["--find", "--show", mount.file.to_str().unwrap()]);
    let device = device.trim_end();

    for stop in stops(&home) {
        let arguments = [&stop[..], &["--dry-run".into()]].concat();
        let radius = home.json(arguments.iter().map(String::as_str));
        let disk = |name: &str| {
            let path = home.text(name);
            radius["disks"].as_array().unwrap().iter().find(|d| d["path"] == path).cloned().unwrap()
        };
        assert_eq!(disk("idle.wd")["missing"], false, "{stop:?} {radius}");
        assert_eq!(disk("gone.wd")["missing"], true, "{stop:?} {radius}");
        assert_eq!(disk("idle.wd")["stillOpensUnder"], json!([]), "{stop:?} {radius}");
        let up = &radius["mounts"][0];
        assert_eq!((&up["uuid"], &radius["mounts"][1]), (&uuid, &Value::Null), "{stop:?} {radius}");
        let us = |user: &Value| user["pid"] == std::process::id();
        assert!(up["users"].as_array().unwrap().iter().any(us), "{stop:?} {radius}");
        assert_eq!(up["loops"], json!([device]), "{stop:?} {radius}");
        let names_the_set = !stop.iter().any(|word| word == "disable" || word == "set-attributes")
            || stop.iter().any(|word| word == "identity");
        assert_eq!(radius["sets"] == json!(["default"]), names_the_set, "{stop:?} {radius}");

        let said = home.wrapdisk([&stop[..], &["--dry-run".into()]].concat()).ok();
        assert!(said.contains(&format!("{} will not mount any more", home.text("idle.wd"))), "{said}");
        assert!(said.contains("gone.wd (not there now)"), "{said}");
        assert!(said.contains("in use by ") && said.contains(device), "{said}");
        assert!(said.contains(" stops: its reads and writes fail until the key is back"), "{said}");
    }
    run("losetup", ["--detach", device]);
    drop(open);
    // Nothing was done.
    mount.unmount();
    home.wrapdisk(["check", "up.wd"]).ok();
    assert_eq!(home.json(["key", "show", "disk-kek"])["attributes"]["enabled"], true);
}

#[test]
fn another_key_for_a_set_names_what_moves_and_what_cannot_and_a_dry_run_moves_nothing() {
    let home = Home::ready();
    home.create("idle.wd", "1M", &[]);
    home.create("gone.wd", "1M", &[]);
    home.create("up.wd", "1M", &[]);
    fs::rename(home.path("gone.wd"), home.path("elsewhere.wd")).unwrap();
    let mount = home.mount("up.wd", &[]);
    home.wrapdisk(["key", "create", "second", "--size", "2048"]).ok();
    let key = || home.json(["set", "show", "default"])["properties"]["activeKey"]["keyUrl"].clone();
    let before = key();
    let update = ["set", "update", "default", "--key", "second", "--grant", "--dry-run"];
    let radius = home.json(update);
    for name in ["idle.wd", "gone.wd", "up.wd"] {
        assert!(paths(&radius).contains(&home.text(name).to_owned()), "{radius}");
    }
    assert_eq!(radius["mounts"][0]["pid"], mount.status()["pid"], "{radius}");
    let said = home.wrapdisk(update).ok();
    for line in [
        &format!("{} is rewrapped with the new key", home.text("idle.wd")),
        "gone.wd (not there now) stays under the key it has until it is found again",
        "goes on meanwhile",
        "set default makes disks under the new key",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let policy = ["set", "update", "default", "--on-revoke", "freeze", "--dry-run"];
    assert_eq!(home.wrapdisk(policy).ok(), "no disk is concerned");
    assert_eq!((key(), mount.status()["guard"]["onRevoke"].as_str()), (before.clone(), Some("eio")));
    home.wrapdisk(["set", "update", "default", "--key", "third", "--dry-run"]).fails(1);

    // gone.wd is where it was left.
    assert!(home.wrapdisk(&update[..6]).fails(1).contains("gone.wd"));
    assert_ne!(key(), before);
    mount.unmount();
}

/// What a command says on a terminal, where this is typed, and its exit code.
fn on_a_terminal(home: &Home, command: &[String], typed: &str) -> (String, Option<i32>) {
    let line = format!("{} {}", support::WRAPDISK, command.join(" "));
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line, "/dev/null"]).current_dir(home.root());
    script.env("WRAPDISK_HOME", home.path("home")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = script.spawn().unwrap();
    script.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let done = script.wait_with_output().unwrap();
    (String::from_utf8_lossy(&done.stdout).into_owned(), done.status.code())
}

#[test]
fn on_a_terminal_it_is_asked_and_anything_but_yes_does_nothing() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    home.wrapdisk(["key", "create", "second", "--size", "2048"]).ok();
    let update = "set update default --key second --grant".split(' ').map(str::to_owned).collect();
    let before = home.json(["set", "show", "default"]);
    for command in stops(&home).into_iter().chain([update]) {
        for typed in ["no\n", "y\n", "\n"] {
            let (said, code) = on_a_terminal(&home, &command, typed);
            assert!(said.contains("vm.wd") && said.contains("Type yes to go on"), "{command:?}: {said}");
            assert!(said.contains("not confirmed; nothing was done"), "{command:?} {typed:?}: {said}");
            assert_eq!(code, Some(1), "{command:?} {typed:?}");
        }
        home.wrapdisk(["check", "vm.wd"]).ok();
        assert_eq!(home.json(["set", "show", "default"]), before, "{command:?}");
    }
    let disable = ["key", "disable", "disk-kek"].map(str::to_owned);
    let (said, code) = on_a_terminal(&home, &disable, "yes\n");
    assert_eq!(code, Some(0), "{said}");
    home.wrapdisk(["check", "vm.wd"]).fails(3);
}

#[test]
fn a_version_that_wraps_nothing_is_needed_by_nothing() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let first = home.json(["key", "show", "disk-kek"])["version"].as_str().unwrap().to_owned();
    home.wrapdisk(["key", "create", "idle", "--size", "2048"]).ok();
    assert_eq!(home.wrapdisk(["key", "disable", "idle", "--dry-run"]).ok(), "nothing needs it");
    assert_eq!(home.wrapdisk(["key", "show", "idle", "--used-by"]).ok(), "nothing needs it");
    let needed = home.json(["key", "show", &format!("disk-kek/{first}"), "--used-by"]);
    assert!(paths(&needed).contains(&home.text("vm.wd").to_owned()), "{needed}");
    assert_eq!(needed["sets"], json!([]), "{needed}");
    assert_eq!(home.json(["key", "show", "disk-kek", "--used-by"])["sets"], json!(["default"]));
    home.wrapdisk(["key", "set-attributes", "disk-kek", "--tags", "a=b", "--dry-run"]).fails(2);
}

#[test]
fn what_is_in_use_is_purged_by_force_only() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    home.wrapdisk(["key", "delete", "disk-kek"]).ok();
    let radius = home.json(["key", "purge", "disk-kek", "--dry-run"]);
    assert!(paths(&radius).contains(&home.text("vm.wd").to_owned()), "{radius}");
    let err = home.wrapdisk(["key", "purge", "disk-kek", "--yes"]).fails(1);
    assert!(err.contains(" disk(s) and 1 set(s) need"), "{err}");
    home.wrapdisk(["key", "recover", "disk-kek"]).ok();
    home.wrapdisk(["check", "vm.wd"]).ok();
    home.wrapdisk(["key", "delete", "disk-kek"]).ok();
    home.wrapdisk(["key", "purge", "disk-kek", "--yes", "--force"]).ok();
    home.wrapdisk(["key", "recover", "disk-kek"]).fails(1);
}
