//! The network of a machine and its clones: over hosts, and closed to everybody else.

use crate::deadline::wait_for;
use crate::hosts::fleet;
use crate::{Daemon, Fixture};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

const PARENT_MAC: &str = "524e4d000000";
const PARENT: [u8; 4] = [10, 78, 255, 254];
/// Where guests have their families' card.
const CARD: &str = "eth1";
/// What tells a test's own frames from all others.
const MARK: &[u8] = b"martlet-test-frame";

impl Daemon {
    fn boot_family(&self, name: &str) {
        self.ok(&["run", "tiny", "--name", name, "--memory", "128M", "--family"]);
    }

    /// `from` reaches `to` by its name.
    fn reaches(&self, from: &str, to: &str) {
        let line =
            format!("for i in 1 2 3 4 5 6; do ping -c 1 -W 10 {to} >/dev/null && exit 0; done; exit 1");
        self.exec(from, &line);
    }
}

#[test]
fn clones_and_their_parent_reach_each_other_over_hosts() {
    let here = Daemon::new(Fixture::Tiny);
    let (couch, attic) = (here.another(), here.another());
    fleet(&[(&here, "desk"), (&couch, "couch"), (&attic, "attic")]);
    here.boot_family("w");
    let who = &here.json(&["inspect", "w"])["family"];
    assert_eq!(
        (&who["name"], &who["address"]),
        (&"parent".into(), &"10.78.255.254".into())
    );
    here.ok(&["fork", "w", "-n", "3", "--on", "desk,couch,attic"]);
    let who = &couch.json(&["inspect", "w-2"])["family"];
    assert_eq!(
        (&who["name"], &who["address"]),
        (&"clone-2".into(), &"10.78.0.2".into())
    );
    for (daemon, name) in [(&here, "w"), (&here, "w-1"), (&couch, "w-2"), (&attic, "w-3")] {
        for to in ["parent", "clone-1", "clone-2", "clone-3"] {
            daemon.reaches(name, to);
        }
    }
    // A connection between the parent and a clone elsewhere goes on through another fork, and through the death of both daemons.
    let serve = "(nc -l -p 7777 -e cat) </dev/null >/dev/null 2>&1 & \
                 until netstat -ltn | grep -q :7777; do sleep 0.1; done";
    couch.exec("w-2", serve);
    let talk = "mkfifo /tmp/in; (nc clone-2 7777 </tmp/in >/tmp/out 2>&1 &) >/dev/null 2>&1; (sleep 100000 >/tmp/in &) >/dev/null 2>&1";
    here.exec("w", talk);
    let said = |word: &str| {
        let line = format!(
            "echo {word} >/tmp/in; for i in $(seq 300); do grep -q {word} /tmp/out && exit 0; sleep 0.2; done; exit 1"
        );
        here.exec("w", &line);
    };
    said("before");
    here.ok(&["fork", "w", "-n", "2", "--on", "desk,attic", "--prefix", "more"]);
    said("forked");
    couch.kill_daemon();
    here.kill_daemon();
    couch.ok(&["ps"]);
    said("found-again");
    // Those of the second fork have other addresses.
    assert_eq!(here.json(&["inspect", "more-1"])["family"]["name"], "clone-4");
    attic.reaches("more-2", "clone-4");
    couch.reaches("w-2", "clone-5");
    // One that moves is reached where it is now, and reaches the others.
    here.ok(&["move", "w-1", "attic"]);
    for (daemon, name) in [(&here, "w"), (&couch, "w-2"), (&attic, "w-3")] {
        daemon.reaches(name, "clone-1");
    }
    for to in ["parent", "clone-2", "clone-3"] {
        attic.reaches("w-1", to);
    }
    // Forwarded ports are the parent's alone, and a snapshot's clone has a family of its own.
    here.ok(&["checkpoint", "w", "--tag", "now"]);
    here.ok(&["run", "w:now", "--name", "other"]);
    let other = &here.json(&["inspect", "other"])["family"];
    assert_eq!(other["name"], "parent");
    assert_ne!(other["family"], who["family"]);
    let alone = here.call(&["exec", "other", "--", "ping", "-c", "1", "-W", "2", "clone-1"]);
    assert!(!alone.status.success());
}

