//! What leaves: status, body, and the headers that are on every answer.
//!
//! Must never see: the database.
//! Invariant: what goes wrong inside (paths, SQL, a damaged row) goes to the log, and the client learns that it did.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{HeaderName, HeaderValue};

use super::limits::RETRY_AFTER;
use crate::vault::VaultError;
use crate::vault::local::Fail;
use crate::vault::wire::{Malformed, Unroutable, answer};

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    pub(super) headers: Vec<(&'static str, String)>,
    /// The connection is not to be used again: part of the request was not read.
    pub(super) close: bool,
}

impl Reply {
    pub(super) const fn ok(body: Vec<u8>) -> Self {
        Self { status: 200, body, headers: Vec::new(), close: false }
    }

    pub(super) const fn nothing() -> Self {
        Self { status: 204, body: Vec::new(), headers: Vec::new(), close: false }
    }

    pub(super) fn error(status: u16, code: &str, message: &str, inner: Option<&str>) -> Self {
        Self { status, body: answer::error(code, message, inner), headers: Vec::new(), close: false }
    }

    pub(super) fn json(status: u16, value: &serde_json::Value) -> Self {
        Self { status, body: value.to_string().into_bytes(), headers: Vec::new(), close: false }
    }

    pub(super) fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// For answers that leave a body unread.
    pub(super) const fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub(super) fn throttled() -> Self {
        Self::throttled_for(RETRY_AFTER)
    }

    pub(super) fn throttled_for(wait: std::time::Duration) -> Self {
        let message = "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached";
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self::error(429, "Throttled", message, None).with("retry-after", seconds.to_string())
    }

    /// The vault cannot be asked now.
    pub(super) fn unavailable(why: &str) -> Self {
        log::warn!("vault serve: {why}");
        Self::error(503, "ServiceUnavailable", "The vault cannot be asked at the moment.", None)
            .with("retry-after", RETRY_AFTER.as_secs().to_string())
    }

    pub(super) fn internal(why: &str) -> Self {
        log::error!("vault serve: {why}");
        Self::error(500, "InternalError", "Something went wrong inside the vault; its log says what.", None)
    }
}

impl From<Malformed> for Reply {
    fn from(malformed: Malformed) -> Self {
        Self::error(400, "BadParameter", &malformed.0, None)
    }
}

impl From<Unroutable> for Reply {
    fn from(why: Unroutable) -> Self {
        match why {
            Unroutable::NotFound => {
                Self::error(404, "NotFound", "The requested resource was not found.", None)
            }
            Unroutable::Method(allowed) => {
                let message = format!("The method is not allowed here; allowed: {allowed}.");
                Self::error(405, "MethodNotAllowed", &message, None).with("allow", allowed.to_owned())
            }
        }
    }
}

impl From<Fail> for Reply {
    fn from(fail: Fail) -> Self {
        match fail {
            Fail::Refused(no) if no.status >= 500 => Self::internal(&no.description),
            Fail::Refused(no) => Self::error(no.status, no.signature, &no.description, no.inner),
            Fail::Broken(e) => e.into(),
        }
    }
}

impl From<VaultError> for Reply {
    fn from(e: VaultError) -> Self {
        match e {
            VaultError::Transient { message, .. } => Self::unavailable(&message),
            other => Self::internal(&other.to_string()),
        }
    }
}

/// What an answer's headers tell about the vault and the way to it.
#[derive(Debug)]
pub(super) struct Headers<'a> {
    /// Of this request.
    pub(super) request_id: String,
    /// As the client sent it.
    pub(super) client_id: Option<&'a HeaderValue>,
    /// The vault's location.
    pub(super) region: &'a str,
    /// The client's address.
    pub(super) address: std::net::IpAddr,
}

impl Reply {
    pub(super) fn into_response(self, on: &Headers<'_>) -> Response<Full<Bytes>> {
        let family = if on.address.is_ipv4() { ("Ipv4", "InterNetwork") } else { ("Ipv6", "InterNetworkV6") };
        let network = format!("conn_type={};addr={};act_addr_fam={};", family.0, on.address, family.1);
        let empty = self.body.is_empty();
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = hyper::StatusCode::from_u16(self.status).unwrap_or_default();
        let headers = response.headers_mut();
        let mut put = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        if !empty {
            put("content-type", "application/json; charset=utf-8");
        }
        put("cache-control", "no-cache");
        put("pragma", "no-cache");
        put("expires", "-1");
        put("x-ms-request-id", &on.request_id);
        put("x-ms-keyvault-service-version", env!("CARGO_PKG_VERSION"));
        put("x-ms-keyvault-region", on.region);
        put("x-ms-keyvault-network-info", &network);
        put("strict-transport-security", "max-age=31536000;includeSubDomains");
        put("x-content-type-options", "nosniff");
        for (name, value) in &self.headers {
            put(name, value);
        }
        if self.close {
            put("connection", "close");
        }
        if let Some(id) = on.client_id {
            headers.insert("x-ms-client-request-id", id.clone());
        }
        response
    }
}
