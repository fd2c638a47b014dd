//! The switch itself: one for all families of a host.
//!
//! ```text
//!   plug ──► reads frames ──► connect: writes them too ──► dropped: unplugged
//!
//!   reader of a port ─► check ─┬─► queue of another port ─► its writer ─► QEMU
//!                              └─► seal ─► UDP ─► (another host) open ─► check ─► queue of a port
//! ```
//!
//! A member that is not here is sent to where its frames came from last, and before any came to all hosts of the family. A queue
//! that is full loses frames, as networks do: a guest that reads nothing holds up nobody.

use crate::bucket::Bucket;
use crate::frame::{self, FRAME_BYTES_MAX, To};
use crate::number::Number;
use crate::seal::{FamilyId, Seal};
use martlet_egress::{Counts, Gateway, Options, Resolve};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

/// The switch's socket in a machine's directory.
pub const FROM_QEMU: &str = "family.sock";
/// QEMU's socket there.
pub const TO_QEMU: &str = "family.qemu";

/// Frames that wait for a guest.
const QUEUE_FRAMES: usize = 512;
/// Broadcasts of a guest: of more than so many each second the rest is lost.
const BROADCASTS_PER_S: f64 = 100.0;
const BROADCASTS_AT_ONCE: f64 = 200.0;
/// Hosts of a family.
pub const HOSTS_MAX: usize = 1024;
/// A thread looks so often whether it is still wanted.
const LOOK: Duration = Duration::from_millis(500);
/// Longest UDP datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// What to plug in.
#[derive(Debug)]
pub struct Plug {
    /// Into which family's network.
    pub family: FamilyId,
    /// That family's key.
    pub key: [u8; 32],
    /// New random bytes.
    pub random: [u8; 16],
    /// Who it is there.
    pub number: Number,
    /// The directory of its machine, which has QEMU's end ([`TO_QEMU`]) or will have it.
    pub dir: PathBuf,
}

/// Joins clones of the same family, wherever they are, and nobody else.
#[derive(Debug, Default)]
pub struct Switch {
    state: Arc<State>,
}

/// A machine that is plugged in; dropping it pulls the plug.
#[derive(Debug)]
pub struct Plugged {
    state: Arc<State>,
    family: FamilyId,
    number: Number,
    dir: PathBuf,
    reads: UnixDatagram,
    is_out: Arc<AtomicBool>,
    frames: Mutex<Option<Receiver<Vec<u8>>>>,
}

#[derive(Debug, Default)]
struct State {
    families: RwLock<HashMap<FamilyId, Family>>,
    tunnel: OnceLock<UdpSocket>,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Family {
    seal: Arc<Seal>,
    ports: HashMap<Number, Port>,
    hosts: BTreeSet<SocketAddr>,
    seen_at: HashMap<Number, SocketAddr>,
}

#[derive(Debug)]
struct Port {
    queue: SyncSender<Vec<u8>>,
    broadcasts: Mutex<Bucket>,
    is_out: Arc<AtomicBool>,
    way_out: Option<Gateway>,
}

impl Switch {
    /// Listens to other hosts' switches; where.
    pub fn serve(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let is_there = || io::Error::new(ErrorKind::AlreadyExists, "it listens already");
        if self.state.tunnel.get().is_some() {
            return Err(is_there());
        }
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(LOOK))?;
        let address = socket.local_addr()?;
        let reads = socket.try_clone()?;
        if self.state.tunnel.set(socket).is_err() {
            return Err(is_there());
        }
        let state = Arc::downgrade(&self.state);
        spawn("family-hosts", move || hear_hosts(&reads, &state))?;
        Ok(address)
    }

