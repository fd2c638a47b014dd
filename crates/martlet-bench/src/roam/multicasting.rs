//! A file sent to several sites at once by UDP multicast; what is lost comes again over TCP.
//!
//! ```text
//!  sender:    packet, packet … at the rate of the link ──UDP──► whoever has joined
//!             "that was all"   ──TCP──► each ──► "these I lack" ──TCP──► packet, packet …
//! ```

use super::{Site, lab_failed};
use crate::BenchError;
use rustix::net::sockopt;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Hosts of a lab have all ports to themselves.
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 192, 77, 1), 47077);
const NUMBER_BYTES: usize = 8;
/// Of the file, in a packet that Ethernet carries whole.
const PART_BYTES: usize = 1400;
/// What Ethernet, IP and UDP add to a packet.
const AROUND_BYTES: usize = 42;
/// Of the link's rate. At all of it queues grow until something is lost.
const PART_OF_RATE: f64 = 0.97;
/// Packets that are sent before the clock is looked at.
const BURST: u64 = 16;
/// A sleep is some ten microseconds too long, on a quiet host: so much is made good.
const LATE_MAX: Duration = Duration::from_millis(1);
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
/// When nothing has come for so long, nothing is waiting.
const QUIET: Duration = Duration::from_millis(20);
const NO_MORE: u8 = 1;

/// How a file was multicast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multicast {
    /// Milliseconds until all have all of it.
    pub took_ms: f64,
    /// Packets of the file.
    pub packets: u64,
    /// How many were sent again, to one receiver each.
    pub repaired: u64,
}

/// Sends a file from one site to others, over links of this rate.
pub fn multicast_to_all(
    file: &Path,
    from: &Site,
    to: &[Site],
    rate_mbit: f64,
) -> Result<Multicast, BenchError> {
    let file = File::open(file).map_err(BenchError::io("open a file"))?;
    let parts = Parts::of(&file).map_err(BenchError::io("open a file"))?;
    let receivers = to
        .iter()
        .map(|site| Receiver::at(site, parts))
        .collect::<Result<Vec<_>, _>>()?;
    let begun = Instant::now();
    let repaired = std::thread::scope(|scope| -> Result<u64, BenchError> {
        // All connected first: who receives waits for nobody who never comes.
        let mut streams = Vec::new();
        for receiver in &receivers {
            let at = receiver.listener.local_addr().map_err(BenchError::io("listen"))?;
            let stream = from.host.run(|| TcpStream::connect(at)).map_err(lab_failed)?;
            streams.push(stream.map_err(BenchError::io("connect"))?);
        }
        let receiving: Vec<_> = receivers
            .into_iter()
            .map(|receiver| scope.spawn(move || receiver.receive()))
            .collect();
        let sent = from.host.run(|| parts.send(&file, from.address(), rate_mbit));
        sent.map_err(lab_failed)?
            .map_err(BenchError::io("send by multicast"))?;
        let repairs: Vec<_> = streams
            .into_iter()
            .map(|stream| scope.spawn(|| parts.repair(&file, stream)))
            .collect();
        let mut repaired = 0;
        for repair in repairs {
            repaired += ended(repair.join(), "send again what was lost")?;
        }
        for receiver in receiving {
            ended(receiver.join(), "receive by multicast")?;
        }
        Ok(repaired)
    })?;
    Ok(Multicast {
        took_ms: begun.elapsed().as_secs_f64() * 1e3,
        packets: parts.count,
        repaired,
    })
}

fn ended<T>(thread: std::thread::Result<io::Result<T>>, what: &str) -> Result<T, BenchError> {
    let panicked = |_| BenchError::Other(format!("the thread panicked that was to {what}"));
    thread.map_err(panicked)?.map_err(BenchError::io(what))
}

/// A file as packets.
#[derive(Debug, Clone, Copy)]
struct Parts {
    len_bytes: u64,
    count: u64,
}

impl Parts {
    fn of(file: &File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        Ok(Self {
            len_bytes,
            count: len_bytes.div_ceil(PART_BYTES as u64),
        })
    }

    /// How long a part is: the last may be shorter.
    fn len_of(&self, number: u64) -> usize {
        let begins_bytes = number * PART_BYTES as u64;
        (self.len_bytes - begins_bytes).min(PART_BYTES as u64) as usize
    }

