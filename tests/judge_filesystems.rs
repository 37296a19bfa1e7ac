//! Do ext4, xfs and btrfs live on a disk as on a real one: nothing lost over remounts and crashes, nothing that their own
//! checkers find, and is space that they trim given back?
//!
//! The exit code of a discard proves nothing (the kernel hides refusals): allocation and bytes are looked at.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Whence, lseek};
use support::{Done, Home, Loop, Mount, Mounted, eventually, finish, noise, run};

const MIB: u64 = 1 << 20;

/// xfs takes no less than 300 MiB. Sparse.
const DISK: &str = "400M";

struct Fs {
    name: &'static str,
    make: &'static [&'static str],
    check: &'static [&'static str],
    /// A byte of the first superblock.
    superblock: u64,
}

/// Nothing is left to background threads, so that allocation changes only when the test changes it.
const EXT4: Fs = Fs {
    name: "ext4",
    make: &["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    check: &["e2fsck", "-f", "-n"],
    superblock: 1024 + 200,
};
const XFS: Fs =
    Fs { name: "xfs", make: &["mkfs.xfs", "-q", "-f"], check: &["xfs_repair", "-n"], superblock: 100 };
const BTRFS: Fs = Fs {
    name: "btrfs",
    make: &["mkfs.btrfs", "-q", "-f"],
    check: &["btrfs", "check", "--readonly"],
    superblock: 65536 + 100,
};

impl Fs {
    #[track_caller]
    fn make(&self, device: &Loop, more: &[&str]) {
        run(self.make[0], [&self.make[1..], more, &[&device.0]].concat());
    }

    fn check(&self, device: &Loop) -> Done {
        finish(Command::new(self.check[0]).args(&self.check[1..]).arg(&device.0))
    }

    #[track_caller]
    fn is_clean(&self, device: &Loop) {
        let done = self.check(device);
        assert_eq!(done.code(), 0, "{}: {}{}", self.name, done.out, done.err);
    }

    #[track_caller]
    fn mount(&self, home: &Home, device: &Loop) -> Mounted {
        Mounted::new(device, &home.path("fs"), &["-t", self.name])
    }
}

/// A device over the presented file that goes past the page cache.
#[track_caller]
fn device(mount: &Mount<'_>, sector: &str) -> Loop {
    let device = Loop::over(&mount.file, &["--sector-size", sector]);
    let is = run("losetup", ["-l", "-n", "-O", "DIO,LOG-SEC", &device.0]);
    assert_eq!(is.split_whitespace().collect::<Vec<_>>(), ["1", sector]);
    device
}

/// Files of every awkward size, and many small ones.
fn tree(home: &Home) -> PathBuf {
    let tree = home.path("tree");
    let awkward = [0, 1, 511, 512, 513, 4095, 4096, 4097, 65537, 1_000_003, (5 << 20) + 123];
    let sizes = awkward.into_iter().chain((0..200).map(|n| n * 37 % 9000));
    for (n, size) in sizes.enumerate() {
        let dir = tree.join(format!("{}/{}", n % 7, n % 3));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(n.to_string()), noise(n as u64, size)).unwrap();
    }
    tree
}

/// Name and hash of every file.
#[track_caller]
fn hashes(tree: &Path) -> String {
    let list = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
    finish(Command::new("bash").args(["-o", "pipefail", "-c", list]).current_dir(tree)).ok()
}

/// Two copies at once.
#[track_caller]
fn copy(tree: &Path, fs: &Mounted) {
    std::thread::scope(|scope| {
        for name in ["one", "two"] {
            scope.spawn(move || run("cp", ["-a".as_ref(), tree.as_os_str(), fs.0.join(name).as_os_str()]));
        }
    });
}

#[track_caller]
fn both_copies_are(wanted: &str, fs: &Mounted) {
    for name in ["one", "two"] {
        assert!(hashes(&fs.0.join(name)) == wanted, "{name} differs from its source");
    }
}

/// Bytes that a file takes.
fn taken(file: &Path) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

