//! Does `vault serve` take what the official SDKs really send (KEY-VAULT section 3, wire traps 1 to 7), and does it
//! challenge a client without a token as they expect?
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod serve_support;
mod support;

use serde_json::json;
use serve_support::{Answer, Served, VERSION};
use wrapdisk::vault::local::Permission;

const OAEP: &str = "RSA-OAEP-256";

#[test]
fn trap_1_the_name_of_a_parameter_may_be_encoded() {
    let served = Served::new();
    served.officer.raw("GET", "/keys?api%2Dversion=2025-07-01", None, &[]).ok();
    served.officer.raw("GET", "/keys?API-Version=7.6&%6daxresults=3", None, &[]).ok();
    let refused = served.officer.raw("GET", "/keys?apiversion=2025-07-01", None, &[]);
    assert_eq!(refused.error().0, 400, "{refused:?}");
}

#[test]
fn traps_2_and_3_empty_segments_and_letters_of_either_case_mean_the_latest_version() {
    let served = Served::new();
    let version = served.key("disk-kek");
    let kid = |answer: Answer| answer.ok()["key"]["kid"].as_str().unwrap().to_owned();
    let wanted = format!("https://127.0.0.1:{}/keys/disk-kek/{version}", served.port);
    for path in ["/keys/disk-kek", "/keys/disk-kek/", "/keys/DISK-kek", "/KEYS/disk-kek/"] {
        assert_eq!(kid(served.officer.get(path)), wanted, "{path}");
    }
    assert_eq!(kid(served.officer.get(&format!("/keys/disk-kek/{}", version.to_uppercase()))), wanted);
    let body = json!({ "alg": OAEP, "value": "AQID" });
    for path in [
        "/keys/disk-kek//wrapkey".to_owned(),
        "/keys/disk-kek/wrapkey".to_owned(),
        format!("/keys/disk-kek/{}/wrapKey", version.to_uppercase()),
        format!("/keys/Disk-Kek/{version}/WRAPKEY"),
    ] {
        let wrapped = served.officer.post(&path, &body).ok();
        assert_eq!(wrapped["kid"], wanted.as_str(), "{path}");
        let unwrapped = served.officer.post(
            &format!("/keys/disk-kek/{version}/unwrapkey"),
            &json!({ "alg": OAEP, "value": wrapped["value"] }),
        );
        assert_eq!(unwrapped.ok()["value"], "AQID", "{path}");
    }
}

