//! When a disk does not open, does the program say which disk, what was found and what to do, on standard error, with the
//! exit code of the cause: 1 failed, 2 usage, 3 denied, 4 vault not to be asked, 5 damaged?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use cli_support::names;
use support::{Done, Home, run};

/// What a person reads, with "~" for the home, UUID and HEX for what differs from run to run.
fn shown(home: &Home, text: &str) -> String {
    let mut text = text.trim_end().replace(home.root().to_str().unwrap(), "~");
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let mut at = 0;
    while at < text.len() {
        let rest = text[at..].strip_prefix('-').map_or(&text[at..], |_| "");
        let word: String = rest.chars().take_while(|c| hex(*c) || *c == '-').collect();
        let name = match word.len() {
            36 if uuid::Uuid::try_parse(&word).is_ok() => "UUID",
            32 if !word.contains('-') => "HEX",
            _ => "",
        };
        if name.is_empty() {
            at += word.len().max(1);
        } else {
            text.replace_range(at..at + word.len(), name);
            at += name.len();
        }
    }
    text
}

const KID: &str = "https://UUID.vault.localhost/keys/disk-kek/HEX";
/// Who asked, and where.
const SCENE: &str =
    "(key https://UUID.vault.localhost/keys/disk-kek/HEX, identity \"set-UUID\" (UUID), vault \"default\")";

/// One way to break a home that holds `vm.wd` and the folder `m`, and what mounting says then.
struct Case {
    name: &'static str,
    breaks: fn(&Home),
    code: i32,
    says: String,
}

fn case(name: &'static str, breaks: fn(&Home), code: i32, says: impl Into<String>) -> Case {
    Case { name, breaks, code, says: says.into() }
}

#[track_caller]
fn refused(cases: impl IntoIterator<Item = Case>, arguments: &[&str]) {
    for case in cases {
        let home = Home::ready();
        home.create("vm.wd", "1M", &[]);
        fs::create_dir(home.path("m")).unwrap();
        (case.breaks)(&home);
        let done = home.wrapdisk(arguments);
        assert_eq!(
            (done.code(), shown(&home, &done.err), done.out.as_str()),
            (case.code, format!("wrapdisk: {}", case.says), ""),
            "{}",
            case.name
        );
        assert_eq!(names(&home.path("m")), [""; 0], "{}: something is mounted", case.name);
    }
}

const MOUNT: [&str; 3] = ["mount", "vm.wd", "m"];

