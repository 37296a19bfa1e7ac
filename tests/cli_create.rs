//! Does `wrapdisk create` make what was asked for, refuse what it cannot make with a message that says so, overwrite
//! nothing unasked, and leave nothing behind when it fails?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cli_support::{SmallDisk, as_user, give, mode, names, overwrite};
use support::{Home, WRAPDISK, finish, run};

/// `create` of 1 MiB.
fn create(home: &Home, more: &[&str]) -> support::Done {
    home.wrapdisk([&["create", "--size", "1M"], more].concat())
}

/// The label that a judge finds.
fn blkid(path: &str, tag: &str) -> String {
    run("blkid", ["-p", "-s", tag, "-o", "value", path])
}

#[test]
fn sizes_are_taken_as_written() {
    let home = Home::ready();
    for (text, bytes) in [
        ("512", 512),
        ("4k", 4096),
        ("1.5M", 3 << 19),
        ("1MiB", 1 << 20),
        ("64MB", 64_000_000),
        ("3G", 3_u64 << 30),
        ("2T", 2 << 40),
    ] {
        let made: serde_json::Value = home.json(["create", &format!("{text}.wd"), "--size", text]);
        assert_eq!(made["size"], bytes, "{text}");
        let info = home.json(["info", &format!("{text}.wd")]);
        assert_eq!((&info["size"], &info["uuid"]), (&bytes.into(), &made["uuid"]), "{text}");
        let meta = fs::metadata(home.path(&format!("{text}.wd"))).unwrap();
        assert_eq!(meta.len(), (16 << 20) + bytes.next_multiple_of(4096), "{text}");
        assert!(meta.blocks() * 512 <= 64 << 10, "{text}: {} blocks for an empty disk", meta.blocks());
        let mount = home.mount(&format!("{text}.wd"), &[]);
        assert_eq!(fs::metadata(&mount.file).unwrap().len(), bytes, "{text}");
        mount.unmount();
    }
}

#[test]
fn sizes_that_are_none_are_refused_as_usage() {
    let home = Home::new();
    for (text, why) in [
        ("0", "found 0 bytes, allowed a positive multiple of 512"),
        ("0G", "found 0 bytes, allowed a positive multiple of 512"),
        ("511", "found 511 bytes, allowed a positive multiple of 512"),
        ("1000", "found 1000 bytes, allowed a positive multiple of 512"),
        ("1MB", "found 1000000 bytes, allowed a positive multiple of 512"),
        ("0.3K", "found \"0.3K\", which is not a whole number of bytes"),
        ("8192P", "found \"8192P\", allowed less than 8 EiB"),
        ("99999999999999999999", "found \"99999999999999999999\", allowed less than 8 EiB"),
        ("-1", "found \"-1\", allowed a number of bytes or a size such as 512M, 20G, 1.5T, 20GB"),
        ("ten", "found \"ten\", allowed a number of bytes or a size such as 512M, 20G, 1.5T, 20GB"),
        ("", "found \"\", allowed a number of bytes or a size such as 512M, 20G, 1.5T, 20GB"),
    ] {
        let err = home.wrapdisk(["create", "vm.wd", &format!("--size={text}")]).fails(2);
        let first = err.lines().next().unwrap();
        assert_eq!(first, format!("error: invalid value '{text}' for '--size <SIZE>': {why}"));
        assert!(err.ends_with("For more information, try '--help'."), "{err}");
    }
    assert_eq!(names(home.root()), [""; 0]);
}

#[test]
fn a_size_that_the_file_system_cannot_hold_is_refused_and_nothing_is_left() {
    let home = Home::ready();
    let small = SmallDisk::ext4(home.root(), "24M");
    let before = names(&small.place);
    for (size, len) in [("17T", "18691714449408"), ("8191P", "9222246136964710400")] {
        assert_eq!(
            home.wrapdisk(["create", "small/vm.wd", "--size", size]).fails(1),
            format!(
                "wrapdisk: small/vm.wd: set the length to {len}: File too large (os error 27)\n  \
                 choose a smaller size, or another place"
            )
        );
    }
    let almost = "9223372036854775296"; // the last multiple of 512 below 2^63: no room for a header
    assert_eq!(
        home.wrapdisk(["create", "small/vm.wd", "--size", almost]).fails(1),
        format!("wrapdisk: small/vm.wd: size: found {almost} bytes, allowed less than 8 EiB")
    );
    assert_eq!(names(&small.place), before);
}

