//! A request from its head to its answer, in the order in which it is judged.
//!
//! Must never see: sockets, the database.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{EXPECT, HOST, HeaderValue, USER_AGENT};
use hyper::{HeaderMap, Request, Response};
use uuid::Uuid;

use super::auth::{self, Known};
use super::keys::{self, Asked};
use super::limits::{Lane, Limits};
use super::listen::{Answers, Peer};
use super::reply::{Headers, Reply};
use super::tls::Shown;
use super::tokens::{self, Issue};
use super::{Cidr, Options};
use crate::error::{Error, Result};
use crate::vault::local::{Identity, LocalVault, TurnedDown};
use crate::vault::wire::{
    Host, MAX_BODY, MAX_RESTORE_BODY, Malformed, Place, Query, Route, SignInPlace, place,
};
use crate::vault::{Call, KeyOperation, Origin};

/// What is still taken in of a body that was refused: twice the largest that is served.
const LINGER_BYTES: usize = 2 * MAX_RESTORE_BODY;
const LINGER: Duration = Duration::from_secs(2);

/// From the end of a head to the end of its body.
const BODY: Duration = Duration::from_secs(10);

/// What answers on https.
#[derive(Debug)]
pub(super) struct Desk {
    vault: Arc<LocalVault>,
    limits: Arc<Limits>,
    shown: Arc<Shown>,
    allow: Vec<Cidr>,
    tenant: Uuid,
    location: String,
    token_lifetime: Duration,
    imds: Option<Identity>,
}

/// What answers at the token endpoint for managed identities.
#[derive(Debug)]
pub(super) struct TokenDesk(pub(super) Arc<Desk>);

type Answered<T> = std::result::Result<T, Reply>;

impl Desk {
    pub(super) fn new(vault: Arc<LocalVault>, options: &Options, shown: Arc<Shown>) -> Result<Self> {
        let settings = vault.settings().map_err(Error::from)?;
        let find =
            |name: &String| vault.find_identity(name, &vault.admin("vault serve")).map_err(Error::from);
        let imds = options.imds.as_ref().map(find).transpose()?;
        Ok(Self {
            limits: Arc::new(Limits::new(options.rate)),
            shown,
            allow: options.allow.clone(),
            tenant: settings.tenant_id,
            location: settings.location,
            token_lifetime: options.token_lifetime,
            imds,
            vault,
        })
    }

    async fn reply(&self, peer: Peer, request: &mut Request<Incoming>) -> Answered<Reply> {
        let host = self.host(request)?;
        match place(request.method().as_str(), request.uri().path()) {
            Place::SignIn(found) => self.sign_in(peer, request, host, found?).await,
            Place::Vault(found) => self.vault(peer, request, host, found).await,
        }
    }

    /// The host that was dialled, which must be ours: every URL of an answer will begin with it.
    fn host(&self, request: &Request<Incoming>) -> Answered<Host> {
        let said = request.headers().get(HOST).and_then(|v| v.to_str().ok());
        let text = said.or_else(|| request.uri().authority().map(hyper::http::uri::Authority::as_str));
        let host = Host::parse(text.unwrap_or_default())?;
        if self.shown.names().knows(host.name()) {
            return Ok(host);
        }
        Err(Malformed(format!("The host \"{}\" is not this vault's.", host.name())).into())
    }

    async fn sign_in(
        &self,
        peer: Peer,
        request: &mut Request<Incoming>,
        host: Host,
        place: SignInPlace,
    ) -> Answered<Reply> {
        if !self.allowed(peer.address) {
            return Err(firewall(peer.address));
        }
        let tenant = request.uri().path().split('/').nth(1).unwrap_or_default().to_owned();
        let origin = origin(peer, request.headers());
        let form = body(request, MAX_BODY).await?;
        self.at_the_door(move |issue| tokens::entra(issue, place, &tenant, &host, &form), origin).await
    }

    async fn vault(
        &self,
        peer: Peer,
        request: &mut Request<Incoming>,
        host: Host,
        found: std::result::Result<Route, crate::vault::wire::Unroutable>,
    ) -> Answered<Reply> {
        let known = self.known(request, &host).await?;
        let call = call(known.oid, peer, request.headers());
        let route = match found {
            Ok(route) if self.allowed(peer.address) => route,
            Ok(route) => {
                let (vault, why) = (Arc::clone(&self.vault), TurnedDown::Firewall(peer.address));
                return self.work(Lane::Common, move || keys::turn_down(&vault, &route, why, &call)).await;
            }
            Err(_) if !self.allowed(peer.address) => return Err(firewall(peer.address)),
            Err(why) => return Err(why.into()),
        };
        let lane = lane(&route, known);
        let _admitted = self.limits.admit(known.oid, lane).map_err(|_| Reply::throttled().closing())?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let most = if route == Route::Restore { MAX_RESTORE_BODY } else { MAX_BODY };
        let body = body(request, most).await?;
        let vault = Arc::clone(&self.vault);
        let work = move || {
            let asked = Asked { vault: &vault, host: &host, query: &query, body: &body, call: &call };
            keys::answer(&asked, &route)
        };
        self.work(lane, work).await
    }

    async fn known(&self, request: &Request<Incoming>, host: &Host) -> Answered<Known> {
        // Without a token there is nothing to look up, so a flood of such requests costs the vault nothing.
        let Some(token) = auth::token(request.headers()) else {
            return Err(auth::missing(self.tenant, host));
        };
        let token = crate::secret::SecretBytes::take(&mut token.as_bytes().to_vec())
            .map_err(|e| Reply::internal(&e.chain()))?;
        let (vault, tenant, host) = (Arc::clone(&self.vault), self.tenant, host.clone());
        self.work(Lane::Door, move || {
            let token = std::str::from_utf8(token.expose()).ok();
            auth::authenticate(&vault, tenant, &host, token)
        })
        .await?
    }

