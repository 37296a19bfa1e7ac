//! Question: once the key of a live mount has been taken away, is it gone from the process's memory, and the plaintext with
//! it, also of requests that were under way; and does the mount serve again when the key comes back?
//!
//! A process of this test mounts a disk with the product's own parts, closes the gate itself, and is searched from outside
//! (tests/guard_forgets_the_key.rs has the guard do it). What the product does not promise is pinned as well: the buffers in which the FUSE library
//! receives *writes* (README, "What it protects against, and what not").
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod memory_support;
mod support;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memory_support::{Hit, Needle, list, needles, of_key, search};
use support::{Home, eventually, finish, noise};
use wrapdisk::cache::BlockCache;
use wrapdisk::disk::PlainDisk;
use wrapdisk::fuse::{Layout as Shape, MountConfig, Session};
use wrapdisk::secret::{Secret, scrub_deep_stack};
use wrapdisk::store::{Access, FileStore, LatchedStore};
use wrapdisk::units::{ByteLen, ByteOffset, SectorSize};
use wrapdisk::volume::{EncryptedVolume, Gate, Layout};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};

const SIZE: u32 = 8 << 20;
const SECTOR: SectorSize = SectorSize::B4096;

// --- the process that is searched ---

/// Straight from the file into guarded memory.
fn cipher(key: &Path) -> XtsCipher {
    let secret = Secret::try_from_fn(|bytes| {
        let read = File::open(key).and_then(|mut file| file.read_exact(bytes));
        read.unwrap_or_else(|e| panic!("{}: {e}", key.display()));
        Ok(())
    });
    XtsCipher::new(&VolumeKey::new(secret.unwrap()).unwrap(), SECTOR, Engine::best()).unwrap()
}

fn disk(store: &Path, key: &Path) -> PlainDisk {
    let layout = Layout {
        offset: ByteOffset::ZERO,
        sector_size: SECTOR,
        size: ByteLen::from(SIZE),
        zero_holes: true,
        discards: true,
    };
    let store = LatchedStore::new(FileStore::open(store, Access::ReadWrite).unwrap());
    let volume = EncryptedVolume::new(Arc::new(store), layout, Gate::open(cipher(key))).unwrap();
    PlainDisk::new(volume, BlockCache::new(ByteLen::from(4 << 20)).unwrap(), false)
}

/// Not a test: what `Mounted` runs. Does what it is told on its standard input, a word a line.
#[test]
fn worker() {
    let Some(home) = std::env::var_os("FENCE_HOME").map(PathBuf::from) else { return };
    let disk = Arc::new(disk(&home.join("store"), &home.join("key")));
    let config = MountConfig {
        source: "fence".into(),
        mountpoint: home.join("place"),
        layout: Shape::Directory,
        uid: 0,
        gid: 0,
        allow_other: false,
        threads: Some(3),
        max_request: Some(1 << 20),
    };
    let session = Session::mount(Arc::clone(&disk), config).unwrap();
    std::thread::spawn(move || session.run());
    scrub_deep_stack();
    println!("\nready");
    for order in std::io::stdin().lines() {
        match order.unwrap().as_str() {
            "fence" => assert!(disk.fence()),
            "resume" => assert!(disk.resume(cipher(&home.join("key")))),
            other => panic!("{other}"),
        }
        scrub_deep_stack();
        println!("done");
    }
}

// --- seen from outside ---

