//! The vault's certificate authority and the certificate that `vault serve` shows.
//!
//! The CA (P-256, 10 years) is made when it is first needed and kept in the vault, its key sealed under the root key. The
//! server's certificate lives 30 days, in memory only: a start makes a new one, and so does a server that runs when two
//! thirds of its life are over, without a restart and without a break of connections.
//!
//! No name constraints: `--san` may add any name later. Clients trust this CA by a variable of their own process.
//!
//! Must never see: requests, tokens.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::SecretBytes;
use crate::vault::local::LocalVault;

/// Among the vault's secrets. Layout: length of the certificate u32be, certificate DER, private key PKCS#8.
const SECRET: &str = "ca";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks differ: a certificate is valid a little before it is made.
const EARLIER: Duration = Duration::from_secs(3600);

/// The certificate authority of a vault.
pub struct Ca {
    vault: uuid::Uuid,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({})", self.vault)
    }
}

impl Ca {
    /// The vault's CA, made if there is none yet. Of two that make one at the same time the first counts.
    ///
    /// # Errors
    /// `Unreachable`, `Damaged`.
    pub fn of(vault: &LocalVault) -> Result<Self> {
        let call = vault.admin("certificate authority");
        let secret = match vault.vault_secret(SECRET, &call)? {
            Some(secret) => secret,
            None => vault.keep_vault_secret(SECRET, made(vault.id())?.expose(), &call)?,
        };
        Self::parse(vault.id(), secret.expose())
            .ok_or_else(|| Error::new(ErrorKind::Damaged, "the vault's certificate authority in vault.db"))
    }

    fn parse(vault: uuid::Uuid, secret: &[u8]) -> Option<Self> {
        let (len, rest) = secret.split_first_chunk::<4>()?;
        let (certificate, key) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
        let key = PrivatePkcs8KeyDer::from(key.to_vec());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256).ok()?;
        Some(Self { vault, certificate: certificate.to_vec().into(), key })
    }

    /// The certificate, for clients.
    #[must_use]
    pub fn pem(&self) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// A certificate for a server of these names and addresses.
    fn issue(&self, names: &Names, lifetime: Duration) -> Result<CertifiedKey> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("wrapdisk vault {}", self.vault));
        params.subject_alt_names = names.san()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(lifetime);
        let issuer = Issuer::new(ca_params(self.vault), &self.key);
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        let der = PrivateKeyDer::Pkcs8(key.serialized_der().to_vec().into());
        let signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der).map_err(failed)?;
        Ok(CertifiedKey::new(vec![certificate.der().clone()], signer))
    }
}

fn made(vault: uuid::Uuid) -> Result<SecretBytes> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let certificate = ca_params(vault).self_signed(&key).map_err(failed)?;
    let (certificate, key) = (certificate.der(), key.serialized_der());
    let len = u32::try_from(certificate.len()).map_err(failed)?;
    let mut secret = SecretBytes::zeroed(4 + certificate.len() + key.len())?;
    let (head, rest) = secret.expose_mut().split_at_mut(4);
    head.copy_from_slice(&len.to_be_bytes());
    rest[..certificate.len()].copy_from_slice(certificate);
    rest[certificate.len()..].copy_from_slice(key);
    Ok(secret)
}

fn ca_params(vault: uuid::Uuid) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("wrapdisk CA of vault {vault}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(10 * YEAR);
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// From a little ago. (The type is of a crate that is not ours to name; it adds and subtracts.)
fn validity<T>(lifetime: Duration) -> (T, T)
where
    T: From<SystemTime>,
{
    let now = SystemTime::now();
    (T::from(now.checked_sub(EARLIER).unwrap_or(UNIX_EPOCH)), T::from(now + lifetime))
}

fn failed(e: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Other, "make a certificate").caused_by(e.to_string())
}

