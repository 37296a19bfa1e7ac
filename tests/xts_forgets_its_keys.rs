//! Question: does a cipher keep its key in guarded memory only, and nowhere once it is dropped?
//!
//! Reads the process's own memory through /proc/self/mem. An AES-256 schedule begins (or, for decryption, ends)
//! with the key itself, so both halves of either key are found wherever a schedule or a stray copy is.
//! One test in this file: a second one at the same time would have keys of its own.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use wrapdisk::secret::all_locked;
use wrapdisk::units::{Sector, SectorSize};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};

/// 16 bytes to look for, kept inverted: the search must not find itself.
type Needle = [u8; 16];

fn needles(key: &VolumeKey) -> Vec<Needle> {
    let (quarters, _) = key.secret().expose().as_chunks::<16>();
    quarters.iter().map(|quarter| quarter.map(|b| !b)).collect()
}

struct Mapping {
    start: usize,
    end: usize,
    head: String,
    flags: String,
}

impl Mapping {
    fn guarded(&self) -> bool {
        let has = |flag| self.flags.split_whitespace().any(|f| f == flag);
        has("dd") && (has("lo") || !all_locked())
    }
}

/// Where memory can be written, as in smaps(5).
fn mappings() -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let head = line.split_whitespace().next().unwrap();
        if let Some((start, end)) = head.split_once('-') {
            let at = |n| usize::from_str_radix(n, 16).unwrap();
            found.push(Mapping { start: at(start), end: at(end), head: line.into(), flags: String::new() });
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            found.last_mut().unwrap().flags = flags.into();
        }
    }
    found.retain(|m| m.head.contains(" rw"));
    found
}

/// One entry per place where a needle was found: the mapping, and whether it is guarded.
fn search(needles: &[Needle]) -> Vec<(bool, String)> {
    const PIECE: usize = 1 << 16;
    let memory = File::open("/proc/self/mem").unwrap();
    let mut buffer = vec![0; PIECE + 15];
    let own = buffer.as_ptr() as usize..buffer.as_ptr() as usize + buffer.len();
    let mut hits = Vec::new();
    for mapping in mappings() {
        for at in (mapping.start..mapping.end).step_by(PIECE) {
            let want = (PIECE + 15).min(mapping.end - at);
            let Ok(read) = memory.read_at(&mut buffer[..want], at as u64) else { continue };
            for (i, window) in buffer[..read].windows(16).enumerate() {
                let hit = needles.iter().any(|needle| window.iter().zip(needle).all(|(w, n)| *w == !n));
                if hit && i < PIECE && !own.contains(&(at + i)) {
                    hits.push((
                        mapping.guarded(),
                        format!("{:x} in {} [{}]", at + i, mapping.head, mapping.flags),
                    ));
                }
            }
            buffer.fill(0);
        }
    }
    hits
}

/// The cipher at work on several threads, so that schedules were loaded, spilled and copied if they ever are.
fn use_it(cipher: &XtsCipher) {
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| exercise(cipher));
        }
    });
    exercise(cipher);
}

fn exercise(cipher: &XtsCipher) {
    for sectors in [1, 3, 32, 100] {
        let mut run = vec![0; sectors * cipher.sector_size().len()];
        cipher.encrypt(Sector::from(5), &mut run);
        cipher.decrypt(Sector::from(5), &mut run);
        assert!(run.iter().all(|b| *b == 0));
    }
}

#[test]
fn the_key_is_in_guarded_memory_while_used_and_nowhere_afterwards() {
    for &engine in Engine::ALL {
        for size in [SectorSize::B512, SectorSize::B4096] {
            let key = VolumeKey::generate().unwrap();
            let needles = needles(&key);
            let in_key = search(&needles).len();
            assert_eq!(in_key, 4, "the search finds the key itself, and nothing else has it");

            let cipher = XtsCipher::new(&key, size, engine).unwrap();
            for used in [false, true] {
                if used {
                    use_it(&cipher);
                }
                let hits = search(&needles);
                assert!(hits.len() > in_key, "{engine}: the search finds the schedules");
                let stray: Vec<_> = hits.iter().filter(|(guarded, _)| !guarded).collect();
                assert!(
                    stray.is_empty(),
                    "{engine}, {size:?}, used: {used}: key in unguarded memory: {stray:#?}"
                );
            }

            drop(cipher);
            assert_eq!(search(&needles).len(), in_key, "{engine}: schedules outlive the cipher");
            drop(key);
            let left = search(&needles);
            assert!(left.is_empty(), "{engine}: the key outlives its drop: {left:#?}");
        }
    }
}
