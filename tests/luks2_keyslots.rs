//! Does a passphrase cost no more than is allowed, open the right keyslot in the right order, and never outlive its slot?
//! (That cryptsetup reads our keyslots and we its own is judged by the `judge_` tests.)
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod luks2_support;

use luks2_support::{HDR, SLOT, base64, json_with_slots, slot, small, small_json, vector_key, with_json};
use serde_json::{Value, json};
use wrapdisk::error::{Error, ErrorKind};
use wrapdisk::luks2::Header;
use wrapdisk::luks2::keyslot::{self, Kdf, Limits};
use wrapdisk::store::{BackingStore, FaultPlan, FaultyStore, MemoryStore, Op};
use wrapdisk::units::ByteOffset;

const CHEAP: Kdf = Kdf::Pbkdf2Sha256 { iterations: 1000 };

/// The small container, its header read.
fn container() -> (MemoryStore, Header) {
    let store = small(&small_json().to_string());
    let header = Header::load(&store).unwrap();
    (store, header)
}

/// A container whose one keyslot says this of its KDF.
fn with_kdf(kdf: Value) -> (MemoryStore, Header) {
    let mut slot = slot(0);
    slot["kdf"] = kdf;
    let store = small(&json_with_slots(&[slot]).to_string());
    let header = Header::load(&store).expect("a cost is no reason to refuse a header");
    (store, header)
}

fn argon2id(time: u32, memory: u32, cpus: u32) -> Value {
    json!({ "type": "argon2id", "time": time, "memory": memory, "cpus": cpus, "salt": base64(&[7; 32]) })
}

fn pbkdf2(hash: &str, iterations: u32) -> Value {
    json!({ "type": "pbkdf2", "hash": hash, "iterations": iterations, "salt": base64(&[7; 32]) })
}

/// What a passphrase is told at the one keyslot; the header is listed all the same.
#[track_caller]
fn told(kdf: Value, limits: &Limits) -> Error {
    let (store, header) = with_kdf(kdf);
    assert_eq!(header.keyslots().len(), 1);
    keyslot::unlock(&header, &store, b"pass", limits).unwrap_err()
}

/// Before any memory is taken or time spent: none of these could be computed here.
#[test]
fn a_cost_above_the_caps_is_listed_and_refused_when_it_is_used() {
    let memory = "allowed 16 to 1048576 KiB";
    for (kdf, said) in [
        (argon2id(4, 1_048_577, 2), format!("memory: found 1048577 KiB, {memory}")),
        (argon2id(4, 2_147_483_647, 2), format!("memory: found 2147483647 KiB, {memory}")),
        (argon2id(4, 15, 2), format!("memory: found 15 KiB, {memory}")),
        (argon2id(4, 0, 2), format!("memory: found 0 KiB, {memory}")),
        (argon2id(0, 65536, 2), "time: found 0, allowed 1 to 64".to_owned()),
        (argon2id(65, 65536, 2), "time: found 65, allowed 1 to 64".to_owned()),
        (
            argon2id(2_147_483_647, 2_147_483_647, 2_147_483_647),
            "time: found 2147483647, allowed 1 to 64".to_owned(),
        ),
        (argon2id(4, 65536, 0), "cpus: found 0, allowed 1 to 16".to_owned()),
        (argon2id(4, 65536, 17), "cpus: found 17, allowed 1 to 16".to_owned()),
        (
            argon2id(33, 1_048_576, 4),
            "time: found 33 passes over 1048576 KiB, allowed at most 32 GiB in all".to_owned(),
        ),
        (pbkdf2("sha256", 999), "iterations: found 999, allowed 1000 to 50000000".to_owned()),
        (pbkdf2("sha512", 50_000_001), "iterations: found 50000001, allowed 1000 to 50000000".to_owned()),
        (pbkdf2("sha256", 0), "iterations: found 0, allowed 1000 to 50000000".to_owned()),
    ] {
        let e = told(kdf, &Limits::default());
        assert_eq!((e.to_string(), e.kind()), (format!("keyslots.0.kdf.{said}"), ErrorKind::Unsupported));
    }
}

