//! Does every route do what Azure's does, for those who may and for nobody else; and does every refusal have Azure's status,
//! codes and words?
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod serve_support;
mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use serve_support::{Answer, Client, Served, VERSION};
use support::finish;
use wrapdisk::vault::local::Permission::{self, *};

const OAEP: &str = "RSA-OAEP-256";

/// Method, path, what it needs, a body that is good. `{v}` is the version of the key "n".
fn routes(
    wrapped: &str,
    signature: &str,
    backup: &str,
) -> Vec<(&'static str, &'static str, Vec<Permission>, Option<Value>)> {
    let digest = "A".repeat(43);
    let cipher = |value: &str| Some(json!({ "alg": OAEP, "value": value }));
    vec![
        ("POST", "/keys/made/create", vec![Create], Some(json!({ "kty": "RSA", "key_size": 2048 }))),
        ("PUT", "/keys/taken", vec![Import], Some(json!({ "key": jwk() }))),
        ("GET", "/keys/n", vec![Get], None),
        ("GET", "/keys/n/{v}", vec![Get], None),
        ("PATCH", "/keys/n", vec![Update], Some(json!({ "tags": { "a": "b" } }))),
        ("PATCH", "/keys/n/{v}", vec![Update], Some(json!({ "attributes": { "enabled": true } }))),
        ("GET", "/keys", vec![List], None),
        ("GET", "/keys/n/versions", vec![List], None),
        ("GET", "/keys/n/rotationpolicy", vec![Get, GetRotationPolicy], None),
        (
            "PUT",
            "/keys/n/rotationpolicy",
            vec![Update, SetRotationPolicy],
            Some(json!({ "lifetimeActions": [] })),
        ),
        ("POST", "/keys/n/{v}/wrapkey", vec![WrapKey], cipher("AQID")),
        ("POST", "/keys/n/{v}/unwrapkey", vec![UnwrapKey], cipher(wrapped)),
        ("POST", "/keys/n/{v}/encrypt", vec![Encrypt], cipher("AQID")),
        ("POST", "/keys/n/{v}/decrypt", vec![Decrypt], cipher(wrapped)),
        ("POST", "/keys/n/{v}/sign", vec![Sign], Some(json!({ "alg": "PS256", "value": digest }))),
        (
            "POST",
            "/keys/n/{v}/verify",
            vec![Verify],
            Some(json!({ "alg": "PS256", "digest": digest, "value": signature })),
        ),
        ("POST", "/keys/n/backup", vec![Backup], None),
        ("POST", "/keys/restore", vec![Restore], Some(json!({ "value": backup }))),
        ("POST", "/keys/n/rotate", vec![Rotate], None),
        ("DELETE", "/keys/n", vec![Delete], None),
        ("GET", "/deletedkeys/n", vec![Get], None),
        ("GET", "/deletedkeys", vec![List], None),
        ("POST", "/deletedkeys/n/recover", vec![Recover], None),
        ("DELETE", "/deletedkeys/gone", vec![Purge], None),
    ]
}

/// A private key that openssl made, in Azure's form.
fn jwk() -> Value {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key.pem");
    let mut make = std::process::Command::new("openssl");
    finish(
        make.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"]).arg(&file),
    )
    .ok();
    let mut print = std::process::Command::new("openssl");
    let text = finish(print.args(["pkey", "-noout", "-text", "-in"]).arg(&file)).ok();
    let part = |name: &str| {
        let (_, rest) = text.split_once(&format!("{name}:\n")).unwrap();
        let hex: String = rest.lines().take_while(|l| l.starts_with("    ")).collect();
        let hex: String = hex.chars().filter(char::is_ascii_hexdigit).collect();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let start = bytes.iter().position(|b| *b != 0).unwrap();
        wrapdisk::vault::wire::to_base64url(&bytes[start..])
    };
    json!({ "kty": "RSA", "n": part("modulus"), "e": "AQAB", "d": part("privateExponent"), "p": part("prime1"),
            "q": part("prime2"), "dp": part("exponent1"), "dq": part("exponent2"), "qi": part("coefficient"),
            "key_ops": ["encrypt", "decrypt"] })
}

