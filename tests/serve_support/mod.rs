//! What tests of `vault serve` stand on: a vault of its own behind a real server, and curl as the client, with the vault's CA
//! as the only one it trusts.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;
use wrapdisk::vault::Origin;
use wrapdisk::vault::local::{Grant, IdentityKind, LocalVault, Permission, SignIn};

use crate::support::{Home, WRAPDISK, eventually};

/// Every request of these tests has it.
pub(crate) const VERSION: &str = "api-version=2025-07-01";

/// A server in a process of its own, killed when dropped.
pub(crate) struct Served {
    pub(crate) home: Home,
    pub(crate) vault: LocalVault,
    child: Child,
    pub(crate) port: u16,
    pub(crate) token_port: u16,
    /// Holds a permission for everything.
    pub(crate) officer: Client,
}

/// Somebody with a token (or without).
#[derive(Clone)]
pub(crate) struct Client {
    base: String,
    ca: PathBuf,
    pub(crate) token: String,
    pub(crate) oid: Uuid,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// As they came, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) text: String,
}

impl Served {
    /// A new vault, served.
    #[track_caller]
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// With more arguments.
    #[track_caller]
    pub(crate) fn with(arguments: &[&str]) -> Self {
        let home = Home::new();
        home.wrapdisk(["vault", "init", "test"]).ok();
        Self::over(home, arguments)
    }

    /// Over a vault that is there.
    #[track_caller]
    pub(crate) fn over(home: Home, arguments: &[&str]) -> Self {
        let vault = LocalVault::open(&home.path("home/state")).expect("the vault");
        let (child, port, token_port) = start(&home, arguments);
        let nobody = Client {
            base: format!("https://127.0.0.1:{port}"),
            ca: home.path("ca.pem"),
            token: String::new(),
            oid: Uuid::nil(),
        };
        let mut served = Self { home, vault, child, port, token_port, officer: nobody };
        served.officer = served.client(&Permission::ALL);
        served
    }

    /// A new identity with these permissions on the whole vault, and its token.
    #[track_caller]
    pub(crate) fn client(&self, may: &[Permission]) -> Client {
        self.client_of(IdentityKind::User, may)
    }

    #[track_caller]
    pub(crate) fn client_of(&self, kind: IdentityKind, may: &[Permission]) -> Client {
        let call = self.vault.admin("test");
        let name = format!("i{}", Uuid::new_v4().simple());
        let oid = self.vault.create_identity(&name, kind, &call).expect("an identity");
        if !may.is_empty() {
            self.vault.grant(oid, Grant::Permissions(may.to_vec()), None, &call).expect("a grant");
        }
        let token = self.token(oid, "https://vault.azure.net");
        Client { token, oid, ..self.nobody() }
    }

    /// A token from the vault itself.
    #[track_caller]
    pub(crate) fn token(&self, oid: Uuid, audience: &str) -> String {
        let hour = Duration::from_secs(3600);
        let token = self.vault.sign_in(SignIn::Imds { oid }, audience, hour, &Origin::Process);
        String::from_utf8(token.expect("a token").text.expose().to_vec()).expect("text")
    }

    /// Without a token.
    pub(crate) fn nobody(&self) -> Client {
        Client { token: String::new(), oid: Uuid::nil(), ..self.officer.clone() }
    }

    /// An RSA-2048 key for everything; its version.
    #[track_caller]
    pub(crate) fn key(&self, name: &str) -> String {
        let body = json!({ "kty": "RSA", "key_size": 2048 });
        let made = self.officer.post(&format!("/keys/{name}/create"), &body).ok();
        let kid = made["key"]["kid"].as_str().expect("a kid").to_owned();
        kid.rsplit('/').next().expect("a version").to_owned()
    }

    /// The same vault, served again; on another port.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        (self.child, self.port, self.token_port) = start(&self.home, &[]);
        self.officer.base = format!("https://127.0.0.1:{}", self.port);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    #[track_caller]
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("a signal");
    }

    /// The exit code, once it has ended.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> Option<i32> {
        eventually("the end of the server", || self.child.try_wait().expect("wait")).code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs until it says where it listens.
