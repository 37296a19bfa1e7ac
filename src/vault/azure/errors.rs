//! What an answer of a vault means: the table of KEY-VAULT section 1, and the words for people.
//!
//! Must never see: secrets. An answer's text is hostile: it is bounded before it is parsed and shown without control
//! characters.
//!
//! Invariant: [`VaultError::Denied`] needs a Key Vault error body that was parsed, and its code. TLS was verified by then:
//! there is no switch to turn that off. A page of a proxy, a portal or a gateway is [`VaultError::Transient`].

use std::error::Error as StdError;
use std::time::Duration;

use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::RawResponse;
use azure_core::http::headers::HeaderName;
use serde::Deserialize;

use super::super::{Credential, Denial, VaultEntry, VaultError};
use super::credentials::Claims;
use super::transport::explain;

/// No error of Key Vault comes near.
const MAX_ERROR_BODY: usize = 16 * 1024;
/// Of a text that somebody else wrote.
const MAX_SHOWN: usize = 700;
/// Asked to wait longer than this, somebody else must decide.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Describe,
    Wrap,
    Unwrap,
}

impl Operation {
    /// The permission it takes.
    pub(super) const fn permission(self) -> &'static str {
        match self {
            Self::Describe => "get",
            Self::Wrap => "wrapKey",
            Self::Unwrap => "unwrapKey",
        }
    }
}

/// Of what an error speaks.
#[derive(Debug)]
pub(super) struct About<'a> {
    pub(super) entry: &'a VaultEntry,
    /// The key's identifier, as containers have it.
    pub(super) key: &'a str,
    pub(super) operation: Operation,
    pub(super) claims: Option<Claims>,
}

/// `{"error":{"code":C,"message":M,"innererror":{"code":I}}}`
#[derive(Debug, Deserialize)]
struct ServiceError {
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default, rename = "innererror", alias = "innerError")]
    inner: Option<InnerError>,
}

#[derive(Debug, Deserialize)]
struct InnerError {
    #[serde(default)]
    code: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    error: ServiceError,
}

impl ServiceError {
    fn parse(body: &[u8]) -> Option<Self> {
        if body.len() > MAX_ERROR_BODY {
            return None;
        }
        Some(serde_json::from_slice::<ErrorBody>(body).ok()?.error)
    }

    fn inner(&self) -> &str {
        self.inner.as_ref().and_then(|inner| inner.code.as_deref()).unwrap_or_default()
    }
}

/// A 403 that leaves open why: the codes that mean permission, and those of the table, were not among its words.
pub(super) fn is_unexplained(e: &azure_core::Error) -> bool {
    let SdkErrorKind::HttpResponse { raw_response: Some(raw), .. } = e.kind() else { return false };
    let explained =
        ["ForbiddenByPolicy", "AccessDenied", "ForbiddenByRbac", "KeyOperationForbidden", "KeyDisabled"];
    ServiceError::parse(raw.body()).is_some_and(|error| !explained.contains(&error.inner()))
}

/// The class of an answer that is not a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Denied(Denial),
    Auth,
    BadParameter,
    Transient,
}

/// The table. Without an error body that could be parsed nothing is decided.
fn outcome(status: u16, error: Option<&ServiceError>) -> Outcome {
    let Some(error) = error else { return Outcome::Transient };
    match (status, error.code.as_str()) {
        (403, "Forbidden" | "AccessDenied") => Outcome::Denied(match error.inner() {
            "KeyDisabled" => Denial::Disabled,
            "ForbiddenByFirewall" | "ForbiddenByConnection" => Denial::Firewall,
            "KeyNotYetValidOrExpired" => Denial::Expired,
            // ForbiddenByPolicy, AccessDenied (older), ForbiddenByRbac, KeyOperationForbidden, and what is yet to come.
            _ => Denial::NoPermission,
        }),
        (404, "KeyNotFound") => Outcome::Denied(Denial::Deleted),
        (409, _) if matches!(error.inner(), "ObjectIsDeletedButRecoverable" | "ObjectIsBeingDeleted") => {
            Outcome::Denied(Denial::Deleted)
        }
        (401, "Unauthorized") => Outcome::Auth,
        (400, "BadParameter") => Outcome::BadParameter,
        _ => Outcome::Transient,
    }
}