#[test]
fn every_route_needs_its_permission_and_no_other() {
    let served = Served::new();
    let officer = &served.officer;
    let version = served.key("n");
    let wrapped = officer.post("/keys/n/wrapkey", &json!({ "alg": OAEP, "value": "AQID" })).ok();
    let digest = json!({ "alg": "PS256", "value": "A".repeat(43) });
    let signed = officer.post("/keys/n/sign", &digest).ok();
    served.key("saved");
    let backup = officer.ask("POST", "/keys/saved/backup", None).ok();
    for name in ["saved", "gone"] {
        if name == "gone" {
            served.key(name);
        }
        officer.ask("DELETE", &format!("/keys/{name}"), None).ok();
    }
    assert_eq!(officer.ask("DELETE", "/deletedkeys/saved", None).status, 204);
    let text = |v: &Value| v["value"].as_str().unwrap().to_owned();
    for (method, path, needs, body) in routes(&text(&wrapped), &text(&signed), &text(&backup)) {
        let path = path.replace("{v}", &version);
        let ask = |client: &Client| client.ask(method, &path, body.as_ref());
        assert_eq!(ask(&served.nobody()).status, 401, "{method} {path}");
        let others: Vec<_> = Permission::ALL.into_iter().filter(|p| !needs.contains(p)).collect();
        let refused = ask(&served.client(&others));
        assert_eq!(refused.error(), (403, "Forbidden".into(), "ForbiddenByPolicy".into()), "{method} {path}");
        let said = refused.message();
        assert!(
            said.contains(" does not have keys ")
                && said.contains(" permission on key vault 'test;location=local'."),
            "{said}"
        );
        // Nor does he learn that his body was wrong, or that there is no such key.
        if body.is_some() {
            let blind =
                served.client(&others).raw(method, &format!("{path}?{VERSION}"), Some("no json"), &[]);
            assert_eq!(blind.error().0, 403, "{method} {path}");
        }
        // Whoever has one of the permissions that do learns it.
        for need in needs.iter().filter(|_| body.is_some()) {
            let told =
                served.client(&[*need]).raw(method, &format!("{path}?{VERSION}"), Some("no json"), &[]);
            assert_eq!(told.error().0, 400, "{method} {path} {need:?}");
        }
        let done = ask(&served.client(&needs[..1]));
        assert!([200, 204].contains(&done.status), "{method} {path}: {done:?}");
        assert_eq!(done.status == 204, done.text.is_empty());
    }
    let any = served.client(&[]);
    assert_eq!(any.post("/rng", &json!({ "count": 32 })).ok()["value"].as_str().unwrap().len(), 43);
    assert_eq!(served.nobody().post("/rng", &json!({ "count": 32 })).status, 401);
}

#[test]
fn a_grant_on_one_key_opens_that_key_only() {
    let served = Served::new();
    served.key("a");
    served.key("b");
    let client = served.client(&[]);
    let call = served.vault.admin("test");
    let grant = wrapdisk::vault::local::Grant::Permissions(vec![Get]);
    served.vault.grant(client.oid, grant, Some("a"), &call).unwrap();
    client.get("/keys/a").ok();
    for path in ["/keys/b", "/keys/none", "/keys/a/versions", "/keys"] {
        assert_eq!(client.get(path).error().0, 403, "{path}");
    }
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str, inner: &str, message: &str) {
    assert_eq!(answer.error(), (status, code.into(), inner.into()), "{answer:?}");
    assert!(answer.message().starts_with(message), "{}", answer.message());
}

#[test]
fn refusals_have_azures_codes_and_words() {
    let served = Served::new();
    let officer = &served.officer;
    let version = served.key("n");
    let wrap = json!({ "alg": OAEP, "value": "AQID" });
    let wrapped = officer.post("/keys/n/wrapkey", &wrap).ok()["value"].clone();
    let unwrap = json!({ "alg": OAEP, "value": wrapped });
    let set = |what: Value| officer.ask("PATCH", "/keys/n", Some(&what)).ok();

    set(json!({ "attributes": { "enabled": false } }));
    refused(
        &officer.post("/keys/n/unwrapkey", &unwrap),
        403,
        "Forbidden",
        "KeyDisabled",
        "Operation unwrapKey is not allowed on a disabled key.",
    );
    assert_eq!(officer.get("/keys/n").ok()["attributes"]["enabled"], false);
    set(json!({ "attributes": { "enabled": true, "exp": 1_000_000_000 } }));
    refused(
        &officer.post("/keys/n/wrapkey", &wrap),
        403,
        "Forbidden",
        "KeyNotYetValidOrExpired",
        "Operation wrapKey is not allowed outside the validity period",
    );
    assert_eq!(
        officer.post(&format!("/keys/n/{version}/unwrapkey"), &unwrap).ok()["value"],
        "AQID",
        "an expired key still opens"
    );
    set(json!({ "key_ops": ["wrapKey"], "attributes": { "exp": 9_999_999_999_i64 } }));
    refused(
        &officer.post("/keys/n/decrypt", &unwrap),
        403,
        "Forbidden",
        "KeyOperationForbidden",
        "Operation decrypt is not permitted on this key.",
    );

    refused(
        &officer.get("/keys/none"),
        404,
        "KeyNotFound",
        "",
        "A key with (name/id) none was not found in this key vault. If you recently deleted this key",
    );
    refused(
        &officer.get(&format!("/keys/n/{}", "0".repeat(32))),
        404,
        "KeyNotFound",
        "",
        "A key with (name/id) n/000",
    );
    refused(&officer.get("/deletedkeys/n"), 404, "KeyNotFound", "", "Deleted Key not found: n");
    let create = json!({ "kty": "RSA", "key_size": 2048 });
    officer.ask("DELETE", "/keys/n", None).ok();
    refused(
        &officer.post("/keys/n/create", &create),
        409,
        "Conflict",
        "ObjectIsDeletedButRecoverable",
        "Key n is currently in a deleted but recoverable state",
    );
    refused(&officer.get("/nowhere"), 404, "NotFound", "", "");
    let wrong_verb = officer.ask("DELETE", "/keys", None);
    assert_eq!((wrong_verb.status, wrong_verb.header("allow")), (405, Some("GET")));
}

