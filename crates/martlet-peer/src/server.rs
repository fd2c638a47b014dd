//! Serving hosts, and those who are not hosts yet.
//!
//! ```text
//!   TCP ─► TLS ─► who is it? ─┬─ a host of the fleet ─► Caller::Host ───────┬─► the caller's router
//!                             ├─ shows no certificate ─► Caller::Anonymous ─┘
//!                             └─ removed, expired, of another fleet ─► that is the answer
//! ```
//!
//! There are so many places for handshakes, for hosts and for anybody else, so that strangers do not take those of hosts;
//! where there is none left a connection is closed. What is slow ends: handshakes, headers, bodies that stall, answers that nobody
//! takes. A host that is removed is cut off in the same moment.
//!
//! Anybody else may turn out to be a person who may be here ([`Connection::admit`]), and is no stranger from then on.

use crate::connection::{Bounds, Open};
use crate::stall::{Coming, Writes};
use crate::tls::{Judge, server_config};
use crate::{Code, HostIdentity, Refusal};
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::{IntoResponse, Response};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

/// Who makes a request: an extension of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A host of the fleet, by its certificate.
    Host(String),
    /// Somebody without a certificate, who may have a token.
    Anonymous,
}

/// How much a server does at once, and how long it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of hosts.
    pub hosts: usize,
    /// Connections of anybody else.
    pub strangers: usize,
    /// Connections of people who were admitted.
    pub people: usize,
    /// Connections of which it is not known yet.
    pub handshakes: usize,
    /// A handshake is over after this time.
    pub handshake: Duration,
    /// A stranger's request has begun, with all of its headers, after this time.
    pub header: Duration,
    /// A host's connection on which nothing was asked for so long is closed.
    pub idle: Duration,
    /// A request that does not go on for so long, or an answer that is not taken, ends.
    pub stall: Duration,
    /// The same for people who were admitted: a person may pause.
    pub people_stall: Duration,
    /// The longest request of a host.
    pub host_body_bytes: usize,
    /// The longest request of a stranger.
    pub stranger_body_bytes: usize,
    /// At the end, requests under way may take so long.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hosts: 256,
            strangers: 64,
            people: 256,
            handshakes: 64,
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            stall: Duration::from_secs(30),
            people_stall: Duration::from_secs(60 * 60),
            host_body_bytes: crate::PUT_BYTES_MAX,
            stranger_body_bytes: 1 << 20,
            grace: Duration::from_secs(5),
        }
    }
}

/// Hosts that are not of the fleet any more. Clones are the same list. A name on it is not given again: the certificate that
/// its host had is still signed.
#[derive(Debug, Clone)]
pub struct Removed(watch::Sender<BTreeSet<String>>);

impl Removed {
    /// These hosts.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(watch::Sender::new(names.into_iter().collect()))
    }

    /// This one too. Its connections end.
    pub fn add(&self, name: &str) {
        self.0.send_modify(|names| {
            names.insert(name.to_owned());
        });
    }

    /// Is it one of them?
    pub fn contains(&self, name: &str) -> bool {
        self.0.borrow().contains(name)
    }

    async fn wait_for(&self, caller: &Caller) {
        if let Caller::Host(name) = caller {
            let _ = self.0.subscribe().wait_for(|names| names.contains(name)).await;
        } else {
            std::future::pending().await
        }
    }
}

struct Shared {
    acceptor: TlsAcceptor,
    judge: Judge,
    removed: Removed,
    router: Router,
    limits: Limits,
    hosts: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    people: Arc<Semaphore>,
}

