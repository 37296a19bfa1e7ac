//! Keys in a vault elsewhere: Azure Key Vault, Managed HSM, or another machine's `vault serve`, through Microsoft's own SDK
//! (KEY-VAULT section 5).
//!
//! Must never see: disks, sets, other vaults' keys. Async stays in this folder: callers block, never longer than their
//! deadline.
//!
//! Invariants:
//! 1. Key identifiers that come in belong to this vault, and those that go out name its canonical host (RULINGS 8). What is
//!    asked is always the endpoint.
//! 2. An answer counts only if it names the very key and version that was asked for.
//! 3. A data key on its way is in memory that is wiped: the SDK's buffers by the program's allocator, this thread's stack
//!    by `bridge`; no connection keeps one.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use azure_core::http::request::options::ClientRequestId;
use azure_core::http::{ClientMethodOptions, ClientOptions, Context, RetryOptions, UserAgentOptions};
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, Key, KeyClientGetKeyOptions, KeyClientUnwrapKeyOptions, KeyClientWrapKeyOptions,
    KeyOperationParameters, KeyOperationResult,
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};

use self::credentials::Caller;
use self::errors::{About, Operation};
use super::{Call, Credential, KeyInfo, KeyRef, KeyVault, Kid, VaultEntry, VaultError, WrapAlg, WrappedDek};
use crate::error::Result;
use crate::secret::Secret;

mod answers;
mod bridge;
mod credentials;
mod errors;
mod transport;

pub use self::credentials::Claims;

/// A call without a deadline ends after this.
const LIMIT: Duration = Duration::from_secs(30);
/// No further try starts after this.
const PATIENCE: Duration = Duration::from_secs(10);
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(400);

/// A vault elsewhere, asked in the name of one identity. Cheap to make: the first call connects.
pub struct AzureVault {
    entry: Arc<VaultEntry>,
    connection: Mutex<Option<Arc<Connection>>>,
    tries: u32,
}

struct Connection {
    client: KeyClient,
    caller: Arc<Caller>,
    /// Seed of the pauses' jitter.
    calls: AtomicU32,
}

impl AzureVault {
    /// The vault of an entry.
    #[must_use]
    pub fn new(entry: VaultEntry) -> Self {
        Self { entry: Arc::new(entry), connection: Mutex::default(), tries: TRIES }
    }

    /// One that asks once and tells: for callers that repeat by themselves.
    #[must_use]
    pub fn without_retry(mut self) -> Self {
        self.tries = 1;
        self
    }

    /// Where it is and how it is asked.
    #[must_use]
    pub fn entry(&self) -> &VaultEntry {
        &self.entry
    }

