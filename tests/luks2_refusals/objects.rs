//! Rows 4 to 6 of the table: config, segments, digests.

use serde_json::json;

use crate::luks2_support::hostile::{GONE, damaged, refuses_each, unsupported};
use crate::luks2_support::{base64, json_with_slots, slot, small_json};

#[test]
fn config() {
    let size = "a multiple of 4096, at most 128 MiB";
    let size_of = |n: u64| format!("config.keyslots_size: found {n}, allowed {size}");
    refuses_each(
        &small_json(),
        &[
            damaged("/config/json_size", GONE, "config.json_size: found nothing, allowed a value"),
            damaged("/config/json_size", json!("16384"), "config.json_size: found 16384, allowed 12288"),
            damaged("/config/json_size", json!(12288), "config.json_size: found a number, allowed a string"),
            damaged("/config/keyslots_size", GONE, "config.keyslots_size: found nothing, allowed a value"),
            damaged("/config/keyslots_size", json!("4095"), size_of(4095)),
            damaged("/config/keyslots_size", json!("134221824"), size_of(134_221_824)),
            damaged(
                "/config/keyslots_size",
                json!("9223372036854771712"),
                size_of(9_223_372_036_854_771_712),
            ),
            damaged(
                "/config/flags",
                json!("allow-discards"),
                "config.flags: found a string, allowed an array of strings",
            ),
            damaged(
                "/config/flags",
                json!(["allow-discards", 1]),
                "config.flags: found a number, allowed an array of strings",
            ),
        ],
    );
}

#[test]
fn requirements() {
    let mandatory = "config.requirements.mandatory";
    let said = |found: &str| format!("{mandatory}: found {found}, allowed none");
    refuses_each(
        &small_json(),
        &[
            unsupported(
                "/config/requirements",
                json!({"mandatory": ["online-reencrypt-v2"]}),
                said("\"online-reencrypt-v2\""),
            ),
            unsupported(
                "/config/requirements",
                json!({"mandatory": ["wrapdisk-reencrypt-v1"]}),
                said("\"wrapdisk-reencrypt-v1\""),
            ),
            damaged(
                "/config/requirements",
                json!({"mandatory": "x"}),
                "config.requirements.mandatory: found a string, allowed an array of strings",
            ),
            damaged(
                "/config/requirements",
                json!({}),
                "config.requirements.mandatory: found nothing, allowed a value",
            ),
            damaged(
                "/config/requirements",
                json!([]),
                "config.requirements: found an array, allowed an object",
            ),
            damaged(
                "/config/requirements",
                json!({"mandatory": [], "optional": []}),
                "config.requirements: found an unknown member \"optional\", allowed mandatory",
            ),
        ],
    );
}

