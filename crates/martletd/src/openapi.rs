//! The routes and their description, made together so that they cannot part.
//!
//! [`Routes`] takes each route once: to the router goes the handler, to the OpenAPI document its [`Spec`]. Schemas come
//! from the API types themselves. So is it said once which role of a token a route needs: unless its [`Spec`] says another, reading
//! needs the least and everything else the most, so that a route about which nobody thought is open to few.

use crate::server::Server;
use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, on};
use martlet_api::{Problem, Progress, Role};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Methods the API uses.
#[derive(Debug, Clone, Copy)]
pub enum Method {
    /// Reads.
    Get,
    /// Acts.
    Post,
    /// Replaces.
    Put,
    /// Removes.
    Delete,
}

/// What a route takes and gives.
pub struct Spec {
    summary: &'static str,
    parameters: Vec<Value>,
    takes: Option<Payload>,
    gives: Option<Payload>,
    events: bool,
    upgrade: Option<&'static str>,
    role: Option<Role>,
}

/// Content of a body.
struct Payload {
    media_type: &'static str,
    schema: Value,
    schemas: Vec<(String, Value)>,
}

impl Payload {
    fn json<T: ToSchema>() -> Self {
        let name = T::name().into_owned();
        let mut schemas = vec![(name.clone(), T::schema())];
        T::schemas(&mut schemas);
        let schemas = schemas
            .into_iter()
            .map(|(name, schema)| (name, value(&schema)))
            .collect();
        Self {
            media_type: "application/json",
            schema: reference(&name),
            schemas,
        }
    }

    fn plain(media_type: &'static str) -> Self {
        Self {
            media_type,
            schema: json!({ "type": "string" }),
            schemas: Vec::new(),
        }
    }

    fn content(&self) -> Value {
        json!({ self.media_type: { "schema": self.schema } })
    }
}

impl Spec {
    /// A route that takes nothing and gives nothing, so far.
    pub fn new(summary: &'static str) -> Self {
        Self {
            summary,
            parameters: Vec::new(),
            takes: None,
            gives: None,
            events: false,
            upgrade: None,
            role: None,
        }
    }
    /// Takes a token of this role, or of a higher one.
    pub fn needs(mut self, role: Role) -> Self {
        self.role = Some(role);
        self
    }
    /// Takes this as JSON.
    pub fn takes<T: ToSchema>(mut self) -> Self {
        self.takes = Some(Payload::json::<T>());
        self
    }
    /// Takes bytes of this media type.
    pub fn takes_bytes(mut self, media_type: &'static str) -> Self {
        self.takes = Some(Payload::plain(media_type));
        self
    }
    /// Gives this as JSON.
    pub fn gives<T: ToSchema>(mut self) -> Self {
        self.gives = Some(Payload::json::<T>());
        self
    }
    /// Gives an array of these.
    pub fn lists<T: ToSchema>(self) -> Self {
        let mut this = self.gives::<T>();
        if let Some(gives) = &mut this.gives {
            gives.schema = json!({ "type": "array", "items": gives.schema });
        }
        this
    }
    /// Gives bytes of this media type.
    pub fn gives_bytes(mut self, media_type: &'static str) -> Self {
        self.gives = Some(Payload::plain(media_type));
        self
    }
    /// Tells of its progress by server-sent events when asked to.
    pub fn with_events(mut self) -> Self {
        self.events = true;
        self
    }
    /// Switches to this protocol.
    pub fn upgrades_to(mut self, protocol: &'static str) -> Self {
        self.upgrade = Some(protocol);
        self
    }
    /// Has this parameter in its query.
    pub fn query(mut self, name: &str, kind: &str, required: bool, description: &str) -> Self {
        self.parameters.push(json!({
            "name": name, "in": "query", "required": required, "description": description, "schema": { "type": kind },
        }));
        self
    }
}

