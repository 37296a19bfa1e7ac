//! Where tokens come from: the endpoints of managed identities (App Service's and, if wanted, IMDS's, on plain http and
//! loopback only), and Entra's client credentials flow on https.
//!
//! Must never see: keys, grants.
//!
//! Invariants:
//! 1. A failed sign-in says the same whatever failed; the vault slows and records it.
//! 2. IMDS has no secret: it is off unless an identity was named for it.

use std::time::Duration;

use hyper::HeaderMap;
use serde_json::{Value, json};

use super::reply::Reply;
use crate::vault::local::{Fail, Identity, LocalVault, SignIn, Token};
use crate::vault::wire::{Audience, Form, Host, SignInPlace};
use crate::vault::{Origin, VaultError};

/// Versions of the App Service endpoint and of IMDS that clients send.
const VERSIONS: [&str; 4] = ["2019-08-01", "2018-02-01", "2017-09-01", "2020-06-01"];

/// What an endpoint hands out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Issue<'a> {
    pub(super) vault: &'a LocalVault,
    pub(super) lifetime: Duration,
    pub(super) origin: &'a Origin,
}

/// The version and the audience of a managed identity's request.
fn managed_request(query: &Form) -> Result<Audience, Reply> {
    if !query.version.as_deref().is_some_and(|v| VERSIONS.contains(&v)) {
        return Err(invalid(&format!(
            "The api-version is missing or unknown; allowed: {}.",
            VERSIONS.join(", ")
        )));
    }
    let resource = query.resource.as_deref().ok_or_else(|| invalid("The resource is missing."))?;
    Audience::parse(resource).map_err(|e| invalid(&e.0))
}

fn invalid(description: &str) -> Reply {
    Reply::json(400, &json!({ "error": "invalid_request", "error_description": description }))
}

/// The words of both managed identity endpoints for whoever cannot be found.
fn not_found() -> Reply {
    invalid("Identity not found")
}

/// `GET /msi/token`: the secret in the header selects the identity.
pub(super) fn app_service(issue: Issue<'_>, query: &[u8], headers: &HeaderMap) -> Reply {
    let form = Form::parse(query);
    let asked = || {
        let audience = managed_request(&form)?;
        let secret = headers.get("x-identity-header").ok_or_else(|| {
            Reply::json(
                401,
                &json!({ "error": "invalid_request", "error_description": "X-IDENTITY-HEADER is missing." }),
            )
        })?;
        let who = SignIn::Header { secret: secret.as_bytes(), hint: form.identity.as_deref() };
        let token = issue.sign_in(who, &audience, not_found)?;
        Ok(managed(&token, &audience))
    };
    match asked() {
        Ok(body) => Reply::json(200, &body),
        Err(no) => no,
    }
}

/// `GET /metadata/identity/oauth2/token`: whoever reaches it is `identity`.
pub(super) fn imds(issue: Issue<'_>, query: &[u8], headers: &HeaderMap, identity: &Identity) -> Reply {
    let form = Form::parse(query);
    let asked = || {
        if headers.contains_key("x-forwarded-for") {
            return Err(invalid("A forwarded request is not answered."));
        }
        if !headers.get("metadata").is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"true")) {
            return Err(invalid("Required metadata header not specified"));
        }
        let audience = managed_request(&form)?;
        let names = [identity.oid.to_string(), identity.client_id.to_string(), identity.name.clone()];
        if form.identity.as_ref().is_some_and(|hint| !names.iter().any(|n| n.eq_ignore_ascii_case(hint))) {
            return Err(not_found());
        }
        let token = issue.sign_in(SignIn::Imds { oid: identity.oid }, &audience, not_found)?;
        let mut body = managed(&token, &audience);
        body["expires_in"] = (token.expires - token.issued).to_string().into();
        body["not_before"] = token.issued.to_string().into();
        Ok(body)
    };
    match asked() {
        Ok(body) => Reply::json(200, &body),
        Err(no) => no,
    }
}