fn state(home: &Home, name: &str) -> std::path::PathBuf {
    home.path("home/state").join(name)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn cut(home: &Home, len: u64) {
    fs::File::options().write(true).open(home.path("vm.wd")).unwrap().set_len(len).unwrap();
}

/// Changes the vault behind its back.
fn sql(home: &Home, change: &str) {
    rusqlite::Connection::open(state(home, "vault.db")).unwrap().execute_batch(change).unwrap();
}

/// Puts files of another, equally good state folder in the place of ours.
fn from_another(home: &Home, names: &[&str]) {
    let other = Home::new();
    other.create("other.wd", "512", &[]);
    for name in names {
        fs::copy(state(&other, name), state(home, name)).unwrap();
    }
}

#[test]
fn a_key_that_may_not_be_used_is_denied() {
    let unknown = format!(
        "~/vm.wd: {KID}: the set \"default/UUID\" is not known here\n  \
         use the state folder it was made with (--state DIR), or a recovery passphrase"
    );
    let disabled = format!(
        "~/vm.wd: Operation unwrapKey is not allowed on a disabled key {SCENE}; \
         enable it: wrapdisk key enable disk-kek --version HEX"
    );
    let gone = format!(
        "~/vm.wd: A key with (name/id) disk-kek/HEX was not found in this key vault {SCENE}; see what there is: \
         wrapdisk key list; a lost key can only come back from a backup of the vault"
    );
    let other_vault = "~/vm.wd: The key identifier belongs to another vault (key https://UUID.vault.localhost/keys/\
         disk-kek/HEX, identity UUID, vault \"default\"); this one is UUID.vault.localhost: use the vault that holds \
         the key, or the recovery passphrase";
    refused(
        [
            case("disabled", |h| drop(h.wrapdisk(["key", "disable", "disk-kek"]).ok()), 3, disabled),
            case("gone", |h| sql(h, "DELETE FROM key_version"), 3, gone),
            case(
                "another state folder",
                |h| from_another(h, &["vault.db", "root.key", "sets.db"]),
                3,
                &*unknown,
            ),
            case("another vault", |h| from_another(h, &["vault.db", "root.key"]), 3, other_vault),
            case("sets lost", |h| fs::remove_file(state(h, "sets.db")).unwrap(), 3, unknown),
        ],
        &MOUNT,
    );
}

#[test]
fn a_vault_that_cannot_be_asked_is_no_denial() {
    let root_key = "~/vm.wd: ~/home/state/root.key";
    let restore = "restore root.key from your backup: without it no private key of this vault opens";
    refused(
        [
            case(
                "no state folder",
                |h| fs::remove_dir_all(h.path("home")).unwrap(),
                4,
                "~/vm.wd: ~/home/state: no vault here\n  the first wrapdisk create makes one; to use another one, give --state DIR",
            ),
            case(
                "no root key",
                |h| fs::remove_file(state(h, "root.key")).unwrap(),
                4,
                format!(
                    "{root_key}: open the vault's root key: No such file or directory (os error 2)\n  {restore}"
                ),
            ),
            case(
                "root key for the group",
                |h| set_mode(&state(h, "root.key"), 0o640),
                4,
                format!(
                    "{root_key}: the vault's root key: found mode 0640, allowed 0600 (others could read it)\n  \
                     chmod 600 ~/home/state/root.key, and consider who may have read it"
                ),
            ),
            case(
                "sets for the group",
                |h| set_mode(&state(h, "sets.db"), 0o660),
                4,
                "~/vm.wd: ~/home/state/sets.db: mode: found 0660, allowed 0600\n  \
                 check who could have changed it, then: chmod 600 '~/home/state/sets.db'",
            ),
        ],
        &MOUNT,
    );
}

#[test]
fn a_user_who_cannot_read_the_root_key_is_told_so() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    for file in ["", "vm.wd", "home", "home/state", "home/state/vault.db", "home/state/sets.db"] {
        cli_support::give(&home.path(file));
    }
    let command = home.command(["check", "vm.wd"]);
    let done = support::finish(&mut cli_support::as_user(&command));
    let why = "~/home/state/root.key: open the vault's root key: Permission denied (os error 13)";
    assert!(shown(&home, &done.out).contains(why), "{}", done.out);
    done.fails(4);
}

#[test]
fn a_damaged_vault_is_told_from_a_damaged_disk() {
    let restore = "; restore it from your backup";
    let not_a_vault = "this SQLite file is not a wrapdisk vault; restore vault.db from your backup";
    refused(
        [
            case(
                "noise in place of the vault",
                |h| fs::write(state(h, "vault.db"), support::noise(7, 8192)).unwrap(),
                5,
                format!(
                    "~/vm.wd: ~/home/state/vault.db: the vault's database vault.db: file is not a database{restore}"
                ),
            ),
            case(
                "an empty vault",
                |h| fs::write(state(h, "vault.db"), "").unwrap(),
                5,
                format!(
                    "~/vm.wd: ~/home/state/vault.db: open the vault: found application id 0x00000000, allowed 0x77644b56\n  {not_a_vault}"
                ),
            ),
            case(
                "a newer vault",
                |h| sql(h, "PRAGMA user_version = 99"),
                1,
                "~/vm.wd: ~/home/state/vault.db: open the vault: found schema 99, allowed 1 to 3\n  a newer wrapdisk made it: use that one",
            ),
            case(
                "another root key",
                |h| from_another(h, &["root.key"]),
                5,
                "~/vm.wd: ~/home/state: open the vault: root.key does not belong to vault.db: open a sealed key: it was \
                 changed, moved, or sealed under another root.key\n  restore the two files from the same backup",
            ),
            case(
                "half a root key",
                |h| fs::File::options().write(true).open(state(h, "root.key")).unwrap().set_len(16).unwrap(),
                5,
                "~/vm.wd: ~/home/state/root.key: the vault's root key: found another length or form, \
                 allowed 32 bytes, or a sealed one\n  restore root.key from your backup",
            ),
            case(
                "noise in place of the sets",
                |h| fs::write(state(h, "sets.db"), support::noise(7, 8192)).unwrap(),
                5,
                "~/vm.wd: ~/home/state/sets.db: open: file is not a database\n  restore it from a backup of the state folder",
            ),
        ],
        &MOUNT,
    );
}

