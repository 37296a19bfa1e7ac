//! Is the presented file plain memory to all who read and write it: several threads with direct and buffered descriptors,
//! any offset and length, holes punched and zeroed in between, with and without a cache, at both sector sizes, and at the
//! end of the disk?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use support::{Home, finish, noise, run};

const MIB: usize = 1 << 20;

/// Not a multiple of 4096 bytes, and past several cache sizes.
const SIZE: usize = 6 * MIB + 512;

const THREADS: usize = 4;

const PUNCH: FallocateFlags = FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::FALLOC_FL_ZERO_RANGE;
const ZERO_KEEP: FallocateFlags = ZERO.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);

/// xorshift64: the same run every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % sides.max(1)
    }
}

/// Memory at an address that O_DIRECT of any file system accepts, or just past one.
struct Aligned {
    memory: Vec<u8>,
    skip: usize,
}

impl Aligned {
    fn new(len: usize, offset: usize) -> Self {
        let memory = vec![0; len + offset + 4096];
        let skip = (4096 - memory.as_ptr() as usize % 4096) % 4096 + offset;
        Self { memory, skip }
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.skip..][..len]
    }
}

fn open(path: &Path, flags: i32) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

fn off(at: usize) -> u64 {
    u64::try_from(at).unwrap()
}

fn signed(at: usize) -> i64 {
    i64::try_from(at).unwrap()
}

/// One thread's part of the disk and what must be in it.
struct Part<'a> {
    start: usize,
    model: &'a mut [u8],
}

/// Where and how much: mostly near the edges of sectors and blocks, sometimes anywhere, up to more than two requests.
fn place(dice: &mut Dice, room: usize, aligned: Option<usize>) -> (usize, usize) {
    let unit = aligned.unwrap_or(1);
    let most = [512, 4096, 5000, 140_000, 700_000][dice.roll(5)].min(room);
    let at = match dice.roll(3) {
        0 => dice.roll(room),
        // Just before, on or after a block's edge.
        _ => (dice.roll(room / 4096 + 1) * 4096 + dice.roll(3)).saturating_sub(1),
    };
    let at = (at / unit * unit).min(room);
    (at, (1 + dice.roll(most)).next_multiple_of(unit).min((room - at) / unit * unit))
}

impl Part<'_> {
    /// Random operations through every kind of descriptor, each read checked at once.
    fn exercise(&mut self, path: &Path, seed: u64, rounds: usize) {
        let mut dice = Dice(seed | 1);
        let files = [open(path, 0), open(path, libc::O_DIRECT), open(path, libc::O_SYNC)];
        // O_DIRECT at its own terms, 4096 and 512, and as FUSE allows it: at any.
        let kinds = [(0, None, 1), (1, Some(4096), 0), (1, Some(512), 512), (1, None, 3), (2, None, 0)];
        for round in 0..rounds {
            let (file, align, skew) = kinds[dice.roll(kinds.len())];
            let file = &files[file];
            // Parts begin where they like; aligned access begins at the next boundary of the disk.
            let lead = align.map_or(0, |a| self.start.next_multiple_of(a) - self.start);
            let (at, len) = place(&mut dice, self.model.len() - lead, align);
            let (at, disk) = (lead + at, self.start + lead + at);
            let mut memory = Aligned::new(len, skew);
            let expected = &mut self.model[at..at + len];
            let what = format!("round {round}: {len} bytes at {disk}");
            match dice.roll(10) {
                0..4 => {
                    let bytes = memory.bytes(len);
                    bytes.copy_from_slice(&noise(seed ^ off(round) << 20, len));
                    file.write_all_at(bytes, off(disk)).unwrap_or_else(|e| panic!("write, {what}: {e}"));
                    expected.copy_from_slice(bytes);
                }
                4 | 5 if len > 0 => {
                    let mode = [PUNCH, ZERO, ZERO_KEEP][dice.roll(3)];
                    fallocate(file, mode, signed(disk), signed(len))
                        .unwrap_or_else(|e| panic!("{mode:?}, {what}: {e}"));
                    expected.fill(0);
                }
                6 => file.sync_data().unwrap(),
                _ => {
                    let bytes = memory.bytes(len);
                    file.read_exact_at(bytes, off(disk)).unwrap_or_else(|e| panic!("read, {what}: {e}"));
                    assert!(bytes == expected, "read, {what}");
                }
            }
        }
    }
}

