//! Do qemu's tools read, write, map, convert and lock the presented file as they do a raw image?
//!
//! Whole guests are not run here: the tools use the block layer that a guest's disk goes through.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use support::{Done, Home, Mount, finish, noise, run};

const MIB: u64 = 1 << 20;

/// How qemu is told to reach a disk: its cache mode, and how it waits for the kernel.
const WAYS: [(&str, &str); 6] = [
    ("none", "threads"),
    ("none", "native"),
    ("none", "io_uring"),
    ("directsync", "native"),
    ("writethrough", "threads"),
    ("writeback", "io_uring"),
];

/// qemu-io on a raw image.
fn qemu_io(file: &str, (cache, aio): (&str, &str), commands: &[&str]) -> Done {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let options = ["-f", "raw", "-t", cache, "-i", aio, "-d", "unmap"];
    finish(Command::new("qemu-io").args(options).args(commands).arg(file))
}

const DIRECT: (&str, &str) = WAYS[2];

/// Runs of blocks as `qemu-img map` tells them: first byte, length, data or not.
fn map(file: &str) -> Vec<(u64, u64, bool)> {
    let options = ["map", "--output=json", "--image-opts"];
    let image = format!("driver=raw,file.driver=file,file.cache.direct=on,file.filename={file}");
    let map: serde_json::Value =
        serde_json::from_str(&run("qemu-img", [&options[..], &[&image]].concat())).unwrap();
    let runs = map.as_array().unwrap().iter().map(|run| {
        assert_ne!(run["zero"], run["data"], "{run}");
        (run["start"].as_u64().unwrap(), run["length"].as_u64().unwrap(), run["data"].as_bool().unwrap())
    });
    runs.collect()
}

/// Bytes that a file takes.
fn taken(file: &Path) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

#[test]
fn what_is_written_one_way_is_read_back_every_other_way() {
    let home = Home::ready();
    home.create("vm.wd", "32M", &[]);
    let mount = home.mount("vm.wd", &["--cache-size", "64K"]);
    for (n, way) in WAYS.into_iter().enumerate() {
        let mark = 0x11 * (n + 1);
        let write = [
            format!("write -P {mark} 0 64k"),
            format!("write -P {} 64k 3M", mark + 1),
            // Neither end lies on an encrypted sector, and the pieces are of three sizes.
            format!("writev -P {} 4197888 512 3k 65024 1M", mark + 2),
            "flush".to_owned(),
        ];
        qemu_io(mount.text(), way, &write.each_ref().map(String::as_str)).ok();
        let read = [
            format!("read -P {mark} 0 64k"),
            format!("read -P {} 64k 3M", mark + 1),
            "read -P 0 4096k 3584".to_owned(),
            format!("readv -P {} 4197888 1M 512 65024 3k", mark + 2),
            "read -P 0 5315072 512".to_owned(),
        ];
        for other in WAYS {
            qemu_io(mount.text(), other, &read.each_ref().map(String::as_str)).ok();
        }
    }
    assert!(mount.status()["io"]["flushes"].as_u64().unwrap() > 0);
    mount.unmount();
}

#[test]
fn requests_that_are_in_flight_together_all_arrive() {
    let home = Home::ready();
    home.create("vm.wd", "32M", &[]);
    let mount = home.mount("vm.wd", &["--cache-size", "64K"]);
    for (n, way) in WAYS.into_iter().enumerate() {
        // Neighbours meet within an encrypted sector.
        let places: Vec<_> = (0..64).map(|k| (k * 11 * 512 * 7, (k + n) % 255 + 1)).collect();
        let writes = places.iter().map(|(at, mark)| format!("aio_write -q -P {mark} {at} 39424"));
        let reads = places.iter().map(|(at, mark)| format!("aio_read -q -P {mark} {at} 39424"));
        let flush = || std::iter::once("aio_flush".to_owned());
        let all: Vec<_> = writes.chain(flush()).chain(reads).chain(flush()).collect();
        let done = qemu_io(mount.text(), way, &all.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!done.out.contains("failed") && !done.err.contains("failed"), "{}{}", done.out, done.err);
        done.ok();
    }
}

