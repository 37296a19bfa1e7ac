//! Question: does a cipher keep its key in guarded memory only, and nowhere once it is dropped?
//!
//! Reads the process's own memory through /proc/self/mem. An AES-256 schedule begins (or, for decryption, ends)
//! with the key itself, so both halves of either key are found wherever a schedule or a stray copy is.
//! One test in this file: a second one at the same time would have keys of its own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod memory_support;

use memory_support::{Hit, Needle, list, needles, search};
use wrapdisk::secret::all_locked;
use wrapdisk::units::{Sector, SectorSize};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};

fn is_guarded(hit: &Hit) -> bool {
    hit.mapping.is_undumped() && (hit.mapping.is_locked() || !all_locked())
}

fn hits(needles: &[Needle]) -> Vec<Hit> {
    search("self", needles)
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
    for engine in Engine::available() {
        for size in [SectorSize::B512, SectorSize::B4096] {
            let key = VolumeKey::generate().unwrap();
            let needles = needles("the key", key.secret().expose());
            let in_key = hits(&needles).len();
            assert_eq!(in_key, 4, "the search finds the key itself, and nothing else has it");

            let cipher = XtsCipher::new(&key, size, engine).unwrap();
            for used in [false, true] {
                if used {
                    use_it(&cipher);
                }
                let hits = hits(&needles);
                assert!(hits.len() > in_key, "{engine}: the search finds the schedules");
                let stray = list(hits.iter().filter(|hit| !is_guarded(hit)));
                assert!(
                    stray.is_empty(),
                    "{engine}, {size:?}, used: {used}: key in unguarded memory:\n{stray}"
                );
            }

            drop(cipher);
            assert_eq!(hits(&needles).len(), in_key, "{engine}: schedules outlive the cipher");
            drop(key);
            let left = list(&hits(&needles));
            assert!(left.is_empty(), "{engine}: the key outlives its drop:\n{left}");
        }
    }
}
