//! Commit, seal, repair and the first format.

use serde_json::Value;
use wrapdisk::envelope::{Kid, WrapAlg, WrappedDek};
use wrapdisk::luks2::{Header, Holes, Kind, NewHeader};
use wrapdisk::store::{BackingStore, MemoryStore};
use wrapdisk::units::ByteLen;

use crate::luks2_support::{Copy, HDR, SMALL_FILE, checksum, image, small_json, vector_key};
use crate::machine::{container, every_crash, every_crash_after_a_kill, opened};

fn wrapped() -> WrappedDek {
    WrappedDek {
        kid: Kid::parse("https://h/keys/n/3").unwrap(),
        alg: WrapAlg::RsaOaep256,
        bytes: vec![3; 512],
    }
}

/// One more token in one commit.
fn add_token(store: &dyn BackingStore) {
    let mut header = Header::load(store).unwrap();
    header.add_token("s/x", wrapped(), &vector_key()).unwrap();
    header.commit(store).unwrap();
}

/// What the table of section 7 knows of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Old,
    New,
    Torn,
}

fn state(copy: &[u8], old: &[u8], new_seqid: u64) -> State {
    if copy == old {
        State::Old
    } else if copy[448..480] == checksum(copy) && copy[16..24] == new_seqid.to_be_bytes() {
        State::New
    } else {
        State::Torn
    }
}

/// The table, row by row: which header a reader must open with.
const TABLE: [(State, State, Option<State>); 8] = [
    (State::Old, State::Old, Some(State::Old)),
    (State::Torn, State::Old, Some(State::Old)),
    (State::New, State::Old, Some(State::New)),
    (State::New, State::Torn, Some(State::New)),
    (State::New, State::New, Some(State::New)),
    (State::Old, State::New, Some(State::New)),
    (State::Torn, State::New, Some(State::New)),
    (State::Torn, State::Torn, None),
];

#[test]
fn each_row_of_the_table() {
    let (old, mut new) = (small_json(), small_json());
    new["config"]["note"] = "new".into();
    let copy = |state: State| match state {
        State::Old => Some((1, &old)),
        State::New => Some((2, &new)),
        State::Torn => None,
    };
    for (primary, secondary, winner) in TABLE {
        let opened = opened("the table", &container(copy(primary), copy(secondary)));
        let expected = winner.and_then(copy).map(|(seqid, json)| (seqid, json.clone()));
        assert_eq!(opened, expected, "{primary:?} / {secondary:?}");
    }
}

#[test]
fn a_commit_leaves_what_the_table_says_at_every_crash_point() {
    let start = container(Some((1, &small_json())), Some((1, &small_json())));
    let (old, mut new) = ((1, small_json()), None);
    let mut seen = Vec::new();
    let whole = every_crash(&start, add_token, |at, image| {
        let primary = state(&image[..HDR], &start[..HDR], 2);
        let secondary = state(&image[HDR..2 * HDR], &start[HDR..2 * HDR], 2);
        let row = TABLE.iter().find(|row| (row.0, row.1) == (primary, secondary));
        let opened = opened(at, &image);
        match row.unwrap_or_else(|| panic!("{at}: {primary:?} / {secondary:?} is in no row")).2 {
            Some(State::Old) => assert_eq!(opened.as_ref(), Some(&old), "{at}"),
            Some(State::New) => {
                let (seqid, json) = opened.unwrap();
                assert_eq!((seqid, json["tokens"].as_object().unwrap().len()), (2, 3), "{at}");
                assert_eq!(new.get_or_insert(json.clone()), &json, "{at}");
            }
            other => panic!("{at}: {primary:?} / {secondary:?} leaves {other:?}"),
        }
        seen.push((primary, secondary));
    });
    // Every state that a commit of ours can leave was met, and only those.
    seen.sort_by_key(|(p, s)| (*p as u8, *s as u8));
    seen.dedup();
    assert_eq!(
        seen,
        [
            (State::Old, State::Old),
            (State::New, State::Old),
            (State::New, State::New),
            (State::New, State::Torn),
            (State::Torn, State::Old)
        ]
    );
    let header = Header::load(&MemoryStore::from(whole)).unwrap();
    assert_eq!((header.seqid(), header.warnings()), (2, [].as_slice()));
}

