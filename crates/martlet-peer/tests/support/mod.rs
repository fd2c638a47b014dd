//! Hosts in this process, on loopback.

#![allow(dead_code, reason = "each test uses some of it")]

use axum::routing::get;
use axum::{Extension, Router};
use martlet_image::{Manifest, MemoryRecord, PAGE_SIZE, SnapshotId, SnapshotRecord};
use martlet_peer::*;
use martlet_store::{RealFiles, RefName, Store};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

pub const IMAGE_PAGES: u64 = 3_000;

pub fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub fn new_fleet() -> Fleet {
    Fleet::create("test", Validity::of_fleet()).unwrap()
}

pub fn host(fleet: &Fleet, name: &str) -> HostIdentity {
    fleet.host(name, Validity::of_host()).unwrap()
}

/// A certificate that has ended an hour ago.
pub fn expired(fleet: &Fleet, name: &str) -> HostIdentity {
    let hour = Duration::from_secs(3600);
    let validity = Validity {
        begins: SystemTime::now() - 2 * hour,
        lasts: hour,
    };
    fleet.host(name, validity).unwrap()
}

pub fn hasty() -> Patience {
    Patience {
        connect: ms(1000),
        answer: ms(1000),
        stall: ms(300),
    }
}

pub fn client(identity: &HostIdentity, peer: &str, address: &str) -> PeerClient {
    PeerClient::new(identity, peer, address, hasty()).unwrap()
}

pub fn name(text: &str) -> RefName {
    text.parse().unwrap()
}

/// A server that ends with this.
pub struct Served {
    pub address: String,
    pub removed: Removed,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn new(identity: &HostIdentity, router: Router, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let removed = Removed::new([]);
        let (identity, list) = (identity.clone(), removed.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let until = async { drop(stopped.await) };
            let served = async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                serve(listener, &identity, list, router, limits, until).await
            };
            runtime.block_on(served).unwrap();
            runtime.shutdown_timeout(ms(1000));
        });
        Self {
            address,
            removed,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
    }
}

/// `/who` says who calls.
pub fn who() -> Router {
    async fn answer(Extension(caller): Extension<Caller>) -> axum::Json<String> {
        axum::Json(format!("{caller:?}"))
    }
    Router::new().route("/who", get(answer))
}

/// Keeps tokens and hosts as a daemon does in its database.
pub struct Book {
    pub fleet: Fleet,
    pub tokens: Mutex<TokenBook>,
    pub hosts: Mutex<Vec<HostEntry>>,
    pub later: Mutex<Duration>,
}

impl Book {
    pub fn new(fleet: &Fleet) -> Arc<Self> {
        Arc::new(Self {
            fleet: fleet.clone(),
            tokens: Mutex::default(),
            hosts: Mutex::default(),
            later: Mutex::default(),
        })
    }

    pub fn invite(&self, address: &str) -> HostInvitation {
        let token = self
            .tokens
            .lock()
            .unwrap()
            .add(TokenBook::LASTS, SystemTime::now());
        let (address, port) = address.rsplit_once(':').unwrap();
        HostInvitation::new(address, port.parse().unwrap(), token, &self.fleet.ca_pem).unwrap()
    }
}

impl Inviter for Book {
    fn fleet(&self) -> Fleet {
        self.fleet.clone()
    }
    fn admit(&self, newcomer: &Newcomer) -> Result<Welcome, Refusal> {
        let mut hosts = self.hosts.lock().unwrap();
        if hosts.iter().any(|host| host.name == newcomer.host.name) {
            return Err(Refusal::new(Code::NameTaken, "another host has this name"));
        }
        let now = SystemTime::now() + *self.later.lock().unwrap();
        self.tokens.lock().unwrap().redeem(&newcomer.token, now)?;
        hosts.push(newcomer.host.clone());
        Ok(Welcome {
            hosts: hosts.clone(),
            extra: "martlet-realm:…".into(),
        })
    }
}

/// A store with a directory of its own.
pub struct Stored {
    pub store: Arc<Store>,
    _dir: TempDir,
}