#[test]
fn trap_4_without_a_token_everything_is_a_challenge_and_nothing_else() {
    let served = Served::new();
    let nobody = served.nobody();
    let tenant = served.vault.settings().unwrap().tenant_id;
    let wanted = format!(
        "Bearer authorization=\"https://127.0.0.1:{}/{tenant}\", resource=\"https://vault.azure.net\"",
        served.port
    );
    for (method, target, body) in [
        ("GET", "/keys/n?api-version=2025-07-01", None),
        ("POST", "/keys/n/create?api-version=2025-07-01", Some("")),
        ("POST", "/keys/n/v/unwrapkey", None),
        ("PUT", "/keys/n", Some("no json")),
        ("PATCH", "/keys/!!", Some("{}")),
        ("DELETE", "/nowhere", None),
        ("GET", "/", None),
    ] {
        let answer = nobody.raw(method, target, body, &[]);
        assert_eq!(answer.error(), (401, "Unauthorized".into(), String::new()), "{method} {target}");
        assert_eq!(answer.message(), "AKV10000: Request is missing a Bearer, PoP, or MTLS_POP token.");
        assert_eq!(answer.header("www-authenticate"), Some(wanted.as_str()), "{method} {target}");
    }
    for bad in
        ["Bearer ", "Bearer x y", "Basic dGVzdA==", "Bearer AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "x"]
    {
        let answer = nobody.raw("GET", "/keys", None, &["--header", &format!("Authorization: {bad}")]);
        assert_eq!(answer.status, 401, "{bad}");
    }
}

#[test]
fn trap_5_every_url_begins_with_the_host_that_was_dialled_and_a_foreign_one_is_refused() {
    let served = Served::new();
    served.key("a");
    served.key("b");
    let port = served.port;
    for (host, base) in [
        ("localhost".to_owned(), "https://localhost".to_owned()),
        (format!("LOCALHOST:{port}"), format!("https://localhost:{port}")),
        (format!("mine.vault.localhost:{port}"), format!("https://mine.vault.localhost:{port}")),
        ("[::1]:9".to_owned(), "https://[::1]:9".to_owned()),
    ] {
        let header = format!("Host: {host}");
        let ask = |path: &str| {
            served.officer.raw("GET", &format!("{path}{VERSION}"), None, &["--header", &header]).ok()
        };
        let starts = |value: &serde_json::Value, path: &str| {
            let text = value.as_str().unwrap();
            assert!(text.starts_with(&format!("{base}{path}")), "{host}: {text}");
        };
        starts(&ask("/keys/a?")["key"]["kid"], "/keys/a/");
        let list = ask("/keys?maxresults=1&");
        starts(&list["value"][0]["kid"], "/keys/a");
        starts(&list["nextLink"], "/keys?api-version=2025-07-01&maxresults=1&$skiptoken=");
    }
    for foreign in ["evil.example", "a.b.vault.localhost", "127.0.0.2", "a\"b", "u@localhost"] {
        let header = format!("Host: {foreign}");
        let answer = served.officer.raw("GET", &format!("/keys?{VERSION}"), None, &["--header", &header]);
        assert_eq!(answer.status, 400, "{foreign}");
    }
    served.officer.delete_and_poll("a");
}

#[test]
fn the_resource_of_the_challenge_passes_the_sdks_check_of_the_host() {
    let served = Served::new();
    for (host, resource) in [
        (format!("mine.vault.localhost:{}", served.port), format!("https://vault.localhost:{}", served.port)),
        ("mine.vault.localhost".to_owned(), "https://vault.localhost".to_owned()),
        ("localhost:1".to_owned(), "https://vault.azure.net".to_owned()),
    ] {
        let header = format!("Host: {host}");
        let ask = |client: &serve_support::Client| {
            client.raw("GET", &format!("/keys?{VERSION}"), None, &["--header", &header])
        };
        let challenge = ask(&served.nobody());
        assert_eq!(challenge.status, 401);
        let said = challenge.header("www-authenticate").unwrap().to_owned();
        assert!(said.ends_with(&format!("resource=\"{resource}\"")), "{said}");
        // A token for that resource is taken there.
        let mut officer = served.officer.clone();
        officer.token = served.token(officer.oid, &resource);
        ask(&officer).ok();
    }
    // One for another audience is not, and its owner learns why.
    let mut officer = served.officer.clone();
    officer.token = served.token(officer.oid, "https://graph.microsoft.com");
    let refused = officer.get("/keys");
    assert_eq!(refused.status, 401);
    let wanted =
        "AKV10022: Invalid audience. Expected https://vault.azure.net, found: https://graph.microsoft.com.";
    assert_eq!(refused.message(), wanted);
}

#[test]
fn trap_6_words_of_the_api_are_told_from_names_and_versions() {
    let served = Served::new();
    for name in ["restore", "versions", "create", "rng"] {
        served.key(name);
        served.officer.get(&format!("/keys/{name}")).ok();
        let versions = served.officer.get(&format!("/keys/{name}/versions")).ok();
        assert_eq!(versions["value"].as_array().unwrap().len(), 1, "{name}");
    }
    assert_eq!(served.officer.ask("POST", "/keys/restore", None).error().0, 400);
    assert_eq!(served.officer.post("/keys/restore", &json!({ "value": "AQID" })).error().0, 400);
    served.officer.get("/keys/create/rotationpolicy").ok();
}

#[test]
fn trap_6_a_deletion_is_visible_at_once_to_those_who_poll_for_it() {
    let served = Served::new();
    served.key("a");
    served.officer.delete_and_poll("a");
    served.officer.ask("POST", "/deletedkeys/a/recover", None).ok();
    served.officer.get("/keys/a/").ok();
    assert_eq!(served.officer.get("/deletedkeys/a").error().0, 404);
}

#[test]
fn every_answer_has_azures_headers() {
    let served = Served::new();
    let reader = served.client(&[Permission::Get]);
    let id = "7a1d5a0e-6d6b-4d0e-9f0e-0a3c2c9d1f10";
    let header = format!("x-ms-client-request-id: {id}");
    let target = format!("/keys/none?{VERSION}");
    let mut ids = Vec::new();
    for answer in [
        served.officer.raw("GET", &format!("/keys?{VERSION}"), None, &["--header", &header]),
        reader.raw("GET", &target, None, &["--header", &header]),
        served.nobody().raw("GET", &target, None, &["--header", &header]),
    ] {
        for (name, value) in [
            ("content-type", "application/json; charset=utf-8"),
            ("cache-control", "no-cache"),
            ("pragma", "no-cache"),
            ("expires", "-1"),
            ("x-ms-keyvault-region", "local"),
            ("x-ms-keyvault-network-info", "conn_type=Ipv4;addr=127.0.0.1;act_addr_fam=InterNetwork;"),
            ("strict-transport-security", "max-age=31536000;includeSubDomains"),
            ("x-ms-client-request-id", id),
        ] {
            assert_eq!(answer.header(name), Some(value), "{name}: {answer:?}");
        }
        assert_eq!(answer.header("content-length").unwrap(), answer.text.len().to_string());
        assert!(answer.header("x-ms-keyvault-service-version").is_some() && answer.header("date").is_some());
        ids.push(answer.header("x-ms-request-id").unwrap().to_owned());
    }
    ids.dedup();
    assert_eq!(ids.len(), 3);
    // It is also what ties the client's log to the audit.
    let records = served.vault.audit(&wrapdisk::vault::local::AuditFilter::default()).unwrap();
    let mine =
        records.iter().map(wrapdisk::vault::local::AuditRecord::value).filter(|r| r["correlationId"] == id);
    let mine: Vec<_> = mine.collect();
    assert_eq!(mine.len(), 2, "{mine:?}");
    assert_eq!(mine[0]["callerIpAddress"], "127.0.0.1");
    assert_eq!(mine[0]["properties"]["tlsVersion"], "TLS1_3");
    assert!(mine[0]["properties"]["clientInfo"].as_str().unwrap().starts_with("curl/"));
}
