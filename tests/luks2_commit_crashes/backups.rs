//! Header restore and erase.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use serde_json::Value;
use wrapdisk::luks2::Header;
use wrapdisk::luks2::backup::{self, backup};
use wrapdisk::luks2::keyslot::{self, Kdf, Limits};
use wrapdisk::store::{BackingStore, MemoryStore};

use crate::luks2_support::{HDR, SMALL_DATA, small_json, vector_key};
use crate::machine::{container, every_crash, opened};

/// A container with a keyslot, seqid 2.
fn before() -> Vec<u8> {
    let store = MemoryStore::from(container(Some((1, &small_json())), Some((1, &small_json()))));
    let mut header = Header::load(&store).unwrap();
    let kdf = Kdf::Pbkdf2Sha256 { iterations: 1000 };
    keyslot::add(&mut header, &store, &vector_key(), b"pass", &kdf).unwrap();
    store.snapshot()
}

/// The same some commits later, without the keyslot and with one token: seqid 4.
fn later(before: &[u8]) -> Vec<u8> {
    let store = MemoryStore::from(before.to_vec());
    let mut header = Header::load(&store).unwrap();
    keyslot::remove(&mut header, &store, 0).unwrap();
    header.remove_token(1).unwrap();
    header.commit(&store).unwrap();
    store.snapshot()
}

/// Where the present area goes: another file for each run.
struct Saves {
    dir: tempfile::TempDir,
    count: Cell<u32>,
}

impl Saves {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), count: Cell::new(0) }
    }

    fn next(&self) -> PathBuf {
        self.count.set(self.count.get() + 1);
        self.dir.path().join(format!("saved.{}", self.count.get()))
    }

    fn restore(&self, store: &dyn BackingStore, file: &Path) {
        let saved = self.next();
        backup::restore(store, file, false, &saved).unwrap();
        std::fs::remove_file(saved).unwrap();
    }
}

fn slot_works(image: &[u8]) -> bool {
    let store = MemoryStore::from(image.to_vec());
    let header = Header::load(&store).unwrap();
    keyslot::unlock(&header, &store, b"pass", &Limits::default()).is_ok()
}

#[test]
fn a_newer_secondary_never_wins_over_a_restored_primary() {
    let saves = Saves::new();
    let (then, file) = (before(), saves.dir.path().join("backup"));
    backup(&MemoryStore::from(then.clone()), &file).unwrap();
    assert!(std::fs::read(&file).unwrap() == then[..usize::try_from(SMALL_DATA).unwrap()]);
    let now = later(&then);
    assert_eq!((opened("then", &then).unwrap().0, opened("now", &now).unwrap().0), (2, 4));

    let (mut nobody, mut old, mut restored) = (0, 0, 0);
    let whole = every_crash(
        &now,
        |store| saves.restore(store, &file),
        |at, image| {
            let primary_is = |of: &[u8]| image[..HDR] == of[..HDR];
            match opened(at, &image).map(|(seqid, _)| seqid) {
                Some(4) => {
                    assert!(primary_is(&now), "{at}");
                    old += 1;
                }
                Some(2) => {
                    assert!(primary_is(&then), "{at}");
                    assert!(slot_works(&image), "{at}: the restored keyslot");
                    restored += 1;
                }
                Some(other) => panic!("{at}: opens with {other}"),
                None => {
                    assert!(!primary_is(&now) && !primary_is(&then), "{at}: the torn primary only");
                    // Then the same command again is the way out.
                    let store = MemoryStore::from(image);
                    saves.restore(&store, &file);
                    assert!(store.snapshot() == then, "{at}");
                    nobody += 1;
                }
            }
        },
    );
    assert!(nobody > 0 && old > 0 && restored > 0, "{nobody} {old} {restored}");
    assert!(whole == then, "a restore brings back every byte of the header area");
}

/// The zeroed secondary is not the better copy: when it is, it is copied to the primary first.
#[test]
fn a_restore_over_a_torn_primary() {
    let saves = Saves::new();
    let (then, file) = (before(), saves.dir.path().join("backup"));
    backup(&MemoryStore::from(then.clone()), &file).unwrap();
    let mut now = later(&then);
    now[100..9000].fill(0);
    every_crash(
        &now,
        |store| saves.restore(store, &file),
        |at, image| {
            let torn = image[..HDR] != then[..HDR] && image[HDR..][..4096] == [0; 4096];
            match opened(at, &image) {
                Some((seqid, _)) => assert!([2, 4].contains(&seqid), "{at}"),
                None => assert!(torn, "{at}: only while the primary itself is written"),
            }
        },
    );
}

fn erase(store: &dyn BackingStore) {
    backup::erase(store).unwrap();
}

fn is_erased(json: &Value) -> bool {
    ["keyslots", "tokens"].iter().all(|name| json[name].as_object().unwrap().is_empty())
}

fn contains(image: &[u8], text: &[u8]) -> bool {
    image.windows(text.len()).any(|w| w == text)
}

#[test]
fn an_erase_leaves_the_old_tokens_or_none_and_never_a_keyslot_that_works_unlisted() {
    let start = before();
    let dek = small_json()["tokens"]["0"]["wrapdisk-wrapped-dek"].as_str().unwrap()[..64].to_owned();
    let resurrected = |image: &[u8]| {
        let mut image = image.to_vec();
        image[..2 * HDR].copy_from_slice(&start[..2 * HDR]);
        slot_works(&image)
    };
    assert!(contains(&start, dek.as_bytes()) && resurrected(&start), "the judges see what is there");
    let (mut old, mut erased) = (0, 0);
    let whole = every_crash(&start, erase, |at, image| {
        let (seqid, json) = opened(at, &image).unwrap_or_else(|| panic!("{at}: nobody opens it"));
        if is_erased(&json) {
            assert_eq!(seqid, 3, "{at}");
            assert!(!resurrected(&image), "{at}: the keyslot's area is still there");
            erased += 1;
        } else {
            assert_eq!((seqid, json["tokens"].as_object().unwrap().len()), (2, 2), "{at}");
            old += 1;
        }
        // The same command again ends it, also when the secondary still has the old wraps.
        if (old + erased) % 16 == 0 {
            let store = MemoryStore::from(image);
            erase(&store);
            assert!(!contains(&store.snapshot()[..2 * HDR], dek.as_bytes()), "{at}");
        }
    });
    assert!(old > 0 && erased > 0, "{old} {erased}");
    let (_, json) = opened("erased", &whole).unwrap();
    assert!(is_erased(&json) && json["digests"]["0"]["keyslots"] == serde_json::json!([]));
    let area = 2 * HDR..usize::try_from(SMALL_DATA).unwrap();
    for text in [dek.as_bytes(), b"wrapdisk-vault", b"wrapped-dek"] {
        assert!(!contains(&whole[..2 * HDR], text));
    }
    assert!(
        whole[area.clone()].chunks(4096).zip(start[area].chunks(4096)).all(|(now, then)| now != then),
        "every block of the keyslots area is overwritten, used or not"
    );
    assert!(whole[usize::try_from(SMALL_DATA).unwrap()..] == start[usize::try_from(SMALL_DATA).unwrap()..]);
}
