//! What somebody outside sees of a guest that moves: an echo request each millisecond, and the longest time without an answer.

use super::Site;
use crate::BenchError;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(1);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// Begins an answer, before what was sent.
const IP_HEADER_BYTES: usize = 20;
const MARK: [u8; 2] = *b"mt";

/// Requests and answers under way.
pub struct Pings {
    ended: Arc<AtomicBool>,
    asks: JoinHandle<()>,
    hears: JoinHandle<Vec<Instant>>,
}

impl Pings {
    /// Asks a guest from a site.
    pub fn start(from: &Site, guest: Ipv4Addr) -> Result<Self, BenchError> {
        let failed = |error: rustix::io::Errno| BenchError::io("make a socket")(error.into());
        let made = from.on(|| socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)))?;
        let socket: Arc<OwnedFd> = Arc::new(made.map_err(failed)?);
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(100))).map_err(failed)?;
        let ended = Arc::new(AtomicBool::new(false));
        let spawn = |name: &str| std::thread::Builder::new().name(name.into());
        let (asked, asking) = (ended.clone(), socket.clone());
        let asks = move || {
            let to = SocketAddrV4::new(guest, 0);
            let mut next = Instant::now();
            for number in 0u16.. {
                if asked.load(Relaxed) {
                    return;
                }
                // What cannot be sent was not answered.
                let _ = sendto(&asking, &request(number), SendFlags::empty(), &to);
                next += EVERY;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                if number == u16::MAX {
                    return; // a minute is enough for any
                }
            }
        };
        let asks = spawn("pings")
            .spawn(asks)
            .map_err(BenchError::io("start a thread"))?;
        let heard = ended.clone();
        let hears = move || {
            let mut answers = Vec::new();
            let mut packet = [0; 128];
            while !heard.load(Relaxed) {
                let Ok((_, len)) = recv(&socket, &mut packet, RecvFlags::empty()) else {
                    continue;
                };
                let answer = packet[..len].get(IP_HEADER_BYTES..).unwrap_or_default();
                if answer.first() == Some(&ECHO_REPLY) && answer.get(4..6) == Some(&MARK) {
                    answers.push(Instant::now());
                }
            }
            answers
        };
        let hears = spawn("answers")
            .spawn(hears)
            .map_err(BenchError::io("start a thread"))?;
        Ok(Self { ended, asks, hears })
    }

    /// Ends it. The longest time without an answer, in milliseconds, and how many there were.
    pub fn longest_gap_ms(self) -> Result<(f64, usize), BenchError> {
        self.ended.store(true, Relaxed);
        let died = |_| BenchError::Other("a thread that pings has died".into());
        self.asks.join().map_err(died)?;
        let answers = self.hears.join().map_err(died)?;
        let gaps = answers
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3);
        match answers.len() {
            0 | 1 => Err(BenchError::Other("the guest does not answer".into())),
            count => Ok((gaps.fold(0.0, f64::max), count)),
        }
    }
}

/// An echo request of this number.
fn request(number: u16) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = ECHO_REQUEST;
    packet[4..6].copy_from_slice(&MARK);
    packet[6..8].copy_from_slice(&number.to_be_bytes());
    let sum: u32 = packet
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_adds_up_to_ones() {
        for number in [0, 1, 0x8000, u16::MAX] {
            let packet = request(number);
            let sum: u32 = packet
                .chunks_exact(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
                .sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{number}");
        }
    }
}
