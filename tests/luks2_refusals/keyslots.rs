//! Row 7 of the table: keyslot objects and where their areas lie. (Row 12, costs, is in tests/luks2_keyslots.rs.)

use serde_json::{Value, json};
use wrapdisk::luks2::Header;

use crate::luks2_support::hostile::{GONE, damaged, refuses_each, unsupported};
use crate::luks2_support::{SLOT, base64, json_with_slots, slot, small};

fn argon2id() -> Value {
    json!({ "type": "argon2id", "time": 4, "memory": 65536, "cpus": 2, "salt": base64(&[7; 32]) })
}

#[test]
fn the_object() {
    let known = "type, key_size, priority, af, area, kdf";
    refuses_each(
        &json_with_slots(&[slot(0)]),
        &[
            damaged("/keyslots/0", json!(1), "keyslots.0: found a number, allowed an object"),
            damaged("/keyslots/0/type", GONE, "keyslots.0.type: found nothing, allowed a value"),
            unsupported(
                "/keyslots/0/type",
                json!("reencrypt"),
                "keyslots.0.type: found \"reencrypt\", allowed \"luks2\"",
            ),
            unsupported("/keyslots/0/key_size", json!(32), "keyslots.0.key_size: found 32, allowed 64"),
            unsupported("/keyslots/0/key_size", json!(0), "keyslots.0.key_size: found 0, allowed 64"),
            damaged("/keyslots/0/priority", json!(3), "keyslots.0.priority: found 3, allowed 0, 1 or 2"),
            damaged(
                "/keyslots/0/priority",
                json!("1"),
                "keyslots.0.priority: found a string, allowed an integer",
            ),
            damaged(
                "/keyslots/0/x",
                json!(1),
                format!("keyslots.0: found an unknown member \"x\", allowed {known}"),
            ),
        ],
    );
}

#[test]
fn the_splitter() {
    refuses_each(
        &json_with_slots(&[slot(0)]),
        &[
            damaged("/keyslots/0/af", GONE, "keyslots.0.af: found nothing, allowed a value"),
            damaged("/keyslots/0/af", json!("luks1"), "keyslots.0.af: found a string, allowed an object"),
            unsupported(
                "/keyslots/0/af/type",
                json!("none"),
                "keyslots.0.af.type: found \"none\", allowed \"luks1\"",
            ),
            unsupported(
                "/keyslots/0/af/hash",
                json!("sha1"),
                "keyslots.0.af.hash: found \"sha1\", allowed \"sha256\" or \"sha512\"",
            ),
            unsupported("/keyslots/0/af/stripes", json!(1), "keyslots.0.af.stripes: found 1, allowed 4000"),
            unsupported(
                "/keyslots/0/af/stripes",
                json!(2_147_483_647),
                "keyslots.0.af.stripes: found 2147483647, allowed 4000",
            ),
            damaged(
                "/keyslots/0/af/x",
                json!(1),
                "keyslots.0.af: found an unknown member \"x\", allowed type, stripes, hash",
            ),
        ],
    );
}

#[test]
fn the_area() {
    let at = |name: &str, found: &str| format!("keyslots.0.area.{name}: found {found}");
    refuses_each(
        &json_with_slots(&[slot(0)]),
        &[
            damaged("/keyslots/0/area", GONE, "keyslots.0.area: found nothing, allowed a value"),
            unsupported(
                "/keyslots/0/area/type",
                json!("journal"),
                at("type", "\"journal\", allowed \"raw\""),
            ),
            unsupported(
                "/keyslots/0/area/encryption",
                json!("cipher_null-ecb"),
                at("encryption", "\"cipher_null-ecb\", allowed \"aes-xts-plain64\""),
            ),
            unsupported(
                "/keyslots/0/area/encryption",
                json!("aes-cbc-essiv:sha256"),
                at("encryption", "\"aes-cbc-essiv:sha256\", allowed \"aes-xts-plain64\""),
            ),
            unsupported("/keyslots/0/area/key_size", json!(32), at("key_size", "32, allowed 64")),
            damaged("/keyslots/0/area/size", json!("255999"), at("size", "255999, allowed at least 256000")),
            damaged("/keyslots/0/area/size", json!("0"), at("size", "0, allowed at least 256000")),
            damaged(
                "/keyslots/0/area/offset",
                json!("33000"),
                at("offset", "33000, allowed a multiple of 4096"),
            ),
            damaged(
                "/keyslots/0/area/offset",
                json!("9223372036854771712"),
                at("offset", "9223372036854771712, allowed an end below 2^63"),
            ),
            damaged(
                "/keyslots/0/area/x",
                json!(1),
                "keyslots.0.area: found an unknown member \"x\", allowed type, offset, size, encryption, key_size",
            ),
        ],
    );
}