#[test]
fn a_full_file_system_is_said_and_nothing_is_left() {
    let home = Home::ready();
    let small = SmallDisk::ext4(home.root(), "24M");
    let before = names(&small.place);
    let free = || run("stat", ["-f", "-c", "%f", small.place.to_str().unwrap()]);
    let free_before = free();
    let err = home.wrapdisk(["create", "small/vm.wd", "--size", "64M", "--full"]).fails(1);
    assert!(err.starts_with("wrapdisk: small/vm.wd: write 131072 bytes at "), "{err}");
    let ending = ": No space left on device (os error 28)\n  choose a smaller size, or another place";
    assert!(err.ends_with(ending), "{err}");
    assert_eq!((names(&small.place), free()), (before, free_before));

    // Full to the last block: not even the headers find room.
    let _ =
        finish(Command::new("dd").args(["if=/dev/zero", "of=small/junk", "bs=1K"]).current_dir(home.root()));
    let _ =
        finish(Command::new("cp").args(["-r", "small/lost+found", "small/more"]).current_dir(home.root()));
    let err = home.wrapdisk(["create", "small/vm.wd", "--size", "1M"]).fails(1);
    assert!(err.contains("No space left on device (os error 28)\n  choose a smaller size"), "{err}");
    assert!(!small.place.join("vm.wd").exists());

    fs::remove_file(small.place.join("junk")).unwrap();
    home.create("small/vm.wd", "1M", &[]);
    home.wrapdisk(["check", "small/vm.wd"]).ok();
}

#[test]
fn what_exists_is_replaced_only_with_force_and_in_one_step() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let first = home.json(["info", "vm.wd"]);
    let inode = fs::metadata(home.path("vm.wd")).unwrap().ino();
    assert_eq!(
        create(&home, &["vm.wd"]).fails(1),
        "wrapdisk: vm.wd: exists already\n  choose another name, or replace it with --force (its data is lost)"
    );
    assert_eq!(home.json(["info", "vm.wd"]), first);

    create(&home, &["vm.wd", "--force"]).ok();
    let second = home.json(["info", "vm.wd"]);
    assert_ne!(second["uuid"], first["uuid"]);
    assert_ne!(fs::metadata(home.path("vm.wd")).unwrap().ino(), inode);
    home.wrapdisk(["check", "vm.wd"]).ok();
    // The old one is not among the disks of the set any more.
    let disks = home.json(["set", "show", "default"])["disks"].take();
    let here = |d: &&serde_json::Value| d["path"] == home.text("vm.wd");
    let here: Vec<_> = disks.as_array().unwrap().iter().filter(here).map(|d| &d["uuid"]).collect();
    assert_eq!(here, [&second["uuid"]]);
    // Any file, not only a container.
    fs::write(home.path("notes.txt"), "important").unwrap();
    create(&home, &["notes.txt"]).fails(1);
    assert_eq!(fs::read(home.path("notes.txt")).unwrap(), b"important");
}

#[test]
fn a_link_stays_a_link_and_one_to_nothing_is_refused() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    symlink("vm.wd", home.path("link.wd")).unwrap();
    symlink("nothing", home.path("dangling.wd")).unwrap();
    create(&home, &["link.wd"]).fails(1);
    create(&home, &["link.wd", "--force"]).ok();
    assert_eq!(fs::read_link(home.path("link.wd")).unwrap(), Path::new("vm.wd"));
    home.wrapdisk(["check", "vm.wd"]).ok();
    for more in [&["dangling.wd"][..], &["dangling.wd", "--force"]] {
        assert_eq!(
            create(&home, more).fails(1),
            "wrapdisk: dangling.wd: create: No such file or directory (os error 2)"
        );
    }
    assert_eq!(names(home.root()), ["dangling.wd", "home", "link.wd", "vm.wd"]);
}