/// Where on the disk a sector with this content lies.
fn places(disk: &Path, wanted: &[u8]) -> Vec<u64> {
    let file = File::open(disk).unwrap();
    let mut found = Vec::new();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while let Ok(start) = lseek(&file, at, Whence::SeekData) {
        at = lseek(&file, start, Whence::SeekHole).unwrap();
        let (mut from, end) = (u64::try_from(start).unwrap(), u64::try_from(at).unwrap());
        while from < end {
            let part = &mut buf[..usize::try_from((end - from).min(MIB)).unwrap()];
            file.read_exact_at(part, from).unwrap();
            let here = part.chunks_exact(wanted.len()).zip((from..).step_by(wanted.len()));
            found.extend(here.filter(|(sector, _)| *sector == wanted).map(|(_, at)| at));
            from += part.len() as u64;
        }
    }
    found
}

fn is_zero(disk: &Path, places: &[u64], len: usize) -> bool {
    let file = File::open(disk).unwrap();
    let mut sector = vec![0xEE; len];
    places.iter().all(|at| {
        file.read_exact_at(&mut sector, *at).unwrap();
        sector.iter().all(|b| *b == 0)
    })
}

/// Deletes a large file and trims until nothing of it is left.
#[track_caller]
fn trimming_frees_and_zeroes(backing: &Path, mount: &Mount<'_>, fs: &Mounted) {
    let sector = noise(4711, 512);
    let len = 40 * MIB;
    let gone = fs.0.join("gone");
    std::fs::write(&gone, sector.repeat(usize::try_from(len / 512).unwrap())).unwrap();
    fs.sync();
    let places = places(&mount.file, &sector);
    assert!(places.len() as u64 >= len / 512, "{} sectors of it were found", places.len());
    let before = [taken(&mount.file), taken(backing)];

    std::fs::remove_file(&gone).unwrap();
    let after = eventually("the space of a deleted file", || {
        // What was deleted becomes free in the background.
        fs.sync();
        run("fstrim", [&fs.0]);
        let after = [taken(&mount.file), taken(backing)];
        let freed = before.iter().zip(after).all(|(before, after)| after + len * 9 / 10 <= *before);
        (freed && is_zero(&mount.file, &places, 512)).then_some(after)
    });
    assert!(after[0].abs_diff(after[1]) <= MIB, "the disk says {}, its backing file {}", after[0], after[1]);
}

#[track_caller]
fn a_file_system_lives(fs: &Fs, sector: &str, make: &[&str]) {
    let home = Home::ready();
    let backing = home.create("vm.wd", DISK, &[]);
    let tree = tree(&home);
    let wanted = hashes(&tree);

    let first = home.mount("vm.wd", &["--cache-size", "1M"]);
    let disk = device(&first, sector);
    fs.make(&disk, make);
    let mounted = fs.mount(&home, &disk);
    copy(&tree, &mounted);
    trimming_frees_and_zeroes(&backing, &first, &mounted);
    both_copies_are(&wanted, &mounted);
    mounted.unmount();
    fs.is_clean(&disk);
    drop(disk);
    first.unmount();

    let second = home.mount("vm.wd", &[]);
    let disk = device(&second, sector);
    fs.is_clean(&disk);
    let mounted = fs.mount(&home, &disk);
    both_copies_are(&wanted, &mounted);
    mounted.unmount();
    drop(disk);
    assert_eq!(second.status()["io"]["errors"], 0);
    second.unmount();
}

#[test]
fn ext4_with_blocks_smaller_than_an_encrypted_sector_lives() {
    a_file_system_lives(&EXT4, "512", &["-b", "1024"]);
}

#[test]
fn ext4_on_4096_byte_sectors_lives() {
    a_file_system_lives(&EXT4, "4096", &[]);
}

#[test]
fn xfs_with_blocks_smaller_than_an_encrypted_sector_lives() {
    a_file_system_lives(&XFS, "512", &["-b", "size=1024"]);
}

#[test]
fn xfs_on_4096_byte_sectors_lives() {
    a_file_system_lives(&XFS, "4096", &[]);
}

#[test]
fn btrfs_on_512_byte_sectors_lives() {
    a_file_system_lives(&BTRFS, "512", &[]);
}

#[test]
fn btrfs_on_4096_byte_sectors_lives() {
    a_file_system_lives(&BTRFS, "4096", &[]);
}

// ---- the checkers can fail