struct Mounted {
    home: Home,
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Mounted {
    /// With `content` on the disk, which this process has encrypted: the other one has not seen it.
    fn start(key: &[u8; 64], content: &[u8], at: u32) -> Self {
        let home = Home::new();
        std::fs::write(home.path("key"), key).unwrap();
        std::fs::create_dir(home.path("place")).unwrap();
        File::create(home.path("store")).unwrap().set_len(u64::from(SIZE)).unwrap();
        let made = disk(&home.path("store"), &home.path("key"));
        made.write_at(ByteOffset::from(at), content).unwrap();
        made.volume().store().sync().unwrap();
        drop(made);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "worker"])
            .env("FENCE_HOME", home.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut mounted = Self { home, child, orders, answers };
        mounted.wait_for("ready");
        mounted
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim_end() != word {
            line.clear();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "it ended before it was {word}");
        }
    }

    fn order(&mut self, word: &str) {
        writeln!(self.orders, "{word}").unwrap();
        self.wait_for("done");
    }

    fn open(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.home.path("place/disk.img")).unwrap()
    }

    fn search(&self, needles: &[Needle]) -> Vec<Hit> {
        search(&self.child.id().to_string(), needles)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = finish(Command::new("umount").arg("-l").arg(self.home.path("place")));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One piece of each block, and the two ends.
fn of_plaintext(what: &str, bytes: &[u8]) -> Vec<Needle> {
    let pieces =
        bytes.chunks(4096).filter_map(|block| block.last_chunk::<16>()).chain(bytes.first_chunk::<16>());
    pieces.flat_map(|piece| needles(what, piece)).collect()
}

const LEN: usize = 700_000;
/// Where what is read lies, and what is written: both with partial sectors at their ends.
const READ_AT: u32 = 1000;
const WRITE_AT: u64 = (4 << 20) + 1000;

/// Reads in every way there is: past the cache, through it, from it, in parts of sectors.
fn read_all(file: &File, at: u64, expected: &[u8]) {
    for len in [LEN, 4096, 4096, 100_000, 777] {
        let mut found = vec![0; LEN];
        for start in (0..LEN).step_by(len) {
            let end = (start + len).min(LEN);
            file.read_exact_at(&mut found[start..end], at + start as u64).unwrap();
        }
        assert!(found == expected);
    }
}

fn is_guarded(hit: &&Hit) -> bool {
    hit.mapping.is_undumped() && hit.mapping.is_locked()
}

/// The library receives a request in a buffer of 16 MiB for each thread.
fn is_receive_buffer(hit: &&Hit) -> bool {
    !hit.mapping.is_undumped() && hit.mapping.end - hit.mapping.start >= 16 << 20
}

#[test]
fn the_fence_leaves_neither_key_nor_plaintext_and_a_resume_serves_again() {
    let key: [u8; 64] = noise(41, 64).try_into().unwrap();
    let (read, written) = (noise(42, LEN), noise(43, LEN));
    let mut mounted = Mounted::start(&key, &read, READ_AT);
    let file = mounted.open();
    file.write_all_at(&written, WRITE_AT).unwrap();
    read_all(&file, READ_AT.into(), &read);
    read_all(&file, WRITE_AT, &written);
    file.write_all_at(&written[..5000], WRITE_AT).unwrap();

    let (key, read_needles) = (of_key(&key), of_plaintext("what was read", &read));
    let written_needles = of_plaintext("what was written", &written);
    for needles in [&key, &read_needles] {
        let hits = mounted.search(needles);
        assert!(hits.len() > 20, "the search finds {} of {}", hits.len(), needles[0].what);
        let stray = list(hits.iter().filter(|hit| !is_guarded(hit)));
        assert!(stray.is_empty(), "before the fence, in memory that may be dumped or swapped:\n{stray}");
    }
    let stray = mounted.search(&written_needles);
    let stray = list(stray.iter().filter(|hit| !is_guarded(hit) && !is_receive_buffer(hit)));
    assert!(stray.is_empty(), "before the fence:\n{stray}");

    // With requests under way, whose buffers come back after it.
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for turn in 0..4_u64 {
            let (file, stop, served) = (mounted.open(), &stop, &served);
            let read = &read;
            scope.spawn(move || {
                let len = [777, 4096, 200_000, 400_000][usize::try_from(turn).unwrap()];
                let mut found = vec![0; len];
                while !stop.load(Ordering::Relaxed) {
                    match file.read_exact_at(&mut found, READ_AT.into()) {
                        Ok(()) => assert!(found == read[..len]),
                        Err(e) => return assert_eq!(e.raw_os_error(), Some(libc::EIO), "{e}"),
                    }
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        eventually("they read", || (served.load(Ordering::Relaxed) > 200).then_some(()));
        mounted.order("fence");
        let after = served.load(Ordering::Relaxed);
        // Each ends with its first refusal; none is served but what was under way.
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(served.load(Ordering::Relaxed) <= after + 4);
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(file.read_at(&mut [0; 10], 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(file.write_at(b"refused", 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    file.sync_all().expect("what was acknowledged can still be synced");
    assert_eq!(file.metadata().unwrap().len(), u64::from(SIZE), "and the file be looked at");

    let left = list(&mounted.search(&[key.clone(), read_needles].concat()));
    assert!(left.is_empty(), "after the fence:\n{left}");
    let left = mounted.search(&written_needles);
    let stray = list(left.iter().filter(|hit| !is_receive_buffer(hit)));
    assert!(stray.is_empty(), "after the fence, outside of the FUSE library's buffers:\n{stray}");
    assert!(!left.is_empty(), "the FUSE library's buffers are wiped as well now: tell it in the README");

    mounted.order("resume");
    read_all(&file, READ_AT.into(), &read);
    read_all(&file, WRITE_AT, &written);
    assert!(mounted.search(&key).len() > 20, "the key is back");
}
