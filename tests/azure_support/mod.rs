//! A vault elsewhere, in the test's own process: TLS with certificates made here, the bearer challenge, a token endpoint,
//! and whatever answers a test wants to give. And a proxy that breaks connections below TLS.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::aws_lc_rs};
use uuid::Uuid;
use wrapdisk::envelope::{Kid, WrapAlg, WrappedDek};
use wrapdisk::vault::azure::AzureVault;
use wrapdisk::vault::{Call, Credential, Endpoint, SecretSource, VaultEntry};

pub(crate) const VERSION: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const SECRET: &str = "the-client-secret-of-the-tests";
pub(crate) const TOKEN: &str = "the-token-of-the-tests";

/// What the certificate is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certificate {
    Good,
    Expired,
    NotYetValid,
    /// For another host.
    OtherHost,
    /// By an authority that nobody was told of.
    UnknownIssuer,
}

/// A request as the server sees it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The key identifier of this request's key, as the vault that was dialled would write it.
    pub(crate) fn kid(&self) -> String {
        let path = self.path.split('?').next().unwrap();
        let name = path.split('/').nth(2).unwrap();
        format!("https://{}/keys/{name}/{VERSION}", self.header("host").unwrap())
    }
}

/// What the server says.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Send this much of the body and then stop, for ever.
    pub(crate) stop_after: Option<usize>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![], body: body.into(), stop_after: None }
    }

    pub(crate) fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::new(status, value.to_string())
    }

    /// As Key Vault puts it.
    pub(crate) fn error(status: u16, code: &str, inner: Option<&str>) -> Self {
        let mut error = serde_json::json!({ "code": code, "message": format!("The words for {code}.") });
        if let Some(inner) = inner {
            error["innererror"] = serde_json::json!({ "code": inner });
        }
        Self::json(status, &serde_json::json!({ "error": error }))
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// The data key that every `unwrapkey` gives.
pub(crate) fn dek() -> [u8; 64] {
    std::array::from_fn(|n| u8::try_from(n * 3).unwrap())
}

pub(crate) fn result(kid: &str, value: &[u8]) -> Answer {
    Answer::json(200, &serde_json::json!({ "kid": kid, "value": URL_SAFE_NO_PAD.encode(value) }))
}

pub(crate) fn bundle(kid: &str, attributes: &serde_json::Value) -> Answer {
    Answer::json(
        200,
        &serde_json::json!({
            "key": { "kid": kid, "kty": "RSA-HSM", "key_ops": ["wrapKey", "unwrapKey", "import"],
                     "n": URL_SAFE_NO_PAD.encode([0xC5; 384]), "e": "AQAB" },
            "attributes": attributes,
            "tags": { "env": "test" },
        }),
    )
}

/// A vault in which all is well.
pub(crate) fn well(request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap().to_lowercase();
    if path.ends_with("/unwrapkey") {
        result(&request.kid(), &dek())
    } else if path.ends_with("/wrapkey") {
        result(&request.kid(), &[7; 256])
    } else {
        bundle(&request.kid(), &serde_json::json!({ "enabled": true, "created": 1, "updated": 2 }))
    }
}

type Script = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// The server; its threads end with the test's process.
pub(crate) struct Server {
    dir: TempDir,
    pub(crate) address: SocketAddr,
    /// Answers to requests that carry a token.
    script: Arc<Mutex<Script>>,
    /// Answers of the token endpoint.
    tokens: Arc<Mutex<Script>>,
    /// Everything that was asked.
    pub(crate) seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn new(certificate: Certificate) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Arc::new(tls(certificate, &dir));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Arc::new(well)));
        let grant = |_: &Request| {
            let token =
                serde_json::json!({ "token_type": "Bearer", "expires_in": 3599, "access_token": TOKEN });
            Answer::json(200, &token)
        };
        let tokens: Arc<Mutex<Script>> = Arc::new(Mutex::new(Arc::new(grant)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let server = Self { dir, address, script, tokens, seen };
        let (script, tokens, seen) = (server.script.clone(), server.tokens.clone(), server.seen.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, script, tokens) = (config.clone(), script.clone(), tokens.clone());
                let seen = seen.clone();
                // A client that goes away is what many tests are about.
                thread::spawn(move || serve(stream, config, &script, &tokens, &seen));
            }
        });
        std::fs::write(server.path("secret"), SECRET).unwrap();
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(server.path("secret"), owner_only).unwrap();
        server
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn answers(&self, script: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Arc::new(script);
    }

    pub(crate) fn always(&self, answer: Answer) {
        self.answers(move |_| answer.clone());
    }

    pub(crate) fn tokens(&self, script: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        *self.tokens.lock().unwrap() = Arc::new(script);
    }

    /// How often a path with this in it was asked.
    pub(crate) fn asked(&self, part: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|r| r.path.contains(part)).count()
    }

    /// An entry for this server, asked at `host`.
    pub(crate) fn entry_at(&self, host: &str) -> VaultEntry {
        VaultEntry {
            id: Uuid::new_v4(),
            name: "elsewhere".into(),
            endpoint: Endpoint::parse(&format!("https://{host}")).unwrap(),
            aliases: vec![],
            credential: Credential::ClientSecret {
                tenant: "the-tenant".into(),
                client_id: "the-client".into(),
                secret: SecretSource::File(self.path("secret")),
            },
            ca_file: Some(self.path("ca.pem")),
            authority: Some(Endpoint::parse(&format!("https://{}", self.address)).unwrap()),
            local_server: true,
            created: 0,
        }
    }

    pub(crate) fn entry(&self) -> VaultEntry {
        self.entry_at(&self.address.to_string())
    }

    pub(crate) fn vault(&self) -> AzureVault {
        AzureVault::new(self.entry())
    }

    pub(crate) fn kid(&self) -> Kid {
        kid_at(&self.address.to_string())
    }
}

