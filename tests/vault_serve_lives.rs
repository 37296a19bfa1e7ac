//! Does `vault serve` begin, go on and end as a service must: certificates that others verify and that are renewed in time,
//! the same CA after a restart, and an end that leaves no request unanswered?
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod serve_support;
mod support;

use std::net::TcpStream;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serve_support::{Served, VERSION, Wire};
use support::{Home, WRAPDISK, eventually, finish, run};

/// The certificate that is shown, as `openssl x509` prints it.
#[track_caller]
fn shown(served: &Served, print: &[&str]) -> String {
    let mut client = Command::new("openssl");
    client.args(["s_client", "-verify_return_error", "-connect"]).arg(format!("127.0.0.1:{}", served.port));
    client.arg("-CAfile").arg(served.home.path("ca.pem")).args(["-verify_hostname", "localhost"]);
    let said = finish(&mut client).ok();
    assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    let file = served.home.path("leaf.pem");
    std::fs::write(&file, said).unwrap();
    x509(&file, print)
}

#[track_caller]
fn x509(file: &std::path::Path, print: &[&str]) -> String {
    run("openssl", [&["x509", "-noout", "-in", file.to_str().unwrap()], print].concat())
}

#[test]
fn the_certificates_are_what_openssl_calls_right() {
    let served = Served::with(&["--san", "vault.example.com", "--san", "10.1.2.3"]);
    let leaf =
        shown(&served, &["-ext", "subjectAltName,extendedKeyUsage,basicConstraints,authorityKeyIdentifier"]);
    for part in [
        "DNS:localhost, DNS:*.vault.localhost, DNS:vault.example.com, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1, IP Address:10.1.2.3",
        "TLS Web Server Authentication",
        "X509v3 Authority Key Identifier",
    ] {
        assert!(leaf.contains(part), "{part}: {leaf}");
    }
    let ca = x509(&served.home.path("ca.pem"), &["-ext", "basicConstraints,keyUsage,subjectKeyIdentifier"]);
    for part in [
        "X509v3 Basic Constraints: critical\n    CA:TRUE, pathlen:0",
        "X509v3 Key Usage: critical\n    Certificate Sign",
        "X509v3 Subject Key Identifier",
    ] {
        assert!(ca.contains(part), "{part}: {ca}");
    }
    let days = |file: &str, days: u32| {
        let end = (days * 86_400).to_string();
        let file = served.home.path(file);
        let mut check = Command::new("openssl");
        check.args(["x509", "-noout", "-in"]).arg(&file).args(["-checkend", &end]);
        finish(&mut check).code() == 0
    };
    assert!(days("leaf.pem", 29) && !days("leaf.pem", 31));
    assert!(days("ca.pem", 3640) && !days("ca.pem", 3660));
    // Its private key is nowhere but sealed in vault.db.
    let state = served.home.path("home/state");
    let mut names: Vec<_> =
        std::fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|n| !n.starts_with("vault.db") && !n.starts_with("sets.db"));
    assert_eq!(names, ["root.key"]);
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    let served = Served::new();
    for (version, works) in [("-tls1_3", true), ("-tls1_2", true), ("-tls1_1", false)] {
        let mut client = Command::new("openssl");
        client.args(["s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-alpn", "h2,http/1.1", "-connect"]);
        client.arg(format!("127.0.0.1:{}", served.port)).arg("-CAfile").arg(served.home.path("ca.pem"));
        let done = finish(&mut client);
        assert_eq!(done.code() == 0, works, "{version}: {}{}", done.out, done.err);
        assert!(!works || done.out.contains("ALPN protocol: http/1.1"), "{}", done.out);
    }
    let old = ["--tlsv1.2", "--tls-max", "1.2"];
    served.officer.raw("GET", &format!("/keys?{VERSION}"), None, &old).ok();
}

#[test]
fn the_certificate_is_renewed_without_a_restart() {
    let served = Served::with(&["--certificate-lifetime", "30s"]);
    let first = shown(&served, &["-serial"]);
    let before = served.pid();
    eventually("another certificate", || (shown(&served, &["-serial"]) != first).then_some(()));
    served.officer.get("/keys").ok();
    assert_eq!(served.pid(), before);
}

#[test]
fn a_restart_keeps_the_ca() {
    let mut served = Served::new();
    let before = std::fs::read_to_string(served.home.path("ca.pem")).unwrap();
    served.signal(Signal::SIGTERM);
    assert_eq!(served.ended(), Some(0));
    std::fs::remove_file(served.home.path("ca.pem")).unwrap();
    served.restart();
    assert_eq!(std::fs::read_to_string(served.home.path("ca.pem")).unwrap(), before);
    served.officer.get("/keys").ok(); // the token is still good, too
}

#[test]
fn sigterm_answers_what_is_being_served_closes_what_is_idle_and_lets_nobody_in() {
    let mut served = Served::new();
    let mut fresh = Wire::open(&served, &[]);
    let mut used = Wire::open(&served, &[]);
    used.send("GET /keys HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(used.line().starts_with("HTTP/1.1 401"));
    let mut busy = Wire::open(&served, &[]);
    let (token, body) = (&served.officer.token, "{\"count\":7}");
    let length = body.len();
    busy.send(&format!(
        "POST /rng?{VERSION} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    ));
    // It is being served: the server wants the body.
    assert!(busy.line().starts_with("HTTP/1.1 100"));
    served.signal(Signal::SIGTERM);
    eventually("a closed door", || TcpStream::connect(("127.0.0.1", served.port)).err());
    used.rest();
    fresh.rest();
    busy.send(body);
    let answer = busy.rest();
    assert!(answer.contains("HTTP/1.1 200 OK") && answer.contains("{\"value\":\""), "{answer}");
    assert_eq!(served.ended(), Some(0));
}

#[test]
fn it_says_what_keeps_it_from_serving() {
    let home = Home::new();
    let said = home.wrapdisk(["vault", "serve", "--listen", "127.0.0.1:0"]).fails(4);
    assert!(said.contains("no vault here"), "{said}");
    let served = Served::new();
    let address = format!("127.0.0.1:{}", served.port);
    let serve = |arguments: &[&str]| {
        let mut command = Command::new(WRAPDISK);
        command.args(["vault", "serve"]).args(arguments).env("WRAPDISK_HOME", served.home.path("home"));
        finish(&mut command)
    };
    let said = serve(&["--listen", &address]).fails(1);
    assert!(said.contains(&address) && said.contains("--listen ADDR:PORT"), "{said}");
    assert!(serve(&["--listen", "127.0.0.1:0", "--san", "a b"]).fails(1).contains("allowed a DNS name"));
    assert!(serve(&["--listen", "8443"]).fails(2).contains("--listen"));
    assert!(serve(&["--allow", "10.0.0.0/33"]).fails(2).contains("--allow"));
    assert!(serve(&["--token-lifetime", "4m"]).fails(2).contains("5m to 24h"));
}

#[test]
fn an_address_of_a_network_is_warned_about() {
    let home = Home::new();
    home.wrapdisk(["vault", "init"]).ok();
    let mut serve = Command::new(WRAPDISK);
    serve.args(["vault", "serve", "--listen", "0.0.0.0:0"]).env("WRAPDISK_HOME", home.path("home"));
    let mut child = serve.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let out = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    assert!(line.starts_with("https://0.0.0.0:"), "{line}");
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success() && said.contains("can be reached from other machines"), "{said}");
}
