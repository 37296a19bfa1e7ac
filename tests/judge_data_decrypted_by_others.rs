//! Is what was written through a mount what other people's software decrypts: `cryptsetup reencrypt --decrypt`, the crate
//! luks-core, dissect.fve? And does each of them see one flipped bit of ciphertext, in the sector where it is?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cryptsetup_support;
mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use cryptsetup_support::{CHEAP, DATA, add_slot, copy, decrypted_by_cryptsetup, flip, put, volume_key};
use nix::fcntl::{FallocateFlags, fallocate};
use support::{Home, finish, noise};

const SECTOR: usize = 4096;
/// A last sector of which only the first eighth is disk.
const SIZE: usize = (6 << 20) + 512;
const SIZE_TEXT: &str = "6291968";

/// Plaintext as it should be.
type Model = Vec<u8>;

/// Fills a disk through a mount with what is awkward: parts of sectors, four writers that share every sector, discards,
/// zeros, and holes that stay.
fn fill(home: &Home, name: &str, size: usize) -> Model {
    let mount = home.mount(name, &[]);
    let file = std::fs::File::options().read(true).write(true).open(&mount.file).unwrap();
    let mut model = vec![0; size];
    for (at, len) in [(0, 3), (4095, 2), (10_000, 50_000), (size / 3, size / 5), (size - 700, 700)] {
        let data = noise(at as u64 + 1, len);
        file.write_all_at(&data, at as u64).unwrap();
        model[at..at + len].copy_from_slice(&data);
    }
    shared_by_four_writers(&file, &mut model, size / 2..size / 2 + size / 8);
    for (at, len) in [(20_000, 30_000), (size / 2 + 5000, 9000)] {
        punch(&file, at, len);
        model[at..at + len].fill(0);
    }
    file.sync_all().unwrap();
    let mut read = vec![0; size];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == model, "not even the mount gives back what was written");
    drop(file);
    mount.unmount();
    model
}

/// Each thread owns a quarter of every kibibyte.
fn shared_by_four_writers(file: &std::fs::File, model: &mut [u8], range: std::ops::Range<usize>) {
    let pieces: Vec<_> = range.step_by(256).collect();
    std::thread::scope(|s| {
        for t in 0..4 {
            let mine = pieces.iter().skip(t).step_by(4);
            s.spawn(move || {
                for at in mine {
                    file.write_all_at(&noise(*at as u64, 256), *at as u64).unwrap();
                }
            });
        }
    });
    for at in pieces {
        model[at..at + 256].copy_from_slice(&noise(at as u64, 256));
    }
}

fn punch(file: &std::fs::File, at: usize, len: usize) {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, i64::try_from(at).unwrap(), i64::try_from(len).unwrap()).unwrap();
}

/// A filled and sealed disk `a.wd` with the cheap keyslot that is in the file `p`.
fn sealed(size: usize, size_text: &str) -> (Home, String, Model) {
    let home = Home::ready();
    let disk = home.create("a.wd", size_text, &[]).to_str().unwrap().to_owned();
    let model = fill(&home, "a.wd", size);
    let said = home.wrapdisk(["seal", "a.wd"]).ok();
    assert!(said.starts_with(&format!("{disk}: sealed, ")), "{said}");
    add_slot(&disk, volume_key(&home, "a.wd"), put(&home, "p", b"words"), &CHEAP);
    (home, disk, model)
}

/// A judge must see one flipped bit: 16 bytes, a block of AES, become noise and nothing else changes.
#[track_caller]
fn sees_a_flipped_bit(home: &Home, disk: &str, model: &[u8], judge: impl Fn(&str) -> Vec<u8>) {
    let block = model.len() / 2 / SECTOR * SECTOR + 1024;
    let other = home.text("flipped.wd");
    copy(disk, other);
    flip(other.as_ref(), DATA + block + 7);
    let read = judge(other);
    assert!(read[block..block + 16] != model[block..block + 16], "the judge would take any ciphertext");
    assert!(read[..block] == model[..block] && read[block + 16..model.len()] == model[block + 16..]);
}

#[test]
fn cryptsetup_decrypts_what_was_written_and_zeros_behind_the_end() {
    let (home, disk, model) = sealed(SIZE, SIZE_TEXT);
    let judge = |container: &str| decrypted_by_cryptsetup(&home, container, home.text("p"));
    let read = judge(&disk);
    assert_eq!(read.len(), SIZE.next_multiple_of(SECTOR));
    assert!(read[..SIZE] == model, "cryptsetup decrypts something else");
    assert!(read[SIZE..].iter().all(|b| *b == 0), "the rest of the last sector is not zero");
    sees_a_flipped_bit(&home, &disk, &model, judge);
}