#[track_caller]
pub(crate) fn start(home: &Home, arguments: &[&str]) -> (Child, u16, u16) {
    let (ports, ca) = (home.path("ports"), home.path("ca.pem"));
    let _ = std::fs::remove_file(&ports);
    let mut command = Command::new(WRAPDISK);
    command.args(["vault", "serve", "--token-listen", "127.0.0.1:0", "--ca-out"]).arg(&ca);
    command.arg("--port-file").arg(&ports).args(arguments).env("WRAPDISK_HOME", home.path("home"));
    if !arguments.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the server");
    let text = eventually("the server's ports", || {
        let ended = child.try_wait().expect("wait");
        assert!(ended.is_none(), "the server ended: {ended:?}");
        std::fs::read_to_string(&ports).ok()
    });
    let ports: Vec<u16> = text.lines().map(|l| l.parse().expect("a port")).collect();
    (child, ports[0], ports[1])
}

impl Client {
    /// A request with a body in JSON, or none.
    #[track_caller]
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let glue = if path.contains('?') { '&' } else { '?' };
        let body = body.map(Value::to_string);
        self.raw(method, &format!("{path}{glue}{VERSION}"), body.as_deref(), &[])
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, None)
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, Some(body))
    }

    /// Deletes a key and looks at once, as the SDKs' pollers do.
    #[track_caller]
    pub(crate) fn delete_and_poll(&self, name: &str) {
        let deleted = self.ask("DELETE", &format!("/keys/{name}"), None).ok();
        assert_eq!(self.get(&format!("/keys/{name}/")).error().0, 404);
        assert_eq!(self.get(&format!("/deletedkeys/{name}")).ok(), deleted);
        let recovery = format!("{}/deletedkeys/{name}", self.base);
        assert_eq!(deleted["recoveryId"], recovery.as_str());
        assert!(deleted["scheduledPurgeDate"].as_i64() > deleted["deletedDate"].as_i64(), "{deleted}");
    }

    /// Exactly this target, body and more headers (and options of curl).
    #[track_caller]
    pub(crate) fn raw(&self, method: &str, target: &str, body: Option<&str>, more: &[&str]) -> Answer {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--include", "--path-as-is", "--request", method]);
        curl.args(["--max-time", "60", "--header", "Expect:", "--cacert"]).arg(&self.ca).args(more);
        if !self.token.is_empty() {
            curl.args(["--header", &format!("Authorization: Bearer {}", self.token)]);
        }
        if body.is_some() {
            curl.args(["--header", "Content-Type: application/json", "--data-binary", "@-"]);
        }
        curl.arg(format!("{}{target}", self.base));
        let mut child =
            curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("curl");
        let mut input = child.stdin.take().expect("a pipe");
        let _ = input.write_all(body.unwrap_or_default().as_bytes()); // a refusal may come before all is sent
        drop(input);
        let done = child.wait_with_output().expect("curl");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!done.stdout.is_empty(), "curl {method} {target}: {}: {said}", done.status);
        Answer::parse(&String::from_utf8_lossy(&done.stdout))
    }
}

impl Answer {
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text}"));
        let mut lines = head.lines();
        let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
        let headers = lines
            .filter_map(|l| l.split_once(": "))
            .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
            .collect();
        Self { status: status.unwrap_or_else(|| panic!("no status: {head}")), headers, text: body.to_owned() }
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The body of an answer that must be 200.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    /// Status, code, inner code.
    #[track_caller]
    pub(crate) fn error(&self) -> (u16, String, String) {
        let error = &self.json()["error"];
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (self.status, text(&error["code"]), text(&error["innererror"]["code"]))
    }

    /// The error's sentence.
    #[track_caller]
    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// A connection over TLS by `openssl s_client`: bytes as they are.
pub(crate) struct Wire {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Wire {
    #[track_caller]
    pub(crate) fn open(served: &Served, more: &[&str]) -> Self {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-quiet", "-verify_return_error", "-connect"]);
        openssl.arg(format!("127.0.0.1:{}", served.port)).arg("-CAfile").arg(served.home.path("ca.pem"));
        openssl.args(more).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = openssl.spawn().expect("openssl");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, out }
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &str) {
        let input = self.child.stdin.as_mut().expect("a pipe");
        input.write_all(bytes.as_bytes()).and_then(|()| input.flush()).expect("openssl takes it");
    }

    /// The next line; empty at the end of the connection.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        let _ = self.out.read_line(&mut line);
        line
    }

    /// Everything until the other side closes.
    pub(crate) fn rest(&mut self) -> String {
        let mut all = String::new();
        let _ = std::io::Read::read_to_string(&mut self.out, &mut all);
        all
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
