//! Do containers that cryptsetup made open here with their passphrase, whatever the sector, the keyslot and the geometry,
//! and do we read and write in them what cryptsetup does?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cryptsetup_support;
mod support;

use std::os::unix::fs::FileExt;

use cryptsetup_support::{CHEAP, DATA, cryptsetup, decrypted_by_cryptsetup, dump_json, luks_format, put};
use support::{Home, Mount, noise};

const MIB: usize = 1 << 20;

/// What `mount` says of a container that carries no MAC.
const UNPROVED: &str =
    "wrapdisk: warn: this header carries no MAC of ours: nothing proves that it was not tampered with";

/// Mounts by the passphrase in the file `p` of this home.
#[track_caller]
fn mount<'a>(home: &'a Home, name: &str, more: &[&str]) -> Mount<'a> {
    home.mount(name, &[&["--passphrase-file", home.text("p")], more].concat())
}

fn home() -> Home {
    let home = Home::new();
    put(&home, "p", b"not the words");
    home
}

/// A container of `data`, encrypted by cryptsetup without a kernel's help.
#[track_caller]
fn encrypted_by_cryptsetup<'a>(home: &'a Home, name: &str, data: &[u8], options: &[&str]) -> &'a str {
    let container = put(home, name, data);
    // The last 32 MiB are given up; the header takes the half of that.
    std::fs::File::options()
        .write(true)
        .open(container)
        .unwrap()
        .set_len((data.len() + 2 * DATA) as u64)
        .unwrap();
    let encrypt = ["reencrypt", "-q", "--encrypt", "--type", "luks2", "--force-offline-reencrypt"];
    let more = ["--reduce-device-size", "32M", "--key-size", "512", "--key-file", home.text("p")];
    cryptsetup([&encrypt as &[&str], &more, options, &[container]].concat()).ok();
    container
}

#[test]
fn what_cryptsetup_encrypted_reads_right_through_a_mount() {
    let home = home();
    let argon2: &[&str] = &["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024"];
    for (name, sector, slot) in [
        ("a.img", "4096", &CHEAP[..]),
        ("b.img", "512", argon2),
        ("c.img", "4096", &[&CHEAP[..], &["--hash", "sha512"]].concat()),
    ] {
        let data = noise(7, 8 * MIB);
        let options = [slot, &["--sector-size", sector]].concat();
        let container = encrypted_by_cryptsetup(&home, name, &data, &options);
        assert_eq!(dump_json(container)["segments"]["0"]["sector_size"].to_string(), sector);
        let mount = mount(&home, name, &[]);
        let read = std::fs::read(&mount.file).unwrap();
        assert_eq!(read.len(), 24 * MIB, "all that the file has behind the header");
        assert!(read[..data.len()] == data, "{name}: other data than what was encrypted");
        mount.unmount();
    }
}

#[test]
fn what_is_written_into_a_container_of_cryptsetups_it_decrypts() {
    let home = home();
    for (name, sector) in [("a.img", "4096"), ("b.img", "512")] {
        let options = [&CHEAP[..], &["--sector-size", sector]].concat();
        let container = luks_format(&home, name, 4 * MIB as u64, home.text("p"), &options);
        let fresh = decrypted_by_cryptsetup(&home, container, home.text("p"));
        let mount = mount(&home, name, &[]);
        // No hole here means zeros: a container without our token is what dm-crypt takes it for.
        let mut model = std::fs::read(&mount.file).unwrap();
        assert!(model == fresh, "{name}: zeros that nobody wrote are decrypted otherwise");
        let file = std::fs::File::options().write(true).open(&mount.file).unwrap();
        for (at, len) in [(0, 4096), (5000, 700), (512, 512), (MIB - 1, MIB + 2), (4 * MIB - 3, 3)] {
            let data = noise(at as u64, len);
            file.write_all_at(&data, at as u64).unwrap();
            model[at..at + len].copy_from_slice(&data);
        }
        drop(file);
        assert!(std::fs::read(&mount.file).unwrap() == model);
        mount.unmount();
        assert!(decrypted_by_cryptsetup(&home, container, home.text("p")) == model, "{name}");
    }
}

