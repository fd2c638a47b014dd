//! A guest made of smoltcp behind a gateway at a host of a lab, and what there is at that host's own address.

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, RecordType};
use martlet_egress::{ADDRESS, CONNECTIONS_MAX, Gateway, MAC, Options, Resolve};
use martlet_lab::{Host, Lab, Link};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::socket::udp;
use smoltcp::time::Instant as Time;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const GUEST_MAC: [u8; 6] = [0x52, 0x4e, 0x4d, 0, 0, 1];
const ALLOWED: u16 = 8080;
const OTHER: u16 = 8081;
/// Nothing takes so long.
const LONG: Duration = Duration::from_secs(60);

/// Its end of the cable.
struct Cable {
    gateway: Gateway,
    came: Receiver<Vec<u8>>,
}

struct Came(Vec<u8>);
struct Goes<'a>(&'a Gateway);

impl RxToken for Came {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Goes<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.put(&frame);
        result
    }
}

impl Device for Cable {
    type RxToken<'a> = Came;
    type TxToken<'a> = Goes<'a>;

    fn receive(&mut self, _: Time) -> Option<(Came, Goes<'_>)> {
        Some((Came(self.came.try_recv().ok()?), Goes(&self.gateway)))
    }

    fn transmit(&mut self, _: Time) -> Option<Goes<'_>> {
        Some(Goes(&self.gateway))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1414;
        capabilities
    }
}

/// Finds what it was told, and notes what it was asked.
#[derive(Default)]
struct Book {
    asked: Mutex<Vec<String>>,
}

impl Resolve for Book {
    fn resolve(&self, name: &str) -> io::Result<Vec<Ipv4Addr>> {
        self.asked.lock().unwrap().push(name.to_owned());
        Ok(vec![Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::LOCALHOST])
    }
}

struct Guest {
    cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    begun: Instant,
    next_port: u16,
}

impl Guest {
    fn new(host: &Host, list: &[String], rate_bytes: Option<u64>, book: Arc<Book>) -> Self {
        let (out, came) = channel();
        let options = Options {
            rules: list.iter().map(|rule| rule.parse().unwrap()).collect(),
            rate_bytes,
        };
        let to_guest = Box::new(move |frame: &[u8]| drop(out.send(frame.to_vec())));
        let gateway = host.run(|| Gateway::start("guest".into(), options, book, to_guest).unwrap());
        let mut cable = Cable {
            gateway: gateway.unwrap(),
            came,
        };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        let mut interface = Interface::new(config, &mut cable, Time::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(GUEST.into(), 16)).unwrap());
        interface.routes_mut().add_default_ipv4_route(ADDRESS).unwrap();
        Self {
            cable,
            interface,
            sockets: SocketSet::new(Vec::new()),
            begun: Instant::now(),
            next_port: 40_000,
        }
    }

    fn poll(&mut self) {
        let now = Time::from_micros(self.begun.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.cable, &mut self.sockets);
        std::thread::sleep(Duration::from_micros(200));
    }

    fn begin(&mut self, to: Ipv4Addr, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 64 << 10]);
        let handle = self.sockets.add(Socket::new(buffer(), buffer()));
        self.next_port += 1;
        let socket = self.sockets.get_mut::<Socket>(handle);
        socket
            .connect(self.interface.context(), (to, port), self.next_port)
            .unwrap();
        handle
    }

    /// Waits until a connection is there, or is not to be.
    fn is_made(&mut self, handle: SocketHandle) -> bool {
        let until = Instant::now() + LONG;
        while Instant::now() < until {
            self.poll();
            match self.sockets.get::<Socket>(handle).state() {
                State::SynSent | State::SynReceived => {}
                state => return state == State::Established,
            }
        }
        panic!("neither made nor refused")
    }

    fn ask(&mut self, name: &str) -> Message {
        let mut question = Message::query();
        question.add_query(Query::query(name.parse().unwrap(), RecordType::A));
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind((GUEST, 5353)).unwrap();
        socket
            .send_slice(&question.to_vec().unwrap(), (ADDRESS, 53))
            .unwrap();
        let handle = self.sockets.add(socket);
        let until = Instant::now() + LONG;
        loop {
            assert!(Instant::now() < until, "no answer");
            self.poll();
            if let Ok((answer, _)) = self.sockets.get_mut::<udp::Socket>(handle).recv() {
                let answer = Message::from_vec(answer).unwrap();
                assert_eq!(answer.metadata.id, question.metadata.id);
                self.sockets.remove(handle);
                return answer;
            }
        }
    }

    fn reaches(&mut self, to: Ipv4Addr, port: u16) -> bool {
        let handle = self.begin(to, port);
        let is_made = self.is_made(handle);
        self.sockets.get_mut::<Socket>(handle).abort();
        self.poll();
        is_made
    }

    /// Sends all of it, says that this was all, and has what comes back.
    fn talk(&mut self, handle: SocketHandle, words: &[u8]) -> Vec<u8> {
        let (mut sent, mut came, until) = (0, Vec::new(), Instant::now() + LONG);
        loop {
            assert!(Instant::now() < until, "{sent} sent, {} came", came.len());
            self.poll();
            let socket = self.sockets.get_mut::<Socket>(handle);
            if sent < words.len() && socket.can_send() {
                sent += socket.send_slice(&words[sent..]).unwrap();
                if sent == words.len() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                socket
                    .recv(|bytes| (bytes.len(), came.extend_from_slice(bytes)))
                    .unwrap();
            }
            if !socket.may_recv() && socket.state() != State::SynSent {
                return came;
            }
        }
    }
}

