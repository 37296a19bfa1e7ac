//! Do the other ways to a file's bytes agree with read and write: shared memory maps, vectors, copies inside the kernel,
//! and the map of holes that copying programs go by?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::unistd::{Whence, lseek};
use support::{Home, Mount, noise, run};

const MIB: usize = 1 << 20;

/// Not a multiple of the page size: the last page of a map is half a page.
const SIZE: usize = 4 * MIB + 512;

/// What each script below starts with: `path`, `size`, descriptors to the same file, and `check`.
const PRELUDE: &str = r"
import mmap, os, sys
path, size = sys.argv[1], int(sys.argv[2])
buffered, direct = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR | os.O_DIRECT)
def check(what, a, b):
    if a != b:
        at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        sys.exit(f'{what}: {len(a)} and {len(b)} bytes, different at {at}')
def whole(fd):
    data = bytearray()
    while part := os.pread(fd, 1 << 20, len(data)):
        data += part
    return bytes(data)
";

fn off(at: usize) -> u64 {
    u64::try_from(at).unwrap()
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Runs a script against the presented file.
#[track_caller]
fn python(mount: &Mount<'_>, script: &str) -> String {
    run("python3", ["-c", &format!("{PRELUDE}{script}"), mount.text(), &SIZE.to_string()])
}

/// A mounted disk full of noise; `model` is what it holds.
fn full(home: &Home) -> (Mount<'_>, Vec<u8>) {
    home.create("vm.wd", &SIZE.to_string(), &[]);
    let mount = home.mount("vm.wd", &["--cache-size", "1M"]);
    let model = noise(1, SIZE);
    open(&mount.file).write_all_at(&model, 0).unwrap();
    (mount, model)
}

#[test]
fn a_shared_map_and_the_descriptors_see_each_other() {
    let home = Home::ready();
    let (mount, mut model) = full(&home);
    let said = python(
        &mount,
        r"
map = mmap.mmap(buffered, size)
check('map of what was written', map[:], whole(direct))
# Written through the map, read through both descriptors: at once, since a read first writes back what is dirty.
for at, text in [(0, b'front'), (4095, b'across a page'), (size - 512, b'the last half page'), (size - 1, b'!')]:
    map[at:at + len(text)] = text
    check('buffered read after map', os.pread(buffered, len(text), at), text)
    check('direct read after map', os.pread(direct, len(text), at), text)
map[1 << 20:2 << 20] = b'M' * (1 << 20)
map.flush()
check('after msync', os.pread(direct, 1 << 20, 1 << 20), b'M' * (1 << 20))
# Written through descriptors, read through the map.
for fd, at in [(buffered, 10), (direct, 8192), (buffered, size - 300), (direct, 3 << 20)]:
    os.pwrite(fd, b'news' * 50, at)
    check('map after write', map[at:at + 200], b'news' * 50)
# Through a second map, and a private one that keeps its changes to itself.
other = mmap.mmap(direct, size)
private = mmap.mmap(buffered, size, flags=mmap.MAP_PRIVATE)
private[5:7] = b'XX'
map[100:103] = b'two'
check('second map', other[100:103], b'two')
check('a private change', os.pread(direct, 2, 5) == b'XX', False)
check('all of it', whole(buffered), map[:])
map.close()
print('agreed')
",
    );
    assert_eq!(said, "agreed");
    let edits: [(usize, &[u8]); 5] = [
        (0, b"front"),
        (4095, b"across a page"),
        (SIZE - 512, b"the last half page"),
        (SIZE - 1, b"!"),
        (MIB, &[b'M'; MIB]),
    ];
    for (at, text) in edits {
        model[at..at + text.len()].copy_from_slice(text);
    }
    for at in [10, 8192, SIZE - 300, 3 * MIB] {
        model[at..at + 200].copy_from_slice(&b"news".repeat(50));
    }
    model[100..103].copy_from_slice(b"two");
    assert!(std::fs::read(&mount.file).unwrap() == model, "same mount");
    mount.unmount();
    let mount = home.mount("vm.wd", &["--read-only"]);
    assert!(std::fs::read(&mount.file).unwrap() == model, "next mount: the map was written back");
    python_read_only(&mount);
    mount.unmount();
}

/// A read-only mount can be mapped for reading, and not for writing.
fn python_read_only(mount: &Mount<'_>) {
    let script = r"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
assert mmap.mmap(fd, 0, prot=mmap.PROT_READ)[:5] == b'front'
try:
    mmap.mmap(fd, 0)
except PermissionError:
    print('refused')
";
    assert_eq!(run("python3", ["-c", script, mount.text()]), "refused");
}

#[test]
fn a_map_never_shows_what_a_discard_or_zeroing_took_away() {
    let home = Home::ready();
    let (mount, _) = full(&home);
    let script = r"
map = mmap.mmap(buffered, size)
def counts():
    return ' '.join(str(map[i << 20:(i + 1) << 20].count(0) == 1 << 20) for i in range(4))
print(counts(), flush=True)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def fallocate(fd, mode, at, length):
    if libc.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(length)):
        sys.exit(os.strerror(ctypes.get_errno()))
fallocate(direct, 3, 1 << 20, 1 << 20)
print(counts(), flush=True)
fallocate(direct, 0x11, 2 << 20, 1 << 20)
print(counts(), flush=True)
";
    let said = python(&mount, script);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines, ["False False False False", "False True False False", "False True True False"]);
    mount.unmount();
}