fn managed(token: &Token, audience: &Audience) -> Value {
    json!({
        "access_token": text(token),
        "expires_on": token.expires.to_string(),
        "resource": audience.as_str(),
        "token_type": "Bearer",
        "client_id": token.identity.client_id.to_string(),
    })
}

fn text(token: &Token) -> &str {
    std::str::from_utf8(token.text.expose()).unwrap_or_default() // base64url
}

/// The endpoints below a tenant, on https.
pub(super) fn entra(issue: Issue<'_>, place: SignInPlace, tenant: &str, host: &Host, form: &[u8]) -> Reply {
    match place {
        SignInPlace::Configuration => configuration(tenant, host),
        SignInPlace::SigningKeys => Reply::json(200, &json!({ "keys": [] })),
        SignInPlace::Token => client_credentials(issue, form),
    }
}

fn configuration(tenant: &str, host: &Host) -> Reply {
    let base = format!("https://{}/{tenant}", host.as_str());
    Reply::json(
        200,
        &json!({
            "issuer": format!("{base}/v2.0"),
            "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
            "token_endpoint": format!("{base}/oauth2/v2.0/token"),
            // The JS client refuses to sign in without it.
            "jwks_uri": format!("{base}/discovery/v2.0/keys"),
            "token_endpoint_auth_methods_supported": ["client_secret_post"],
            "response_types_supported": ["token"],
            "subject_types_supported": ["pairwise"],
            "tenant_region_scope": "WW",
        }),
    )
}

fn client_credentials(issue: Issue<'_>, form: &[u8]) -> Reply {
    let form = Form::parse(form);
    let asked = || {
        match form.grant_type.as_deref() {
            Some("client_credentials") => {}
            Some(_) => {
                return Err(oauth(
                    400,
                    "unsupported_grant_type",
                    "AADSTS70003: The app requested an unsupported grant type.",
                    70003,
                ));
            }
            None => {
                return Err(oauth(
                    400,
                    "invalid_request",
                    "AADSTS900144: The request body must contain the following parameter: 'grant_type'.",
                    900_144,
                ));
            }
        }
        let scope = form.scope.as_deref().unwrap_or_default();
        let audience =
            scope.split_ascii_whitespace().find_map(|s| Audience::of_scope(s).ok()).ok_or_else(|| {
                oauth(
                    400,
                    "invalid_scope",
                    "AADSTS70011: The provided value for the input parameter 'scope' is not valid.",
                    70011,
                )
            })?;
        let bad =
            || oauth(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.", 7_000_215);
        let (Some(client), Some(secret)) = (&form.identity, &form.secret) else { return Err(bad()) };
        let token =
            issue.sign_in(SignIn::ClientSecret { client, secret: secret.expose() }, &audience, bad)?;
        // As Entra: a second less, so that nobody uses it a moment too long.
        let left = (token.expires - token.issued - 1).max(1);
        Ok(json!({
            "token_type": "Bearer",
            "expires_in": left,
            "ext_expires_in": left,
            "access_token": text(&token),
        }))
    };
    match asked() {
        Ok(body) => Reply::json(200, &body),
        Err(no) => no,
    }
}

fn oauth(status: u16, error: &str, description: &str, code: u32) -> Reply {
    Reply::json(status, &json!({ "error": error, "error_description": description, "error_codes": [code] }))
}

impl Issue<'_> {
    fn sign_in(&self, who: SignIn<'_>, audience: &Audience, no: impl Fn() -> Reply) -> Result<Token, Reply> {
        self.vault.sign_in(who, audience.as_str(), self.lifetime, self.origin).map_err(|fail| match fail {
            Fail::Refused(r) if r.status == 429 => match r.error {
                VaultError::Transient { retry_after: Some(wait), .. } => Reply::throttled_for(wait),
                _ => Reply::throttled(),
            },
            Fail::Refused(_) => no(),
            Fail::Broken(e) => e.into(),
        })
    }
}
