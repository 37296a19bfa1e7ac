//! Question: when the medium below a real mount fails (EIO, no space, a file cut short), does the caller learn it with the
//! right errno, is nothing that was acknowledged lost, and does the mount forget exactly what it may forget?
//!
//! The medium is a file served by this process that fails when it is told to, a loop device over it, or a file system that
//! is really full.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod daemon_support;
mod faulty_support;
mod support;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cli_support::SmallDisk;
use daemon_support::{Foreground, errno};
use faulty_support::Medium;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::Signal;
use support::{Home, Loop, Mounted, eventually, finish, noise, run};
use wrapdisk::store::{Fault, Op};

/// More than what bypasses the cache, with a partial sector at each end.
const LEN: usize = 300_001;

fn open(file: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(file).unwrap()
}

#[track_caller]
fn holds(file: &File, at: u64, expected: &[u8]) {
    let mut found = vec![0; expected.len()];
    file.read_exact_at(&mut found, at).unwrap();
    assert!(found == expected, "other bytes at {at}");
}

/// A disk on a medium that can be told to fail.
fn disk_on_a_medium(home: &Home) -> Medium {
    let disk = home.create("vm.wd", "4M", &[]);
    Medium::new(std::fs::read(disk).unwrap(), &home.path("medium"))
}

// --- EIO ---

#[test]
fn a_write_that_failed_makes_every_later_fsync_fail_until_the_disk_is_mounted_anew() {
    let home = Home::ready();
    let medium = disk_on_a_medium(&home);
    let mut mount = Foreground::run(
        home.command(["mount", "--foreground", medium.text(), home.text("place")]).stderr(Stdio::piped()),
        &place(&home),
    );
    let user = open(&mount.file);
    user.write_all_at(&noise(1, LEN), 100).unwrap();
    user.sync_all().unwrap();

    medium.plan().fail_nth(Op::Write, 1, Fault::Eio);
    assert_eq!(errno(user.write_at(&noise(2, 5000), 1 << 20)), libc::EIO);
    // The medium is well again; what it lost is not.
    for _ in 0..3 {
        assert_eq!(errno(user.sync_all()), libc::EIO);
    }
    let other = open(&mount.file);
    assert_eq!(
        errno(other.sync_data()),
        libc::EIO,
        "of another opening as well: nobody knows whose data it was"
    );
    holds(&other, 100, &noise(1, LEN));
    other.write_all_at(&noise(3, LEN), 2 << 20).unwrap();
    holds(&other, 2 << 20, &noise(3, LEN));
    assert_eq!(errno(nix::unistd::close(other).map_err(std::io::Error::from)), libc::EIO, "and close");
    let _ = nix::unistd::close(user);

    let syncs = medium.plan().count(Op::Sync);
    mount.signal(Signal::SIGTERM);
    let said = mount.messages();
    mount.ends_with(1);
    assert!(said.contains("an earlier write failed; unmount and check the disk"), "{said}");
    assert!(medium.plan().count(Op::Sync) > syncs, "what could still be saved was");

    let mount = home.mount_at(medium.text(), &home.path("place"), &[]);
    let user = open(&mount.file);
    user.sync_all().unwrap();
    holds(&user, 100, &noise(1, LEN));
    holds(&user, 2 << 20, &noise(3, LEN));
    drop(user);
    mount.unmount();
}

fn place(home: &Home) -> PathBuf {
    std::fs::create_dir_all(home.path("place")).unwrap();
    home.path("place")
}

#[test]
fn an_fsync_that_failed_stays_failed() {
    let home = Home::ready();
    let medium = disk_on_a_medium(&home);
    let mount = home.mount_at(medium.text(), &place(&home), &[]);
    let user = open(&mount.file);
    user.write_all_at(&noise(1, LEN), 100).unwrap();
    medium.plan().fail_nth(Op::Sync, 1, Fault::Eio);
    for _ in 0..3 {
        assert_eq!(errno(user.sync_all()), libc::EIO);
    }
    let errors = mount.status()["io"]["errors"].as_u64().unwrap();
    assert!(errors >= 3, "{errors} errors counted");
}

#[test]
fn a_close_tells_of_a_write_that_could_not_be_kept() {
    let home = Home::ready();
    let medium = disk_on_a_medium(&home);
    let mount = home.mount_at(medium.text(), &place(&home), &[]);
    let user = open(&mount.file);
    user.write_all_at(b"x", 0).unwrap();
    medium.plan().fail_nth(Op::Sync, 1, Fault::Eio);
    assert_eq!(nix::unistd::close(user), Err(nix::Error::EIO));
}