#[test]
fn a_vault_that_somebody_else_keeps_locked_can_be_asked_later() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    fs::create_dir(home.path("m")).unwrap();
    let lock = rusqlite::Connection::open(state(&home, "vault.db")).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let done = home.wrapdisk(MOUNT);
    let says = "wrapdisk: ~/vm.wd: the vault's database vault.db: database is locked";
    assert_eq!(shown(&home, &done.fails(4)), says);
    lock.execute_batch("ROLLBACK").unwrap();
    home.mount_at("vm.wd", &home.path("m"), &[]).unmount();
}

#[test]
fn what_is_no_whole_container_is_damaged() {
    let no_container = "~/vm.wd: not a LUKS2 container: no valid header copy was found\n  \
                        check the name; make a disk with: wrapdisk create FILE --size SIZE";
    let truncated = |found: u64| {
        format!("~/vm.wd: size: found {found} bytes of data, allowed at least 1048576: the file is truncated")
    };
    let restore = "put a backup back with: wrapdisk header restore FILE BACKUP";
    let sum = "checksum: found another one, allowed the SHA-256 of the header";
    let no_second = "secondary header: found nothing, allowed a copy at 16384, 32768, 65536 or 131072";
    refused(
        [
            case(
                "noise",
                |h| fs::write(h.path("vm.wd"), support::noise(9, 1 << 20)).unwrap(),
                5,
                no_container,
            ),
            case("empty", |h| fs::write(h.path("vm.wd"), "").unwrap(), 5, no_container),
            case("text", |h| fs::write(h.path("vm.wd"), "hello\n").unwrap(), 5, no_container),
            case("one sector short", |h| cut(h, (17 << 20) - 4096), 5, truncated((1 << 20) - 4096)),
            case("no data", |h| cut(h, 16 << 20), 5, truncated(0)),
            case(
                "cut in the header",
                |h| cut(h, 10000),
                5,
                format!(
                    "~/vm.wd: both header copies are bad: file: found 10000 bytes, allowed at least 16384; {no_second}\n  {restore}"
                ),
            ),
            case(
                "both copies changed",
                |h| [0, 16384].into_iter().for_each(|copy| write_at(&h.path("vm.wd"), copy + 5000, b"XX")),
                5,
                format!("~/vm.wd: both header copies are bad: {sum}; {sum}\n  {restore}"),
            ),
            case("both copies gone", |h| write_at(&h.path("vm.wd"), 0, &[0; 32768]), 5, no_container),
        ],
        &MOUNT,
    );
}

#[test]
fn one_bad_copy_is_said_does_no_harm_and_is_repaired() {
    for (copy, which) in [(0, "primary"), (16384, "secondary")] {
        let home = Home::ready();
        let disk = home.create("vm.wd", "1M", &[]);
        write_at(&disk, copy + 100, b"XX");
        let warning = format!(
            "~/vm.wd: the {which} header is bad: checksum: found another one, allowed the SHA-256 of the header"
        );
        fs::create_dir(home.path("m")).unwrap();
        // Reading repairs nothing.
        for _ in 0..2 {
            let done = home.wrapdisk(["mount", "vm.wd", "m", "--read-only"]);
            assert_eq!(shown(&home, &done.err), format!("wrapdisk: warn: {warning}"));
            done.ok();
            home.wrapdisk(["umount", "m"]).ok();
        }
        let done = home.wrapdisk(MOUNT);
        assert_eq!(shown(&home, &done.err), format!("wrapdisk: warn: {warning}"));
        done.ok();
        home.wrapdisk(["umount", "m"]).ok();
        let done = home.wrapdisk(["check", "vm.wd"]);
        assert_eq!((done.err.as_str(), done.code()), ("", 0));
    }
}