#[test]
fn a_mounted_disk_is_never_replaced() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let mount = home.mount("vm.wd", &[]);
    overwrite(&mount.file, &[7; 4096]);
    assert_eq!(
        create(&home, &["vm.wd", "--force"]).fails(1),
        format!(
            "wrapdisk: {0}: in use: mounted at {1} by process {2}\n  unmount it first: wrapdisk umount {1}",
            "vm.wd",
            mount.place.display(),
            mount.pid
        )
    );
    assert_eq!(&fs::read(&mount.file).unwrap()[..4096], vec![7; 4096]);
    mount.unmount();
    home.wrapdisk(["check", "vm.wd"]).ok();
    assert_eq!(names(home.root()), ["home", "vm.wd", "vm.wd.mnt"]);
}

#[test]
fn of_two_that_make_one_name_at_once_one_wins() {
    let home = Home::ready();
    let start = || -> Child {
        let mut command = home.command(["create", "vm.wd", "--size", "16M", "--full"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [start(), start(), start()].map(|child| child.wait_with_output().unwrap());
    let losers: Vec<_> = both.iter().filter(|end| !end.status.success()).collect();
    assert_eq!(losers.len(), 2);
    for loser in losers {
        assert_eq!(loser.status.code(), Some(1));
        let err = String::from_utf8_lossy(&loser.stderr);
        assert!(err.starts_with("wrapdisk: vm.wd: exists already"), "{err}");
    }
    home.wrapdisk(["check", "vm.wd"]).ok();
    assert_eq!(names(home.root()), ["home", "vm.wd"]);
}

#[test]
fn what_is_no_place_for_a_container_is_refused() {
    let home = Home::ready();
    fs::create_dir(home.path("folder")).unwrap();
    run("mkfifo", [home.text("pipe")]);
    let no_file =
        |what: &str| format!("is {what}, not a regular file or a block device\n  name the container itself");
    for (disk, code, why) in [
        ("folder", 1, no_file("a folder")),
        (".", 1, no_file("a folder")),
        ("pipe", 1, no_file("a named pipe")),
        ("/dev/null", 1, no_file("a character device")),
        ("new/", 2, "not the name of a file".to_owned()),
        (
            "no/such/vm.wd",
            1,
            "create: No such file or directory (os error 2)\n  make its folder first, with mkdir".to_owned(),
        ),
        ("pipe/vm.wd", 1, "create: Not a directory (os error 20)".to_owned()),
    ] {
        for force in [&[][..], &["--force"]] {
            let err = create(&home, &[&[disk], force].concat()).fails(code);
            assert_eq!(err, format!("wrapdisk: {disk}: {why}"), "{disk} {force:?}");
        }
    }
    assert_eq!(names(home.root()), ["folder", "home", "pipe"]);
}

#[test]
fn a_folder_without_permission_or_read_only_is_said() {
    let home = Home::ready();
    fs::create_dir(home.path("roots")).unwrap();
    give(home.root());
    run("chown", ["-R", "65534:65534", home.text("home")]);
    let mut command = home.command(["create", "roots/vm.wd", "--size", "1M"]);
    let err = finish(&mut as_user(&command)).fails(1);
    assert_eq!(err, "wrapdisk: roots/vm.wd: create: Permission denied (os error 13)");
    command = home.command(["create", "vm.wd", "--size", "1M"]);
    finish(&mut as_user(&command)).ok();
    assert_eq!(
        (mode(&home.path("vm.wd")), fs::metadata(home.path("vm.wd")).unwrap().uid()),
        ("0600".into(), 65534)
    );

    let home = Home::ready();
    let small = SmallDisk::ext4(home.root(), "24M");
    run("mount", ["-o", "remount,ro", small.place.to_str().unwrap()]);
    let err = create(&home, &["small/vm.wd"]).fails(1);
    assert_eq!(err, "wrapdisk: small/vm.wd: create: Read-only file system (os error 30)");
}

#[test]
fn the_set_is_the_one_that_was_named() {
    let home = Home::ready();
    let made = home.json(["create", "vm.wd", "--size", "1M", "--set", "default"]);
    let set = home.json(["set", "show", "default"]);
    assert_eq!((&made["set"], &made["key"]), (&"default".into(), &set["properties"]["activeKey"]["keyUrl"]));
    assert_eq!(made["disk"], home.text("vm.wd"));
    assert_eq!(
        create(&home, &["other.wd", "--set", "prod"]).fails(1),
        format!(
            "wrapdisk: set \"prod\": no such set in {}; known: default\n  see what there is: wrapdisk set list",
            home.path("home/state/sets.db").display()
        )
    );
    assert_eq!(names(home.root()), ["home", "vm.wd"]);
}

#[test]
fn a_label_is_shown_by_everybody_and_one_too_long_is_refused() {
    let home = Home::ready();
    let longest = "x".repeat(47);
    for label in ["vm disk", &longest] {
        create(&home, &["vm.wd", "--force", "--label", label]).ok();
        assert_eq!(home.json(["info", "vm.wd"])["label"], label);
        assert_eq!(blkid(home.text("vm.wd"), "LABEL"), label);
    }
    for bad in ["x".repeat(48), "\u{1}".to_owned()] {
        let err = create(&home, &["other.wd", "--label", &bad]).fails(1);
        let (len, shown) = (bad.len(), bad.escape_debug());
        let why = format!("label: found {len} bytes (\"{shown}\"), allowed at most 47 printable ones");
        assert_eq!(err, format!("wrapdisk: other.wd: {why}"));
    }
    assert_eq!(blkid(home.text("vm.wd"), "TYPE"), "crypto_LUKS");
    assert!(!home.path("other.wd").exists());
}

#[test]
fn discards_free_space_unless_that_was_forbidden() {
    let home = Home::ready();
    for (more, frees) in [(&[][..], true), (&["--no-discard"], false)] {
        create(&home, &[&["vm.wd", "--force"], more].concat()).ok();
        let mount = home.mount("vm.wd", &[]);
        overwrite(&mount.file, &support::noise(1, 1 << 20));
        let blocks = || fs::metadata(home.path("vm.wd")).unwrap().blocks();
        run("sync", [mount.text()]);
        let full = blocks();
        run("fallocate", ["--punch-hole", "--offset", "0", "--length", "1M", mount.text()]);
        run("sync", [mount.text()]);
        assert_eq!(blocks() < full, frees, "{more:?}: {full} blocks, then {}", blocks());
        assert!(fs::read(&mount.file).unwrap().iter().all(|b| *b == 0));
        mount.unmount();
        assert_eq!(home.json(["info", "vm.wd"])["discards"], frees);
    }
}

#[test]
fn a_full_disk_has_no_holes_to_tell_tales() {
    let home = Home::ready();
    create(&home, &["vm.wd", "--full"]).ok();
    let info = home.json(["info", "vm.wd"]);
    assert_eq!((&info["holes"], &info["discards"]), (&"none".into(), &false.into()));
    let bytes = fs::read(home.path("vm.wd")).unwrap();
    let empty = |bytes: &[u8]| bytes.chunks(512).filter(|sector| sector.iter().all(|b| *b == 0)).count();
    assert_eq!(empty(&bytes[16 << 20..]), 0);
    assert!(empty(&bytes[..16 << 20]) > 0, "the judge finds nothing at all");
    let mount = home.mount("vm.wd", &[]);
    assert!(fs::read(&mount.file).unwrap().iter().all(|b| *b == 0));
    mount.unmount();
}

#[test]
fn a_name_of_any_bytes_will_do() {
    use std::os::unix::ffi::OsStrExt;
    let home = Home::ready();
    let name = std::ffi::OsStr::from_bytes(b"odd \xff,name.wd");
    let mut command = Command::new(WRAPDISK);
    command.arg("mount").args(["--create", "1M"]).arg(name).arg("m").env("WRAPDISK_HOME", home.path("home"));
    finish(command.current_dir(home.root())).ok();
    let status = home.json(["status"]);
    let path: Vec<u8> = serde_json::from_value(status[0]["disk"].clone()).unwrap();
    assert_eq!(path, home.root().join(name).as_os_str().as_bytes());
    assert_eq!(home.json(["info", "m"])["disk"], status[0]["disk"]);
    assert_eq!(home.json(["check", "m"])["ok"], true);
    home.wrapdisk(["umount", "m"]).ok();
    home.json(["set", "show", "default"]);
}
