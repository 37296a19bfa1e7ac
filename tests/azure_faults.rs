//! Does the provider for vaults elsewhere come back with the truth, in time, from a network that is broken in every way?
//! A TLS server in the test, and a proxy in front of it that breaks connections.
#![cfg(all(feature = "azure", feature = "serve"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use wrapdisk::error::{Error, ErrorKind};
use wrapdisk::secret::Secret;
use wrapdisk::vault::azure::AzureVault;
use wrapdisk::vault::{Call, Credential, KeyVault, VaultError};

mod azure_support;

use azure_support::{
    Answer, Certificate, Fault, Proxy, Server, call, call_within, dek, kid_at, well, wrapped,
};

/// For calls that must end by themselves, long before.
const PLENTY: Duration = Duration::from_secs(25);
/// For calls that nothing else would end.
const SHORT: Duration = Duration::from_millis(700);

fn unwrap(vault: &AzureVault, host: &str, call: &Call) -> Result<Secret<64>, VaultError> {
    vault.unwrap(&wrapped(kid_at(host)), call)
}

/// It may pass, and it says so to people and to scripts.
#[track_caller]
fn transient(answer: Result<Secret<64>, VaultError>, words: &str) {
    let e = answer.unwrap_err();
    assert!(matches!(e, VaultError::Transient { .. }), "{e:?}");
    let text = e.to_string();
    assert!(text.contains(words), "{words:?} is not in {text:?}");
    assert_eq!(Error::from(e).kind(), ErrorKind::Unreachable, "exit code 4");
}

#[test]
fn a_connection_that_breaks_is_transient_and_the_next_one_works() {
    let server = Server::new(Certificate::Good);
    let proxy = Proxy::to(server.address);
    let vault = AzureVault::new(server.entry_at(&proxy.host())).without_retry();
    let ask = || unwrap(&vault, &proxy.host(), &call_within(PLENTY));
    assert_eq!(ask().unwrap().expose(), &dek(), "without a fault");
    for fault in [Fault::Reset, Fault::CutAfter(1), Fault::CutAfter(100), Fault::CutAfter(500)] {
        proxy.set(fault);
        transient(ask(), "the vault could not be asked");
        proxy.set(Fault::None);
        assert_eq!(ask().unwrap().expose(), &dek(), "after {fault:?}");
    }
}

#[test]
fn what_never_ends_is_ended_by_the_deadline() {
    let server = Server::new(Certificate::Good);
    let proxy = Proxy::to(server.address);
    let vault = AzureVault::new(server.entry_at(&proxy.host()));
    for fault in [Fault::Hang, Fault::Slow] {
        proxy.set(fault);
        transient(unwrap(&vault, &proxy.host(), &call_within(SHORT)), "no answer within 0.7 s");
    }
    proxy.set(Fault::None);
    let stops = |request: &azure_support::Request| {
        let mut answer = well(request);
        answer.stop_after = Some(answer.body.len() - 1);
        answer
    };
    server.answers(stops);
    transient(unwrap(&vault, &proxy.host(), &call_within(SHORT)), "no answer within 0.7 s");
    server.answers(well);
    assert!(unwrap(&vault, &proxy.host(), &call_within(PLENTY)).is_ok(), "it recovers");
    // The token endpoint counts like the vault.
    let vault = AzureVault::new(server.entry_at(&proxy.host()));
    server.tokens(|_| Answer { stop_after: Some(0), ..Answer::new(200, "{}") });
    transient(unwrap(&vault, &proxy.host(), &call_within(SHORT)), "no answer within 0.7 s");
    // A deadline that has passed asks nobody.
    let server = Server::new(Certificate::Good);
    let host = server.address.to_string();
    transient(unwrap(&server.vault(), &host, &call_within(Duration::ZERO)), "no answer within 0.0 s");
    assert_eq!(server.seen.lock().unwrap().len(), 0);
}

#[test]
fn a_port_where_nobody_listens_and_a_name_that_nobody_has_are_told_apart() {
    let server = Server::new(Certificate::Good);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let vault = AzureVault::new(server.entry_at(&closed)).without_retry();
    transient(unwrap(&vault, &closed, &call_within(PLENTY)), "does a server listen there");
    // RFC 6761: no name under .invalid exists.
    let vault = AzureVault::new(server.entry_at("vault.invalid")).without_retry();
    transient(unwrap(&vault, "vault.invalid", &call_within(PLENTY)), "does DNS work here?");
}

#[test]
fn a_certificate_that_does_not_hold_is_transient_and_nothing_is_sent() {
    for (certificate, words) in [
        (Certificate::Expired, "the server must renew it"),
        (Certificate::NotYetValid, "clock may be wrong"),
        (Certificate::OtherHost, "the URL names another host than the certificate"),
        (Certificate::UnknownIssuer, "give the authority that signed it"),
    ] {
        let server = Server::new(certificate);
        let vault = server.vault().without_retry();
        transient(unwrap(&vault, &server.address.to_string(), &call_within(PLENTY)), words);
        assert_eq!(server.seen.lock().unwrap().len(), 0, "{certificate:?}");
    }
    // A server that is trusted only when it is asked for as another.
    let good = Server::new(Certificate::Good);
    let mut entry = good.entry();
    entry.ca_file = None;
    let vault = AzureVault::new(entry).without_retry();
    transient(unwrap(&vault, &good.address.to_string(), &call_within(PLENTY)), "give the authority");
    assert_eq!(good.seen.lock().unwrap().len(), 0);
}

