//! Is a place to mount on taken as it is or refused with what is wrong about it: missing, full, busy, dead, hidden, odd in
//! name or kind?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Home, Mount, eventually, finish, run};

/// A home with the disks `a.wd` and `b.wd` and the empty folder `mnt`.
fn home() -> Home {
    let home = Home::ready();
    home.create("a.wd", "1M", &[]);
    home.create("b.wd", "1M", &[]);
    std::fs::create_dir(home.path("mnt")).unwrap();
    home
}

/// What `wrapdisk mount a.wd PLACE ...` says when it is refused with exit code 1; nothing may be mounted by it.
#[track_caller]
fn refused(home: &Home, args: &[&str]) -> String {
    let before = mounts_below(home.root());
    let said = home.wrapdisk([&["mount", "a.wd"], args].concat()).fails(1);
    assert_eq!(mounts_below(home.root()), before, "a refused mount left something behind");
    assert_eq!(home.wrapdisk(["check", "a.wd"]).status.code(), Some(0), "the disk is not held");
    said
}

/// `(mountpoint, source)` as findmnt decodes them.
fn mounts_below(root: &Path) -> Vec<(String, String)> {
    let table = run("findmnt", ["--json", "--list", "--output", "TARGET,SOURCE"]);
    let table: serde_json::Value = serde_json::from_str(&table).unwrap();
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let all =
        table["filesystems"].as_array().unwrap().iter().map(|m| (text(&m["target"]), text(&m["source"])));
    all.filter(|(target, _)| Path::new(target).starts_with(root)).collect()
}

/// Ends a daemon as a crash does. Its mount stays, and answers "Transport endpoint is not connected".
fn kill_daemon(mount: &Mount<'_>) {
    kill(Pid::from_raw(mount.pid), Signal::SIGKILL).unwrap();
    mount.wait_for_end();
    let dead = || nix::sys::statfs::statfs(&mount.place).err().filter(|e| *e == nix::Error::ENOTCONN);
    eventually("the mount to be dead", dead);
}

#[test]
fn a_missing_place_is_asked_for() {
    let home = home();
    let hint = "make a folder (or an empty file) there first, for instance with mkdir";
    for place in ["missing", "missing/deeper"] {
        assert_eq!(
            refused(&home, &[place]),
            format!("wrapdisk: {place}: mountpoint: No such file or directory (os error 2)\n  {hint}")
        );
    }
    symlink("nowhere", home.path("dangling")).unwrap();
    assert!(refused(&home, &["dangling"]).contains("dangling: mountpoint: No such file or directory"));
}

#[test]
fn a_folder_with_files_in_it_is_hidden_only_when_told_to() {
    let home = home();
    std::fs::write(home.path("mnt/precious"), "x").unwrap();
    assert_eq!(
        refused(&home, &["mnt"]),
        "wrapdisk: mnt: mountpoint: the folder is not empty; its files would be hidden\n  \
         choose an empty folder, or allow it with --nonempty"
    );
    let mount = home.mount_at("a.wd", &home.path("mnt"), &["--nonempty"]);
    assert!(!home.path("mnt/precious").exists() && mount.file.exists());
    mount.unmount();
    assert_eq!(std::fs::read(home.path("mnt/precious")).unwrap(), b"x");
}

