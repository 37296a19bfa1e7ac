//! Does every input that the fuzzer found worth keeping, and every one it ever failed on, still end without a panic
//! (RULINGS 6)? On a stable compiler, without the fuzzer.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::Path;

use wrapdisk::luks2::fuzz_load;
use wrapdisk::vault::wire::{fuzz_body, fuzz_route};

/// How many inputs there are, by their first byte and whether they are accepted.
fn replay(target: &str, run: fn(&[u8]) -> bool) -> BTreeMap<(u8, bool), usize> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut kinds = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let input = std::fs::read(entry.unwrap().path()).unwrap();
        let accepted = run(&input);
        *kinds.entry((input.first().copied().unwrap_or(0), accepted)).or_default() += 1;
    }
    kinds
}

#[test]
fn the_corpus_of_the_routes() {
    let kinds = replay("route", fuzz_route);
    // Requests of every verb, hosts and audiences, good and bad.
    for kind in [b'G', b'P', b'D', b'h', b'a'].into_iter().flat_map(|k| [(k, true), (k, false)]) {
        assert!(kinds.contains_key(&kind), "{kind:?} is not among {kinds:?}");
    }
}

#[test]
fn the_corpus_of_the_bodies() {
    let kinds = replay("body", fuzz_body);
    for kind in b"cipuvrbqntf".iter().flat_map(|k| [(*k, true), (*k, false)]) {
        assert!(kinds.contains_key(&kind), "{kind:?} is not among {kinds:?}");
    }
}

#[test]
fn the_corpus_of_the_header() {
    let kinds = replay("header", fuzz_load);
    // Texts and fields, good and bad, and whole files: without one of them the corpus no longer covers the parser.
    for kind in [(b't', true), (b't', false), (b'f', true), (b'f', false), (b'0', false)] {
        assert!(kinds.contains_key(&kind), "{kind:?} is not among {kinds:?}");
    }
}