/// Several threads, each in its own part. The parts meet within sectors, so that neighbours change the same one.
fn exercise_all(path: &Path, model: &mut [u8], seed: u64) {
    let rounds = if std::env::var_os("WRAPDISK_LONG").is_some() { 20_000 } else { 600 };
    let share = model.len() / THREADS + 333;
    std::thread::scope(|scope| {
        for (i, model) in model.chunks_mut(share).enumerate() {
            let seed = seed + 7919 * (off(i) + 1);
            scope.spawn(move || Part { start: i * share, model }.exercise(path, seed, rounds));
        }
    });
}

/// Exercises a disk, then looks at all of it again: through the same mount, and through a later one.
fn check(home: &Home, name: &str, options: &[&str], unlock: &[&str], seed: u64) {
    let mount = home.mount(name, &[options, unlock].concat());
    let mut model = std::fs::read(&mount.file).unwrap();
    exercise_all(&mount.file, &mut model, seed);
    assert!(std::fs::read(&mount.file).unwrap() == model, "the whole disk, same mount");
    mount.unmount();
    let mount = home.mount(name, &[&["--read-only", "--cache-size", "0"], unlock].concat());
    assert!(std::fs::read(&mount.file).unwrap() == model, "the whole disk, next mount");
    mount.unmount();
}

#[test]
fn threads_read_what_they_wrote_through_a_cache_smaller_than_the_disk() {
    let home = Home::ready();
    home.create("vm.wd", &SIZE.to_string(), &[]);
    check(&home, "vm.wd", &["--cache-size", "1M", "--threads", "4"], &[], 1);
}

#[test]
fn threads_read_what_they_wrote_through_a_cache_that_holds_everything() {
    let home = Home::ready();
    home.create("vm.wd", &SIZE.to_string(), &[]);
    check(&home, "vm.wd", &[], &[], 2);
}

#[test]
fn threads_read_what_they_wrote_without_a_cache() {
    let home = Home::ready();
    home.create("vm.wd", &SIZE.to_string(), &["--no-discard"]);
    check(&home, "vm.wd", &["--cache-size", "0", "--max-request", "64K"], &[], 3);
}

#[test]
fn threads_read_what_they_wrote_in_sectors_of_512_bytes() {
    let home = Home::ready();
    let (container, pass) = (home.path("luks.img"), home.path("pass"));
    std::fs::write(&pass, "a passphrase").unwrap();
    File::create(&container).unwrap().set_len(off(16 * MIB + SIZE)).unwrap();
    let format = ["luksFormat", "-q", "--type", "luks2", "--key-size", "512", "--sector-size", "512"];
    let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file"];
    let mut cryptsetup = Command::new("cryptsetup");
    finish(cryptsetup.args(format).args(cheap).args([&pass, &container])).ok();
    let unlock = ["--passphrase-file", pass.to_str().unwrap()];
    check(&home, "luks.img", &["--cache-size", "1M"], &unlock, 4);
}

#[test]
fn the_exerciser_notices_a_wrong_byte_in_every_block() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let mut model = vec![0; 800_000];
    model.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Part { start: 123_456, model: &mut model }.exercise(&mount.file, 5, 100);
    }));
    let said = found.expect_err("the disk holds something else").downcast::<String>().unwrap();
    assert!(said.starts_with("read, round "), "{said}");
    mount.unmount();
}

