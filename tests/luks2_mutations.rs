//! Does a hostile header, however it was made from a good one, never panic; and can whatever is accepted be written, used
//! and read again?
//!
//! The checksums are made good each time, so that the parser is reached. WRAPDISK_LONG=1 does fifty times as many.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod luks2_support;

use std::sync::OnceLock;

use luks2_support::{Copy, HDR, base64, json_with_slots, slot, small, vector_key};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use wrapdisk::error::ErrorKind;
use wrapdisk::luks2::keyslot::{self, Kdf, Limits};
use wrapdisk::luks2::{Header, fuzz_load};
use wrapdisk::store::{BackingStore, MemoryStore};
use wrapdisk::units::ByteOffset;

/// A container with a bit of everything.
fn good() -> Value {
    let (mut second, mut third) = (slot(2), slot(1));
    second["kdf"] =
        json!({ "type": "argon2id", "time": 1, "memory": 64, "cpus": 1, "salt": base64(&[7; 32]) });
    second["priority"] = 2.into();
    third["kdf"]["hash"] = "sha512".into();
    third["af"]["hash"] = "sha512".into();
    let mut json = json_with_slots(&[slot(0), second, third]);
    json["tokens"]["0"]["keyslots"] = json!(["0"]);
    json["tokens"]["9"] =
        json!({"type": "systemd-tpm2", "keyslots": ["1"], "tpm2-pcrs": [7], "x": {"y": null}});
    json["config"]["requirements"] = json!({"mandatory": []});
    json["config"]["note"] = json!("\u{e9}\u{1f511}");
    json
}

/// The good container with a keyslot that opens, to be damaged.
fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let store = small(&good().to_string());
        let mut header = Header::load(&store).unwrap();
        let kdf = Kdf::Pbkdf2Sha256 { iterations: 1000 };
        assert_eq!(keyslot::add(&mut header, &store, &vector_key(), b"pass", &kdf).unwrap(), 3);
        store.snapshot()
    })
}

fn text_of(text: &[u8]) -> bool {
    fuzz_load(&[b"t", text].concat())
}

/// Every place of the text, with the bytes that mean most to a parser.
#[test]
fn every_byte_of_the_text_replaced_removed_and_doubled() {
    let good = good().to_string().into_bytes();
    assert!(text_of(&good));
    let mut accepted = 0u32;
    for at in 0..good.len() {
        for byte in [b'"', b'\\', b'{', b']', b',', b'0', b'9', b'-', 0, 0x80] {
            let mut text = good.clone();
            text[at] = byte;
            accepted += u32::from(text_of(&text));
        }
        let mut text = good.clone();
        text.remove(at);
        accepted += u32::from(text_of(&text));
        text.insert(at, good[at]);
        text.insert(at, good[at]);
        accepted += u32::from(text_of(&text));
    }
    assert!(accepted > 500, "a label or a number may change: {accepted}");
}

#[test]
fn every_truncation_of_the_text() {
    let good = good().to_string().into_bytes();
    for end in 0..good.len() {
        assert!(!text_of(&good[..end]), "{end} bytes");
    }
}

/// The fields of both copies, with good checksums.
#[test]
fn every_byte_of_the_binary_headers() {
    let text = good().to_string();
    let primary = Copy::primary(&text);
    let fields = |copy: &Copy| copy.bytes(HDR)[..512].to_vec();
    let good = [b"f".to_vec(), fields(&primary), fields(&primary.secondary()), text.into_bytes()].concat();
    assert!(fuzz_load(&good));
    let mut accepted = 0u32;
    for at in 1..1025 {
        for change in
            [|b: u8| b ^ 1, |b: u8| b ^ 0x80, |b: u8| b.wrapping_sub(1), |_| 0xff, |_| 0, |b: u8| b ^ 0x20]
        {
            let mut input = good.clone();
            input[at] = change(input[at]);
            accepted += u32::from(fuzz_load(&input));
        }
    }
    assert!(accepted > 1000, "salts, labels and one bad copy change nothing: {accepted}");
}