impl About<'_> {
    /// What the SDK's error means.
    pub(super) fn classify(&self, e: &azure_core::Error) -> VaultError {
        match e.kind() {
            SdkErrorKind::HttpResponse { status, raw_response, .. } => {
                self.answered(u16::from(*status), raw_response.as_deref())
            }
            SdkErrorKind::Credential => self.not_authenticated(e),
            SdkErrorKind::Connection | SdkErrorKind::Io => self.unreachable(&explain(e)),
            _ => self.not_understood(e),
        }
    }

    fn answered(&self, status: u16, raw: Option<&RawResponse>) -> VaultError {
        let error = raw.and_then(|raw| ServiceError::parse(raw.body()));
        let said = error.as_ref().map_or_else(
            || format!("the answer was HTTP {status} without an error of Key Vault"),
            |e| shown(&e.message),
        );
        match outcome(status, error.as_ref()) {
            Outcome::Denied(denial) => VaultError::Denied(denial, self.message(&said, &self.next(denial))),
            Outcome::Auth => VaultError::Auth(
                self.message(&said, "its token was refused: is the tenant the vault's, and the clock right?"),
            ),
            Outcome::BadParameter if self.operation == Operation::Unwrap => {
                VaultError::Corrupt(self.message(&said, "the wrapped key is damaged, or of another key"))
            }
            Outcome::BadParameter => VaultError::Rejected {
                code: "BadParameter",
                message: self.message(&said, "is it an RSA or RSA-HSM key?"),
            },
            Outcome::Transient => VaultError::Transient {
                message: self.message(&said, next_for_status(status)),
                retry_after: raw.and_then(retry_after),
            },
        }
    }

    /// No token: the issuer said no (`Auth`), or could not be asked.
    fn not_authenticated(&self, e: &azure_core::Error) -> VaultError {
        let sdk = || causes(e).filter_map(|e| e.downcast_ref::<azure_core::Error>());
        let answer = sdk().find_map(|e| match e.kind() {
            SdkErrorKind::HttpResponse { status, raw_response, .. } => {
                Some((e, u16::from(*status), raw_response.as_deref()))
            }
            _ => None,
        });
        if let Some((e, status, raw)) = answer {
            let json = raw.is_some_and(|raw| {
                let body = raw.body().as_ref();
                body.len() <= MAX_ERROR_BODY
                    && serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body).is_ok()
            });
            let said = shown(&e.to_string());
            if json && matches!(status, 400 | 401 | 403) {
                return VaultError::Auth(self.message(&said, self.next_for_identity()));
            }
            return VaultError::Transient {
                message: self.message(&format!("no token: HTTP {status}: {said}"), next_for_status(status)),
                retry_after: raw.and_then(retry_after),
            };
        }
        let failed = |kind: &SdkErrorKind| {
            matches!(kind, SdkErrorKind::Connection | SdkErrorKind::Io | SdkErrorKind::DataConversion)
        };
        if sdk().any(|e| failed(e.kind())) || causes(e).any(|e| e.is::<std::io::Error>()) {
            let cause = format!("no token could be fetched: {}", explain(e));
            let next = match self.entry.credential {
                Credential::ManagedIdentity { .. } => {
                    "a managed identity exists on Azure's machines only, or with IDENTITY_ENDPOINT and \
                     IDENTITY_HEADER (wrapdisk vault env)"
                }
                _ => "is the authority reachable, and the configuration complete?",
            };
            return VaultError::Transient { message: self.message(&cause, next), retry_after: None };
        }
        let said = shown(&e.to_string());
        // `az` says everything in words: only what is surely about the login is.
        let login = ["az login", "AADSTS", "not found on PATH"].iter().any(|word| said.contains(word));
        if login || !matches!(self.entry.credential, Credential::AzureCli { .. }) {
            return VaultError::Auth(self.message(&said, self.next_for_identity()));
        }
        VaultError::Transient { message: self.message(&said, "does az work here?"), retry_after: None }
    }

    fn next_for_identity(&self) -> &'static str {
        match self.entry.credential {
            Credential::ManagedIdentity { .. } => "is this identity assigned to this machine?",
            Credential::WorkloadIdentity { .. } => "is the federated credential of the application set up?",
            Credential::ClientSecret { .. } => "is the secret the application's, and not expired?",
            Credential::AzureCli { .. } => "install the Azure CLI and log in: az login",
        }
    }

    pub(super) fn unreachable(&self, cause: &str) -> VaultError {
        VaultError::Transient {
            message: self.message("the vault could not be asked", cause),
            retry_after: None,
        }
    }

    fn not_understood(&self, e: &azure_core::Error) -> VaultError {
        let text = shown(&explain(e));
        let next = if text.contains("challenge resource") && !self.entry.local_server {
            "this host asks for a token for somebody else; if it is a wrapdisk vault serve, add it with --local-server"
        } else {
            "something between here and the vault may have changed the answer"
        };
        let message = self.message(&format!("the answer could not be understood: {text}"), next);
        VaultError::Transient { message, retry_after: None }
    }

    /// The answer is a success, and not what it must be.
    pub(super) fn corrupt(&self, found: &str) -> VaultError {
        VaultError::Corrupt(
            self.message(found, "nothing was done with it; who answers in the vault's place?"),
        )
    }

    pub(super) fn message(&self, said: &str, next: &str) -> String {
        format!(
            "{} (key {}, identity {}, vault \"{}\" at {}); {next}",
            said.trim_end_matches('.'),
            self.key,
            self.identity(),
            self.entry.name,
            self.entry.endpoint
        )
    }

    fn identity(&self) -> String {
        let known = self.claims.as_ref().filter(|c| !c.oid.is_empty());
        let oid = known.map(|c| format!(", object id {}", c.oid)).unwrap_or_default();
        format!("{}{oid}", self.entry.credential)
    }

    fn next(&self, denial: Denial) -> String {
        let ours = self.entry.local_server;
        let (name, version) = key_parts(self.key);
        let endpoint = &self.entry.endpoint;
        match denial {
            Denial::Disabled if ours => {
                let version = version.map(|v| format!(" --version {v}")).unwrap_or_default();
                format!("enable it, where the vault is: wrapdisk key enable {name}{version}")
            }
            Denial::Disabled => {
                let version = version.map(|v| format!("/{v}")).unwrap_or_default();
                format!(
                    "enable it: az keyvault key set-attributes --id {endpoint}/keys/{name}{version} --enabled true"
                )
            }
            Denial::Deleted if ours => {
                format!("if it was deleted, where the vault is: wrapdisk key recover {name}")
            }
            Denial::Deleted => {
                format!("if it was deleted: az keyvault key recover --id {endpoint}/deletedkeys/{name}")
            }
            Denial::NoPermission => {
                let missing = self.operation.permission();
                format!(
                    "it takes the permission {missing}: {}",
                    grant(self.entry, name, self.claims.as_ref())
                )
            }
            Denial::Expired if ours => {
                format!("make a new version, where the vault is: wrapdisk key rotate {name}")
            }
            Denial::Expired => {
                format!("make a new version: az keyvault key rotate --id {endpoint}/keys/{name}")
            }
            Denial::Firewall if ours => "the vault is served with --allow: add this machine's address".into(),
            Denial::Firewall => format!(
                "let this machine in: az keyvault network-rule add --name {} --ip-address ADDRESS",
                vault_name(self.entry)
            ),
        }
    }
}

