//! `wrapdisk vault serve`: the embedded vault over HTTPS, in the words of Azure Key Vault's REST API (KEY-VAULT sections 3
//! and 4).
//!
//! A request travels: connection (`listen`) -> host and place ([`crate::vault::wire`]) -> token (`auth`) -> address
//! (`firewall`) -> allowance and lane (`limits`) -> body -> the vault, on a thread of a small pool (`keys`) -> answer
//! (`reply`). One thread runs everything but the vault.
//!
//! Must never see: the database, private keys (but for the TLS key).
//!
//! Invariants:
//! 1. Nothing of a request but its host is judged before its token.
//! 2. Everything is bounded: connections, heads, bodies, time, requests of one identity, threads.
//! 3. No answer without a record, but for challenges: those would let anybody fill the disk.

mod auth;
mod desk;
mod firewall;
mod keys;
mod limits;
mod listen;
mod pace;
mod reply;
mod tls;
mod tokens;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use self::desk::{Desk, TokenDesk};
use self::limits::THREADS;
use self::listen::Crowd;
use self::tls::{Names, Shown};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::vault::local::LocalVault;

pub use self::firewall::Cidr;
pub use self::tls::Ca;

/// More than this many connections nobody needs, and each costs memory.
const MOST_CONNECTIONS: u32 = 4096;
/// Of the token endpoint, which is on this machine.
const MOST_TOKEN_CONNECTIONS: u32 = 256;
/// Descriptors that are not connections.
const OTHER_FILES: u64 = 64;
/// What is being served at a stop has this long.
const GRACE: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3600);
/// How long a new certificate is valid.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a token is valid.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where, over HTTPS; port 0 is any.
    pub listen: Vec<SocketAddr>,
    /// Where managed identities get their tokens: plain http, so loopback only.
    pub token_listen: Option<SocketAddr>,
    /// In whose name the instance metadata endpoint, which has no secret, gives tokens.
    pub imds: Option<String>,
    /// Names and addresses of this server besides the usual ones.
    pub names: Vec<String>,
    /// Which addresses may ask; all when empty.
    pub allow: Vec<Cidr>,
    /// Requests a second of one identity; `None`: as many as can be served.
    pub rate: Option<u32>,
    /// Of tokens.
    pub token_lifetime: Duration,
    /// Of the server's certificate.
    pub leaf_lifetime: Duration,
}

/// A server that listens already, but answers only when it runs.
#[derive(Debug)]
pub struct Server {
    vault: Arc<LocalVault>,
    options: Options,
    https: Vec<std::net::TcpListener>,
    tokens: Option<std::net::TcpListener>,
    shown: Arc<Shown>,
    ca_pem: String,
    stop: (watch::Sender<bool>, watch::Receiver<bool>),
}

