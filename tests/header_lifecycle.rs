//! Does a header live through backup, loss and restore as it should: nothing overwritten unasked, nothing foreign put in,
//! and after an erase no way in but a backup?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cryptsetup_support;
mod support;

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use cryptsetup_support::{CHEAP, add_slot, copy, cryptsetup, dump_json, flip, put, volume_key};
use serde_json::json;
use support::{Home, noise};

const AREA: usize = 16 << 20;
const SAVED: &str = "a.wd.header-before-restore";

/// Disks `a.wd` and `b.wd`; the first holds some noise and has a keyslot for the words in the file `p`.
fn home() -> (Home, Vec<u8>) {
    let home = Home::ready();
    for name in ["a.wd", "b.wd"] {
        home.create(name, "4M", &[]);
    }
    add_slot(home.text("a.wd"), volume_key(&home, "a.wd"), put(&home, "p", b"words"), &CHEAP);
    let data = noise(9, 100_000);
    let mount = home.mount("a.wd", &[]);
    std::fs::File::options().write(true).open(&mount.file).unwrap().write_all_at(&data, 0).unwrap();
    mount.unmount();
    (home, data)
}

fn backup(home: &Home, disk: &str, file: &str) {
    assert_eq!(home.wrapdisk(["header", "backup", disk, file]).ok(), file);
}

/// What the area of a disk's header holds.
fn area(home: &Home, file: &str) -> Vec<u8> {
    let mut bytes = std::fs::read(home.path(file)).unwrap();
    bytes.truncate(AREA);
    bytes
}

/// A header command that fails, with what it says behind the program's name.
#[track_caller]
fn refused(home: &Home, args: &[&str], code: i32) -> String {
    let said = home.wrapdisk([&["header"], args].concat()).fails(code);
    said.strip_prefix("wrapdisk: ").unwrap_or_else(|| panic!("{said}")).to_owned()
}