/// `luksFormat` in every way that keeps aes-xts-plain64 and a 512-bit key.
#[test]
fn every_keyslot_and_geometry_of_luks_format_opens() {
    let home = home();
    let argon2 = ["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "64"];
    for (i, options) in [
        &["--hash", "sha256"][..],
        &["--hash", "sha512"],
        &["--sector-size", "512"],
        &["--sector-size", "4096"],
        &["--luks2-metadata-size", "64k", "--luks2-keyslots-size", "2m"],
        &["--luks2-metadata-size", "128k"],
        &["--offset", "65536"],
        &["--label", "theirs", "--subsystem", "sub", "--uuid", "0d9a7c4e-5a3b-4c1d-8e2f-6b7a8c9d0e1f"],
    ]
    .into_iter()
    .enumerate()
    {
        for (j, kdf) in [&CHEAP[..], &argon2].into_iter().enumerate() {
            let name = format!("{i}{j}.img");
            luks_format(&home, &name, 20 * MIB as u64, home.text("p"), &[kdf, options].concat());
            let wrong = put(&home, "wrong", b"not the word");
            std::fs::create_dir(home.path("m")).unwrap();
            let refused = home.wrapdisk(["mount", &name, "m", "--passphrase-file", wrong]).fails(3);
            let shown = home.path(&name);
            let expected = format!("wrapdisk: {}: no keyslot opens with this passphrase", shown.display());
            assert_eq!(refused, expected, "{kdf:?} {options:?}");
            std::fs::remove_dir(home.path("m")).unwrap();
            mount(&home, &name, &["--read-only"]).unmount();
        }
    }
}

/// As people make them: no option but the passphrase, and so the cost that cryptsetup measures.
#[test]
fn a_container_of_all_defaults_opens() {
    let home = home();
    let container = home.text("d.img");
    std::fs::File::create(container).unwrap().set_len(20 << 20).unwrap();
    cryptsetup(["luksFormat", "-q", "--key-file", home.text("p"), container]).ok();
    assert_eq!(dump_json(container)["keyslots"]["0"]["kdf"]["type"], "argon2id");
    let mount = mount(&home, "d.img", &[]);
    assert_eq!(mount.status()["unguarded"], true);
    mount.unmount();
}

#[test]
fn without_a_passphrase_or_by_default_it_says_what_it_is_and_what_to_do() {
    let home = home();
    let container = luks_format(&home, "a.img", MIB as u64, home.text("p"), &CHEAP);
    std::fs::create_dir(home.path("m")).unwrap();
    let shown = home.path("a.img");
    let refused = home.wrapdisk(["mount", container, "m"]).fails(1);
    assert_eq!(
        refused,
        format!(
            "wrapdisk: {}: tokens: found no wrapdisk-vault token, allowed 1 to 8\n  \
             this is a plain LUKS2 container; open it with --passphrase",
            shown.display()
        )
    );
    let done = home.wrapdisk(["mount", container, "m", "--passphrase-file", "p"]);
    assert_eq!(done.err.trim(), UNPROVED);
    done.ok();
    let info = home.json(["info", container]);
    assert_eq!((info["tokens"].as_array().unwrap().len(), &info["holes"]), (0, &"none".into()));
    home.wrapdisk(["umount", "m"]).ok();
    // Looking at other people's containers makes no vault.
    assert!(!home.path("home/state/vault.db").exists());
}

/// The second of several passphrases, a preferred slot, one that is to be ignored unless it is asked for.
#[test]
fn any_of_several_keyslots_opens() {
    let home = home();
    let container = luks_format(&home, "a.img", MIB as u64, home.text("p"), &CHEAP);
    for (file, words, priority) in [("q", "second", "prefer"), ("r", "third", "ignore")] {
        let file = put(&home, file, words.as_bytes());
        let add = ["luksAddKey", "-q", "--key-file", home.text("p"), container, file];
        cryptsetup([&add[..], &CHEAP].concat()).ok();
        let slot = if file.ends_with('q') { "1" } else { "2" };
        cryptsetup(["config", "--priority", priority, "--key-slot", slot, container]).ok();
    }
    for file in ["p", "q", "r"] {
        home.mount("a.img", &["--passphrase-file", home.text(file)]).unmount();
    }
}

/// cryptsetup takes a key file with the newline at its end, and what is typed without.
#[test]
fn a_newline_at_the_end_of_a_file_is_part_of_the_passphrase_if_it_is() {
    let home = home();
    for (name, made_with, opens_with) in [
        ("a.img", &b"words"[..], [&b"words"[..], b"words\n"]),
        ("b.img", b"words\n", [b"words\n", b"words\n\n"]),
        ("c.img", b"\x80\x00\n", [b"\x80\x00\n", b"\x80\x00\n\n"]),
    ] {
        luks_format(&home, name, MIB as u64, put(&home, "key", made_with), &CHEAP);
        for words in opens_with {
            home.mount(name, &["--passphrase-file", put(&home, "file", words)]).unmount();
        }
        std::fs::create_dir(home.path("m")).unwrap();
        for words in [&[made_with, &b"\n\n"[..]].concat(), &b"word\n"[..], b"word"] {
            let file = put(&home, "file", words);
            home.wrapdisk(["mount", name, "m", "--passphrase-file", file]).fails(3);
        }
        std::fs::remove_dir(home.path("m")).unwrap();
    }
}