#[test]
fn what_passes_is_tried_again_and_what_does_not_is_not() {
    let server = Server::new(Certificate::Good);
    let host = server.address.to_string();
    let failing = |times: usize, answer: Answer| {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        server.answers(move |request| {
            if count.fetch_add(1, Ordering::SeqCst) < times {
                return answer.clone();
            }
            well(request)
        });
        asked
    };
    let vault = server.vault();
    for answer in [
        Answer::error(429, "Throttled", None),
        Answer::error(503, "ServiceUnavailable", None).with("Retry-After", "0"),
        Answer::error(500, "InternalError", None),
        Answer::new(502, "<html>bad gateway</html>"),
        Answer::new(200, "{"),
    ] {
        let asked = failing(2, answer);
        assert_eq!(unwrap(&vault, &host, &call()).unwrap().expose(), &dek());
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }
    let asked = failing(99, Answer::error(503, "ServiceUnavailable", None));
    transient(unwrap(&vault, &host, &call()), "The words for ServiceUnavailable");
    assert_eq!(asked.load(Ordering::SeqCst), 3, "three tries and no more");
    // Longer than anybody waits here: at once back to the caller, who knows when to come again.
    let asked = failing(99, Answer::error(429, "Throttled", None).with("Retry-After", "60"));
    match unwrap(&vault, &host, &call()) {
        Err(VaultError::Transient { retry_after, .. }) => {
            assert_eq!(retry_after, Some(Duration::from_secs(60)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    for answer in [
        Answer::error(403, "Forbidden", Some("KeyDisabled")),
        Answer::error(400, "BadParameter", None),
        Answer::error(404, "KeyNotFound", None),
    ] {
        let asked = failing(99, answer);
        unwrap(&vault, &host, &call()).unwrap_err();
        assert_eq!(asked.load(Ordering::SeqCst), 1, "no is no");
    }
    let asked = failing(99, Answer::error(503, "ServiceUnavailable", None));
    unwrap(&server.vault().without_retry(), &host, &call()).unwrap_err();
    assert_eq!(asked.load(Ordering::SeqCst), 1, "one who repeats by himself");
}

#[test]
fn a_redirect_is_not_followed_with_the_token() {
    let (server, thief) = (Server::new(Certificate::Good), Server::new(Certificate::Good));
    let to = format!("https://{}/keys/kek/unwrapkey", thief.address);
    server.always(Answer::new(307, "").with("Location", to));
    let vault = server.vault().without_retry();
    transient(unwrap(&vault, &server.address.to_string(), &call_within(PLENTY)), "HTTP 307");
    assert_eq!(thief.seen.lock().unwrap().len(), 0);
}

#[test]
fn a_challenge_for_somebody_elses_token_is_not_answered() {
    let server = Server::new(Certificate::Good);
    let mut entry = server.entry();
    entry.local_server = false; // so the challenge must be for 127.0.0.1, and is for vault.azure.net
    let vault = AzureVault::new(entry).without_retry();
    transient(unwrap(&vault, &server.address.to_string(), &call_within(PLENTY)), "--local-server");
    assert_eq!(server.asked("/oauth2/"), 0, "no token was fetched for it");
}

#[test]
fn many_callers_at_once_do_not_wait_for_one_that_hangs() {
    let server = Server::new(Certificate::Good);
    let proxy = Proxy::to(server.address);
    proxy.set(Fault::Hang);
    let hanging = AzureVault::new(server.entry_at(&proxy.host()));
    let vault = server.vault();
    let host = server.address.to_string();
    assert!(unwrap(&vault, &host, &call()).is_ok());
    std::thread::scope(|scope| {
        let stuck = scope.spawn(|| unwrap(&hanging, &proxy.host(), &call_within(Duration::from_secs(8))));
        let others: Vec<_> = (0..8).map(|_| scope.spawn(|| unwrap(&vault, &host, &call()))).collect();
        for other in others {
            assert_eq!(other.join().unwrap().unwrap().expose(), &dek());
        }
        assert!(!stuck.is_finished(), "they came back first");
        transient(stuck.join().unwrap(), "the vault could not be asked");
    });
    assert_eq!(server.asked("/oauth2/"), 1, "one token for all");
}

#[test]
fn an_identity_that_this_machine_does_not_have_is_said_so() {
    let server = Server::new(Certificate::Good);
    let host = server.address.to_string();
    let mut entry = server.entry();
    // Without IDENTITY_ENDPOINT this asks 169.254.169.254, where nobody is on most machines.
    entry.credential = Credential::WorkloadIdentity { tenant: Some("t".into()), client_id: Some("c".into()) };
    let vault = AzureVault::new(entry).without_retry();
    let e = unwrap(&vault, &host, &call_within(PLENTY)).unwrap_err();
    assert!(e.to_string().contains("workload identity c"), "{e}");
    assert!(matches!(e, VaultError::Transient { .. } | VaultError::Auth(_)), "{e:?}");
}