    /// Plugs a machine in. Its QEMU may begin to send; what is for it waits until [`Plugged::connect`]. One with another key than
    /// the family's members here have is none of them, whatever it is called: [`ErrorKind::PermissionDenied`].
    pub fn plug(&self, plug: Plug) -> io::Result<Plugged> {
        let path = plug.dir.join(FROM_QEMU);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let reads = UnixDatagram::bind(&path)?;
        // Its directory is closed to all but its QEMU.
        fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        let (queue, frames) = sync_channel(QUEUE_FRAMES);
        let is_out = Arc::new(AtomicBool::new(false));
        let port = Port {
            queue,
            broadcasts: Mutex::new(Bucket::new(BROADCASTS_PER_S, BROADCASTS_AT_ONCE, Instant::now())),
            is_out: is_out.clone(),
            way_out: None,
        };
        let (family, number) = (plug.family, plug.number);
        let plugged = Plugged {
            state: self.state.clone(),
            family,
            number,
            dir: plug.dir,
            reads: reads.try_clone()?,
            is_out: is_out.clone(),
            frames: Mutex::new(Some(frames)),
        };
        {
            let mut families = self
                .state
                .families
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let family = families.entry(family).or_insert_with(|| Family {
                seal: Arc::new(Seal::new(plug.family, &plug.key, plug.random)),
                ports: HashMap::new(),
                hosts: BTreeSet::new(),
                seen_at: HashMap::new(),
            });
            if !family.seal.has(&plug.key) {
                let words = "its family's key is another one";
                return Err(io::Error::new(ErrorKind::PermissionDenied, words));
            }
            family.seen_at.remove(&number);
            family.ports.insert(number, port);
        }
        let state = self.state.clone();
        spawn("family-port", move || {
            let mut frame = [0; FRAME_BYTES_MAX + 1];
            loop {
                match reads.recv(&mut frame) {
                    _ if is_out.load(Relaxed) => return,
                    Ok(length) => state.hear_guest(family, number, &frame[..length]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        tracing::warn!(%error, "a machine is not heard by its family any more");
                        return;
                    }
                }
            }
        })?;
        Ok(plugged)
    }

    /// Hosts that have members of a family.
    pub fn reach(&self, family: FamilyId, hosts: impl IntoIterator<Item = SocketAddr>) {
        let mut families = self
            .state
            .families
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = families.get_mut(&family) {
            family.hosts.extend(hosts);
        }
    }

    /// How many frames went nowhere because their sender cannot truly have sent them, or sent too many.
    pub fn refused(&self) -> u64 {
        self.state.refused.load(Relaxed)
    }
}

impl Plugged {
    /// Gives it a way out. Its other end is at this host; a member at another one has that host's.
    pub fn lead_out(&self, called: &str, options: Options, names: Arc<dyn Resolve>) -> io::Result<()> {
        let (state, family, number) = (Arc::downgrade(&self.state), self.family, self.number);
        let to_guest = move |frame: &[u8]| {
            if let Some(state) = state.upgrade() {
                state.to_guest(family, number, frame);
            }
        };
        let way_out = Gateway::start(called.to_owned(), options, names, Box::new(to_guest))?;
        self.change(|port| port.way_out = Some(way_out));
        Ok(())
    }

    /// What came of its way out so far.
    pub fn went_out(&self) -> Counts {
        let mut counts = Counts::default();
        self.change(|port| counts = port.way_out.as_ref().map(Gateway::counts).unwrap_or_default());
        counts
    }

    /// Changes its port, if that is still its own.
    fn change(&self, change: impl FnOnce(&mut Port)) {
        let mut families = self
            .state
            .families
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let port = families
            .get_mut(&self.family)
            .and_then(|family| family.ports.get_mut(&self.number));
        if let Some(port) = port.filter(|port| Arc::ptr_eq(&port.is_out, &self.is_out)) {
            change(port);
        }
    }

    /// From here on it gets what is for it: QEMU's end is there.
    pub fn connect(&self) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        // Once: a QEMU that was taken over cannot lead it elsewhere later.
        socket.connect(self.dir.join(TO_QEMU))?;
        socket.set_write_timeout(Some(LOOK))?;
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner).take();
        let frames =
            frames.ok_or_else(|| io::Error::new(ErrorKind::AlreadyExists, "it is connected already"))?;
        let is_out = self.is_out.clone();
        spawn("family-guest", move || {
            for frame in frames {
                // A guest that stands still reads nothing: the frame is lost.
                let _ = socket.send(&frame);
                if is_out.load(Relaxed) {
                    return;
                }
            }
        })
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        self.is_out.store(true, Relaxed);
        let _ = self.reads.shutdown(Shutdown::Both);
        let mut families = self
            .state
            .families
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = families.get_mut(&self.family) {
            let is_this = |port: &mut Port| Arc::ptr_eq(&port.is_out, &self.is_out);
            // The same machine may have been plugged in again meanwhile.
            if family.ports.get_mut(&self.number).is_some_and(is_this) {
                family.ports.remove(&self.number);
            }
            if family.ports.is_empty() {
                families.remove(&self.family);
            }
        }
    }
}

