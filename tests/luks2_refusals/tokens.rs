//! Rows 8 and 9: our tokens, and what is found out after an unwrap.

use serde_json::{Value, json};
use wrapdisk::envelope::{Kid, WrapAlg, WrappedDek};
use wrapdisk::error::ErrorKind;
use wrapdisk::luks2::Header;
use wrapdisk::secret::Secret;
use wrapdisk::xts::VolumeKey;

use crate::luks2_support::hostile::{GONE, damaged, refusal, refuses_each, unsupported};
use crate::luks2_support::{base64, json_with_slots, slot, small, small_json, vector_key};

/// One token only, so that a change makes no disagreement.
fn single() -> Value {
    let mut json = small_json();
    json["tokens"].as_object_mut().unwrap().shift_remove("1");
    json
}

#[test]
fn version_kind_size_and_holes() {
    let size = "allowed a positive multiple of 512";
    let size_of = |n: &str| format!("tokens.0.wrapdisk-size: found {n}, {size}");
    let text = |found: &str| {
        format!(
            "tokens.0.wrapdisk-size: found {found}, allowed a decimal number of at most 2^63-1 in a string"
        )
    };
    let kind =
        |found: &str| format!("tokens.0.wrapdisk-kind: found \"{found}\", allowed disk, snapshot or image");
    refuses_each(
        &single(),
        &[
            damaged(
                "/tokens/0/wrapdisk-version",
                GONE,
                "tokens.0.wrapdisk-version: found nothing, allowed a value",
            ),
            unsupported(
                "/tokens/0/wrapdisk-version",
                json!(0),
                "tokens.0.wrapdisk-version: found 0, allowed 1",
            ),
            unsupported(
                "/tokens/0/wrapdisk-version",
                json!(2),
                "tokens.0.wrapdisk-version: found 2, allowed 1",
            ),
            damaged(
                "/tokens/0/wrapdisk-version",
                json!("1"),
                "tokens.0.wrapdisk-version: found a string, allowed an integer",
            ),
            unsupported("/tokens/0/wrapdisk-kind", json!("tape"), kind("tape")),
            unsupported("/tokens/0/wrapdisk-kind", json!("Disk"), kind("Disk")),
            unsupported(
                "/tokens/0/wrapdisk-holes",
                json!("maybe"),
                "tokens.0.wrapdisk-holes: found \"maybe\", allowed zeros or none",
            ),
            damaged("/tokens/0/wrapdisk-size", json!("0"), size_of("0")),
            damaged("/tokens/0/wrapdisk-size", json!("8191"), size_of("8191")),
            damaged("/tokens/0/wrapdisk-size", json!("08192"), text("\"08192\"")),
            damaged("/tokens/0/wrapdisk-size", json!("+8192"), text("\"+8192\"")),
            damaged("/tokens/0/wrapdisk-size", json!("9223372036854775808"), text("\"9223372036854775808\"")),
            damaged(
                "/tokens/0/wrapdisk-size",
                json!(8192),
                "tokens.0.wrapdisk-size: found a number, allowed a string",
            ),
            damaged(
                "/tokens/0/wrapdisk-size",
                json!("9223372036854775296"),
                "size: found 8192 bytes of data, allowed at least 18446744073709551615: the file is truncated",
            ),
            damaged(
                "/tokens/0/wrapdisk-size",
                json!("8704"),
                "size: found 8192 bytes of data, allowed at least 12288: the file is truncated",
            ),
        ],
    );
}