/// What is put in place of a member.
fn hostile() -> impl Strategy<Value = Value> {
    let strings = [
        "",
        "0",
        "00",
        "1",
        "31",
        "32",
        "-1",
        "4096",
        "16384",
        "1064960",
        "9223372036854775807",
        "9223372036854771712",
        "9223372036854775808",
        "18446744073709551615",
        "dynamic",
        "crypt",
        "wrapdisk-vault",
        "\u{0}",
        "\u{202e}",
        "\\u0000",
    ];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        select(vec![
            0u64,
            1,
            2,
            64,
            512,
            999,
            1000,
            4000,
            4096,
            65536,
            2_147_483_647,
            2_147_483_648,
            u64::MAX
        ])
        .prop_map(Value::from),
        select(vec![-1.0, 0.5, 4096.0]).prop_map(Value::from),
        select(strings.to_vec()).prop_map(Value::from),
        "[ -~]{0,80}".prop_map(Value::from),
        (0usize..6000).prop_map(|n| "A".repeat(n).into()),
        (0usize..700).prop_map(|n| base64(&vec![1; n]).into()),
        Just(json!([])),
        Just(json!({})),
        Just(json!(["0", "1", "2", "3"])),
        (1usize..14).prop_map(|n| (0..n).fold(Value::Null, |inner, _| json!([inner]))),
    ]
}

#[derive(Clone, Debug)]
enum Change {
    Put(Index, Value),
    Remove(Index),
    /// Over another member.
    Copy(Index, Index),
    Rename(Index, String),
    /// A new member, or a further item.
    Add(Index, String, Value),
}

fn change() -> impl Strategy<Value = Change> {
    let name =
        || prop_oneof!["[0-9]{1,3}", "[a-z]{1,8}", Just("wrapdisk-x".to_owned()), Just("type".to_owned())];
    prop_oneof![
        3 => (any::<Index>(), hostile()).prop_map(|(at, value)| Change::Put(at, value)),
        1 => any::<Index>().prop_map(Change::Remove),
        2 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Copy(from, to)),
        1 => (any::<Index>(), name()).prop_map(|(at, name)| Change::Rename(at, name)),
        1 => (any::<Index>(), name(), hostile()).prop_map(|(at, name, value)| Change::Add(at, name, value)),
    ]
}

/// A pointer to every value of a document but the whole.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut visit = |name: &str, inner: &Value| {
        let pointer = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        found.push(pointer.clone());
        pointers(inner, &pointer, found);
    };
    match value {
        Value::Object(members) => members.iter().for_each(|(name, inner)| visit(name, inner)),
        Value::Array(items) => items.iter().enumerate().for_each(|(n, inner)| visit(&n.to_string(), inner)),
        _ => {}
    }
}

fn apply(json: &mut Value, change: &Change) {
    let mut all = Vec::new();
    pointers(json, "", &mut all);
    if all.is_empty() {
        return;
    }
    let place = |index: &Index| index.get(&all).as_str();
    let split = |pointer: &str| pointer.rsplit_once('/').map(|(p, n)| (p.to_owned(), n.to_owned())).unwrap();
    match change {
        Change::Put(at, value) => *json.pointer_mut(place(at)).unwrap() = value.clone(),
        Change::Copy(from, to) => {
            let value = json.pointer(place(from)).unwrap().clone();
            *json.pointer_mut(place(to)).unwrap() = value;
        }
        Change::Remove(at) => {
            let (parent, name) = split(place(at));
            match json.pointer_mut(&parent).unwrap() {
                Value::Object(members) => drop(members.shift_remove(&name)),
                Value::Array(items) => drop(items.pop()),
                _ => {}
            }
        }
        Change::Rename(at, new) => {
            let (parent, name) = split(place(at));
            if let Value::Object(members) = json.pointer_mut(&parent).unwrap()
                && let Some(value) = members.shift_remove(&name)
            {
                members.insert(new.clone(), value);
            }
        }
        Change::Add(at, name, value) => match json.pointer_mut(place(at)).unwrap() {
            Value::Object(members) => drop(members.insert(name.clone(), value.clone())),
            Value::Array(items) => items.push(value.clone()),
            _ => {}
        },
    }
}

