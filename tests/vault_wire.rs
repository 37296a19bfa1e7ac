//! Is a request understood as Azure's clients mean it, whatever they encode, leave empty or write in other letters; and is
//! everything else refused without quoting what may be a secret?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use wrapdisk::envelope::KeyRef;
use wrapdisk::vault::KeyOperation;
use wrapdisk::vault::wire::body::{CreateKey, ImportKey, UpdateKey, UseKey, VerifyKey, random, restore};
use wrapdisk::vault::wire::{Page, Place, Query, Route, SignInPlace, Unroutable, place};

fn n() -> String {
    "n".to_owned()
}

fn key(version: &str) -> KeyRef {
    KeyRef { name: n(), version: (!version.is_empty()).then(|| version.to_owned()) }
}

#[track_caller]
fn leads(method: &str, path: &str, to: Route) {
    assert_eq!(place(method, path), Place::Vault(Ok(to)), "{method} {path}");
}

#[test]
fn every_path_of_the_api_leads_where_it_must() {
    for (method, path, to) in [
        ("POST", "/keys/n/create", Route::Create(n())),
        ("PUT", "/keys/n", Route::Import(n())),
        ("GET", "/keys/n", Route::Get(key(""))),
        ("GET", "/keys/n/abc", Route::Get(key("abc"))),
        ("PATCH", "/keys/n", Route::Update(key(""))),
        ("PATCH", "/keys/n/abc", Route::Update(key("abc"))),
        ("GET", "/keys", Route::List),
        ("GET", "/keys/n/versions", Route::ListVersions(n())),
        ("POST", "/keys/n/rotate", Route::Rotate(n())),
        ("GET", "/keys/n/rotationpolicy", Route::GetPolicy(n())),
        ("PUT", "/keys/n/rotationpolicy", Route::SetPolicy(n())),
        ("POST", "/keys/n/abc/encrypt", Route::Use(KeyOperation::Encrypt, key("abc"))),
        ("POST", "/keys/n/abc/decrypt", Route::Use(KeyOperation::Decrypt, key("abc"))),
        ("POST", "/keys/n/abc/sign", Route::Use(KeyOperation::Sign, key("abc"))),
        ("POST", "/keys/n/abc/verify", Route::Use(KeyOperation::Verify, key("abc"))),
        ("POST", "/keys/n/abc/wrapkey", Route::Use(KeyOperation::WrapKey, key("abc"))),
        ("POST", "/keys/n/abc/unwrapkey", Route::Use(KeyOperation::UnwrapKey, key("abc"))),
        ("POST", "/keys/n/backup", Route::Backup(n())),
        ("POST", "/keys/restore", Route::Restore),
        ("DELETE", "/keys/n", Route::Delete(n())),
        ("GET", "/deletedkeys", Route::ListDeleted),
        ("GET", "/deletedkeys/n", Route::GetDeleted(n())),
        ("POST", "/deletedkeys/n/recover", Route::Recover(n())),
        ("DELETE", "/deletedkeys/n", Route::Purge(n())),
        ("POST", "/rng", Route::Random),
        ("POST", "/keys/n/abc/release", Route::Unsupported("Secure key release")),
        ("GET", "/keys/n/abc/attestation", Route::Unsupported("Key attestation")),
    ] {
        leads(method, path, to);
    }
    for (method, path, to) in [
        ("GET", "/t/v2.0/.well-known/openid-configuration", SignInPlace::Configuration),
        ("POST", "/t/oauth2/v2.0/token", SignInPlace::Token),
        ("GET", "/t/discovery/v2.0/keys", SignInPlace::SigningKeys),
    ] {
        assert_eq!(place(method, path), Place::SignIn(Ok(to)), "{path}");
    }
}

#[test]
fn the_traps_of_the_paths_are_known() {
    let wrap = |version| Route::Use(KeyOperation::WrapKey, key(version));
    leads("GET", "/keys/n/", Route::Get(key("")));
    leads("PATCH", "/keys/n/", Route::Update(key("")));
    leads("POST", "/keys/n//wrapkey", wrap(""));
    leads("POST", "/keys/n/wrapkey", wrap(""));
    leads("POST", "/keys/n/ABCdef/wrapKey", wrap("abcdef"));
    leads("POST", "/keys/n/abc/WRAPKEY", wrap("abc"));
    leads("GET", "/Keys/n/Versions", Route::ListVersions(n()));
    leads("GET", "/keys/", Route::List);
    // A name that is a word of the API.
    leads("GET", "/keys/restore", Route::Get(KeyRef { name: "restore".into(), version: None }));
    leads("PUT", "/keys/restore", Route::Import("restore".into()));
    leads("POST", "/keys/create/create", Route::Create("create".into()));
    // An encoded slash is part of the name, and makes it invalid later; dots are no way up.
    leads("GET", "/keys/a%2Fb", Route::Get(KeyRef { name: "a/b".into(), version: None }));
    leads("GET", "/keys/../rng", Route::Get(KeyRef { name: "..".into(), version: Some("rng".into()) }));
    leads("GET", "/keys/%6E", Route::Get(key("")));
}