    /// Whom the last token was for, where tokens say so.
    #[must_use]
    pub fn claims(&self) -> Option<Claims> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.as_ref().and_then(|c| c.caller.claims())
    }

    /// Files that the entry names are read, and that is all: what can be checked without asking anybody.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `InvalidInput`.
    pub fn check_files(entry: &VaultEntry) -> Result<()> {
        if let Some(file) = &entry.ca_file {
            transport::certificates(file)?;
        }
        match &entry.credential {
            // A service's credentials exist inside the service only.
            Credential::ClientSecret { secret: source @ super::SecretSource::File(_), .. } => {
                credentials::read_secret(source).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// One client for the life of this value: it keeps the token and what the vault said of its audience.
    fn connection(&self) -> Result<Arc<Connection>> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let opened = Arc::new(Connection::open(&self.entry)?);
        *connection = Some(opened.clone());
        Ok(opened)
    }

    /// Asks until there is an answer, the tries are used up, or the time is.
    fn ask<T, F>(
        &self,
        operation: Operation,
        key: &str,
        call: &Call,
        request: impl Fn(Arc<Connection>) -> F + Send + 'static,
    ) -> Result<T, VaultError>
    where
        T: Send + 'static,
        F: Future<Output = azure_core::Result<T>> + Send,
    {
        let started = Instant::now();
        let deadline = call.deadline.unwrap_or(started + LIMIT);
        let about = About { entry: &self.entry, key, operation, claims: self.claims() };
        // Whatever keeps us from asking may pass (RULINGS 20).
        let connection = self.connection().map_err(|e| about.unreachable(&e.chain()))?;
        let last: Arc<Mutex<Option<VaultError>>> = Arc::default();
        let work = {
            let (entry, key, last) = (self.entry.clone(), key.to_owned(), last.clone());
            let tries = self.tries;
            async move {
                let mut tried = 0;
                loop {
                    tried += 1;
                    let failed = match request(connection.clone()).await {
                        Ok(answer) => return Ok(answer),
                        Err(e) => e,
                    };
                    let claims = connection.caller.claims();
                    let failed = About { entry: &entry, key: &key, operation, claims }.classify(&failed);
                    let VaultError::Transient { retry_after, .. } = &failed else { return Err(failed) };
                    let pause = retry_after.unwrap_or_default().max(connection.pause(tried));
                    let next = Instant::now() + pause;
                    if tried >= tries || next > started + PATIENCE || next >= deadline {
                        return Err(failed);
                    }
                    *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failed);
                    tokio::time::sleep(pause).await;
                }
            }
        };
        bridge::run(deadline, work).unwrap_or_else(|lost| {
            let before = last.lock().unwrap_or_else(PoisonError::into_inner).take();
            Err(before.unwrap_or_else(|| match lost {
                bridge::Lost::Late => {
                    let waited = deadline.saturating_duration_since(started).as_secs_f32();
                    about.unreachable(&format!("no answer within {waited:.1} s"))
                }
                bridge::Lost::Broken => about.unreachable("this program failed: please report it"),
            }))
        })
    }

    /// Name and version of a key of this vault.
    fn own<'a>(&self, kid: &'a Kid) -> Result<(&'a str, &'a str), VaultError> {
        if self.entry.knows_host(kid.host()) {
            return Ok((kid.name(), kid.version()));
        }
        Err(VaultError::Rejected {
            code: "WrongVault",
            message: format!(
                "{kid}: the key identifier belongs to another vault; \"{}\" is {}: name others it is known by \
                 with --alias",
                self.entry.name, self.entry.endpoint
            ),
        })
    }

    fn about<'a>(&'a self, key: &'a str, operation: Operation) -> About<'a> {
        About { entry: &self.entry, key, operation, claims: self.claims() }
    }

    /// A wrap that was refused without a reason is refused by time, when the key's window says so.
    fn wrap_refused(&self, kid: &Kid, call: &Call, refused: VaultError) -> VaultError {
        let VaultError::Denied(_, message) = &refused else { return refused };
        let now = azure_core::time::OffsetDateTime::now_utc().unix_timestamp();
        let outside = |info: &KeyInfo| {
            info.not_before.is_some_and(|from| now < from) || info.expires.is_some_and(|end| now >= end)
        };
        match self.describe(&kid.into(), call) {
            Ok(info) if outside(&info) => {
                let message = format!("{message}; the key is outside its validity period");
                VaultError::Denied(super::Denial::Expired, message)
            }
            _ => refused,
        }
    }
}

impl Connection {
    fn open(entry: &VaultEntry) -> Result<Self> {
        let transport = transport::to_vault(entry)?;
        let caller = Arc::new(Caller::new(entry, &transport)?);
        let options = KeyClientOptions {
            client_options: ClientOptions {
                transport: Some(transport),
                retry: RetryOptions::none(), // `ask` does it, and reads Retry-After without waiting past the deadline
                user_agent: UserAgentOptions {
                    application_id: Some(concat!("wrapdisk-", env!("CARGO_PKG_VERSION")).to_owned()),
                },
                ..ClientOptions::default()
            },
            verify_challenge_resource: Some(!entry.local_server),
            ..KeyClientOptions::default()
        };
        let client = KeyClient::new(entry.endpoint.url(), caller.clone(), Some(options)).map_err(|e| {
            crate::error::Error::new(crate::error::ErrorKind::InvalidInput, "vault URL")
                .caused_by(e.to_string())
        })?;
        Ok(Self { client, caller, calls: AtomicU32::new(std::process::id()) })
    }

    /// Before the next try: 0.4 s, 0.8 s, ..., with up to half of it left away, so that clients do not come in step.
    fn pause(&self, tried: u32) -> Duration {
        let whole = FIRST_PAUSE * 2_u32.saturating_pow(tried.saturating_sub(1)).min(16);
        let seed = self.calls.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9);
        whole - whole / 2 * (seed >> 24) / 256
    }
}

/// The audit of both sides names a call alike.
fn options(call: &Call) -> ClientMethodOptions<'static> {
    let id = ClientRequestId::new(call.correlation.to_string());
    ClientMethodOptions { context: Context::new().with_value(id) }
}

