//! Groups on networks of a lab: whole, lossy, with a forger in it, and without multicast.

use martlet_lab::{Host, Lab, Link};
use martlet_multicast::{Group, Heard, Name, Parcel, Parcels, Receiver, Report, Sender};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const KEY: [u8; 32] = [5; 32];
const PORT: u16 = 7078;
/// Enough that nothing is lost that the link does not lose, on a machine that does other things too.
const RATE_BYTES: u64 = 5_000_000;
/// Nothing takes so long.
const LONG: Duration = Duration::from_secs(60);
/// So long nothing comes any more.
const QUIET: Duration = Duration::from_secs(3);

/// What is large.
const LARGE: u32 = 1_000_000;

fn address() -> SocketAddrV4 {
    martlet_multicast::random_address([1, 2, 3], PORT)
}

fn name(number: u32) -> Name {
    let mut name = [0; 32];
    name[..4].copy_from_slice(&number.to_le_bytes());
    name
}

fn content(name: &Name) -> Vec<u8> {
    let number = u32::from_le_bytes(*name.first_chunk().unwrap());
    let len = match number {
        LARGE => 8 << 20,
        _ => 2_000 + number * 7919 % 40_000,
    };
    (0..len).map(|at| (at * 13 + number) as u8).collect()
}

/// Has all that there is.
struct All;

impl Parcels for All {
    fn parcel(&self, name: &Name) -> Option<Vec<u8>> {
        Some(content(name))
    }
}

/// Names, and the bytes of them all.
fn wanted(count: u32) -> (Vec<Name>, usize) {
    let names: Vec<Name> = (0..count).map(name).collect();
    let bytes = names.iter().map(|name| content(name).len()).sum();
    (names, bytes)
}

fn sender(host: &Host, rate_bytes: u64) -> (Sender, Group) {
    let sender = Sender::start(rate_bytes).unwrap();
    let opened = host.run(|| sender.open(address(), host.address(), &KEY, Arc::new(All)));
    let group = opened.unwrap().unwrap();
    (sender, group)
}

/// How often each parcel has come; none was another than it should be.
type Came = BTreeMap<Name, u32>;

/// Listens until nothing comes any more.
fn member(host: &Host) -> (Arc<Heard>, JoinHandle<Came>) {
    let joined = host.run(|| Receiver::join(address(), host.address(), &KEY));
    let mut receiver = joined.unwrap().unwrap();
    let heard = receiver.heard();
    let listening = thread::spawn(move || {
        let mut came = Came::new();
        while let Some(Parcel { name, bytes }) = receiver.next(QUIET).unwrap() {
            assert!(bytes == content(&name), "{name:?}");
            *came.entry(name).or_default() += 1;
        }
        came
    });
    (heard, listening)
}

#[test]
fn what_one_wants_all_have_and_it_crosses_the_link_once() {
    let lab = Lab::new().unwrap();
    let origin = lab.host("origin", Link::local()).unwrap();
    let hosts = ["a", "b", "c"].map(|name| lab.host(name, Link::local()).unwrap());
    let members = hosts.each_ref().map(member);
    let (sender, group) = sender(&origin, RATE_BYTES);
    let (wanted, wanted_bytes) = wanted(300);
    let begin = Instant::now();
    for member in ["a", "b", "c", "a"] {
        sender.send(
            group,
            member,
            &wanted,
            member == "b",
            Report::default(),
            Duration::ZERO,
        );
    }
    let through = sender
        .send(group, "c", &wanted, false, Report::default(), LONG)
        .unwrap();
    for (heard, listening) in members {
        assert!(heard.wait_through(through, Instant::now() + LONG));
        assert!(!heard.wait_through(through + 1, Instant::now()));
        let came = listening.join().unwrap();
        assert_eq!(came.len(), wanted.len());
        assert!(came.values().all(|times| *times == 1));
    }
    let took = begin.elapsed();
    let sent = sender.sent();
    assert_eq!(
        (sent.parcels, sent.parcel_bytes),
        (300, wanted_bytes as u64 + 300 * 32)
    );
    assert!(sent.wire_bytes as f64 <= 1.1 * wanted_bytes as f64, "{sent:?}");
    assert!(sent.wire_bytes as f64 <= RATE_BYTES as f64 * took.as_secs_f64());
}

#[test]
fn what_is_large_comes_as_well() {
    let lab = Lab::new().unwrap();
    let [origin, host] = ["origin", "host"].map(|name| lab.host(name, Link::local()).unwrap());
    let (heard, listening) = member(&host);
    let (sender, group) = sender(&origin, RATE_BYTES * 4);
    let names = [name(1), name(LARGE), name(2)];
    let through = sender
        .send(group, "host", &names, false, Report::default(), LONG)
        .unwrap();
    assert!(heard.wait_through(through, Instant::now() + LONG));
    assert_eq!(listening.join().unwrap().len(), 3);
}

