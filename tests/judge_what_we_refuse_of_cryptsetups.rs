//! What cryptsetup makes and we do not open: is it refused with a message that names the field, what was found and what is
//! allowed, and is what the message advises of use?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cryptsetup_support;
mod support;

use cryptsetup_support::{CHEAP, cryptsetup, luks_format, put};
use support::Home;

const DATA: u64 = 1 << 20;

/// Mounting it fails with exactly this code and message; the container is as it was.
#[track_caller]
fn refused(home: &Home, container: &str, code: i32, message: &str) {
    let before = std::fs::read(container).unwrap();
    let place = home.path("m");
    if !place.exists() {
        std::fs::create_dir(&place).unwrap();
    }
    let said = home.wrapdisk(["mount", container, "m", "--passphrase-file", home.text("p")]).fails(code);
    assert_eq!(said, format!("wrapdisk: {container}: {message}"));
    assert!(before == std::fs::read(container).unwrap(), "a refusal wrote something");
}

fn home() -> Home {
    let home = Home::new();
    put(&home, "p", b"words");
    home
}

#[test]
fn other_ciphers_keys_sectors_and_kdfs_are_refused_by_name() {
    let home = home();
    for (i, (options, message)) in [
        (
            &["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"][..],
            "segments.0.encryption: found \"aes-cbc-essiv:sha256\", allowed \"aes-xts-plain64\"",
        ),
        (
            &["--cipher", "aes-xts-plain"],
            "segments.0.encryption: found \"aes-xts-plain\", allowed \"aes-xts-plain64\"",
        ),
        (
            &["--cipher", "aes-xts-plain64be"],
            "segments.0.encryption: found \"aes-xts-plain64be\", allowed \"aes-xts-plain64\"",
        ),
        (&["--key-size", "256"], "keyslots.0.key_size: found 32, allowed 64"),
        (&["--sector-size", "1024"], "segments.0.sector_size: found 1024, allowed 4096 or 512"),
        (&["--sector-size", "2048"], "segments.0.sector_size: found 2048, allowed 4096 or 512"),
        (
            &["--pbkdf", "argon2i", "--pbkdf-memory", "64", "--pbkdf-force-iterations", "4"],
            "keyslots.0.kdf.type: found \"argon2i\", allowed \"argon2id\" or \"pbkdf2\"",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{i}.img");
        let cheap = if options.contains(&"argon2i") { &[][..] } else { &CHEAP };
        // cryptsetup takes the last of an option that is given twice.
        let container = luks_format(&home, &name, DATA, home.text("p"), &[cheap, options].concat());
        refused(&home, container, 1, message);
    }
}

#[test]
fn a_keyslot_for_another_key_than_the_datas_is_refused() {
    let home = home();
    let container = luks_format(&home, "a.img", DATA, home.text("p"), &CHEAP);
    let other = put(&home, "q", b"other");
    let add = ["luksAddKey", "-q", "--unbound", "--key-size", "512", "--key-file", home.text("p")];
    cryptsetup([&add[..], &CHEAP, &[container, other]].concat()).ok();
    refused(&home, container, 1, "digests: found 2 members, allowed exactly one");
}

#[test]
fn a_reencryption_that_is_under_way_is_refused_until_it_is_finished_as_advised() {
    let home = home();
    let container = luks_format(&home, "a.img", DATA, home.text("p"), &CHEAP);
    let begin = ["reencrypt", "-q", "--init-only", "--force-offline-reencrypt", "--key-file", home.text("p")];
    cryptsetup([&begin[..], &CHEAP, &[container]].concat()).ok();
    refused(
        &home,
        container,
        1,
        "config.requirements.mandatory: found \"online-reencrypt-v2\", allowed none\n  \
         finish with: cryptsetup reencrypt --resume-only",
    );
    let finish = ["reencrypt", "-q", "--resume-only", "--force-offline-reencrypt", "--key-file"];
    cryptsetup([&finish[..], &[home.text("p"), container]].concat()).ok();
    home.mount("a.img", &["--passphrase-file", home.text("p")]).unmount();
}

#[test]
fn luks1_is_refused_until_it_is_converted_as_advised() {
    let home = home();
    let container = home.text("a.img");
    std::fs::File::create(container).unwrap().set_len(8 << 20).unwrap();
    let format =
        ["luksFormat", "-q", "--type", "luks1", "--key-size", "512", "--pbkdf-force-iterations", "1000"];
    cryptsetup([&format[..], &["--key-file", home.text("p"), container]].concat()).ok();
    refused(
        &home,
        container,
        1,
        "version: found 1, allowed 2\n  convert it with: cryptsetup convert --type luks2",
    );
    cryptsetup(["convert", "-q", "--type", "luks2", container]).ok();
    let mount = home.mount("a.img", &["--passphrase-file", home.text("p")]);
    let theirs = cryptsetup_support::decrypted_after(&home, container, home.text("p"), 2 << 20);
    assert!(std::fs::read(&mount.file).unwrap() == theirs);
    mount.unmount();
}

/// Detached headers are not ours to guess at: the data has no header, and the header has no data.
#[test]
fn a_detached_header_and_its_data_are_refused() {
    let home = home();
    let (data, header) = (home.text("data"), home.text("header"));
    std::fs::File::create(data).unwrap().set_len(DATA).unwrap();
    let format = ["luksFormat", "-q", "--type", "luks2", "--key-size", "512", "--key-file", home.text("p")];
    cryptsetup([&format[..], &CHEAP, &["--header", header, data]].concat()).ok();
    refused(
        &home,
        data,
        5,
        "not a LUKS2 container: no valid header copy was found\n  \
         check the name; make a disk with: wrapdisk create FILE --size SIZE",
    );
    let said = home.wrapdisk(["mount", header, "m", "--passphrase-file", home.text("p")]).fails(5);
    let field = "segments.0.offset: found 0, allowed a multiple of 4096, at least 16777216";
    assert_eq!(said, format!("wrapdisk: {header}: {field}"));
}