    fn allowed(&self, address: IpAddr) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|net| net.contains(address))
    }

    async fn at_the_door(
        &self,
        run: impl FnOnce(Issue<'_>) -> Reply + Send + 'static,
        origin: Origin,
    ) -> Answered<Reply> {
        let (vault, lifetime) = (Arc::clone(&self.vault), self.token_lifetime);
        self.work(Lane::Door, move || run(Issue { vault: &vault, lifetime, origin: &origin })).await
    }

    /// Runs what blocks on a thread, when the lane has a place. The place is the work's, not the request's: who hangs up
    /// does not make room for more than the lane takes.
    async fn work<T: Send + 'static>(
        &self,
        lane: Lane,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Answered<T> {
        let place = self.limits.place(lane).await;
        let done = tokio::task::spawn_blocking(move || {
            let done = run();
            drop(place);
            done
        });
        done.await.map_err(|e| Reply::internal(&format!("a request ended early: {e}")))
    }
}

fn lane(route: &Route, known: Known) -> Lane {
    match route {
        Route::Use(KeyOperation::UnwrapKey, _) if known.system => Lane::Probe,
        Route::Create(_) | Route::Rotate(_) | Route::Import(_) => Lane::Making,
        _ => Lane::Common,
    }
}

fn firewall(address: IpAddr) -> Reply {
    let message = format!("Client address ({address}) is not authorized and caller is not a trusted service");
    Reply::error(403, "Forbidden", &message, Some("ForbiddenByFirewall")).closing()
}

/// The whole body, if it is short and comes in time.
async fn body(request: &mut Request<Incoming>, most: usize) -> Answered<Bytes> {
    let body = request.body_mut();
    let too_large = || {
        let message = format!("The request body is too large: allowed are {most} bytes.");
        Reply::error(413, "RequestEntityTooLarge", &message, None).closing()
    };
    // What is announced need not be waited for.
    if body.size_hint().lower() > most as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY, Limited::new(body, most).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Reply::from(Malformed("The request body is cut.".into())).closing()),
        Err(_) => {
            Err(Reply::error(408, "RequestTimeout", "The request body did not come in time.", None).closing())
        }
    }
}

/// Takes in, for a while, what a client goes on sending that has been refused by now: closing on it would reset the connection,
/// and he might never read why. Who said that he waits for leave to send is not given it.
async fn linger(request: &mut Request<Incoming>) {
    if request.body().is_end_stream() || request.headers().contains_key(EXPECT) {
        return;
    }
    let mut rest = Limited::new(request.body_mut(), LINGER_BYTES);
    let discard = async { while let Some(Ok(_)) = rest.frame().await {} };
    let _ = tokio::time::timeout(LINGER, discard).await; // its end, the limit, or late: all the same now
}

fn origin(peer: Peer, headers: &HeaderMap) -> Origin {
    let agent = headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    Origin::Network {
        address: peer.address,
        tls: peer.tls.unwrap_or("none"),
        agent: agent.chars().take(256).collect(),
    }
}

fn call(identity: Uuid, peer: Peer, headers: &HeaderMap) -> Call {
    let correlation = client_id(headers).and_then(|v| v.to_str().ok()).and_then(|t| Uuid::parse_str(t).ok());
    let mut call = Call::new(identity, "vault serve");
    call.correlation = correlation.unwrap_or(call.correlation);
    call.origin = origin(peer, headers);
    call
}

/// What the client calls its request.
fn client_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get("x-ms-client-request-id").filter(|v| v.len() <= 128 && v.to_str().is_ok())
}

impl Answers for Desk {
    async fn answer(self: Arc<Self>, peer: Peer, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        let request_id = Uuid::new_v4().to_string();
        let client = client_id(request.headers()).cloned();
        let head = (request.method().clone(), request.uri().path().chars().take(200).collect::<String>());
        let reply = self.reply(peer, &mut request).await.unwrap_or_else(|no| no);
        linger(&mut request).await;
        log::info!("vault serve: {} {} {:?} {} {request_id}", peer.address, head.0, head.1, reply.status);
        let on =
            Headers { request_id, client_id: client.as_ref(), region: &self.location, address: peer.address };
        reply.into_response(&on)
    }
}

impl TokenDesk {
    async fn reply(&self, peer: Peer, request: Request<Incoming>) -> Answered<Reply> {
        let path = request.uri().path().to_ascii_lowercase();
        let metadata = match path.trim_end_matches('/') {
            "/msi/token" => false,
            "/metadata/identity/oauth2/token" if self.0.imds.is_some() => true,
            _ => return Err(crate::vault::wire::Unroutable::NotFound.into()),
        };
        if request.method() != hyper::Method::GET {
            return Err(crate::vault::wire::Unroutable::Method("GET").into());
        }
        let (imds, headers) = (self.0.imds.clone().filter(|_| metadata), request.headers().clone());
        let query = request.uri().query().unwrap_or_default().as_bytes().to_vec();
        let run = move |issue: Issue<'_>| match imds {
            Some(identity) => tokens::imds(issue, &query, &headers, &identity),
            None => tokens::app_service(issue, &query, &headers),
        };
        self.0.at_the_door(run, origin(peer, request.headers())).await
    }
}

impl Answers for TokenDesk {
    async fn answer(self: Arc<Self>, peer: Peer, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let request_id = Uuid::new_v4().to_string();
        let reply = self.reply(peer, request).await.unwrap_or_else(|no| no);
        let on = Headers { request_id, client_id: None, region: &self.0.location, address: peer.address };
        reply.into_response(&on)
    }
}
