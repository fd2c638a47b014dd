//! The gateway of one guest: a thread that has its connections.

use crate::bucket::Bucket;
use crate::cable::{Cable, FRAME_BYTES_MAX};
use crate::flow::{Begun, Flow, Made, guest_end};
use crate::names::{Asked, Names, Question, asked};
use crate::resolve::Resolve;
use crate::rules::Rules;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, IpAddress, IpCidr, IpProtocol,
    Ipv4Packet, TcpPacket,
};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Its address, in every family's network; the guest's name server too.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 255, 253);
/// Its MAC address.
pub const MAC: [u8; 6] = [0x52, 0x4e, 0x4d, 0, 0xff, 0xfd];
/// Connections of one guest; more are refused.
pub const CONNECTIONS_MAX: usize = 256;

const PREFIX: u8 = 16;
const DNS_PORT: u16 = 53;
/// Frames that wait for it; of more some are lost, as on any network.
const FRAMES_MAX: usize = 1024;
/// Names that are looked up at the same time; whoever asks for more is to ask again.
const LOOKUPS_MAX: usize = 16;
const LOOKUP_BYTES: usize = 8 << 10;
/// It looks so often whether it is still wanted.
const LOOK: Duration = Duration::from_millis(500);
/// When the rate holds something up, it goes on after this time.
const FILL: Duration = Duration::from_millis(5);
/// What is refused is noted so often, and counted always.
const NOTED_EVERY: Duration = Duration::from_secs(10);

/// Takes frames for the guest. It does not wait.
pub type Out = Box<dyn FnMut(&[u8]) + Send>;

/// Where a guest may go, and how fast.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// To what.
    pub rules: Rules,
    /// Both ways together; as fast as it goes, if it does not say.
    pub rate_bytes: Option<u64>,
}

/// What came of it so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were made.
    pub connections: u64,
    /// Connections and names that were not allowed.
    pub refused: u64,
    /// What went through connections, both ways.
    pub bytes: u64,
}

#[derive(Debug)]
struct Shared {
    frames: Mutex<VecDeque<Vec<u8>>>,
    wake: OwnedFd,
    is_over: AtomicBool,
    connections: AtomicU64,
    refused: AtomicU64,
    bytes: AtomicU64,
}

impl Shared {
    fn wake(&self) {
        // It can only fail when it is about to be looked at already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// See the module's documentation. Dropping it ends it, and its guest's connections.
pub struct Gateway(Arc<Shared>);

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gateway").field(&self.counts()).finish()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.0.is_over.store(true, Relaxed);
        self.0.wake();
    }
}

impl Gateway {
    /// One for a guest, called so in what is logged.
    pub fn start(guest: String, options: Options, names: Arc<dyn Resolve>, out: Out) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            frames: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            is_over: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let at_work = AtWork::new(guest, options, names, out, shared.clone());
        thread::Builder::new()
            .name("egress".into())
            .spawn(move || at_work.run())?;
        Ok(Self(shared))
    }

    /// A frame of the guest, whose addresses were checked to be the guest's.
    pub fn put(&self, frame: &[u8]) {
        let mut frames = self.0.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if frames.len() < FRAMES_MAX && frame.len() <= FRAME_BYTES_MAX {
            frames.push_back(frame.to_vec());
            drop(frames);
            self.0.wake();
        }
    }

    /// What came of it so far.
    pub fn counts(&self) -> Counts {
        Counts {
            connections: self.0.connections.load(Relaxed),
            refused: self.0.refused.load(Relaxed),
            bytes: self.0.bytes.load(Relaxed),
        }
    }
}

/// Both ends of a connection of the guest: its port, and where it leads.
type Ends = (u16, SocketAddrV4);

/// The frame that begins a connection, kept until the host has made its own.
struct Kept {
    begun: Begun,
    frame: Vec<u8>,
}

/// What was found for a question that came from there.
struct Found {
    question: Question,
    to: udp::UdpMetadata,
    addresses: Option<Vec<Ipv4Addr>>,
}

struct AtWork {
    guest: String,
    rules: Rules,
    resolver: Arc<dyn Resolve>,
    shared: Arc<Shared>,
    cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    asks: SocketHandle,
    bucket: Bucket,
    kept: HashMap<Ends, Kept>,
    flows: HashMap<SocketHandle, Flow>,
    names: Names,
    lookups: usize,
    found: (Sender<Found>, Receiver<Found>),
    noted: Option<Instant>,
    begun: Instant,
}

