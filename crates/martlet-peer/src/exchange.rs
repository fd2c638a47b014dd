//! What a host answers to others about the snapshots that it has.
//!
//! ```text
//! GET  /peer/refs              ► {"name:tag": "snapshot id", …}
//! GET  /peer/channel           ► objects, as they are stored, one at a time (see channel.rs)
//! POST /peer/objects  keys     ► objects, as they are stored
//! POST /peer/lacks    keys     ► a bit for each, set if it is not here; those that are stay for a while
//! POST /peer/put      objects  ► stored and durable
//! POST /peer/ref?name=NAME     a snapshot's record ► it exists, if all that it needs is here, and has this name
//! ```
//!
//! What was put, or was here when it was asked for, is kept from gc for some minutes, so that a push comes to its end.

use crate::wire::{FOUND, KEY_BYTES, KEYS_MAX, LACKS, Pieces, Taken, decode_key, decode_keys, put_object};
use crate::{Caller, Code, Refusal, channel};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Query, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::{Request, StatusCode};
use martlet_image::SnapshotRecord;
use martlet_store::{Batch, Key, Kind, Part, RefName, Store, StoreError};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Sender, channel};

/// The longest body of a put: one object of the largest size after some smaller ones.
pub const PUT_BYTES_MAX: usize = martlet_store::CONTENT_BYTES_MAX + 2 * crate::transfer::PUT_BYTES;
/// The longest record of a snapshot.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// Small writes are gathered into chunks of this size.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that wait for a caller to take them.
const CHUNKS: usize = 8;
/// What a host pushes is kept for so long without a word of it.
const KEPT: Duration = Duration::from_secs(10 * 60);

/// What a host wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read names and objects.
    Read,
    /// Add objects and set names.
    Write,
    /// Have machines go on here.
    Run,
}

/// May this host? What is to be told if not.
pub type Policy = Arc<dyn Fn(&str, Access) -> Result<(), Refusal> + Send + Sync>;

type Answer<T> = Result<T, Refusal>;

struct Peers {
    store: Arc<Store>,
    policy: Policy,
    keepers: Mutex<HashMap<String, (Batch, Instant)>>,
}

/// The paths under `/peer/`, for hosts only, and for what the policy lets each do.
pub fn peer_router(store: Arc<Store>, policy: Policy) -> Router {
    let peers = Peers {
        store,
        policy,
        keepers: Mutex::default(),
    };
    Router::new()
        .route("/peer/refs", get(refs))
        .route(channel::PATH, get(open_channel))
        .route("/peer/objects", post(objects))
        .route("/peer/lacks", post(lacks))
        .route("/peer/put", post(put))
        .route("/peer/ref", post(set_ref))
        .with_state(Arc::new(peers))
}

impl Peers {
    /// The host that calls, if it may.
    fn host(&self, caller: Caller, access: Access) -> Answer<String> {
        match caller {
            Caller::Host(name) => (self.policy)(&name, access).map(|()| name),
            _ => Err(Refusal::new(Code::Forbidden, "you may not do this")),
        }
    }

    /// Keeps these from being collected for a while.
    fn keep(self: &Arc<Self>, host: &str, keys: impl IntoIterator<Item = Key>) -> Answer<()> {
        let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        if !keepers.contains_key(host) {
            keepers.insert(host.to_owned(), (self.store.begin()?, Instant::now()));
            Handle::current().spawn(Arc::clone(self).let_go(host.to_owned()));
        }
        if let Some((batch, used)) = keepers.get_mut(host) {
            batch.rely_on(keys);
            *used = Instant::now();
        }
        Ok(())
    }

    async fn let_go(self: Arc<Self>, host: String) {
        let mut wait = KEPT;
        loop {
            tokio::time::sleep(wait).await;
            let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((_, used)) = keepers.get(&host) else {
                return;
            };
            match KEPT.checked_sub(used.elapsed()) {
                Some(left) if !left.is_zero() => wait = left,
                _ => {
                    keepers.remove(&host);
                    return;
                }
            }
        }
    }
}

async fn refs(
    State(peers): State<Arc<Peers>>,
    Extension(caller): Extension<Caller>,
) -> Answer<Json<BTreeMap<String, String>>> {
    peers.host(caller, Access::Read)?;
    let refs = peers.store.refs();
    let refs = refs
        .into_iter()
        .map(|(name, id)| (name.to_string(), id.to_string()));
    Ok(Json(refs.collect()))
}

async fn open_channel(
    State(peers): State<Arc<Peers>>,
    Extension(caller): Extension<Caller>,
    mut request: Request<Body>,
) -> Answer<impl IntoResponse> {
    peers.host(caller.clone(), Access::Read)?;
    let is_meant = request.headers().get(UPGRADE);
    if is_meant.is_none_or(|protocol| protocol != channel::PROTOCOL) {
        return Err(bad(format!("a channel is an upgrade to {}", channel::PROTOCOL)));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let may = move |peers: &Peers| peers.host(caller.clone(), Access::Read).is_ok();
    tokio::spawn(channel::serve(upgrade, move |key, out| match may(&peers) {
        true => put_found(&peers.store, key, out),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }));
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, channel::PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers))
}

async fn objects(
    State(peers): State<Arc<Peers>>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Answer<Body> {
    peers.host(caller, Access::Read)?;
    let keys = keys_of(body).await?;
    let (sender, mut chunks) = channel(CHUNKS);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = send_objects(&peers.store, &keys, &sender) {
            // The connection is cut, so that nobody takes a part for the whole.
            let _ = sender.blocking_send(Err(error));
        }
    });
    Ok(Body::from_stream(stream::poll_fn(move |context| {
        chunks.poll_recv(context)
    })))
}

