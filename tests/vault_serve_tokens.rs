//! Can a client sign in as the SDKs do: as a managed identity (App Service and IMDS) and with a client secret (Entra); and
//! does nobody get a token otherwise?
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod serve_support;
mod support;

use std::process::Command;

use serde_json::Value;
use serve_support::{Answer, Served};
use support::{Home, WRAPDISK, finish};
use uuid::Uuid;
use wrapdisk::vault::local::{AuditFilter, AuditRecord, CredentialKind, IdentityKind, Permission};

const AUDIENCE: &str = "https%3A%2F%2Fvault.azure.net";

struct Person {
    oid: Uuid,
    client_id: String,
    name: String,
    secret: String,
}

fn person(served: &Served, kind: CredentialKind) -> Person {
    let vault = &served.vault;
    let call = vault.admin("test");
    let name = format!("p{}", Uuid::new_v4().simple());
    let oid = vault.create_identity(&name, IdentityKind::User, &call).unwrap();
    vault
        .grant(oid, wrapdisk::vault::local::Grant::Permissions(vec![Permission::List]), None, &call)
        .unwrap();
    let secret = vault.add_credential(oid, kind, None, None, &call).unwrap();
    let client_id = vault.find_identity(&name, &call).unwrap().client_id.to_string();
    Person { oid, client_id, name, secret: String::from_utf8(secret.expose().to_vec()).unwrap() }
}

/// Over plain http, from the token endpoint.
fn plain(served: &Served, target: &str, headers: &[String]) -> Answer {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--include", "--max-time", "60"]);
    for header in headers {
        curl.args(["--header", header]);
    }
    let done = finish(curl.arg(format!("http://127.0.0.1:{}{target}", served.token_port)));
    Answer::parse(&done.out)
}

fn header(secret: &str) -> Vec<String> {
    vec![format!("X-IDENTITY-HEADER: {secret}")]
}

/// A form to the Entra endpoint.
fn form(served: &Served, form: &str) -> Answer {
    let more = ["--header", "Content-Type: application/x-www-form-urlencoded"];
    served.nobody().raw("POST", "/some-tenant/oauth2/v2.0/token", Some(form), &more)
}

#[track_caller]
fn works(served: &Served, answer: &Value) {
    let mut client = served.nobody();
    client.token = answer["access_token"].as_str().unwrap().to_owned();
    client.get("/keys").ok();
    assert_eq!(
        client.post("/keys/n/create", &serde_json::json!({ "kty": "RSA" })).error().2,
        "ForbiddenByPolicy"
    );
}

#[test]
fn app_service_gives_a_token_for_the_identity_of_the_header() {
    let served = Served::new();
    let who = person(&served, CredentialKind::IdentityHeader);
    let target = format!("/msi/token?api-version=2019-08-01&resource={AUDIENCE}");
    // The SDKs may send Metadata as well.
    let headers = [header(&who.secret), vec!["Metadata: true".to_owned()]].concat();
    for hint in [String::new(), format!("&client_id={}", who.client_id), format!("&principal_id={}", who.oid)]
    {
        let token = plain(&served, &format!("{target}{hint}"), &headers).ok();
        assert_eq!(token["token_type"], "Bearer");
        assert_eq!(token["resource"], "https://vault.azure.net");
        assert_eq!(token["client_id"], who.client_id.as_str());
        let expires: i64 = token["expires_on"].as_str().unwrap().parse().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let left = expires - i64::try_from(now).unwrap();
        assert!((3300..=3600).contains(&left), "{left}");
        works(&served, &token);
    }
    let other = person(&served, CredentialKind::ClientSecret);
    for (target, headers, status) in [
        (format!("{target}&client_id={}", other.client_id), header(&who.secret), 400),
        (target.clone(), header("no such secret, but long enough"), 400),
        (target.clone(), header(&other.secret), 400),
        (target, Vec::new(), 401),
        (format!("/msi/token?resource={AUDIENCE}"), header(&who.secret), 400),
        (format!("/msi/token?api-version=1&resource={AUDIENCE}"), header(&who.secret), 400),
        ("/msi/token?api-version=2019-08-01".into(), header(&who.secret), 400),
        ("/msi/token?api-version=2019-08-01&resource=https://evil.example".into(), header(&who.secret), 400),
        ("/keys?api-version=7.6".into(), header(&who.secret), 404),
    ] {
        let answer = plain(&served, &target, &headers);
        assert_eq!(answer.status, status, "{target}: {answer:?}");
        assert!(!answer.text.contains("access_token"));
    }
}