/// Sends back what came, once all has.
fn serve(host: &Host, port: u16) {
    let listener = host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    let listener = listener.unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).and_then(|_| stream.write_all(&all))
            });
        }
    });
}

fn host(lab: &Lab) -> Host {
    let host = lab.host("host", Link::local()).unwrap();
    serve(&host, ALLOWED);
    serve(&host, OTHER);
    host
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

#[test]
fn what_is_on_the_list_is_reached_and_all_that_is_said_comes() {
    let lab = Lab::new().unwrap();
    let host = host(&lab);
    let to = host.address();
    let mut guest = Guest::new(&host, &[format!("{to}:{ALLOWED}")], None, Arc::default());
    let words = noise(1_000_000);
    for _ in 0..3 {
        let handle = guest.begin(to, ALLOWED);
        assert!(guest.talk(handle, &words) == words);
    }
    assert!(!guest.reaches(to, OTHER));
    assert!(!guest.reaches(to, 9), "nobody listens, nor may it be asked");
    assert!(!guest.reaches(Ipv4Addr::LOCALHOST, ALLOWED));
    let counts = guest.cable.gateway.counts();
    assert_eq!((counts.connections, counts.bytes), (3, 6_000_000));
    assert!(counts.refused >= 3, "{counts:?}");
}

#[test]
fn names_lead_where_they_may_and_are_asked_of_nobody_else() {
    let lab = Lab::new().unwrap();
    let host = host(&lab);
    let to = host.address();
    let book = Arc::<Book>::default();
    let list = [format!("web.example:{ALLOWED}")];
    let mut guest = Guest::new(&host, &list, None, book.clone());
    assert!(!guest.reaches(to, ALLOWED), "no name has led there yet");
    let answer = guest.ask("other.example.");
    assert_eq!(
        (answer.metadata.response_code, answer.answers.len()),
        (ResponseCode::Refused, 0)
    );
    let answer = guest.ask("Web.Example.");
    let addresses: Vec<&RData> = answer.answers.iter().map(|record| &record.data).collect();
    assert_eq!(addresses, [&RData::A(A(to))], "and not the host's loopback");
    assert!(guest.reaches(to, ALLOWED));
    assert!(!guest.reaches(to, OTHER));
    assert_eq!(*book.asked.lock().unwrap(), ["web.example"]);
}

#[test]
fn it_goes_no_faster_than_it_may() {
    let lab = Lab::new().unwrap();
    let host = host(&lab);
    let rate = 200_000;
    let mut guest = Guest::new(&host, &["any".to_owned()], Some(rate), Arc::default());
    let (begun, words) = (Instant::now(), noise(100_000));
    let handle = guest.begin(host.address(), ALLOWED);
    assert!(guest.talk(handle, &words) == words);
    let most = begun.elapsed().as_secs_f64() * rate as f64 + 0.1 * rate as f64;
    assert!(2.0 * words.len() as f64 <= most, "{most}");
}

#[test]
fn a_guest_that_opens_connections_without_end_is_held_to_so_many() {
    let lab = Lab::new().unwrap();
    let host = host(&lab);
    let mut guest = Guest::new(&host, &["any".to_owned()], None, Arc::default());
    let to = host.address();
    let handles: Vec<SocketHandle> = (0..CONNECTIONS_MAX + 20)
        .map(|_| guest.begin(to, ALLOWED))
        .collect();
    let made = handles.iter().filter(|handle| guest.is_made(**handle)).count();
    assert_eq!(made, CONNECTIONS_MAX);
    // When they are over there is room for others.
    for handle in handles {
        guest.sockets.get_mut::<Socket>(handle).abort();
    }
    let until = Instant::now() + LONG;
    while !guest.reaches(to, ALLOWED) {
        assert!(Instant::now() < until);
    }
}

#[test]
fn no_frame_harms_it() {
    let lab = Lab::new().unwrap();
    let host = host(&lab);
    let to = host.address();
    // Whatever else is asked for is refused at once.
    let mut guest = Guest::new(&host, &[to.to_string()], None, Arc::default());
    // Frames as the guest sends them, changed in a place each; then it goes on as if nothing had been.
    let handle = guest.begin(to, ALLOWED);
    assert!(guest.is_made(handle));
    let [a, b, c, d] = GUEST.octets();
    let [e, f, g, h] = to.octets();
    let head = [&MAC[..], &GUEST_MAC, &[8, 0]].concat();
    let packet = [0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, a, b, c, d, e, f, g, h];
    let segment = [
        0xc0, 0, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
    ];
    let whole = [&head[..], &packet, &segment].concat();
    for (number, byte) in noise(20_000).into_iter().enumerate() {
        let mut frame = whole.clone();
        let at = 12 + number % (frame.len() - 12);
        frame[at] = byte;
        frame.truncate(frame.len() - number % 7 * (number % 5));
        guest.cable.gateway.put(&frame);
    }
    // What only looks as if it began a connection begins none, however often: there is room for all others.
    for port in 0..2 * CONNECTIONS_MAX as u16 {
        let mut frame = whole.clone();
        frame[34..36].copy_from_slice(&(20_000 + port).to_be_bytes());
        guest.cable.gateway.put(&frame);
        if port % 64 == 0 {
            guest.poll();
        }
    }
    guest.cable.gateway.put(&[]);
    guest.cable.gateway.put(&vec![0xff; 10_000]);
    assert_eq!(guest.talk(handle, b"still here"), b"still here");
    let until = Instant::now() + LONG;
    while !guest.reaches(to, ALLOWED) {
        assert!(Instant::now() < until);
    }
}
