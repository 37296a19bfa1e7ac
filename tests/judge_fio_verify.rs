//! Does fio find every block it wrote, whatever the depth, the number of writers, the size of a request and the cache?
//!
//! A header in each block names its place and sums its bytes, so a swapped, torn or lost piece is seen, not only a damaged
//! one. Depth is the point: FUSE exports exist that corrupt only when several requests are in flight.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::os::unix::fs::FileExt;
use std::process::Command;

use support::{Done, Home, Mount, finish};

const MIB: u64 = 1 << 20;

/// Holds the largest region with room to spare.
const DISK: &str = "48M";

/// What two jobs share.
fn region() -> u64 {
    if std::env::var_os("WRAPDISK_LONG").is_some() { 32 * MIB } else { 16 * MIB }
}

/// One fio run over the first `region` bytes of a file.
#[derive(Clone, Copy)]
struct Fio {
    /// A name that a failure shows.
    name: &'static str,
    rw: &'static str,
    block: u64,
    depth: u32,
    jobs: u64,
    engine: &'static str,
    direct: bool,
    region: u64,
    more: &'static [&'static str],
}

impl Fio {
    fn new(name: &'static str, rw: &'static str, block: u64) -> Self {
        let (depth, jobs, engine) = (16, 2, "io_uring");
        Self {
            name,
            rw,
            block,
            depth,
            jobs,
            engine,
            direct: true,
            region: region(),
            more: &["--do_verify=1"],
        }
    }

    fn args(&self, mount: &Mount<'_>) -> Vec<String> {
        let share = self.region / self.jobs;
        let mut args = vec![
            format!("--name={}", self.name),
            format!("--filename={}", mount.text()),
            format!("--rw={}", self.rw),
            format!("--bs={}", self.block),
            format!("--iodepth={}", self.depth),
            format!("--numjobs={}", self.jobs),
            format!("--size={share}"),
            format!("--offset_increment={share}"),
            format!("--ioengine={}", self.engine),
            format!("--direct={}", u8::from(self.direct)),
            format!("--verify_interval={}", self.block.min(4096)),
        ];
        let fixed = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--fallocate=none"];
        args.extend(fixed.iter().chain(self.more).map(|s| (*s).to_owned()));
        args
    }

    fn run(&self, home: &Home, mount: &Mount<'_>) -> Done {
        finish(Command::new("fio").args(self.args(mount)).current_dir(home.root()))
    }

    /// Runs on a region without a single header, so that a lost write is not hidden by an older one.
    #[track_caller]
    fn must_verify(&self, home: &Home, mount: &Mount<'_>) {
        poison(mount);
        // What is read must have been laid down first, and one by one, so that a fault is a fault of reading.
        if self.rw.ends_with("read") {
            lay(self.block, home, mount);
        }
        let done = self.run(home, mount);
        let shape = format!("{} {} direct={}", self.name, self.engine, self.direct);
        assert_eq!(done.code(), 0, "{shape}: {}{}", done.err, done.out);
    }
}

fn poison(mount: &Mount<'_>) {
    let file = std::fs::File::options().write(true).open(&mount.file).unwrap();
    let filler = vec![0xA5; 1 << 20];
    for at in (0..region()).step_by(1 << 20) {
        file.write_all_at(&filler, at).unwrap();
    }
}

#[track_caller]
fn lay(block: u64, home: &Home, mount: &Mount<'_>) {
    let one = Fio {
        depth: 1,
        jobs: 1,
        engine: "psync",
        more: &["--do_verify=0"],
        ..Fio::new("lay", "write", block)
    };
    one.run(home, mount).ok();
}

/// Every shape, by a direct or a buffered user.
fn shapes(direct: bool) -> Vec<Fio> {
    let mix: &[&str] = &["--rwmixread=50", "--verify_backlog=64", "--do_verify=1"];
    let all = [
        Fio::new("4k-random-write", "randwrite", 4096),
        Fio { engine: "libaio", ..Fio::new("4k-random-write", "randwrite", 4096) },
        // Only reads that come from its own backlog are checked in a mix.
        Fio { more: mix, ..Fio::new("4k-mix", "randrw", 4096) },
        Fio::new("4k-random-read", "randread", 4096),
        Fio::new("1m-write", "write", MIB),
        Fio::new("1m-read", "read", MIB),
        Fio { depth: 1, jobs: 1, engine: "psync", ..Fio::new("64k-alone", "randwrite", 65536) },
        // Eight writers of one encrypted sector: read, changed and written back.
        Fio { region: MIB, ..Fio::new("512-random-write", "randwrite", 512) },
    ];
    all.into_iter().map(|fio| Fio { direct, ..fio }).collect()
}