#[test]
fn a_read_that_failed_is_told_and_forgotten() {
    let home = Home::ready();
    let medium = disk_on_a_medium(&home);
    let mount = home.mount_at(medium.text(), &place(&home), &["--cache-size", "0"]);
    let user = open(&mount.file);
    user.write_all_at(&noise(1, LEN), 100).unwrap();
    medium.plan().fail_from(Op::Read, 1, Fault::Eio);
    for (at, len) in [(0, 1), (512, 512), (8192, 4096), (100, LEN)] {
        assert_eq!(errno(user.read_at(&mut vec![0; len], at)), libc::EIO, "{len} bytes at {at}");
    }
    // A partial sector is read before it is written: nothing may be written in its place.
    assert_eq!(errno(user.write_at(b"part", 8195)), libc::EIO);
    let cat = finish(Command::new("cat").arg(&mount.file));
    assert_eq!(cat.fails(1), format!("cat: {}: Input/output error", mount.file.display()));
    // By mmap, an error is SIGBUS.
    let look = "import mmap, os, sys; m = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 8192, prot=mmap.PROT_READ); m[5000]";
    let mapped = || finish(Command::new("python3").args(["-c", look]).arg(&mount.file)).status;
    assert_eq!(mapped().signal(), Some(libc::SIGBUS));

    medium.plan().clear();
    holds(&user, 100, &noise(1, LEN));
    assert!(mapped().success());
    user.sync_all().unwrap();
}

#[test]
fn a_read_that_failed_leaves_nothing_in_the_cache() {
    let home = Home::ready();
    let medium = disk_on_a_medium(&home);
    let mount = home.mount_at(medium.text(), &place(&home), &[]);
    let user = open(&mount.file);
    user.write_all_at(&noise(1, LEN), 100).unwrap();
    medium.plan().fail_nth(Op::Read, 1, Fault::Eio);
    assert_eq!(errno(user.read_at(&mut [0; 20_000], 3000)), libc::EIO);
    holds(&user, 100, &noise(1, LEN));
    // And a block that is in the cache needs no medium.
    holds(&user, 4096, &noise(1, LEN)[3996..][..4096]);
    medium.plan().fail_from(Op::Read, 1, Fault::Eio);
    holds(&user, 4096, &noise(1, LEN)[3996..][..4096]);
    medium.plan().clear();
}

#[test]
fn a_write_that_failed_in_the_middle_leaves_the_cache_as_the_medium_is() {
    let home = Home::ready();
    let medium = disk_on_a_medium(&home);
    let mount = home.mount_at(medium.text(), &place(&home), &[]);
    let user = open(&mount.file);
    user.write_all_at(&noise(1, LEN), 0).unwrap();
    for at in (0..LEN as u64).step_by(4096) {
        user.read_at(&mut [0; 4096], at).unwrap();
    }
    // The second of the runs that this is written in.
    medium.plan().fail_nth(Op::Write, 2, Fault::Eio);
    assert_eq!(errno(user.write_at(&noise(2, 250_000), 0)), libc::EIO);
    let mut cached = vec![0; LEN];
    for at in (0..LEN).step_by(4096) {
        let end = (at + 4096).min(LEN);
        user.read_exact_at(&mut cached[at..end], at as u64).unwrap();
    }
    holds(&user, 0, &cached);
    let (old, new) = (noise(1, LEN), noise(2, 250_000));
    let one_of_both = |at: usize| {
        let part = at..(at + 4096).min(LEN);
        cached[part.clone()] == old[part.clone()] || new.get(part.clone()) == Some(&cached[part])
    };
    assert!((0..LEN).step_by(4096).all(one_of_both), "each sector is old or new");
}

#[test]
fn a_discard_that_failed_is_told() {
    let home = Home::ready();
    let medium = disk_on_a_medium(&home);
    let mount = home.mount_at(medium.text(), &place(&home), &[]);
    let user = open(&mount.file);
    user.write_all_at(&noise(1, LEN), 0).unwrap();
    medium.plan().fail_nth(Op::Punch, 1, Fault::Eio);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert_eq!(fallocate(user.as_fd(), flags, 0, 65536), Err(nix::Error::EIO));
    holds(&user, 0, &noise(1, LEN));
    assert_eq!(errno(user.sync_all()), libc::EIO, "it was a change that failed");
}