/// What a server may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Names {
    /// Always this machine, and `*.vault.localhost`.
    pub(super) fn new(more: &[String], listening: &[IpAddr]) -> Result<Self> {
        let mut all = Self {
            names: vec!["localhost".to_owned(), "*.vault.localhost".to_owned()],
            addresses: vec![[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()],
        };
        for address in listening.iter().filter(|a| !a.is_unspecified()) {
            if !all.addresses.contains(address) {
                all.addresses.push(*address);
            }
        }
        for name in more {
            match name.parse() {
                Ok(address) => all.addresses.push(address),
                Err(_) if valid_dns_name(name) => all.names.push(name.to_ascii_lowercase()),
                Err(_) => {
                    return Err(Error::new(
                        ErrorKind::InvalidInput,
                        format!("name: found \"{}\", allowed a DNS name or an address", name.escape_debug()),
                    ));
                }
            }
        }
        Ok(all)
    }

    /// Whether a client may have dialled this (in lower case).
    pub(super) fn knows(&self, dialled: &str) -> bool {
        if let Ok(address) = dialled.parse::<IpAddr>() {
            return self.addresses.contains(&address);
        }
        self.names.iter().any(|name| match name.strip_prefix('*') {
            // One label, as in a certificate.
            Some(parent) => dialled.strip_suffix(parent).is_some_and(|l| !l.is_empty() && !l.contains('.')),
            None => name == dialled,
        })
    }

    fn san(&self) -> Result<Vec<SanType>> {
        let names = self.names.iter().map(|n| n.as_str().try_into().map(SanType::DnsName).map_err(failed));
        names.chain(self.addresses.iter().map(|a| Ok(SanType::IpAddress(*a)))).collect()
    }
}

/// Letters, digits and dashes between dots; the first label may be `*`.
fn valid_dns_name(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.strip_prefix("*.").unwrap_or(name).split('.').all(label)
}

/// The certificate that is shown now.
pub(super) struct Shown {
    ca: Ca,
    names: Names,
    lifetime: Duration,
    current: RwLock<Arc<CertifiedKey>>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Shown {
    pub(super) fn new(ca: Ca, names: Names, lifetime: Duration) -> Result<Self> {
        let current = RwLock::new(Arc::new(ca.issue(&names, lifetime)?));
        Ok(Self { ca, names, lifetime, current })
    }

    pub(super) const fn names(&self) -> &Names {
        &self.names
    }

    /// When the next one is due.
    pub(super) fn renew_after(&self) -> Duration {
        self.lifetime * 2 / 3
    }

    /// From now on a new one is shown; a failure leaves the old one.
    pub(super) fn renew(&self) -> Result<()> {
        let next = Arc::new(self.ca.issue(&self.names, self.lifetime)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// TLS 1.2 and 1.3, HTTP/1.1, with the provider said outright: another crate may install another one.
pub(super) fn config(shown: Arc<Shown>) -> Result<Arc<rustls::ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(failed)?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_knows_its_own_names_only() {
        let more = ["vault.example.com".to_owned(), "10.0.0.7".to_owned(), "*.kv.example".to_owned()];
        let names = Names::new(&more, &["192.168.0.2".parse().unwrap(), "0.0.0.0".parse().unwrap()]).unwrap();
        for good in [
            "localhost",
            "127.0.0.1",
            "::1",
            "a.vault.localhost",
            "vault.example.com",
            "10.0.0.7",
            "192.168.0.2",
            "x.kv.example",
        ] {
            assert!(names.knows(good), "{good}");
        }
        for bad in [
            "",
            "vault.localhost",
            ".vault.localhost",
            "a.b.vault.localhost",
            "0.0.0.0",
            "evil.com",
            "127.0.0.2",
            "kv.example",
        ] {
            assert!(!names.knows(bad), "{bad}");
        }
        for bad in ["", "a b", "a..b", "*", "a.*.b", "-\n"] {
            assert!(Names::new(&[bad.to_owned()], &[]).is_err(), "{bad:?}");
        }
    }
}