#[test]
fn imds_is_there_only_when_an_identity_was_named_for_it() {
    let target = format!("/metadata/identity/oauth2/token?api-version=2018-02-01&resource={AUDIENCE}");
    let metadata = || vec!["Metadata: true".to_owned()];
    let served = Served::new();
    assert_eq!(plain(&served, &target, &metadata()).status, 404);
    drop(served);

    let home = Home::new();
    home.wrapdisk(["vault", "init", "test"]).ok();
    let vault = wrapdisk::vault::local::LocalVault::open(&home.path("home/state")).unwrap();
    let call = vault.admin("test");
    let oid = vault.create_identity("vm", IdentityKind::User, &call).unwrap();
    vault
        .grant(oid, wrapdisk::vault::local::Grant::Permissions(vec![Permission::List]), None, &call)
        .unwrap();
    let served = Served::over(home, &["--imds", "vm"]);
    let token = plain(&served, &target, &metadata()).ok();
    assert_eq!(token["expires_in"], "3600");
    let (from, until) = (&token["not_before"], &token["expires_on"]);
    let number = |v: &Value| v.as_str().unwrap().parse::<i64>().unwrap();
    assert_eq!(number(until) - number(from), 3600);
    works(&served, &token);
    plain(&served, &format!("{target}&client_id={oid}"), &metadata()).ok();
    plain(&served, &target.replace("2018-02-01", "2019-08-01"), &metadata()).ok();
    let forwarded = [metadata(), vec!["X-Forwarded-For: 10.0.0.1".to_owned()]].concat();
    for (target, headers) in [
        (target.clone(), Vec::new()),
        (target.clone(), forwarded),
        (format!("{target}&client_id={}", Uuid::new_v4()), metadata()),
    ] {
        let answer = plain(&served, &target, &headers);
        assert_eq!((answer.status, &answer.json()["error"]), (400, &"invalid_request".into()), "{target}");
    }
}

#[test]
fn entra_says_where_its_endpoints_are_and_takes_a_client_secret() {
    let served = Served::new();
    let who = person(&served, CredentialKind::ClientSecret);
    let base = format!("https://127.0.0.1:{}/my-tenant", served.port);
    let configuration =
        served.nobody().raw("GET", "/my-tenant/v2.0/.well-known/openid-configuration", None, &[]).ok();
    for (member, value) in [
        ("issuer", format!("{base}/v2.0")),
        ("authorization_endpoint", format!("{base}/oauth2/v2.0/authorize")),
        ("token_endpoint", format!("{base}/oauth2/v2.0/token")),
        ("jwks_uri", format!("{base}/discovery/v2.0/keys")),
        ("tenant_region_scope", "WW".to_owned()),
    ] {
        assert_eq!(configuration[member], value.as_str(), "{member}");
    }
    served.nobody().raw("GET", "/my-tenant/discovery/v2.0/keys", None, &[]).ok();

    let scope = format!("scope={AUDIENCE}%2F.default");
    let good = |client: &str, secret: &str| {
        format!(
            "grant_type=client_credentials&client_info=1&claims=x&client_id={client}&client_secret={secret}&{scope}"
        )
    };
    for client in [&who.client_id, &who.name, &who.client_id.to_uppercase()] {
        let token = form(&served, &good(client, &who.secret)).ok();
        assert_eq!(token["token_type"], "Bearer");
        assert_eq!((&token["expires_in"], &token["ext_expires_in"]), (&3599.into(), &3599.into()));
        works(&served, &token);
    }
    let more = format!("scope=openid+{AUDIENCE}%2F.default+offline_access");
    form(&served, &good(&who.client_id, &who.secret).replace(&scope, &more)).ok();
    for (text, status, error) in [
        (good(&who.client_id, "wrong-secret-wrong-secret"), 401, "invalid_client"),
        (good("nobody", &who.secret), 401, "invalid_client"),
        (good(&who.client_id, &who.secret).replace("client_secret", "x"), 401, "invalid_client"),
        (
            good(&who.client_id, &who.secret).replace("client_credentials", "password"),
            400,
            "unsupported_grant_type",
        ),
        (good(&who.client_id, &who.secret).replace("grant_type", "x"), 400, "invalid_request"),
        (
            good(&who.client_id, &who.secret).replace(&scope, "scope=https%3A%2F%2Fevil.example%2F.default"),
            400,
            "invalid_scope",
        ),
        (String::new(), 400, "invalid_request"),
    ] {
        let answer = form(&served, &text);
        assert_eq!((answer.status, answer.json()["error"].as_str().unwrap()), (status, error), "{answer:?}");
        assert_eq!(answer.json()["error_codes"].as_array().unwrap().len(), 1);
    }
    let wrong = form(&served, &good(&who.client_id, "wrong-secret-wrong-secret"));
    let said = "AADSTS7000215: Invalid client secret provided.";
    assert_eq!(wrong.json()["error_description"], said);
}