#[test]
fn discards_read_as_zeros_and_give_their_space_back_and_zeroes_keep_theirs() {
    let home = Home::ready();
    let backing = home.create("vm.wd", "32M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let io = |commands: &[&str]| drop(qemu_io(mount.text(), DIRECT, commands).ok());
    let takes = |wanted: u64| {
        for file in [&mount.file, &backing] {
            // The header and the block lists of the file system below.
            let slack = taken(file).abs_diff(wanted);
            assert!(slack <= 128 << 10, "{}: {} taken, {wanted} wanted", file.display(), taken(file));
        }
    };
    io(&["write -P 0xaa 0 32M"]);
    takes(32 * MIB);
    io(&["write -z 0 8M", "read -P 0 0 8M"]);
    takes(32 * MIB);
    io(&["discard 8M 8M", "read -P 0 8M 8M", "read -P 0xaa 16M 16M"]);
    takes(24 * MIB);
    io(&["write -z -u 16M 8M", "read -P 0 16M 8M", "read -P 0xaa 24M 8M"]);
    takes(16 * MIB);
    // Of an unaligned discard, the whole sector is freed and the rest of the others is kept.
    io(&[
        "discard 25166336 8k",
        "read -P 0xaa 24M 512",
        "read -P 0 25166336 8k",
        "read -P 0xaa 25174528 3584",
    ]);
    let end =
        [(24 * MIB, 4096, true), (24 * MIB + 4096, 4096, false), (24 * MIB + 8192, 8 * MIB - 8192, true)];
    assert_eq!(map(mount.text()), [&[(0, 8 * MIB, true), (8 * MIB, 16 * MIB, false)], &end[..]].concat());
}

#[test]
fn the_map_shows_what_was_written_and_nothing_else() {
    let home = Home::ready();
    home.create("vm.wd", "32M", &[]);
    let mount = home.mount("vm.wd", &[]);
    assert_eq!(map(mount.text()), [(0, 32 * MIB, false)]);
    let commands = ["write 1M 64k", "write -P 7 8M 4M", "discard 9M 1M", "write 33550336 4k"];
    qemu_io(mount.text(), DIRECT, &commands).ok();
    let wanted = [
        (0, MIB, false),
        (MIB, 65536, true),
        (MIB + 65536, 7 * MIB - 65536, false),
        (8 * MIB, MIB, true),
        (9 * MIB, MIB, false),
        (10 * MIB, 2 * MIB, true),
        (12 * MIB, 20 * MIB - 4096, false),
        (32 * MIB - 4096, 4096, true),
    ];
    assert_eq!(map(mount.text()), wanted);
    mount.unmount();
    assert_eq!(map(home.mount("vm.wd", &["--read-only"]).text()), wanted, "after a remount");
}

#[test]
fn info_tells_the_size_and_the_space() {
    let home = Home::ready();
    home.create("vm.wd", "12345344", &[]); // 24112 sectors of 512 bytes
    let mount = home.mount("vm.wd", &[]);
    qemu_io(mount.text(), DIRECT, &["write 0 1M"]).ok();
    let info: serde_json::Value =
        serde_json::from_str(&run("qemu-img", ["info", "--output=json", mount.text()])).unwrap();
    assert_eq!(info["format"], "raw");
    assert_eq!(info["virtual-size"], 12_345_344);
    assert_eq!(info["actual-size"].as_u64().unwrap(), taken(&mount.file));
}

#[test]
fn an_image_converted_in_and_out_again_is_the_same() {
    let home = Home::ready();
    home.create("vm.wd", "32M", &[]);
    let (raw, qcow2, back) = (home.text("in.raw"), home.text("in.qcow2"), home.text("out.qcow2"));
    let image = std::fs::File::create(raw).unwrap();
    image.set_len(32 * MIB).unwrap();
    for (seed, at, len) in [(1, 0, 4 << 20), (2, 9 * MIB + 512, 70_144), (3, 20 * MIB, 12 << 20)] {
        image.write_all_at(&noise(seed, len), at).unwrap();
    }
    run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);

    let first = home.mount("vm.wd", &["--cache-size", "64K"]);
    // What was there before must not shine through the holes of the image.
    qemu_io(first.text(), DIRECT, &["write -P 0xee 0 32M"]).ok();
    let deep = ["-n", "-t", "none", "-T", "none", "-W", "-m", "16"];
    run("qemu-img", [&["convert"], &deep[..], &["-f", "qcow2", "-O", "raw", qcow2, first.text()]].concat());
    run("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", "-T", "none", first.text(), qcow2]);
    assert!(taken(&first.file) < 17 * MIB, "the image's holes are holes: {}", taken(&first.file));
    first.unmount();

    let second = home.mount("vm.wd", &["--cache-size", "64K"]);
    run("qemu-img", [&["convert"], &deep[1..], &["-f", "raw", "-O", "qcow2", second.text(), back]].concat());
    run("qemu-img", ["check", back]);
    run("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", raw, back]);
    second.unmount();
}

