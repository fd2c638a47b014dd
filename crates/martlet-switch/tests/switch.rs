//! Families on one host and on two. The ends that are QEMU's are sockets of the test.

use martlet_switch::{FROM_QEMU, FamilyId, Number, Plug, Plugged, Switch, TO_QEMU};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const KEY: [u8; 32] = [9; 32];
const ONE: FamilyId = FamilyId([1; 6]);
const ANOTHER: FamilyId = FamilyId([2; 6]);
/// Nothing comes any more.
const SILENCE: Duration = Duration::from_millis(300);

/// A guest at the switch.
struct Guest {
    number: Number,
    qemu: UnixDatagram,
    plug: Plugged,
    dir: TempDir,
}

impl Guest {
    fn new(switch: &Switch, family: FamilyId, number: u32) -> Self {
        let dir = TempDir::new().unwrap();
        let number = Number::new(number).unwrap();
        let plug = plug(switch, family, number, dir.path());
        let qemu = UnixDatagram::bind(dir.path().join(TO_QEMU)).unwrap();
        plug.connect().unwrap();
        Self {
            number,
            qemu,
            plug,
            dir,
        }
    }

    fn send(&self, frame: &[u8]) {
        self.qemu.send_to(frame, self.dir.path().join(FROM_QEMU)).unwrap();
    }

    fn say(&self, to: Number, words: &str) {
        self.send(&packet(self.number, to, words));
    }

    /// The next frame; it is waited for.
    fn hears(&self) -> Vec<u8> {
        self.received(Duration::from_secs(30)).expect("a frame comes")
    }

    fn hears_nothing(&self) {
        let received = self.received(SILENCE);
        assert!(received.is_none(), "{received:?}");
    }

    fn received(&self, within: Duration) -> Option<Vec<u8>> {
        let mut frame = [0; 2048];
        self.qemu.set_read_timeout(Some(within)).unwrap();
        let length = self.qemu.recv(&mut frame).ok()?;
        Some(frame[..length].to_vec())
    }
}

fn plug(switch: &Switch, family: FamilyId, number: Number, dir: &Path) -> Plugged {
    switch.plug(to_plug(family, KEY, number, dir)).unwrap()
}

fn to_plug(family: FamilyId, key: [u8; 32], number: Number, dir: &Path) -> Plug {
    Plug {
        family,
        key,
        random: number.mac().repeat(3)[..16].try_into().unwrap(),
        number,
        dir: dir.to_owned(),
    }
}

fn packet(from: Number, to: Number, words: &str) -> Vec<u8> {
    frame(to.mac(), from, to.address().octets(), words)
}

fn broadcast(from: Number, words: &str) -> Vec<u8> {
    frame([0xff; 6], from, [255; 4], words)
}

fn frame(mac: [u8; 6], from: Number, to: [u8; 4], words: &str) -> Vec<u8> {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[12..16].copy_from_slice(&from.address().octets());
    header[16..].copy_from_slice(&to);
    [&mac[..], &from.mac(), &[8, 0], &header, words.as_bytes()].concat()
}

#[test]
fn a_family_hears_each_other_and_no_other_family() {
    let switch = Switch::default();
    let [parent, one, two] = [0, 1, 2].map(|number| Guest::new(&switch, ONE, number));
    let stranger = Guest::new(&switch, ANOTHER, 2);
    one.say(two.number, "to two");
    assert_eq!(two.hears(), packet(one.number, two.number, "to two"));
    two.say(parent.number, "to the parent");
    assert_eq!(parent.hears(), packet(two.number, parent.number, "to the parent"));
    one.send(&broadcast(one.number, "to all"));
    for other in [&two, &parent] {
        assert_eq!(other.hears(), broadcast(one.number, "to all"));
    }
    // In the name of two: spoofed.
    one.send(&packet(two.number, parent.number, "spoofed"));
    one.say(Number::new(7).unwrap(), "to nobody");
    one.say(parent.number, "the last");
    assert_eq!(parent.hears(), packet(one.number, parent.number, "the last"));
    assert_eq!(switch.refused(), 1);
    for guest in [&one, &two, &parent, &stranger] {
        guest.hears_nothing();
    }
}

#[test]
fn a_storm_of_broadcasts_is_a_breeze_and_ends_no_talk() {
    let switch = Switch::default();
    let [one, two, three] = [1, 2, 3].map(|number| Guest::new(&switch, ONE, number));
    let heard = std::thread::scope(|scope| {
        let storm = scope.spawn(|| (0..20_000).for_each(|_| one.send(&broadcast(one.number, "storm"))));
        let heard = scope.spawn(|| {
            let (mut heard, begun) = (0, Instant::now());
            while two.received(SILENCE * 3).is_some() {
                heard += 1;
            }
            (heard, begun.elapsed().as_secs_f64())
        });
        storm.join().unwrap();
        heard.join().unwrap()
    });
    let (heard, took_s) = heard;
    assert!(
        heard > 0 && f64::from(heard) <= 201.0 + 100.0 * took_s,
        "{heard} in {took_s} s"
    );
    while three.received(SILENCE).is_some() {}
    three.say(two.number, "still heard");
    assert_eq!(two.hears(), packet(three.number, two.number, "still heard"));
}

