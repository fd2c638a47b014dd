//! The API for people who are not on the host: by TLS and a token.
//!
//! ```text
//!   serve (martlet-peer) ─► People ─► Door: whose token? its role? noted ─► the routes, as behind the socket
//!                                       └── no token, a bad one, one of too low a role ─► that is the answer
//! ```
//!
//! A token is looked up for each request. What goes on without asking again (a command's terminal, a log that is followed) is cut off
//! when its token is over or removed.

use crate::control::{Answer, Control};
use crate::failure::Failure;
use crate::server::Server;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use martlet_api::{Problem, ProblemCode, Role, TokenInfo, User};
use martlet_peer::{Caller, Code, Connection, Refusal};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Who has no good token is told so after this time.
const REFUSED_AFTER: Duration = Duration::from_secs(1);
/// So often it is noted that somebody had none: strangers must not be able to write the audit log full.
const NOTED_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked whether the token of an open connection is still good.
const LOOK: Duration = Duration::from_millis(500);

/// The API of a daemon, for as long as that serves.
#[derive(Clone)]
pub struct People {
    router: Weak<Router>,
    runtime: Handle,
}

impl People {
    pub(crate) fn new(router: &Arc<Router>, runtime: Handle) -> Self {
        Self {
            router: Arc::downgrade(router),
            runtime,
        }
    }

    /// What answers everything that is not between hosts.
    pub fn router(self) -> Router {
        Router::new().fallback(move |request| {
            let people = self.clone();
            async move { people.answer(request).await }
        })
    }

    /// Answers a request, in the daemon's own runtime: that ends only when what was begun is done.
    pub async fn answer(&self, request: Request) -> Response {
        let is_host = matches!(request.extensions().get(), Some(Caller::Host(_)));
        if is_host && secret(request.headers()).is_none() {
            let words = "there is nothing for a host; people come with a token";
            return Refusal::new(Code::NotFound, words).into_response();
        }
        let Some(router) = self.router.upgrade() else {
            return Refusal::new(Code::Busy, "the daemon is ending").into_response();
        };
        let answer = async move { TowerToHyperService::new((*router).clone()).call(request).await };
        match self.runtime.spawn(answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => Refusal::new(Code::Busy, "the daemon is ending").into_response(),
        }
    }
}

/// Lets in who has a token that is good for what is asked.
#[derive(Clone)]
pub(crate) struct Door {
    server: Server,
    unknown: Arc<Mutex<Unknown>>,
}

/// Requests without a good token that are not noted yet.
#[derive(Default)]
struct Unknown {
    count: u64,
    noted: Option<Instant>,
}

impl Unknown {
    /// One more; says how many are to be noted now.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self
            .noted
            .is_some_and(|noted| now.duration_since(noted) < NOTED_EVERY)
        {
            return None;
        }
        self.noted = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

/// What somebody wants.
struct Asked {
    secret: Option<String>,
    /// The address.
    from: String,
    method: String,
    /// The template of its path.
    route: String,
    needs: Role,
}

/// Why somebody is not let in.
enum Refused {
    /// Nobody knows who it is.
    Unknown(Problem),
    /// It is known, and may not; or it cannot be said.
    Known(Problem),
}

impl Door {
    pub(crate) fn new(server: Server) -> Self {
        Self {
            server,
            unknown: Arc::default(),
        }
    }