#[test]
fn set_and_kid() {
    let set =
        |found: &str| format!("tokens.0.wrapdisk-set: found {found}, allowed 1 to 128 of [A-Za-z0-9._/-]");
    let kid = |found: &str| {
        format!("tokens.0.wrapdisk-kid: found {found}, allowed https://HOST[:PORT]/keys/NAME/VERSION")
    };
    let long = "s".repeat(129);
    let cut = format!("\"{}...\"", "s".repeat(64));
    let host = format!("https://{}/keys/n/1", "h".repeat(512));
    let cut_host = format!("\"https://{}...\"", "h".repeat(56));
    refuses_each(
        &single(),
        &[
            damaged("/tokens/0/wrapdisk-set", json!(""), set("\"\"")),
            damaged("/tokens/0/wrapdisk-set", json!(long), set(&cut)),
            damaged("/tokens/0/wrapdisk-set", json!("a b"), set("\"a b\"")),
            damaged("/tokens/0/wrapdisk-set", json!("a\n"), set("\"a\\n\"")),
            damaged("/tokens/0/wrapdisk-set", json!("\u{e9}"), set("\"\u{e9}\"")),
            damaged("/tokens/0/wrapdisk-set", GONE, "tokens.0.wrapdisk-set: found nothing, allowed a value"),
            damaged("/tokens/0/wrapdisk-kid", json!("http://h/keys/n/1"), kid("\"http://h/keys/n/1\"")),
            damaged(
                "/tokens/0/wrapdisk-kid",
                json!("https://u:p@h/keys/n/1"),
                kid("\"https://u:p@h/keys/n/1\""),
            ),
            damaged("/tokens/0/wrapdisk-kid", json!("https://h/keys/n/1?x"), kid("\"https://h/keys/n/1?x\"")),
            damaged("/tokens/0/wrapdisk-kid", json!("https://h/keys/n/1#x"), kid("\"https://h/keys/n/1#x\"")),
            damaged("/tokens/0/wrapdisk-kid", json!("https://h/keys/n"), kid("\"https://h/keys/n\"")),
            damaged("/tokens/0/wrapdisk-kid", json!("https://h/keys/n_/1"), kid("\"https://h/keys/n_/1\"")),
            damaged(
                "/tokens/0/wrapdisk-kid",
                json!("https://h/keys/n/1\n"),
                kid("\"https://h/keys/n/1\\n\""),
            ),
            damaged("/tokens/0/wrapdisk-kid", json!(host), kid(&cut_host)),
            damaged("/tokens/0/wrapdisk-kid", GONE, "tokens.0.wrapdisk-kid: found nothing, allowed a value"),
        ],
    );
}

#[test]
fn algorithm_wrapped_key_and_mac() {
    let alg = |found: &str| format!("tokens.0.wrapdisk-alg: found \"{found}\", allowed \"RSA-OAEP-256\"");
    let dek = |n: usize| format!("tokens.0.wrapdisk-wrapped-dek: found {n} bytes, allowed 256, 384 or 512");
    let mac = |n: usize| format!("tokens.0.wrapdisk-mac: found {n} bytes, allowed 32");
    let form = |name: &str, found: &str| {
        format!("tokens.0.wrapdisk-{name}: found {found}, allowed base64 with padding")
    };
    let bytes = |n: usize| json!(base64(&vec![1; n]));
    let ragged = base64(&[1; 32]).replace("E=", "F=");
    refuses_each(
        &single(),
        &[
            unsupported("/tokens/0/wrapdisk-alg", json!("RSA1_5"), alg("RSA1_5")),
            unsupported("/tokens/0/wrapdisk-alg", json!("RSA-OAEP"), alg("RSA-OAEP")),
            unsupported("/tokens/0/wrapdisk-alg", json!("none"), alg("none")),
            damaged("/tokens/0/wrapdisk-wrapped-dek", bytes(255), dek(255)),
            damaged("/tokens/0/wrapdisk-wrapped-dek", bytes(0), dek(0)),
            damaged("/tokens/0/wrapdisk-wrapped-dek", bytes(1024), dek(1024)),
            damaged("/tokens/0/wrapdisk-wrapped-dek", json!("AAE"), form("wrapped-dek", "\"AAE\"")),
            damaged("/tokens/0/wrapdisk-mac", bytes(31), mac(31)),
            damaged("/tokens/0/wrapdisk-mac", bytes(33), mac(33)),
            // The same 32 bytes to a lenient decoder.
            damaged("/tokens/0/wrapdisk-mac", json!(ragged), form("mac", &format!("\"{ragged}\""))),
            damaged("/tokens/0/wrapdisk-mac", GONE, "tokens.0.wrapdisk-mac: found nothing, allowed a value"),
        ],
    );
}

