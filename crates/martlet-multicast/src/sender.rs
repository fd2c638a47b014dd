//! Sends what members want: one thread for all groups of a host, which share its rate.

use crate::socket::sending;
use crate::{Bucket, Key, Limit, Meter, Name, Report, Sealer, WIRE_BYTES, Wants};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Whoever waits for something to send looks so often whether it is to end.
const LOOK: Duration = Duration::from_millis(500);

/// Where parcels are had from.
pub trait Parcels: Send + Sync {
    /// The bytes of one; none if they cannot be had now.
    fn parcel(&self, name: &Name) -> Option<Vec<u8>>;
}

/// A group, by the number that its sender has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group(u64);

/// What was sent so far, to all groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Parcels.
    pub parcels: u64,
    /// Bytes of them.
    pub parcel_bytes: u64,
    /// What they took on the wire.
    pub wire_bytes: u64,
}

struct Open {
    socket: Arc<UdpSocket>,
    address: SocketAddrV4,
    sealer: Sealer,
    parcels: Arc<dyn Parcels>,
    /// The network does not carry it.
    is_broken: bool,
}

struct State {
    groups: HashMap<Group, Open>,
    next_group: u64,
    wants: Wants<(Group, Name)>,
    /// What is being sent.
    now: Option<(Group, Name)>,
    limit: Limit,
    meter: Meter,
    sent: Sent,
    is_ending: bool,
}

struct Shared {
    state: Mutex<State>,
    wanted: Condvar,
    sent: Condvar,
}

impl State {
    /// Packets that a group has been sent.
    fn packets(&self, group: Group) -> Option<u64> {
        let open = self.groups.get(&group).filter(|open| !open.is_broken)?;
        Some(open.sealer.count())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module's documentation.
pub struct Sender(Arc<Shared>);

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender(…)")
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.state().is_ending = true;
        self.0.wanted.notify_all();
    }
}

impl Sender {
    /// One that sends no more than so many bytes a second, headers included.
    pub fn start(most_bytes: u64) -> io::Result<Self> {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                groups: HashMap::new(),
                next_group: 0,
                wants: Wants::default(),
                now: None,
                limit: Limit::new(most_bytes, now),
                meter: Meter::new(now),
                sent: Sent::default(),
                is_ending: false,
            }),
            wanted: Condvar::new(),
            sent: Condvar::new(),
        });
        let run = shared.clone();
        thread::Builder::new()
            .name("multicast".into())
            .spawn(move || run.run())?;
        Ok(Self(shared))
    }

    /// A new group, whose key nobody else seals with, out of the interface that has this address.
    pub fn open(
        &self,
        address: SocketAddrV4,
        interface: Ipv4Addr,
        key: &Key,
        parcels: Arc<dyn Parcels>,
    ) -> io::Result<Group> {
        let open = Open {
            socket: Arc::new(sending(interface)?),
            address,
            sealer: Sealer::new(key),
            parcels,
            is_broken: false,
        };
        let mut state = self.0.state();
        let group = Group(state.next_group);
        state.next_group += 1;
        state.groups.insert(group, open);
        Ok(group)
    }

    /// Nobody listens to a group any more.
    pub fn close(&self, group: Group) {
        let mut state = self.0.state();
        state.groups.remove(&group);
        state.wants.drop_all(|(of, _)| *of == group);
        drop(state);
        self.0.sent.notify_all();
    }

    /// A member, which tells what it has heard, wants these: they are sent, unless they were a moment ago. Waits until that is
    /// done, or so long. How many packets the group has been sent then; none if the group is gone, or the network does not carry it.
    pub fn send(
        &self,
        group: Group,
        member: &str,
        names: &[Name],
        is_urgent: bool,
        report: Report,
        within: Duration,
    ) -> Option<u64> {
        let now = Instant::now();
        let mut guard = self.0.state();
        let state = &mut *guard;
        let sent_bytes = state.meter.rate_bytes(now);
        state.limit.hear(member, report, sent_bytes, now);
        state.packets(group)?;
        for name in names {
            state.wants.want((group, *name), is_urgent, now);
        }
        self.0.wanted.notify_all();
        let waits = |state: &mut State| {
            let waits = |name| state.now == Some((group, name)) || state.wants.waits(&(group, name));
            state.packets(group).is_some() && names.iter().copied().any(waits)
        };
        let waited = self.0.sent.wait_timeout_while(guard, within, waits);
        waited.unwrap_or_else(PoisonError::into_inner).0.packets(group)
    }

    /// What was sent.
    pub fn sent(&self) -> Sent {
        self.0.state().sent
    }
}

impl Shared {
    fn run(&self) {
        let mut bucket = Bucket::new(Instant::now());
        while let Some((group, name)) = self.next() {
            let parcels = self.state().groups.get(&group).map(|open| open.parcels.clone());
            if let Some(bytes) = parcels.and_then(|parcels| parcels.parcel(&name)) {
                self.send(group, &[&name[..], &bytes].concat(), &mut bucket);
            }
            self.state().now = None;
            self.sent.notify_all();
        }
    }

    /// What to send next, once there is something; none at the end.
    fn next(&self) -> Option<(Group, Name)> {
        let mut state = self.state();
        loop {
            if state.is_ending {
                return None;
            }
            let now = Instant::now();
            let sent_bytes = state.meter.rate_bytes(now);
            state.limit.go_on(sent_bytes, now);
            if let Some(next) = state.wants.next(now) {
                state.now = Some(next);
                return Some(next);
            }
            let waited = self.wanted.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn send(&self, group: Group, parcel: &[u8], bucket: &mut Bucket) {
        let begun = self
            .state()
            .groups
            .get_mut(&group)
            .map(|open| open.sealer.begin(parcel.len()));
        let Some(Some((number, ranges))) = begun else {
            return;
        };
        let pieces = ranges.len() as u16; // a parcel has no more than PIECES_MAX
        for (at, range) in ranges.into_iter().enumerate() {
            let mut state = self.state();
            let Some(open) = state.groups.get_mut(&group) else {
                return;
            };
            let datagram = open.sealer.seal(number, at as u16, pieces, &parcel[range]);
            let (socket, address) = (open.socket.clone(), open.address);
            let wire_bytes = datagram.len() + WIRE_BYTES;
            while let Some(wait) = bucket.take(wire_bytes, state.limit.bytes(), Instant::now()) {
                drop(state);
                thread::sleep(wait.max(Duration::from_micros(500))); // then there is room for several
                state = self.state();
            }
            state.meter.add(wire_bytes, Instant::now());
            drop(state);
            if let Err(error) = socket.send_to(&datagram, address) {
                return self.failed(group, &error);
            }
            self.state().sent.wire_bytes += wire_bytes as u64;
        }
        let mut state = self.state();
        state.sent.parcels += 1;
        state.sent.parcel_bytes += parcel.len() as u64;
    }

    fn failed(&self, group: Group, error: &io::Error) {
        // A full queue is a loss like any other.
        if matches!(error.kind(), io::ErrorKind::WouldBlock) || error.raw_os_error() == Some(NO_BUFFERS) {
            return;
        }
        tracing::warn!(%error, "the network takes no multicast: frames go to each host by itself");
        if let Some(open) = self.state().groups.get_mut(&group) {
            open.is_broken = true;
        }
    }
}

/// What the kernel says when an interface has too much to send.
const NO_BUFFERS: i32 = rustix::io::Errno::NOBUFS.raw_os_error();
