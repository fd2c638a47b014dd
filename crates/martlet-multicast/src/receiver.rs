//! A member of a group: what comes, put together.

use crate::socket::receiving;
use crate::{Assembler, DATAGRAM_BYTES, Key, Meter, Name, Opener, Report, WIRE_BYTES, Window};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What came. It is not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// What the sender says that it is.
    pub name: Name,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What a member has heard, for others to look at while it listens.
#[derive(Debug)]
pub struct Heard {
    counts: Mutex<Counts>,
    went_on: Condvar,
}

#[derive(Debug)]
struct Counts {
    meter: Meter,
    window: Window,
    last: Option<Instant>,
    packets: u64,
    /// Whatever came of packets with lower counts has been given out.
    through: u64,
}

impl Heard {
    fn new() -> Self {
        Self {
            counts: Mutex::new(Counts {
                meter: Meter::new(Instant::now()),
                window: Window::default(),
                last: None,
                packets: 0,
                through: 0,
            }),
            went_on: Condvar::new(),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all of the first so many packets have come, been overtaken, or been waited for until then. Tells whether what is
    /// not here by now was lost.
    pub fn wait_through(&self, packets: u64, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let waited = self
            .went_on
            .wait_timeout_while(self.counts(), left, |counts| counts.through < packets);
        waited.unwrap_or_else(PoisonError::into_inner).0.through >= packets
    }

    /// What came so far has been given out.
    fn go_on(&self) {
        let mut counts = self.counts();
        counts.through = counts.window.through();
        drop(counts);
        self.went_on.notify_all();
    }

    /// When the sender was heard last; none if never.
    pub fn last(&self) -> Option<Instant> {
        self.counts().last
    }

    /// Packets that were the sender's and came for the first time.
    pub fn packets(&self) -> u64 {
        self.counts().packets
    }

    /// What to tell the sender; what was lost is told once.
    pub fn report(&self) -> Report {
        let mut counts = self.counts();
        Report {
            rate_bytes: counts.meter.rate_bytes(Instant::now()),
            lost: counts.window.take_lost(),
        }
    }
}

/// See the module's documentation.
pub struct Receiver {
    socket: UdpSocket,
    opener: Opener,
    assembler: Assembler,
    heard: Arc<Heard>,
}

impl Receiver {
    /// Joins a group by the interface that has this address.
    pub fn join(group: SocketAddrV4, interface: Ipv4Addr, key: &Key) -> io::Result<Self> {
        Ok(Self {
            socket: receiving(group, interface)?,
            opener: Opener::new(key),
            assembler: Assembler::default(),
            heard: Arc::new(Heard::new()),
        })
    }

    /// What it hears.
    pub fn heard(&self) -> Arc<Heard> {
        self.heard.clone()
    }

    /// The next parcel; none if no packet came for so long.
    pub fn next(&mut self, patience: Duration) -> io::Result<Option<Parcel>> {
        self.socket.set_read_timeout(Some(patience))?;
        let mut datagram = [0; DATAGRAM_BYTES + 1]; // what is longer is seen to be
        let until = Instant::now() + patience;
        loop {
            self.heard.go_on();
            if Instant::now() >= until {
                return Ok(None);
            }
            let len = match self.socket.recv(&mut datagram) {
                Ok(len) => len,
                Err(error) if is_over(&error) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if let Some(parcel) = self.take(&datagram[..len]) {
                return Ok(Some(parcel));
            }
        }
    }

    fn take(&mut self, datagram: &[u8]) -> Option<Parcel> {
        let count = Opener::count(datagram)?;
        // What was seen before costs no opening.
        if !self.heard.counts().window.is_new(count) {
            return None;
        }
        let piece = self.opener.open(datagram)?;
        {
            let mut counts = self.heard.counts();
            let now = Instant::now();
            if !counts.window.note(count) {
                return None;
            }
            counts.meter.add(datagram.len() + WIRE_BYTES, now);
            counts.last = Some(now);
            counts.packets += 1;
        }
        let whole = self.assembler.take(&piece)?;
        let (name, bytes) = whole.split_first_chunk()?;
        Some(Parcel {
            name: *name,
            bytes: bytes.to_vec(),
        })
    }
}

fn is_over(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
