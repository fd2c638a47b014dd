//! People with tokens, as they meet a host from afar: what their role allows, and what becomes of them when their token ends.

mod fake;

use axum::body::Body;
use axum::http::{Method, Request};
use fake::Fake;
use martlet_api::{Role, TokenInfo, VersionInfo};
use martlet_peer::{
    AccessLine, Fleet, HostIdentity, Limits, Patience, PeerClient, PeerError, Removed, Secret, Validity,
    serve,
};
use martletd::people::People;
use martletd::server::{Service, document};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::time::timeout;

const ROLES: [(&str, Role); 3] = [("ann", Role::Read), ("ben", Role::Run), ("cleo", Role::Admin)];
/// Within this time somebody is cut off.
const AT_ONCE: Duration = Duration::from_secs(5);

fn service(fake: &Arc<Fake>) -> Service {
    let version = VersionInfo {
        version: "0".into(),
        api: "v1".into(),
        pid: 1,
        state_dir: "/nowhere".into(),
    };
    Service::new(fake.clone(), version)
}

fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_millis() as u64
}

/// Gives somebody a token with this secret.
fn let_in(fake: &Fake, name: &str, role: Role, secret: &str, lasts_ms: u64) {
    let token = TokenInfo {
        name: name.into(),
        role,
        created_unix_ms: now_unix_ms(),
        expires_unix_ms: now_unix_ms() + lasts_ms,
        used_unix_ms: None,
    };
    fake.tokens.lock().unwrap().insert(secret.into(), token);
}

async fn status_of(people: &People, method: &str, path: &str, secret: &str) -> u16 {
    let request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .header("authorization", format!("Bearer {secret}"))
        .body(Body::from("{}"));
    people.answer(request.unwrap()).await.status().as_u16()
}

/// Method, path and role of each route of the document.
fn routes() -> Vec<(String, String, Role)> {
    let document = document();
    let paths = document["paths"].as_object().unwrap().iter();
    let all = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.map(move |(method, operation)| {
            let role = serde_json::from_value(operation["x-role"].clone()).unwrap();
            (method.to_uppercase(), path.clone(), role)
        })
    });
    all.collect()
}