/// Ends a server, from any thread.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// Let nobody new in, answer what is being served, close idle connections, return from [`Server::run`].
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// `Busy` (an address is in use), `InvalidInput` (names, token endpoint not on loopback, unknown identity),
    /// `Unreachable` (the vault).
    pub fn bind(vault: Arc<LocalVault>, options: Options) -> Result<Self> {
        let https: Vec<_> = options.listen.iter().map(|a| listener(*a)).collect::<Result<_>>()?;
        let tokens = options.token_listen.map(token_listener).transpose()?;
        let own: Vec<IpAddr> = options.listen.iter().map(SocketAddr::ip).collect();
        let names = Names::new(&options.names, &own)?;
        let ca = Ca::of(&vault)?;
        let ca_pem = ca.pem();
        let shown = Arc::new(Shown::new(ca, names, options.leaf_lifetime)?);
        Ok(Self { vault, options, https, tokens, shown, ca_pem, stop: watch::channel(false) })
    }

    /// Where it listens over HTTPS.
    ///
    /// # Errors
    /// The operating system's.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>> {
        self.https.iter().map(|l| l.local_addr().io_at("look at", "a listener")).collect()
    }

    /// Where it gives tokens to managed identities.
    ///
    /// # Errors
    /// The operating system's.
    pub fn token_address(&self) -> Result<Option<SocketAddr>> {
        self.tokens.as_ref().map(|l| l.local_addr().io_at("look at", "a listener")).transpose()
    }

    /// The certificate of the CA that clients must trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Ends it later.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.0.clone())
    }

    /// Serves until it is stopped.
    ///
    /// # Errors
    /// `Unreachable` (the vault), or no thread, no descriptor.
    pub fn run(self) -> Result<()> {
        let most = MOST_CONNECTIONS.min(descriptors());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(THREADS)
            .thread_name("vault")
            .build()
            .io_at("start the server", "")?;
        let done = runtime.block_on(self.serve(most));
        // A key that is being made holds nobody up: its transaction never began.
        runtime.shutdown_timeout(Duration::from_secs(1));
        done
    }

    async fn serve(self, most: u32) -> Result<()> {
        let desk = Arc::new(Desk::new(Arc::clone(&self.vault), &self.options, Arc::clone(&self.shown))?);
        let tls = TlsAcceptor::from(tls::config(Arc::clone(&self.shown))?);
        let crowd = Crowd::new(most, self.stop.1.clone());
        let near = Crowd::new(MOST_TOKEN_CONNECTIONS, self.stop.1.clone());
        for listener in self.https {
            let listener = to_tokio(listener)?;
            tokio::spawn(crowd.clone().serve(listener, Some(tls.clone()), Arc::clone(&desk)));
        }
        if let Some(listener) = self.tokens {
            let desk = Arc::new(TokenDesk(Arc::clone(&desk)));
            tokio::spawn(near.clone().serve(to_tokio(listener)?, None, desk));
        }
        tokio::spawn(renew(Arc::clone(&self.shown)));
        tokio::spawn(hourly(Arc::clone(&self.vault)));
        let mut stop = self.stop.1.clone();
        let _ = stop.wait_for(|stop| *stop).await;
        let gone = async {
            crowd.gone().await;
            near.gone().await;
        };
        if tokio::time::timeout(GRACE, gone).await.is_err() {
            log::warn!("vault serve: stopped with requests unanswered");
        }
        Ok(())
    }
}

fn listener(address: SocketAddr) -> Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address).map_err(|e| {
        let busy = e.kind() == std::io::ErrorKind::AddrInUse;
        let error = Error::io("listen", e).on(address.to_string());
        if busy {
            error.as_kind(ErrorKind::Busy).hint("choose another one: --listen ADDR:PORT")
        } else {
            error
        }
    })?;
    listener.set_nonblocking(true).io_at("listen", "")?;
    Ok(listener)
}

fn token_listener(address: SocketAddr) -> Result<std::net::TcpListener> {
    if address.ip().is_loopback() {
        return listener(address);
    }
    Err(Error::new(ErrorKind::InvalidInput, "token endpoint: found a network's address, allowed loopback")
        .on(address.to_string())
        .hint("it is plain http; clients on other machines sign in over https with a client secret"))
}

fn to_tokio(listener: std::net::TcpListener) -> Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::from_std(listener).io_at("listen", "")
}

/// As many descriptors as we may have; how many connections that allows.
fn descriptors() -> u32 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 512 };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let files = if raised { hard } else { soft };
    u32::try_from(files.saturating_sub(OTHER_FILES).max(16)).unwrap_or(u32::MAX)
}

async fn renew(shown: Arc<Shown>) {
    loop {
        tokio::time::sleep(shown.renew_after()).await;
        if let Err(e) = shown.renew() {
            log::error!("vault serve: no new certificate: {}", e.chain());
        }
    }
}

/// Rotation and purging of what is due: at the start, and every hour.
async fn hourly(vault: Arc<LocalVault>) {
    loop {
        let vault = Arc::clone(&vault);
        let done = tokio::task::spawn_blocking(move || {
            let call = vault.admin("vault serve");
            let (rotated, purged) = (vault.rotate_due(&call), vault.purge_overdue(&call));
            for e in [rotated.map(drop).err(), purged.map(drop).err()].into_iter().flatten() {
                log::error!("vault serve: hourly work: {}", Error::from(e).chain());
            }
        });
        if done.await.is_err() {
            log::error!("vault serve: hourly work ended early");
        }
        tokio::time::sleep(HOUR).await;
    }
}
