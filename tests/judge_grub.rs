//! Does the boot loader GRUB, which brings a LUKS2 reader of its own, unlock a container of ours and read what was written?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod cryptsetup_support;
mod support;

use std::os::unix::fs::FileExt;
use std::process::Command;

use cli_support::Terminal;
use cryptsetup_support::{CHEAP, DATA, add_slot, flip, put, volume_key};
use support::{Done, Home, eventually, noise};

/// GRUB unlocks the container with this passphrase and compares its sectors with a file.
#[track_caller]
fn compare(container: &str, passphrase: &str, plain: &str, size: usize) -> Done {
    let sectors = format!("(crypto0)0+{}", size / 512);
    let mut grub =
        Terminal::start(Command::new("grub-fstest").args([container, "-C", "cmp", &sectors, plain]));
    grub.wait_for("Enter passphrase for ");
    // What is typed before it switches the echo off is thrown away.
    eventually("GRUB reads the passphrase", || (!grub.echoes()).then_some(()));
    grub.types(&format!("{passphrase}\n"));
    grub.end().0
}

#[test]
fn grub_unlocks_our_container_and_reads_what_was_written() {
    const SIZE: usize = 2 << 20;
    let home = Home::ready();
    let disk = home.create("a.wd", "2M", &[]);
    add_slot(disk.to_str().unwrap(), volume_key(&home, "a.wd"), put(&home, "p", b"words"), &CHEAP);
    let plain = put(&home, "plain", &noise(8, SIZE));
    let mount = home.mount("a.wd", &[]);
    let file = std::fs::File::options().write(true).open(&mount.file).unwrap();
    file.write_all_at(&noise(8, SIZE), 0).unwrap();
    drop(file);
    mount.unmount();

    let judge = |passphrase: &str| compare(disk.to_str().unwrap(), passphrase, plain, SIZE);
    let good = judge("words");
    assert!(good.out.ends_with("Slot \"0\" opened\n"), "{}", good.out);
    good.ok();

    let wrong = judge("word");
    assert!(wrong.out.contains("Invalid passphrase"), "{}", wrong.out);
    wrong.fails(1);

    flip(&disk, DATA + SIZE / 2 + 5);
    let differs = judge("words");
    assert!(differs.out.contains(&format!("compare fail at offset {}", SIZE / 2)), "{}", differs.out);
}