#[test]
fn a_stop_syncs_what_nobody_synced() {
    let home = Home::ready();
    let medium = disk_on_a_medium(&home);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut mount = Foreground::run(
            &mut home.command(["mount", "-f", medium.text(), home.text("place")]),
            &place(&home),
        );
        let user = open(&mount.file);
        user.write_all_at(&noise(1, LEN), 0).unwrap();
        assert!(medium.store.unsynced() > 0, "nobody has synced it");
        mount.signal(signal);
        eventually("it is synced, although it is still in use", || {
            (medium.store.unsynced() == 0).then_some(())
        });
        user.write_all_at(&noise(2, LEN), 0).unwrap();
        drop(user);
        mount.ends_with(0);
        assert_eq!(medium.store.unsynced(), 0, "{signal}");
    }
}

#[test]
fn a_disk_that_loses_what_it_accepted_is_found_by_fsync_and_not_believed_again() {
    let home = Home::ready();
    let disk = home.create("vm.wd", "4M", &[]);
    let medium = Medium::new(vec![0; 32 << 20], &home.path("medium"));
    let device = Loop::over(&medium.file(), &[]);
    // Without a journal, whose failure would make the whole file system read-only.
    run("mkfs.ext4", ["-q", "-O", "^has_journal", "-m", "0", &device.0]);
    let fs = Mounted::new(&device, &home.path("fs"), &[]);
    std::fs::copy(disk, home.path("fs/vm.wd")).unwrap();
    fs.sync();

    let mount = home.mount_at("fs/vm.wd", &place(&home), &[]);
    let user = open(&mount.file);
    user.write_all_at(&noise(1, LEN), 0).unwrap();
    user.sync_all().unwrap();
    medium.plan().fail_from(Op::Write, 1, Fault::Eio);
    user.write_all_at(&noise(2, LEN), 0).expect("it is in the page cache of the file system");
    assert_eq!(errno(user.sync_all()), libc::EIO);
    medium.plan().clear();
    // The kernel has told it once and would now say yes.
    File::open(home.path("fs/vm.wd")).unwrap().sync_all().unwrap();
    assert_eq!(errno(user.sync_all()), libc::EIO);
    // Nor is a header written to it.
    let tokens = home.json(["info", "fs/vm.wd"])["tokens"].clone();
    home.wrapdisk(["key", "rotate", "disk-kek"]).ok();
    let said = home.wrapdisk(["set", "rotate", "default"]).fails(1);
    assert!(said.contains("an earlier write failed"), "{said}");
    assert_eq!(home.json(["info", "fs/vm.wd"])["tokens"], tokens);
    drop(user);
    mount.unmount();
    fs.unmount();
}

// --- no space ---

/// Writes until the file system is full; answers the next offset. Every write that was acknowledged is there.
fn fill(user: &File, seed: u64) -> u64 {
    for at in (0..).step_by(STEP) {
        match user.write_all_at(&noise(seed + at, STEP), at) {
            Ok(()) => {}
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::ENOSPC), "{e}");
                return at;
            }
        }
    }
    unreachable!("the disk is larger than its file system")
}

const STEP: usize = 1 << 17;

#[track_caller]
fn is_filled(user: &File, seed: u64, end: u64) {
    for at in (0..end).step_by(STEP) {
        holds(user, at, &noise(seed + at, STEP));
    }
}