/// Serves a router to the fleet until `shutdown` resolves. Each request has a [`Caller`], its [`Connection`] and the address it
/// comes from ([`ConnectInfo`]) as extensions; what each may do is the router's to say.
pub async fn serve(
    listener: TcpListener,
    identity: &HostIdentity,
    removed: Removed,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send,
) -> crate::Result<()> {
    let shared = Arc::new(Shared {
        acceptor: server_config(identity)?.into(),
        judge: Judge::new(identity)?,
        removed,
        router,
        limits,
        hosts: Arc::new(Semaphore::new(limits.hosts)),
        strangers: Arc::new(Semaphore::new(limits.strangers)),
        people: Arc::new(Semaphore::new(limits.people)),
    });
    let handshakes = Arc::new(Semaphore::new(limits.handshakes));
    let (close, closing) = watch::channel(());
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, from)) => match handshakes.clone().try_acquire_owned() {
                Ok(place) => {
                    connections.spawn(connection(shared.clone(), socket, from, place, closing.clone()));
                }
                Err(_) => tracing::debug!(%from, "too many connections"),
            },
            Err(error) => {
                // Out of descriptors: it gets no better by asking at once.
                tracing::warn!(%error, "no connection is accepted");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop((listener, closing));
    let _ = close.send(());
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(limits.grace, ended).await; // what is left is cut off
    Ok(())
}

async fn connection(
    shared: Arc<Shared>,
    socket: TcpStream,
    from: SocketAddr,
    handshaking: OwnedSemaphorePermit,
    mut closing: watch::Receiver<()>,
) {
    let limits = shared.limits;
    let _ = socket.set_nodelay(true);
    let accepted = tokio::select! {
        accepted = timeout(limits.handshake, shared.acceptor.accept(socket)) => accepted,
        _ = closing.changed() => return,
    };
    let tls = match accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(tls) => tls,
        Err(error) => return tracing::debug!(%from, %error, "no handshake"),
    };
    let verdict = shared.judge.caller(tls.get_ref().1.peer_certificates());
    let (places, wait, body_bytes) = match &verdict {
        Ok(Caller::Host(_)) => (&shared.hosts, limits.idle, limits.host_body_bytes),
        _ => (&shared.strangers, limits.header, limits.stranger_body_bytes),
    };
    let Ok(place) = places.clone().try_acquire_owned() else {
        return tracing::debug!(%from, ?verdict, "too many connections");
    };
    drop(handshaking);
    let bounds = Bounds {
        body_bytes: body_bytes as u64,
        stall: limits.stall,
        idle: wait,
    };
    let open = match Open::new(tls.get_ref().0, place, bounds, shared.people.clone(), &limits) {
        Ok(open) => open,
        Err(error) => return tracing::warn!(%from, %error, "a connection is not served"),
    };
    let (weak, over) = (open.handle(), open.ended());
    let io = TokioIo::new(Writes::new(tls, open));
    let service = service_fn(|request: Request<Incoming>| {
        let mut request = request.map(|body| match weak.open() {
            Some(open) => Body::new(Coming::new(body, open)),
            None => Body::empty(), // there is nobody to answer
        });
        request.extensions_mut().insert(ConnectInfo(from));
        request.extensions_mut().insert(weak.clone());
        answer(shared.clone(), verdict.clone(), request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(wait)
        .serve_connection(io, service)
        .with_upgrades();
    let caller = verdict.as_ref().unwrap_or(&Caller::Anonymous);
    let ended = {
        let mut served = std::pin::pin!(served);
        tokio::select! {
            ended = served.as_mut() => ended,
            () = shared.removed.wait_for(caller), if !is_removed(&shared.removed, caller) => return,
            _ = closing.changed() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%from, %error, "a connection ended");
    }
    // One that was upgraded is somebody else's now, and ends no later than it would have.
    let mut over = std::pin::pin!(over);
    tokio::select! {
        () = over.as_mut() => return,
        () = shared.removed.wait_for(caller), if !is_removed(&shared.removed, caller) => {}
        _ = closing.changed() => {}
    }
    weak.cut();
    over.await;
}

fn is_removed(removed: &Removed, caller: &Caller) -> bool {
    matches!(caller, Caller::Host(name) if removed.contains(name))
}

async fn answer(
    shared: Arc<Shared>,
    verdict: Result<Caller, Refusal>,
    mut request: Request<Body>,
) -> Result<Response, Infallible> {
    let caller = match verdict {
        Ok(caller) if is_removed(&shared.removed, &caller) => {
            let refusal = Refusal::new(Code::Removed, "you were removed from this fleet");
            return Ok(refusal.into_response());
        }
        Ok(caller) => caller,
        Err(refusal) => return Ok(refusal.into_response()),
    };
    request.extensions_mut().insert(caller);
    TowerToHyperService::new(shared.router.clone())
        .call(request)
        .await
}
