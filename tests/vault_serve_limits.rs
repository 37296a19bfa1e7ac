//! Is everything that a client may do to `vault serve` bounded: how much it sends, how slowly, how often, from where, and how
//! many there are?
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod serve_support;
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use serde_json::json;
use serve_support::{Served, VERSION, Wire};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};
use wrapdisk::vault::local::{AuditFilter, AuditRecord, IdentityKind, Permission};

#[test]
fn a_body_is_bounded_however_it_is_announced() {
    let served = Served::new();
    let text = |len: usize| format!("{{\"value\":\"{}\"}}", "A".repeat(len));
    let chunked = ["--header", "Transfer-Encoding: chunked"];
    for more in [&[][..], &chunked[..]] {
        let ask = |path: &str, len| {
            served.officer.raw("POST", &format!("{path}?{VERSION}"), Some(&text(len)), more).error().0
        };
        assert_eq!(ask("/keys/n/v/unwrapkey", 60_000), 400);
        assert_eq!(ask("/keys/n/v/unwrapkey", 70_000), 413);
        assert_eq!(ask("/keys/restore", 1_000_000), 400);
        assert_eq!(ask("/keys/restore", 1_100_000), 413);
    }
    // Nobody gets to send one before he has shown a token.
    let text = text(70_000);
    assert_eq!(
        served.nobody().raw("POST", &format!("/keys/restore?{VERSION}"), Some(&text), &[]).status,
        401
    );
    served.officer.get("/keys").ok();
}

#[test]
fn a_head_is_bounded() {
    let served = Served::new();
    let long = format!("X-Long: {}", "a".repeat(20_000));
    assert_eq!(
        served.officer.raw("GET", &format!("/keys?{VERSION}"), None, &["--header", &long]).status,
        431
    );
    let many: Vec<_> = (0..100).flat_map(|n| ["--header".to_owned(), format!("X-{n}: a")]).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(served.officer.raw("GET", &format!("/keys?{VERSION}"), None, &many).status, 431);
    let target = format!("/keys/{}?{VERSION}", "a".repeat(20_000));
    assert!([414, 431].contains(&served.officer.raw("GET", &target, None, &[]).status));
    served.officer.get("/keys").ok();
}