#[test]
fn a_passphrase_that_does_not_open_is_denied() {
    let home = Home::ready();
    fs::write(home.path("right"), "right\n").unwrap();
    fs::write(home.path("wrong"), "wrong\n").unwrap();
    fs::write(home.path("empty"), "").unwrap();
    home.create("vm.wd", "1M", &["--recovery-file", "right"]);
    home.create("none.wd", "1M", &[]);
    fs::create_dir(home.path("m")).unwrap();
    let mount = |disk: &str, more: &[&str]| -> Done { home.wrapdisk([&["mount", disk, "m"], more].concat()) };
    for (disk, more, code, says) in [
        ("vm.wd", &["--passphrase-file", "wrong"][..], 3, "~/vm.wd: no keyslot opens with this passphrase"),
        (
            "vm.wd",
            &["--passphrase-file", "missing"],
            1,
            "missing: open: No such file or directory (os error 2)",
        ),
        (
            "vm.wd",
            &["--passphrase-file", "empty"],
            1,
            "empty: passphrase file: found nothing, allowed at least one byte",
        ),
        (
            "vm.wd",
            &["--passphrase-file", "right", "--max-kdf-memory", "1M"],
            1,
            "~/vm.wd: keyslots.0.kdf.memory: found ",
        ),
        (
            "none.wd",
            &["--passphrase-file", "right"],
            3,
            "~/none.wd: keyslots: found none, so no passphrase opens it\n  open it through its vault, without --passphrase",
        ),
    ] {
        let said = shown(&home, &mount(disk, more).fails(code));
        assert!(said.starts_with(&format!("wrapdisk: {says}")), "{said}");
        assert!(says.ends_with("found ") || said.len() == "wrapdisk: ".len() + says.len(), "{said}");
    }
    // A denial reminds of the passphrase, which still opens it; so it does without any vault.
    home.wrapdisk(["key", "disable", "disk-kek"]).ok();
    let said = mount("vm.wd", &[]).fails(3);
    let hint = "\n  it has a recovery passphrase, which opens it without the vault: --passphrase";
    assert!(said.ends_with(hint), "{said}");
    fs::remove_dir_all(home.path("home")).unwrap();
    assert!(mount("vm.wd", &[]).fails(4).contains("no vault here"));
    mount("vm.wd", &["--passphrase-file", "right"]).ok();
    home.wrapdisk(["umount", "m"]).ok();
}

#[test]
fn a_disk_that_is_in_use_names_the_holder() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let mount = home.mount("vm.wd", &[]);
    fs::create_dir(home.path("m")).unwrap();
    let (place, pid) = (mount.place.display(), mount.pid);
    let ours = format!(
        "wrapdisk: {}: in use: mounted at {place} by process {pid}\n  unmount it first: wrapdisk umount {place}",
        home.text("vm.wd")
    );
    for more in [&[][..], &["--read-only"]] {
        assert_eq!(home.wrapdisk([&MOUNT[..], more].concat()).fails(1), ours);
    }
    assert_eq!(home.wrapdisk(["header", "restore", "vm.wd", "backup", "--yes"]).fails(1), ours);
    assert_eq!(home.wrapdisk(["header", "erase", "vm.wd", "--yes"]).fails(1), ours);
    // Whose sockets we cannot ask: the lock still knows the process.
    let mut stranger = home.command(MOUNT);
    let said = support::finish(stranger.env("WRAPDISK_HOME", home.path("elsewhere"))).fails(1);
    let theirs = format!("wrapdisk: {}: in use by another process (pid {pid}, wrapdisk)", home.text("vm.wd"));
    assert!(said.starts_with(&theirs), "{said}");
    mount.unmount();
}