/// The role that each route needs.
#[derive(Debug, Clone, Default)]
pub struct Roles(BTreeMap<(&'static str, String), Role>);

impl Roles {
    /// What a request to a route needs. Of what is unknown it is the most.
    pub fn needed(&self, method: &axum::http::Method, route: &str) -> Role {
        let known = self.0.iter().find(|((word, path), _)| {
            // HEAD is answered by what answers GET.
            let word = if *method == axum::http::Method::HEAD && *word == "get" {
                "head"
            } else {
                word
            };
            path == route && method.as_str().eq_ignore_ascii_case(word)
        });
        known.map_or(Role::Admin, |(_, role)| *role)
    }
}

/// Router and document under construction.
pub struct Routes {
    router: Router<Server>,
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
    roles: Roles,
}

impl Routes {
    /// Nothing yet.
    pub fn new() -> Self {
        let mut this = Self {
            router: Router::new(),
            paths: Map::new(),
            schemas: Map::new(),
            roles: Roles::default(),
        };
        this.learn(Payload::json::<Problem>());
        this.learn(Payload::json::<Progress>());
        this
    }

    /// Adds a route.
    pub fn route<H, A>(mut self, method: Method, path: &str, spec: Spec, handler: H) -> Self
    where
        H: Handler<A, Server>,
        A: 'static,
    {
        let (filter, word) = match method {
            Method::Get => (MethodFilter::GET, "get"),
            Method::Post => (MethodFilter::POST, "post"),
            Method::Put => (MethodFilter::PUT, "put"),
            Method::Delete => (MethodFilter::DELETE, "delete"),
        };
        let role = spec.role.unwrap_or(match method {
            Method::Get => Role::Read,
            Method::Post | Method::Put | Method::Delete => Role::Admin,
        });
        let mut operation = self.operation(path, spec);
        operation["x-role"] = role.to_string().into();
        self.roles.0.insert((word, path.to_owned()), role);
        if let Some(methods) = self
            .paths
            .entry(path)
            .or_insert_with(|| json!({}))
            .as_object_mut()
        {
            methods.insert(word.into(), operation);
        }
        self.router = self.router.route(path, on(filter, handler));
        self
    }

    fn operation(&mut self, path: &str, spec: Spec) -> Value {
        let mut parameters: Vec<_> = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        parameters.extend(spec.parameters);
        let success = match (&spec.gives, spec.upgrade) {
            (_, Some(protocol)) => json!({ "101": { "description": format!("Switched to {protocol}") } }),
            (None, None) => json!({ "204": { "description": "Done" } }),
            (Some(gives), None) => {
                let mut content = gives.content();
                if spec.events {
                    content["text/event-stream"] = json!({ "schema": { "type": "string", "description":
                        "`progress` events (Progress), then one `result` (as application/json) or `error` (Problem)" } });
                }
                json!({ "200": { "description": "Done", "content": content } })
            }
        };
        let mut operation = json!({ "summary": spec.summary, "responses": success });
        operation["responses"]["default"] = json!({ "description": "It did not work",
            "content": { "application/json": { "schema": reference("Problem") } } });
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(takes) = &spec.takes {
            operation["requestBody"] = json!({ "required": true, "content": takes.content() });
        }
        spec.takes
            .into_iter()
            .chain(spec.gives)
            .for_each(|payload| self.learn(payload));
        operation
    }

    fn learn(&mut self, payload: Payload) {
        self.schemas.extend(payload.schemas);
    }

    /// The router, the document it serves, and what its routes need.
    pub fn finish(self) -> (Router<Server>, Value, Roles) {
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Martlet",
                "version": "1",
                "description": "Checkpoint, suspend, resume and fork running virtual machines. HTTP/1.1 over a unix socket; \
                    for who has a token, over TLS where the host is in a fleet (`Authorization: Bearer SECRET`), \
                    as far as its role goes (`x-role`: read, run or admin).",
                "license": { "name": "Apache-2.0 OR MIT" },
            },
            "paths": self.paths,
            "components": { "schemas": self.schemas },
        });
        (self.router, document, self.roles)
    }
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn value(schema: &impl serde::Serialize) -> Value {
    serde_json::to_value(schema).expect("schemas are plain data")
}