impl State {
    fn hear_guest(&self, family: FamilyId, from: Number, frame: &[u8]) {
        let families = self.families.read().unwrap_or_else(PoisonError::into_inner);
        let Some(family) = families.get(&family) else {
            return;
        };
        let to = match frame::check(frame, from) {
            // One that nobody has seen is looked for everywhere.
            Ok(to) if family.is_for_many(to) && !family.may_broadcast(from) => None,
            to => to.ok(),
        };
        match to {
            None => drop(self.refused.fetch_add(1, Relaxed)),
            Some(To::One(to)) => match (family.ports.get(&to), family.seen_at.get(&to)) {
                (Some(port), _) => port.put(frame),
                (None, Some(host)) => self.to_hosts(&family.seal, [host], frame),
                (None, None) => self.to_hosts(&family.seal, &family.hosts, frame),
            },
            Some(To::Out) => match family.ports.get(&from).and_then(|port| port.way_out.as_ref()) {
                Some(way_out) => way_out.put(frame),
                None => drop(self.refused.fetch_add(1, Relaxed)),
            },
            Some(To::All) => {
                family.to_all_here(from, frame);
                self.to_hosts(&family.seal, &family.hosts, frame);
            }
        }
    }

    fn to_guest(&self, family: FamilyId, number: Number, frame: &[u8]) {
        let families = self.families.read().unwrap_or_else(PoisonError::into_inner);
        let port = families.get(&family).and_then(|family| family.ports.get(&number));
        if let Some(port) = port {
            port.put(frame);
        }
    }

    fn to_hosts<'a>(&self, seal: &Seal, hosts: impl IntoIterator<Item = &'a SocketAddr>, frame: &[u8]) {
        let Some(tunnel) = self.tunnel.get() else {
            return;
        };
        for host in hosts {
            // Lost, as on any network.
            let _ = tunnel.send_to(&seal.seal(frame), host);
        }
    }

    fn hear_host(&self, host: SocketAddr, datagram: &[u8]) {
        let families = self.families.read().unwrap_or_else(PoisonError::into_inner);
        let of = Seal::family(datagram).and_then(|id| Some((id, families.get(&id)?)));
        let Some((id, family)) = of else {
            return; // none of its members is here any more
        };
        let frame = family.seal.open(datagram);
        let checked = frame.and_then(|frame| {
            let from = frame::source(&frame)?;
            let to = frame::check(&frame, from).ok()?;
            (to != To::Out && !family.ports.contains_key(&from)).then_some((from, to, frame))
        });
        let Some((from, to, frame)) = checked else {
            self.refused.fetch_add(1, Relaxed);
            return;
        };
        match to {
            To::One(to) => family
                .ports
                .get(&to)
                .into_iter()
                .for_each(|port| port.put(&frame)),
            To::All => family.to_all_here(from, &frame),
            To::Out => {} // as was seen above: it is for who is there
        }
        let is_known = family.seen_at.get(&from) == Some(&host);
        drop(families);
        if !is_known {
            self.learn(id, from, host);
        }
    }

    fn learn(&self, family: FamilyId, from: Number, host: SocketAddr) {
        let mut families = self.families.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = families.get_mut(&family)
            && (family.hosts.contains(&host) || family.hosts.len() < HOSTS_MAX)
        {
            family.hosts.insert(host);
            family.seen_at.insert(from, host);
        }
    }
}

impl Family {
    fn is_for_many(&self, to: To) -> bool {
        match to {
            To::All => true,
            To::Out => false,
            To::One(to) => !self.ports.contains_key(&to) && !self.seen_at.contains_key(&to),
        }
    }

    fn may_broadcast(&self, from: Number) -> bool {
        self.ports.get(&from).is_some_and(|port| {
            let mut broadcasts = port.broadcasts.lock().unwrap_or_else(PoisonError::into_inner);
            broadcasts.take(Instant::now())
        })
    }

    fn to_all_here(&self, but: Number, frame: &[u8]) {
        let others = self.ports.iter().filter(|(number, _)| **number != but);
        others.for_each(|(_, port)| port.put(frame));
    }
}

impl Port {
    fn put(&self, frame: &[u8]) {
        let _ = self.queue.try_send(frame.to_vec()); // full: lost
    }
}

fn hear_hosts(socket: &UdpSocket, state: &Weak<State>) {
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let received = socket.recv_from(&mut datagram);
        let Some(state) = state.upgrade() else {
            return;
        };
        // Otherwise nothing came, or (of UDP) a host that was sent something was not there.
        if let Ok((length, host)) = received {
            state.hear_host(host, &datagram[..length]);
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(run).map(drop)
}