#[track_caller]
fn flip(backing: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(backing).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn one_flipped_byte_of_ciphertext_is_found_by_every_checker() {
    let home = Home::ready();
    for fs in [&EXT4, &XFS, &BTRFS] {
        let name = format!("{}.wd", fs.name);
        let backing = home.create(&name, DISK, &[]);
        let first = home.mount(&name, &[]);
        let disk = device(&first, "512");
        fs.make(&disk, &[]);
        fs.is_clean(&disk);
        drop(disk);
        first.unmount();
        flip(&backing, offset(&home, &name) + fs.superblock);
        let second = home.mount(&name, &[]);
        let done = fs.check(&device(&second, "512"));
        assert_ne!(done.code(), 0, "{}: {}{}", fs.name, done.out, done.err);
    }
}

#[test]
fn one_flipped_byte_of_ciphertext_is_found_by_the_hashes() {
    let home = Home::ready();
    let backing = home.create("vm.wd", DISK, &[]);
    let tree = tree(&home);
    let sector = noise(4711, 512);
    std::fs::write(tree.join("marked"), &sector).unwrap();
    let wanted = hashes(&tree);

    let first = home.mount("vm.wd", &[]);
    let disk = device(&first, "512");
    EXT4.make(&disk, &[]);
    let mounted = EXT4.mount(&home, &disk);
    copy(&tree, &mounted);
    mounted.sync();
    let places = places(&first.file, &sector);
    assert_eq!(places.len(), 2, "one in each copy");
    mounted.unmount();
    drop(disk);
    first.unmount();
    flip(&backing, offset(&home, "vm.wd") + places[0]);

    let second = home.mount("vm.wd", &[]);
    let disk = device(&second, "512");
    let mounted = EXT4.mount(&home, &disk);
    let intact = ["one", "two"].map(|name| hashes(&mounted.0.join(name)) == wanted);
    assert_eq!(intact.iter().filter(|intact| **intact).count(), 1, "the damaged copy, and only that");
}

/// Where the disk begins in its container.
fn offset(home: &Home, name: &str) -> u64 {
    home.json(["info", name])["offset"].as_u64().unwrap()
}

// ---- whole devices

/// A disk of 16 MiB full of one byte, and a device over it.
#[track_caller]
fn full<'a>(home: &'a Home, create: &[&str]) -> (Mount<'a>, Loop) {
    home.create("vm.wd", "16M", create);
    let mount = home.mount("vm.wd", &[]);
    let disk = device(&mount, "512");
    File::options().write(true).open(&mount.file).unwrap().write_all(&vec![0xAA; 16 << 20]).unwrap();
    (mount, disk)
}

#[track_caller]
fn blkdiscard(device: &Loop, more: &[&str]) {
    run("blkdiscard", [&["-f"], more, &[&device.0]].concat());
}

#[test]
fn blkdiscard_zeroes_and_frees() {
    let home = Home::ready();
    let (mount, disk) = full(&home, &[]);
    blkdiscard(&disk, &["-o", "4M", "-l", "4M"]);
    let wanted = [vec![0xAA; 4 << 20], vec![0; 4 << 20], vec![0xAA; 8 << 20]].concat();
    assert!(std::fs::read(&mount.file).unwrap() == wanted, "the part, and only that");
    assert!(taken(&home.path("vm.wd")).abs_diff(12 * MIB) < MIB / 4);
    blkdiscard(&disk, &[]);
    assert!(std::fs::read(&mount.file).unwrap() == vec![0; 16 << 20]);
    for file in [&mount.file, &home.path("vm.wd")] {
        assert!(taken(file) < MIB / 4, "{}: {} bytes left", file.display(), taken(file));
    }
}

#[test]
fn blkdiscard_zeroes_and_frees_nothing_on_a_disk_without_discards() {
    let home = Home::ready();
    let (mount, disk) = full(&home, &["--no-discard"]);
    let before = taken(&home.path("vm.wd"));
    assert!(before >= 16 * MIB);
    blkdiscard(&disk, &[]);
    assert!(std::fs::read(&mount.file).unwrap() == vec![0; 16 << 20]);
    assert_eq!(taken(&home.path("vm.wd")), before);
    let ciphertext = std::fs::read(home.path("vm.wd")).unwrap();
    let start = usize::try_from(offset(&home, "vm.wd")).unwrap();
    let zeros = ciphertext[start..].chunks(4096).filter(|sector| sector.iter().all(|b| *b == 0)).count();
    assert_eq!(zeros, 0, "sectors that tell that they are not in use");
}

