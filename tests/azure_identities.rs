//! Does each way of proving who we are work, from where secrets lie to the vault's answer; and does a proxy, where there is
//! one, carry it?
#![cfg(all(feature = "azure", feature = "serve"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod azure_support;
mod serve_support;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use azure_support::{Answer, Certificate, Fault, Proxy, Server, TOKEN, call, dek, wrapped};
use serve_support::Served;
use support::{Done, Home, finish};
use wrapdisk::vault::local::{CredentialKind, IdentityKind, NewKey, Role, RsaBits};
use wrapdisk::vault::{KeyVault, VaultError};

/// The program in this home with more in its environment.
fn with_env(home: &Home, args: &[&str], env: &[(&str, &str)]) -> Done {
    finish(home.command(args).envs(env.iter().copied()))
}

/// A served vault, and an identity that may use its key "disk-kek".
fn served() -> (Served, uuid::Uuid) {
    let served = Served::new();
    let admin = served.vault.admin("test");
    served.vault.create_key("disk-kek", &NewKey::wrapping(RsaBits::B2048), &admin).unwrap();
    let oid = served.vault.create_identity("machine", IdentityKind::System, &admin).unwrap();
    served.vault.grant(oid, Role::CryptoServiceEncryptionUser, Some("disk-kek"), &admin).unwrap();
    (served, oid)
}

fn add(home: &Home, url: &str, ca: &std::path::Path, credential: &str, more: &[&str]) {
    let args = ["vault", "add", "far", url, "--local-server", "--ca-file", ca.to_str().unwrap()];
    home.wrapdisk([&args[..], &["--credential", credential], more].concat()).ok();
}

const TEST: [&str; 5] = ["vault", "test", "far", "--key", "disk-kek"];

#[test]
fn a_managed_identity_signs_in_by_what_its_machine_gives_it() {
    let (served, oid) = served();
    let admin = served.vault.admin("test");
    let header =
        served.vault.add_credential(oid, CredentialKind::IdentityHeader, None, None, &admin).unwrap();
    let header = std::str::from_utf8(header.expose()).unwrap();
    let home = Home::new();
    let url = format!("https://127.0.0.1:{}", served.port);
    add(&home, &url, &served.home.path("ca.pem"), "managed-identity", &[]);
    let endpoint = format!("http://127.0.0.1:{}/msi/token", served.token_port);
    let said = with_env(&home, &TEST, &[("IDENTITY_ENDPOINT", &endpoint), ("IDENTITY_HEADER", header)]).ok();
    assert!(said.contains("came back as it was"), "{said}");
    // It is of this machine: no proxy is asked for it, and none for a vault on this machine.
    let closed = format!("http://{}", closed_port());
    let env = [
        ("IDENTITY_ENDPOINT", endpoint.as_str()),
        ("IDENTITY_HEADER", header),
        ("HTTP_PROXY", &closed),
        ("HTTPS_PROXY", &closed),
        ("http_proxy", &closed),
        ("https_proxy", &closed),
    ];
    with_env(&home, &TEST, &env).ok();
    let wrong = "A".repeat(header.len());
    let said =
        with_env(&home, &TEST, &[("IDENTITY_ENDPOINT", &endpoint), ("IDENTITY_HEADER", &wrong)]).fails(3);
    assert!(said.contains("is this identity assigned to this machine?"), "{said}");
    let nobody = format!("http://{}/msi/token", closed_port());
    let said =
        with_env(&home, &TEST, &[("IDENTITY_ENDPOINT", &nobody), ("IDENTITY_HEADER", header)]).fails(4);
    assert!(said.contains("a managed identity exists on Azure's machines only"), "{said}");
    assert!(!said.contains(header), "{said}");
}

#[test]
fn a_token_service_that_never_answers_is_given_up_on_and_named() {
    let (server, silent) = (Server::new(Certificate::Good), Proxy::to(closed_port()));
    silent.set(Fault::Hang);
    let home = Home::new();
    let url = format!("https://{}", server.address);
    add(&home, &url, &server.path("ca.pem"), "managed-identity", &[]);
    let endpoint = format!("http://{}/msi/token", silent.host());
    let env = [("IDENTITY_ENDPOINT", endpoint.as_str()), ("IDENTITY_HEADER", "x")];
    let said = with_env(&home, &["vault", "test", "far"], &env).fails(4);
    assert!(said.contains("a managed identity exists on Azure's machines only"), "{said}");
}

fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn a_workload_identity_signs_in_by_its_federated_token() {
    let server = Server::new(Certificate::Good);
    server.tokens(|request| {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let expected = ["client_assertion=the-federated-token", "client_id=the-client", "jwt-bearer"];
        if expected.iter().all(|part| form.contains(part)) && request.path.starts_with("/the-tenant/") {
            let token =
                serde_json::json!({ "token_type": "Bearer", "expires_in": 3599, "access_token": TOKEN });
            return Answer::json(200, &token);
        }
        Answer::json(400, &serde_json::json!({ "error": "invalid_request", "error_description": form }))
    });
    let home = Home::new();
    let url = format!("https://{}", server.address);
    add(&home, &url, &server.path("ca.pem"), "workload-identity", &["--client-id", "the-client"]);
    std::fs::write(home.path("token"), "the-federated-token").unwrap();
    let file = home.text("token");
    let env = [("AZURE_FEDERATED_TOKEN_FILE", file), ("AZURE_TENANT_ID", "another-tenant")];
    let said = with_env(&home, &["vault", "test", "far"], &env).fails(3);
    assert!(said.contains("is the federated credential of the application set up?"), "{said}");
    home.wrapdisk(["vault", "remove", "far"]).ok();
    let who = ["--client-id", "the-client", "--tenant", "the-tenant"];
    add(&home, &url, &server.path("ca.pem"), "workload-identity", &who);
    with_env(&home, &["vault", "test", "far"], &env[..1]).ok();
    // This server does not give back what was wrapped: that is damage, and nobody would store such a wrap.
    let said = with_env(&home, &["vault", "test", "far", "--key", "kek"], &env[..1]).fails(5);
    assert!(said.contains("unwraps another key than it wrapped"), "{said}");
}