#[test]
fn a_plain_container_is_pointed_to_its_passphrase() {
    let home = Home::ready();
    fs::create_dir(home.path("m")).unwrap();
    fs::write(home.path("pass"), "plain").unwrap();
    for (file, kind) in [("two.img", "luks2"), ("one.img", "luks1")] {
        run("truncate", ["-s", "20M", home.text(file)]);
        let pbkdf = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        let format = ["luksFormat", "-q", "--type", kind, "--key-file", home.text("pass"), home.text(file)];
        run("cryptsetup", [&format[..], if kind == "luks2" { &pbkdf[..] } else { &pbkdf[2..] }].concat());
    }
    let says = "wrapdisk: ~/two.img: tokens: found no wrapdisk-vault token, allowed 1 to 8\n  \
                this is a plain LUKS2 container; open it with --passphrase";
    assert_eq!(shown(&home, &home.wrapdisk(["mount", "two.img", "m"]).fails(1)), says);
    let says = "wrapdisk: ~/one.img: version: found 1, allowed 2\n  convert it with: cryptsetup convert --type luks2";
    assert_eq!(shown(&home, &home.wrapdisk(["mount", "one.img", "m"]).fails(1)), says);
    let done = home.wrapdisk(["mount", "two.img", "m", "--passphrase-file", "pass"]);
    let warning =
        "wrapdisk: warn: this header carries no MAC of ours: nothing proves that it was not tampered with\n";
    assert_eq!(done.err, warning);
    done.ok();
    home.wrapdisk(["umount", "m"]).ok();
}

#[test]
fn options_that_contradict_each_other_are_usage() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let new = "an option for a new disk: found without --create, which would make one";
    for (more, says) in [
        (
            &["--create", "1M", "--read-only"][..],
            "--create makes a writable disk; it does not go with --read-only",
        ),
        (&["--set", "default"], new),
        (&["--full"], new),
        (&["--no-discard"], new),
        (&["--label", "x"], new),
        (&["--recovery-passphrase"], new),
        (&["--recovery-file", "x"], new),
    ] {
        assert_eq!(
            home.wrapdisk([&MOUNT[..], more].concat()).fails(2),
            format!("wrapdisk: {says}"),
            "{more:?}"
        );
    }
    for (more, says) in [
        (
            &["--cache-size", "lots"][..],
            "invalid value 'lots' for '--cache-size <SIZE>': found \"lots\", allowed a number of bytes or a size such as 512M, 20G, 1.5T, 20GB",
        ),
        (&["--threads", "0"], "invalid value '0' for '--threads <N>': 0 is not in 1..=64"),
        (
            &["--max-request", "2M"],
            "invalid value '2M' for '--max-request <SIZE>': found 2097152 bytes, allowed 64K to 1M in steps of 4K",
        ),
        (&["--uid", "joe"], "invalid value 'joe' for '--uid <UID>': invalid digit found in string"),
    ] {
        let said = home.wrapdisk([&MOUNT[..], more].concat()).fails(2);
        assert_eq!(said.lines().next().unwrap(), format!("error: {says}"));
    }
}

#[test]
fn a_folder_too_deep_for_a_socket_is_said_and_nothing_stays_mounted() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    fs::create_dir(home.path("m")).unwrap();
    let deep = home.path(&"x".repeat(120));
    fs::rename(home.path("home"), &deep).unwrap();
    let done = support::finish(home.command(MOUNT).env("WRAPDISK_HOME", &deep));
    let said = shown(&home, &done.fails(1));
    assert!(
        said.starts_with("wrapdisk: ~/xxx")
            && said.contains(".sock: control socket: path longer than 107 bytes")
    );
    assert!(said.ends_with("\n  set XDG_RUNTIME_DIR or WRAPDISK_HOME to a shorter path"), "{said}");
    assert_eq!(names(&home.path("m")), [""; 0]);
}