#[test]
fn a_device_zeroes_ranges_that_lie_within_and_across_encrypted_sectors() {
    let home = Home::ready();
    let (mount, disk) = full(&home, &[]);
    let mut wanted = vec![0xAA; 16 << 20];
    for (at, len) in [(512, 512), (7680, 1024), (1 << 20, 4096), ((2 << 20) + 3584, 70_144)] {
        blkdiscard(&disk, &["--zeroout", "-o", &at.to_string(), "-l", &len.to_string()]);
        wanted[at..][..len].fill(0);
    }
    assert!(std::fs::read(&mount.file).unwrap() == wanted);
}

// ---- the daemon dies

/// Writes files until the disk is taken away; those that were synced before that.
fn write_until_it_dies(fs: &Path, synced: &std::sync::mpsc::Sender<usize>) {
    for n in 0_usize.. {
        let bytes = noise(n as u64, n * 7919 % 200_000);
        let durable = || -> std::io::Result<()> {
            // Something on its way all the time.
            std::fs::write(fs.join(format!("loose-{n}")), &bytes)?;
            let mut file = File::create_new(fs.join(format!("synced-{n}")))?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            File::open(fs)?.sync_all()
        };
        if durable().is_err() || synced.send(n).is_err() {
            return;
        }
    }
}

#[track_caller]
fn synced_files_outlive_the_daemon(fs: &Fs, files: usize) {
    let home = Home::ready();
    home.create("vm.wd", DISK, &[]);
    let first = home.mount("vm.wd", &[]);
    let disk = device(&first, "512");
    fs.make(&disk, &[]);
    let mounted = fs.mount(&home, &disk);
    let (sender, synced) = std::sync::mpsc::channel();
    let last = std::thread::scope(|scope| {
        let (place, pid) = (&mounted.0, Pid::from_raw(first.pid));
        scope.spawn(move || write_until_it_dies(place, &sender));
        let mut last = None;
        for n in synced {
            if n == files {
                kill(pid, Signal::SIGKILL).unwrap();
            }
            last = Some(n);
        }
        last
    });
    let last = last.filter(|last| *last >= files).expect("files that were synced");
    first.wait_for_end();
    // Not lazily: the same file system must not be there twice.
    mounted.unmount();
    disk.detach();
    drop(first);

    let second = home.mount("vm.wd", &[]);
    let disk = device(&second, "512");
    if fs.name == "ext4" {
        let done = finish(Command::new("e2fsck").args(["-f", "-y", &disk.0]));
        assert!([0, 1].contains(&done.code()), "{}{}", done.out, done.err);
        assert!(done.out.contains("recovering journal"), "it was to be dirty: {}", done.out);
    }
    // Here xfs and btrfs replay theirs.
    let mounted = fs.mount(&home, &disk);
    for n in 0..=last {
        let found = std::fs::read(mounted.0.join(format!("synced-{n}"))).unwrap();
        assert!(found == noise(n as u64, n * 7919 % 200_000), "file {n} of {last}");
    }
    mounted.unmount();
    fs.is_clean(&disk);
}

/// How many files are synced before the daemon is killed.
fn kills() -> impl Iterator<Item = usize> {
    (0..if std::env::var_os("WRAPDISK_LONG").is_some() { 30 } else { 2 }).map(|n| 20 + n * 13)
}

#[test]
fn what_ext4_synced_outlives_a_killed_daemon() {
    kills().for_each(|files| synced_files_outlive_the_daemon(&EXT4, files));
}

#[test]
fn what_xfs_synced_outlives_a_killed_daemon() {
    kills().for_each(|files| synced_files_outlive_the_daemon(&XFS, files));
}

#[test]
fn what_btrfs_synced_outlives_a_killed_daemon() {
    kills().for_each(|files| synced_files_outlive_the_daemon(&BTRFS, files));
}
