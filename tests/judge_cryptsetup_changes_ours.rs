//! cryptsetup changes a container of ours: does the vault still open it after every change that is none of our business,
//! and is a change of what the MAC covers refused, and told apart?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cryptsetup_support;
mod support;

use std::os::unix::fs::FileExt;

use cryptsetup_support::{CHEAP, add_slot, copy, cryptsetup, dump_json, put, volume_key};
use serde_json::Value;
use support::{Home, noise};

/// A disk `a.wd` whose first MiB is this noise, and its path.
fn home() -> (Home, &'static str, Vec<u8>) {
    let home = Home::ready();
    home.create("a.wd", "4M", &[]);
    let data = noise(3, 1 << 20);
    let mount = home.mount("a.wd", &[]);
    std::fs::File::options().write(true).open(&mount.file).unwrap().write_all_at(&data, 0).unwrap();
    mount.unmount();
    let disk = home.text("a.wd");
    (home, disk, data)
}

/// It mounts in this way, for writing, and the data are there.
#[track_caller]
fn mounts(home: &Home, how: &[&str], data: &[u8]) {
    let mount = home.mount("a.wd", how);
    assert!(std::fs::read(&mount.file).unwrap().starts_with(data), "other data than before the change");
    mount.unmount();
}

/// It does not mount: the code and the message behind the program's name and the path.
#[track_caller]
fn refused(home: &Home, how: &[&str], code: i32) -> String {
    let place = home.path("m");
    if !place.exists() {
        std::fs::create_dir(&place).unwrap();
    }
    let said = home.wrapdisk([&["mount", "a.wd", "m"], how].concat()).fails(code);
    let start = format!("wrapdisk: {}: ", home.path("a.wd").display());
    said.strip_prefix(&start).unwrap_or_else(|| panic!("{start:?} does not begin {said:?}")).to_owned()
}

#[test]
fn keyslots_come_and_go_and_the_vault_opens_it_all_the_while() {
    let (home, disk, data) = home();
    let key = volume_key(&home, "a.wd");
    let cost = ["--pbkdf-force-iterations", "4", "--pbkdf-memory", "2048", "--pbkdf-parallel", "1"];
    let argon2 = [&["--pbkdf", "argon2id"][..], &cost].concat();
    let (p, q) = (put(&home, "p", b"first words"), put(&home, "q", b"second words"));
    add_slot(disk, key, p, &CHEAP);
    add_slot(disk, key, q, &argon2);
    let ways = [&[][..], &["--passphrase-file", "p"], &["--passphrase-file", "q"]];
    for how in ways {
        mounts(&home, how, &data);
    }
    let info = home.json(["info", "a.wd"]);
    let slots: Vec<_> =
        info["keyslots"].as_array().unwrap().iter().map(|s| s["kdf"].as_str().unwrap()).collect();
    assert_eq!(slots, ["pbkdf2-sha256, 1000 iterations", "argon2id, 4 passes, 2 MiB, 1 lanes"]);

    cryptsetup(["luksKillSlot", "-q", "--key-file", q, disk, "0"]).ok();
    assert_eq!(refused(&home, ways[1], 3), "no keyslot opens with this passphrase");
    mounts(&home, ways[0], &data);
    mounts(&home, ways[2], &data);
    // Changed by the passphrase alone, as it would be on a machine without the vault.
    cryptsetup([&["luksChangeKey", "-q", "--key-file", q, disk, p][..], &CHEAP].concat()).ok();
    assert_eq!(refused(&home, ways[2], 3), "no keyslot opens with this passphrase");
    mounts(&home, ways[0], &data);
    mounts(&home, ways[1], &data);
}

#[test]
fn label_subsystem_and_flags_are_free() {
    let (home, disk, data) = home();
    cryptsetup(["config", "--label", "renamed", "--subsystem", "theirs", disk]).ok();
    mounts(&home, &[], &data);
    assert_eq!(home.json(["info", "a.wd"])["label"], "renamed");
    // A flag that we do not know is kept by what we write next.
    add_slot(disk, volume_key(&home, "a.wd"), put(&home, "p", b"words"), &CHEAP);
    home.wrapdisk(["seal", "a.wd"]).ok();
    let info = home.json(["info", "a.wd"]);
    assert_eq!((&info["label"], &info["holes"]), (&"renamed".into(), &"none".into()));
    assert!(cryptsetup(["luksDump", disk]).ok().contains("Subsystem:     \ttheirs"));
    mounts(&home, &["--passphrase-file", "p"], &data);
}

