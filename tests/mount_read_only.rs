//! Does a read-only mount keep everybody from writing, share the disk with its like and with nobody else, and leave the
//! container as it was?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use support::{Home, finish, noise};

const SIZE: usize = 1 << 20;

#[track_caller]
fn errno<T: std::fmt::Debug>(done: std::io::Result<T>) -> i32 {
    done.expect_err("this must be refused").raw_os_error().expect("from the kernel")
}

/// A home with the disk `vm.wd` full of noise, which is returned.
fn home() -> (Home, Vec<u8>) {
    let home = Home::ready();
    home.create("vm.wd", &SIZE.to_string(), &[]);
    let data = noise(1, SIZE);
    let mount = home.mount("vm.wd", &[]);
    OpenOptions::new().write(true).open(&mount.file).unwrap().write_all_at(&data, 0).unwrap();
    mount.unmount();
    (home, data)
}

#[test]
fn nothing_can_be_written_to_it() {
    let (home, data) = home();
    let before = std::fs::read(home.path("vm.wd")).unwrap();
    let mount = home.mount("vm.wd", &["--read-only"]);
    assert_eq!(mount.status()["readOnly"], true);
    assert_eq!(mount.file.metadata().unwrap().mode() & 0o7777, 0o400);
    for how in [
        OpenOptions::new().write(true),
        OpenOptions::new().append(true),
        OpenOptions::new().read(true).write(true),
    ] {
        assert_eq!(errno(how.open(&mount.file)), libc::EROFS);
    }
    let file = File::open(&mount.file).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert_eq!(fallocate(&file, punch, 0, 4096), Err(nix::Error::EBADF), "the descriptor is for reading");
    for (what, code) in [
        ("create", errno(File::create(&mount.file))),
        ("chmod", errno(std::fs::set_permissions(&mount.file, Permissions::from_mode(0o644)))),
        ("times", errno(file.set_modified(std::time::SystemTime::UNIX_EPOCH))),
        ("unlink", errno(std::fs::remove_file(&mount.file))),
        ("mkdir", errno(std::fs::create_dir(mount.place.join("new")))),
    ] {
        assert_eq!(code, libc::EROFS, "{what}");
    }
    assert!(std::fs::read(&mount.file).unwrap() == data);
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
    assert!(std::fs::read(home.path("vm.wd")).unwrap() == before, "a read-only mount changed the container");
}

#[test]
fn read_only_mounts_share_a_disk_and_a_writer_shares_with_nobody() {
    let (home, data) = home();
    let disk = home.path("vm.wd");
    let places = ["one", "two", "three"].map(|name| home.path(name));
    for place in &places {
        std::fs::create_dir(place).unwrap();
    }
    let one = home.mount_at("vm.wd", &places[0], &["--read-only"]);
    let two = home.mount_at("vm.wd", &places[1], &["--read-only", "--cache-size", "0"]);
    for mount in [&one, &two] {
        assert!(std::fs::read(&mount.file).unwrap() == data);
    }
    let refused = |more: &[&str]| home.wrapdisk([&["mount", "vm.wd", "three"], more].concat()).fails(1);
    let said = refused(&[]);
    assert!(said.starts_with(&format!("wrapdisk: {}: in use: mounted at ", disk.display())), "{said}");
    assert!(
        said.contains(one.place.to_str().unwrap()) || said.contains(two.place.to_str().unwrap()),
        "{said}"
    );
    one.unmount();
    assert!(refused(&[]).contains(&format!(
        "in use: mounted at {} by process {}",
        places[1].display(),
        two.pid
    )));
    two.unmount();
    let writer = home.mount_at("vm.wd", &places[0], &[]);
    for options in [&["--read-only"][..], &[]] {
        assert_eq!(
            refused(options),
            format!(
                "wrapdisk: {}: in use: mounted at {place} by process {}\n  unmount it first: wrapdisk umount {place}",
                disk.display(),
                writer.pid,
                place = places[0].display(),
            )
        );
    }
    writer.unmount();
}

#[test]
fn a_container_that_cannot_be_written_mounts_read_only_when_asked() {
    let (home, data) = home();
    // A read-only file system: root writes to any file whatever its mode.
    let folder = home.path("ro");
    std::fs::create_dir(&folder).unwrap();
    finish(Command::new("mount").args(["--bind", home.root().to_str().unwrap(), folder.to_str().unwrap()]))
        .ok();
    finish(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&folder)).ok();
    let frozen = folder.join("vm.wd");
    std::fs::create_dir(home.path("mnt")).unwrap();
    let said = home.wrapdisk([Path::new("mount"), &frozen, Path::new("mnt")]).fails(1);
    assert!(said.contains("Read-only file system"), "{said}");
    let mount = home.mount_at(frozen.to_str().unwrap(), &home.path("mnt"), &["--read-only"]);
    assert!(std::fs::read(&mount.file).unwrap() == data);
    mount.unmount();
    finish(Command::new("umount").arg(&folder)).ok();
}

#[test]
fn read_only_and_create_contradict_each_other() {
    let home = Home::ready();
    let said = home.wrapdisk(["mount", "--create", "1M", "--read-only", "new.wd", "new"]).fails(2);
    assert!(said.contains("--read-only"), "{said}");
    assert!(!home.path("new.wd").exists() && !home.path("new").exists());
}
