//! A vault elsewhere: where it is, under which names containers know it, and how we prove who we are. Azure Key Vault,
//! Managed HSM, and another machine's `vault serve` are all described like this.
//!
//! Must never see: a secret. A client secret is named by the file or the systemd credential that holds it.
//!
//! Invariant: an [`Endpoint`] is `https`; there is no other way to a vault.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::envelope::Kid;
use crate::error::{Error, ErrorKind, Result};

/// `https://HOST[:PORT]`, without user, path, query or fragment; the host in lower case, the port only when it is not 443.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    url: String,
}

/// How the caller proves who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Credential {
    /// Of the virtual machine or App Service this runs on; `vault serve` speaks the same protocol.
    ManagedIdentity {
        /// One of several user-assigned identities.
        client_id: Option<String>,
    },
    /// A federated token, as Kubernetes mounts it. What is missing comes from `AZURE_TENANT_ID`, `AZURE_CLIENT_ID` and
    /// `AZURE_FEDERATED_TOKEN_FILE`.
    WorkloadIdentity {
        /// Directory.
        tenant: Option<String>,
        /// Application.
        client_id: Option<String>,
    },
    /// An application with a password.
    ClientSecret {
        /// Directory.
        tenant: String,
        /// Application.
        client_id: String,
        /// Where the password is.
        secret: SecretSource,
    },
    /// Whoever is logged in with `az login`: for trying things out.
    AzureCli {
        /// Directory; that of the login otherwise.
        tenant: Option<String>,
    },
}

/// Where a secret lies. It is read again whenever it is refused, so that it can be replaced at any time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretSource {
    /// A file that only its owner can read.
    File(PathBuf),
    /// A credential that systemd hands to the service (`LoadCredential=NAME:...`).
    SystemdCredential(String),
}

/// A vault elsewhere, as it is configured here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultEntry {
    /// What sets refer to.
    pub id: Uuid,
    /// For people; `local` is the embedded vault.
    pub name: String,
    /// Where it is asked.
    pub endpoint: Endpoint,
    /// Other hosts that key identifiers may name: those of the vault before it moved, or `UUID.vault.localhost`.
    pub aliases: Vec<String>,
    /// In whose name.
    pub credential: Credential,
    /// Certificates to trust: beside the system's, or instead of them for a `local_server`.
    pub ca_file: Option<PathBuf>,
    /// Who issues tokens, where that is not Azure's public cloud: a sovereign cloud, or our own server.
    pub authority: Option<Endpoint>,
    /// A `vault serve`: its tokens may be for another host than the one that is asked.
    pub local_server: bool,
    /// Unix seconds.
    pub created: i64,
}

impl Endpoint {
    /// Parses a vault's URL; a slash at the end is allowed.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        let host = text.strip_prefix("https://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        let host = host.and_then(|host| checked_host(host).ok());
        host.map(|host| Self { url: format!("https://{host}") }).ok_or_else(|| {
            let shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
            Error::new(
                ErrorKind::InvalidInput,
                format!("vault URL: found \"{shown}\", allowed https://HOST[:PORT]"),
            )
        })
    }

    /// `https://HOST[:PORT]`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `HOST[:PORT]`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.url["https://".len()..]
    }

    /// `HOST`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.host().split(':').next().unwrap_or_default()
    }

    /// On this machine: nothing is to be found there through a proxy.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let name = self.name();
        name == "localhost"
            || name.ends_with(".localhost")
            || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// A host with an optional port, as key identifiers have it: in lower case, without `:443`.
///
/// # Errors
/// `InvalidInput`.
pub fn checked_host(text: &str) -> Result<String> {
    let host = text.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    // The parser of key identifiers decides what a host is.
    match Kid::parse(&format!("https://{host}/keys/x/0")) {
        Ok(_) => Ok(host.to_owned()),
        Err(_) => {
            let shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
            Err(Error::new(ErrorKind::InvalidInput, format!("host: found \"{shown}\", allowed HOST[:PORT]")))
        }
    }
}

impl VaultEntry {
    /// The host that new key identifiers name: the one that stays when the vault moves, if there is one (RULINGS 8).
    #[must_use]
    pub fn canonical_host(&self) -> &str {
        let stable = |alias: &&String| alias.ends_with(".vault.localhost");
        self.aliases.iter().find(stable).map_or(self.endpoint.host(), String::as_str)
    }

    /// Whether key identifiers of this host belong to this vault.
    #[must_use]
    pub fn knows_host(&self, host: &str) -> bool {
        let host = host.strip_suffix(":443").unwrap_or(host);
        let same = |known: &str| known.eq_ignore_ascii_case(host);
        same(self.endpoint.host()) || self.aliases.iter().any(|alias| same(alias))
    }

    /// A Managed HSM, by its name.
    #[must_use]
    pub fn is_managed_hsm(&self) -> bool {
        self.endpoint.name().contains(".managedhsm.")
    }
}

impl Credential {
    /// The word of `--credential`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::ManagedIdentity { .. } => "managed-identity",
            Self::WorkloadIdentity { .. } => "workload-identity",
            Self::ClientSecret { .. } => "client-secret",
            Self::AzureCli { .. } => "azure-cli",
        }
    }
}

/// For messages: who is asking.
impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ManagedIdentity { client_id: Some(id) } => write!(f, "managed identity {id}"),
            Self::ManagedIdentity { client_id: None } => f.write_str("this machine's managed identity"),
            Self::WorkloadIdentity { client_id: Some(id), .. } => write!(f, "workload identity {id}"),
            Self::WorkloadIdentity { client_id: None, .. } => f.write_str("workload identity"),
            Self::ClientSecret { client_id, tenant, .. } => {
                write!(f, "application {client_id} of tenant {tenant}")
            }
            Self::AzureCli { .. } => f.write_str("the user of az login"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_https_and_nothing_but_a_host() {
        for (text, host) in [
            ("https://demo.vault.azure.net", "demo.vault.azure.net"),
            ("https://Demo.Vault.Azure.NET/", "demo.vault.azure.net"),
            ("https://demo.managedhsm.azure.net:443/", "demo.managedhsm.azure.net"),
            ("https://127.0.0.1:8443", "127.0.0.1:8443"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().host(), host);
        }
        for bad in [
            "",
            "demo.vault.azure.net",
            "http://demo.vault.azure.net",
            "https://",
            "https:///",
            "https://a/b",
            "https://a//",
            "https://user@a",
            "https://a?x",
            "https://a#x",
            "https://a:99999",
            "https://[::1]:8443",
            "https://a b",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn new_identifiers_name_the_host_that_stays() {
        let entry = |aliases: &[&str]| VaultEntry {
            id: Uuid::nil(),
            name: "a".into(),
            endpoint: Endpoint::parse("https://10.0.0.1:8443").unwrap(),
            aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
            credential: Credential::ManagedIdentity { client_id: None },
            ca_file: None,
            authority: None,
            local_server: true,
            created: 0,
        };
        assert_eq!(entry(&[]).canonical_host(), "10.0.0.1:8443");
        assert_eq!(entry(&["old.example"]).canonical_host(), "10.0.0.1:8443");
        let moved = entry(&["old.example", "c0ffee.vault.localhost"]);
        assert_eq!(moved.canonical_host(), "c0ffee.vault.localhost");
        assert!(moved.knows_host("OLD.example:443") && moved.knows_host("10.0.0.1:8443"));
        assert!(!moved.knows_host("10.0.0.1") && !moved.knows_host("other.example"));
    }
}