#[test]
fn who_is_slow_is_cut_off() {
    let served = Served::new();
    // All of them wait at the same time.
    let mut slow_head = Wire::open(&served, &[]);
    slow_head.send("GET /keys HTTP/1.1\r\nHost: localhost\r\nX-");
    let mut slow_second_head = Wire::open(&served, &[]);
    slow_second_head.send("GET /keys HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(slow_second_head.line().starts_with("HTTP/1.1 401"));
    slow_second_head.send("GET /ke");
    let mut slow_body = Wire::open(&served, &[]);
    let token = &served.officer.token;
    slow_body.send(&format!(
        "POST /keys/n/create?{VERSION} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: 9\r\n\r\n{{"
    ));
    let mut no_handshake = TcpStream::connect(("127.0.0.1", served.port)).unwrap();
    assert_eq!(slow_head.rest(), "");
    assert!(!slow_second_head.rest().contains("HTTP/1.1"));
    assert!(slow_body.rest().starts_with("HTTP/1.1 408 "));
    let mut end = Vec::new();
    let _ = no_handshake.read_to_end(&mut end);
    served.officer.get("/keys").ok();
}

#[test]
fn what_is_no_tls_and_no_http_harms_nobody() {
    let served = Served::new();
    for garbage in ["GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "\0\0\0\0", "\x16\x03\x01\u{1}\u{2}"] {
        let mut stream = TcpStream::connect(("127.0.0.1", served.port)).unwrap();
        stream.write_all(garbage.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    for garbage in
        ["x\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET  HTTP/1.1\r\n\r\n", "\r\n\r\n\r\n\r\nQUIT\r\n\r\n"]
    {
        let mut wire = Wire::open(&served, &[]);
        wire.send(garbage);
        assert!(wire.rest().starts_with("HTTP/1.1 400"), "{garbage:?}");
    }
    // A request without a host is nobody's.
    let mut wire = Wire::open(&served, &[]);
    wire.send("GET /keys HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(wire.rest().starts_with("HTTP/1.1 400"));
    served.officer.get("/keys").ok();
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn connect(config: &Arc<ClientConfig>, port: u16) -> Tls {
    let name = ServerName::try_from("localhost").unwrap();
    let tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), tcp);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream
}

fn ask(stream: &mut Tls) {
    stream.write_all(b"GET /keys HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
}

#[test]
fn a_thousand_idle_connections_are_held_and_stand_in_nobodys_way() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let served = Served::new();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(served.home.path("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let mut idle: Vec<_> = (0..1000).map(|_| connect(&config, served.port)).collect();
    for stream in idle.iter_mut().step_by(2) {
        ask(stream); // half of them rest after a request, half before their first
    }
    served.officer.get("/keys").ok();
    for stream in idle.iter_mut().skip(1).step_by(2) {
        ask(stream);
    }
    served.officer.get("/keys").ok();
}

#[test]
fn one_identitys_haste_is_its_own_and_never_a_probes() {
    let served = Served::with(&["--rate-limit", "3"]);
    let version = served.key("disk-kek");
    let hasty = served.client(&[Permission::List]);
    let answers: Vec<_> = (0..30).map(|_| hasty.get("/keys")).collect();
    let throttled = answers.iter().find(|a| a.status == 429).expect("thirty at once");
    assert_eq!(throttled.error().1, "Throttled");
    assert_eq!(throttled.header("retry-after"), Some("1"));
    assert!(throttled.message().ends_with("Reason: VaultRequestTypeLimitReached"));
    assert!(answers.iter().any(|a| a.status == 200));
    served.client(&[Permission::List]).get("/keys").ok();
    // A set's identity may have used up what it has for other things: its probes go on.
    let set = served.client_of(IdentityKind::System, &[Permission::Get, Permission::UnwrapKey]);
    let wrapped = json!({ "alg": "RSA-OAEP-256", "value": "AQID" });
    let wrapped = served.client(&[Permission::WrapKey]).post("/keys/disk-kek/wrapkey", &wrapped).ok();
    let hurried = (0..30).map(|_| set.get("/keys/disk-kek").status).filter(|s| *s == 429).count();
    assert!(hurried > 0);
    let body = json!({ "alg": "RSA-OAEP-256", "value": wrapped["value"] });
    assert_eq!(set.post(&format!("/keys/disk-kek/{version}/unwrapkey"), &body).ok()["value"], "AQID");
}

#[test]
fn clients_of_other_networks_are_refused_with_azures_words_and_on_record() {
    let served = Served::with(&["--allow", "192.0.2.0/24", "--allow", "::1"]);
    for (method, path) in
        [("GET", "/keys/disk-kek"), ("POST", "/keys/disk-kek/v/unwrapkey"), ("GET", "/nowhere")]
    {
        let answer = served.officer.ask(method, path, None);
        assert_eq!(answer.error(), (403, "Forbidden".into(), "ForbiddenByFirewall".into()), "{path}");
        let said = "Client address (127.0.0.1) is not authorized and caller is not a trusted service";
        assert_eq!(answer.message(), said);
    }
    assert_eq!(served.nobody().get("/keys").status, 401, "who he is comes first");
    let sign_in =
        served.nobody().raw("POST", "/t/oauth2/v2.0/token", Some("grant_type=client_credentials"), &[]);
    assert_eq!(sign_in.error().0, 403);
    let records = served.vault.audit(&AuditFilter::default()).unwrap();
    let refused =
        |r: &serde_json::Value| r["operationName"] == "KeyUnwrap" && r["properties"]["httpStatusCode"] == 403;
    assert_eq!(records.iter().map(AuditRecord::value).filter(refused).count(), 1);
    drop(served);
    Served::with(&["--allow", "192.0.2.0/24", "--allow", "127.0.0.0/8"]).officer.get("/keys").ok();
}