#[test]
fn what_is_neither_folder_nor_regular_file_is_refused() {
    let home = home();
    nix::unistd::mkfifo(&home.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(home.path("socket")).unwrap();
    for place in ["fifo", "socket", "/dev/null"] {
        assert_eq!(
            refused(&home, &[place]),
            format!("wrapdisk: {place}: mountpoint: found neither a folder nor a regular file")
        );
    }
}

#[test]
fn a_busy_place_is_refused_and_names_what_is_there() {
    let home = home();
    let hint = "choose another place, or umount it first";
    let b = home.mount_at("b.wd", &home.path("mnt"), &[]);
    for options in [&[][..], &["--nonempty"]] {
        for place in ["mnt", "mnt/", "./mnt/../mnt"] {
            assert_eq!(
                refused(&home, &[&[place], options].concat()),
                format!(
                    "wrapdisk: {place}: mountpoint: {} is mounted here\n  {hint}",
                    home.path("b.wd").display()
                )
            );
        }
    }
    // A disk within a disk's mount would hide the other's plaintext.
    assert_eq!(
        refused(&home, &["mnt/disk.img"]),
        format!(
            "wrapdisk: mnt/disk.img: mountpoint: this is the plaintext of {}, which is mounted\n  \
             choose another place",
            home.path("b.wd").display()
        )
    );
    b.unmount();
    run("mount", ["-t", "tmpfs", "tmpfs", home.text("mnt")]);
    let said = refused(&home, &["mnt"]);
    run("umount", [home.text("mnt")]);
    assert_eq!(said, format!("wrapdisk: mnt: mountpoint: a tmpfs file system is mounted here\n  {hint}"));
}

#[test]
fn a_dead_mount_of_ours_is_taken_off_and_its_place_used_again() {
    let home = home();
    File::create(home.path("file")).unwrap();
    symlink("mnt", home.path("link")).unwrap();
    for (place, name) in [("mnt", "mnt"), ("mnt", "link"), ("file", "file")] {
        let mount = home.mount_at("b.wd", &home.path(place), &[]);
        File::options().write(true).open(&mount.file).unwrap().write_all_at(b"kept", 0).unwrap();
        kill_daemon(&mount);
        let again = home.wrapdisk(["mount", "b.wd", name]);
        assert!(
            again.err.contains("a wrapdisk mount whose daemon is gone; taking it off"),
            "{name}: {}",
            again.err
        );
        let file = PathBuf::from(again.ok());
        assert_eq!(file, mount.file, "{name}");
        assert_eq!(mounts_below(home.root()).len(), 1, "{name}: not two on top of each other");
        assert_eq!(&std::fs::read(&file).unwrap()[..4], b"kept");
        // A program that another test starts holds copies of open files between its fork and its exec.
        eventually("unmount", || {
            let done = home.wrapdisk(["umount", name]);
            assert!(done.status.success() || done.err.contains("still in use"), "{}", done.err);
            done.status.success().then_some(())
        });
    }
}

#[test]
fn a_dead_mount_of_another_program_is_left_alone() {
    let home = home();
    let options = "fd=9,rootmode=40000,user_id=0,group_id=0";
    let script = "exec 9<>/dev/fuse && mount -i -t fuse.other -o $1 theirs $0";
    run("bash", ["-c", script, home.text("mnt"), options]);
    assert_eq!(nix::sys::statfs::statfs(&home.path("mnt")).err(), Some(nix::Error::ENOTCONN));
    let said = refused(&home, &["mnt"]);
    run("umount", [home.text("mnt")]);
    assert!(
        said.starts_with("wrapdisk: mnt: mountpoint: a fuse.other file system is mounted here"),
        "{said}"
    );
}

#[test]
fn create_makes_the_folder_but_not_its_parents() {
    let home = home();
    let file = home.wrapdisk(["mount", "--create", "1M", "new.wd", "new"]).ok();
    assert_eq!(Path::new(&file), home.path("new/disk.img"));
    home.wrapdisk(["umount", "new.wd"]).ok();
    assert!(home.path("new").is_dir(), "a folder that was made stays");
    let said = home.wrapdisk(["mount", "--create", "1M", "more.wd", "some/where"]).fails(1);
    assert_eq!(said, "wrapdisk: some/where: make the mountpoint: No such file or directory (os error 2)");
    std::fs::write(home.path("mnt/precious"), "x").unwrap();
    home.wrapdisk(["mount", "--create", "1M", "more.wd", "mnt"]).fails(1);
    assert!(!home.path("more.wd").exists(), "no disk is made when it cannot be mounted");
    home.wrapdisk(["mount", "--create", "1M", "--set", "nobody", "more.wd", "fresh"]).fails(1);
    assert!(!home.path("fresh").exists(), "no folder is left when no disk could be made");
}

#[test]
fn links_and_relative_paths_lead_to_the_same_place() {
    let home = home();
    std::fs::create_dir(home.path("sub")).unwrap();
    symlink(home.path("mnt"), home.path("link")).unwrap();
    symlink("link", home.path("link2")).unwrap();
    for (from, place) in [(".", "mnt"), (".", "link"), (".", "link2/"), ("sub", "../mnt"), ("mnt", ".")] {
        let mut mount = home.command(["mount", home.text("a.wd"), place]);
        let file = finish(mount.current_dir(home.path(from))).ok();
        assert_eq!(Path::new(&file), home.path("mnt/disk.img"), "{place} from {from}");
        assert_eq!(home.json(["status"])[0]["mountpoint"], home.text("mnt"));
        home.wrapdisk(["umount", "link2"]).ok();
    }
}

#[test]
fn names_with_any_characters_are_mounted_on_and_shown_as_they_are() {
    let home = home();
    let names: [&[u8]; 9] = [
        b"with space",
        b"back\\slash",
        b"com,ma=equals",
        "\u{fc}\u{f1}\u{ef}\u{2713}".as_bytes(),
        b"-dash",
        b"tab\there",
        b"quo\"te'",
        b"%s$(x)`y`",
        b"not \xff\xfe UTF-8",
    ];
    for name in names {
        let name = OsStr::from_bytes(name);
        let place = home.root().join(name);
        let mut disk = place.clone().into_os_string();
        disk.push(".wd");
        let disk = PathBuf::from(disk);
        std::fs::create_dir(&place).unwrap();
        std::fs::rename(home.path("a.wd"), &disk).unwrap();
        let said =
            home.command([OsStr::new("mount"), OsStr::new("--"), disk.as_os_str(), name]).output().unwrap();
        assert!(said.status.success(), "{name:?}: {}", String::from_utf8_lossy(&said.stderr));
        let file = place.join("disk.img");
        // For people; --output json gives what is not UTF-8 as bytes.
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim_end(), file.to_string_lossy(), "{name:?}");
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        let seen = wrapdisk::fuse::mountpoint::mounted_at(&place).unwrap().expect("in the table");
        assert_eq!(seen.source, disk.to_string_lossy(), "{name:?}");
        home.wrapdisk([OsStr::new("umount"), OsStr::new("--"), name]).ok();
        std::fs::rename(&disk, home.path("a.wd")).unwrap();
    }
    std::fs::create_dir(home.path("new\nline")).unwrap();
    let said = refused(&home, &["new\nline"]);
    assert!(
        said.ends_with("mountpoint: found a newline in the path, which ends what mount prints"),
        "{said}"
    );
}