#[test]
fn a_snapshot_without_the_card_cannot_be_given_one() {
    let daemon = Daemon::new(Fixture::Tiny);
    let (_, words) = daemon.refused(&["run", "tiny0:booted", "--name", "w", "--family"]);
    assert!(words.contains("network cards"), "{words}");
}

/// `frames.c`, built for any guest.
struct Frames(TempDir);

impl Frames {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/real/frames.c");
        let built = Command::new("gcc")
            .args(["-O2", "-static", "-o"])
            .args([dir.path().join("frames"), PathBuf::from(source)])
            .status();
        assert!(built.unwrap().success());
        Self(dir)
    }

    fn bring_to(&self, daemon: &Daemon, name: &str) {
        let frames = self.0.path().join("frames");
        daemon.ok(&["cp", frames.to_str().unwrap(), &format!("{name}:/bin/frames")]);
    }

    /// From now on all that comes to a card is kept.
    fn listen(&self, daemon: &Daemon, name: &str, card: &str) {
        let line = format!(
            "(frames listen {card} >/tmp/{card}.pcap) </dev/null >/dev/null 2>&1 & \
             until [ -s /tmp/{card}.pcap ]; do sleep 0.1; done"
        );
        daemon.exec(name, &line);
    }

    /// What came to a card.
    fn heard(&self, daemon: &Daemon, name: &str, card: &str) -> Vec<Vec<u8>> {
        let file = self.0.path().join("capture");
        daemon.ok(&["cp", &format!("{name}:/tmp/{card}.pcap"), file.to_str().unwrap()]);
        let capture = std::fs::read(&file).unwrap();
        let mut rest = &capture[24..];
        let mut frames = Vec::new();
        while let Some((header, body)) = rest.split_at_checked(16) {
            let length = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
            frames.push(body[..length].to_vec());
            rest = &body[length..];
        }
        frames
    }

    /// Sends each of these so often.
    fn send(&self, daemon: &Daemon, name: &str, frames: &[(u32, Vec<u8>)]) {
        let hex = |frame: &[u8]| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let lines: String = frames
            .iter()
            .map(|(count, frame)| format!("{count} {}\n", hex(frame)))
            .collect();
        daemon.ok_with_input(&["exec", "-i", name, "--", "frames", "send", CARD], &lines);
    }
}