#[test]
fn reads_and_writes_leave_no_second_copy_of_the_plaintext_in_the_kernel() {
    let home = Home::ready();
    let (mount, _) = full(&home);
    let said = python(
        &mount,
        r"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
pages = (size + 4095) // 4096
address = libc.mmap(None, ctypes.c_size_t(size), 1, 1, buffered, ctypes.c_long(0))
def resident():
    found = (ctypes.c_ubyte * pages)()
    if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), found):
        sys.exit(os.strerror(ctypes.get_errno()))
    return sum(page & 1 for page in found)
whole(buffered), whole(direct), os.pwrite(buffered, b'x' * 9000, 500)
print(resident())
check('the map', ctypes.string_at(address, size), whole(direct))
print(resident() == pages)
",
    );
    assert_eq!(said, "0\nTrue", "a map needs its pages; nothing else does");
    mount.unmount();
}

#[test]
fn vectors_copies_and_pipes_move_the_same_bytes() {
    let home = Home::ready();
    let (mount, model) = full(&home);
    let out = home.text("out");
    let said = python(
        &mount,
        &format!(
            r"
data = whole(direct)
# Vectors with odd parts.
parts = [bytearray(n) for n in (1, 511, 4096, 100_000, 3)]
total = sum(map(len, parts))
check('preadv', os.preadv(direct, parts, 12345) == total and b''.join(parts), data[12345:12345 + total])
os.pwritev(direct, [b'ab', b'', b'c' * 5000, b'd'], 77)
check('pwritev', os.pread(buffered, 5003, 77), b'ab' + b'c' * 5000 + b'd')
os.pwritev(buffered, [data[77:80], data[80:5080]], 77)
# Out of the mount, by every call there is.
out = os.open('{out}', os.O_RDWR | os.O_CREAT | os.O_TRUNC)
def copied(what, step, first=0):
    os.ftruncate(out, 0)
    os.lseek(out, 0, 0)
    os.lseek(buffered, first, 0)
    got = 0
    while n := step(first + got):
        got += n
    check(what, os.pread(out, size, 0), data[first:])
copied('sendfile', lambda at: os.sendfile(out, buffered, at, 1 << 20))
r, w = os.pipe()
def splice(at):
    n = os.splice(buffered, w, 60_000, offset_src=at)
    left = n
    while left:
        left -= os.splice(r, out, left)
    return n
copied('splice', splice, 7)
# What was sent once may lie in the page cache: a write must be news to the next.
os.pwrite(direct, b'fresh', 4094)
data = data[:4094] + b'fresh' + data[4099:]
copied('sendfile after a write', lambda at: os.sendfile(out, buffered, at, 1 << 20))
# Into the mount.
os.pwrite(out, data[::-1], 0)
os.lseek(buffered, 0, 0)
at = 0
while at < size:
    at += os.sendfile(buffered, out, at, 1 << 20)
check('sendfile in', whole(direct), data[::-1])
# Within the mount, onto itself.
at = 0
while at < 300_000:
    at += os.copy_file_range(buffered, direct, 300_000 - at, 1000 + at, (2 << 20) + at)
check('copy_file_range within', os.pread(direct, 300_000, 2 << 20), data[::-1][1000:301_000])
# Between file systems the kernel refuses it, and past the end there is no room.
def refused(call):
    try:
        call()
        print('done')
    except OSError as e:
        print(e.errno)
refused(lambda: os.copy_file_range(buffered, out, 4096))
refused(lambda: os.copy_file_range(buffered, direct, 4096, 0, size))
refused(lambda: os.pwritev(direct, [b'a' * 512, b'b' * 512], size - 512))
print('agreed')
"
        ),
    );
    assert_eq!(said, format!("{}\n{1}\n{1}\nagreed", libc::EXDEV, libc::ENOSPC));
    let mut reversed = model;
    reversed[4094..4099].copy_from_slice(b"fresh");
    reversed.reverse();
    let inner = reversed[1000..301_000].to_vec();
    reversed[2 * MIB..2 * MIB + 300_000].copy_from_slice(&inner);
    assert!(std::fs::read(&mount.file).unwrap() == reversed);
    mount.unmount();
}

