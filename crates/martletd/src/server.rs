//! The HTTP server: state that handlers share, counters, and the loop that serves until told to stop.

use crate::control::Control;
use crate::failure::Failure;
use crate::idle::{Activity, Idle};
use crate::metrics::Metric;
use crate::openapi::Roles;
use crate::people::{Door, People};
use crate::routes;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use martlet_api::{Problem, ProblemCode, VersionInfo};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::net::UnixListener;

/// Requests answered, by method, route and status.
type Counts = BTreeMap<(&'static str, String, u16), u64>;

/// What handlers share.
#[derive(Clone)]
pub struct Server {
    /// The engine.
    pub control: Arc<dyn Control>,
    /// What `/version` answers.
    pub version: Arc<VersionInfo>,
    /// Calls under way.
    pub activity: Activity,
    closing: Arc<AtomicBool>,
    document: Arc<Value>,
    roles: Arc<Roles>,
    counts: Arc<Mutex<Counts>>,
}

impl Server {
    /// Is the daemon on its way out?
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// The OpenAPI document.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// What the routes need of a token.
    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// The server's own metrics.
    pub fn metrics(&self) -> Vec<Metric> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let requests = counts.iter().map(|((method, route, status), count)| {
            Metric::counter("http_requests_total", "Requests answered.", *count as f64)
                .label("method", *method)
                .label("route", route)
                .label("status", status.to_string())
        });
        requests.collect()
    }
}

/// The whole API in front of an engine, ready to be served.
pub struct Service {
    router: Router,
    /// The same for people who come over the network.
    people: Arc<Router>,
    control: Arc<dyn Control>,
    activity: Activity,
    closing: Arc<AtomicBool>,
}

impl Service {
    /// The API of this engine.
    pub fn new(control: Arc<dyn Control>, version: VersionInfo) -> Self {
        let (router, document, roles) = routes::all().finish();
        let server = Server {
            control,
            version: version.into(),
            activity: Activity::new(),
            closing: Arc::default(),
            document: document.into(),
            roles: roles.into(),
            counts: Arc::default(),
        };
        let (closing, activity) = (server.closing.clone(), server.activity.clone());
        let control = server.control.clone();
        let router = router
            .fallback(nothing_there)
            .method_not_allowed_fallback(wrong_method);
        let door = Door::new(server.clone());
        let people = router
            .clone()
            .layer(from_fn_with_state(door, Door::guard))
            .layer(from_fn_with_state(server.clone(), observe))
            .with_state(server.clone());
        let router = router
            .layer(from_fn_with_state(server.clone(), observe))
            .with_state(server);
        Self {
            router,
            people: people.into(),
            control,
            activity,
            closing,
        }
    }

    /// The API for people with tokens, for as long as this is served. What they ask for is done in this runtime.
    pub fn people(&self, runtime: tokio::runtime::Handle) -> People {
        People::new(&self.people, runtime)
    }

    /// For the time when there is nothing to do.
    pub fn idle(&self) -> Idle {
        Idle {
            activity: self.activity.clone(),
            control: self.control.clone(),
        }
    }

    /// Serves until `shutdown` resolves, then lets every request that has begun come to its answer. Connections that
    /// were upgraded, and logs that are followed, end at once.
    pub async fn serve(
        self,
        listener: UnixListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let closing = self.closing;
        let _tidy = tokio::spawn(crate::idle::tidy(self.activity.clone()));
        let shutdown = async move {
            shutdown.await;
            closing.store(true, Ordering::Relaxed);
        };
        axum::serve(listener, self.router)
            .with_graceful_shutdown(shutdown)
            .await
    }
}

/// The OpenAPI document that a [`Service`] serves.
pub fn document() -> Value {
    routes::all().finish().1
}

async fn nothing_there(request: Request) -> Failure {
    let path = request.uri().path();
    Failure(
        Problem::new(ProblemCode::NotFound, format!("there is nothing at {path:.200?}"))
            .remediation("GET /v1/openapi.json lists what there is"),
    )
}

async fn wrong_method(request: Request) -> Failure {
    let (method, path) = (request.method(), request.uri().path());
    Failure(Problem::new(
        ProblemCode::InvalidArgument,
        format!("{method} does not go with {path:.200?}"),
    ))
}

async fn observe(State(server): State<Server>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let _under_way = server.activity.begin();
    let method = match request.method().as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other", // clients must not be able to grow the table of counts
    };
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str)
        .to_string();
    let path = request.uri().path().to_string();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    tracing::debug!(
        method,
        path,
        status,
        ms = begun.elapsed().as_secs_f64() * 1e3,
        "request"
    );
    *server
        .counts
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry((method, route, status))
        .or_default() += 1;
    response
}
