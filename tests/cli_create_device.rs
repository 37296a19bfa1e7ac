//! Does `wrapdisk create` on a block device overwrite nothing unasked, and once asked leave nothing of what was there to
//! be read as data (RULINGS 11)?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod support;

use std::fs;

use cli_support::{Terminal, overwrite};
use support::{Home, Loop, noise, run};

/// A loop device over a new file of so many MiB, all of it noise.
fn device(home: &Home, mib: usize) -> Loop {
    fs::write(home.path("backing"), noise(3, mib << 20)).unwrap();
    Loop::over(&home.path("backing"), &[])
}

#[test]
fn a_signature_is_refused_until_it_may_be_overwritten() {
    let home = Home::ready();
    let device = device(&home, 64);
    run("mkfs.ext4", ["-q", "-F", &device.0]);
    let refused = format!(
        "wrapdisk: {}: the device holds an ext2, ext3 or ext4 file system\n  if it may be overwritten, add --force",
        device.0
    );
    assert_eq!(home.wrapdisk(["create", &device.0, "--size", "8M"]).fails(1), refused);
    run("fsck.ext4", ["-nf", &device.0]);
    home.wrapdisk(["create", &device.0, "--size", "8M", "--force"]).ok();
    home.wrapdisk(["check", &device.0]).ok();
    assert_eq!(run("blkid", ["-p", "-s", "TYPE", "-o", "value", &device.0]), "crypto_LUKS");
    // Now it holds one of ours.
    let refused = refused.replace("an ext2, ext3 or ext4 file system", "a LUKS2 container");
    assert_eq!(home.wrapdisk(["create", &device.0, "--size", "8M"]).fails(1), refused);
}

#[test]
fn nothing_of_what_was_there_is_left_below_the_disk() {
    let home = Home::ready();
    let device = device(&home, 40);
    let made = home.json(["create", &device.0, "--size", "20M"]);
    let info = home.json(["info", &device.0]);
    assert_eq!((&info["holes"], &info["discards"]), (&"none".into(), &false.into()));
    assert_eq!((&info["uuid"], &info["size"]), (&made["uuid"], &(20 << 20).into()));
    let before = noise(3, 40 << 20);
    let now = fs::read(home.path("backing")).unwrap();
    let same = |from: usize, to: usize| {
        let sectors = now[from..to].chunks(512).zip(before[from..to].chunks(512));
        sectors.filter(|(now, before)| now == before).count()
    };
    assert_eq!(same(0, 36 << 20), 0);
    // Behind the disk nobody wrote; and so the judge can tell.
    assert_eq!(same(36 << 20, 40 << 20), (4 << 20) / 512);
    let mount = home.mount(&device.0, &[]);
    assert!(fs::read(&mount.file).unwrap().iter().all(|b| *b == 0));
    overwrite(&mount.file, b"hello");
    mount.unmount();
    let mount = home.mount(&device.0, &["--read-only"]);
    assert!(fs::read(&mount.file).unwrap().starts_with(b"hello"));
    mount.unmount();
}

#[test]
fn a_device_that_is_too_small_or_mounted_is_left_as_it_was() {
    let home = Home::ready();
    let device = device(&home, 20);
    let needed = (16 << 20) + (8 << 20);
    assert_eq!(
        home.wrapdisk(["create", &device.0, "--size", "8M", "--force"]).fails(1),
        format!(
            "wrapdisk: {}: the device has {} bytes, the container needs {needed}\n  choose a smaller size, or another place",
            device.0,
            20 << 20
        )
    );
    assert!(fs::read(home.path("backing")).unwrap() == noise(3, 20 << 20));

    run("mkfs.ext4", ["-q", "-F", &device.0]);
    fs::create_dir(home.path("ext4")).unwrap();
    run("mount", [&device.0, home.text("ext4")]);
    let err = home.wrapdisk(["create", &device.0, "--size", "1M", "--force"]).fails(1);
    run("umount", [home.text("ext4")]);
    assert!(err.starts_with(&format!("wrapdisk: {}: ", device.0)) && err.contains("mounted"), "{err}");
    run("fsck.ext4", ["-nf", &device.0]);
}

#[test]
fn an_interrupted_creation_leaves_no_header_in_front_of_old_data() {
    let home = Home::ready();
    // Large enough that it takes a while.
    run("truncate", ["-s", "3G", home.text("backing")]);
    let device = Loop::over(&home.path("backing"), &[]);
    home.wrapdisk(["create", &device.0, "--size", "1M"]).ok();
    let mut terminal = Terminal::start(&home.command(["create", &device.0, "--size", "2900M", "--force"]));
    terminal.wait_for("writing:");
    terminal.types("\u{3}");
    let (done, _) = terminal.end();
    assert!(!done.status.success(), "not interrupted: {}", done.out);
    let err = home.wrapdisk(["info", &device.0]).fails(5);
    assert!(err.contains("not a LUKS2 container: no valid header copy was found"), "{err}");
    // And it can be run again, without force: nothing is there.
    home.wrapdisk(["create", &device.0, "--size", "1M"]).ok();
    home.wrapdisk(["check", &device.0]).ok();
}
