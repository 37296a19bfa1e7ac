//! Does cryptsetup take a container of ours for what it is: header, tokens, volume key, recovery passphrase? And do blkid
//! and OpenSSL see what we say?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cryptsetup_support;
mod support;

use cryptsetup_support::{CHEAP, add_slot, copy, cryptsetup, dump_json, flip, parse, put, volume_key};
use support::{Home, noise, run};

/// `cryptsetup open --test-passphrase` with a volume key: 0 it is the key, 2 it is not.
fn opens_by_key(container: &str, key: &str) -> i32 {
    cryptsetup(["open", "--test-passphrase", "--volume-key-file", key, "--key-size", "512", container]).code()
}

/// The same with a passphrase in a file.
fn opens_by_passphrase(container: &str, file: &str) -> i32 {
    cryptsetup(["open", "--test-passphrase", "--key-file", file, container]).code()
}

#[test]
fn cryptsetup_and_blkid_know_what_it_is() {
    let home = Home::ready();
    let disk = home.create("a.wd", "8M", &["--label", "my disk"]);
    let disk = disk.to_str().unwrap();
    let info = home.json(["info", "a.wd"]);
    let uuid = info["uuid"].as_str().unwrap();

    cryptsetup(["isLuks", "--type", "luks2", disk]).ok();
    cryptsetup(["isLuks", "--type", "luks1", disk]).fails(1);
    assert_eq!(cryptsetup(["luksUUID", disk]).ok(), uuid);
    let dump = cryptsetup(["luksDump", disk]).ok();
    for line in [
        "Version:       \t2",
        &format!("UUID:          \t{uuid}"),
        "Label:         \tmy disk",
        "Subsystem:     \twrapdisk",
        "Flags:       \tallow-discards",
        "\toffset: 16777216 [bytes]",
        "\tlength: (whole device)",
        "\tcipher: aes-xts-plain64",
        "\tsector: 4096 [bytes]",
        "  0: wrapdisk-vault",
    ] {
        assert!(dump.lines().any(|found| found.trim_end() == line), "{line:?} is not in\n{dump}");
    }
    // Probed by itself, with the values as they stand on the disk.
    let probed = run("blkid", ["-p", "-o", "export", disk]);
    for line in [
        format!("UUID={uuid}").as_str(),
        "LABEL=my\\ disk",
        "SUBSYSTEM=wrapdisk",
        "VERSION=2",
        "TYPE=crypto_LUKS",
    ] {
        assert!(probed.lines().any(|found| found == line), "{line:?} is not in\n{probed}");
    }
}

#[test]
fn either_copy_of_the_header_is_enough_for_cryptsetup_and_none_is_not() {
    let home = Home::ready();
    let disk = home.create("a.wd", "8M", &[]);
    for (broken, opens) in [(&[4200][..], true), (&[16384 + 4200], true), (&[4200, 16384 + 4200], false)] {
        let other = home.text("other.wd");
        copy(disk.to_str().unwrap(), other);
        for at in broken {
            flip(other.as_ref(), *at);
        }
        assert_eq!(cryptsetup(["luksDump", other]).status.success(), opens, "{broken:?}");
    }
}

#[test]
fn the_json_and_the_token_that_cryptsetup_reads_are_what_we_dump() {
    let home = Home::ready();
    let slot = put(&home, "slot", b"words");
    for (disk, options) in [("a.wd", &[][..]), ("b.wd", &["--no-discard"]), ("c.wd", &["--full"])] {
        let path = home.create(disk, "8M", options);
        let path = path.to_str().unwrap();
        let ours = parse(&home.wrapdisk(["header", "dump", disk]).ok());
        assert_eq!(dump_json(path), ours);
        assert_eq!(
            parse(&cryptsetup(["token", "export", "--token-id", "0", path]).ok()),
            ours["tokens"]["0"]
        );

        // What cryptsetup writes, we dump as it reads it.
        add_slot(path, volume_key(&home, disk), slot, &CHEAP);
        let with_slot = parse(&home.wrapdisk(["header", "dump", disk]).ok());
        assert_ne!(with_slot, ours);
        assert_eq!(dump_json(path), with_slot);
    }
}

#[test]
fn the_volume_key_that_we_hand_out_is_the_key_and_no_other_is() {
    let home = Home::ready();
    let (one, two) = (home.create("one.wd", "8M", &[]), home.create("two.wd", "8M", &[]));
    let (one, two) = (one.to_str().unwrap(), two.to_str().unwrap());
    let keys = [volume_key(&home, "one.wd"), volume_key(&home, "two.wd")];
    assert_eq!([opens_by_key(one, keys[0]), opens_by_key(two, keys[1])], [0, 0]);
    assert_eq!([opens_by_key(one, keys[1]), opens_by_key(two, keys[0])], [2, 2]);

    let almost = home.path("almost");
    std::fs::copy(keys[0], &almost).unwrap();
    run("chmod", ["600", almost.to_str().unwrap()]);
    flip(&almost, 63);
    assert_eq!(opens_by_key(one, almost.to_str().unwrap()), 2, "the tweak's half counts as well");
    // No passphrase was set, so no keyslot is there to try.
    assert_eq!(opens_by_passphrase(one, put(&home, "words", b"words")), 1);
}

