//! Row 3 of the table: the text of the JSON area.

use serde_json::{Value, json};
use wrapdisk::error::ErrorKind;
use wrapdisk::luks2::Header;

use crate::luks2_support::hostile::{GONE, damaged, refusal, refuses_each};
use crate::luks2_support::{Copy, HDR, image, seal_macs, small, small_json};

/// How the text is refused; always as damage.
#[track_caller]
fn said(text: &str) -> String {
    let e = refusal(small(text));
    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
    e.to_string()
}

fn text() -> String {
    small_json().to_string()
}

/// How both copies are refused with these bytes in the JSON area, which they may fill.
#[track_caller]
fn said_of_area(area: &[u8]) -> String {
    let primary = Copy { text: area.to_vec(), ..Copy::primary("") };
    let store = image(&primary.bytes(HDR), &primary.secondary().bytes(HDR), 2 << 20);
    let e = refusal(store);
    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
    e.to_string()
}

#[test]
fn what_is_no_json() {
    for (text, found) in [
        ("{", "EOF while parsing an object at line 1 column 1"),
        ("{}}", "trailing characters at line 1 column 3"),
        ("{\"a\":1,}", "trailing comma at line 1 column 8"),
        ("{'a':1}", "key must be a string at line 1 column 2"),
        ("{\"a\":01}", "invalid number at line 1 column 7"),
        ("{\"a\":+1}", "expected value at line 1 column 6"),
        ("{\"a\":nan}", "expected ident at line 1 column 7"),
        ("{\"a\":\"\\ud800\"}", "unexpected end of hex escape at line 1 column 13"),
        (
            "{\"a\":\"\t\"}",
            "control character (\\u0000-\\u001F) found while parsing a string at line 1 column 7",
        ),
        ("{\"a\":1e999}", "number out of range at line 1 column 10"),
        ("{}\n{}", "trailing characters at line 2 column 1"),
        ("{/**/}", "key must be a string at line 1 column 2"),
    ] {
        assert_eq!(said(text), format!("json: found \"{found}\", allowed JSON (RFC 8259)"), "{text}");
    }
}

#[test]
fn what_does_not_begin_with_a_brace() {
    for (text, found) in [
        ("", "\"\""),
        (" {}", "\" \""),
        ("[]", "\"[\""),
        ("\u{feff}{}", "\"\\u{feff}\""),
        ("null", "\"n\""),
        ("\u{1b}]0;", "\"\\u{1b}\""),
    ] {
        assert_eq!(said(text), format!("json: found {found}, allowed \"{{\" as its first byte"), "{text:?}");
    }
}

#[test]
fn bytes_that_are_not_utf8_or_come_after_the_text() {
    let found = "json: found bytes that are not UTF-8 at 6, allowed UTF-8";
    assert_eq!(said_of_area(b"{\"a\":\"\xff\"}"), found);
    assert_eq!(said_of_area(b"{\"a\":\"\xed\xa0\x80\"}"), found, "a surrogate");
    let mut after = text().into_bytes();
    after.extend_from_slice(b"\0\0x");
    assert_eq!(said_of_area(&after), "json: found a byte 0x78 after the text, allowed NULs only");
    let mut last = text().into_bytes();
    last.resize(HDR - 4096, 0);
    *last.last_mut().unwrap() = b'}';
    assert_eq!(said_of_area(&last), "json: found a byte 0x7d after the text, allowed NULs only");
}

/// 12287 bytes are the most: at least one NUL must follow.
#[test]
fn a_text_without_a_nul_after_it() {
    let mut json = small_json();
    json["config"]["note"] = "".into();
    let room = HDR - 4096 - 1 - json.to_string().len();
    json["config"]["note"] = "n".repeat(room).into();
    assert_eq!(json.to_string().len(), 12287);
    Header::load(&small(&json.to_string())).unwrap();
    json["config"]["note"] = "n".repeat(room + 1).into();
    assert_eq!(said(&json.to_string()), "json: found no NUL at its end, allowed at least one");
}