#[test]
fn a_guest_that_reads_nothing_holds_up_nobody() {
    let switch = Switch::default();
    let [one, deaf, two] = [1, 2, 3].map(|number| Guest::new(&switch, ONE, number));
    for _ in 0..5000 {
        one.say(deaf.number, "unheard");
    }
    one.say(two.number, "heard");
    assert_eq!(two.hears(), packet(one.number, two.number, "heard"));
}

#[test]
fn who_is_unplugged_is_gone_and_may_come_back() {
    let switch = Switch::default();
    let [one, two] = [1, 2].map(|number| Guest::new(&switch, ONE, number));
    let Guest {
        plug: old,
        qemu,
        dir,
        number,
    } = two;
    // Plugged in again before the old plug is pulled, as when a daemon takes over what runs.
    let again = plug(&switch, ONE, number, dir.path());
    again.connect().unwrap();
    drop(old);
    let two = Guest {
        number,
        qemu,
        plug: again,
        dir,
    };
    one.say(two.number, "again");
    assert_eq!(two.hears(), packet(one.number, two.number, "again"));
    two.say(one.number, "yes");
    assert_eq!(one.hears(), packet(two.number, one.number, "yes"));
    let Guest { plug, qemu, .. } = two;
    drop(plug);
    one.say(number, "nobody hears");
    qemu.set_read_timeout(Some(SILENCE)).unwrap();
    assert!(qemu.recv(&mut [0; 64]).is_err());
}

#[test]
fn who_only_calls_itself_of_a_family_is_not_plugged_in() {
    let switch = Switch::default();
    let [one, two] = [1, 2].map(|number| Guest::new(&switch, ONE, number));
    let dir = TempDir::new().unwrap();
    // As another host might send it here: in the family's name, in that of one who is here and of one who is not.
    for number in [two.number, Number::new(3).unwrap()] {
        let refused = switch.plug(to_plug(ONE, [8; 32], number, dir.path()));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    }
    one.say(two.number, "undisturbed");
    assert_eq!(two.hears(), packet(one.number, two.number, "undisturbed"));
    // When nobody of the family is here any more, the name is free.
    drop((one, two));
    let later = switch.plug(to_plug(ONE, [8; 32], Number::new(1).unwrap(), dir.path()));
    assert!(later.is_ok());
}

/// Two hosts.
fn hosts() -> [(Switch, SocketAddr); 2] {
    [(); 2].map(|()| {
        let switch = Switch::default();
        let address = switch.serve("127.0.0.1:0".parse().unwrap()).unwrap();
        (switch, address)
    })
}

#[test]
fn a_family_is_one_network_over_hosts() {
    let [(here, _), (there, address_there)] = hosts();
    let [parent, one] = [0, 1].map(|number| Guest::new(&here, ONE, number));
    let two = Guest::new(&there, ONE, 2);
    let stranger = Guest::new(&there, ANOTHER, 1);
    here.reach(ONE, [address_there]);
    parent.say(two.number, "over there");
    assert_eq!(two.hears(), packet(parent.number, two.number, "over there"));
    // Nobody told it where the parent is: it has heard of it.
    two.say(parent.number, "and back");
    assert_eq!(parent.hears(), packet(two.number, parent.number, "and back"));
    two.send(&broadcast(two.number, "to all"));
    for other in [&parent, &one] {
        assert_eq!(other.hears(), broadcast(two.number, "to all"));
    }
    for guest in [&parent, &one, &two, &stranger] {
        guest.hears_nothing();
    }
}

#[test]
fn what_was_not_sealed_by_the_family_is_not_heard() {
    let [(here, address_here), _] = hosts();
    let one = Guest::new(&here, ONE, 1);
    let two = Number::new(2).unwrap();
    let outsider = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let forged = packet(two, one.number, "forged");
    let send = |datagram: &[u8]| outsider.send_to(datagram, address_here).unwrap();
    send(&forged);
    send(&[b"MF\x01".as_slice(), &ONE.0, &[0; 24], &forged].concat());
    let key = |key| martlet_switch::Seal::new(ONE, &key, [3; 16]);
    send(&key([8; 32]).seal(&forged));
    // With the key, but in the name of one who is here.
    send(&key(KEY).seal(&packet(one.number, one.number, "from itself")));
    let sealed = key(KEY).seal(&packet(two, one.number, "real"));
    send(&sealed[..sealed.len() - 1]);
    send(&sealed);
    assert_eq!(one.hears(), packet(two, one.number, "real"));
    one.hears_nothing();
}