/// With the cost that `create` chooses: that a real cryptsetup can pay it is part of the claim.
#[test]
fn the_recovery_passphrase_opens_in_cryptsetup_and_yields_our_key() {
    let home = Home::ready();
    // The newline of a text file is not part of a passphrase; cryptsetup takes a key file as it is, and a typed line without.
    let (file, exact) = (put(&home, "file", b"correct horse\n"), put(&home, "exact", b"correct horse"));
    let disk = home.create("r.wd", "8M", &["--recovery-file", file]);
    let disk = disk.to_str().unwrap();
    let slot = &dump_json(disk)["keyslots"]["0"];
    assert_eq!((&slot["kdf"]["type"], &slot["key_size"]), (&"argon2id".into(), &64.into()));

    assert_eq!(opens_by_passphrase(disk, exact), 0);
    assert_eq!(opens_by_passphrase(disk, file), 2, "with the newline it is another passphrase");
    let theirs = home.text("theirs.vk");
    let dump =
        ["luksDump", "-q", "--dump-volume-key", "--key-file", exact, "--volume-key-file", theirs, disk];
    cryptsetup(dump).ok();
    let ours = volume_key(&home, "r.wd");
    assert_eq!(std::fs::read(theirs).unwrap(), std::fs::read(ours).unwrap());
    assert_eq!(opens_by_key(disk, ours), 0);
}

#[test]
fn a_header_backup_is_the_same_file_whoever_makes_it_and_either_restores_the_others() {
    let home = Home::ready();
    let disk = home.create("a.wd", "8M", &[]);
    let disk = disk.to_str().unwrap();
    let slot = put(&home, "slot", b"words");
    let key = volume_key(&home, "a.wd");
    add_slot(disk, key, slot, &CHEAP);

    let (ours, theirs) = (home.text("ours.hdr"), home.text("theirs.hdr"));
    home.wrapdisk(["header", "backup", "a.wd", ours]).ok();
    cryptsetup(["luksHeaderBackup", "--header-backup-file", theirs, disk]).ok();
    let backup = std::fs::read(ours).unwrap();
    assert_eq!(backup.len(), 16 << 20);
    assert!(backup == std::fs::read(theirs).unwrap(), "the two backups differ");
    assert!(backup == std::fs::read(disk).unwrap()[..16 << 20], "the backup is not the header area");

    // Everything that opens it goes, and comes back from the other one's file.
    let erase = || home.wrapdisk(["header", "erase", "a.wd", "--yes"]).ok();
    let opens = || opens_by_passphrase(disk, slot) == 0 && home.wrapdisk(["check", "a.wd"]).status.success();
    assert!(opens());
    erase();
    assert!(!opens());
    cryptsetup(["luksHeaderRestore", "-q", "--header-backup-file", ours, disk]).ok();
    assert!(opens());
    erase();
    home.wrapdisk(["header", "restore", "a.wd", theirs, "--yes"]).ok();
    assert!(opens());
    assert!(backup == std::fs::read(disk).unwrap()[..16 << 20], "the restored header is not the backup");
}

/// ON-DISK section 5, from what cryptsetup and blkid read, by OpenSSL's HKDF and HMAC.
#[test]
fn the_mac_of_a_token_is_what_openssl_computes_over_the_documented_message() {
    let home = Home::ready();
    for (disk, size, options) in [("a.wd", "8M", &[][..]), ("b.wd", "8389120", &["--full"])] {
        let path = home.create(disk, size, options);
        let path = path.to_str().unwrap();
        let (json, uuid) = (dump_json(path), run("blkid", ["-p", "-o", "value", "-s", "UUID", path]));
        let message = message(&json, &uuid);
        assert_eq!(message.lines().count(), 20);
        let key = std::fs::read(volume_key(&home, disk)).unwrap();
        let mac = json["tokens"]["0"]["wrapdisk-mac"].as_str().unwrap();
        assert_eq!(openssl_mac(&home, &key, &message), mac);

        assert_ne!(openssl_mac(&home, &key, &message.replace("kind=disk", "kind=image")), mac);
        assert_ne!(openssl_mac(&home, &noise(1, 64), &message), mac);
    }
}

fn message(json: &serde_json::Value, uuid: &str) -> String {
    let (segment, digest, token) = (&json["segments"]["0"], &json["digests"]["0"], &json["tokens"]["0"]);
    let plain = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut lines = vec!["wrapdisk luks2 header v1".to_owned(), format!("uuid={uuid}")];
    for name in ["kind", "size", "holes"] {
        lines.push(format!("{name}={}", plain(&token[format!("wrapdisk-{name}")])));
    }
    for name in ["type", "offset", "size", "iv_tweak", "encryption", "sector_size"] {
        lines.push(format!("segment.{name}={}", plain(&segment[name])));
    }
    for name in ["type", "hash", "iterations", "salt", "digest"] {
        lines.push(format!("digest.{name}={}", plain(&digest[name])));
    }
    for name in ["set", "kid", "alg", "wrapped-dek"] {
        lines.push(format!("token.{name}={}", plain(&token[format!("wrapdisk-{name}")])));
    }
    lines.join("\n") + "\n"
}

fn openssl_mac(home: &Home, key: &[u8], message: &str) -> String {
    use base64::Engine;
    let hex: String = key.iter().map(|b| format!("{b:02x}")).collect();
    let (hexkey, info) = (format!("hexkey:{hex}"), "info:wrapdisk luks2 header v1");
    let kdf =
        ["kdf", "-keylen", "32", "-kdfopt", "digest:SHA256", "-kdfopt", &hexkey, "-kdfopt", info, "HKDF"];
    let mac_key = run("openssl", kdf).replace(':', "");
    let (hexkey, file) = (format!("hexkey:{mac_key}"), put(home, "message", message.as_bytes()));
    let out = home.text("mac");
    run("openssl", ["dgst", "-sha256", "-mac", "HMAC", "-macopt", &hexkey, "-binary", "-out", out, file]);
    base64::engine::general_purpose::STANDARD.encode(std::fs::read(out).unwrap())
}