/// After an earlier failure one copy is torn, older or different: also then a commit must lose nothing.
#[test]
fn a_commit_on_a_container_with_a_losing_copy() {
    let (now, mut older) = (small_json(), small_json());
    older["config"]["note"] = "older".into();
    let present = Some((5, &now));
    for (what, start) in [
        ("secondary torn", container(present, None)),
        ("secondary older", container(present, Some((4, &older)))),
        ("secondary differs", container(present, Some((5, &older)))),
        ("primary torn", container(None, present)),
        ("primary older", container(Some((4, &older)), present)),
    ] {
        let whole = every_crash(&start, add_token, |at, image| match opened(at, &image) {
            Some((5, json)) => assert_eq!(json, now, "{what}, {at}"),
            Some((6, json)) => assert_eq!(json["tokens"].as_object().unwrap().len(), 3, "{what}, {at}"),
            other => panic!("{what}, {at}: opens with {:?}", other.map(|(seqid, _)| seqid)),
        });
        let header = Header::load(&MemoryStore::from(whole)).unwrap();
        assert_eq!((header.seqid(), header.warnings()), (6, [].as_slice()), "{what}");
    }
}

/// What a killed program wrote is in the page cache: seen by the next one, and not durable.
#[test]
fn a_commit_after_a_killed_commit() {
    let start = container(Some((1, &small_json())), Some((1, &small_json())));
    let mut seen = Vec::new();
    every_crash_after_a_kill(&start, add_token, add_token, |at, image| {
        let (seqid, json) = opened(at, &image).unwrap_or_else(|| panic!("{at}: nobody opens it"));
        let tokens = json["tokens"].as_object().unwrap().len() as u64;
        assert_eq!(tokens, 1 + seqid, "{at}");
        seen.push(seqid);
    });
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [1, 2, 3]);
}

#[test]
fn the_header_step_of_a_seal() {
    let seal = |store: &dyn BackingStore| {
        let mut header = Header::load(store).unwrap();
        header.seal(&vector_key()).unwrap();
        header.commit(store).unwrap();
    };
    let start = container(Some((1, &small_json())), Some((1, &small_json())));
    let mut sealed = 0;
    every_crash(&start, seal, |at, image| {
        // `opened` has checked the MACs, which cover the holes: the two cannot come apart.
        let (seqid, json) = opened(at, &image).unwrap_or_else(|| panic!("{at}: nobody opens it"));
        let holes = if seqid == 1 { "zeros" } else { "none" };
        for id in ["0", "1"] {
            assert_eq!(json["tokens"][id]["wrapdisk-holes"], holes, "{at}");
        }
        let discards = json["config"]["flags"].as_array().unwrap().iter().any(|f| f == "allow-discards");
        assert_eq!(discards, seqid == 1, "{at}");
        sealed += u32::from(seqid == 2);
    });
    assert!(sealed > 0);
}