#[test]
fn max_kdf_memory_moves_the_memory_cap_up_to_4_gib_and_no_other() {
    let up_to = |kib| Limits { max_memory_kib: kib };
    let e = told(argon2id(4, 1_048_577, 1), &Limits::default());
    assert_eq!(e.advice(), Some("allow more with --max-kdf-memory, up to 4G"));
    // Whatever is asked for, 4 GiB is the end, and more is no use then.
    let e = told(argon2id(1, 4_194_305, 1), &up_to(u32::MAX));
    assert_eq!(e.to_string(), "keyslots.0.kdf.memory: found 4194305 KiB, allowed 8 to 4194304 KiB");
    assert_eq!(e.advice(), None);
    // The other caps stay.
    let e = told(argon2id(9, 4_194_304, 1), &up_to(u32::MAX));
    assert!(e.to_string().starts_with("keyslots.0.kdf.time: found 9 passes over 4194304 KiB"), "{e}");
    let e = told(argon2id(65, 64, 1), &up_to(u32::MAX));
    assert_eq!(e.to_string(), "keyslots.0.kdf.time: found 65, allowed 1 to 64");
    // It may also be lowered.
    let e = told(argon2id(1, 65, 1), &up_to(64));
    assert_eq!(e.to_string(), "keyslots.0.kdf.memory: found 65 KiB, allowed 8 to 64 KiB");
    // What is within is computed, and only the passphrase is wrong.
    for (kdf, limits) in [(argon2id(64, 64, 1), up_to(64)), (argon2id(1, 128, 16), up_to(u32::MAX))] {
        assert_eq!(told(kdf, &limits).to_string(), "no keyslot opens with this passphrase");
    }
}