#[test]
fn it_is_never_faster_than_configured() {
    let lab = Lab::new().unwrap();
    let [origin, host] = ["origin", "host"].map(|name| lab.host(name, Link::local()).unwrap());
    let (heard, listening) = member(&host);
    let rate_bytes = 400_000;
    let begin = Instant::now();
    let (sender, group) = sender(&origin, rate_bytes);
    let (wanted, total_bytes) = wanted(20);
    sender.send(group, "host", &wanted, false, Report::default(), Duration::ZERO);
    let mut sent_bytes = 0;
    while sender.sent().parcels < 20 {
        let before = sender.sent().wire_bytes;
        assert!(before as f64 <= rate_bytes as f64 * begin.elapsed().as_secs_f64());
        sent_bytes = before;
        thread::sleep(Duration::from_millis(20));
    }
    assert!(sent_bytes > 0 && begin.elapsed().as_secs_f64() * rate_bytes as f64 >= total_bytes as f64);
    assert_eq!(listening.join().unwrap().len(), 20);
    assert!(heard.packets() > 0 && heard.last().is_some());
}

#[test]
fn what_is_lost_is_seen_to_be_and_the_rest_comes() {
    let lab = Lab::new().unwrap();
    let origin = lab.host("origin", Link::local()).unwrap();
    let lossy = Link {
        loss: 0.02,
        ..Link::local()
    };
    let [near, far] = [Link::local(), lossy].map(|link| lab.host("host", link).unwrap());
    let [(_, near), (heard, far)] = [member(&near), member(&far)];
    let (sender, group) = sender(&origin, RATE_BYTES);
    // More packets than a member keeps account of, of which some are lost.
    let (wanted, _) = wanted(300);
    let through = sender
        .send(group, "far", &wanted, false, Report::default(), LONG)
        .unwrap();
    heard.wait_through(through - 50, Instant::now() + LONG);
    let (near, far) = (near.join().unwrap(), far.join().unwrap());
    assert_eq!(near.len(), 300);
    assert!((20..290).contains(&far.len()), "{}", far.len());
    let lost = heard.report().lost;
    assert!(lost > 10, "{lost}");
    assert_eq!(heard.report().lost, 0, "told once");
}

#[test]
fn who_has_no_key_forges_nothing() {
    let lab = Lab::new().unwrap();
    let [origin, host, forger] =
        ["origin", "host", "forger"].map(|name| lab.host(name, Link::local()).unwrap());
    let (_, listening) = member(&host);
    let ends = Arc::new(Mutex::new(false));
    let has_ended = ends.clone();
    let overhearing = forger
        .run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
            rustix::net::sockopt::set_ip_multicast_if(&socket, &forger.address()).unwrap();
            rustix::net::sockopt::set_ip_multicast_loop(&socket, false).unwrap(); // it is not to answer itself
            socket
                .join_multicast_v4(address().ip(), &forger.address())
                .unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            socket
        })
        .unwrap();
    // Sends all that it hears again: as it was, out of order, changed, cut, and with other counts.
    let forging = thread::spawn(move || {
        let (mut kept, mut datagram, mut forged) = (Vec::new(), [0; 2000], 0);
        while !*has_ended.lock().unwrap() {
            let Ok(len @ 8..) = overhearing.recv(&mut datagram) else {
                continue;
            };
            let whole = datagram[..len].to_vec();
            let changed = |at: usize| {
                let mut changed = whole.clone();
                changed[at] ^= 1;
                changed
            };
            kept.push(whole.clone());
            let old = kept[kept.len() / 2].clone();
            let cut = whole[..len / 2].to_vec();
            for packet in [
                whole.clone(),
                old,
                changed(0),
                changed(7),
                changed(len - 1),
                changed(20),
                cut,
                vec![],
            ] {
                forged += usize::from(overhearing.send_to(&packet, address()).is_ok());
            }
        }
        forged
    });
    let (sender, group) = sender(&origin, 1_000_000);
    sender.send(group, "host", &wanted(60).0, false, Report::default(), LONG);
    assert_eq!(sender.sent().parcels, 60);
    *ends.lock().unwrap() = true;
    let forged = forging.join().unwrap();
    let came = listening.join().unwrap();
    assert!(forged > 1000, "{forged}");
    assert_eq!(came.len(), 60);
    assert!(came.values().all(|times| *times == 1), "{came:?}");
}

#[test]
fn where_there_is_no_multicast_nothing_comes_and_nobody_waits_long() {
    let lab = Lab::new().unwrap();
    let [origin, host] = ["origin", "host"].map(|name| lab.host(name, Link::local()).unwrap());
    lab.set_multicast(false).unwrap();
    let (heard, listening) = member(&host);
    let (sender, group) = sender(&origin, RATE_BYTES);
    let sent = sender.send(group, "host", &wanted(50).0, true, Report::default(), LONG);
    assert!(sent.is_some_and(|through| !heard.wait_through(through, Instant::now() + QUIET / 10)));
    assert_eq!(listening.join().unwrap().len(), 0);
    assert_eq!(heard.last(), None);
    // A group that is gone gives nothing.
    sender.close(group);
    let gone = sender.send(group, "host", &wanted(2).0, true, Report::default(), LONG);
    assert_eq!(gone, None);
}