#[test]
fn each_route_says_which_role_it_needs() {
    let routes = routes();
    assert!(routes.len() > 50);
    for (method, path, role) in &routes {
        assert!(
            method == "GET" || *role > Role::Read,
            "{method} {path} changes something"
        );
    }
    let role_of = |method: &str, path: &str| {
        let found = routes.iter().find(|(m, p, _)| m == method && p == path);
        found.unwrap_or_else(|| panic!("there is no {method} {path}")).2
    };
    // Secrets, who may do what, and what touches the host beside its machines.
    for (method, path) in [
        ("POST", "/v1/hosts/init"),
        ("POST", "/v1/hosts/invite"),
        ("POST", "/v1/hosts/join"),
        ("DELETE", "/v1/hosts/{name}"),
        ("POST", "/v1/realms"),
        ("POST", "/v1/realms/{name}/share"),
        ("POST", "/v1/realms/{name}/rotate"),
        ("POST", "/v1/remotes"),
        ("DELETE", "/v1/remotes/{name}"),
        ("POST", "/v1/remotes/{name}/gc"),
        ("GET", "/v1/tokens"),
        ("POST", "/v1/tokens"),
        ("DELETE", "/v1/tokens/{name}"),
        ("POST", "/v1/bases/build"),
        ("POST", "/v1/bases/import"),
        ("POST", "/v1/carry"),
        ("POST", "/v1/store/verify"),
    ] {
        assert_eq!(role_of(method, path), Role::Admin, "{method} {path}");
    }
    for (method, path) in [
        ("POST", "/v1/machines"),
        ("DELETE", "/v1/machines/{name}"),
        ("POST", "/v1/machines/{name}/exec"),
        ("POST", "/v1/machines/{name}/console"),
        ("GET", "/v1/machines/{name}/files"),
        ("PUT", "/v1/machines/{name}/files"),
        ("POST", "/v1/machines/{name}/checkpoint"),
        ("POST", "/v1/machines/{name}/fork"),
        ("POST", "/v1/remotes/{name}/push"),
        ("POST", "/v1/remotes/{name}/pull"),
        ("DELETE", "/v1/snapshots/{reference}"),
    ] {
        assert_eq!(role_of(method, path), Role::Run, "{method} {path}");
    }
    for path in [
        "/v1/machines",
        "/v1/snapshots",
        "/v1/hosts",
        "/v1/hosts/top",
        "/v1/store/usage",
        "/metrics",
    ] {
        assert_eq!(role_of("GET", path), Role::Read, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_is_open_to_a_lower_role() {
    let fake = Fake::with(&["web"]);
    let service = service(&fake);
    let people = service.people(Handle::current());
    for (name, role) in ROLES {
        let_in(&fake, name, role, name, 3_600_000);
    }
    for (method, template, needs) in routes() {
        let path = template
            .replace("{name}", "none")
            .replace("{reference}", "none:1");
        for (name, role) in ROLES {
            fake.notes.lock().unwrap().clear();
            let status = status_of(&people, &method, &path, name).await;
            assert_eq!(status == 403, role < needs, "{name}: {method} {path}: {status}");
            let outcome = if role < needs {
                format!("refused: needs {needs}")
            } else {
                "allowed".into()
            };
            let note = [format!("token {name}"), method.clone(), template.clone(), outcome];
            assert_eq!(*fake.notes.lock().unwrap(), [note]);
        }
    }
    // HEAD reads; what nobody has thought of takes the highest role.
    assert_eq!(status_of(&people, "HEAD", "/v1/machines", "ann").await, 200);
    assert_eq!(status_of(&people, "PATCH", "/v1/machines", "ben").await, 403);
    assert_eq!(status_of(&people, "GET", "/v1/nothing", "ben").await, 403);
    assert_eq!(status_of(&people, "GET", "/v1/nothing", "cleo").await, 404);
    // When the daemon is gone there is nobody to ask.
    drop(service);
    assert_eq!(status_of(&people, "GET", "/v1/machines", "cleo").await, 503);
}

/// A host that serves people over TLS.
struct Afar {
    fake: Arc<Fake>,
    fleet: Fleet,
    desk: HostIdentity,
    address: String,
    _service: Service,
}

impl Afar {
    async fn new() -> Self {
        let fake = Fake::with(&["web"]);
        let service = service(&fake);
        let fleet = Fleet::create("test", Validity::of_fleet()).unwrap();
        let desk = fleet.host("desk", Validity::of_host()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (identity, router) = (desk.clone(), service.people(Handle::current()).router());
        tokio::spawn(async move {
            let forever = std::future::pending();
            serve(
                listener,
                &identity,
                Removed::new([]),
                router,
                Limits::default(),
                forever,
            )
            .await
        });
        Self {
            fake,
            fleet,
            desk,
            address,
            _service: service,
        }
    }

    /// Somebody with a new token.
    fn person(&self, name: &str, role: Role, lasts_ms: u64) -> AccessLine {
        let access = self.access();
        let_in(&self.fake, name, role, &access.secret.to_string(), lasts_ms);
        access
    }

    /// Somebody with a token that nobody has given out.
    fn access(&self) -> AccessLine {
        let (address, port) = self.address.rsplit_once(':').unwrap();
        AccessLine::new(
            "desk",
            address,
            port.parse().unwrap(),
            Secret::random(),
            &self.fleet.ca_pem,
        )
        .unwrap()
    }
}

/// Sends a request by a connection of its own; all that comes back.
async fn ask(access: &AccessLine, request: &str, headers: &str, body: &[u8]) -> String {
    let mut tls = access.connect(AT_ONCE).await.unwrap();
    let (secret, length) = (&access.secret, body.len());
    let head = format!(
        "{request} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    let _ = tls.write_all(head.as_bytes()).await;
    let _ = tls.write_all(body).await;
    let _ = tls.flush().await;
    let mut answer = Vec::new();
    let _ = timeout(4 * AT_ONCE, tls.read_to_end(&mut answer))
        .await
        .expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

const CLOSE: &str = "connection: close\r\n";

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_good_token_lets_in() {
    let afar = Afar::new().await;
    let ann = afar.person("ann", Role::Read, 3_600_000);
    let answer = ask(&ann, "GET /v1/machines", CLOSE, b"").await;
    assert!(status(&answer) == "200" && answer.contains("\"web\""), "{answer}");
    let answer = ask(&ann, "POST /v1/machines/web/kill", CLOSE, b"").await;
    assert!(
        status(&answer) == "403" && answer.contains("takes one for run"),
        "{answer}"
    );

    let begun = Instant::now();
    let mut nobody = vec![afar.access(), afar.person("old", Role::Admin, 0)];
    let removed = afar.person("ben", Role::Admin, 3_600_000);
    assert_eq!(status(&ask(&removed, "GET /v1/tokens", CLOSE, b"").await), "200");
    afar.fake
        .tokens
        .lock()
        .unwrap()
        .retain(|_, token| token.name != "ben");
    nobody.push(removed);
    for access in nobody {
        let answer = ask(&access, "GET /v1/machines", CLOSE, b"").await;
        assert_eq!(status(&answer), "401", "{answer}");
        assert!(
            answer.to_lowercase().contains("www-authenticate: bearer"),
            "{answer}"
        );
        assert!(
            answer.contains("remediation") && !answer.contains("\"web\""),
            "{answer}"
        );
    }
    assert!(begun.elapsed() >= Duration::from_secs(3), "guessing is slow");
    let notes = afar.fake.notes.lock().unwrap().clone();
    let of_nobody: Vec<_> = notes
        .iter()
        .filter(|note| note[0] == "address 127.0.0.1")
        .collect();
    assert_eq!(of_nobody.len(), 1, "noted, but not each: {notes:?}");

    // A host's certificate is no token.
    let couch = afar.fleet.host("couch", Validity::of_host()).unwrap();
    let (name, address) = (afar.desk.name.clone(), afar.address.clone());
    let asked = tokio::task::spawn_blocking(move || {
        let client = PeerClient::new(&couch, &name, &address, Patience::default()).unwrap();
        client.get::<Value>("/v1/machines")
    });
    let error = asked.await.unwrap().unwrap_err();
    assert!(matches!(error, PeerError::Refused { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_as_they_are_and_commands_talk() {
    let afar = Afar::new().await;
    let ben = afar.person("ben", Role::Run, 3_600_000);
    let long = vec![7; 3 << 20];
    let answer = ask(&ben, "PUT /v1/machines/web/files?path=/tmp", CLOSE, &long).await;
    assert_eq!(status(&answer), "204", "{answer}");
    assert_eq!(afar.fake.put.lock().unwrap()[0], ("/tmp".into(), long.clone()));
    // Of somebody without a token so much is not even looked at.
    let answer = ask(
        &afar.access(),
        "PUT /v1/machines/web/files?path=/tmp",
        CLOSE,
        &long,
    )
    .await;
    assert!(matches!(status(&answer), "401" | "none"), "{answer}");
    assert_eq!(afar.fake.put.lock().unwrap().len(), 1);

    let upgrade = "connection: upgrade\r\nupgrade: martlet-exec\r\n";
    let answer = ask(
        &ben,
        "POST /v1/machines/web/exec",
        upgrade,
        br#"{"argv":["env"],"env":{"hello":"1"}}"#,
    )
    .await;
    assert!(status(&answer) == "101" && answer.contains("hello"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_a_token_is_cut_off() {
    let afar = Afar::new().await;
    let upgrade = "connection: upgrade\r\nupgrade: martlet-console\r\ncontent-length: 0\r\n\r\n";
    for expires in [false, true] {
        let name = if expires { "late" } else { "gone" };
        let access = afar.person(name, Role::Run, if expires { 1500 } else { 3_600_000 });
        let head = |request: &str| {
            format!(
                "{request} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n",
                access.secret
            )
        };
        let (mut console, mut idle) = (
            access.connect(AT_ONCE).await.unwrap(),
            access.connect(AT_ONCE).await.unwrap(),
        );
        let mut buffer = [0; 4096];
        console
            .write_all((head("POST /v1/machines/web/console") + upgrade).as_bytes())
            .await
            .unwrap();
        let count = console.read(&mut buffer).await.unwrap();
        assert!(buffer[..count].starts_with(b"HTTP/1.1 101"), "it is connected");
        idle.write_all((head("GET /v1/machines") + "\r\n").as_bytes())
            .await
            .unwrap();
        assert!(idle.read(&mut buffer).await.unwrap() > 0);
        if !expires {
            afar.fake
                .tokens
                .lock()
                .unwrap()
                .retain(|_, token| token.name != name);
            // On a connection that was let in before, too.
            let _ = idle
                .write_all((head("POST /v1/machines/web/kill") + "\r\n").as_bytes())
                .await;
        }
        for open in [&mut console, &mut idle] {
            let ended = async {
                let mut rest = Vec::new();
                let _ = open.read_to_end(&mut rest).await;
                rest
            };
            let rest = timeout(AT_ONCE, ended).await.expect("cut off");
            assert!(
                !String::from_utf8_lossy(&rest).contains("HTTP/1.1 200"),
                "nothing more is done"
            );
        }
    }
    assert_eq!(
        afar.fake.machines.lock().unwrap()["web"].state,
        martlet_api::MachineState::Running
    );
}