/// The command that gives this identity what a set needs: get, wrapKey and unwrapKey on one key.
fn grant(entry: &VaultEntry, key: &str, claims: Option<&Claims>) -> String {
    let vault = vault_name(entry);
    let oid = claims.map(|c| c.oid.as_str()).filter(|oid| !oid.is_empty());
    let client = match &entry.credential {
        Credential::ManagedIdentity { client_id } | Credential::WorkloadIdentity { client_id, .. } => {
            client_id.as_deref()
        }
        Credential::ClientSecret { client_id, .. } => Some(client_id.as_str()),
        Credential::AzureCli { .. } => None,
    };
    let assignee = oid.or(client).unwrap_or("OBJECT-ID-OF-THE-IDENTITY");
    if entry.local_server {
        let who = client.unwrap_or("IDENTITY");
        return format!(
            "where the vault is: wrapdisk vault grant {who} --role 'crypto service encryption user' --key {key}"
        );
    }
    if entry.is_managed_hsm() {
        return format!(
            "az keyvault role assignment create --hsm-name {vault} --assignee {assignee} --scope /keys/{key} \
             --role 'Managed HSM Crypto Service Encryption User'"
        );
    }
    format!(
        "az role assignment create --assignee {assignee} --role 'Key Vault Crypto Service Encryption User' \
         --scope \"$(az keyvault show --name {vault} --query id --output tsv)/keys/{key}\""
    )
}

fn vault_name(entry: &VaultEntry) -> &str {
    entry.endpoint.name().split('.').next().unwrap_or_default()
}

/// Name and version in a key's identifier.
fn key_parts(key: &str) -> (&str, Option<&str>) {
    let mut parts = key.split("/keys/").nth(1).unwrap_or_default().split('/');
    (parts.next().unwrap_or_default(), parts.next())
}

fn next_for_status(status: u16) -> &'static str {
    match status {
        429 => "too many requests: it will be asked again",
        401 | 403 | 404 | 407 => "a proxy or a gateway may have answered in the vault's place",
        _ => "try again",
    }
}

fn causes<'a>(e: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(e), |e: &&'a (dyn StdError + 'static)| (*e).source())
}

/// In seconds, in milliseconds, or as a date.
fn retry_after(raw: &RawResponse) -> Option<Duration> {
    let header = |name: &'static str| raw.headers().get_optional_str(&HeaderName::from_static(name));
    let number = |name| header(name).and_then(|text| text.trim().parse::<u64>().ok());
    let millis = number("x-ms-retry-after-ms").or_else(|| number("retry-after-ms"));
    let wait = millis.map(Duration::from_millis).or_else(|| number("retry-after").map(Duration::from_secs));
    let wait = wait.or_else(|| {
        let date = azure_core::time::parse_rfc7231(header("retry-after")?).ok()?;
        let seconds = date.unix_timestamp() - azure_core::time::OffsetDateTime::now_utc().unix_timestamp();
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    });
    wait.map(|wait| wait.min(MAX_RETRY_AFTER))
}

/// Somebody else's text on one line, without what could change a terminal.
fn shown(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let plain = |c: &char| c.is_ascii_graphic() || *c == ' ';
    words.join(" ").chars().filter(plain).take(MAX_SHOWN).collect()
}