/// A disk larger than the file system it lies on: full, given space, and full again.
fn overflows(home: &Home, folder: &Path) {
    let ballast = folder.join("ballast");
    let disk = folder.join("vm.wd");
    home.wrapdisk(["create", disk.to_str().unwrap(), "--size", "64M"]).ok();
    std::fs::write(&ballast, noise(9, 6 << 20)).unwrap();
    run("sync", ["-f".as_ref(), folder.as_os_str()]);
    let mount = home.mount_at(disk.to_str().unwrap(), &place(home), &[]);
    let user = open(&mount.file);

    let end = fill(&user, 1);
    assert!(end > 2 << 20, "there was space for {end} bytes only");
    is_filled(&user, 1, end);
    user.sync_all().expect("a full file system is no lost write");
    assert_eq!(errno(user.write_at(&noise(2, STEP), end + (1 << 20))), libc::ENOSPC);
    user.write_all_at(&noise(3, STEP), 0).expect("what has its space can be overwritten");
    user.write_all_at(&noise(1, STEP), 0).unwrap();
    user.sync_all().unwrap();

    std::fs::remove_file(&ballast).unwrap();
    run("sync", ["-f".as_ref(), folder.as_os_str()]);
    let further = fill(&user, 1);
    assert!(further > end + (4 << 20), "the mount goes on when there is space again");
    user.sync_all().unwrap();

    // A guest that trims makes space for itself.
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(user.as_fd(), flags, 0, 2 << 20).unwrap();
    user.sync_all().unwrap();
    user.write_all_at(&noise(4, 1 << 20), further + (1 << 20)).unwrap();
    user.sync_all().unwrap();
    drop(user);
    mount.unmount();

    let mount = home.mount_at(disk.to_str().unwrap(), &place(home), &["--read-only"]);
    let user = File::open(&mount.file).unwrap();
    holds(&user, 0, &vec![0; 2 << 20]);
    for at in (2 << 20..further).step_by(STEP) {
        holds(&user, at, &noise(1 + at, STEP));
    }
    holds(&user, further + (1 << 20), &noise(4, 1 << 20));
    drop(user);
    mount.unmount();
    home.wrapdisk(["check", disk.to_str().unwrap()]).ok();
}

#[test]
fn a_full_ext4_is_told_to_the_writer_and_loses_nothing() {
    let home = Home::ready();
    let small = SmallDisk::ext4(home.root(), "28M");
    overflows(&home, &small.place);
}

#[test]
fn a_full_tmpfs_is_told_to_the_writer_and_loses_nothing() {
    let home = Home::ready();
    let folder = home.path("tmpfs");
    std::fs::create_dir(&folder).unwrap();
    run("mount", ["-t", "tmpfs", "-o", "size=24M", "faults", folder.to_str().unwrap()]);
    overflows(&home, &folder);
    run("umount", [&folder]);
}

#[test]
fn a_write_without_space_is_told_and_forgotten_and_a_sync_is_not() {
    let home = Home::ready();
    let medium = disk_on_a_medium(&home);
    let mount = home.mount_at(medium.text(), &place(&home), &[]);
    let user = open(&mount.file);
    user.write_all_at(&noise(1, LEN), 100).unwrap();
    medium.plan().fail_nth(Op::Write, 1, Fault::Enospc);
    assert_eq!(errno(user.write_at(&noise(2, LEN), 100)), libc::ENOSPC);
    user.sync_all().expect("nothing that was acknowledged is lost");
    // The kernel drops what it could not write and calls it clean: a later yes would be a lie.
    medium.plan().fail_nth(Op::Sync, 1, Fault::Enospc);
    assert_eq!(errno(user.sync_all()), libc::ENOSPC);
    assert_eq!(errno(user.sync_all()), libc::EIO);
    holds(&user, 100, &noise(1, LEN));
    drop(user);
    mount.unmount();
    let mount = home.mount_at(medium.text(), &place(&home), &[]);
    open(&mount.file).sync_all().expect("until the disk is opened anew");
    mount.unmount();
}

// --- a container that shrinks ---

#[test]
fn what_was_cut_off_a_mounted_container_reads_as_an_error_and_not_as_zeros() {
    let home = Home::ready();
    let disk = home.create("vm.wd", "4M", &[]);
    let whole = std::fs::metadata(&disk).unwrap().len();
    let mount = home.mount("vm.wd", &["--cache-size", "0"]);
    let user = open(&mount.file);
    user.write_all_at(&noise(1, 4 << 20), 0).unwrap();
    user.sync_all().unwrap();
    let keep = whole - (2 << 20);
    OpenOptions::new().write(true).open(&disk).unwrap().set_len(keep).unwrap();

    holds(&user, 0, &noise(1, 2 << 20));
    for at in [2 << 20, 3 << 20, (4 << 20) - 1] {
        assert_eq!(errno(user.read_at(&mut [0; 1], at)), libc::EIO);
    }
    assert_eq!(errno((&user).read_to_end(&mut Vec::new())), libc::EIO);
    assert_eq!(
        errno(user.write_at(b"part", (3 << 20) + 5)),
        libc::EIO,
        "a sector that is gone has no other part"
    );
    drop(user);
    mount.unmount();
    let refused = home.wrapdisk(["mount", "vm.wd", home.text("vm.wd.mnt")]).fails(5);
    assert!(refused.contains("vm.wd"), "{refused}");
}
