//! Who we are to a vault elsewhere: the SDK's credentials, made anew for every token.
//!
//! Made anew, so that a client secret is in memory only while it is exchanged, a file that was replaced counts at once, and
//! a 401 is answered with a token that was really fetched, not with the one that was just refused. The SDK's client keeps
//! the token itself until five minutes before its end.
//!
//! Must never see: keys. A secret goes into no message, `Debug` or log; a token's claims are read for messages only.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::{ClientOptions, RetryOptions, Transport};
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions,
    UserAssignedId, WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use base64::Engine;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::super::{Credential, SecretSource, VaultEntry};
use super::transport;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// Entra's secrets have 40 characters, ours 43.
const MAX_SECRET: u64 = 4096;
/// For a token: `az` takes some seconds on a slow machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// A token's claims; Entra's have 1 to 2 KiB.
const MAX_CLAIMS: usize = 16 * 1024;

/// A credential that remembers whom its last token was for.
pub(super) struct Caller {
    credential: Credential,
    options: ClientOptions,
    claims: Mutex<Option<Claims>>,
}

/// What a token of Entra says of its owner; our own tokens say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Claims {
    /// Object id of the identity: what a role is assigned to.
    pub oid: String,
    /// Application id.
    pub appid: String,
    /// Directory.
    pub tid: String,
}

impl Caller {
    pub(super) fn new(entry: &VaultEntry, to_vault: &Transport) -> Result<Self> {
        let machine = matches!(entry.credential, Credential::ManagedIdentity { .. });
        let transport = if machine { transport::to_machine()? } else { to_vault.clone() };
        let authority = entry.authority.as_ref().or(entry.local_server.then_some(&entry.endpoint));
        let cloud = authority.map(|authority| {
            let mut custom = CustomConfiguration::default();
            custom.authority_host = authority.url().to_owned();
            Arc::new(CloudConfiguration::from(custom))
        });
        let options = ClientOptions {
            transport: Some(transport),
            retry: RetryOptions::none(), // the whole call is tried again
            cloud,
            ..ClientOptions::default()
        };
        Ok(Self { credential: entry.credential.clone(), options, claims: Mutex::default() })
    }

    /// Of the last token.
    pub(super) fn claims(&self) -> Option<Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn make(&self) -> azure_core::Result<Arc<dyn TokenCredential>> {
        let client_options = self.options.clone();
        Ok(match &self.credential {
            Credential::ManagedIdentity { client_id } => {
                ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
                    user_assigned_id: client_id.clone().map(UserAssignedId::ClientId),
                    client_options,
                }))?
            }
            Credential::WorkloadIdentity { tenant, client_id } => {
                WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options },
                    client_id: client_id.clone(),
                    tenant_id: tenant.clone(),
                    token_file_path: None,
                }))?
            }
            Credential::ClientSecret { tenant, client_id, secret } => {
                let secret = read_secret(secret)
                    .map_err(|e| azure_core::Error::with_message(SdkErrorKind::Io, e.chain()))?;
                ClientSecretCredential::new(
                    tenant,
                    client_id.clone(),
                    Secret::new(secret.as_str().to_owned()), // freed, and so wiped, with the credential
                    Some(ClientSecretCredentialOptions { client_options }),
                )?
            }
            Credential::AzureCli { tenant } => {
                let tenant_id = tenant.clone();
                AzureCliCredential::new(Some(AzureCliCredentialOptions { tenant_id, ..Default::default() }))?
            }
        })
    }
}

#[async_trait::async_trait]
impl TokenCredential for Caller {
    async fn get_token(
        &self,
        scopes: &[&str],
        options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let credential = self.make()?;
        // The SDK asks Azure's metadata service for up to 72 s, which is not there on any other machine.
        let token = tokio::time::timeout(PATIENCE, credential.get_token(scopes, options)).await;
        let token = token.map_err(|_| {
            let late = format!("no answer within {} s", PATIENCE.as_secs());
            let late = azure_core::Error::with_message(SdkErrorKind::Io, late);
            azure_core::Error::new(SdkErrorKind::Credential, late)
        })??;
        *self.claims.lock().unwrap_or_else(PoisonError::into_inner) = Claims::of(token.token.secret());
        Ok(token)
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Caller({})", self.credential)
    }
}