/// It mounts, by the vault and by the passphrase, and the data are there.
#[track_caller]
fn opens(home: &Home, data: &[u8]) {
    for how in [&[][..], &["--passphrase-file", "p"]] {
        let mount = home.mount("a.wd", how);
        assert!(std::fs::read(&mount.file).unwrap().starts_with(data));
        mount.unmount();
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_backup_is_private_and_overwrites_nothing() {
    let (home, _) = home();
    let done = home.wrapdisk(["header", "backup", "a.wd", "a.hdr"]);
    let note = "note: this file opens the disk to whoever may use the keys in it; old keys come back with it";
    assert_eq!((done.err.trim(), done.out.trim()), (note, "a.hdr"));
    assert_eq!(mode(&home.path("a.hdr")), 0o400);
    assert!(area(&home, "a.hdr") == area(&home, "a.wd"));

    let said = refused(&home, &["backup", "b.wd", "a.hdr"], 1);
    assert_eq!(said, "a.hdr: create: File exists (os error 17)");
    assert!(area(&home, "a.hdr") == area(&home, "a.wd"), "the first backup was touched");
    let said = refused(&home, &["backup", "a.wd", "nowhere/a.hdr"], 1);
    assert_eq!(said, "nowhere/a.hdr: create: No such file or directory (os error 2)");
}

#[test]
fn a_mounted_disk_is_backed_up_and_neither_restored_nor_erased() {
    let (home, _) = home();
    backup(&home, "a.wd", "before.hdr");
    let mount = home.mount("a.wd", &[]);
    for (name, disk) in [("by-file.hdr", "a.wd"), ("by-mountpoint.hdr", "a.wd.mnt")] {
        backup(&home, disk, name);
        assert!(area(&home, name) == area(&home, "before.hdr"));
    }
    let place = home.path("a.wd.mnt");
    let busy = format!(
        "{}: in use: mounted at {} by process {}\n  unmount it first: wrapdisk umount {}",
        home.path("a.wd").display(),
        place.display(),
        mount.pid,
        place.display()
    );
    assert_eq!(refused(&home, &["restore", "a.wd", "before.hdr", "--yes", "--force"], 1), busy);
    assert_eq!(refused(&home, &["erase", "a.wd", "--yes"], 1), busy);
    assert!(!home.path(SAVED).exists());
    mount.unmount();
}

#[test]
fn what_is_replaced_is_kept_beside_the_disk_and_can_be_put_back() {
    let (home, data) = home();
    backup(&home, "a.wd", "old.hdr");
    cryptsetup(["config", "--label", "newer", home.text("a.wd")]).ok();
    backup(&home, "a.wd", "new.hdr");

    let (disk, saved) = (home.path("a.wd"), home.path(SAVED));
    let said = home.wrapdisk(["header", "restore", "a.wd", "old.hdr", "--yes"]).ok();
    assert_eq!(said, format!("{}: restored; the header before is in {}", disk.display(), saved.display()));
    assert!(area(&home, "a.wd") == area(&home, "old.hdr"));
    assert!(area(&home, SAVED) == area(&home, "new.hdr"));
    assert_eq!(mode(&saved), 0o400);
    opens(&home, &data);

    // It is never overwritten, and says what to do.
    let said = refused(&home, &["restore", "a.wd", SAVED, "--yes"], 1);
    let expected = "create: File exists (os error 17)\n  an earlier restore saved it: move it away first";
    assert_eq!(said, format!("{}: {expected}", saved.display()));
    assert!(area(&home, "a.wd") == area(&home, "old.hdr"));
    std::fs::rename(&saved, home.path("saved.hdr")).unwrap();
    home.wrapdisk(["header", "restore", "a.wd", "saved.hdr", "--yes"]).ok();
    assert!(area(&home, "a.wd") == area(&home, "new.hdr"));
    assert_eq!(home.json(["info", "a.wd"])["label"], "newer");
    opens(&home, &data);
}

#[test]
fn another_disks_backup_goes_in_by_force_only() {
    let (home, data) = home();
    for name in ["a", "b"] {
        backup(&home, &format!("{name}.wd"), &format!("{name}.hdr"));
    }
    let uuid = |name: &str| home.json(["info", name])["uuid"].as_str().unwrap().to_owned();
    let (a, b) = (uuid("a.wd"), uuid("b.wd"));
    let said = refused(&home, &["restore", "a.wd", "b.hdr", "--yes"], 5);
    let expected = format!(
        "b.hdr: backup: found uuid {b}, allowed {a} with the same segment and digest\n  \
         to put it here all the same, add --force"
    );
    assert_eq!(said, expected);
    assert!(area(&home, "a.wd") == area(&home, "a.hdr") && !home.path(SAVED).exists());

    // The same uuid with another data key is as foreign.
    copy(home.text("b.wd"), home.text("c.wd"));
    cryptsetup(["luksUUID", "-q", "--uuid", &a, home.text("c.wd")]).ok();
    backup(&home, "c.wd", "c.hdr");
    assert!(
        refused(&home, &["restore", "a.wd", "c.hdr", "--yes"], 5).starts_with("c.hdr: backup: found uuid ")
    );

    home.wrapdisk(["header", "restore", "a.wd", "b.hdr", "--yes", "--force"]).ok();
    assert!(area(&home, "a.wd") == area(&home, "b.hdr"));
    std::fs::rename(home.path(SAVED), home.path("saved.hdr")).unwrap();
    home.wrapdisk(["header", "restore", "a.wd", "saved.hdr", "--yes", "--force"]).ok();
    opens(&home, &data);
}

#[test]
fn what_is_no_backup_is_refused_and_named_and_the_disk_is_untouched() {
    let (home, data) = home();
    backup(&home, "a.wd", "a.hdr");
    let whole = area(&home, "a.hdr");
    put(&home, "half.hdr", &whole[..AREA / 2]);
    put(&home, "empty.hdr", b"");
    put(&home, "noise.hdr", &noise(1, AREA));
    put(&home, "torn.hdr", &whole);
    for copy in [5000, 16384 + 5000] {
        flip(&home.path("torn.hdr"), copy);
    }
    let advice = "\n  this is the backup; the container was left as it is";
    let none = format!("not a LUKS2 container: no valid header copy was found{advice}");
    let sum = "checksum: found another one, allowed the SHA-256 of the header";
    for (file, code, message) in [
        ("half.hdr", 5, format!("backup: found {} bytes, allowed {AREA}", AREA / 2)),
        ("empty.hdr", 5, none.clone()),
        ("noise.hdr", 5, none),
        ("torn.hdr", 5, format!("both header copies are bad: {sum}; {sum}{advice}")),
        ("missing.hdr", 1, "open: No such file or directory (os error 2)".to_owned()),
    ] {
        let said = refused(&home, &["restore", "a.wd", file, "--yes", "--force"], code);
        assert_eq!(said, format!("{file}: {message}"));
    }
    assert!(area(&home, "a.wd") == whole && !home.path(SAVED).exists());
    opens(&home, &data);
}

#[test]
fn a_destroyed_header_comes_back_from_its_backup() {
    let (home, data) = home();
    backup(&home, "a.wd", "a.hdr");
    for garbage in [vec![0; 64 << 10], noise(4, AREA)] {
        let disk = std::fs::File::options().write(true).open(home.path("a.wd")).unwrap();
        disk.write_all_at(&garbage, 0).unwrap();
        drop(disk);
        let said = home.wrapdisk(["mount", "a.wd", "m"]).code();
        assert_ne!(said, 0);
        home.wrapdisk(["header", "restore", "a.wd", "a.hdr", "--yes"]).ok();
        assert!(area(&home, SAVED).starts_with(&garbage), "even garbage is kept");
        std::fs::remove_file(home.path(SAVED)).unwrap();
        opens(&home, &data);
    }
}

#[test]
fn after_an_erase_nothing_opens_it_until_a_backup_is_back() {
    let (home, data) = home();
    let disk = home.text("a.wd");
    backup(&home, "a.wd", "a.hdr");
    let done = home.wrapdisk(["header", "erase", "a.wd", "--yes"]);
    assert_eq!(done.out.trim(), format!("{disk}: erased"));
    assert!(
        done.err.contains("copies of the header in snapshots, backups and SSD cells live on"),
        "{}",
        done.err
    );

    let dump = dump_json(disk);
    assert_eq!((&dump["keyslots"], &dump["tokens"]), (&json!({}), &json!({})));
    let p = home.text("p");
    assert_eq!(cryptsetup(["open", "--test-passphrase", "--key-file", p, disk]).code(), 1);
    std::fs::create_dir(home.path("m")).unwrap();
    let said = home.wrapdisk(["mount", "a.wd", "m"]).fails(1);
    let expected = "tokens: found no wrapdisk-vault token, allowed 1 to 8\n  nothing opens it, there is no keyslot \
                    either; put a backup back with: wrapdisk header restore FILE BACKUP";
    assert_eq!(said, format!("wrapdisk: {disk}: {expected}"));
    home.wrapdisk(["mount", "a.wd", "m", "--passphrase-file", p]).fails(3);

    // No byte of what unlocked it is left: not of the slot's area, not of the wrapped key.
    let (before, after) = (area(&home, "a.hdr"), area(&home, "a.wd"));
    let kept = (32 << 10..(32 << 10) + 256_000).filter(|i| before[*i] == after[*i]).count();
    assert!(kept < 256_000 / 100, "{kept} bytes of the keyslot's area are as they were");
    let wrapped = dump_of(&before)["tokens"]["0"]["wrapdisk-wrapped-dek"].as_str().unwrap()[..64].to_owned();
    let holds = |area: &[u8]| area.windows(64).any(|w| w == wrapped.as_bytes());
    assert!(holds(&before) && !holds(&after));

    home.wrapdisk(["header", "restore", "a.wd", "a.hdr", "--yes"]).ok();
    opens(&home, &data);
}

/// The JSON in a backup's first copy.
fn dump_of(area: &[u8]) -> serde_json::Value {
    let text = &area[4096..16384];
    serde_json::from_slice(&text[..text.iter().position(|b| *b == 0).unwrap()]).unwrap()
}
