//! Listeners and connections: how many, how long, and their orderly end.
//!
//! Must never see: keys, tokens, what is asked.
//!
//! Invariants:
//! 1. The number of connections is bounded. When it is reached, the one that has been idle is asked to go, the oldest
//!    first; a new client waits, it is not refused.
//! 2. A handshake, a head, a body and an answer that nobody reads have a time limit each ([`super::pace`]).
//! 3. At a stop nobody new is let in, what is being served is answered, and idle connections are closed.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ProtocolVersion;

use super::pace::{Pace, Paced};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Of a request's head, and of what hyper reads ahead.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// Who is at the other end, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// As in the audit; `None` without TLS.
    pub(super) tls: Option<&'static str>,
}

/// Answers requests.
pub(super) trait Answers: Send + Sync + 'static {
    /// One request.
    fn answer(
        self: Arc<Self>,
        peer: Peer,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// Connections of one or several listeners.
#[derive(Clone, Debug)]
pub(super) struct Crowd {
    places: Arc<Semaphore>,
    most: u32,
    /// Asks an idle connection to go.
    room: Arc<Notify>,
    stop: watch::Receiver<bool>,
}

impl Crowd {
    pub(super) fn new(most: u32, stop: watch::Receiver<bool>) -> Self {
        let places = Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(usize::MAX)));
        Self { places, most, room: Arc::default(), stop }
    }

    /// When the last connection has ended.
    pub(super) async fn gone(&self) {
        let _ = self.places.acquire_many(self.most).await;
    }

    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        self.room.notify_one();
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        // If everybody was asked before, the word still lies there: the next client must not take it for his.
        pin!(self.room.notified()).enable();
        place
    }

    /// Serves a listener until the stop.
    pub(super) async fn serve<A: Answers>(
        self,
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        answers: Arc<A>,
    ) {
        let mut stop = self.stop.clone();
        loop {
            let next = async {
                let place = self.place().await;
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                next = next => next,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((stream, from)) => {
                    let (crowd, tls, answers) = (self.clone(), tls.clone(), Arc::clone(&answers));
                    tokio::spawn(async move {
                        crowd.meet(stream, from, tls, answers).await;
                        drop(place);
                    });
                }
                Err(e) => {
                    // Out of descriptors, most likely: give those that are open time to end.
                    log::warn!("vault serve: accept: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn meet<A: Answers>(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        tls: Option<TlsAcceptor>,
        answers: Arc<A>,
    ) {
        let _ = stream.set_nodelay(true); // else an answer may wait for the client's acknowledgement
        let address = from.ip().to_canonical();
        let Some(tls) = tls else {
            return self.talk(stream, Peer { address, tls: None }, answers).await;
        };
        match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let version = match stream.get_ref().1.protocol_version() {
                    Some(ProtocolVersion::TLSv1_2) => "TLS1_2",
                    _ => "TLS1_3",
                };
                self.talk(stream, Peer { address, tls: Some(version) }, answers).await;
            }
            Ok(Err(e)) => log::debug!("vault serve: {from}: handshake: {e}"),
            Err(_) => log::debug!("vault serve: {from}: handshake: too slow"),
        }
    }

    async fn talk<S, A>(&self, stream: S, peer: Peer, answers: Arc<A>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
        A: Answers,
    {
        let pace = Pace::default();
        let service = service_fn(|request| {
            let (serving, answers) = (pace.serving(), Arc::clone(&answers));
            async move {
                let response = answers.answer(peer, request).await;
                drop(serving);
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(Paced::new(stream, pace.clone())), service);
        let mut connection = pin!(connection);
        let (mut stop, mut asked) = (self.stop.clone(), false);
        let mut room = pin!(self.room.notified());
        loop {
            tokio::select! {
                done = connection.as_mut() => {
                    if let Err(e) = done {
                        log::debug!("vault serve: {}: {e}", peer.address);
                    }
                    return;
                }
                _ = stop.wait_for(|stop| *stop), if !asked => {}
                () = room.as_mut(), if !asked => {}
            }
            asked = true;
            connection.as_mut().graceful_shutdown();
            // hyper would wait for the first request of one that never asked.
            if pace.at_rest() {
                return;
            }
        }
    }
}
