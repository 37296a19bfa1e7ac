//! Is a limit on file sizes (`ulimit -f`, RLIMIT_FSIZE) an error of who writes, as a full disk is, and not a signal that ends
//! the program or the mount?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::os::unix::fs::FileExt;
use std::process::Command;

use support::{Done, Home, WRAPDISK, finish, noise};

/// Runs the program with files of at most `kib` KiB.
fn limited(home: &Home, kib: u32, args: &[&str]) -> Done {
    let mut command = Command::new("bash");
    command.arg("-c").arg(format!("ulimit -f {kib}; exec \"$0\" \"$@\"")).arg(WRAPDISK).args(args);
    finish(command.env("WRAPDISK_HOME", home.path("home")).current_dir(home.root()))
}

#[test]
fn a_disk_that_may_not_be_that_large_is_refused_and_leaves_nothing() {
    let home = Home::ready();
    let said = limited(&home, 4000, &["create", "vm.wd", "--size", "64M"]).fails(1);
    assert!(said.starts_with("wrapdisk: vm.wd") && said.contains("File too large (os error 27)"), "{said}");
    assert!(said.ends_with("choose a smaller size, or another place"), "{said}");
    assert!(!home.path("vm.wd").exists());
    limited(&home, 400_000, &["create", "vm.wd", "--size", "64M"]).ok();
}

#[test]
fn a_mount_survives_a_write_past_the_limit_and_the_writer_is_told() {
    let home = Home::ready();
    home.create("vm.wd", "64M", &[]);
    std::fs::create_dir(home.path("place")).unwrap();
    // The container's data begins at 16 MiB; the log of the vault stays far below.
    limited(&home, 20 << 10, &["mount", "vm.wd", "place"]).ok();
    let mount = home.adopt(&home.path("place"));
    let file = std::fs::File::options().read(true).write(true).open(&mount.file).unwrap();
    let (near, far) = (noise(1, 8192), noise(2, 1 << 20));
    file.write_all_at(&near, 0).unwrap();
    let e = file.write_all_at(&far, 32 << 20).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{e}");
    file.sync_all().expect("nothing that was acknowledged is lost");
    let mut found = vec![0; near.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == near);
    assert_eq!(mount.status()["state"], "ready");
    drop(file);
    mount.unmount();
}
