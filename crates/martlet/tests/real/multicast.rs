//! Forks to several hosts of a lab, whose frames go to all of them at once, if the network carries that.

use crate::deadline::wait_for;
use crate::{Daemon, Fixture};
use martlet_bench::roam::Site;
use martlet_lab::{Lab, Link};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

const FILL: &str = "head -c 12000000 /dev/urandom > /random; cd / && sha256sum random > sum; sync";
const RIGHT: &str = "cd / && sha256sum -c sum >/dev/null";
const OTHERS: [&str; 3] = ["couch", "attic", "cellar"];

/// A fleet whose first host has a machine `w`.
struct Fleet {
    lab: Lab,
    origin: Site,
    others: Vec<Site>,
    /// For its turn among the tests, and its deadline; it is never started.
    _turn: Daemon,
}

/// What a fork took, once all of it had come to all hosts.
#[derive(Debug)]
struct Took {
    /// What left the first host's link, but for the outlines.
    sent_bytes: f64,
    /// The frames that have come to one host.
    frames_bytes: f64,
}

impl Fleet {
    fn new(multicast: &str) -> Self {
        let turn = Daemon::empty();
        let lab = Lab::new().unwrap();
        let site = |name| {
            let mut site = Site::new(&lab, name, Path::new(env!("CARGO_BIN_EXE_martlet"))).unwrap();
            site.set_env("MARTLET_MULTICAST", multicast);
            site.set_env("MARTLET_LOG", "info,martlet_engine::multicast=debug");
            site
        };
        let origin = site("desk");
        Fixture::Tiny.copy_to(origin.state_dir());
        origin.found_fleet().unwrap();
        let others = OTHERS.map(|name| {
            let other = site(name);
            origin.admit(&other).unwrap();
            other
        });
        origin.run(&["run", "tiny0:booted", "--name", "w"]).unwrap();
        origin.exec("w", FILL).unwrap();
        Self {
            lab,
            origin,
            others: others.into(),
            _turn: turn,
        }
    }

    /// Forks into a clone at each of the others; each is right, and all comes.
    fn fork(&self) -> Took {
        let packs_bytes = || {
            self.others[0].run(&["df"]).unwrap()["pack_bytes"]
                .as_f64()
                .unwrap()
        };
        let (packs_before, sent_before) = (packs_bytes(), self.origin.sent_bytes().unwrap());
        let report = self
            .origin
            .run(&["fork", "w", "-n", "3", "--on", &OTHERS.join(",")])
            .unwrap();
        let clones = report["clones"].as_array().unwrap();
        assert!(
            clones.iter().all(|clone| clone["problem"] == Value::Null),
            "{report}"
        );
        for (number, other) in self.others.iter().enumerate() {
            other.exec(&format!("w-{}", number + 1), RIGHT).unwrap();
        }
        for other in &self.others {
            wait_for("the rest", || other.run(&["away"]).unwrap() == json!([]));
        }
        let outlines_bytes = report["sent_bytes"].as_f64().unwrap();
        Took {
            sent_bytes: (self.origin.sent_bytes().unwrap() - sent_before) as f64 - outlines_bytes,
            frames_bytes: packs_bytes() - packs_before - outlines_bytes / 3.0,
        }
    }

    /// Do the logs of all hosts but the first say so?
    fn others_say(&self, words: &str) -> bool {
        self.others.iter().all(|other| log_of(other).contains(words))
    }

    /// What hosts say of their groups, to find out what a fork that sends too much has sent.
    fn of_groups(&self) -> String {
        let all = [&self.origin].into_iter().chain(&self.others).map(log_of);
        all.enumerate()
            .flat_map(|(host, log)| {
                let lines = log.lines().filter(|line| line.contains("multicast"));
                let lines: Vec<String> = lines.map(|line| format!("\n{host} {line}")).collect();
                lines
            })
            .collect()
    }
}

fn log_of(host: &Site) -> String {
    std::fs::read_to_string(host.state_dir().join("martletd.log")).unwrap()
}

fn heard_packets(host: &Site) -> u64 {
    wait_for("it to leave", || log_of(host).contains("left its group"));
    let entries = log_of(host);
    let mut entries = entries
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let left = entries.find(|entry| entry["message"] == "left its group");
    left.unwrap()["packets"].as_u64().unwrap()
}

#[test]
fn frames_cross_the_link_once_for_all_hosts() {
    let fleet = Fleet::new("200mbit");
    let took = fleet.fork();
    println!("{took:?}");
    assert!(took.frames_bytes > 12e6, "{took:?}");
    // By itself each host would have it, three times in all. A machine that is busy takes some for lost, and gets it again.
    let is_shared = took.sent_bytes < 2.0 * took.frames_bytes;
    assert!(is_shared, "{took:?}{}", fleet.of_groups());
    assert!(took.sent_bytes > took.frames_bytes, "{took:?}");
    wait_for("all to leave", || fleet.others_say("left its group"));
    assert!(!fleet.others_say("by unicast from now on"));
    // The machine that was forked is not needed any more, nor is its host.
    fleet.origin.run(&["rm", "--force", "w"]).unwrap();
    fleet.origin.run(&["daemon", "stop"]).unwrap();
    fleet.others[2].exec("w-3", RIGHT).unwrap();
}

/// What guests do not wait for waits for it.
#[test]
fn a_host_that_comes_late_hears_the_rest_with_the_others() {
    let fleet = Fleet::new("200mbit");
    let cut = Link {
        loss: 1.0,
        ..Link::local()
    };
    fleet.others[2].set_link(cut).unwrap();
    let took = std::thread::scope(|scope| {
        scope.spawn(|| {
            let has_started = |other: &Site| other.run(&["away"]).unwrap() != json!([]);
            wait_for("the others to start", || {
                fleet.others[..2].iter().all(has_started)
            });
            std::thread::sleep(Duration::from_secs(1));
            fleet.others[2].set_link(Link::local()).unwrap();
        });
        fleet.fork()
    });
    assert!(took.frames_bytes > 12e6, "{took:?}");
    let heard: Vec<u64> = fleet.others.iter().map(heard_packets).collect();
    let is_shared = took.sent_bytes < 2.0 * took.frames_bytes && 2 * heard[2] > heard[0];
    assert!(is_shared, "{took:?} {heard:?}{}", fleet.of_groups());
}

#[test]
fn what_is_lost_comes_by_itself() {
    let fleet = Fleet::new("100mbit");
    let lossy = Link {
        loss: 0.05,
        ..Link::local()
    };
    fleet.others[1].set_link(lossy).unwrap();
    let took = fleet.fork();
    assert!(took.frames_bytes > 12e6, "{took:?}");
}

#[test]
fn a_network_without_multicast_is_done_without() {
    let fleet = Fleet::new("200mbit");
    fleet.lab.set_multicast(false).unwrap();
    let took = fleet.fork();
    assert!(took.frames_bytes > 12e6, "{took:?}");
    assert!(
        fleet.others_say("the network seems to carry no multicast"),
        "it was tried"
    );
}