#[test]
fn what_is_asked_wrongly_is_told() {
    let served = Served::new();
    let officer = &served.officer;
    served.key("n");
    let bad = |answer: Answer| {
        assert_eq!(answer.error(), (400, "BadParameter".into(), String::new()), "{answer:?}");
        answer.message()
    };
    assert!(bad(officer.raw("GET", "/keys", None, &[])).contains("api-version"));
    assert!(bad(officer.raw("GET", "/keys?api-version=8", None, &[])).contains("not recognized"));
    for body in [
        json!({}),
        json!({ "kty": "EC" }),
        json!({ "kty": "RSA-HSM" }),
        json!({ "kty": "oct" }),
        json!({ "kty": "RSA", "key_size": 1024 }),
        json!({ "kty": "RSA", "key_size": 2049 }),
        json!({ "kty": "RSA", "public_exponent": 3 }),
        json!({ "kty": "RSA", "key_ops": ["x"] }),
        json!({ "kty": "RSA", "key_size": "2048" }),
    ] {
        bad(officer.post("/keys/x/create", &body));
    }
    bad(officer.ask("POST", "/keys/x/create", None));
    bad(officer.post("/keys/x_y/create", &json!({ "kty": "RSA", "key_size": 2048 })));
    bad(officer.get("/keys/a%2Fb"));
    bad(officer.get(&format!("/keys/{}", "a".repeat(128))));
    for alg in ["RSA1_5", "A256KW", "", "RSA-OAEP-512"] {
        bad(officer.post("/keys/n/wrapkey", &json!({ "alg": alg, "value": "AQID" })));
    }
    // Every ciphertext that does not open has one answer.
    let words: BTreeSet<_> =
        ["", "AQID", &"A".repeat(342), &("_".repeat(340) + "AA"), &"A".repeat(343), &"A".repeat(8000)]
            .iter()
            .map(|value| bad(officer.post("/keys/n/unwrapkey", &json!({ "alg": OAEP, "value": value }))))
            .collect();
    assert_eq!(words, BTreeSet::from(["The parameter is incorrect.".to_owned()]));
    assert!(bad(officer.post("/keys/n/sign", &json!({ "alg": "RS256", "value": "AQID" }))).contains("32"));
    for path in ["/keys/n/v/release", "/keys/n/release", "/keys/n/v/securewrapkey"] {
        assert!(bad(officer.post(path, &json!({}))).ends_with("is not supported by this vault."), "{path}");
    }
    assert!(bad(officer.get("/keys/n/v/attestation")).ends_with("is not supported by this vault."));
    bad(officer.ask("PUT", "/keys/x", Some(&json!({ "key": { "kty": "RSA", "n": "AQ", "e": "AQAB" } }))));
    bad(officer.ask(
        "PUT",
        "/keys/n/rotationpolicy",
        Some(&json!({ "attributes": { "expiryTime": "P1D" } })),
    ));
}