#[test]
fn reading_and_comparing_notice_one_flipped_byte_of_ciphertext() {
    let home = Home::ready();
    let backing = home.create("vm.wd", "4M", &[]);
    let copy = home.path("copy");
    let first = home.mount("vm.wd", &[]);
    qemu_io(first.text(), DIRECT, &["write -P 0x5a 0 4M"]).ok();
    std::fs::copy(&first.file, &copy).unwrap();
    first.unmount();

    let offset = home.json(["info", "vm.wd"])["offset"].as_u64().unwrap();
    let file = std::fs::File::options().read(true).write(true).open(backing).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset + MIB + 100).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset + MIB + 100).unwrap();
    drop(file);

    let second = home.mount("vm.wd", &[]);
    let read = qemu_io(second.text(), DIRECT, &["read -P 0x5a 0 4M"]);
    assert!(read.out.contains("Pattern verification failed"), "{}", read.out);
    read.fails(1);
    let images = ["compare", "-f", "raw", "-F", "raw", second.text(), copy.to_str().unwrap()];
    let compared = finish(Command::new("qemu-img").args(images));
    assert_eq!((compared.code(), compared.out.trim()), (1, "Content mismatch at offset 1048576!"));
}

#[test]
fn writes_to_a_read_only_mount_are_refused_and_reads_are_served() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let writable = home.mount("vm.wd", &[]);
    qemu_io(writable.text(), DIRECT, &["write -P 9 0 4k"]).ok();
    writable.unmount();
    let mount = home.mount("vm.wd", &["--read-only"]);
    let reader = ["-r", "-f", "raw", "-t", "none", "-c", "read -P 9 0 4k", mount.text()];
    finish(Command::new("qemu-io").args(reader)).ok();
    let said = qemu_io(mount.text(), DIRECT, &["write 0 4k"]).fails(1);
    assert!(said.contains("Read-only file system"), "{said}");
}

#[test]
fn the_locks_of_qemu_hold_on_the_presented_file() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let writer = Holder::of(&mount);
    let said = qemu_io(mount.text(), DIRECT, &["write 0 4k"]).fails(1);
    assert!(said.contains("Failed to get \"write\" lock"), "{said}");
    finish(Command::new("qemu-io").args(["-r", "-f", "raw", "-c", "read 0 4k", mount.text()])).ok();
    drop(writer);
    qemu_io(mount.text(), DIRECT, &["write 0 4k"]).ok();
}

/// A qemu-io that tolerates no other writer, as a guest's disk does not, until it is dropped.
struct Holder(Child);

impl Holder {
    fn of(mount: &Mount<'_>) -> Self {
        // Alone, qemu-io shares everything.
        let image = format!(
            "driver=blkdebug,unshare-child-perms.0=write,image.driver=file,image.filename={}",
            mount.text()
        );
        let mut child = Command::new("qemu-io")
            .args(["--image-opts", &image])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "read 0 512").unwrap();
        let out = BufReader::new(child.stdout.as_mut().unwrap());
        assert!(
            out.lines().map_while(Result::ok).any(|line| line.contains("512/512")),
            "it must have opened"
        );
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