#[test]
fn what_is_not_there_and_what_is_asked_with_the_wrong_verb_are_told_apart() {
    for (method, path, why) in [
        ("GET", "/", Unroutable::NotFound),
        ("GET", "", Unroutable::NotFound),
        ("GET", "/secrets/n", Unroutable::NotFound),
        ("POST", "/keys/n/abc/frobnicate", Unroutable::NotFound),
        ("GET", "/keys/n/abc/wrapkey/x", Unroutable::NotFound),
        ("GET", "/deletedkeys/n/versions", Unroutable::NotFound),
        ("GET", "/keys/n/abc/wrapkey", Unroutable::Method("POST")),
        ("GET", "/keys/n/wrapkey", Unroutable::Method("POST")),
        ("DELETE", "/keys", Unroutable::Method("GET")),
        ("POST", "/keys/n/versions", Unroutable::Method("GET")),
        ("GET", "/keys/n/create", Unroutable::Method("POST")),
        ("DELETE", "/keys/n/rotationpolicy", Unroutable::Method("GET, PUT")),
        ("POST", "/keys/n", Unroutable::Method("GET, PUT, PATCH, DELETE")),
        ("get", "/keys/n", Unroutable::Method("GET, PUT, PATCH, DELETE")),
        ("POST", "/keys/n/abc", Unroutable::Method("GET, PATCH")),
        ("POST", "/deletedkeys/n", Unroutable::Method("GET, DELETE")),
        ("GET", "/rng", Unroutable::Method("POST")),
    ] {
        assert_eq!(place(method, path), Place::Vault(Err(why)), "{method} {path}");
    }
    assert_eq!(place("GET", "/t/oauth2/v2.0/token"), Place::SignIn(Err(Unroutable::Method("POST"))));
}

#[test]
fn every_version_of_the_api_is_taken_and_nothing_else() {
    for good in [
        "7.0",
        "7.6",
        "7.10",
        "2016-10-01",
        "2025-07-01",
        "2026-04-01",
        "7.6-preview.2",
        "2027-01-01-preview",
    ] {
        assert_eq!(Query::parse(&format!("api-version={good}")).api_version(), Ok(good));
        // JS encodes the name as well.
        assert_eq!(Query::parse(&format!("api%2Dversion={good}&x=y")).api_version(), Ok(good));
    }
    for bad in [
        "",
        "7",
        "7.",
        "8.0",
        "7.x",
        "2025-7-1",
        "2025-07-01-previe",
        "7.5-preview.",
        "2025-07-01-preview.x",
        "x7.5",
    ] {
        assert!(Query::parse(&format!("api-version={bad}")).api_version().is_err(), "{bad:?}");
    }
    assert!(Query::parse("").api_version().is_err());
}

#[test]
fn a_page_is_bounded_and_its_link_is_taken_back() {
    let page = |query: &str| Query::parse(query).page();
    assert_eq!(page("").unwrap(), Page { after: None, limit: 25 });
    assert_eq!(page("maxresults=1").unwrap().limit, 1);
    for bad in ["0", "26", "-1", "", "x", "1.0", "99999999999999999999"] {
        assert!(page(&format!("maxresults={bad}")).is_err(), "{bad:?}");
    }
    for bad in ["!", "", "Yi9j", "_w", "Li4"] {
        assert!(page(&format!("$skiptoken={bad}")).is_err(), "{bad:?}");
    }
    let query = Query::parse("api-version=7.5&maxresults=7&foo=bar");
    let link = query.next("disk-kek").unwrap();
    assert_eq!(link, "?api-version=7.5&maxresults=7&$skiptoken=ZGlzay1rZWs");
    assert_eq!(page(&link[1..]).unwrap(), Page { after: Some("disk-kek".into()), limit: 7 });
    assert_eq!(page(&link[1..].replace('$', "%24")).unwrap().after.unwrap(), "disk-kek");
}

