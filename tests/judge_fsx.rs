//! Does fsx, which mixes every way to reach a file and knows what each byte must be, agree with the presented disk?
//!
//! A disk keeps its size, so fsx runs in its block mode: no truncation, no preallocation, no re-open. tests/run installs it
//! into target/tools.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{Done, Home, Loop, finish};

const FSX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/bin/fsx");

/// The last encrypted sector and the last cache block are not whole: the end of the disk is where mistakes are.
const SIZE: u64 = (1 << 20) + 512;

/// All that fsx can do to a file that keeps its size. Operations may pass the largest FUSE request (256 KiB).
const EVERYTHING: &str = "
blockmode = true
[opsize]
max = 300000
[weights]
read = 10
write = 10
mapread = 5
mapwrite = 5
truncate = 0
invalidate = 1
fsync = 1
fdatasync = 1
punch_hole = 5
sendfile = 3
posix_fadvise = 1
copy_file_range = 3
";

/// Mapped pages are not written back at once.
fn lazily_mapped() -> String {
    format!("nomsyncafterwrite = true{EVERYTHING}")
}

/// System calls only, most of them within one encrypted sector.
fn small() -> String {
    ["max = 300000", "mapread = 5", "mapwrite = 5", "invalidate = 1"]
        .iter()
        .zip(["max = 6000", "mapread = 0", "mapwrite = 0", "invalidate = 0"])
        .fold(EVERYTHING.to_owned(), |config, (old, new)| config.replace(old, new))
}

/// For a device: it punches whole sectors only, and copies no ranges.
fn for_device(sector: u32) -> String {
    EVERYTHING
        .replace("max = 300000", &format!("max = 299008\nalign = {sector}"))
        .replace("copy_file_range = 3", "copy_file_range = 0")
}

fn rounds() -> u64 {
    if std::env::var_os("WRAPDISK_LONG").is_some() { 40 } else { 2 }
}

/// A run in a folder of its own, where it leaves what it knows when it fails.
fn fsx(home: &Home, target: &Path, config: &str, seed: u64, steps: u64) -> Done {
    assert!(Path::new(FSX).exists(), "{FSX}: missing; tests/run --setup-only installs it");
    let dir = tempfile::tempdir_in(home.root()).unwrap();
    std::fs::write(dir.path().join("fsx.toml"), config).unwrap();
    let (seed, steps) = (seed.to_string(), steps.to_string());
    let options = ["-f", "fsx.toml", "-P", ".", "-S", &seed, "-N", &steps];
    finish(Command::new(FSX).args(options).arg(target).current_dir(dir.path()))
}

#[track_caller]
fn agrees(home: &Home, target: &Path, config: &str, steps: u64) {
    for seed in 1..=rounds() {
        let done = fsx(home, target, config, seed, steps);
        assert_eq!(done.code(), 0, "seed {seed}, {config}: {}{}", done.err, done.out);
    }
}

fn disk(home: &Home, more: &[&str]) -> PathBuf {
    home.create("vm.wd", &SIZE.to_string(), more)
}

#[track_caller]
fn every_mix_agrees(create: &[&str], mount: &[&str]) {
    let home = Home::ready();
    disk(&home, create);
    let mount = home.mount("vm.wd", mount);
    for config in [EVERYTHING, &lazily_mapped(), &small()] {
        agrees(&home, &mount.file, config, 2000);
    }
    assert_eq!(mount.status()["io"]["errors"], 0);
    mount.unmount();
}

#[test]
fn every_mix_agrees_without_a_cache() {
    every_mix_agrees(&[], &["--cache-size", "0"]);
}

#[test]
fn every_mix_agrees_with_one_cache_block_per_stripe() {
    every_mix_agrees(&[], &["--cache-size", "64K"]);
}

#[test]
fn every_mix_agrees_where_discards_free_nothing() {
    every_mix_agrees(&["--no-discard"], &["--cache-size", "64K"]);
}

#[test]
fn the_same_steps_leave_the_same_bytes_as_on_a_plain_file_also_after_a_remount() {
    let home = Home::ready();
    disk(&home, &[]);
    let plain = home.path("plain");
    File::create(&plain).unwrap().set_len(SIZE).unwrap();
    fsx(&home, &plain, EVERYTHING, 99, 2000).ok();
    let first = home.mount("vm.wd", &[]);
    fsx(&home, &first.file, EVERYTHING, 99, 2000).ok();
    let wanted = std::fs::read(&plain).unwrap();
    assert!(std::fs::read(&first.file).unwrap() == wanted, "while it is mounted");
    first.unmount();
    let second = home.mount("vm.wd", &[]);
    assert!(std::fs::read(&second.file).unwrap() == wanted, "after a remount");
}

#[test]
fn a_loop_device_agrees_whatever_its_sectors_and_its_way_to_the_file() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let mount = home.mount("vm.wd", &["--cache-size", "64K"]);
    for (options, sector) in [
        (&["--sector-size", "512"][..], 512),
        (&["--sector-size", "4096"], 4096),
        (&["--direct-io=off"], 512),
    ] {
        let device = Loop::over(&mount.file, options);
        agrees(&home, Path::new(&device.0), &for_device(sector), 1000);
    }
    mount.unmount();
}

/// Two devices that meet within one encrypted sector: each changes its part while the other changes its own.
#[test]
fn two_devices_that_share_a_sector_agree_at_once() {
    const BORDER: &str = "524800"; // 128 blocks and 512 bytes
    let home = Home::ready();
    disk(&home, &[]);
    let mount = home.mount("vm.wd", &["--cache-size", "64K"]);
    let low = Loop::over(&mount.file, &["--sizelimit", BORDER]);
    let high = Loop::over(&mount.file, &["--offset", BORDER]);
    // Large, so that many of the steps touch the border.
    let config = for_device(512).replace("max = 299008", "max = 299008\nmin = 65536");
    std::thread::scope(|scope| {
        for device in [&low, &high] {
            scope.spawn(|| agrees(&home, Path::new(&device.0), &config, 1500));
        }
    });
}

#[test]
fn fsx_notices_ciphertext_that_changes_below_the_mount() {
    let home = Home::ready();
    let backing = disk(&home, &[]);
    let mount = home.mount("vm.wd", &["--cache-size", "0"]);
    let offset = home.json(["info", "vm.wd"])["offset"].as_u64().unwrap();
    let ended = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().read(true).write(true).open(&backing).unwrap();
            while !ended.load(Ordering::Relaxed) {
                for at in (offset..offset + SIZE).step_by(4096) {
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, at).unwrap();
                    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
                }
            }
        });
        // Also when it panics, because fsx cannot be started: the scope waits for the other thread.
        let done = std::panic::catch_unwind(|| fsx(&home, &mount.file, EVERYTHING, 1, 1_000_000));
        ended.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|e| std::panic::resume_unwind(e))
    });
    let said = done.fails(1);
    assert!(said.contains("miscompare"), "{said}");
}