impl AtWork {
    fn new(
        guest: String,
        options: Options,
        resolver: Arc<dyn Resolve>,
        out: Out,
        shared: Arc<Shared>,
    ) -> Self {
        let now = Instant::now();
        let mut cable = Cable::new(out);
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let mut interface = Interface::new(config, &mut cable, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(ADDRESS), PREFIX)); // there is room for one
        });
        // What is for others is for us: it goes on from here. (smoltcp asks for a route that says so.)
        interface.set_any_ip(true);
        let _ = interface.routes_mut().add_default_ipv4_route(ADDRESS);
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 32], vec![0; LOOKUP_BYTES]);
        let mut asks = udp::Socket::new(buffer(), buffer());
        let bound = asks.bind((ADDRESS, DNS_PORT));
        debug_assert_eq!(bound, Ok(()), "a new socket, and a port");
        let mut sockets = SocketSet::new(Vec::new());
        let asks = sockets.add(asks);
        Self {
            guest,
            rules: options.rules,
            resolver,
            shared,
            cable,
            interface,
            sockets,
            asks,
            bucket: Bucket::new(options.rate_bytes, now),
            kept: HashMap::new(),
            flows: HashMap::new(),
            names: Names::default(),
            lookups: 0,
            found: channel(),
            noted: None,
            begun: now,
        }
    }

    fn run(mut self) {
        while !self.shared.is_over.load(Relaxed) {
            if let Err(error) = self.wait() {
                tracing::warn!(%error, guest = self.guest, "a guest's way out is closed");
                return;
            }
            let came =
                std::mem::take(&mut *self.shared.frames.lock().unwrap_or_else(PoisonError::into_inner));
            came.into_iter().for_each(|frame| self.take(frame));
            self.poll();
            self.answer();
            self.pump();
            self.poll();
        }
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(
            i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(i64::MAX),
        )
    }

    fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.cable, &mut self.sockets);
    }

    /// Waits for frames, for sockets of the host, and for what is due; finds out which connections are made by now.
    fn wait(&mut self) -> io::Result<()> {
        let now = self.now();
        let due = self.interface.poll_delay(now, &self.sockets);
        let mut wait = due.map_or(LOOK, |due| Duration::from_micros(due.total_micros()).min(LOOK));
        let is_held_up = |(handle, flow): (&SocketHandle, &Flow)| flow.is_held_up(self.sockets.get(*handle));
        if self.flows.iter().any(is_held_up) {
            wait = wait.min(FILL);
        }
        let kept: Vec<Ends> = self.kept.keys().copied().collect();
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        for ends in &kept {
            fds.push(PollFd::from_borrowed_fd(
                self.kept[ends].begun.fd(),
                PollFlags::OUT,
            ));
        }
        for flow in self.flows.values().filter(|flow| !flow.waits_for().is_empty()) {
            fds.push(PollFd::from_borrowed_fd(flow.fd(), flow.waits_for()));
        }
        let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[0].revents().contains(PollFlags::IN) {
            let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        }
        let ready: Vec<bool> = fds[1..=kept.len()]
            .iter()
            .map(|fd| !fd.revents().is_empty())
            .collect();
        for (ends, is_ready) in kept.into_iter().zip(ready) {
            self.look(ends, is_ready);
        }
        Ok(())
    }

    /// A frame of the guest. Those that begin a connection wait for the host's own.
    fn take(&mut self, frame: Vec<u8>) {
        let Some(ends) = begins(&frame) else {
            // smoltcp would answer for whomever it is meant.
            if !is_echo_for_others(&frame) {
                self.cable.put(frame);
            }
            return;
        };
        if self.kept.contains_key(&ends) {
            return; // it was not answered yet, and has come again
        }
        let (_, to) = ends;
        let is_known = self.sockets.iter().any(|(_, socket)| match socket {
            smoltcp::socket::Socket::Tcp(socket) => is_of(socket, ends),
            _ => false,
        });
        if is_known {
            return self.cable.put(frame); // its answer was lost
        }
        let now = Instant::now();
        if !self
            .rules
            .reach(*to.ip(), to.port(), self.names.of(*to.ip(), now))
        {
            self.refused(&to.to_string());
            return self.cable.put(frame); // nobody listens: it is reset
        }
        if self.flows.len() + self.kept.len() >= CONNECTIONS_MAX {
            return self.cable.put(frame);
        }
        match Begun::to(to, now) {
            Ok(begun) => drop(self.kept.insert(ends, Kept { begun, frame })),
            Err(_) => self.cable.put(frame),
        }
    }

    /// Has the host's connection been made?
    fn look(&mut self, ends: Ends, is_ready: bool) {
        let Some(Kept { begun, frame }) = self.kept.remove(&ends) else {
            return;
        };
        match begun.look(is_ready, Instant::now()) {
            Made::NotYet(begun) => drop(self.kept.insert(ends, Kept { begun, frame })),
            Made::No => self.cable.put(frame),
            Made::Yes(stream) => {
                let Some(guest) = guest_end(ends.1) else {
                    return self.cable.put(frame);
                };
                let handle = self.sockets.add(guest);
                self.cable.put(frame);
                // Before another begins that leads to the same place.
                self.poll();
                // A frame that smoltcp does not take for what it seemed to be begins nothing.
                if self.sockets.get::<tcp::Socket>(handle).is_listening() {
                    self.sockets.remove(handle);
                    return;
                }
                self.shared.connections.fetch_add(1, Relaxed);
                self.flows.insert(handle, Flow::new(stream));
            }
        }
    }

    fn pump(&mut self) {
        let (sockets, bucket, now) = (&mut self.sockets, &mut self.bucket, Instant::now());
        let mut over = Vec::new();
        for (handle, flow) in &mut self.flows {
            let guest = sockets.get_mut::<tcp::Socket>(*handle);
            let moved = flow.pump(guest, bucket, now);
            self.shared.bytes.fetch_add(moved, Relaxed);
            if flow.is_over(guest) {
                over.push(*handle);
            }
        }
        if over.is_empty() {
            return;
        }
        self.poll(); // what says that they are over
        for handle in over {
            self.flows.remove(&handle);
            self.sockets.remove(handle);
        }
    }

    /// Answers questions for names.
    fn answer(&mut self) {
        while let Ok(found) = self.found.1.try_recv() {
            self.lookups -= 1;
            let (now, name) = (Instant::now(), &found.question.name);
            let told = found
                .addresses
                .map(|addresses| self.names.tell(name, &addresses, now));
            self.say(&found.question.answer(told.as_deref()), found.to);
        }
        while let Ok((datagram, mut from)) = self.sockets.get_mut::<udp::Socket>(self.asks).recv() {
            let what = asked(datagram, &self.rules);
            from.local_address = Some(ADDRESS.into());
            match what {
                Asked::Nothing => {}
                Asked::Answer(answer) => self.say(&answer, from),
                Asked::Refused { name, answer } => {
                    self.refused(&name);
                    self.say(&answer, from);
                }
                Asked::Look(question) => self.look_up(question, from),
            }
        }
    }

    fn look_up(&mut self, question: Question, to: udp::UdpMetadata) {
        let (resolver, found, shared) = (self.resolver.clone(), self.found.0.clone(), self.shared.clone());
        if self.lookups >= LOOKUPS_MAX {
            return; // it asks again
        }
        let look = move || {
            let addresses = resolver.resolve(&question.name).ok();
            let _ = found.send(Found {
                question,
                to,
                addresses,
            });
            shared.wake();
        };
        if thread::Builder::new().name("names".into()).spawn(look).is_ok() {
            self.lookups += 1;
        }
    }

    fn say(&mut self, answer: &[u8], to: udp::UdpMetadata) {
        // What does not fit now is lost, and asked for again.
        let _ = self
            .sockets
            .get_mut::<udp::Socket>(self.asks)
            .send_slice(answer, to);
    }

    fn refused(&mut self, what: &str) {
        let refused = self.shared.refused.fetch_add(1, Relaxed) + 1;
        let now = Instant::now();
        if self.noted.is_none_or(|noted| now - noted >= NOTED_EVERY) {
            self.noted = Some(now);
            tracing::info!(guest = self.guest, what, refused, "not on its list");
        }
    }
}

