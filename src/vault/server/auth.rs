//! Who asks: the bearer token, and the challenge to a client that has none.
//!
//! Must never see: keys, bodies.
//! Invariant: nothing else of a request is judged before its token (KEY-VAULT section 3, trap 4): a client's first request
//! is a probe without one, whatever else it lacks.

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use uuid::Uuid;

use super::reply::Reply;
use crate::vault::local::{IdentityKind, LocalVault, TokenError};
use crate::vault::wire::{Audience, Host};

/// A token is 43 characters; a client may hold one of somebody else's that is longer.
const MAX_TOKEN: usize = 4096;

/// Whoever showed a good token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) oid: Uuid,
    /// A disk encryption set.
    pub(super) system: bool,
}

/// The token of a request.
pub(super) fn token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && (1..=MAX_TOKEN).contains(&token.len())).then_some(token)
}

/// Looks a token up; blocks.
pub(super) fn authenticate(
    vault: &LocalVault,
    tenant: Uuid,
    host: &Host,
    token: Option<&str>,
) -> Result<Known, Reply> {
    let Some(token) = token else { return Err(missing(tenant, host)) };
    let accepted = Audience::accepted(host);
    let accepted: Vec<&str> = accepted.iter().map(String::as_str).collect();
    match vault.authenticate(token, &accepted) {
        Ok(oid) => Ok(Known { oid, system: vault.identity_kind(oid)? == Some(IdentityKind::System) }),
        Err(TokenError::Unknown) => Err(missing(tenant, host)),
        Err(TokenError::WrongAudience(found)) => {
            let wanted = host.audience();
            let message =
                format!("AKV10022: Invalid audience. Expected {}, found: {found}.", wanted.as_str());
            Err(challenge(tenant, host, &message))
        }
        Err(TokenError::Broken(e)) => Err(e.into()),
    }
}

/// The answer to a request without a token that is known.
pub(super) fn missing(tenant: Uuid, host: &Host) -> Reply {
    challenge(tenant, host, "AKV10000: Request is missing a Bearer, PoP, or MTLS_POP token.")
}

fn challenge(tenant: Uuid, host: &Host, message: &str) -> Reply {
    let (audience, host) = (host.audience(), host.as_str());
    let value =
        format!("Bearer authorization=\"https://{host}/{tenant}\", resource=\"{}\"", audience.as_str());
    Reply::error(401, "Unauthorized", message, None).with("www-authenticate", value)
}