#[test]
fn duplicate_names_at_every_level() {
    for (place, twice, name) in [
        ("{\"keyslots\":", "{\"keyslots\":{},\"keyslots\":", "keyslots"),
        ("\"0\":{\"type\":\"crypt\"", "\"0\":{},\"0\":{\"type\":\"crypt\"", "0"),
        ("\"type\":\"crypt\"", "\"type\":\"crypt\",\"type\":\"crypt\"", "type"),
        // The same name to a reader that knows escapes.
        ("\"type\":\"crypt\"", "\"\\u0074ype\":\"linear\",\"type\":\"crypt\"", "type"),
        ("\"wrapdisk-kind\":", "\"wrapdisk-kind\":\"image\",\"wrapdisk-kind\":", "wrapdisk-kind"),
        // Also where nothing is interpreted.
        ("\"config\":{", "\"config\":{\"x\":{\"y\":[{\"z\":1,\"z\":1}]},", "z"),
    ] {
        let text = text();
        assert!(text.contains(place), "{place}");
        let said = said(&text.replacen(place, twice, 1));
        let found = format!("json: found a second member \"{name}\" at byte ");
        assert!(said.starts_with(&found) && said.ends_with(", allowed one of each name"), "{said}");
    }
    assert_eq!(
        said("{\"a\":1,\"a\":2}"),
        "json: found a second member \"a\" at byte 9, allowed one of each name"
    );
}

/// The outermost object is level 1.
#[test]
fn more_than_ten_levels() {
    let nested = |open: &str, close: &str, levels: usize| {
        let inner = format!("{}{}", open.repeat(levels - 1), close.repeat(levels - 1));
        text().replacen("{\"keyslots\"", &format!("{{\"x\":{inner},\"keyslots\""), 1)
    };
    Header::load(&small(&nested("[", "]", 10))).unwrap();
    let inner = "{\"y\":".repeat(8) + "{}" + &"}".repeat(8);
    let objects = |inner: &str| text().replacen("{\"keyslots\"", &format!("{{\"x\":{inner},\"keyslots\""), 1);
    Header::load(&small(&objects(&inner))).unwrap();
    let deeper = objects(&format!("{{\"y\":{inner}}}"));
    for text in [nested("[", "]", 11), nested("[", "]", 5000), deeper] {
        let said = said(&text);
        assert!(said.starts_with("json: found a level 11 at byte "), "{said}");
        assert!(said.ends_with(", allowed at most 10 levels"), "{said}");
    }
}

#[test]
fn numbers_that_are_no_small_integers() {
    for (number, found) in [
        ("2147483648", "2147483648"),
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "the number 1.8446744073709552e19"),
        ("-1", "-1"),
        ("-0", "the number -0.0"),
        ("1.0", "the number 1.0"),
        ("4096.0", "the number 4096.0"),
        ("1e3", "the number 1000.0"),
        ("4E0", "the number 4.0"),
    ] {
        for place in ["\"sector_size\":4096", "\"config\":{"] {
            let with = if place.ends_with('{') {
                format!("{place}\"x\":{number},")
            } else {
                place.replace("4096", number)
            };
            let said = said(&text().replacen(place, &with, 1));
            let allowed = ", allowed integers from 0 to 2147483647";
            assert!(said.starts_with(&format!("json: found {found} at byte ")), "{number}: {said}");
            assert!(said.ends_with(allowed), "{number}: {said}");
        }
    }
    Header::load(&small(&text().replacen("\"config\":{", "\"config\":{\"x\":2147483647,\"y\":0,", 1)))
        .unwrap();
}

#[test]
fn missing_top_level_objects() {
    let names = ["/keyslots", "/tokens", "/segments", "/digests", "/config"];
    let rows = names.map(|pointer| {
        [
            (GONE, "nothing"),
            (Some(json!([])), "an array"),
            (Some(json!("x")), "a string"),
            (Some(json!(1)), "a number"),
            (Some(json!(true)), "a boolean"),
            (Some(Value::Null), "null"),
        ]
        .map(|(value, found)| {
            damaged(pointer, value, format!("{}: found {found}, allowed an object", &pointer[1..]))
        })
    });
    refuses_each(&small_json(), rows.as_flattened());
}