fn is_of(guest: &tcp::Socket<'_>, (port, to): Ends) -> bool {
    let is_from = guest.remote_endpoint().is_some_and(|from| from.port == port);
    let is_to = |at: smoltcp::wire::IpEndpoint| at.addr == IpAddress::Ipv4(*to.ip()) && at.port == to.port();
    is_from && guest.local_endpoint().is_some_and(is_to)
}

/// Is it none of TCP or UDP, and not for the gateway itself?
fn is_echo_for_others(frame: &[u8]) -> bool {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else {
        return false;
    };
    Ipv4Packet::new_checked(ethernet.payload()).is_ok_and(|packet| {
        let is_carried = matches!(packet.next_header(), IpProtocol::Tcp | IpProtocol::Udp);
        ethernet.ethertype() == EthernetProtocol::Ipv4 && !is_carried && packet.dst_addr() != ADDRESS
    })
}

/// Which connection a frame begins, if it does.
fn begins(frame: &[u8]) -> Option<Ends> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    if packet.next_header() != IpProtocol::Tcp || packet.more_frags() || packet.frag_offset() > 0 {
        return None;
    }
    let segment = TcpPacket::new_checked(packet.payload()).ok()?;
    let is_first = segment.syn() && !segment.ack() && !segment.rst();
    let to = SocketAddrV4::new(packet.dst_addr(), segment.dst_port());
    is_first.then_some((segment.src_port(), to))
}