fn mac(hex: &str) -> Vec<u8> {
    (0..12)
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn mac_of(info: &Value) -> Vec<u8> {
    mac(&info["mac"].as_str().unwrap().replace(':', ""))
}

fn address_of(info: &Value) -> [u8; 4] {
    let address: std::net::Ipv4Addr = info["address"].as_str().unwrap().parse().unwrap();
    address.octets()
}

fn ethernet(to: &[u8], from: &[u8], protocol: u16, packet: &[u8]) -> Vec<u8> {
    [to, from, &protocol.to_be_bytes(), packet, MARK].concat()
}

fn ipv4(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, (20 + MARK.len()) as u8, 0, 0, 0, 0, 64, 253, 0, 0];
    header.extend_from_slice(&from);
    header.extend_from_slice(&to);
    let sum: u32 = header
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | u32::from(two[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn arp(mac: &[u8], from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, 2], mac, &from, &[0; 6], &to].concat()
}

fn is_ours(frame: &&Vec<u8>) -> bool {
    frame.windows(MARK.len()).any(|part| part == MARK)
}

#[test]
fn a_hostile_family_is_heard_by_nobody_else() {
    let daemon = Daemon::new(Fixture::Tiny);
    let frames = Frames::new();
    for name in ["hostile", "victim"] {
        daemon.boot_family(name);
        frames.bring_to(&daemon, name);
    }
    daemon.ok(&["fork", "hostile", "-n", "2"]);
    for card in ["eth0", CARD] {
        frames.listen(&daemon, "victim", card);
    }
    for name in ["hostile", "hostile-2"] {
        frames.listen(&daemon, name, CARD);
    }
    let victim = daemon.json(&["inspect", "victim"]);
    let own = mac("524e4d000001");
    let (other, parent, all) = (mac("524e4d000002"), mac(PARENT_MAC), vec![0xff; 6]);
    let address = |number| [10, 78, 0, number];
    let (me, you) = (address(1), address(2));
    let refused = [
        (
            "another's MAC",
            ethernet(&parent, &other, 0x0800, &ipv4(me, PARENT)),
        ),
        (
            "another's IP",
            ethernet(&parent, &own, 0x0800, &ipv4(you, PARENT)),
        ),
        (
            "the parent's IP",
            ethernet(&other, &own, 0x0800, &ipv4(PARENT, you)),
        ),
        (
            "the parent's ARP",
            ethernet(&other, &own, 0x0806, &arp(&own, PARENT, you)),
        ),
        (
            "another's MAC in ARP",
            ethernet(&parent, &own, 0x0806, &arp(&other, me, PARENT)),
        ),
        (
            "a VLAN",
            ethernet(
                &parent,
                &own,
                0x8100,
                &[&[0, 9, 8, 0][..], &ipv4(me, PARENT)].concat(),
            ),
        ),
        ("IPv6", ethernet(&parent, &own, 0x86dd, &[0x60; 40])),
        (
            "the victim's other card",
            ethernet(&mac_of(&victim), &own, 0x0800, &ipv4(me, address_of(&victim))),
        ),
        (
            "the host",
            ethernet(&parent, &own, 0x0800, &ipv4(me, [10, 77, 0, 2])),
        ),
    ];
    let truly = ethernet(&parent, &own, 0x0800, &ipv4(me, PARENT));
    let storm = ethernet(&all, &own, 0x0800, &ipv4(me, [255; 4]));
    let mut sent: Vec<_> = refused.iter().map(|(_, frame)| (3, frame.clone())).collect();
    sent.push((5000, storm.clone()));
    sent.push((1, truly.clone()));
    frames.send(&daemon, "hostile-1", &sent);
    let is_in = |name: &str, frame: &Vec<u8>| {
        frames
            .heard(&daemon, name, CARD)
            .iter()
            .filter(|heard| *heard == frame)
            .count()
    };
    wait_for("what was truly sent", || is_in("hostile", &truly) == 1);

    for name in ["hostile", "hostile-2"] {
        for (what, frame) in &refused {
            assert_eq!(is_in(name, frame), 0, "{what} came to {name}");
        }
        let storm = is_in(name, &storm);
        assert!(
            (1..5000).contains(&storm),
            "{storm} of 5000 broadcasts came to {name}"
        );
    }
    for card in ["eth0", CARD] {
        let heard = frames.heard(&daemon, "victim", card);
        let ours: Vec<_> = heard.iter().filter(is_ours).collect();
        assert!(ours.is_empty(), "of another family, at {card}: {ours:?}");
    }
    // Nobody has taken harm.
    daemon.reaches("hostile", "clone-2");
    daemon.reaches("hostile-2", "parent");
    assert_eq!(daemon.exec("victim", "hostname"), "victim");
    let socket = daemon.socket();
    let curl = Command::new("curl")
        .args([
            "-sf",
            "--unix-socket",
            socket.to_str().unwrap(),
            "http://martlet/metrics",
        ])
        .output();
    let metrics = String::from_utf8(curl.unwrap().stdout).unwrap();
    let refused = metrics
        .lines()
        .find(|line| line.starts_with("martlet_family_frames_refused_total "));
    let count: f64 = refused.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(count >= 27.0, "{count}");
}
