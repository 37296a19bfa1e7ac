//! Does a hostile header never make the reader allocate more than a fixed amount, whatever lengths it declares?
//!
//! Measured as the growth of the process's address space and of its memory in use, which the kernel keeps the peaks of.
//! One test in this file: others at the same time would be measured too.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod luks2_support;

use luks2_support::{Copy, base64, json_with_slots, slot, small_json, vector_key};
use serde_json::{Value, json};
use wrapdisk::luks2::Header;
use wrapdisk::luks2::keyslot::{self, Limits};
use wrapdisk::store::{Access, BackingStore, FileStore};
use wrapdisk::units::{ByteLen, ByteOffset};

/// A JSON area of 124 KiB as a tree of values, twice (the text is in memory as well).
const ALLOWED_KIB: u64 = 24 << 10;
/// Longer than the machine's memory; a sparse file costs nothing.
const FILE: u64 = 1 << 40;

fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// A container in a file of a TiB, with this text in copies of 128 KiB.
fn container(dir: &tempfile::TempDir, text: &[u8]) -> FileStore {
    let path = dir.path().join("vm.wd");
    let _ = std::fs::remove_file(&path);
    let store = FileStore::create_new(&path).unwrap();
    store.set_len(ByteLen::new(FILE).unwrap()).unwrap();
    let primary = Copy { hdr_size: 131_072, text: text.to_vec(), ..Copy::primary("") };
    store.write_at(ByteOffset::ZERO, &primary.bytes(131_072)).unwrap();
    store.write_at(ByteOffset::from(131_072), &primary.secondary().bytes(131_072)).unwrap();
    drop(store);
    FileStore::open(&path, Access::ReadWrite).unwrap()
}

/// The largest geometry that the format allows, around this.
fn largest(mut json: Value) -> Value {
    json["config"]["json_size"] = "126976".into();
    json["config"]["keyslots_size"] = "134217728".into();
    json["segments"]["0"]["offset"] = (134_217_728 + 262_144).to_string().into();
    json
}

/// The good text, with as much of `filling` in a member as fits.
fn filled(open: &str, filling: impl Fn(usize) -> String, close: &str) -> Vec<u8> {
    let text = largest(small_json()).to_string();
    let mut inner = String::new();
    for n in 0.. {
        let next = filling(n);
        if text.len() + open.len() + inner.len() + next.len() + close.len() + 10 > 126_975 {
            break;
        }
        inner.push_str(&next);
    }
    text.replacen("{", &format!("{{\"x\":{open}{}{close},", inner.trim_end_matches(',')), 1).into_bytes()
}

#[test]
fn what_a_header_declares_is_not_what_is_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let mut far = slot(0);
    far["area"]["offset"] = "262144".into();
    far["area"]["size"] = "134217728".into();
    let huge_area = largest(json_with_slots(&[far]));
    let mut huge_size = largest(small_json());
    huge_size["tokens"]["0"]["wrapdisk-size"] = "9223372036854775296".into();
    let mut huge_base64 = largest(small_json());
    huge_base64["tokens"]["0"]["wrapped"] = "A".repeat(100_000).into();
    huge_base64["tokens"]["0"]["wrapdisk-wrapped-dek"] = base64(&[1; 12_000]).into();
    let mut costs = largest(json_with_slots(&[slot(0)]));
    costs["keyslots"]["0"]["area"]["offset"] = "262144".into();
    costs["keyslots"]["0"]["kdf"] = json!({ "type": "argon2id", "time": 1, "memory": 2_147_483_647, "cpus": 1, "salt": base64(&[7; 32]) });
    let texts: Vec<(&str, bool, Vec<u8>)> = vec![
        ("the largest areas", true, largest(small_json()).to_string().into_bytes()),
        ("a keyslot of 128 MiB", true, huge_area.to_string().into_bytes()),
        ("a disk of 8 EiB", false, huge_size.to_string().into_bytes()),
        ("base64 for no key", false, huge_base64.to_string().into_bytes()),
        ("a KDF of 2 TiB", true, costs.to_string().into_bytes()),
        ("zeros", true, filled("[", |_| "0,".to_owned(), "]")),
        ("empty arrays", true, filled("[", |_| "[],".to_owned(), "]")),
        ("empty objects", true, filled("[", |_| "{},".to_owned(), "]")),
        ("small objects", true, filled("[", |_| "{\"\":0},".to_owned(), "]")),
        ("members", true, filled("{", |n| format!("\"{n:x}\":0,"), "}")),
        ("strings", true, filled("[", |_| "\"\",".to_owned(), "]")),
        ("a string", true, filled("\"", |_| "a".to_owned(), "\"")),
        ("escapes", true, filled("\"", |_| "\\u0001".to_owned(), "\"")),
        ("brackets", false, vec![b'['; 126_975]),
        ("braces", false, "{\"\":".repeat(25_000).into_bytes()),
        ("a number", false, [b"{\"a\":".to_vec(), vec![b'9'; 120_000]].concat()),
    ];
    // Whatever a first run needs is there now.
    use_it(&container(&dir, &texts[0].2), true, "first");
    let before = (status("VmPeak"), status("VmHWM"));
    for (what, good, text) in &texts {
        use_it(&container(&dir, text), *good, what);
        let grown = (status("VmPeak") - before.0, status("VmHWM") - before.1);
        assert!(grown.0 <= ALLOWED_KIB && grown.1 <= ALLOWED_KIB, "{what}: {grown:?} KiB more");
    }
    // The judge sees an allocation, also one that is never touched.
    let huge: Vec<u8> = Vec::with_capacity(128 << 20);
    assert!(status("VmPeak") - before.0 > ALLOWED_KIB, "{}", huge.capacity());
}

fn use_it(store: &FileStore, good: bool, what: &str) {
    match Header::load(store) {
        Ok(mut header) => {
            assert!(good, "{what}: accepted");
            assert!(header.check_key(&vector_key()));
            if !header.keyslots().is_empty() {
                keyslot::unlock(&header, store, b"pass", &Limits::default()).unwrap_err();
            }
            header.commit(store).unwrap();
            Header::load(store).unwrap();
        }
        Err(e) => assert!(!good, "{what}: {e}"),
    }
}
