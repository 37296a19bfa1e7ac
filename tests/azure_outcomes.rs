//! Does each answer of a vault mean what the table of KEY-VAULT section 1 says? Our provider, over TLS, against a server
//! that answers as it is told.
#![cfg(all(feature = "azure", feature = "serve"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use wrapdisk::envelope::{KeyRef, Kid, WrapAlg, WrappedDek};
use wrapdisk::error::{Error, ErrorKind};
use wrapdisk::secret::Secret;
use wrapdisk::vault::azure::AzureVault;
use wrapdisk::vault::{KeyOperation, KeyVault, VaultError};

mod azure_support;

use azure_support::{
    Answer, Certificate, Request, SECRET, Server, TOKEN, VERSION, bundle, call, dek, result, well, wrapped,
};

/// The class of an error, in words that a table can hold.
fn class(e: &VaultError) -> String {
    match e {
        VaultError::Denied(denial, _) => format!("{denial:?}"),
        VaultError::Transient { .. } => "Transient".into(),
        VaultError::Auth(_) => "Auth".into(),
        VaultError::Corrupt(_) => "Corrupt".into(),
        VaultError::Rejected { code, .. } => (*code).to_owned(),
    }
}

fn unwrap_class(server: &Server, answer: Answer) -> String {
    server.always(answer);
    let vault = server.vault().without_retry();
    class(&vault.unwrap(&wrapped(server.kid()), &call()).unwrap_err())
}

#[test]
fn an_answer_to_unwrap_means_what_the_table_says() {
    let server = Server::new(Certificate::Good);
    for (status, code, inner, expected) in [
        (403, "Forbidden", Some("KeyDisabled"), "Disabled"),
        (403, "Forbidden", Some("ForbiddenByPolicy"), "NoPermission"),
        (403, "Forbidden", Some("AccessDenied"), "NoPermission"),
        (403, "Forbidden", Some("ForbiddenByRbac"), "NoPermission"),
        (403, "Forbidden", Some("KeyOperationForbidden"), "NoPermission"),
        (403, "Forbidden", Some("SomethingNew"), "NoPermission"),
        (403, "Forbidden", None, "NoPermission"),
        (403, "Forbidden", Some("ForbiddenByFirewall"), "Firewall"),
        (403, "Forbidden", Some("ForbiddenByConnection"), "Firewall"),
        (404, "KeyNotFound", None, "Deleted"),
        (409, "Conflict", Some("ObjectIsDeletedButRecoverable"), "Deleted"),
        (409, "Conflict", Some("ObjectIsBeingDeleted"), "Deleted"),
        (400, "BadParameter", None, "Corrupt"),
        (401, "Unauthorized", None, "Auth"),
        (408, "RequestTimeout", None, "Transient"),
        (429, "Throttled", None, "Transient"),
        (500, "InternalError", None, "Transient"),
        (502, "BadGateway", None, "Transient"),
        (503, "ServiceUnavailable", None, "Transient"),
        (504, "GatewayTimeout", None, "Transient"),
        // Key Vault's form, but nothing that Key Vault says.
        (403, "SomebodyElse", Some("KeyDisabled"), "Transient"),
        (404, "NotFound", None, "Transient"),
        (409, "Conflict", None, "Transient"),
        (400, "InvalidRequest", None, "Transient"),
        (405, "MethodNotAllowed", None, "Transient"),
    ] {
        let found = unwrap_class(&server, Answer::error(status, code, inner));
        assert_eq!(found, expected, "{status} {code} {inner:?}");
    }
}