/// A verdict, not a panic; and never one about the medium, which is well.
fn fine<T>(result: wrapdisk::error::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) => {
            let odd = [ErrorKind::Io, ErrorKind::NoSpace, ErrorKind::Conflict, ErrorKind::Other];
            assert!(!odd.contains(&e.kind()), "{e:?}");
            None
        }
    }
}

/// Everything that is done with a header that was accepted.
fn use_it(store: &MemoryStore) {
    let Some(mut header) = fine(Header::load(store)) else { return };
    if header.dump_json().split("\"iterations\": ").skip(1).any(|n| !n.starts_with("1000")) {
        // It would only take long.
        return;
    }
    let (key, limits) = (vector_key(), Limits { max_memory_kib: 64 });
    fine(header.verify(None, &key));
    fine(keyslot::unlock(&header, store, b"pass", &limits));
    fine(keyslot::add(&mut header, store, &key, b"new", &Kdf::Pbkdf2Sha256 { iterations: 1000 }));
    for slot in header.keyslots().into_iter().take(2) {
        fine(keyslot::remove(&mut header, store, slot.id));
    }
    if fine(header.seal(&key)).is_some() {
        fine(header.commit(store));
    }
    let shown = header.dump_json();
    let again = Header::load(store).expect("what was committed is read again");
    if again.seqid() == header.seqid() && header.holes() == again.holes() {
        assert_eq!(again.dump_json(), shown);
    }
    fine(wrapdisk::luks2::backup::erase(store));
    Header::load(store).expect("what was erased is a container still");
}

fn cases(short: u32) -> ProptestConfig {
    let many = std::env::var_os("WRAPDISK_LONG").is_some();
    let cases = if many { short * 50 } else { short };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(2500))]

    #[test]
    fn structured_changes_of_the_json(changes in proptest::collection::vec(change(), 1..5)) {
        let mut json = good();
        changes.iter().for_each(|c| apply(&mut json, c));
        text_of(json.to_string().as_bytes());
    }

    #[test]
    fn bytes_thrown_at_the_text(edits in proptest::collection::vec((any::<Index>(), any::<u8>(), 0u8..3), 1..12)) {
        let mut text = good().to_string().into_bytes();
        for (at, byte, how) in edits {
            let at = at.index(text.len());
            match how {
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                _ => drop(text.remove(at)),
            }
        }
        text_of(&text);
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn whatever_is_accepted_can_be_used(changes in proptest::collection::vec(change(), 1..3)) {
        let mut json: Value = serde_json::from_str(&Header::load(&MemoryStore::from(image().to_vec())).unwrap().dump_json()).unwrap();
        changes.iter().for_each(|c| apply(&mut json, c));
        let text = json.to_string();
        prop_assume!(text.len() < HDR - 4096);
        let store = MemoryStore::from(image().to_vec());
        let primary = Copy { seqid: 9, ..Copy::primary(&text) };
        store.write_at(ByteOffset::ZERO, &primary.bytes(HDR)).unwrap();
        store.write_at(ByteOffset::from(16384), &primary.secondary().bytes(HDR)).unwrap();
        use_it(&store);
    }

    /// Without a good checksum, over the whole header area and with the file cut anywhere.
    #[test]
    fn bits_flipped_and_files_cut(flips in proptest::collection::vec((0..2 * HDR, 0u8..8), 0..4), cut in any::<Index>(), cuts in any::<bool>()) {
        let mut bytes = image().to_vec();
        for (at, bit) in flips {
            bytes[at] ^= 1 << bit;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        use_it(&MemoryStore::from(bytes));
    }
}