impl KeyVault for AzureVault {
    fn describe(&self, key: &KeyRef, call: &Call) -> Result<KeyInfo, VaultError> {
        let version = key.version.as_ref().map(|v| format!("/{v}")).unwrap_or_default();
        let url = format!("https://{}/keys/{}{version}", self.entry.canonical_host(), key.name);
        let (name, version) = (key.name.clone(), key.version.clone());
        let method_options = options(call);
        let answer: Key = self.ask(Operation::Describe, &url, call, move |connection| {
            let (name, key_version) = (name.clone(), version.clone());
            let options = KeyClientGetKeyOptions { key_version, method_options: method_options.clone() };
            async move { connection.client.get_key(&name, Some(options)).await?.into_model() }
        })?;
        answers::key_info(answer, key, &self.about(&url, Operation::Describe))
    }

    fn wrap(&self, kid: &Kid, alg: WrapAlg, dek: &Secret<64>, call: &Call) -> Result<WrappedDek, VaultError> {
        let (name, version) = self.own(kid)?;
        let (name, version) = (name.to_owned(), version.to_owned());
        let about = self.about(kid.as_str(), Operation::Wrap);
        let dek = copy(dek).map_err(|e| about.unreachable(&e.chain()))?;
        let method_options = options(call);
        let unexplained = Arc::new(AtomicBool::new(false));
        let silent = unexplained.clone();
        let answered: Result<KeyOperationResult, _> =
            self.ask(Operation::Wrap, kid.as_str(), call, move |connection| {
                let (name, key_version) = (name.clone(), Some(version.clone()));
                let options = KeyClientWrapKeyOptions { key_version, method_options: method_options.clone() };
                let parameters = parameters(alg, dek.expose());
                let silent = silent.clone();
                async move {
                    let sent = parameters.try_into()?;
                    let answer = connection.client.wrap_key(&name, sent, Some(options)).await;
                    let answer =
                        answer.inspect_err(|e| silent.store(errors::is_unexplained(e), Ordering::Relaxed));
                    answer?.into_model()
                }
            });
        let answer = answered.map_err(|refused| match unexplained.load(Ordering::Relaxed) {
            true => self.wrap_refused(kid, call, refused),
            false => refused,
        })?;
        let bytes = answers::wrapped(answer, kid, &self.about(kid.as_str(), Operation::Wrap))?;
        Ok(WrappedDek { kid: kid.clone(), alg, bytes })
    }

    fn unwrap(&self, wrapped: &WrappedDek, call: &Call) -> Result<Secret<64>, VaultError> {
        let (name, version) = self.own(&wrapped.kid)?;
        let (name, version) = (name.to_owned(), version.to_owned());
        let (alg, bytes) = (wrapped.alg, wrapped.bytes.clone());
        let (entry, kid) = (self.entry.clone(), wrapped.kid.clone());
        let method_options = options(call);
        // Put into secret memory on the thread that received it.
        self.ask(Operation::Unwrap, wrapped.kid.as_str(), call, move |connection| {
            let (name, version) = (name.clone(), version.clone());
            let options = KeyClientUnwrapKeyOptions { method_options: method_options.clone() };
            let parameters = parameters(alg, &bytes);
            let (entry, kid) = (entry.clone(), kid.clone());
            async move {
                let sent = parameters.try_into()?;
                let answer =
                    connection.client.unwrap_key(&name, &version, sent, Some(options)).await?.into_model()?;
                let claims = connection.caller.claims();
                let about = About { entry: &entry, key: kid.as_str(), operation: Operation::Unwrap, claims };
                Ok(answers::unwrapped(answer, &kid, &about))
            }
        })?
    }
}

fn parameters(alg: WrapAlg, value: &[u8]) -> KeyOperationParameters {
    let algorithm = match alg {
        WrapAlg::RsaOaep256 => EncryptionAlgorithm::RsaOaep256,
    };
    KeyOperationParameters { algorithm: Some(algorithm), value: Some(value.to_vec()), ..Default::default() }
}

fn copy(dek: &Secret<64>) -> Result<Secret<64>> {
    Secret::try_from_fn(|bytes| {
        bytes.copy_from_slice(dek.expose());
        Ok(())
    })
}

impl fmt::Debug for AzureVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AzureVault(\"{}\", {}, {})", self.entry.name, self.entry.endpoint, self.entry.credential)
    }
}
