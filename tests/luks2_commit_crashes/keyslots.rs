//! Adding and removing a keyslot: the area and the header that names it.

use wrapdisk::error::ErrorKind;
use wrapdisk::luks2::Header;
use wrapdisk::luks2::keyslot::{self, Kdf, Limits};
use wrapdisk::store::{BackingStore, MemoryStore};

use crate::luks2_support::{HDR, small_json, vector_key};
use crate::machine::{container, every_crash, opened};

const KDF: Kdf = Kdf::Pbkdf2Sha256 { iterations: 1000 };

fn add(store: &dyn BackingStore) {
    let mut header = Header::load(store).unwrap();
    keyslot::add(&mut header, store, &vector_key(), b"pass", &KDF).unwrap();
}

fn remove(store: &dyn BackingStore) {
    let mut header = Header::load(store).unwrap();
    keyslot::remove(&mut header, store, 0).unwrap();
}

/// Does the passphrase open what is listed? `None`: nothing is listed.
fn works(image: &[u8]) -> Option<bool> {
    let store = MemoryStore::from(image.to_vec());
    let header = Header::load(&store).unwrap();
    if header.keyslots().is_empty() {
        return None;
    }
    match keyslot::unlock(&header, &store, b"pass", &Limits::default()) {
        Ok((0, key)) => {
            assert!(key.secret().ct_eq(vector_key().secret()));
            Some(true)
        }
        Ok((id, _)) => panic!("keyslot {id}?"),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::WrongKey, "{e}");
            Some(false)
        }
    }
}

fn empty() -> Vec<u8> {
    container(Some((1, &small_json())), Some((1, &small_json())))
}

fn with_slot() -> Vec<u8> {
    let store = MemoryStore::from(empty());
    add(&store);
    store.snapshot()
}

/// Does the slot work for somebody who kept an old header?
fn works_with_headers_of(old: &[u8], image: &[u8]) -> Option<bool> {
    let mut image = image.to_vec();
    image[..2 * HDR].copy_from_slice(&old[..2 * HDR]);
    works(&image)
}

#[test]
fn a_keyslot_that_is_listed_works_at_every_crash_point_of_adding_it() {
    let mut listed = 0;
    let whole = every_crash(&empty(), add, |at, image| {
        let seqid = opened(at, &image).unwrap_or_else(|| panic!("{at}: nobody opens it")).0;
        let works = works(&image);
        assert_eq!(works, (seqid == 2).then_some(true), "{at}");
        listed += u32::from(works.is_some());
    });
    assert!(listed > 0);
    assert_eq!(works(&whole), Some(true));
}

#[test]
fn a_keyslot_that_is_not_listed_never_works_at_any_crash_point_of_removing_it() {
    let start = with_slot();
    assert_eq!(works(&start), Some(true));
    assert_eq!(works_with_headers_of(&start, &start), Some(true), "the judge sees a slot that works");
    let (mut dead, mut gone) = (0, 0);
    let whole = every_crash(&start, remove, |at, image| {
        let seqid = opened(at, &image).unwrap_or_else(|| panic!("{at}: nobody opens it")).0;
        match works(&image) {
            None => {
                assert_eq!(seqid, 3, "{at}");
                assert_eq!(works_with_headers_of(&start, &image), Some(false), "{at}: it works, unlisted");
                gone += 1;
            }
            Some(works) => {
                assert_eq!(seqid, 2, "{at}");
                dead += u32::from(!works);
            }
        }
    });
    assert!(dead > 0 && gone > 0, "{dead} {gone}");
    assert_eq!(works(&whole), None);
    let area = HDR * 2..HDR * 2 + 258_048;
    assert!(whole[area.clone()].chunks(4096).zip(start[area].chunks(4096)).all(|(now, then)| now != then));
}