#[test]
fn names_and_counts_of_members() {
    let bad_names = ["00", "01", "32", "-1", "+1", "1 ", "", "a", "0x1", "4294967296", "\u{0661}", "1\n"];
    for object in ["keyslots", "tokens", "segments", "digests"] {
        for name in bad_names {
            let mut json = small_json();
            json[object][name] = json!({});
            let shown = name.replace('\n', "\\n");
            let found = format!("{object}: found a member \"{shown}\", allowed \"0\" to \"31\"");
            assert_eq!(said(&json.to_string()), found);
        }
        let mut json = small_json();
        json[object] = (0..33).map(|n| (n.to_string(), json!({}))).collect::<serde_json::Map<_, _>>().into();
        assert_eq!(said(&json.to_string()), format!("{object}: found 33 members, allowed at most 32"));
    }
}

#[test]
fn sizes_that_are_no_plain_decimals() {
    let pointers =
        ["/config/json_size", "/config/keyslots_size", "/segments/0/offset", "/tokens/0/wrapdisk-size"];
    let bad = [
        "",
        "016",
        "00",
        "+1",
        "-1",
        " 1",
        "1 ",
        "1_000",
        "0x10",
        "1e3",
        "9223372036854775808",
        "99999999999999999999",
        "\u{0661}",
    ];
    for pointer in pointers {
        let rows = bad.map(|text| {
            let field = pointer[1..].replace('/', ".");
            let allowed = "a decimal number of at most 2^63-1 in a string";
            damaged(pointer, json!(text), format!("{field}: found \"{text}\", allowed {allowed}"))
        });
        refuses_each(&small_json(), &rows);
    }
}

#[test]
fn base64_in_another_form() {
    let good = small_json()["digests"]["0"]["digest"].as_str().unwrap().to_owned();
    let bad = [
        good.trim_end_matches('=').to_owned(),
        format!("{good}="),
        format!("{good}\n"),
        format!(" {good}"),
        good.replacen('A', "-", 1) + "_",
        format!("{}\n{}", &good[..20], &good[20..]),
        "*".to_owned(),
    ];
    let rows = bad.map(|text| {
        let found = text.replace('\n', "\\n");
        damaged(
            "/digests/0/digest",
            json!(text),
            format!("digests.0.digest: found \"{found}\", allowed base64 with padding"),
        )
    });
    refuses_each(&small_json(), &rows);
}

/// A value is quoted, escaped and cut at 64 bytes, however long it is and whatever it would do to a terminal.
#[test]
fn hostile_values_are_shown_harmless() {
    let long = "A".repeat(10_000);
    let said_of = |value: &str| {
        let mut json = small_json();
        json["segments"]["0"]["encryption"] = value.into();
        refusal(small(&json.to_string())).to_string()
    };
    let shown =
        |inside: &str| format!("segments.0.encryption: found \"{inside}\", allowed \"aes-xts-plain64\"");
    assert_eq!(said_of(&long), shown(&format!("{}...", "A".repeat(64))));
    assert_eq!(said_of(&"A".repeat(64)), shown(&"A".repeat(64)));
    assert_eq!(said_of("\u{1b}[2J\r\n\"\\"), shown("\\u{1b}[2J\\r\\n\\\"\\\\"));
    assert_eq!(said_of("\u{9b}2J\u{7f}\u{202e}"), shown("\\u{9b}2J\\u{7f}\\u{202e}"));
    // Never in the middle of an escape or a character.
    assert_eq!(said_of(&"\u{1b}".repeat(20)), shown(&format!("{}...", "\\u{1b}".repeat(10))));
    assert_eq!(said_of(&"\u{4e2d}".repeat(30)), shown(&format!("{}...", "\u{4e2d}".repeat(21))));
    let mut json = small_json();
    json["segments"]["0"][&long] = 1.into();
    seal_macs(&mut json);
    let said = refusal(small(&json.to_string())).to_string();
    assert!(said.starts_with("segments.0: found an unknown member \"AAAA") && said.len() < 250, "{said}");
}
