//! Does every input that the fuzzer found worth keeping, and every one it ever failed on, still end without a panic
//! (RULINGS 6)? On a stable compiler, without the fuzzer.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use wrapdisk::luks2::fuzz_load;

#[test]
fn the_corpus_of_the_header() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/header");
    let mut kinds = std::collections::BTreeMap::<(u8, bool), usize>::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let input = std::fs::read(entry.unwrap().path()).unwrap();
        let accepted = fuzz_load(&input);
        *kinds.entry((input.first().copied().unwrap_or(0), accepted)).or_default() += 1;
    }
    // Texts and fields, good and bad, and whole files: without one of them the corpus no longer covers the parser.
    for kind in [(b't', true), (b't', false), (b'f', true), (b'f', false), (b'0', false)] {
        assert!(kinds.contains_key(&kind), "{kind:?} is not among {kinds:?}");
    }
}
