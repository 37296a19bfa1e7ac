//! Can an ordinary user do all of it without root: mount through fusermount3, use, unmount? Is what is theirs theirs alone,
//! and does every way in which the system says no say what to do?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;
mod user_support;

use std::os::unix::fs::{PermissionsExt, chown};

use support::{Home, is_alive};
use user_support::{ALLOW_OTHER, NO_DEV_FUSE, NO_FUSERMOUNT, Who, World};

const NO_FUSE_HINT: &str =
    "load the kernel module with: modprobe fuse; in a container, pass --device /dev/fuse";

/// A home with the disk `vm.wd` and the folder `mnt`.
fn home() -> Home {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    std::fs::create_dir(home.path("mnt")).unwrap();
    home
}

/// The pid of the only mount.
#[track_caller]
fn pid(world: &World<'_>, who: Who) -> i32 {
    let status = world.wrapdisk(who, &["status", "--output", "json"]).ok();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    i32::try_from(status[0]["pid"].as_i64().unwrap()).unwrap()
}

/// Reads the first byte, or says why not.
#[track_caller]
fn look(world: &World<'_>, who: Who) -> Result<(), String> {
    let done = world.run(who, ["head", "-c1", "mnt/disk.img"]);
    if done.status.success() { Ok(()) } else { Err(done.err) }
}

#[test]
fn a_user_mounts_uses_and_unmounts_through_fusermount3() {
    let home = home();
    let world = World::new(&home, "");
    let file = home.text("mnt/disk.img");
    for (round, unmount) in [0, 1, 2].into_iter().zip(["wrapdisk", "fusermount3", "root"]) {
        assert_eq!(world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).ok(), file);
        let [line] = &*world.table() else { panic!("{:?}", world.table()) };
        for part in ["nosuid", "nodev", "noexec", "user_id=4242", "group_id=4242", "default_permissions"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("allow_other"), "{line}");
        let look = world.run(Who::Alice, ["stat", "-c", "%u %g %a %s", "mnt/disk.img", "mnt"]).ok();
        assert_eq!(look, "4242 4242 600 1048576\n4242 4242 500 0");
        let write =
            format!("printf round{round} | dd of=mnt/disk.img bs=1 seek={round}0000 conv=notrunc,fsync");
        world.run(Who::Alice, ["sh", "-c", &write]).ok();
        for before in 0..=round {
            let read = format!("dd if=mnt/disk.img bs=1 skip={before}0000 count=6");
            assert_eq!(world.run(Who::Alice, ["sh", "-c", &read]).ok(), format!("round{before}"));
        }
        let daemon = pid(&world, Who::Alice);
        match unmount {
            "wrapdisk" => world.wrapdisk(Who::Alice, &["umount", "mnt"]).ok(),
            "fusermount3" => world.run(Who::Alice, ["fusermount3", "-u", "mnt"]).ok(),
            _ => world.run(Who::Root, ["umount", "mnt"]).ok(),
        };
        support::eventually("the end of the daemon", || (!is_alive(daemon)).then_some(()));
        assert_eq!(world.table(), [""; 0], "{unmount}");
    }
}

#[test]
fn nobody_else_comes_in_unless_it_is_allowed_and_the_mode_lets_them() {
    let home = home();
    let world = World::new(&home, ALLOW_OTHER);
    world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).ok();
    assert_eq!(look(&world, Who::Alice), Ok(()));
    // Not even root, and not through the folder's mode either: this is FUSE's own wall.
    for who in [Who::Root, Who::Bob] {
        assert!(look(&world, who).unwrap_err().contains("Permission denied"), "{who:?}");
        assert!(world.run(who, ["ls", "mnt"]).fails(2).contains("Permission denied"), "{who:?}");
    }
    world.wrapdisk(Who::Alice, &["umount", "mnt"]).ok();

    world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt", "--allow-other"]).ok();
    assert!(world.table()[0].contains("allow_other"));
    assert_eq!((look(&world, Who::Alice), look(&world, Who::Root)), (Ok(()), Ok(())));
    assert_eq!(world.run(Who::Bob, ["ls", "mnt"]).ok(), "disk.img");
    assert!(look(&world, Who::Bob).unwrap_err().contains("Permission denied"), "the file is 0600");
    world.run(Who::Alice, ["chmod", "644", "mnt/disk.img"]).ok();
    assert_eq!(look(&world, Who::Bob), Ok(()));
    let write = "printf x | dd of=mnt/disk.img conv=notrunc";
    assert!(world.run(Who::Bob, ["sh", "-c", write]).fails(1).contains("Permission denied"));
    world.run(Who::Root, ["sh", "-c", write]).ok();
    assert!(world.run(Who::Bob, ["chmod", "666", "mnt/disk.img"]).fails(1).contains("not permitted"));
    world.wrapdisk(Who::Alice, &["umount", "mnt"]).ok();
}