#[test]
fn unknown_members_of_ours_and_keyslots_that_are_not_there() {
    let known = "wrapdisk-version, wrapdisk-kind, wrapdisk-size, wrapdisk-holes, wrapdisk-set, wrapdisk-kid, \
                 wrapdisk-alg, wrapdisk-wrapped-dek, wrapdisk-mac";
    let unknown = |name: &str| format!("tokens.0: found an unknown member \"{name}\", allowed {known}");
    let names = |found: &str| format!("tokens.0.keyslots: found {found}, allowed names of keyslots");
    refuses_each(
        &json_with_slots(&[slot(0)]),
        &[
            damaged("/tokens/0/wrapdisk-offset", json!(1), unknown("wrapdisk-offset")),
            damaged("/tokens/0/wrapdisk-", json!(1), unknown("wrapdisk-")),
            damaged("/tokens/0/keyslots", GONE, "tokens.0.keyslots: found nothing, allowed a value"),
            damaged("/tokens/0/keyslots", json!(["1"]), names("\"1\"")),
            damaged("/tokens/0/keyslots", json!(["0", "x"]), names("\"x\"")),
            damaged(
                "/tokens/0/keyslots",
                json!({}),
                "tokens.0.keyslots: found an object, allowed an array of strings",
            ),
        ],
    );
}

#[test]
fn tokens_that_disagree_and_too_many() {
    let differs = "tokens.1: found another kind, size or holes, allowed the same as in tokens.0";
    refuses_each(
        &small_json(),
        &[
            damaged("/tokens/1/wrapdisk-kind", json!("image"), differs),
            damaged("/tokens/1/wrapdisk-size", json!("4096"), differs),
            damaged("/tokens/1/wrapdisk-holes", json!("none"), differs),
        ],
    );
    let with = |count: usize| {
        let mut json = single();
        for id in 1..count {
            json["tokens"][id.to_string()] = json["tokens"]["0"].clone();
        }
        small(&json.to_string())
    };
    assert_eq!(Header::load(&with(8)).unwrap().tokens().count(), 8);
    let e = refusal(with(9));
    assert_eq!(
        (e.to_string().as_str(), e.kind()),
        ("tokens: found 9 of ours, allowed at most 8", ErrorKind::Damaged)
    );
}

/// Of tokens that are not ours, only what cryptsetup too demands of every token.
#[test]
fn tokens_of_others() {
    refuses_each(
        &small_json(),
        &[
            damaged("/tokens/7", json!([]), "tokens.7: found an array, allowed an object"),
            damaged("/tokens/7", json!({"keyslots": []}), "tokens.7.type: found nothing, allowed a value"),
            damaged(
                "/tokens/7",
                json!({"type": 7, "keyslots": []}),
                "tokens.7.type: found a number, allowed a string",
            ),
            damaged(
                "/tokens/7",
                json!({"type": "clevis"}),
                "tokens.7.keyslots: found nothing, allowed a value",
            ),
            damaged(
                "/tokens/7",
                json!({"type": "clevis", "keyslots": {}}),
                "tokens.7.keyslots: found an object, allowed an array of strings",
            ),
        ],
    );
}

fn key_of(bytes: [u8; 64]) -> wrapdisk::error::Result<VolumeKey> {
    VolumeKey::new(Secret::try_from_fn(|out| {
        *out = bytes;
        Ok(())
    })?)
}

#[test]
fn a_key_whose_halves_are_equal() {
    let e = key_of([0x5a; 64]).unwrap_err();
    assert_eq!(e.to_string(), "volume key: found key1 == key2, allowed two different halves");
    assert_eq!(e.kind(), ErrorKind::Damaged);
}

