//! Does a rotation reach mounted disks through their own daemons, without a remount, while files move; does the program say
//! by its exit code what was left; and can a disk be given another set in every way there is, and not in any other? And is
//! nothing missed that begins meanwhile?
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "figures")]

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{Home, Mount, eventually, noise};

fn active(home: &Home, set: &str) -> String {
    home.json(["set", "show", set])["properties"]["activeKey"]["keyUrl"].as_str().unwrap().to_owned()
}

fn kids(home: &Home, disk: &str) -> Vec<String> {
    let info = home.json(["info", disk]);
    let tokens = info["tokens"].as_array().unwrap();
    tokens.iter().map(|t| t["kid"].as_str().unwrap().to_owned()).collect()
}

/// Without the disk that the template was made with, which is gone.
fn home() -> Home {
    let home = Home::ready();
    for gone in resources(&home, "default") {
        home.wrapdisk(["set", "forget", gone["path"].as_str().unwrap()]).ok();
    }
    home
}

fn version(kid: &str) -> &str {
    kid.rsplit('/').next().unwrap()
}

/// Waits until a mount says that it is under this version.
fn wait_for(mount: &Mount<'_>, kid: &str) {
    eventually("the mount's rewrap", || (mount.status()["key"] == kid).then_some(()));
}

fn resources(home: &Home, set: &str) -> Vec<Value> {
    home.json(["set", "list-associated-resources", set]).as_array().unwrap().clone()
}

#[test]
fn a_daemon_killed_while_it_rewraps_its_disk_leaves_one_that_mounts_and_is_finished_later() {
    let home = home();
    home.create("vm.wd", "4M", &[]);
    let content = noise(5, 100_000);
    let mut halfway = 0;
    // A rewrap takes some 20 ms; it begins when the key has been rotated.
    for delay in (0..40).step_by(4) {
        let mount = home.mount("vm.wd", &[]);
        let file = fs::File::options().read(true).write(true).open(&mount.file).unwrap();
        file.write_all_at(&content, 5000).unwrap();
        file.sync_all().unwrap();
        home.wrapdisk(["key", "rotate", "disk-kek"]).ok();
        std::thread::sleep(Duration::from_millis(delay));
        kill(Pid::from_raw(mount.pid), Signal::SIGKILL).unwrap();
        mount.wait_for_end();
        drop((file, mount));
        halfway += usize::from(kids(&home, "vm.wd") != [active(&home, "default")]);
    }
    println!("{halfway} of 10 were killed before the end");
    let mount = home.mount("vm.wd", &[]);
    let mut found = vec![0; content.len()];
    fs::File::open(&mount.file).unwrap().read_exact_at(&mut found, 5000).unwrap();
    assert!(found == content, "what was synced is there");
    home.wrapdisk(["set", "rotate", "default"]).ok();
    assert_eq!(kids(&home, "vm.wd"), [active(&home, "default")]);
    mount.unmount();
}