#[test]
fn our_own_folders_are_not_mounted_over() {
    let home = home();
    // It once waited for itself: the control socket was to be made within the mount that did not answer yet.
    for (place, hidden) in
        [("home/run", "home/run"), ("home", "home/run"), (".", "home/run"), ("home/state", "home/state")]
    {
        std::fs::create_dir_all(home.path("home/run")).unwrap();
        let place_now = home.path(place).canonicalize().unwrap();
        assert_eq!(
            refused(&home, &[place, "--nonempty"]),
            format!(
                "wrapdisk: {}: mountpoint: a mount here would hide {}, which wrapdisk needs\n  choose another place",
                place_now.display(),
                home.path(hidden).display()
            )
        );
    }
}

#[test]
fn a_control_socket_with_too_long_a_path_is_a_clear_error_and_leaves_no_mount() {
    let home = home();
    let long = home.path(&"x".repeat(107));
    std::fs::create_dir(&long).unwrap();
    run("cp", [Path::new("-a"), &home.path("home"), &long.join("home")]);
    let mut mount = home.command(["mount", "a.wd", "mnt"]);
    let said = finish(mount.env("WRAPDISK_HOME", long.join("home"))).fails(1);
    assert!(said.contains(".sock: control socket: path longer than 107 bytes"), "{said}");
    assert!(said.ends_with("set XDG_RUNTIME_DIR or WRAPDISK_HOME to a shorter path"), "{said}");
    assert_eq!(mounts_below(home.root()), []);
    let mount = home.mount_at("a.wd", &home.path("mnt"), &[]);
    mount.unmount();
    // The longest that fits: 107 bytes with "/run/" and a name of 21.
    let room = 107 - home.root().as_os_str().len() - "/".len() - "/run/0123456789abcdef.sock".len();
    let longest = home.path(&"y".repeat(room));
    run("cp", [Path::new("-a"), &home.path("home"), &longest]);
    let with = |args: &[&str]| finish(home.command(args).env("WRAPDISK_HOME", &longest));
    with(&["mount", "a.wd", "mnt"]).ok();
    with(&["umount", "mnt"]).ok();
}

#[test]
fn a_place_that_root_reaches_and_the_program_cannot_use_says_why() {
    let home = home();
    let said = finish(Command::new(support::WRAPDISK).args(["mount", "a.wd", ""]).current_dir(home.root()));
    assert!(said.fails(2).contains("a value is required for '<MOUNTPOINT>'"));
    std::fs::write(home.path("mnt/file"), "").unwrap();
    let said = refused(&home, &["mnt/file/below"]);
    assert!(
        said.starts_with("wrapdisk: mnt/file/below: mountpoint: Not a directory (os error 20)"),
        "{said}"
    );
}