impl Claims {
    /// The middle part of a JSON Web Token (RFC 7519), not verified: it is the vault that decides, this is for messages.
    fn of(token: &str) -> Option<Self> {
        let payload = token.split('.').nth(1).filter(|p| p.len() <= MAX_CLAIMS)?;
        let json = Zeroizing::new(base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?);
        let claims: Self = serde_json::from_slice(&json).ok()?;
        let plain =
            |id: &String| id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let all = [&claims.oid, &claims.appid, &claims.tid].into_iter().all(plain);
        all.then_some(claims)
    }
}

/// Reads a client secret; one newline at its end is not part of it.
///
/// # Errors
/// `NotFound`; `PermissionDenied`, also for a file that others can read; `InvalidInput`.
pub(super) fn read_secret(source: &SecretSource) -> Result<Zeroizing<String>> {
    let path = secret_path(source)?;
    let file = std::fs::File::open(&path).io_at("open the client secret", &path)?;
    let mode = file.metadata().io_at("stat", &path)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let found = format!("mode of the client secret: found {mode:04o}, allowed 0600 or 0400");
        return Err(Error::new(ErrorKind::PermissionDenied, found)
            .at(&path)
            .hint(format!("chmod 600 '{}'", path.display())));
    }
    let mut text = Zeroizing::new(String::with_capacity(4097));
    file.take(MAX_SECRET + 1).read_to_string(&mut text).io_at("read the client secret", &path)?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    if secret.is_empty() || secret.len() as u64 > MAX_SECRET {
        let found = format!("client secret: found {} bytes, allowed 1 to {MAX_SECRET}", secret.len());
        return Err(Error::new(ErrorKind::InvalidInput, found).at(&path));
    }
    Ok(Zeroizing::new(secret.to_owned()))
}

fn secret_path(source: &SecretSource) -> Result<PathBuf> {
    match source {
        SecretSource::File(path) => Ok(path.clone()),
        SecretSource::SystemdCredential(name) => {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                Error::new(ErrorKind::NotFound, "the client secret: systemd handed over no credentials")
                    .on(name)
                    .hint(format!("in the unit: LoadCredential={name}:/path/of/the/secret"))
            })?;
            Ok(Path::new(&folder).join(name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read_from_a_jwt_and_from_nothing_else() {
        let jwt = |payload: &str| {
            format!("e30.{}.c2ln", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(payload))
        };
        let claims = Claims::of(&jwt(r#"{"oid":"0-a","appid":"1-b","tid":"2-c","aud":"x"}"#)).unwrap();
        assert_eq!((claims.oid.as_str(), claims.appid.as_str(), claims.tid.as_str()), ("0-a", "1-b", "2-c"));
        let long = jwt(&format!(r#"{{"oid":"{}"}}"#, "a".repeat(65)));
        for other in ["", "opaque", "a.b.c", "a.e30", &jwt("[]"), &jwt("{\"oid\":\"\\u001b[2J\"}"), &long] {
            assert!(Claims::of(other).is_none_or(|c| c == Claims::default()), "{other:?}");
        }
    }

    #[test]
    fn a_client_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let source = SecretSource::File(path.clone());
        assert_eq!(read_secret(&source).unwrap_err().kind(), ErrorKind::NotFound);
        for (text, mode, expected) in [
            ("s3cret\n", 0o600, Ok("s3cret")),
            ("s3cret", 0o400, Ok("s3cret")),
            ("s3cret", 0o640, Err(ErrorKind::PermissionDenied)),
            ("\n", 0o600, Err(ErrorKind::InvalidInput)),
            (&"x".repeat(4097), 0o600, Err(ErrorKind::InvalidInput)),
        ] {
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let read = read_secret(&source);
            assert_eq!(read.as_ref().map(|s| s.as_str()).map_err(Error::kind), expected, "{mode:o}");
        }
    }
}