/// The data segments of a file as lseek tells them: starts and ends.
fn segments(file: &File) -> Vec<(usize, usize)> {
    let seek = |at: usize, whence| match lseek(file, i64::try_from(at).unwrap(), whence) {
        Ok(found) => Some(usize::try_from(found).unwrap()),
        Err(nix::Error::ENXIO) => None,
        Err(e) => panic!("lseek: {e}"),
    };
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = seek(at, Whence::SeekData) {
        let end = seek(start, Whence::SeekHole).expect("the end is a hole");
        assert!(end > start && start >= at, "{start}..{end} after {at}");
        found.push((start, end));
        at = end;
    }
    found
}

#[test]
fn holes_are_found_where_they_are() {
    let home = Home::ready();
    home.create("vm.wd", &SIZE.to_string(), &[]);
    let mount = home.mount("vm.wd", &[]);
    let file = open(&mount.file);
    assert_eq!(segments(&file), [], "a new disk is one hole");
    // Aligned to 64 KiB, so that the blocks of any file system below fit.
    let (first, second, third) = ((MIB, MIB + (128 << 10)), (3 * MIB, 3 * MIB + (64 << 10)), (4 * MIB, SIZE));
    for (i, (start, end)) in [first, second, third].into_iter().enumerate() {
        file.write_all_at(&noise(off(i), end - start), off(start)).unwrap();
    }
    let (last_start, last_end) = *segments(&file).last().unwrap();
    assert_eq!((last_start, last_end), (4 * MIB, SIZE), "the last segment ends with the disk");
    assert_eq!(segments(&file), [first, second, third]);
    // In the middle of a segment and of a hole, at the end and past it.
    let seek = |at: usize, whence| lseek(&file, i64::try_from(at).unwrap(), whence);
    assert_eq!(seek(MIB + 5, Whence::SeekData), Ok(i64::try_from(MIB + 5).unwrap()));
    assert_eq!(seek(2 * MIB + 5, Whence::SeekHole), Ok(i64::try_from(2 * MIB + 5).unwrap()));
    assert_eq!(seek(SIZE - 1, Whence::SeekHole), Ok(i64::try_from(SIZE).unwrap()));
    for (at, whence) in [(SIZE, Whence::SeekData), (SIZE, Whence::SeekHole), (SIZE + 1, Whence::SeekData)] {
        assert_eq!(seek(at, whence), Err(nix::Error::ENXIO), "{at}");
    }
    assert_eq!(lseek(&file, 0, Whence::SeekEnd), Ok(i64::try_from(SIZE).unwrap()));
    // Copying programs go by them, and the copy is as sparse as the disk.
    let copy = home.path("copy");
    run("cp", [Path::new("--sparse=auto"), &mount.file, &copy]);
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&mount.file).unwrap());
    assert!(copy.metadata().unwrap().blocks() * 512 < off(MIB), "cp filled the holes");
    let map = run("qemu-img", ["map", "-f", "raw", "--output=json", mount.text()]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let number = |v: &serde_json::Value| usize::try_from(v.as_u64().unwrap()).unwrap();
    let data = map.as_array().unwrap().iter().filter(|part| part["data"] == true);
    let data: Vec<_> =
        data.map(|p| (number(&p["start"]), number(&p["start"]) + number(&p["length"]))).collect();
    assert_eq!(data[..2], [first, second], "{map}");
    drop(file);
    mount.unmount();
}

#[test]
fn a_disk_without_discards_has_no_holes() {
    let home = Home::ready();
    let container = home.text("luks.img");
    let pass = home.text("pass");
    std::fs::write(pass, "a passphrase").unwrap();
    File::create(container).unwrap().set_len(off(16 * MIB + SIZE)).unwrap();
    let options = "luksFormat -q --type luks2 --key-size 512 --pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    let options = options.split(' ').chain(["--key-file", pass, container]);
    run("cryptsetup", options);
    let mount = home.mount("luks.img", &["--passphrase-file", pass]);
    // Of a container made elsewhere a hole in the file is garbage in the disk: nothing may be skipped.
    assert_eq!(segments(&open(&mount.file)), [(0, SIZE)]);
    mount.unmount();
}