#[test]
fn somebody_elses_token_is_kept_as_it_is() {
    let (home, disk, data) = home();
    let token = put(
        &home,
        "token",
        br#"{"type":"clevis","keyslots":[],"jwe":{"x":[1,"a/b"],"y":null},"z":"\u00e9"}"#,
    );
    cryptsetup(["token", "import", "--token-id", "5", "--json-file", token, disk]).ok();
    let before = dump_json(disk)["tokens"]["5"].clone();
    assert_eq!(before["jwe"]["x"][1], "a/b");
    mounts(&home, &[], &data);
    home.wrapdisk(["seal", "a.wd"]).ok();
    assert_eq!(dump_json(disk)["tokens"]["5"], before, "our commit changed it");
    mounts(&home, &[], &data);
    cryptsetup(["token", "remove", "--token-id", "5", disk]).ok();
    mounts(&home, &[], &data);
}

#[test]
fn another_uuid_breaks_the_mac_until_the_old_one_is_back() {
    let (home, disk, data) = home();
    let old = cryptsetup(["luksUUID", disk]).ok();
    let advice = "tokens.0.wrapdisk-mac: found another one, allowed the MAC of this header\n  \
                  the header was changed by something that does not hold the key; if cryptsetup luksUUID changed the \
                  uuid, set the old one back";
    cryptsetup(["luksUUID", "-q", "--uuid", "0d9a7c4e-5a3b-4c1d-8e2f-6b7a8c9d0e1f", disk]).ok();
    assert_eq!(refused(&home, &[], 5), advice);
    cryptsetup(["luksUUID", "-q", "--uuid", &old, disk]).ok();
    mounts(&home, &[], &data);
}

/// The tools of the format, in the hands of somebody who has the file and not the key.
#[test]
fn a_token_that_was_edited_with_cryptsetup_is_refused() {
    let (home, disk, data) = home();
    let original = home.text("original");
    copy(disk, original);
    let kid = dump_json(disk)["tokens"]["0"]["wrapdisk-kid"].as_str().unwrap().to_owned();
    let mac = "tokens.0.wrapdisk-mac: found another one, allowed the MAC of this header\n  ";
    for (member, value, code, message) in [
        ("size", "2097152".to_owned(), 5, mac.to_owned()),
        ("holes", "none".to_owned(), 5, mac.to_owned()),
        ("kind", "image".to_owned(), 1, "kind: found image, allowed disk for a writable mount".to_owned()),
        ("kid", kid.replace("/disk-kek/", "/other-kek/"), 3, String::new()),
    ] {
        copy(original, disk);
        edit_token(&home, disk, &format!("wrapdisk-{member}"), value.into());
        let said = refused(&home, &[], code);
        assert!(said.starts_with(&message), "{member}: {said}");
    }
    edit_token(&home, disk, "wrapdisk-kid", kid.into());
    mounts(&home, &[], &data);
    // Read-only, a kind that is not a disk comes further, and no further than the MAC.
    edit_token(&home, disk, "wrapdisk-kind", "image".into());
    assert!(refused(&home, &["--read-only"], 5).starts_with(mac));
}

#[track_caller]
fn edit_token(home: &Home, disk: &str, member: &str, value: Value) {
    let mut token = cryptsetup_support::parse(&cryptsetup(["token", "export", "--token-id", "0", disk]).ok());
    assert!(token.get(member).is_some(), "{member} is not in the token");
    token[member] = value;
    let file = put(home, "edited", token.to_string().as_bytes());
    cryptsetup(["token", "remove", "--token-id", "0", disk]).ok();
    cryptsetup(["token", "import", "--token-id", "0", "--json-file", file, disk]).ok();
}

/// ON-DISK section 5 (e): cryptsetup's erase leaves tokens alone, and so the vault's way in.
#[test]
fn luks_erase_takes_the_passphrases_and_leaves_the_vault() {
    let (home, disk, data) = home();
    add_slot(disk, volume_key(&home, "a.wd"), put(&home, "p", b"words"), &CHEAP);
    cryptsetup(["luksErase", "-q", disk]).ok();
    assert_eq!(
        refused(&home, &["--passphrase-file", "p"], 3),
        "keyslots: found none, so no passphrase opens it\n  open it through its vault, without --passphrase"
    );
    mounts(&home, &[], &data);
}

/// A new data key by cryptsetup: the wrapped one in our token is not it any more.
#[test]
fn a_container_that_cryptsetup_reencrypted_is_refused_with_the_reason() {
    let (home, disk, _) = home();
    let p = put(&home, "p", b"words");
    add_slot(disk, volume_key(&home, "a.wd"), p, &CHEAP);
    let reencrypt = ["reencrypt", "-q", "--force-offline-reencrypt", "--key-file", p, disk];
    cryptsetup([&reencrypt[..], &CHEAP].concat()).ok();
    assert_eq!(
        refused(&home, &[], 5),
        "tokens.0: found another key than the digest's, allowed the volume key"
    );
    let said = refused(&home, &["--passphrase-file", "p"], 5);
    assert!(
        said.starts_with("tokens.0.wrapdisk-mac: found another one, allowed the MAC of this header"),
        "{said}"
    );
}