pub(crate) fn kid_at(host: &str) -> Kid {
    Kid::parse(&format!("https://{host}/keys/kek/{VERSION}")).unwrap()
}

pub(crate) fn wrapped(kid: Kid) -> WrappedDek {
    WrappedDek { kid, alg: WrapAlg::RsaOaep256, bytes: vec![7; 256] }
}

/// Without a deadline.
pub(crate) fn call() -> Call {
    Call::new(Uuid::new_v4(), "test")
}

pub(crate) fn call_within(time: Duration) -> Call {
    Call { deadline: Some(Instant::now() + time), ..call() }
}

fn tls(certificate: Certificate, dir: &TempDir) -> ServerConfig {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        (Issuer::new(params, key), pem)
    };
    let (issuer, pem) = authority("the tests' authority");
    let issuer = if certificate == Certificate::UnknownIssuer { authority("somebody").0 } else { issuer };
    std::fs::write(dir.path().join("ca.pem"), pem).unwrap();
    let host = if certificate == Certificate::OtherHost { "other.example" } else { "127.0.0.1" };
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    match certificate {
        Certificate::Expired => params.not_after = rcgen::date_time_ymd(2020, 1, 1),
        Certificate::NotYetValid => params.not_before = rcgen::date_time_ymd(2500, 1, 1),
        _ => {}
    }
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap()
}