#[test]
fn keys_come_in_pages_that_stay_right_while_the_list_changes() {
    let served = Served::new();
    for name in ["d", "b", "A", "c", "e"] {
        served.key(name);
    }
    for _ in 0..2 {
        served.key("b");
    }
    let port = served.port;
    let walk = |first: &str, between: &dyn Fn()| {
        let (mut target, mut pages) = (first.to_owned(), Vec::new());
        loop {
            let page = served.officer.raw("GET", &target, None, &[]).ok();
            let names =
                page["value"].as_array().unwrap().iter().map(|k| k["kid"].as_str().unwrap().to_owned());
            pages.push(names.collect::<Vec<_>>());
            between();
            match page["nextLink"].as_str() {
                None => return pages,
                Some(link) => {
                    target = link.strip_prefix(&format!("https://127.0.0.1:{port}")).unwrap().to_owned();
                }
            }
        }
    };
    let base = format!("https://127.0.0.1:{port}/keys/");
    let pages = walk(&format!("/keys?{VERSION}&maxresults=2"), &|| ());
    let names: Vec<Vec<&str>> =
        pages.iter().map(|p| p.iter().map(|k| k.strip_prefix(&base).unwrap()).collect()).collect();
    assert_eq!(names, [vec!["A", "b"], vec!["c", "d"], vec!["e"]]);
    let versions = walk(&format!("/keys/b/versions?{VERSION}&maxresults=1"), &|| ());
    assert_eq!(versions.len(), 3);
    assert!(versions.iter().all(|p| p.len() == 1 && p[0].starts_with(&format!("{base}b/"))), "{versions:?}");
    // The name a page ended with goes, and another comes: nothing is shown twice or left out.
    let once = std::cell::Cell::new(true);
    let pages = walk(&format!("/keys?{VERSION}&maxresults=2"), &|| {
        if once.replace(false) {
            served.officer.ask("DELETE", "/keys/b", None).ok();
        }
    });
    assert_eq!(pages.concat().len(), 5, "{pages:?}");
    for bad in ["maxresults=0", "maxresults=26", "$skiptoken=!"] {
        let target = format!("/keys?{VERSION}&{bad}");
        assert_eq!(served.officer.raw("GET", &target, None, &[]).error().0, 400, "{bad}");
    }
    let deleted = served.officer.get("/deletedkeys").ok();
    assert_eq!(deleted["value"][0]["recoveryId"], format!("https://127.0.0.1:{port}/deletedkeys/b"));
    assert_eq!(deleted["nextLink"], Value::Null);
}

#[test]
fn bundles_have_azures_members_and_no_null() {
    let served = Served::new();
    let body = json!({ "kty": "RSA", "key_size": 2048, "key_ops": ["wrapKey", "unwrapKey"], "tags": { "env": "prod" },
                       "attributes": { "enabled": true, "nbf": 1, "exp": 4_000_000_000_i64 } });
    let made = served.officer.post("/keys/n/create", &body).ok();
    assert_eq!(made["key"]["key_ops"], json!(["wrapKey", "unwrapKey"]));
    assert_eq!((&made["key"]["kty"], &made["key"]["e"]), (&"RSA".into(), &"AQAB".into()));
    assert_eq!(made["tags"], json!({ "env": "prod" }));
    let attributes = &made["attributes"];
    assert_eq!((&attributes["nbf"], &attributes["exp"]), (&1.into(), &4_000_000_000_i64.into()));
    assert_eq!(
        (&attributes["recoveryLevel"], &attributes["recoverableDays"]),
        (&"Recoverable+Purgeable".into(), &90.into())
    );
    let plain = served.officer.post("/keys/m/create", &json!({ "kty": "RSA" })).ok();
    assert_eq!(plain["key"]["key_ops"].as_array().unwrap().len(), 6);
    assert!(plain.get("tags").is_none() && plain["attributes"].get("exp").is_none(), "{plain}");
    assert_eq!(plain["key"]["n"].as_str().unwrap().len(), 342, "2048 bits, as at Azure");
    assert!(!plain.to_string().contains("null"));
    let policy = json!({ "lifetimeActions": [{ "trigger": { "timeAfterCreate": "P90D" }, "action": { "type": "rotate" } }],
                         "attributes": { "expiryTime": "P1Y" } });
    let set = served.officer.ask("PUT", "/keys/n/rotationpolicy", Some(&policy)).ok();
    assert_eq!(set["id"], format!("https://127.0.0.1:{}/keys/n/rotationpolicy", served.port));
    assert_eq!(set["lifetimeActions"][0]["action"]["type"], "Rotate");
    assert_eq!(served.officer.get("/keys/n/rotationpolicy").ok(), set);
    let rotated = served.officer.ask("POST", "/keys/n/rotate", None).ok();
    assert_ne!(rotated["key"]["kid"], made["key"]["kid"]);
    assert!(rotated["attributes"]["exp"].as_i64() > Some(1_800_000_000));
}