    /// The layer before the routes.
    pub(crate) async fn guard(State(door): State<Self>, mut request: Request<Body>, next: Next) -> Response {
        let asked = door.asked(&request);
        let secret = asked.secret.clone().unwrap_or_default();
        let unknown = door.unknown.clone();
        let decided = door
            .server
            .call(move |control| Ok(decide(control, &asked, &unknown)))
            .await;
        let token = match decided {
            Ok(Ok(token)) => token,
            Ok(Err(Refused::Unknown(problem))) => {
                tokio::time::sleep(REFUSED_AFTER).await;
                let scheme = [(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
                let (_, body) = Failure(problem).into_response().into_parts();
                return (StatusCode::UNAUTHORIZED, scheme, body).into_response();
            }
            Ok(Err(Refused::Known(problem))) | Err(Failure(problem)) => {
                return Failure(problem).into_response();
            }
        };
        if let Some(connection) = request.extensions().get::<Connection>().cloned() {
            match connection.admit(&token.name) {
                Ok(true) => drop(tokio::spawn(door.watch(secret, connection))),
                Ok(false) => {}
                Err(refusal) => {
                    let problem = Problem::new(ProblemCode::Busy, refusal.message);
                    return Failure(problem.remediation("try again in a while")).into_response();
                }
            }
        }
        request.extensions_mut().insert(User::of_token(token.name));
        next.run(request).await
    }

    fn asked(&self, request: &Request<Body>) -> Asked {
        let route = request.extensions().get::<MatchedPath>();
        let route = route.map_or("none", MatchedPath::as_str).to_owned();
        let from = request.extensions().get::<ConnectInfo<SocketAddr>>();
        Asked {
            secret: secret(request.headers()),
            from: from.map_or_else(|| "somewhere".into(), |from| from.0.ip().to_string()),
            method: request.method().to_string(),
            needs: self.server.roles().needed(request.method(), &route),
            route,
        }
    }

    /// Cuts a connection off when its token is good no more.
    async fn watch(self, secret: String, connection: Connection) {
        while connection.is_open() {
            tokio::time::sleep(LOOK).await;
            // Not by the server: that a connection is looked at is no activity.
            let (control, secret) = (self.server.control.clone(), secret.clone());
            let looked = tokio::task::spawn_blocking(move || control.token(&secret)).await;
            if let Ok(Err(problem)) = looked
                && is_no_token(&problem)
            {
                connection.cut();
            }
        }
    }
}

/// Does this say that a token is not good? Anything else says nothing of it.
fn is_no_token(problem: &Problem) -> bool {
    problem.code == ProblemCode::PermissionDenied
}

/// What follows `Bearer` in the request's headers.
fn secret(headers: &HeaderMap) -> Option<String> {
    let (scheme, secret) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| secret.trim().to_owned())
}

/// Who asks, if that may do what it wants. What cannot be noted is not done.
fn decide(control: &dyn Control, asked: &Asked, unknown: &Mutex<Unknown>) -> Result<TokenInfo, Refused> {
    let nothing = || {
        Problem::new(ProblemCode::PermissionDenied, "this host wants a token")
            .remediation("`martlet token create` on that host makes one, `martlet login` takes it here")
    };
    let found = asked.secret.as_ref().ok_or_else(nothing);
    let token = match found.and_then(|secret| control.token(secret)) {
        Ok(token) => token,
        Err(problem) if is_no_token(&problem) => {
            let count = unknown
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .count(Instant::now());
            if let Some(count) = count {
                let outcome = format!("refused: no good token ({count} since the last note)");
                // It is refused whether or not that is noted.
                let _ = note(control, &format!("address {}", asked.from), asked, &outcome);
            }
            return Err(Refused::Unknown(problem));
        }
        Err(problem) => return Err(Refused::Known(problem)),
    };
    let caller = format!("token {}", token.name);
    if token.role < asked.needs {
        let needs = asked.needs;
        let _ = note(control, &caller, asked, &format!("refused: needs {needs}")); // as above
        let words = format!("{caller} is for {}, and this takes one for {needs}", token.role);
        let problem = Problem::new(ProblemCode::PermissionDenied, words).remediation(format!(
            "have `martlet token create NAME --role {needs}` make one on that host"
        ));
        return Err(Refused::Known(problem));
    }
    note(control, &caller, asked, "allowed").map_err(Refused::Known)?;
    Ok(token)
}

fn note(control: &dyn Control, caller: &str, asked: &Asked, outcome: &str) -> Answer<()> {
    control.note(caller, &asked.method, &asked.route, outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_do_not_write_the_log_full() {
        let (mut unknown, begun) = (Unknown::default(), Instant::now());
        assert_eq!(unknown.count(begun), Some(1), "the first is noted at once");
        let later = |seconds| begun + Duration::from_secs(seconds);
        for second in 1..60 {
            assert_eq!(unknown.count(later(second)), None);
        }
        assert_eq!(unknown.count(later(60)), Some(60), "then all that were meanwhile");
        assert_eq!(unknown.count(later(61)), None);
    }

    #[test]
    fn a_secret_follows_its_scheme() {
        let of = |text: &str| secret(&HeaderMap::from_iter([(AUTHORIZATION, text.parse().unwrap())]));
        assert_eq!(of("Bearer 0123").as_deref(), Some("0123"));
        assert_eq!(of("bearer  0123").as_deref(), Some("0123"));
        assert_eq!(
            (of("Basic 0123"), of("Bearer"), secret(&HeaderMap::new())),
            (None, None, None)
        );
    }
}