/// A writable open rewrites the losing copy: same sequence number, fresh salt, and the winner is not touched.
#[test]
fn a_repair_of_the_losing_copy() {
    let (now, mut older) = (small_json(), small_json());
    older["config"]["note"] = "older".into();
    // Spaces, as no writer of ours would put them: the winner is copied as it is.
    let spaced = now.to_string().replace(",\"tokens\"", " ,\n\"tokens\"");
    let raw = |seqid| Copy { seqid, ..Copy::primary(&spaced) };
    let repair = |store: &dyn BackingStore| {
        let header = Header::load(store).unwrap();
        assert!(header.repair_copies(store).unwrap());
    };
    let good = Some((5, &now));
    for (what, winner, start) in [
        ("secondary torn", 0, container(good, None)),
        ("secondary older", 0, container(good, Some((4, &older)))),
        ("secondary differs", 0, container(good, Some((5, &older)))),
        ("primary torn", HDR, container(None, good)),
        ("primary older", HDR, container(Some((4, &older)), good)),
        ("spaces, secondary torn", 0, image(&raw(5).bytes(HDR), &[], SMALL_FILE).snapshot()),
        (
            "spaces, primary torn",
            HDR,
            image(&[0; HDR], &raw(5).secondary().bytes(HDR), SMALL_FILE).snapshot(),
        ),
    ] {
        let whole = every_crash(&start, repair, |at, image| {
            assert_eq!(opened(at, &image), Some((5, now.clone())), "{what}, {at}");
            assert!(image[winner..][..HDR] == start[winner..][..HDR], "{what}, {at}: the winner was touched");
        });
        let store = MemoryStore::from(whole.clone());
        let header = Header::load(&store).unwrap();
        assert_eq!(header.warnings(), [""; 0], "{what}");
        assert!(!header.repair_copies(&store).unwrap(), "{what}: nothing is left to repair");
        assert!(whole[4096..HDR] == whole[HDR + 4096..2 * HDR], "{what}: the same text");
        let (first, second) = (&whole[104..168], &whole[HDR + 104..HDR + 168]);
        assert!(first != second && first != [0xa1; 64] || second != [0xa2; 64], "{what}: a fresh salt");
    }
}

fn fresh(store: &dyn BackingStore) {
    let new = NewHeader {
        label: "new".into(),
        kind: Kind::Disk,
        size: ByteLen::from(4096),
        holes: Holes::Zeros,
        discards: true,
        uuid: None,
    };
    let mut header = Header::create(&new, &vector_key()).unwrap();
    header.add_token("s/x", wrapped(), &vector_key()).unwrap();
    header.format(store).unwrap();
}

#[test]
fn the_first_format_of_a_file() {
    let mut opens = 0;
    let whole = every_crash(&[], fresh, |at, image| {
        if let Some((seqid, json)) = opened(at, &image) {
            assert_eq!((seqid, json["tokens"].as_object().unwrap().len()), (1, 1), "{at}");
            opens += 1;
        }
    });
    assert!(opens > 0);
    assert_eq!(Header::load(&MemoryStore::from(whole)).unwrap().warnings(), [""; 0]);
}

/// A container that was there before, with more commits behind it and larger headers, must not come back.
#[test]
fn a_format_over_an_older_container() {
    let mut json = small_json();
    json["config"]["json_size"] = (131_072 - 4096).to_string().into();
    json["config"]["keyslots_size"] = "0".into();
    let old = Copy { hdr_size: 131_072, seqid: 900, ..Copy::primary(&json.to_string()) };
    let small_one = Copy { seqid: 800, ..Copy::primary(&small_json().to_string()) };
    let mut start = vec![0; (16 << 20) + 4096];
    start[..131_072].copy_from_slice(&old.bytes(131_072));
    start[16384..2 * HDR].copy_from_slice(&small_one.secondary().bytes(HDR));
    start[131_072..262_144].copy_from_slice(&old.secondary().bytes(131_072));
    assert_eq!(
        opened("before", &start).unwrap().0,
        800,
        "the primary is torn, the nearest secondary is found"
    );
    let mut farther = start.clone();
    farther[..2 * HDR].fill(0);
    assert_eq!(opened("the farther one", &farther).unwrap().0, 900);
    let mut whole = {
        let store = MemoryStore::from(start);
        fresh(&store);
        store.snapshot()
    };
    assert_eq!(opened("formatted", &whole).unwrap().0, 1);
    whole[..HDR].fill(0);
    assert_eq!(opened("its primary lost", &whole).unwrap().0, 1);
    whole[HDR..2 * HDR].fill(0);
    assert_eq!(opened("both lost", &whole).map(|(seqid, _): (u64, Value)| seqid), None);
}