impl Stored {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Arc::new(RealFiles)).unwrap();
        Self {
            store: Arc::new(store),
            _dir: dir,
        }
    }

    /// A snapshot that differs from `parent` in these pages, which no compression makes much smaller.
    pub fn save(&self, parent: Option<SnapshotId>, pages: Range<u64>, called: &str) -> SnapshotId {
        let below = parent.map(|id| self.store.snapshot(&id).unwrap().memory.unwrap().manifest);
        let mut memory = match &below {
            Some(id) => (*self.store.manifest(id).unwrap()).clone(),
            None => Manifest::zero(IMAGE_PAGES),
        };
        let mut state = pages.start + 1;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 20) as u8
        };
        let content: Vec<(u64, [u8; PAGE_SIZE])> = pages
            .map(|page| (page, std::array::from_fn(|_| next())))
            .collect();
        let mut batch = self.store.begin().unwrap();
        let located = batch.put_pages(content.iter().map(|(page, bytes)| (*page, bytes)));
        for (page, location) in located.unwrap() {
            memory.set(page, location);
        }
        let record = SnapshotRecord {
            parent,
            memory: Some(MemoryRecord {
                manifest: batch.put_manifest(&memory, below).unwrap(),
                size_bytes: IMAGE_PAGES * PAGE_SIZE as u64,
                descriptor: batch.put_blob(called.as_bytes()).unwrap(),
                trace: None,
                starter: None,
                free_pages: 0,
            }),
            ..SnapshotRecord::default()
        };
        let id = batch.put_snapshot(&record).unwrap();
        batch.commit(&[(name(called), id)]).unwrap();
        id
    }

    /// It has a snapshot as another host has it, and can read all of it.
    pub fn assert_has(&self, id: SnapshotId, called: &str, original: &Store) {
        assert_eq!(self.store.resolve(called).unwrap(), id);
        let needs = self.store.needs(&id).unwrap();
        assert_eq!(needs.len(), original.needs(&id).unwrap().len());
        for (key, _) in needs {
            let content = self.store.stored(&key).unwrap().content().unwrap();
            assert_eq!(content, original.stored(&key).unwrap().content().unwrap());
        }
    }

    pub fn serve(&self, identity: &HostIdentity, policy: fn(&str, Access) -> bool) -> Served {
        let router = peer_router(self.store.clone(), policy_of(policy));
        Served::new(identity, router.merge(who()), Limits::default())
    }
}

/// Passes connections on, and counts what goes through, both ways.
pub struct Counting {
    pub address: String,
    bytes: Arc<AtomicU64>,
    bytes_max: Arc<AtomicU64>,
}

impl Counting {
    pub fn before(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (bytes, target) = (Arc::new(AtomicU64::new(0)), target.to_owned());
        let bytes_max = Arc::new(AtomicU64::new(u64::MAX));
        let (count, count_max) = (bytes.clone(), bytes_max.clone());
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(&target).unwrap());
                for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)]
                {
                    let (count, count_max) = (count.clone(), count_max.clone());
                    std::thread::spawn(move || {
                        let mut buffer = [0; 64 << 10];
                        while let Ok(len @ 1..) = from.read(&mut buffer) {
                            let so_far = count.fetch_add(len as u64, Ordering::Relaxed);
                            let is_cut = so_far > count_max.load(Ordering::Relaxed);
                            if is_cut || to.write_all(&buffer[..len]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self {
            address,
            bytes,
            bytes_max,
        }
    }

    /// Cuts what goes through once it was so much.
    pub fn cut_after(&self, bytes: u64) {
        self.bytes_max.store(bytes, Ordering::Relaxed);
    }

    pub fn take_bytes(&self) -> u64 {
        self.bytes.swap(0, Ordering::Relaxed)
    }
}

fn chain(identity: &HostIdentity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let pems = [&identity.cert_pem, &identity.ca_pem];
    let chain = pems.map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
    (chain.into(), key)
}

/// A host that answers the first request of each connection with these bytes, and then hangs, if it is to.
pub fn liar(identity: &HostIdentity, answers: Vec<Vec<u8>>, hangs: bool) -> String {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (chain, key) = chain(identity);
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut tls = rustls::StreamOwned::new(connection, socket.unwrap());
            for answer in &answers {
                let _ = tls.read(&mut [0; 100_000]);
                let _ = tls.write_all(answer);
                let _ = tls.flush();
            }
            if hangs {
                std::thread::sleep(ms(3000));
            }
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    });
    address
}

/// A connection to a host, with a certificate or without, to say anything.
pub fn raw(
    fleet: &Fleet,
    identity: Option<&HostIdentity>,
    peer: &str,
    address: &str,
) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(fleet.ca_pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        Some(identity) => {
            let (chain, key) = chain(identity);
            config.with_client_auth_cert(chain, key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let server_name = ServerName::try_from(format!("{peer}.martlet")).unwrap();
    let connection = rustls::ClientConnection::new(config.into(), server_name).unwrap();
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(ms(5000))).unwrap();
    rustls::StreamOwned::new(connection, socket)
}

/// The policy that lets hosts do what this says.
pub fn policy_of(may: impl Fn(&str, Access) -> bool + Send + Sync + 'static) -> Policy {
    Arc::new(move |host: &str, access| match may(host, access) {
        true => Ok(()),
        false => Err(Refusal::new(Code::Forbidden, "you may not do this")),
    })
}