#[test]
fn what_is_no_error_of_key_vault_denies_nothing() {
    let server = Server::new(Certificate::Good);
    let page = "<html><body>403: your administrator does not allow this page</body></html>";
    let long = format!(r#"{{"error":{{"code":"Forbidden","message":"{}"}}}}"#, "x".repeat(20_000));
    for status in [301, 302, 400, 401, 403, 404, 407, 409, 418, 500] {
        for body in
            [page, "", "{}", "[]", "null", r#"{"error":"Forbidden"}"#, r#"{"error":{"code":403}}"#, &long]
        {
            let answer = Answer::new(status, body).with("Location", "https://127.0.0.1:1/");
            assert_eq!(unwrap_class(&server, answer), "Transient", "{status} {body:.60}");
        }
    }
    // The form of JavaScript's client is read as well.
    let body = r#"{"error":{"code":"Forbidden","message":"m","innerError":{"code":"KeyDisabled"}}}"#;
    assert_eq!(unwrap_class(&server, Answer::new(403, body)), "Disabled");
}

#[test]
fn a_success_counts_only_if_it_is_about_the_key_and_of_the_right_length() {
    let server = Server::new(Certificate::Good);
    let kid = server.kid();
    let good = kid.as_str();
    for (kid, value, expected) in [
        (good.to_owned(), &dek()[..63], "Corrupt"),
        (good.to_owned(), &[&dek()[..], &[0]].concat(), "Corrupt"),
        (good.to_owned(), &[], "Corrupt"),
        (good.replace(VERSION, "ffffffffffffffffffffffffffffffff"), &dek(), "Corrupt"),
        (good.replace("/kek/", "/other/"), &dek(), "Corrupt"),
        (good.replace("127.0.0.1", "127.0.0.2"), &dek(), "Corrupt"),
        (good.replace(&format!("/{VERSION}"), ""), &dek(), "Corrupt"),
        (String::new(), &dek(), "Corrupt"),
    ] {
        assert_eq!(unwrap_class(&server, result(&kid, value)), expected, "{kid}, {} bytes", value.len());
    }
    for garbage in ["", "{", "<html>", "[]", "7", r#"{"kid":7}"#, r#"{"value":"!!!"}"#] {
        let found = unwrap_class(&server, Answer::new(200, garbage));
        assert!(["Transient", "Corrupt"].contains(&found.as_str()), "{garbage}: {found}");
    }
    assert_eq!(unwrap_class(&server, Answer::new(200, vec![b' '; 1 << 20])), "Transient", "too long");
    // Negative: names and versions have no case, and that is all the difference there may be.
    server.always(result(&good.replace("/kek/", "/KEK/").replace(VERSION, &VERSION.to_uppercase()), &dek()));
    let dek_again = server.vault().unwrap(&wrapped(kid), &call()).unwrap();
    assert_eq!(dek_again.expose(), &dek());
}

#[test]
fn a_wrap_of_another_length_or_key_is_corrupt() {
    let server = Server::new(Certificate::Good);
    let dek = Secret::take(&mut dek()).unwrap().unwrap();
    let wrap = |answer: Option<Answer>| {
        server.answers(move |request| answer.clone().unwrap_or_else(|| well(request)));
        server.vault().without_retry().wrap(&server.kid(), WrapAlg::RsaOaep256, &dek, &call())
    };
    assert_eq!(wrap(None).unwrap(), wrapped(server.kid()));
    let kid = server.kid();
    for answer in [
        result(kid.as_str(), &[7; 255]),
        result(kid.as_str(), &[]),
        result(&kid.as_str().replace("/kek/", "/other/"), &[7; 256]),
    ] {
        assert_eq!(class(&wrap(Some(answer)).unwrap_err()), "Corrupt");
    }
    assert_eq!(class(&wrap(Some(Answer::error(400, "BadParameter", None))).unwrap_err()), "BadParameter");
}

#[test]
fn a_wrap_refused_outside_the_keys_window_is_expired_and_an_unwrap_never_is() {
    let server = Server::new(Certificate::Good);
    let dek = Secret::<64>::random().unwrap();
    for (attributes, expected) in [
        (serde_json::json!({ "enabled": true, "exp": 1 }), "Expired"),
        (serde_json::json!({ "enabled": true, "nbf": 32_503_680_000_i64 }), "Expired"),
        (serde_json::json!({ "enabled": true, "nbf": 1, "exp": 32_503_680_000_i64 }), "NoPermission"),
    ] {
        server.answers(move |request| match request.method.as_str() {
            "GET" => bundle(&request.kid(), &attributes),
            _ => Answer::error(403, "Forbidden", None),
        });
        let vault = server.vault().without_retry();
        let e = vault.wrap(&server.kid(), WrapAlg::RsaOaep256, &dek, &call()).unwrap_err();
        assert_eq!(class(&e), expected, "{e}");
        let e = vault.unwrap(&wrapped(server.kid()), &call()).unwrap_err();
        assert_eq!(class(&e), "NoPermission", "{e}");
    }
}

#[test]
fn a_key_is_described_as_it_is() {
    let server = Server::new(Certificate::Good);
    let latest = KeyRef::parse("kek").unwrap();
    let info = server.vault().describe(&latest, &call()).unwrap();
    assert_eq!(info.kid, server.kid());
    assert_eq!((info.bits, info.enabled, info.created, info.updated), (3072, true, 1, 2));
    assert_eq!(info.operations, [KeyOperation::WrapKey, KeyOperation::UnwrapKey], "import is none of ours");
    assert_eq!(info.tags["env"], "test");
    let describe = |change: fn(&mut serde_json::Value)| {
        server.answers(move |request| {
            let mut value: serde_json::Value = serde_json::from_slice(&well(request).body).unwrap();
            change(&mut value);
            Answer::json(200, &value)
        });
        server.vault().without_retry().describe(&latest, &call()).map_err(|e| class(&e))
    };
    assert_eq!(describe(|v| v["key"]["kty"] = "EC".into()).unwrap_err(), "BadParameter");
    assert_eq!(describe(|v| v["key"]["n"] = "AQAB".into()).unwrap_err(), "BadParameter");
    assert_eq!(describe(|v| v["key"]["kid"] = "https://x/keys/kek/1".into()).unwrap_err(), "Corrupt");
    assert_eq!(describe(|v| v["attributes"] = serde_json::Value::Null).unwrap_err(), "Corrupt");
    assert!(!describe(|v| v["attributes"]["enabled"] = false.into()).unwrap().enabled);
    assert_eq!(describe(|v| v["key"]["kty"] = "RSA".into()).unwrap().bits, 3072);
}

#[test]
fn identifiers_name_the_host_that_stays_and_what_is_asked_is_the_endpoint() {
    let server = Server::new(Certificate::Good);
    let stable = "11111111-2222-3333-4444-555555555555.vault.localhost";
    let mut entry = server.entry();
    entry.aliases = vec!["old.example".into(), stable.into()];
    let vault = AzureVault::new(entry);
    let info = vault.describe(&KeyRef::parse("kek").unwrap(), &call()).unwrap();
    assert_eq!(info.kid.as_str(), format!("https://{stable}/keys/kek/{VERSION}"));
    for host in [stable, "old.example", &server.address.to_string()] {
        let kid = Kid::parse(&format!("https://{host}/keys/kek/{VERSION}")).unwrap();
        assert_eq!(vault.unwrap(&wrapped(kid), &call()).unwrap().expose(), &dek(), "{host}");
    }
    let before = server.seen.lock().unwrap().len();
    let kid = Kid::parse(&format!("https://other.example/keys/kek/{VERSION}")).unwrap();
    let e = vault.unwrap(&wrapped(kid), &call()).unwrap_err();
    assert_eq!(class(&e), "WrongVault");
    assert_eq!(Error::from(e).kind(), ErrorKind::Denied);
    assert_eq!(server.seen.lock().unwrap().len(), before, "nobody was asked");
}

#[test]
fn a_message_says_which_key_who_asked_where_and_what_to_do() {
    let server = Server::new(Certificate::Good);
    server.always(Answer::error(403, "Forbidden", Some("ForbiddenByPolicy")));
    let mut entry = server.entry();
    let unwrap =
        |entry| AzureVault::new(entry).unwrap(&wrapped(server.kid()), &call()).unwrap_err().to_string();
    let message = unwrap(entry.clone());
    for part in [
        "The words for Forbidden",
        server.kid().as_str(),
        "application the-client of tenant the-tenant",
        "vault \"elsewhere\" at https://127.0.0.1:",
        "it takes the permission unwrapKey",
        "wrapdisk vault grant the-client",
        "--key kek",
    ] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert!(!message.contains(SECRET) && !message.contains(TOKEN), "{message}");
    // At Azure it is another command.
    entry.local_server = false;
    server.always(Answer::error(403, "Forbidden", Some("ForbiddenByRbac")));
    let message = unwrap(entry);
    assert!(message.contains("challenge resource"), "its audience is checked: {message}");
    // What a server says is shown without what could change a terminal.
    let body = "{\"error\":{\"code\":\"Forbidden\",\"message\":\"a\\u001b[2Jb\\n\\tc\\u0007\"}}";
    server.always(Answer::new(403, body));
    let message = unwrap(server.entry());
    assert!(message.starts_with("a[2Jb c (key"), "{message:?}");
}

#[test]
fn who_is_not_known_to_the_issuer_is_auth_and_an_issuer_that_cannot_be_asked_is_transient() {
    let server = Server::new(Certificate::Good);
    let tokens = |answer: Answer| {
        server.tokens(move |_| answer.clone());
        server.vault().without_retry().unwrap(&wrapped(server.kid()), &call()).unwrap_err()
    };
    let refused = |status: u16, error: &str| {
        let body = serde_json::json!({
            "error": error, "error_description": "AADSTS7000215: Invalid client secret provided.", "error_codes": [7_000_215]
        });
        Answer::json(status, &body)
    };
    for (answer, expected) in [
        (refused(401, "invalid_client"), "Auth"),
        (refused(400, "unauthorized_client"), "Auth"),
        (refused(400, "invalid_request"), "Auth"),
        (refused(429, "throttled"), "Transient"),
        (refused(503, "temporarily_unavailable"), "Transient"),
        (Answer::new(401, "<html>portal</html>"), "Transient"),
        (Answer::new(200, "<html>portal</html>"), "Transient"),
        (Answer::new(500, ""), "Transient"),
    ] {
        let shown = format!("{answer:?}");
        let e = tokens(answer);
        assert_eq!(class(&e), expected, "{shown}: {e}");
        assert!(!e.to_string().contains(SECRET), "{e}");
    }
    let e = tokens(refused(401, "invalid_client"));
    assert!(e.to_string().contains("AADSTS7000215"), "{e}");
    // A file that is not there, or not private, may be there again: it says nothing of the right to use the key.
    std::fs::remove_file(server.path("secret")).unwrap();
    let e = server.vault().without_retry().unwrap(&wrapped(server.kid()), &call()).unwrap_err();
    assert_eq!(class(&e), "Transient", "{e}");
    assert!(e.to_string().contains("open the client secret"), "{e}");
}

#[test]
fn a_token_that_was_withdrawn_is_fetched_again_once() {
    let server = Server::new(Certificate::Good);
    let vault = server.vault();
    assert!(vault.unwrap(&wrapped(server.kid()), &call()).is_ok());
    assert!(vault.unwrap(&wrapped(server.kid()), &call()).is_ok());
    assert_eq!(server.asked("/oauth2/"), 1, "a token is kept");
    let refusals = Arc::new(AtomicUsize::new(1));
    let challenge = "Bearer authorization=\"https://login.example/t\", resource=\"https://vault.azure.net\"";
    let left = refusals.clone();
    server.answers(move |request: &Request| {
        if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Answer::error(401, "Unauthorized", None).with("WWW-Authenticate", challenge);
        }
        well(request)
    });
    assert!(vault.unwrap(&wrapped(server.kid()), &call()).is_ok());
    assert_eq!(server.asked("/oauth2/"), 2, "a new one was fetched");
    refusals.store(1000, Ordering::SeqCst);
    assert_eq!(class(&vault.unwrap(&wrapped(server.kid()), &call()).unwrap_err()), "Auth");
    assert_eq!(server.asked("/oauth2/"), 3, "and one more, not many");
}

#[test]
fn when_to_ask_again_is_what_the_vault_said() {
    let server = Server::new(Certificate::Good);
    let retry_after = |headers: &[(&'static str, &str)]| {
        let answer = Answer::error(429, "Throttled", None);
        server.always(headers.iter().fold(answer, |a, (name, value)| a.with(name, *value)));
        match server.vault().without_retry().unwrap(&wrapped(server.kid()), &call()) {
            Err(VaultError::Transient { retry_after, .. }) => retry_after,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(retry_after(&[]), None);
    assert_eq!(retry_after(&[("Retry-After", "7")]), Some(Duration::from_secs(7)));
    assert_eq!(retry_after(&[("x-ms-retry-after-ms", "250")]), Some(Duration::from_millis(250)));
    assert_eq!(retry_after(&[("Retry-After", "99999999")]), Some(Duration::from_secs(3600)));
    assert_eq!(retry_after(&[("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT")]), Some(Duration::ZERO));
    assert_eq!(retry_after(&[("Retry-After", "soon")]), None);
}

#[test]
fn both_audits_can_be_joined_by_the_calls_id() {
    let server = Server::new(Certificate::Good);
    let call = call();
    server.vault().unwrap(&wrapped(server.kid()), &call).unwrap();
    let seen = server.seen.lock().unwrap();
    let asked: Vec<_> = seen.iter().filter(|r| r.path.contains("/unwrapkey")).collect();
    assert_eq!(asked.len(), 2, "the challenge, and the answer");
    assert!(asked.iter().all(|r| r.header("x-ms-client-request-id") == Some(&call.correlation.to_string())));
    assert!(asked[0].body.is_empty(), "nothing is sent before the vault has asked for a token");
    assert!(asked[1].header("user-agent").is_some_and(|agent| agent.contains("wrapdisk-")));
    let body: serde_json::Value = serde_json::from_slice(&asked[1].body).unwrap();
    assert_eq!(body["alg"], "RSA-OAEP-256");
    let _: WrappedDek = wrapped(server.kid());
}