#[test]
fn luks_core_reads_what_was_written() {
    let (home, disk, model) = sealed(SIZE, SIZE_TEXT);
    let judge = |container: &str| {
        let file = std::fs::File::open(container).unwrap();
        let mut volume = luks::LuksVolume::unlock_with_passphrase(file, b"words").unwrap();
        assert_eq!((volume.info().cipher_mode.as_str(), volume.info().sector_size), ("xts-plain64", SECTOR));
        let mut read = vec![0; SIZE];
        volume.read_at(0, &mut read).unwrap();
        read
    };
    assert!(judge(&disk) == model, "luks-core reads something else");
    sees_a_flipped_bit(&home, &disk, &model, judge);
    let wrong = luks::LuksVolume::unlock_with_passphrase(std::fs::File::open(disk).unwrap(), b"word");
    assert!(wrong.is_err());
}

/// Small: it is Python all the way down.
#[test]
fn dissect_reads_what_was_written() {
    const SCRIPT: &str = "\
import sys
from dissect.fve.luks import LUKS
container, key, size, out = sys.argv[1:]
with open(container, 'rb') as fh, open(out, 'wb') as to:
    luks = LUKS(fh)
    luks.unlock(open(key, 'rb').read(), 0)
    to.write(luks.open().read(int(size)))
";
    let (size, text) = ((256 << 10) + 512, "262656");
    let (home, disk, model) = sealed(size, text);
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    let script = put(&home, "judge.py", SCRIPT.as_bytes());
    let by_key = |container: &str, key: &str| {
        let out = home.text("dissected");
        let done = finish(Command::new(&python).args([script, container, key, text, out]));
        done.status.success().then(|| std::fs::read(out).unwrap()).ok_or(done.err)
    };
    let judge = |container: &str| by_key(container, home.text("a.wd.vk")).unwrap();
    assert!(judge(&disk) == model, "dissect.fve reads something else");
    sees_a_flipped_bit(&home, &disk, &model, judge);
    let refused = by_key(&disk, put(&home, "other.vk", &noise(5, 64))).unwrap_err();
    assert!(refused.contains("Invalid volume key"), "{refused}");
}

/// What a hole means before and after `seal`, to us and to the others.
#[test]
fn a_hole_is_garbage_elsewhere_until_the_disk_is_sealed() {
    let home = Home::ready();
    let disk = home.create("a.wd", SIZE_TEXT, &[]);
    let disk = disk.to_str().unwrap();
    let model = fill(&home, "a.wd", SIZE);
    let warning = "warning: sectors never written read as zeros here and as garbage in dm-crypt; run wrapdisk seal first \
                   if a tool relies on zeros (file systems do not)";
    let warned = home.wrapdisk(["volume-key", "a.wd", "--yes", "--output", "open.vk"]);
    assert_eq!(warned.err.trim(), warning);
    add_slot(disk, home.text("open.vk"), put(&home, "p", b"words"), &CHEAP);

    let holes: Vec<bool> = ciphertext(disk).chunks(SECTOR).map(|s| s.iter().all(|b| *b == 0)).collect();
    let count = holes.iter().filter(|hole| **hole).count();
    assert!((100..holes.len()).contains(&count), "{count} holes of {} sectors", holes.len());
    let theirs = decrypted_by_cryptsetup(&home, disk, home.text("p"));
    for (n, (read, meant)) in theirs.chunks(SECTOR).zip(model.chunks(SECTOR)).enumerate() {
        assert_eq!(read[..meant.len()] == *meant, !holes[n], "sector {n}");
    }

    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(disk).unwrap());
    home.wrapdisk(["seal", "a.wd"]).ok();
    assert!(!ciphertext(disk).chunks(SECTOR).any(|s| s.iter().all(|b| *b == 0)), "a hole is left");
    assert!(std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(disk).unwrap()) > blocks);
    assert!(decrypted_by_cryptsetup(&home, disk, home.text("p"))[..SIZE] == model);
    let info = home.json(["info", "a.wd"]);
    assert_eq!((&info["holes"], &info["discards"]), (&"none".into(), &false.into()));
    let silent = home.wrapdisk(["volume-key", "a.wd", "--yes", "--output", "sealed.vk"]);
    assert_eq!(silent.err, "");
    assert_eq!(std::fs::read(home.path("open.vk")).unwrap(), std::fs::read(home.path("sealed.vk")).unwrap());
    assert_eq!(home.wrapdisk(["seal", "a.wd"]).ok(), format!("{disk}: sealed already"));
}

/// A sealed disk stays one: discards and zeros are encrypted as well.
#[test]
fn what_is_discarded_on_a_sealed_disk_is_zeros_to_everybody() {
    let (home, disk, mut model) = sealed(SIZE, SIZE_TEXT);
    let mount = home.mount("a.wd", &[]);
    let file = std::fs::File::options().read(true).write(true).open(&mount.file).unwrap();
    for (at, len) in [(0, 1 << 20), (SIZE / 3 + 77, 300_000), (SIZE - 512, 512)] {
        punch(&file, at, len);
        model[at..at + len].fill(0);
    }
    drop(file);
    mount.unmount();
    assert!(!ciphertext(&disk).chunks(SECTOR).any(|s| s.iter().all(|b| *b == 0)), "a hole was made");
    assert!(decrypted_by_cryptsetup(&home, &disk, home.text("p"))[..SIZE] == model);
}

fn ciphertext(disk: &str) -> Vec<u8> {
    std::fs::read(disk).unwrap().split_off(DATA)
}