#[test]
fn the_user_of_the_azure_cli_is_asked_through_az() {
    let (served, oid) = served();
    let home = Home::new();
    let url = format!("https://127.0.0.1:{}", served.port);
    add(&home, &url, &served.home.path("ca.pem"), "azure-cli", &[]);
    // The real one cannot log in here: this one says what it would say.
    let token = served.token(oid, "https://vault.azure.net");
    let said =
        serde_json::json!({ "accessToken": token, "expires_on": 32_503_680_000_i64, "tokenType": "Bearer" });
    let bin = home.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let az = |script: &str| {
        std::fs::write(bin.join("az"), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(bin.join("az"), PermissionsExt::from_mode(0o755)).unwrap();
    };
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let test = || with_env(&home, &TEST, &[("PATH", &path)]);
    az(&format!(
        "[ \"$*\" = 'account get-access-token -o json --scope https://vault.azure.net/.default' ] && echo '{said}'"
    ));
    assert!(test().ok().contains("came back as it was"));
    az("echo \"ERROR: Please run 'az login' to setup account.\" >&2; exit 1");
    assert!(test().fails(3).contains("install the Azure CLI and log in: az login"));
    az("echo 'ERROR: Failed to resolve login.microsoftonline.com' >&2; exit 1");
    assert!(test().fails(4).contains("does az work here?"));
}

#[test]
fn a_client_secret_that_was_replaced_counts_at_once() {
    let server = Server::new(Certificate::Good);
    server.tokens(|request| {
        let right = String::from_utf8_lossy(&request.body).contains("client_secret=the-new-one&");
        if right {
            let token =
                serde_json::json!({ "token_type": "Bearer", "expires_in": 3599, "access_token": TOKEN });
            return Answer::json(200, &token);
        }
        Answer::json(
            401,
            &serde_json::json!({ "error": "invalid_client", "error_description": "AADSTS7000215" }),
        )
    });
    let vault = server.vault();
    let e = vault.unwrap(&wrapped(server.kid()), &call()).unwrap_err();
    assert!(matches!(e, VaultError::Auth(_)), "{e:?}");
    std::fs::write(server.path("secret"), "the-new-one\n").unwrap();
    assert_eq!(vault.unwrap(&wrapped(server.kid()), &call()).unwrap().expose(), &dek());
    // A service's secret is where systemd puts it; outside of the service there is none.
    let home = Home::new();
    let url = format!("https://{}", server.address);
    let who = ["--client-id", "the-client", "--secret-credential", "far-secret"];
    add(&home, &url, &server.path("ca.pem"), "client-secret", &who);
    let said = home.wrapdisk(["vault", "test", "far"]).fails(4);
    assert!(said.contains("systemd handed over no credentials"), "{said}");
    std::fs::rename(server.path("secret"), server.path("far-secret")).unwrap();
    let folder = server.path("far-secret").parent().unwrap().to_str().unwrap().to_owned();
    with_env(&home, &["vault", "test", "far"], &[("CREDENTIALS_DIRECTORY", &folder)]).ok();
}

#[test]
fn https_proxy_carries_it_and_no_proxy_does_not() {
    let server = Server::new(Certificate::OtherHost);
    let (proxy, tunnels) = tunnel(server.address);
    let home = Home::new();
    std::fs::copy(server.path("secret"), home.path("secret")).unwrap();
    let who = ["--client-id", "the-client", "--secret-file", "secret"];
    add(&home, "https://other.example", &server.path("ca.pem"), "client-secret", &who);
    let proxy = format!("http://{proxy}");
    let test = ["vault", "test", "far"];
    with_env(&home, &test, &[("HTTPS_PROXY", &proxy)]).ok();
    let through = tunnels.load(Ordering::SeqCst);
    assert!(through >= 3, "challenge, token, answer: {through}");
    let said = with_env(&home, &test, &[("HTTPS_PROXY", &proxy), ("NO_PROXY", "other.example")]).fails(4);
    assert!(said.contains("does DNS work here?"), "{said}");
    assert_eq!(tunnels.load(Ordering::SeqCst), through);
    let closed = format!("http://{}", closed_port());
    let said = with_env(&home, &test, &[("HTTPS_PROXY", &closed)]).fails(4);
    assert!(said.contains("could not be asked") || said.contains("no token"), "{said}");
}

/// An HTTP proxy (RFC 9110 9.3.6) that takes every CONNECT to this server; and how many there were.
fn tunnel(server: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let counted = counted.clone();
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0; 1];
                while !head.ends_with(b"\r\n\r\n") {
                    client.read_exact(&mut byte).ok()?;
                    head.push(byte[0]);
                }
                assert!(
                    head.starts_with(b"CONNECT other.example:443 "),
                    "{}",
                    String::from_utf8_lossy(&head)
                );
                counted.fetch_add(1, Ordering::SeqCst);
                client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").ok()?;
                let mut upstream = TcpStream::connect(server).ok()?;
                let (mut from, mut to) = (client.try_clone().ok()?, upstream.try_clone().ok()?);
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                std::io::copy(&mut upstream, &mut client).ok()?;
                client.shutdown(std::net::Shutdown::Both).ok()
            });
        }
    });
    (address, count)
}