    /// Sends all, at the rate.
    fn send(&self, file: &File, from: Ipv4Addr, rate_mbit: f64) -> io::Result<()> {
        // The address says which interface: there is no route to the group.
        let socket = UdpSocket::bind((from, 0))?;
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut packet = [0; NUMBER_BYTES + PART_BYTES];
        let (mut due, mut wire_bytes) = (Instant::now(), 0);
        for number in 0..self.count {
            let packet = &mut packet[..NUMBER_BYTES + self.len_of(number)];
            packet[..NUMBER_BYTES].copy_from_slice(&number.to_le_bytes());
            file.read_exact(&mut packet[NUMBER_BYTES..])?;
            match socket.send_to(packet, GROUP) {
                // No room for it: it is lost.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {}
                sent => drop(sent?),
            }
            wire_bytes += (packet.len() + AROUND_BYTES) as u32;
            if number % BURST == 0 {
                // What was late stays late: to catch up would be faster than the link is.
                let late = Instant::now() - LATE_MAX;
                let takes_s = f64::from(wire_bytes) * 8e-6 / (rate_mbit * PART_OF_RATE);
                due = due.max(late) + Duration::from_secs_f64(takes_s);
                wire_bytes = 0;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        Ok(())
    }

    /// Sends one receiver again what it lacks; how many packets.
    fn repair(&self, file: &File, mut stream: TcpStream) -> io::Result<u64> {
        stream.write_all(&[NO_MORE])?;
        let lacking = read_number(&mut stream)?;
        let mut numbers = vec![0; lacking.min(self.count) as usize];
        for number in &mut numbers {
            *number = read_number(&mut stream)?;
        }
        let mut stream = BufWriter::new(stream);
        let mut part = [0; PART_BYTES];
        for number in numbers {
            let part = &mut part[..self.len_of(number)];
            file.read_exact_at(part, number * PART_BYTES as u64)?;
            stream.write_all(part)?;
        }
        stream.flush()?;
        Ok(lacking)
    }
}

fn read_number(stream: &mut TcpStream) -> io::Result<u64> {
    let mut number = [0; NUMBER_BYTES];
    stream.read_exact(&mut number)?;
    Ok(u64::from_le_bytes(number))
}

/// A site that has joined the group.
struct Receiver {
    parts: Parts,
    group: UdpSocket,
    listener: TcpListener,
}

impl Receiver {
    fn at(site: &Site, parts: Parts) -> Result<Self, BenchError> {
        let address = site.address();
        let sockets = site.on(|| -> io::Result<_> {
            let group = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, GROUP.port()))?;
            group.join_multicast_v4(GROUP.ip(), &address)?;
            sockopt::set_socket_recv_buffer_size_force(&group, RECEIVE_BUFFER_BYTES)?;
            group.set_read_timeout(Some(QUIET))?;
            Ok((group, TcpListener::bind((address, 0))?))
        })?;
        let (group, listener) = sockets.map_err(BenchError::io("join a multicast group"))?;
        Ok(Self {
            parts,
            group,
            listener,
        })
    }

    /// Takes all, as one would who keeps it.
    fn receive(self) -> io::Result<()> {
        let (mut stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        let mut has = vec![false; self.parts.count as usize];
        let mut packet = [0; NUMBER_BYTES + PART_BYTES];
        let mut is_over = false;
        loop {
            match self.group.recv(&mut packet) {
                Ok(_) => {
                    let number = packet
                        .first_chunk()
                        .map_or(u64::MAX, |of| u64::from_le_bytes(*of));
                    if let Some(has) = has.get_mut(number as usize) {
                        *has = true;
                    }
                }
                Err(error) if is_timeout(&error) && is_over => break,
                // What came before the word may still wait: it is looked at once more.
                Err(error) if is_timeout(&error) => is_over = has_said(&mut stream)?,
                Err(error) => return Err(error),
            }
        }
        stream.set_nonblocking(false)?;
        let lacks = (0..self.parts.count).zip(&has).filter(|(_, has)| !**has);
        let lacks: Vec<u64> = lacks.map(|(number, _)| number).collect();
        let words = [lacks.len() as u64].into_iter().chain(lacks.iter().copied());
        let words: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        stream.write_all(&words)?;
        let wanted_bytes: u64 = lacks.iter().map(|number| self.parts.len_of(*number) as u64).sum();
        let came_bytes = io::copy(&mut (&mut stream).take(wanted_bytes), &mut io::sink())?;
        match came_bytes == wanted_bytes {
            true => Ok(()),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Has the sender said that it has sent all?
fn has_said(stream: &mut TcpStream) -> io::Result<bool> {
    match stream.read(&mut [0]) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(true),
        Err(error) if is_timeout(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use martlet_lab::{Lab, Link};

    #[test]
    fn what_is_lost_comes_again() {
        let lab = Lab::new().unwrap();
        // Nothing is run at them.
        let site = |name| Site::new(&lab, name, Path::new("true")).unwrap();
        let (from, to) = (site("from"), [site("one"), site("two")]);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; 1_000_001]).unwrap();
        let whole = multicast_to_all(file.path(), &from, &to, 200.0).unwrap();
        assert_eq!(whole.packets, 715);
        to[1]
            .set_link(Link {
                loss: 0.1,
                ..Link::local()
            })
            .unwrap();
        let lossy = multicast_to_all(file.path(), &from, &to, 200.0).unwrap();
        assert!((20..300).contains(&lossy.repaired), "{lossy:?}, of one of two");
    }

    #[test]
    fn the_last_part_may_be_shorter() {
        let of = |len_bytes: u64| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(len_bytes).unwrap();
            let parts = Parts::of(&file).unwrap();
            (
                parts.count,
                parts.count.checked_sub(1).map(|last| parts.len_of(last)),
            )
        };
        assert_eq!(of(0), (0, None));
        assert_eq!(of(1400), (1, Some(1400)));
        assert_eq!(of(2801), (3, Some(1)));
    }
}