#[test]
fn another_key_than_the_digests() {
    let header = Header::load(&small(&small_json().to_string())).unwrap();
    for bit in [0, 8 * 31, 8 * 32, 8 * 64 - 1] {
        let mut bytes = *vector_key().secret().expose();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let other = key_of(bytes).unwrap();
        let by_token = header.verify(Some(0), &other).unwrap_err();
        assert_eq!(
            by_token.to_string(),
            "tokens.0: found another key than the digest's, allowed the volume key"
        );
        assert_eq!(by_token.kind(), ErrorKind::Damaged, "a vault that gives a wrong key: exit 5");
        let by_passphrase = header.verify(None, &other).unwrap_err();
        assert_eq!(by_passphrase.to_string(), "the key does not open this container");
        assert_eq!(by_passphrase.kind(), ErrorKind::WrongKey, "a wrong passphrase: exit 3");
    }
}

#[test]
fn a_mac_of_another_header() {
    let mut json = small_json();
    json["tokens"]["0"]["wrapdisk-set"] = "other/0b8f6c0e-3d52-4c1f-9f4e-2a6d1e7c5b90".into();
    let (key, header) = (vector_key(), Header::load(&small(&json.to_string())).unwrap());
    let said = "tokens.0.wrapdisk-mac: found another one, allowed the MAC of this header";
    let e = header.verify(Some(0), &key).unwrap_err();
    assert_eq!((e.to_string().as_str(), e.kind()), (said, ErrorKind::Damaged));
    // The other token is good: it opens, the bad one is a warning.
    assert_eq!(header.verify(Some(1), &key).unwrap(), [said]);
    assert_eq!(header.verify(None, &key).unwrap(), [said]);
    // With no good one, a passphrase does not open either.
    json["tokens"].as_object_mut().unwrap().shift_remove("1");
    let e = Header::load(&small(&json.to_string())).unwrap().verify(None, &key).unwrap_err();
    assert_eq!((e.to_string().as_str(), e.kind()), (said, ErrorKind::Damaged));
    // And no such token at all.
    let e = header.verify(Some(5), &key).unwrap_err();
    assert_eq!(e.to_string(), "tokens: found nothing, allowed token 5");
}

/// A forged token must not be laundered: `seal` makes every MAC anew.
#[test]
fn a_forged_token_gets_no_good_mac_when_a_disk_is_sealed() {
    let mut json = small_json();
    json["tokens"]["1"]["wrapdisk-kid"] = "https://evil.example/keys/k/1".into();
    let (key, store) = (vector_key(), small(&json.to_string()));
    let mut header = Header::load(&store).unwrap();
    header.seal(&key).unwrap();
    header.commit(&store).unwrap();
    let sealed = Header::load(&store).unwrap();
    assert_eq!(sealed.tokens().map(|(id, _)| id).collect::<Vec<_>>(), [0]);
    assert!(sealed.verify(Some(0), &key).unwrap().is_empty());
    assert!(!sealed.discards());
}

#[test]
fn the_ninth_token_and_the_last_one() {
    let wrapped = || WrappedDek {
        kid: Kid::parse("https://h/keys/n/1").unwrap(),
        alg: WrapAlg::RsaOaep256,
        bytes: vec![1; 256],
    };
    let (key, store) = (vector_key(), small(&small_json().to_string()));
    let mut header = Header::load(&store).unwrap();
    for id in 2..8 {
        assert_eq!(header.add_token("s/x", wrapped(), &key).unwrap(), id);
    }
    let e = header.add_token("s/x", wrapped(), &key).unwrap_err();
    assert_eq!(
        (e.to_string().as_str(), e.kind()),
        ("tokens: found 8 of ours, allowed less than 8 to add one", ErrorKind::Unsupported)
    );
    header.commit(&store).unwrap();
    for id in 0..7 {
        header.remove_token(id).unwrap();
    }
    assert_eq!(header.remove_token(7).unwrap_err().to_string(), "token 7 is the last one");
    assert_eq!(header.remove_token(0).unwrap_err().kind(), ErrorKind::NotFound);
    header.verify(Some(7), &key).unwrap();
}