fn send_objects(store: &Store, keys: &[Key], sender: &Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut out = Vec::with_capacity(CHUNK_BYTES);
    for key in keys {
        put_found(store, key, &mut out)?;
        if out.len() >= CHUNK_BYTES {
            let chunk = std::mem::replace(&mut out, Vec::with_capacity(CHUNK_BYTES));
            if sender.blocking_send(Ok(chunk.into())).is_err() {
                return Ok(()); // the caller has gone
            }
        }
    }
    let _ = sender.blocking_send(Ok(out.into()));
    Ok(())
}

/// An object, or that it is not here.
fn put_found(store: &Store, key: &Key, out: &mut Vec<u8>) -> io::Result<()> {
    match store.stored(key) {
        Ok(object) => {
            out.push(FOUND);
            put_object(out, &object);
        }
        Err(StoreError::NotFound(_)) => out.push(LACKS),
        Err(error @ StoreError::Damaged { .. }) => {
            tracing::warn!(%error, "a host asks for what is damaged here");
            out.push(LACKS);
        }
        Err(error) => return Err(io::Error::other(error)),
    }
    Ok(())
}

async fn lacks(
    State(peers): State<Arc<Peers>>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Answer<Vec<u8>> {
    let host = peers.host(caller, Access::Write)?;
    let keys = keys_of(body).await?;
    blocking(move || {
        // Before they are looked for, so that what is found stays.
        let batch = peers.store.begin()?;
        batch.rely_on(keys.iter().copied());
        let lacking = peers.store.lacks(&keys)?; // in order
        let is_lacking = |key: &Key| lacking.binary_search(key).is_ok();
        peers.keep(&host, keys.iter().copied().filter(|key| !is_lacking(key)))?;
        let mut bits = vec![0_u8; keys.len().div_ceil(8)];
        for (at, _) in keys.iter().enumerate().filter(|(_, key)| is_lacking(key)) {
            bits[at / 8] |= 1 << (at % 8);
        }
        Ok(bits)
    })
    .await
}

async fn put(
    State(peers): State<Arc<Peers>>,
    Extension(caller): Extension<Caller>,
    mut body: Body,
) -> Answer<()> {
    let host = peers.host(caller, Access::Write)?;
    blocking(move || {
        let runtime = Handle::current();
        let mut pieces = Pieces::new(|| match runtime.block_on(body.frame()) {
            Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
            Some(Err(error)) => Err(bad(format!("the question does not come whole: {error}"))),
            None => Ok(None),
        });
        let done = put_all(&peers, &host, &mut pieces);
        if done.is_err() {
            // An answer before the end of the question would be lost with the connection.
            pieces.drain();
        }
        done
    })
    .await
}

fn put_all<F>(peers: &Arc<Peers>, host: &str, pieces: &mut Pieces<F>) -> Answer<()>
where
    F: FnMut() -> Answer<Option<Bytes>>,
{
    let (mut batch, mut keys) = (peers.store.begin()?, Vec::new());
    while !pieces.is_at_end()? {
        let key = pieces.array::<KEY_BYTES>()?.and_then(|key| decode_key(&key));
        // A snapshot comes last, and by another door.
        let key = key.filter(|key| key.kind != Kind::Snapshot && keys.len() < KEYS_MAX);
        let key =
            key.ok_or_else(|| bad("there is no such object to be put, or there are too many".into()))?;
        match pieces.object(key)? {
            Taken::Whole(object) => batch.put_stored(&object)?,
            Taken::Wrong(reason) => return Err(bad(format!("{key}: {reason}"))),
        }
        keys.push(key);
    }
    peers.keep(host, keys)?;
    batch.commit(&[])?;
    Ok(())
}

fn bad(reason: String) -> Refusal {
    Refusal::new(Code::BadRequest, reason)
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

async fn set_ref(
    State(peers): State<Arc<Peers>>,
    Extension(caller): Extension<Caller>,
    Query(Named { name }): Query<Named>,
    body: Body,
) -> Answer<Json<String>> {
    peers.host(caller, Access::Write)?;
    let name: RefName = name.parse()?;
    let bytes = whole(body, RECORD_BYTES_MAX).await?;
    blocking(move || {
        let record = SnapshotRecord::decode(&bytes).map_err(StoreError::from)?;
        let store = &peers.store;
        let mut batch = store.begin()?;
        store.walk(&record, Part::Whole, &mut |keys| {
            batch.rely_on(keys.iter().copied());
            match store.lacks(keys)?.len() {
                0 => Ok(()),
                count => Err(Refusal::new(
                    Code::Lacks,
                    format!("{count} objects of this snapshot are not here"),
                )),
            }
        })?;
        let id = batch.put_snapshot(&record)?;
        // Nobody's name is another thing from one moment to the next because another host has it, too.
        if store.refs().get(&name).is_some_and(|there| *there != id) {
            let words = format!("{name} is another snapshot here");
            return Err(Refusal::new(Code::NameTaken, words));
        }
        batch.commit(&[(name, id)])?;
        Ok(Json(id.to_string()))
    })
    .await
}

async fn keys_of(body: Body) -> Answer<Vec<Key>> {
    let bytes = whole(body, KEYS_MAX * KEY_BYTES).await?;
    decode_keys(&bytes).map_err(|reason| Refusal::new(Code::BadRequest, reason))
}

/// A body of bounded length.
pub(crate) async fn whole(body: Body, bytes_max: usize) -> Answer<Bytes> {
    to_bytes(body, bytes_max).await.map_err(|error| {
        let reason =
            format!("the question does not come whole, or is longer than {bytes_max} bytes: {error}");
        Refusal::new(Code::BadRequest, reason)
    })
}

/// Does what blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Refusal::new(Code::Failed, "this host has failed to answer")))
}