/// One request a connection.
fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    script: &Mutex<Script>,
    tokens: &Mutex<Script>,
    seen: &Mutex<Vec<Request>>,
) -> Option<()> {
    let mut stream = StreamOwned::new(ServerConnection::new(config).ok()?, stream);
    let request = read(&mut stream)?;
    seen.lock().unwrap().push(request.clone());
    let answer = if request.path.ends_with("/oauth2/v2.0/token") {
        let script = tokens.lock().unwrap().clone();
        script(&request)
    } else if request.header("authorization") == Some(&format!("Bearer {TOKEN}")) {
        let script = script.lock().unwrap().clone();
        script(&request)
    } else {
        let challenge =
            "Bearer authorization=\"https://login.example/t\", resource=\"https://vault.azure.net\"";
        Answer::error(401, "Unauthorized", None).with("WWW-Authenticate", challenge)
    };
    let mut head = format!("HTTP/1.1 {} Said\r\nConnection: close\r\n", answer.status);
    head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    let sent = answer.stop_after.unwrap_or(answer.body.len());
    stream.write_all(&answer.body[..sent]).ok()?;
    stream.flush().ok()?;
    if answer.stop_after.is_some() {
        // Until the client goes away.
        let _ = stream.read(&mut [0; 1]);
    }
    stream.conn.send_close_notify();
    stream.flush().ok()
}

fn read(stream: &mut impl Read) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..at].to_vec()).ok()?;
            let mut lines = head.lines();
            let mut first = lines.next()?.split(' ');
            let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
            let headers: Vec<_> = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect();
            let mut request = Request { method, path, headers, body: bytes[at + 4..].to_vec() };
            let length: usize = request.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
            while request.body.len() < length {
                let n = stream.read(&mut chunk).ok().filter(|n| *n > 0)?;
                request.body.extend_from_slice(&chunk[..n]);
            }
            return Some(request);
        }
        let n = stream.read(&mut chunk).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&chunk[..n]);
    }
}

/// What happens to connections on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Taken and never answered.
    Hang,
    /// Ended with RST as soon as the client has said something.
    Reset,
    /// Ended after so many bytes of the server.
    CutAfter(usize),
    /// One byte of the server now and then.
    Slow,
}

/// A TCP proxy with a fault that can be changed while it runs.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    fault: Arc<Mutex<Fault>>,
    server: Arc<Mutex<SocketAddr>>,
    /// Connections so far.
    pub(crate) taken: Arc<Mutex<usize>>,
}

impl Proxy {
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (fault, taken) = (Arc::new(Mutex::new(Fault::None)), Arc::new(Mutex::new(0)));
        let server = Arc::new(Mutex::new(server));
        let proxy = Self { address, fault: fault.clone(), server: server.clone(), taken: taken.clone() };
        thread::spawn(move || {
            let mut hung = Vec::new();
            for stream in listener.incoming().flatten() {
                *taken.lock().unwrap() += 1;
                let fault = *fault.lock().unwrap();
                if fault == Fault::Hang {
                    hung.push(stream);
                } else {
                    let server = *server.lock().unwrap();
                    thread::spawn(move || relay(stream, server, fault));
                }
            }
        });
        proxy
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    /// New connections go there.
    pub(crate) fn lead_to(&self, server: SocketAddr) {
        *self.server.lock().unwrap() = server;
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }
}

fn relay(mut client: TcpStream, server: SocketAddr, fault: Fault) -> Option<()> {
    if fault == Fault::Reset {
        let _ = client.read(&mut [0; 1]);
        let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        return nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::Linger, &abort).ok();
    }
    let mut upstream = TcpStream::connect(server).ok()?;
    let (mut from, mut to) = (client.try_clone().ok()?, upstream.try_clone().ok()?);
    thread::spawn(move || std::io::copy(&mut from, &mut to));
    let mut left = match fault {
        Fault::CutAfter(n) => n,
        _ => usize::MAX,
    };
    let mut chunk = [0; 4096];
    loop {
        let most = if fault == Fault::Slow { 1 } else { chunk.len().min(left) };
        let n = upstream.read(&mut chunk[..most]).ok().filter(|n| *n > 0)?;
        client.write_all(&chunk[..n]).ok()?;
        left -= n;
        if left == 0 {
            return client.shutdown(std::net::Shutdown::Both).ok();
        }
        if fault == Fault::Slow {
            thread::sleep(Duration::from_millis(20)); // the fault itself, nobody waits for it to end
        }
    }
}