#[track_caller]
fn every_shape_verifies(options: &[&str]) -> serde_json::Value {
    let home = Home::ready();
    home.create("vm.wd", DISK, &[]);
    every_shape_verifies_in(&home, options)
}

#[track_caller]
fn every_shape_verifies_in(home: &Home, options: &[&str]) -> serde_json::Value {
    let mount = home.mount("vm.wd", options);
    for fio in [true, false].into_iter().flat_map(shapes) {
        fio.must_verify(home, &mount);
    }
    let status = mount.status();
    assert_eq!(status["io"]["errors"], 0, "{status}");
    mount.unmount();
    status
}

#[test]
fn every_shape_verifies_without_a_cache() {
    let status = every_shape_verifies(&["--cache-size", "0", "--threads", "8", "--max-request", "1M"]);
    assert_eq!(status["cache"], serde_json::Value::Null, "the cache was to be off");
}

#[test]
fn every_shape_verifies_with_a_cache_that_never_stops_evicting() {
    let status = every_shape_verifies(&["--cache-size", "1M"]);
    for counter in ["hits", "evictions"] {
        assert!(status["cache"][counter].as_u64().unwrap() > 0, "{counter}: {status}");
    }
}

/// A cache block, and what is locked, is then eight encrypted sectors.
#[test]
fn every_shape_verifies_in_a_container_of_cryptsetup_with_512_byte_sectors() {
    let home = Home::ready();
    let (disk, passphrase) = (home.text("vm.wd"), home.text("passphrase"));
    std::fs::write(passphrase, "a passphrase").unwrap();
    std::fs::File::create(disk).unwrap().set_len(64 * MIB).unwrap();
    let quick = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let format =
        ["luksFormat", "-q", "--type", "luks2", "--sector-size", "512", "--key-file", passphrase, disk];
    finish(Command::new("cryptsetup").args(quick).args(format)).ok();
    every_shape_verifies_in(&home, &["--passphrase-file", passphrase, "--cache-size", "1M"]);
}

#[test]
fn a_direct_and_a_buffered_writer_do_not_disturb_each_other() {
    let home = Home::ready();
    home.create("vm.wd", DISK, &[]);
    let mount = home.mount("vm.wd", &["--cache-size", "1M"]);
    poison(&mount);
    let half = region() / 2;
    let direct = Fio { jobs: 1, region: half, ..Fio::new("direct", "randwrite", 4096) };
    let buffered = Fio { name: "buffered", direct: false, ..direct };
    let second = format!("--offset={half}");
    let both = direct.args(&mount).into_iter().chain(buffered.args(&mount)).chain([second]);
    finish(Command::new("fio").args(both).current_dir(home.root())).ok();
}

#[test]
fn what_was_written_verifies_after_a_remount_until_one_byte_of_ciphertext_is_flipped() {
    let home = Home::ready();
    let backing = home.create("vm.wd", DISK, &[]);
    let first = home.mount("vm.wd", &[]);
    poison(&first);
    Fio { more: &["--do_verify=0"], ..Fio::new("lay", "randwrite", 4096) }.run(&home, &first).ok();
    first.unmount();

    let read = Fio::new("read", "randread", 4096);
    let second = home.mount("vm.wd", &["--read-only"]);
    read.run(&home, &second).ok();
    second.unmount();

    let offset = home.json(["info", "vm.wd"])["offset"].as_u64().unwrap();
    let file = std::fs::File::options().read(true).write(true).open(backing).unwrap();
    let (mut byte, at) = ([0], offset + region() / 2 + 2048);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    drop(file);

    let third = home.mount("vm.wd", &["--read-only"]);
    let said = read.run(&home, &third).fails(1);
    assert!(said.contains("verify") || said.contains("crc32c"), "{said}");
}