/// A container in the middle of a re-encryption has two segments and two digests as well: the reason comes first.
#[test]
fn a_requirement_is_told_before_what_follows_from_it() {
    let mut json = small_json();
    json["segments"]["1"] = json["segments"]["0"].clone();
    json["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]});
    let e = crate::luks2_support::hostile::refusal(crate::luks2_support::small(&json.to_string()));
    assert_eq!(e.to_string(), "config.requirements.mandatory: found \"online-reencrypt-v2\", allowed none");
    assert_eq!(e.advice(), Some("finish with: cryptsetup reencrypt --resume-only"));
}

#[test]
fn the_segment() {
    let cipher =
        |found: &str| format!("segments.0.encryption: found \"{found}\", allowed \"aes-xts-plain64\"");
    let sector = |found: &str| format!("segments.0.sector_size: found {found}, allowed 4096 or 512");
    let offset = |found: &str| {
        format!("segments.0.offset: found {found}, allowed a multiple of 4096, at least 1064960")
    };
    let number = |name: &str, found: &str| {
        format!(
            "segments.0.{name}: found \"{found}\", allowed a decimal number of at most 2^63-1 in a string"
        )
    };
    let known = "type, offset, size, iv_tweak, encryption, sector_size";
    let unknown = |name: &str| format!("segments.0: found an unknown member \"{name}\", allowed {known}");
    let segment = small_json()["segments"]["0"].clone();
    refuses_each(
        &small_json(),
        &[
            unsupported("/segments", json!({}), "segments: found 0 members, allowed exactly one"),
            unsupported("/segments/1", segment.clone(), "segments: found 2 members, allowed exactly one"),
            unsupported(
                "/segments",
                json!({ "1": segment }),
                "segments: found a member \"1\", allowed \"0\"",
            ),
            damaged("/segments/0", json!("crypt"), "segments.0: found a string, allowed an object"),
            damaged("/segments/0/type", GONE, "segments.0.type: found nothing, allowed a value"),
            unsupported(
                "/segments/0/type",
                json!("linear"),
                "segments.0.type: found \"linear\", allowed \"crypt\"",
            ),
            damaged("/segments/0/offset", json!("1064959"), offset("1064959")),
            damaged("/segments/0/offset", json!("1060864"), offset("1060864")),
            damaged("/segments/0/offset", json!("0"), offset("0")),
            damaged("/segments/0/offset", json!("9223372036854775807"), offset("9223372036854775807")),
            damaged(
                "/segments/0/offset",
                json!("9223372036854775808"),
                number("offset", "9223372036854775808"),
            ),
            damaged("/segments/0/offset", json!("0x104000"), number("offset", "0x104000")),
            unsupported(
                "/segments/0/size",
                json!("8192"),
                "segments.0.size: found \"8192\", allowed \"dynamic\"",
            ),
            unsupported(
                "/segments/0/iv_tweak",
                json!("8"),
                "segments.0.iv_tweak: found \"8\", allowed \"0\"",
            ),
            unsupported(
                "/segments/0/iv_tweak",
                json!("00"),
                "segments.0.iv_tweak: found \"00\", allowed \"0\"",
            ),
            // The header attacks CVE-2025-59054 and CVE-2025-58356.
            unsupported("/segments/0/encryption", json!("cipher_null-ecb"), cipher("cipher_null-ecb")),
            unsupported("/segments/0/encryption", json!("cipher_null"), cipher("cipher_null")),
            unsupported("/segments/0/encryption", json!("null-ecb"), cipher("null-ecb")),
            unsupported("/segments/0/encryption", json!(""), cipher("")),
            unsupported(
                "/segments/0/encryption",
                json!("aes-cbc-essiv:sha256"),
                cipher("aes-cbc-essiv:sha256"),
            ),
            unsupported("/segments/0/encryption", json!("aes-xts-plain"), cipher("aes-xts-plain")),
            unsupported(
                "/segments/0/encryption",
                json!("capi:xts(aes)-plain64"),
                cipher("capi:xts(aes)-plain64"),
            ),
            unsupported("/segments/0/encryption", json!("AES-XTS-plain64"), cipher("AES-XTS-plain64")),
            unsupported("/segments/0/sector_size", json!(1024), sector("1024")),
            unsupported("/segments/0/sector_size", json!(0), sector("0")),
            unsupported("/segments/0/sector_size", json!(2_147_483_647), sector("2147483647")),
            damaged(
                "/segments/0/sector_size",
                json!("4096"),
                "segments.0.sector_size: found a string, allowed an integer",
            ),
            unsupported(
                "/segments/0/integrity",
                json!({"type": "hmac(sha256)"}),
                "segments.0.integrity: found a value, allowed nothing",
            ),
            unsupported(
                "/segments/0/flags",
                json!(["backup-final"]),
                "segments.0.flags: found a value, allowed nothing",
            ),
            damaged("/segments/0/key_size", json!(32), unknown("key_size")),
        ],
    );
}

#[test]
fn the_digest() {
    let digest = small_json()["digests"]["0"].clone();
    let rounds = |n: u32| format!("digests.0.iterations: found {n}, allowed 1000 to 10000000");
    let known = "type, keyslots, segments, hash, iterations, salt, digest";
    let unknown = format!("digests.0: found an unknown member \"hmac\", allowed {known}");
    let salt = |n: usize| format!("digests.0.salt: found {n} bytes, allowed 16 to 64");
    let bytes = |n: usize| json!(base64(&vec![1; n]));
    refuses_each(
        &small_json(),
        &[
            unsupported("/digests", json!({}), "digests: found 0 members, allowed exactly one"),
            unsupported("/digests/1", digest, "digests: found 2 members, allowed exactly one"),
            damaged("/digests/0", json!(null), "digests.0: found null, allowed an object"),
            unsupported(
                "/digests/0/type",
                json!("hmac"),
                "digests.0.type: found \"hmac\", allowed \"pbkdf2\"",
            ),
            unsupported(
                "/digests/0/hash",
                json!("sha1"),
                "digests.0.hash: found \"sha1\", allowed \"sha256\" or \"sha512\"",
            ),
            damaged("/digests/0/iterations", json!(999), rounds(999)),
            damaged("/digests/0/iterations", json!(10_000_001), rounds(10_000_001)),
            damaged(
                "/digests/0/iterations",
                json!("1000"),
                "digests.0.iterations: found a string, allowed an integer",
            ),
            damaged("/digests/0/salt", bytes(15), salt(15)),
            damaged("/digests/0/salt", bytes(65), salt(65)),
            damaged("/digests/0/salt", bytes(0), salt(0)),
            damaged("/digests/0/digest", bytes(31), "digests.0.digest: found 31 bytes, allowed 20 or 32"),
            damaged("/digests/0/digest", bytes(33), "digests.0.digest: found 33 bytes, allowed 20 or 32"),
            damaged("/digests/0/segments", json!([]), "digests.0.segments: found \"\", allowed \"0\""),
            damaged("/digests/0/segments", json!(["1"]), "digests.0.segments: found \"1\", allowed \"0\""),
            damaged(
                "/digests/0/segments",
                json!(["0", "1"]),
                "digests.0.segments: found \"0 1\", allowed \"0\"",
            ),
            damaged(
                "/digests/0/segments",
                json!("0"),
                "digests.0.segments: found a string, allowed an array of strings",
            ),
            damaged("/digests/0/hmac", json!(1), unknown),
        ],
    );
}

/// A digest names every keyslot, and only keyslots.
#[test]
fn unbound_and_missing_keyslots() {
    let names = |found: &str| format!("digests.0.keyslots: found {found}, allowed names of keyslots");
    let unbound =
        |n: u32| format!("keyslots.{n}: found no digest for it, allowed each keyslot in the digest");
    refuses_each(
        &json_with_slots(&[slot(0), slot(1)]),
        &[
            damaged("/digests/0/keyslots", json!([]), unbound(0)),
            damaged("/digests/0/keyslots", json!(["0"]), unbound(1)),
            damaged("/digests/0/keyslots", json!(["0", "1", "2"]), names("\"2\"")),
            damaged("/digests/0/keyslots", json!(["0", "1", "00"]), names("\"00\"")),
            damaged("/digests/0/keyslots", json!(["0", "1", ""]), names("\"\"")),
            damaged(
                "/digests/0/keyslots",
                json!([0, 1]),
                "digests.0.keyslots: found a number, allowed an array of strings",
            ),
        ],
    );
}
