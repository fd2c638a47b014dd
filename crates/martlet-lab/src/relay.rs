//! The thread that carries frames between hosts: a learning switch, with a pipe for each direction of each port.
//!
//! ```text
//! tap ──read──► up ──arrives──► switch ──► down of one port, or of all others ──arrives──► write ──► tap
//! ```

use crate::Link;
use crate::pipe::{Frame, Pipe};
use crate::syscalls::prefer_this_thread;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

const FRAME_BYTES_MAX: usize = 64 << 10;
/// So many frames are read of a port before others have their turn.
const FRAMES_AT_ONCE: usize = 64;
/// So many wait for us in a host, at most: enough that a busy machine loses nothing that the link does not.
pub(crate) const FRAMES_WAITING_MAX: usize = 5000;

type Mac = [u8; 6];
type Order = Box<dyn FnOnce(&mut Switch) + Send>;

/// Carries frames until it is dropped.
pub(crate) struct Relay {
    orders: Option<Sender<Order>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    pub fn start() -> io::Result<Self> {
        let (orders, receiver) = channel();
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let woken = wake.clone();
        let thread = thread::Builder::new()
            .name("lab relay".into())
            .spawn(move || run(&receiver, &woken))?;
        Ok(Self {
            orders: Some(orders),
            wake,
            thread: Some(thread),
        })
    }

    /// Changes the switch, after what hosts have sent before. It has happened when this returns.
    pub fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Switch) -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, answer) = channel();
        let order: Order = Box::new(move |switch| {
            let _ = done.send(change(switch)); // or nobody waits any more
        });
        let gone = || io::Error::other("the relay has ended");
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send(order).map_err(|_| gone())?;
        self.wake.write(1)?;
        answer.recv().map_err(|_| gone())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.wake.write(1); // it fails only when it need not be: as often woken as a number counts
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been told of
        }
    }
}

fn run(orders: &Receiver<Order>, wake: &EventFd) {
    let _ = set_timerslack(1); // without it frames are some 50 µs later
    let _ = prefer_this_thread(); // without it they are later on a busy machine
    let mut switch = Switch {
        buffer: vec![0; FRAME_BYTES_MAX],
        ports: Vec::new(),
        behind: HashMap::new(),
        has_multicast: true,
    };
    loop {
        switch.wait(wake);
        let _ = wake.read(); // nothing to read: it was frames or time
        loop {
            match orders.try_recv() {
                Ok(order) => {
                    switch.read(FRAMES_WAITING_MAX);
                    switch.carry();
                    order(&mut switch);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        switch.read(FRAMES_AT_ONCE);
        switch.carry();
    }
}

/// Ports, and who is behind which.
pub(crate) struct Switch {
    buffer: Vec<u8>,
    ports: Vec<Port>,
    behind: HashMap<Mac, usize>,
    /// Does it carry what goes to groups?
    pub has_multicast: bool,
}

struct Port {
    /// None once the host has deleted its interface.
    tap: Option<File>,
    up: Pipe,
    down: Pipe,
    is_cut: bool,
}

impl Switch {
    /// Adds a port; its number.
    pub fn add(&mut self, tap: File, link: Link) -> usize {
        let number = self.ports.len();
        let seed = 2 * number as u64;
        self.ports.push(Port {
            tap: Some(tap),
            up: Pipe::new(link, seed),
            down: Pipe::new(link, seed + 1),
            is_cut: false,
        });
        number
    }

    pub fn set_link(&mut self, port: usize, link: Link) {
        let port = &mut self.ports[port];
        (port.up.link, port.down.link) = (link, link);
    }

    pub fn set_cut(&mut self, port: usize, is_cut: bool) {
        let port = &mut self.ports[port];
        port.is_cut = is_cut;
        port.up.spill();
        port.down.spill();
    }

    /// Waits for a frame, an order, or the time when something arrives.
    fn wait(&self, wake: &EventFd) {
        let pipes = self.ports.iter().flat_map(|port| [&port.up, &port.down]);
        let timeout = pipes
            .filter_map(Pipe::next_at)
            .min()
            .map(|at| TimeSpec::from_duration(at.saturating_duration_since(Instant::now())));
        let taps = self.ports.iter().filter_map(|port| port.tap.as_ref());
        let mut fds: Vec<PollFd> = taps
            .map(File::as_fd)
            .chain([wake.as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => panic!("ppoll of open descriptors: {error}"),
        }
    }

    /// Takes what hosts have sent, so many frames of each at most.
    fn read(&mut self, frames_max: usize) {
        for port in &mut self.ports {
            let now = Instant::now();
            for _ in 0..frames_max {
                match port.tap.as_ref().map(|mut tap| tap.read(&mut self.buffer)) {
                    Some(Ok(_)) if port.is_cut => {}
                    Some(Ok(len)) => port.up.put(self.buffer[..len].into(), now),
                    Some(Err(error)) if error.raw_os_error() == Some(libc::EBADFD) => port.tap = None,
                    Some(Err(_)) | None => break, // no more
                }
            }
        }
    }

    /// Carries everything as far as it has come by now.
    fn carry(&mut self) {
        let now = Instant::now();
        for from in 0..self.ports.len() {
            while let Some((at, frame)) = self.ports[from].up.take(now) {
                self.forward(from, frame, at);
            }
        }
        for port in &mut self.ports {
            while let Some((_, frame)) = port.down.take(now) {
                if let Some(tap) = &mut port.tap {
                    let _ = tap.write(&frame); // a host that takes nothing now has lost it
                }
            }
        }
    }

    /// From one port to where it has to go. The next pipe starts when the one before ended, not when we come round to it:
    /// a late relay is late once.
    fn forward(&mut self, from: usize, frame: Frame, at: Instant) {
        let Some((&to, rest)) = frame.split_first_chunk::<6>() else {
            return;
        };
        if let Some(&source) = rest.first_chunk() {
            self.behind.insert(source, from);
        }
        if is_group(&to) && !self.has_multicast {
            return;
        }
        if let Some(&to) = self.behind.get(&to) {
            return self.ports[to].send(frame, at);
        }
        for (number, port) in self.ports.iter_mut().enumerate() {
            if number != from {
                port.send(frame.clone(), at);
            }
        }
    }
}

/// Is it several hosts' address, and not everybody's?
fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 == 1 && *mac != [0xff; 6]
}

impl Port {
    fn send(&mut self, frame: Frame, at: Instant) {
        if !self.is_cut {
            self.down.put(frame, at);
        }
    }
}