#[test]
fn requests_larger_than_the_largest_are_split_and_joined() {
    let home = Home::ready();
    home.create("vm.wd", &SIZE.to_string(), &[]);
    for request in ["64K", "256K", "1M"] {
        let mount = home.mount("vm.wd", &["--max-request", request]);
        for flags in [0, libc::O_DIRECT] {
            let file = open(&mount.file, flags);
            let (at, len) = (MIB + 4096, 4 * MIB + 8192);
            let data = noise(off(len) + u64::from(flags != 0), len);
            let mut memory = Aligned::new(len, 0);
            memory.bytes(len).copy_from_slice(&data);
            assert_eq!(file.write_at(memory.bytes(len), off(at)).unwrap(), len, "one call, all of it");
            memory.bytes(len).fill(0);
            assert_eq!(file.read_at(memory.bytes(len), off(at)).unwrap(), len, "one call, all of it");
            assert!(memory.bytes(len) == data, "{request}, flags {flags:o}");
        }
        mount.unmount();
    }
}

#[test]
fn reads_at_the_end_are_short_and_writes_past_it_find_no_space() {
    let home = Home::ready();
    home.create("vm.wd", &SIZE.to_string(), &[]);
    let mount = home.mount("vm.wd", &[]);
    let data = noise(6, SIZE);
    open(&mount.file, 0).write_all_at(&data, 0).unwrap();
    for flags in [0, libc::O_DIRECT] {
        let file = open(&mount.file, flags);
        let mut memory = Aligned::new(8192, 0);
        for (at, expected) in [(SIZE - 512, 512), (SIZE - 4608, 4608), (SIZE - 1, 1), (SIZE, 0), (1 << 40, 0)]
        {
            let n = file.read_at(memory.bytes(8192), off(at)).unwrap();
            assert_eq!(n, expected, "read at {at}, flags {flags:o}");
            assert!(memory.bytes(n) == &data[SIZE.min(at)..][..n]);
        }
        for at in [SIZE - 4608, SIZE - 512, SIZE - 1, SIZE, SIZE + 512, 1 << 40] {
            memory.bytes(8192).fill(0xEE);
            let code = file.write_at(memory.bytes(8192), off(at)).unwrap_err().raw_os_error();
            assert_eq!(code, Some(libc::ENOSPC), "write at {at}, flags {flags:o}");
        }
        assert_eq!(file.metadata().unwrap().len(), off(SIZE));
    }
    assert!(std::fs::read(&mount.file).unwrap() == data, "a refused write changed something");
    mount.unmount();
}

#[test]
fn zeroing_past_the_end_needs_keep_size_and_stops_there() {
    let home = Home::ready();
    home.create("vm.wd", &SIZE.to_string(), &[]);
    let mount = home.mount("vm.wd", &[]);
    let data = noise(7, SIZE);
    let file = open(&mount.file, 0);
    for mode in [PUNCH, ZERO_KEEP] {
        file.write_all_at(&data, 0).unwrap();
        fallocate(&file, mode, signed(SIZE - 5000), 1 << 30).unwrap();
        fallocate(&file, mode, signed(SIZE), 4096).unwrap();
        fallocate(&file, mode, 1 << 40, 4096).unwrap();
        let now = std::fs::read(&mount.file).unwrap();
        assert!(now[..SIZE - 5000] == data[..SIZE - 5000] && now[SIZE - 5000..] == [0; 5000], "{mode:?}");
    }
    // Without it the file would have to grow, as with a write.
    assert_eq!(fallocate(&file, ZERO, signed(SIZE - 512), 1024), Err(nix::Error::ENOSPC));
    // Space cannot be promised through encryption: glibc's posix_fallocate writes instead, and is right to.
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 4096), Err(nix::Error::EOPNOTSUPP));
    assert_eq!(fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 4096), Err(nix::Error::EOPNOTSUPP));
    let odd = FallocateFlags::FALLOC_FL_COLLAPSE_RANGE;
    assert_eq!(fallocate(&file, odd, 0, 4096), Err(nix::Error::EOPNOTSUPP));
    file.write_all_at(&data, 0).unwrap();
    let reserve = "import os, sys; os.posix_fallocate(os.open(sys.argv[1], os.O_RDWR), 0, int(sys.argv[2]))";
    run("python3", ["-c", reserve, mount.text(), &SIZE.to_string()]);
    assert!(std::fs::read(&mount.file).unwrap() == data, "posix_fallocate changed bytes");
    drop(file);
    mount.unmount();
}