#[test]
fn allow_other_needs_the_administrators_word() {
    let home = home();
    let world = World::new(&home, "");
    for option in [&["--allow-other"][..], &["--uid", "4243"]] {
        let said = world.wrapdisk(Who::Alice, &[&["mount", "vm.wd", "mnt"], option].concat()).fails(1);
        assert_eq!(
            said,
            format!(
                "wrapdisk: {}: mount: fusermount3: option allow_other only allowed if 'user_allow_other' is set in \
                 /etc/fuse.conf\n  --allow-other needs the line user_allow_other in /etc/fuse.conf",
                home.path("mnt").display()
            )
        );
    }
    assert_eq!(world.table(), [""; 0]);
    world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).ok();
    world.wrapdisk(Who::Alice, &["umount", "mnt"]).ok();
}

#[test]
fn a_place_that_is_not_the_users_is_refused() {
    let home = home();
    let world = World::new(&home, "");
    std::fs::write(home.path("file"), "").unwrap();
    for (place, owner) in [("mnt", 4243), ("file", 0)] {
        chown(home.path(place), Some(owner), Some(owner)).unwrap();
        std::fs::set_permissions(home.path(place), PermissionsExt::from_mode(0o755)).unwrap();
        let said = world.wrapdisk(Who::Alice, &["mount", "vm.wd", place]).fails(1);
        let begin = format!("wrapdisk: {}: mount: fusermount3: ", home.path(place).display());
        assert!(said.starts_with(&begin), "{said}");
        assert!(said.contains("no write access") || said.contains("Permission denied"), "{said}");
        assert_eq!(world.table(), [""; 0], "{place}");
    }
    // A folder that cannot even be read.
    std::fs::set_permissions(home.path("mnt"), PermissionsExt::from_mode(0o700)).unwrap();
    let said = world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).fails(1);
    assert_eq!(said, "wrapdisk: mnt: mountpoint: Permission denied (os error 13)");
}

#[test]
fn a_container_that_is_not_the_users_is_refused() {
    let home = home();
    let world = World::new(&home, "");
    let disk = home.path("vm.wd");
    chown(&disk, Some(4243), Some(4243)).unwrap();
    let said = world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).fails(1);
    assert!(said.starts_with(&format!("wrapdisk: {}: open", disk.display())), "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    std::fs::set_permissions(&disk, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).fails(1).contains("Permission denied"));
    world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt", "--read-only"]).ok();
    assert_eq!(look(&world, Who::Alice), Ok(()));
    world.wrapdisk(Who::Alice, &["umount", "mnt"]).ok();
}

#[test]
fn another_user_can_neither_unmount_nor_ask() {
    let home = home();
    let world = World::new(&home, "");
    world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).ok();
    let said = world.wrapdisk(Who::Bob, &["umount", "mnt"]).fails(1);
    assert!(said.contains("ermission denied") || said.contains("not found"), "{said}");
    assert!(!world.wrapdisk(Who::Bob, &["status", "mnt"]).status.success());
    assert_eq!(look(&world, Who::Alice), Ok(()));
    world.wrapdisk(Who::Root, &["umount", "mnt"]).ok();
    assert_eq!(world.table(), [""; 0]);
}

#[test]
fn a_users_dead_mount_is_taken_off_and_its_place_used_again() {
    let home = home();
    let world = World::new(&home, "");
    world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).ok();
    let daemon = nix::unistd::Pid::from_raw(pid(&world, Who::Alice));
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGKILL).unwrap();
    support::eventually("the end of the daemon", || (!is_alive(daemon.as_raw())).then_some(()));
    world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).ok();
    assert_eq!(world.table().len(), 1);
    assert_eq!(look(&world, Who::Alice), Ok(()));
    world.wrapdisk(Who::Alice, &["umount", "mnt"]).ok();
}