#[test]
fn who_guesses_secrets_is_slowed_and_all_of_it_is_on_record() {
    let served = Served::new();
    let who = person(&served, CredentialKind::ClientSecret);
    let guess = |n: u32| {
        let secret = format!("guess-number-{n}-of-many");
        let id = &who.client_id;
        form(
            &served,
            &format!(
                "grant_type=client_credentials&client_id={id}&client_secret={secret}&scope={AUDIENCE}%2F.default"
            ),
        )
    };
    let statuses: Vec<_> = (0..12).map(|n| guess(n).status).collect();
    assert_eq!((statuses[0], *statuses.last().unwrap()), (401, 429), "{statuses:?}");
    let records = served.vault.audit(&AuditFilter::default()).unwrap();
    let failed = |r: &Value| {
        r["operationName"] == "Authentication"
            && r["properties"]["httpStatusCode"] == 401
            && r["callerIpAddress"] == "127.0.0.1"
    };
    let failures = records.iter().map(AuditRecord::value).filter(failed).count();
    assert_eq!(failures, statuses.iter().filter(|s| **s == 401).count());
    let all: String = records.iter().map(|r| r.json.as_str()).collect();
    assert!(!all.contains("guess-number") && !all.contains(&who.secret));
}

#[test]
fn who_is_disabled_or_loses_his_grant_is_refused_with_the_token_he_has() {
    let served = Served::new();
    let call = served.vault.admin("test");
    let reader = served.client(&[Permission::List]);
    reader.get("/keys").ok();
    served.vault.set_identity_enabled(reader.oid, false, &call).unwrap();
    assert_eq!(reader.get("/keys").error(), (403, "Forbidden".into(), "ForbiddenByPolicy".into()));
    served.vault.set_identity_enabled(reader.oid, true, &call).unwrap();
    reader.get("/keys").ok();
    let list = wrapdisk::vault::local::Grant::Permissions(vec![Permission::List]);
    served.vault.revoke(reader.oid, list, None, &call).unwrap();
    assert_eq!(reader.get("/keys").error().0, 403);
}

#[test]
fn tokens_are_never_given_over_plain_http_to_a_network() {
    let home = Home::new();
    home.wrapdisk(["vault", "init"]).ok();
    for address in ["0.0.0.0:0", "192.0.2.1:0", "[::]:0"] {
        let mut serve = Command::new(WRAPDISK);
        serve.args(["vault", "serve", "--listen", "127.0.0.1:0", "--token-listen", address]);
        let said = finish(serve.env("WRAPDISK_HOME", home.path("home"))).fails(1);
        assert!(said.contains("allowed loopback"), "{said}");
    }
    let said = home.wrapdisk(["vault", "serve", "--imds", "vm"]).fails(2);
    assert!(said.contains("--token-listen"), "{said}");
    let nobody =
        ["vault", "serve", "--listen", "127.0.0.1:0", "--token-listen", "127.0.0.1:0", "--imds", "nobody"];
    let said = home.wrapdisk(nobody).fails(1);
    assert!(said.contains("nobody"), "{said}");
}
