//! HTTP as the SDK uses it: TLS that is verified, answers of bounded size, no redirects, and no connection that outlives its
//! answer. And what a failed request means to people.
//!
//! Must never see: what is said over it.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::headers::{HeaderName, HeaderValue, Headers};
use azure_core::http::{AsyncRawResponse, Body, HttpClient, Request, Transport};
use tokio_rustls::rustls::{self, CertificateError};

use super::super::VaultEntry;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// For TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(5);
/// Without a byte.
const SILENCE: Duration = Duration::from_secs(10);
/// The longest answer to any question of ours is that to `describe`: some kilobytes, with 15 tags of 512.
const MAX_ANSWER: usize = 64 * 1024;
/// A bundle of the world's certificate authorities is 200 KiB.
const MAX_CA_FILE: u64 = 1 << 20;

/// A `reqwest` client that reads a bounded answer.
#[derive(Debug)]
struct Bounded(reqwest::Client);

/// To the vault and to who issues tokens for it.
pub(super) fn to_vault(entry: &VaultEntry) -> Result<Transport> {
    let mut builder = base().https_only(true);
    if let Some(file) = &entry.ca_file {
        let certificates = certificates(file)?;
        // A vault of our own is vouched for by its own authority only; elsewhere the file is that of a proxy which opens
        // some connections and leaves others alone.
        builder = if entry.local_server {
            builder.tls_certs_only(certificates)
        } else {
            builder.tls_certs_merge(certificates)
        };
    }
    if entry.endpoint.is_loopback() {
        builder = builder.no_proxy();
    }
    build(builder)
}

/// To the service that gives tokens to managed identities: plain HTTP within the machine, never through a proxy.
pub(super) fn to_machine() -> Result<Transport> {
    build(base().no_proxy())
}

fn base() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .redirect(reqwest::redirect::Policy::none()) // it would carry the token along
        .tls_version_min(reqwest::tls::Version::TLS_1_2)
        .http1_only()
        // The read buffer of a connection that waits for its next use still holds the last answer: a data key.
        .pool_max_idle_per_host(0)
        .no_gzip()
        .no_deflate()
}

fn build(builder: reqwest::ClientBuilder) -> Result<Transport> {
    let client = builder.build().map_err(|e| {
        Error::new(ErrorKind::Other, "prepare TLS")
            .caused_by(explain(&e))
            .hint("are the system's certificates installed? SSL_CERT_FILE names others")
    })?;
    Ok(Transport::new(Arc::new(Bounded(client))))
}

/// Reads a PEM bundle.
///
/// # Errors
/// `NotFound`, `PermissionDenied`, `InvalidInput`.
pub(super) fn certificates(file: &Path) -> Result<Vec<reqwest::Certificate>> {
    let invalid = |message: String| Error::new(ErrorKind::InvalidInput, message).at(file);
    let size = std::fs::metadata(file).io_at("open", file)?.len();
    if size > MAX_CA_FILE {
        return Err(invalid(format!("CA file: found {size} bytes, allowed {MAX_CA_FILE}")));
    }
    let pem = std::fs::read(file).io_at("read", file)?;
    let bundle = reqwest::Certificate::from_pem_bundle(&pem)
        .map_err(|e| invalid("CA file: found no PEM certificates".into()).caused_by(e))?;
    if bundle.is_empty() {
        return Err(invalid("CA file: found no certificate, allowed one or more in PEM".into()));
    }
    Ok(bundle)
}

#[async_trait::async_trait]
impl HttpClient for Bounded {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let method = reqwest::Method::from_bytes(request.method().as_ref().as_bytes())
            .map_err(|e| azure_core::Error::new(SdkErrorKind::Other, e))?;
        let mut outgoing = self.0.request(method, request.url().clone());
        for (name, value) in request.headers().iter() {
            outgoing = outgoing.header(name.as_str(), value.as_str());
        }
        if let Body::Bytes(bytes) = request.body() {
            outgoing = outgoing.body(bytes.clone());
        }
        let mut answer = outgoing.send().await.map_err(|e| {
            let kind = if e.is_connect() { SdkErrorKind::Connection } else { SdkErrorKind::Io };
            azure_core::Error::new(kind, e)
        })?;
        let mut body = Vec::new();
        while let Some(chunk) =
            answer.chunk().await.map_err(|e| azure_core::Error::new(SdkErrorKind::Io, e))?
        {
            if body.len() + chunk.len() > MAX_ANSWER {
                let message = format!("the answer is too long: found more than {MAX_ANSWER} bytes");
                return Err(azure_core::Error::with_message(SdkErrorKind::DataConversion, message));
            }
            body.extend_from_slice(&chunk);
        }
        let headers: Headers = answer
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .map(|(name, value)| (HeaderName::from(name), HeaderValue::from(value)))
            .collect::<std::collections::HashMap<_, _>>()
            .into();
        Ok(AsyncRawResponse::from_bytes(answer.status().as_u16().into(), headers, body))
    }
}

/// The cause of a failed request, and the next step, for people.
pub(super) fn explain(error: &(dyn StdError + 'static)) -> String {
    let mut cause = String::new();
    let mut looked_up = false;
    let mut at = Some(error);
    while let Some(e) = at {
        if let Some(tls) = tls_error(e) {
            return format!("TLS: {}", explain_tls(tls));
        }
        cause = e.to_string();
        looked_up |= cause.contains("dns error");
        at = e.source();
    }
    let next = if looked_up {
        "; is the name right, and does DNS work here? A deleted vault has no name either"
    } else if cause.contains("refused") {
        "; does a server listen there, and may this machine reach it?"
    } else if cause.contains("timed out") {
        "; is a firewall or a proxy in the way?"
    } else if cause.contains("unsuccessful tunnel") || cause.contains("proxy") {
        "; look at HTTPS_PROXY and NO_PROXY"
    } else {
        ""
    };
    format!("{cause}{next}")
}

/// On the way up rustls's errors are put inside I/O errors, more than once.
fn tls_error<'a>(e: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    e.downcast_ref::<rustls::Error>()
        .or_else(|| tls_error(e.downcast_ref::<std::io::Error>()?.get_ref()? as &(dyn StdError + 'static)))
}

fn explain_tls(e: &rustls::Error) -> String {
    let next = match e {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the server must renew it; if it is valid, this machine's clock is wrong"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "this machine's clock may be wrong"
            }
            CertificateError::UnknownIssuer => {
                "give the authority that signed it: vault add --ca-file FILE (or SSL_CERT_FILE)"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the URL names another host than the certificate"
            }
            _ => "something between here and the vault may be pretending to be it",
        },
        _ => "is this really an HTTPS port?",
    };
    format!("{e}; {next}")
}