#[test]
fn without_fusermount3_a_user_is_told_what_to_install() {
    let home = home();
    let world = World::new(&home, "");
    world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).ok();
    world.run(Who::Root, ["bash", "-e", "-c", NO_FUSERMOUNT]).ok();
    let said = world.wrapdisk(Who::Alice, &["umount", "mnt"]).fails(1);
    assert_eq!(
        said,
        format!(
            "wrapdisk: {}: run fusermount3: No such file or directory (os error 2)\n  \
             install the package fuse3; without it only root can unmount",
            home.path("mnt").display()
        )
    );
    world.run(Who::Root, ["umount", "mnt"]).ok();
    let said = world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).fails(1);
    assert_eq!(
        said,
        format!(
            "wrapdisk: {}: run fusermount3: No such file or directory (os error 2)\n  \
             an ordinary user mounts through fusermount3: install the package fuse3",
            home.path("mnt").display()
        )
    );
    assert_eq!(world.table(), [""; 0]);
    // Root needs no helper.
    world.wrapdisk(Who::Root, &["mount", "vm.wd", "mnt"]).ok();
    world.wrapdisk(Who::Root, &["umount", "mnt"]).ok();
}

#[test]
fn fusermount3_is_found_where_packages_put_it_whatever_the_path() {
    let home = home();
    let world = World::new(&home, "");
    let program = home.text("world/wrapdisk");
    for args in [&["mount", "vm.wd", "mnt"][..], &["umount", "mnt"]] {
        let args = [&["/usr/bin/env", "PATH=/nowhere", program], args].concat();
        world.run(Who::Alice, args).ok();
    }
}

#[test]
fn without_dev_fuse_everybody_is_told_how_to_get_it() {
    let home = home();
    let world = World::new(&home, NO_DEV_FUSE);
    for who in [Who::Alice, Who::Root] {
        let said = world.wrapdisk(who, &["mount", "vm.wd", "mnt"]).fails(1);
        assert_eq!(said, format!("wrapdisk: /dev/fuse: not found\n  {NO_FUSE_HINT}"), "{who:?}");
    }
    drop(world);
    let world = World::new(&home, "mount --bind /dev/null /dev/fuse");
    for who in [Who::Alice, Who::Root] {
        let said = world.wrapdisk(who, &["mount", "vm.wd", "mnt"]).fails(1);
        let found = "found something else, allowed the character device 10:229";
        assert_eq!(said, format!("wrapdisk: /dev/fuse: {found}\n  {NO_FUSE_HINT}"), "{who:?}");
    }
    assert_eq!(world.table(), [""; 0]);
}

#[test]
fn a_dev_fuse_for_root_alone_is_said_to_be_so() {
    let home = home();
    let world = World::new(&home, "chmod 600 world/fuse");
    let said = world.wrapdisk(Who::Alice, &["mount", "vm.wd", "mnt"]).fails(1);
    assert_eq!(
        said,
        "wrapdisk: /dev/fuse: open: Permission denied (os error 13)\n  \
         the user needs read and write permission on /dev/fuse"
    );
    world.wrapdisk(Who::Root, &["mount", "vm.wd", "mnt"]).ok();
    world.wrapdisk(Who::Root, &["umount", "mnt"]).ok();
}

#[test]
fn root_without_the_right_to_mount_is_told_so() {
    let home = home();
    let world = World::new(&home, "");
    let said = world.wrapdisk(Who::Contained, &["mount", "vm.wd", "mnt"]).fails(1);
    assert!(said.starts_with(&format!("wrapdisk: {}: mount: ", home.path("mnt").display())), "{said}");
    assert!(said.contains("Operation not permitted"), "{said}");
    assert!(said.contains("SYS_ADMIN"), "{said}");
    assert_eq!(world.table(), [""; 0]);
}

#[test]
fn who_is_handed_an_open_file_can_do_with_it_what_the_opener_could() {
    let home = home();
    let mount = home.mount_at("vm.wd", &home.path("mnt"), &[]);
    // A program that opens its disks as root and goes on as somebody else, as virtual machines do.
    let script = r"
import ctypes, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.write(fd, b'x' * 8192)
os.setgroups([])
os.setgid(4243)
os.setuid(4243)
libc = ctypes.CDLL(None, use_errno=True)
if libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)):
    sys.exit('discard: ' + os.strerror(ctypes.get_errno()))
assert os.pread(fd, 8192, 0) == bytes(4096) + b'x' * 4096
assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
os.pwrite(fd, b'y', 5)
os.fsync(fd)
os.close(fd)
";
    support::run("python3", ["-c", script, mount.text()]);
    mount.unmount();
}
