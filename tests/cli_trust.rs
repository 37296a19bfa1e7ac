//! Is a container refused that is not what it claims to be: replaced by one whose key somebody else knows, changed by
//! somebody without the key, or of a kind that must not be written?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::fs;
use std::path::Path;

use cli_support::overwrite;
use support::{Home, run};
use uuid::Uuid;
use wrapdisk::dirs::Dirs;
use wrapdisk::luks2::{Header, Holes, Kind, NewHeader};
use wrapdisk::set::first_use;
use wrapdisk::store::FileStore;
use wrapdisk::units::ByteLen;
use wrapdisk::xts::VolumeKey;

/// A container of the vault in this home, as `create` makes it, but of any kind and uuid.
fn make(home: &Home, file: &Path, kind: Kind, uuid: Uuid) {
    let (access, _) = first_use::ensure(&Dirs::under(&home.path("home"))).unwrap();
    let set = access.sets.by_name("default").unwrap();
    let size = ByteLen::new(1 << 20).unwrap();
    let label = String::new();
    let new = NewHeader { label, kind, size, holes: Holes::Zeros, discards: true, uuid: Some(uuid) };
    let key = VolumeKey::generate().unwrap();
    let mut header = Header::create(&new, &key).unwrap();
    access.add_token(&mut header, &set, &key, "test").unwrap();
    header.format(&FileStore::create_new(file).unwrap()).unwrap();
}

/// A second home that starts from the same state.
fn twin(home: &Home) -> Home {
    let twin = Home::new();
    run("cp", ["-a", home.text("home"), twin.text("home")]);
    twin
}

#[test]
fn a_container_that_was_replaced_is_refused_by_whoever_knew_the_first() {
    let home = Home::ready();
    // Somebody with the vault's public key, or an older copy of everything, makes another one of the same uuid.
    let forger = twin(&home);
    home.create("vm.wd", "1M", &[]);
    let uuid = home.json(["info", "vm.wd"])["uuid"].as_str().unwrap().to_owned();
    make(&forger, &forger.path("forged.wd"), Kind::Disk, uuid.parse().unwrap());
    forger.mount("forged.wd", &[]).unmount();
    fs::copy(home.path("vm.wd"), home.path("true.wd")).unwrap();
    fs::copy(forger.path("forged.wd"), home.path("vm.wd")).unwrap();

    fs::create_dir(home.path("m")).unwrap();
    let why = format!("uuid {uuid}: found another data key than at the last mount");
    let err = home.wrapdisk(["mount", "vm.wd", "m"]).fails(5);
    assert!(err.starts_with(&format!("wrapdisk: {}: {why}\n  ", home.text("vm.wd"))), "{err}");
    home.wrapdisk(["mount", "vm.wd", "m", "--read-only"]).fails(5);
    home.wrapdisk(["volume-key", "vm.wd", "--yes", "--output", "key"]).fails(5);
    assert!(!home.path("key").exists());
    home.wrapdisk(["seal", "vm.wd"]).fails(5);
    let found = home.wrapdisk(["check", "vm.wd"]);
    assert!(found.out.contains("FAIL  token 0: ") && found.out.contains(&why), "{}", found.out);
    found.fails(5);
    // The true one is as good as before, at the old place too.
    fs::copy(home.path("true.wd"), home.path("vm.wd")).unwrap();
    home.mount("vm.wd", &[]).unmount();
    home.wrapdisk(["check", "vm.wd"]).ok();
}

#[test]
fn a_header_that_somebody_without_the_key_changed_is_refused() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    run(
        "cryptsetup",
        ["luksUUID", "-q", "--uuid", "11111111-2222-4333-8444-555555555555", home.text("vm.wd")],
    );
    fs::create_dir(home.path("m")).unwrap();
    assert_eq!(
        home.wrapdisk(["mount", "vm.wd", "m"]).fails(5),
        format!(
            "wrapdisk: {}: tokens.0.wrapdisk-mac: found another one, allowed the MAC of this header\n  \
             the header was changed by something that does not hold the key; if cryptsetup luksUUID changed the uuid, \
             set the old one back",
            home.text("vm.wd")
        )
    );
}

#[test]
fn snapshots_and_images_are_mounted_read_only_or_not_at_all() {
    let home = Home::ready();
    for (kind, name) in [(Kind::Snapshot, "snapshot"), (Kind::Image, "image")] {
        let file = format!("{name}.wd");
        make(&home, &home.path(&file), kind, Uuid::new_v4());
        assert_eq!(home.json(["info", &file])["kind"], name);
        fs::create_dir(home.path(&format!("{file}.mnt"))).unwrap();
        let place = format!("{file}.mnt");
        for arguments in [&["mount", &file, &place][..], &["seal", &file]] {
            let says = format!(
                "wrapdisk: {}: kind: found {name}, allowed disk for a writable mount\n  mount it with --read-only",
                home.text(&file)
            );
            assert_eq!(home.wrapdisk(arguments).fails(1), says);
        }
        let mount = home.mount(&file, &["--read-only"]);
        assert_eq!(mount.status()["readOnly"], true);
        let written = std::panic::catch_unwind(|| overwrite(&mount.file, b"x"));
        assert!(written.is_err(), "a {name} was written to");
        mount.unmount();
    }
    // An ordinary disk is writable, so that the above says something.
    make(&home, &home.path("disk.wd"), Kind::Disk, Uuid::new_v4());
    let mount = home.mount("disk.wd", &[]);
    overwrite(&mount.file, b"x");
    mount.unmount();
}

#[test]
fn a_disk_whose_set_now_has_another_key_is_denied() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    home.wrapdisk(["key", "create", "other", "--size", "2048"]).ok();
    let other = home.json(["key", "show", "other"])["kid"].as_str().unwrap().to_owned();
    let (key, _) = other.rsplit_once('/').unwrap();
    let sets = rusqlite::Connection::open(home.path("home/state/sets.db")).unwrap();
    sets.execute("UPDATE disk_set SET key = ?, active = ?", [key, &other]).unwrap();
    fs::create_dir(home.path("m")).unwrap();
    let err = home.wrapdisk(["mount", "vm.wd", "m"]).fails(3);
    assert!(err.starts_with(&format!("wrapdisk: {}: https://", home.text("vm.wd"))), "{err}");
    assert!(
        err.contains(&format!(": key: found one that the set \"default\" does not use, allowed {key}")),
        "{err}"
    );
    // The set's identity may use its own key only, so no new disk goes under the other one either.
    let err = home.wrapdisk(["create", "new.wd", "--size", "1M"]).fails(3);
    assert!(
        err.contains(" does not have keys wrapKey permission on key vault 'default' (key https://"),
        "{err}"
    );
    assert!(!home.path("new.wd").exists());
}