/// Within the keyslots area, so neither over the headers nor over the data; and not over each other.
#[test]
fn where_areas_may_lie() {
    let room = "allowed within the keyslots area 32768..1064960";
    let outside = |from: u64, to: u64| format!("keyslots.0.area: found {from}..{to}, {room}");
    let last = 32768 + 3 * SLOT;
    refuses_each(
        &json_with_slots(&[slot(0)]),
        &[
            damaged("/keyslots/0/area/offset", json!("0"), outside(0, SLOT)),
            damaged("/keyslots/0/area/offset", json!("16384"), outside(16384, 16384 + SLOT)),
            damaged("/keyslots/0/area/offset", json!("28672"), outside(28672, 28672 + SLOT)),
            damaged(
                "/keyslots/0/area/offset",
                json!((last + 4096).to_string()),
                outside(last + 4096, last + 4096 + SLOT),
            ),
            damaged("/keyslots/0/area/offset", json!("1064960"), outside(1_064_960, 1_064_960 + SLOT)),
            damaged("/keyslots/0/area/size", json!("1032193"), outside(32768, 1_064_961)),
            damaged("/keyslots/0/area/size", json!("9223372036854743039"), outside(32768, i64::MAX as u64)),
        ],
    );
    let mut json = json_with_slots(&[slot(0)]);
    for (offset, size) in [("32768", "1032192"), ("806912", "258048"), ("806912", "256000")] {
        json["keyslots"]["0"]["area"]["offset"] = offset.into();
        json["keyslots"]["0"]["area"]["size"] = size.into();
        Header::load(&small(&json.to_string())).unwrap();
    }
}

#[test]
fn areas_that_overlap() {
    let overlap = |from: u64| {
        format!("keyslots.1.area: found {from}..{}, allowed no overlap with keyslot 0", from + SLOT)
    };
    refuses_each(
        &json_with_slots(&[slot(1), slot(0)]),
        &[
            damaged("/keyslots/1/area/offset", json!((32768 + SLOT).to_string()), overlap(32768 + SLOT)),
            damaged("/keyslots/1/area/offset", json!("36864"), overlap(36864)),
            damaged(
                "/keyslots/1/area/offset",
                json!((28672 + 2 * SLOT).to_string()),
                overlap(28672 + 2 * SLOT),
            ),
        ],
    );
}

#[test]
fn the_kdf() {
    let mut base = json_with_slots(&[slot(0), slot(1)]);
    base["keyslots"]["1"]["kdf"] = argon2id();
    let bytes = |n: usize| json!(base64(&vec![1; n]));
    let salt = |id: u32, n: usize| format!("keyslots.{id}.kdf.salt: found {n} bytes, allowed 16 to 64");
    refuses_each(
        &base,
        &[
            damaged("/keyslots/0/kdf", GONE, "keyslots.0.kdf: found nothing, allowed a value"),
            unsupported(
                "/keyslots/0/kdf/type",
                json!("argon2i"),
                "keyslots.0.kdf.type: found \"argon2i\", allowed \"argon2id\" or \"pbkdf2\"",
            ),
            unsupported(
                "/keyslots/0/kdf/hash",
                json!("sha1"),
                "keyslots.0.kdf.hash: found \"sha1\", allowed \"sha256\" or \"sha512\"",
            ),
            damaged(
                "/keyslots/0/kdf/iterations",
                GONE,
                "keyslots.0.kdf.iterations: found nothing, allowed a value",
            ),
            damaged("/keyslots/0/kdf/salt", bytes(15), salt(0, 15)),
            damaged("/keyslots/0/kdf/salt", bytes(65), salt(0, 65)),
            damaged(
                "/keyslots/0/kdf/time",
                json!(1),
                "keyslots.0.kdf: found an unknown member \"time\", allowed type, hash, iterations, salt",
            ),
            damaged("/keyslots/1/kdf/salt", bytes(0), salt(1, 0)),
            damaged(
                "/keyslots/1/kdf/memory",
                json!("65536"),
                "keyslots.1.kdf.memory: found a string, allowed an integer",
            ),
            damaged("/keyslots/1/kdf/cpus", GONE, "keyslots.1.kdf.cpus: found nothing, allowed a value"),
            damaged(
                "/keyslots/1/kdf/hash",
                json!("sha256"),
                "keyslots.1.kdf: found an unknown member \"hash\", allowed type, time, memory, cpus, salt",
            ),
        ],
    );
}