#[test]
fn a_slot_that_is_too_dear_does_not_hide_one_that_opens() {
    let (store, mut header) = container();
    assert_eq!(keyslot::add(&mut header, &store, &vector_key(), b"pass", &CHEAP).unwrap(), 0);
    let mut json: Value = serde_json::from_str(&header.dump_json()).unwrap();
    json["keyslots"]["1"] = slot(1);
    json["keyslots"]["1"]["priority"] = 2.into();
    json["keyslots"]["1"]["kdf"] = argon2id(4, 2_000_000, 4);
    json["digests"]["0"]["keyslots"] = json!(["0", "1"]);
    let rewritten = small(&json.to_string());
    let mut area = vec![0; usize::try_from(SLOT).unwrap()];
    let at = ByteOffset::from(u32::try_from(2 * HDR).unwrap());
    store.read_at(at, &mut area).unwrap();
    rewritten.write_at(at, &area).unwrap();
    let header = Header::load(&rewritten).unwrap();
    assert_eq!(keyslot::unlock(&header, &rewritten, b"pass", &Limits::default()).unwrap().0, 0);
    // When none opens, the dear one might have: that is what is told.
    let e = keyslot::unlock(&header, &rewritten, b"wrong", &Limits::default()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert_eq!(e.to_string(), "keyslots.1.kdf.memory: found 2000000 KiB, allowed 32 to 1048576 KiB");
}

#[test]
fn preferred_slots_are_tried_first_and_those_of_priority_0_last() {
    let (store, mut header) = container();
    for _ in 0..4 {
        keyslot::add(&mut header, &store, &vector_key(), b"pass", &CHEAP).unwrap();
    }
    let mut json: Value = serde_json::from_str(&header.dump_json()).unwrap();
    let mut opens_first = |priorities: [Option<u32>; 4]| {
        for (id, priority) in priorities.into_iter().enumerate() {
            let slot = json["keyslots"][id.to_string()].as_object_mut().unwrap();
            slot.shift_remove("priority");
            priority.map(|p| slot.insert("priority".into(), p.into()));
        }
        let changed = store.snapshot();
        let mut copy = small(&json.to_string()).snapshot();
        copy[2 * HDR..].copy_from_slice(&changed[2 * HDR..]);
        let store = MemoryStore::from(copy);
        let header = Header::load(&store).unwrap();
        keyslot::unlock(&header, &store, b"pass", &Limits::default()).unwrap().0
    };
    assert_eq!(opens_first([None, None, None, None]), 0);
    assert_eq!(opens_first([Some(0), None, None, None]), 1);
    assert_eq!(opens_first([Some(0), Some(0), Some(1), Some(2)]), 3);
    assert_eq!(opens_first([Some(0), Some(1), Some(2), Some(2)]), 2);
    assert_eq!(opens_first([Some(0), Some(0), Some(0), Some(0)]), 0, "last is not never");
}

#[test]
fn a_wrong_passphrase_and_none_to_try() {
    let (store, mut header) = container();
    let told = |header: &Header, passphrase: &[u8]| {
        let e = keyslot::unlock(header, &store, passphrase, &Limits::default()).unwrap_err();
        (e.kind(), e.to_string(), e.advice().map(str::to_owned))
    };
    let none = "keyslots: found none, so no passphrase opens it".to_owned();
    let advice = Some("open it through its vault, without --passphrase".to_owned());
    assert_eq!(told(&header, b"pass"), (ErrorKind::WrongKey, none, advice));
    keyslot::add(&mut header, &store, &vector_key(), b"pass", &CHEAP).unwrap();
    for wrong in [b"".as_slice(), b"pas", b"pass\n", b"pass ", b"Pass"] {
        let said = "no keyslot opens with this passphrase".to_owned();
        assert_eq!(told(&header, wrong), (ErrorKind::WrongKey, said, None), "{wrong:?}");
    }
    keyslot::unlock(&header, &store, b"pass", &Limits::default()).unwrap();
}

/// Bytes, not text: nothing is normalised, trimmed or cut.
#[test]
fn any_bytes_are_a_passphrase() {
    let long: Vec<u8> = (0..100_000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let kdfs = [
        CHEAP,
        Kdf::Pbkdf2Sha512 { iterations: 1000 },
        Kdf::Argon2id { time: 1, memory: 64, cpus: 1 },
        Kdf::Argon2id { time: 2, memory: 256, cpus: 3 },
    ];
    for kdf in kdfs {
        for passphrase in [b"".as_slice(), b"\0", b"a\nb\n", b"\xff\xfe", &long] {
            let (store, mut header) = container();
            keyslot::add(&mut header, &store, &vector_key(), passphrase, &kdf).unwrap();
            let (id, key) = keyslot::unlock(&header, &store, passphrase, &Limits::default()).unwrap();
            assert!(id == 0 && key.secret().ct_eq(vector_key().secret()), "{kdf}");
            let mut other = passphrase.to_vec();
            other.push(1);
            keyslot::unlock(&header, &store, &other, &Limits::default()).unwrap_err();
        }
    }
}

#[test]
fn thirty_two_slots_fill_the_area_first_fit_and_the_next_is_refused() {
    let store = with_json(|_| {});
    let mut header = Header::load(&store).unwrap();
    for id in 0..32 {
        let passphrase = format!("pass {id}");
        assert_eq!(
            keyslot::add(&mut header, &store, &vector_key(), passphrase.as_bytes(), &CHEAP).unwrap(),
            id
        );
    }
    let json: Value = serde_json::from_str(&header.dump_json()).unwrap();
    let offset = |json: &Value, id: u32| {
        json["keyslots"][id.to_string()]["area"]["offset"].as_str().unwrap().parse::<u64>().unwrap()
    };
    for id in 0..32 {
        assert_eq!(offset(&json, id), 32768 + u64::from(id) * SLOT);
    }
    assert_eq!(offset(&json, 31) + SLOT, 0x7e_8000, "what lies behind is kept for re-encryption");
    let image = store.snapshot();
    let e = keyslot::add(&mut header, &store, &vector_key(), b"one more", &CHEAP).unwrap_err();
    assert_eq!(
        (e.to_string().as_str(), e.kind()),
        ("keyslots: found 32 members, allowed at most 32", ErrorKind::Unsupported)
    );
    assert!(store.snapshot() == image, "nothing was written");
    // The last one opens, and a freed place is taken again.
    assert_eq!(keyslot::unlock(&header, &store, b"pass 31", &Limits::default()).unwrap().0, 31);
    keyslot::remove(&mut header, &store, 17).unwrap();
    assert_eq!(keyslot::add(&mut header, &store, &vector_key(), b"again", &CHEAP).unwrap(), 17);
    let json: Value = serde_json::from_str(&header.dump_json()).unwrap();
    assert_eq!(offset(&json, 17), 32768 + 17 * SLOT);
}

#[test]
fn first_fit_goes_around_areas_of_other_sizes_and_stops_at_the_end() {
    let mut json = json_with_slots(&[slot(0), slot(1)]);
    // As another program may place them: a gap too small, and an area that ends off the grid.
    json["keyslots"]["0"]["area"]["offset"] = "36864".into();
    json["keyslots"]["0"]["area"]["size"] = "256001".into();
    json["keyslots"]["1"]["area"]["offset"] = "602112".into();
    let store = small(&json.to_string());
    let mut header = Header::load(&store).unwrap();
    assert_eq!(keyslot::add(&mut header, &store, &vector_key(), b"pass", &CHEAP).unwrap(), 2);
    let json: Value = serde_json::from_str(&header.dump_json()).unwrap();
    assert_eq!(json["keyslots"]["2"]["area"]["offset"], "294912");
    let e = keyslot::add(&mut header, &store, &vector_key(), b"pass", &CHEAP).unwrap_err();
    assert_eq!(e.to_string(), "keyslots area: found no room, allowed 258048 free bytes");
    assert_eq!(e.kind(), ErrorKind::Unsupported);
}

/// And refused before the area is written.
#[test]
fn a_full_header_takes_no_keyslot() {
    let mut json = small_json();
    json["config"]["note"] = "n".repeat(12_287 - json.to_string().len() - 10).into();
    let plan = FaultPlan::default();
    let store = FaultyStore::new(small(&json.to_string()), plan.clone());
    let mut header = Header::load(&store).unwrap();
    let e = keyslot::add(&mut header, &store, &vector_key(), b"pass", &CHEAP).unwrap_err();
    assert!(e.to_string().ends_with(" bytes, allowed at most 12287: the header is full"), "{e}");
    assert_eq!((e.kind(), plan.count(Op::Write), header.keyslots().len()), (ErrorKind::Unsupported, 0, 0));
}

#[test]
fn a_wrong_key_gets_no_keyslot() {
    let (store, mut header) = container();
    let before = store.snapshot();
    let other = wrapdisk::xts::VolumeKey::generate().unwrap();
    let e = keyslot::add(&mut header, &store, &other, b"pass", &CHEAP).unwrap_err();
    assert_eq!(
        (e.kind(), e.to_string().as_str()),
        (ErrorKind::WrongKey, "the key does not open this container")
    );
    assert!(store.snapshot() == before);
}

#[test]
fn removing_a_slot_overwrites_all_of_its_area_and_nothing_else() {
    let (store, mut header) = container();
    for passphrase in [b"one", b"two"] {
        keyslot::add(&mut header, &store, &vector_key(), passphrase, &CHEAP).unwrap();
    }
    let before = store.snapshot();
    keyslot::remove(&mut header, &store, 0).unwrap();
    let after = store.snapshot();
    let (from, to) = (2 * HDR, 2 * HDR + usize::try_from(SLOT).unwrap());
    // 4 KiB of noise equal what was there once in 2^32768.
    assert!(before[from..to].chunks(4096).zip(after[from..to].chunks(4096)).all(|(b, a)| b != a));
    assert!(after[from..to].chunks(4096).all(|c| c.iter().any(|b| *b != 0)), "noise, not zeros");
    assert!(before[to..] == after[to..]);
    keyslot::unlock(&header, &store, b"one", &Limits::default()).unwrap_err();
    assert_eq!(keyslot::unlock(&header, &store, b"two", &Limits::default()).unwrap().0, 1);
    let e = keyslot::remove(&mut header, &store, 0).unwrap_err();
    assert_eq!((e.kind(), e.to_string().as_str()), (ErrorKind::NotFound, "no keyslot 0"));
}

/// cryptsetup refuses a header whose token names a keyslot that is not there.
#[test]
fn removing_a_slot_takes_its_name_out_of_every_token() {
    let mut json = json_with_slots(&[slot(0), slot(1)]);
    json["tokens"]["0"]["keyslots"] = json!(["0"]);
    json["tokens"]["5"] = json!({"type": "systemd-tpm2", "keyslots": ["1", "0"], "tpm2-blob": "AA=="});
    let store = small(&json.to_string());
    let mut header = Header::load(&store).unwrap();
    keyslot::remove(&mut header, &store, 0).unwrap();
    let json: Value = serde_json::from_str(&Header::load(&store).unwrap().dump_json()).unwrap();
    assert_eq!(json["tokens"]["0"]["keyslots"], json!([]));
    assert_eq!(json["tokens"]["5"], json!({"type": "systemd-tpm2", "keyslots": ["1"], "tpm2-blob": "AA=="}));
    assert_eq!(json["digests"]["0"]["keyslots"], json!(["1"]));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.wd");
    let good = |image: &[u8]| {
        std::fs::write(&file, image).unwrap();
        let judge =
            std::process::Command::new("cryptsetup").args(["isLuks", "--type", "luks2"]).arg(&file).status();
        judge.expect("cryptsetup must be installed").success()
    };
    assert!(good(&store.snapshot()));
    let dangling = json_with_slots(&[]);
    let mut bad = dangling.clone();
    bad["tokens"]["5"] = json!({"type": "x", "keyslots": ["0"]});
    assert!(good(&small(&dangling.to_string()).snapshot()) && !good(&small(&bad.to_string()).snapshot()));
}

#[test]
fn a_recovery_key_has_256_bits_that_every_keyboard_types() {
    let keys: Vec<_> = (0..64).map(|_| keyslot::recovery_key().unwrap()).collect();
    let mut seen = std::collections::HashSet::new();
    for key in &keys {
        let text = std::str::from_utf8(key.expose()).unwrap();
        let groups: Vec<_> = text.split('-').collect();
        assert_eq!((text.len(), groups.len()), (71, 8));
        assert!(
            groups.iter().all(|g| g.len() == 8 && g.bytes().all(|b| b"cbdefghijklnrtuv".contains(&b))),
            "{text}"
        );
        assert!(seen.insert(text.to_owned()), "twice");
    }
    // 4096 letters miss one of 16 once in 2^381.
    let letters: std::collections::HashSet<u8> =
        keys.iter().flat_map(|k| k.expose().iter().copied()).collect();
    assert_eq!(letters.len(), 17);
}