#[test]
fn a_disk_that_is_being_made_while_its_set_gets_another_key_ends_up_under_that() {
    let home = home();
    home.wrapdisk(["key", "create", "second", "--size", "2048"]).ok();
    // Every sector is written, and its key is wrapped before.
    let create = ["create", "late.wd", "--size", "512M", "--full"];
    let mut making = home.command(create).stderr(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_raw(making.id().try_into().unwrap());
    // It has no name yet.
    let open = format!("/proc/{pid}/fd");
    let grows = |fd: fs::DirEntry| fs::metadata(fd.path()).is_ok_and(|m| m.is_file() && m.blocks() > 1 << 16);
    eventually("it is written", || fs::read_dir(&open).unwrap().flatten().any(grows).then_some(()));
    kill(pid, Signal::SIGSTOP).unwrap();
    assert!(!home.path("late.wd").exists(), "it was made before the key is changed: a larger one is needed");
    home.wrapdisk(["set", "update", "default", "--key", "second", "--grant"]).ok();
    kill(pid, Signal::SIGCONT).unwrap();
    assert!(making.wait().unwrap().success());
    assert_eq!(kids(&home, "late.wd"), [active(&home, "default")]);
    assert!(active(&home, "default").contains("/keys/second/"));
    // The old one is not needed.
    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    home.mount("late.wd", &[]).unmount();
}

#[test]
fn a_mount_follows_the_key_by_itself_and_goes_on_when_the_old_version_is_switched_off() {
    let home = home();
    home.create("vm.wd", "4M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let file = fs::File::options().read(true).write(true).open(&mount.file).unwrap();
    file.write_all_at(b"before", 5000).unwrap();
    let old = active(&home, "default");
    home.wrapdisk(["key", "rotate", "disk-kek"]).ok();
    eventually("the rotation's end", || {
        let set = home.json(["set", "show", "default"]);
        (set["properties"]["previousKeys"] == Value::Array(vec![])
            && set["properties"]["lastKeyRotationTimestamp"].is_string())
        .then_some(())
    });
    let new = active(&home, "default");
    assert_ne!(old, new);
    wait_for(&mount, &new);
    assert_eq!(kids(&home, "vm.wd"), [new.as_str()]);
    home.wrapdisk(["key", "disable", "disk-kek", "--version", version(&old), "--yes"]).ok();
    let mut found = [0; 6];
    file.read_exact_at(&mut found, 5000).unwrap();
    assert_eq!(&found, b"before");
    file.write_all_at(b"after", 9000).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
    home.mount("vm.wd", &[]).unmount();
}

#[test]
fn read_only_mounts_of_one_container_all_learn_of_it() {
    let home = home();
    home.create("image.wd", "4M", &[]);
    for place in ["one", "two"] {
        fs::create_dir(home.path(place)).unwrap();
    }
    let one = home.mount_at("image.wd", &home.path("one"), &["--read-only"]);
    let two = home.mount_at("image.wd", &home.path("two"), &["--read-only"]);
    home.wrapdisk(["key", "rotate", "disk-kek"]).ok();
    let new = eventually("the beginning", || {
        let new = active(&home, "default");
        (kids(&home, "image.wd") == [new.clone()]).then_some(new)
    });
    wait_for(&one, &new);
    wait_for(&two, &new);
    // Each guard has learned of the new version: the old one can go, whoever of them committed.
    let old = home.json(["key", "list-versions", "disk-kek"])[0]["kid"].as_str().unwrap().to_owned();
    assert_ne!(old, new);
    home.wrapdisk(["key", "disable", "disk-kek", "--version", version(&old), "--yes"]).ok();
    for mount in [&one, &two] {
        assert!(fs::read(&mount.file).is_ok());
        assert_eq!(mount.status()["state"], "ready");
    }
    home.wrapdisk(["set", "wait", "default", "--timeout", "60"]).ok();
}

#[test]
fn the_timer_s_command_asks_the_mounts_and_does_the_rest_itself() {
    let home = home();
    home.create("mounted.wd", "4M", &[]);
    home.create("idle.wd", "4M", &[]);
    home.create("gone.wd", "4M", &[]);
    let first = version(&active(&home, "default")).to_owned();
    let mount = home.mount("mounted.wd", &[]);
    // Pinned, so that no mount begins by itself.
    home.wrapdisk(["set", "update", "default", "--enable-auto-key-rotation", "false"]).ok();
    home.wrapdisk(["key", "rotate", "disk-kek"]).ok();
    let new = home.json(["key", "show", "disk-kek"])["kid"].as_str().unwrap().to_owned();
    fs::rename(home.path("gone.wd"), home.path("away")).unwrap();
    fs::create_dir(home.path("elsewhere")).unwrap();
    fs::rename(home.path("away"), home.path("elsewhere/gone.wd")).unwrap();

    let key = format!("disk-kek/{}", version(&new));
    let done = home.wrapdisk(["set", "update", "default", "--key", &key]);
    assert_eq!(done.code(), 1, "{}{}", done.out, done.err);
    assert!(done.out.contains("2 rewrapped, 1 left"), "{}", done.out);
    assert!(done.err.contains("gone.wd: Missing: no such file"), "{}", done.err);
    assert_eq!(mount.status()["key"], new.as_str());
    let missing: Vec<_> = resources(&home, "default").into_iter().filter(|r| r["missing"] == true).collect();
    assert_eq!(missing.len(), 1);
    assert_eq!((&missing[0]["upToDate"], &missing[0]["error"]["code"]), (&false.into(), &"Missing".into()));
    let mounted: Vec<_> = resources(&home, "default")
        .into_iter()
        .filter(|r| r["mountpoints"] != serde_json::json!([]))
        .collect();
    assert_eq!(mounted[0]["path"], home.text("mounted.wd"));
    let of_old = home.json(["set", "list-associated-resources", "default", "--key-version", &first]);
    assert_eq!(of_old.as_array().unwrap().len(), 1);
    assert!(home.wrapdisk(["set", "wait", "default", "--timeout", "0"]).fails(1).contains("1 container(s)"));

    home.wrapdisk(["set", "scan", home.text("elsewhere")]).ok();
    let report = home.json(["set", "rotate", "--all"]);
    assert_eq!((&report[0]["complete"], &report[0]["rewrapped"]), (&true.into(), &1.into()), "{report}");
    home.wrapdisk(["set", "wait", "default"]).ok();
    assert_eq!(kids(&home, "elsewhere/gone.wd"), [new]);
}

#[test]
fn a_mounted_file_that_moved_is_found_by_its_mount() {
    let home = home();
    home.create("vm.wd", "4M", &[]);
    let mount = home.mount("vm.wd", &[]);
    fs::create_dir(home.path("elsewhere")).unwrap();
    fs::rename(home.path("vm.wd"), home.path("elsewhere/vm.wd")).unwrap();
    home.wrapdisk(["key", "rotate", "disk-kek"]).ok();
    eventually("the rotation's end", || {
        let all = resources(&home, "default");
        (all.len() == 2
            && all.iter().any(|r| r["path"] == home.text("elsewhere/vm.wd") && r["upToDate"] == true)
            || all.iter().all(|r| r["path"] != home.text("vm.wd")))
        .then_some(())
    });
    wait_for(&mount, &active(&home, "default"));
    home.wrapdisk(["set", "rotate", "default"]).ok();
}

#[test]
fn a_due_rotation_policy_reaches_the_disks_end_to_end() {
    let home = home();
    home.create("idle.wd", "4M", &[]);
    home.create("vm.wd", "4M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let policy = r#"{"lifetimeActions":[{"trigger":{"timeAfterCreate":"P30D"},"action":{"type":"Rotate"}}]}"#;
    fs::write(home.path("policy.json"), policy).unwrap();
    home.wrapdisk(["key", "rotation-policy", "update", "disk-kek", "--value", home.text("policy.json")]).ok();
    let old = active(&home, "default");
    home.wrapdisk(["set", "rotate", "--all"]).ok();
    assert_eq!(active(&home, "default"), old, "not due");
    // Time goes by.
    let db = rusqlite::Connection::open(home.path("home/state/vault.db")).unwrap();
    db.execute("UPDATE key_version SET created = created - 31 * 86400", []).unwrap();
    home.wrapdisk(["set", "rotate", "--all"]).ok();
    let new = active(&home, "default");
    assert_ne!(new, old);
    wait_for(&mount, &new);
    assert_eq!(kids(&home, "idle.wd"), [new]);
}

#[test]
fn a_failed_rotation_says_so_everywhere_and_by_its_exit_code() {
    let home = home();
    home.create("vm.wd", "4M", &[]);
    let old = active(&home, "default");
    home.wrapdisk(["key", "rotate", "disk-kek"]).ok();
    home.wrapdisk(["key", "disable", "disk-kek", "--version", version(&old), "--yes"]).ok();
    let done = home.wrapdisk(["set", "rotate", "--all"]);
    assert_eq!(done.code(), 3, "{}{}", done.out, done.err);
    assert!(done.err.contains("vm.wd: KeyDenied: "), "{}", done.err);
    let set = home.json(["set", "show", "default"]);
    assert_eq!(set["properties"]["autoKeyRotationError"]["code"], "KeyDenied");
    assert_eq!(set["properties"]["provisioningState"], "Updating");
    let shown = home.wrapdisk(["set", "show", "default"]).ok();
    assert!(shown.contains("does not rotate: ") && shown.contains("1 of 1 left, due by "), "{shown}");
    assert!(home.wrapdisk(["set", "list"]).ok().contains("KeyDenied"));
    home.wrapdisk(["key", "enable", "disk-kek", "--version", version(&old)]).ok();
    home.wrapdisk(["set", "rotate", "--all"]).ok();
    assert_eq!(home.json(["set", "show", "default"])["properties"]["autoKeyRotationError"], Value::Null);

    fs::rename(home.path("home/state/root.key"), home.path("root.away")).unwrap();
    home.wrapdisk(["set", "rotate", "--all"]).fails(4);
}

#[test]
fn a_disk_gets_another_set_mounted_or_not() {
    let home = home();
    home.create("idle.wd", "4M", &[]);
    home.create("vm.wd", "4M", &[]);
    home.wrapdisk(["key", "create", "other", "--size", "2048"]).ok();
    home.wrapdisk(["set", "create", "prod", "--key", "other", "--grant"]).ok();
    let mount = home.mount("vm.wd", &[]);
    for disk in ["idle.wd", mount.place.to_str().unwrap()] {
        home.wrapdisk(["disk", "update", disk, "--set", "prod"]).ok();
    }
    let new = active(&home, "prod");
    assert_eq!(mount.status()["key"], new.as_str());
    assert!(mount.status()["set"].as_str().unwrap().starts_with("prod/"));
    home.wrapdisk(["key", "delete", "disk-kek", "--yes"]).ok();
    mount.unmount();
    for disk in ["idle.wd", "vm.wd"] {
        assert_eq!(kids(&home, disk), [new.as_str()]);
        home.mount(disk, &[]).unmount();
    }
    assert_eq!(resources(&home, "default").len(), 0);
    assert_eq!(resources(&home, "prod").len(), 2);
}

#[test]
fn where_the_old_key_is_denied_another_identity_or_the_passphrase_will_do_and_nothing_else() {
    let home = home();
    fs::write(home.path("pass"), "a recovery passphrase\n").unwrap();
    let pass = home.text("pass");
    for disk in ["idle.wd", "vm.wd"] {
        home.create(disk, "4M", &["--recovery-file", pass]);
    }
    home.wrapdisk(["key", "create", "other", "--size", "2048"]).ok();
    home.wrapdisk(["set", "create", "prod", "--key", "other", "--grant"]).ok();
    let mount = home.mount("vm.wd", &[]);
    let place = mount.place.to_str().unwrap().to_owned();
    home.wrapdisk(["revoke", "--set", "default", "--yes"]).ok();
    for disk in ["idle.wd", &place] {
        let refused = home.wrapdisk(["disk", "update", disk, "--set", "prod"]).fails(3);
        for way in ["an identity that is granted the old key", "another token", "recovery passphrase"] {
            assert!(refused.contains(way), "{disk}: {refused}");
        }
    }
    // A second set over the same key whose identity may use it.
    home.wrapdisk(["set", "create", "helper", "--key", "disk-kek", "--grant"]).ok();
    home.wrapdisk(["disk", "update", "idle.wd", "--set", "prod"]).ok();
    home.wrapdisk(["disk", "update", "idle.wd", "--set", "default"]).fails(3);
    home.wrapdisk(["set", "delete", "helper", "--yes"]).ok();

    home.wrapdisk(["disk", "update", &place, "--set", "prod"]).fails(3);
    home.wrapdisk(["disk", "update", &place, "--set", "prod", "--passphrase-file", pass]).ok();
    assert_eq!(mount.status()["key"], active(&home, "prod").as_str());
    // And back, not mounted.
    home.wrapdisk(["key", "disable", "other", "--yes"]).ok();
    home.wrapdisk(["grant", "--set", "default"]).ok();
    home.wrapdisk(["disk", "update", "idle.wd", "--set", "default", "--passphrase-file", pass]).ok();
    assert_eq!(kids(&home, "idle.wd"), [active(&home, "default")]);
}

#[test]
fn a_mount_that_a_passphrase_opened_is_rewrapped_when_it_is_asked() {
    let home = home();
    fs::write(home.path("pass"), "a recovery passphrase\n").unwrap();
    home.create("vm.wd", "4M", &["--recovery-file", home.text("pass")]);
    let mount = home.mount("vm.wd", &["--passphrase-file", home.text("pass")]);
    home.wrapdisk(["key", "rotate", "disk-kek"]).ok();
    home.wrapdisk(["set", "rotate", "default"]).ok();
    assert_eq!(kids(&home, "vm.wd"), [active(&home, "default")]);
    assert_eq!((&mount.status()["unguarded"], &mount.status()["key"]), (&true.into(), &Value::Null));
}

#[test]
fn a_set_s_identity_lives_and_dies_with_it() {
    let home = home();
    let identities = || home.json(["vault", "identity", "list"]).as_array().unwrap().len();
    let before = identities();
    for other in
        ["EncryptionAtRestWithPlatformAndCustomerKeys", "ConfidentialVmEncryptedWithCustomerKey", "x"]
    {
        let refused =
            home.wrapdisk(["set", "create", "p", "--key", "disk-kek", "--encryption-type", other]).fails(1);
        assert!(refused.contains("encryption type: "), "{refused}");
    }
    home.wrapdisk(["set", "create", "p", "--key", "no-such-key"]).fails(1);
    home.wrapdisk(["set", "create", "default", "--key", "disk-kek"]).fails(1);
    assert_eq!(identities(), before, "a refusal leaves nothing behind");

    let done = home.wrapdisk(["set", "create", "p", "--key", "disk-kek"]);
    assert!(
        done.err.contains("may not use the key yet") && done.err.contains("wrapdisk grant --set p"),
        "{}",
        done.err
    );
    assert_eq!(identities(), before + 1);
    home.wrapdisk(["set", "update", "p", "--on-revoke", "freeze", "--recovery-mounts", "deny"]).ok();
    let policy = &home.json(["set", "show", "p"])["properties"]["revocationPolicy"];
    assert_eq!((&policy["onRevoke"], &policy["recoveryMounts"]), (&"freeze".into(), &false.into()));
    home.wrapdisk(["set", "update", "p", "--probe-interval", "1s"]).fails(1);
    home.wrapdisk(["create", "vm.wd", "--size", "1M", "--set", "p"]).fails(3);
    home.wrapdisk(["grant", "--set", "p"]).ok();
    home.create("vm.wd", "1M", &["--set", "p"]);
    let refused = home.wrapdisk(["set", "delete", "p", "--yes"]).fails(1);
    assert!(refused.contains("found 1 container(s) that need it"), "{refused}");
    fs::remove_file(home.path("vm.wd")).unwrap();
    home.wrapdisk(["set", "forget", home.text("vm.wd")]).ok();
    home.wrapdisk(["set", "delete", "p"]).fails(2);
    home.wrapdisk(["set", "delete", "p", "--yes"]).ok();
    assert_eq!(identities(), before);
    home.wrapdisk(["set", "show", "p"]).fails(1);
}