#[test]
fn bodies_are_read_as_the_sdks_write_them() {
    let create = br#"{"kty":"RSA","key_size":2048,"public_exponent":65537,"key_ops":["wrapKey","unwrapkey","wrapKey"],
        "attributes":{"enabled":false,"nbf":1,"exp":2,"exportable":false},"tags":{"a":"b"},"crv":null,"x":[{}]}"#;
    let create = CreateKey::parse(create).unwrap();
    assert_eq!((create.size, create.exponent), (Some(2048), Some(65537)));
    assert_eq!(create.operations, Some(vec![KeyOperation::WrapKey, KeyOperation::UnwrapKey]));
    assert_eq!((create.attributes.enabled, create.attributes.expires), (Some(false), Some(2)));
    assert_eq!(create.tags.unwrap()["a"], "b");
    let import =
        br#"{"Hsm":false,"key":{"kty":"RSA","n":"AQAB","key_ops":["sign"]},"attributes":{"enabled":true}}"#;
    let import = ImportKey::parse(import).unwrap();
    assert_eq!(import.jwk, br#"{"kty":"RSA","n":"AQAB","key_ops":["sign"]}"#);
    assert_eq!(import.operations, Some(vec![KeyOperation::Sign]));
    let update = UpdateKey::parse(br#"{"attributes":{"enabled":null},"tags":null}"#).unwrap();
    assert_eq!((update.attributes.enabled, update.tags, update.operations), (None, None, None));
    for padded in
        [&br#"{"alg":"RSA-OAEP-256","value":"AQID"}"#[..], br#"{"alg":"RSA-OAEP-256","value":"AQ\u0049D"}"#]
    {
        assert_eq!(UseKey::parse(padded).unwrap().value.expose(), [1, 2, 3]);
    }
    assert_eq!(UseKey::parse(br#"{"alg":"RS256","value":"_-8="}"#).unwrap().value.expose(), [0xff, 0xef]);
    let verify = VerifyKey::parse(br#"{"alg":"PS256","digest":"AQ","value":"Ag"}"#).unwrap();
    assert_eq!((verify.digest.expose(), verify.value.expose()), (&[1][..], &[2][..]));
    assert_eq!(restore(br#"{"value":"AQID"}"#).unwrap().expose(), [1, 2, 3]);
    assert_eq!(random(br#"{"count":128}"#), Ok(128));
}

#[test]
fn bodies_that_are_wrong_are_refused_without_quoting_them() {
    let create = |body: &str| CreateKey::parse(body.as_bytes()).unwrap_err().0;
    assert_eq!(create(""), "The request body is missing.");
    assert_eq!(create("{}"), "kty is missing.");
    assert_eq!(create(r#"{"kty":"EC"}"#), "Keys of kty \"EC\" are not supported by this vault.");
    assert!(create(r#"{"kty":"RSA","release_policy":{}}"#).contains("release"));
    assert!(create(r#"{"kty":"RSA","key_ops":["deriveKey"]}"#).contains("deriveKey"));
    assert!(create(r#"{"kty":"RSA","attributes":{"exportable":true}}"#).contains("xportable"));
    assert!(create(r#"{"kty":"RSA","attributes":{"exp":-1}}"#).contains("unix seconds"));
    let many: Vec<_> = (0..16).map(|n| format!("\"{n}\":\"\"")).collect();
    assert!(create(&format!("{{\"kty\":\"RSA\",\"tags\":{{{}}}}}", many.join(","))).contains("allowed 15"));
    assert!(
        create(&format!("{{\"kty\":\"RSA\",\"tags\":{{\"a\":\"{}\"}}}}", "v".repeat(257))).contains("256")
    );
    for secret in [
        r#"{"key_size":"hunter2"}"#,
        r#"{"kty":hunter2}"#,
        r#"["hunter2"]"#,
        r#"{"kty":"RSA","tags":{"a":["hunter2"]}}"#,
    ] {
        let said = create(secret);
        assert!(said.starts_with("The request body is not the JSON") && !said.contains("hunter2"), "{said}");
    }
    assert!(create(&"[".repeat(60_000)).starts_with("The request body is not"));
    assert!(ImportKey::parse(br#"{"Hsm":true,"key":{}}"#).unwrap_err().0.contains("HSM"));
    assert_eq!(ImportKey::parse(b"{}").unwrap_err().0, "key is missing.");
    assert_eq!(UseKey::parse(br#"{"value":"AQ"}"#).unwrap_err().0, "alg is missing.");
    assert_eq!(UseKey::parse(br#"{"alg":"x","value":"hunter 2"}"#).unwrap_err().0, "value is not base64url.");
    assert_eq!(UseKey::parse(br#"{"alg":"x","value":"+/8="}"#).unwrap_err().0, "value is not base64url.");
    for bad in [&b"{}"[..], br#"{"count":0}"#, br#"{"count":129}"#, br#"{"count":-1}"#, br#"{"count":1.5}"#] {
        assert!(random(bad).is_err());
    }
}
