//! What a fork across many hosts takes, simulated from what its parts cost (docs/fork-model.md).
//!
//! ```text
//!  parent's host                          link                  each host
//!  begin ─► hand over ──(processors)──► outline ──(uplink)──► its clones ──(processors)──► slice, frame, slice, frame … done
//!           serve a frame ◄──────────── asked ◄────────────── a clone that lacks it
//!                └──(processors)──► frame ──(uplink: to who asked, or once to all)──► whoever waits for it goes on
//! ```
//!
//! Time is simulated event by event. Processors and uplink serve in the order in which they are asked; all else takes its time without
//! being waited for. Nothing is drawn by chance: the same costs give the same times.

use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Bytes of a frame on the wire that carry something: 1448 of 1514 (TCP with time stamps, IP, Ethernet).
pub const GOODPUT: f64 = 1448.0 / 1514.0;

/// What the parts of a fork cost, each measured by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Rate of the hosts' links.
    pub link_mbit: f64,
    /// Processors of the machine that the hosts of the lab shared.
    pub lab_processors: u32,
    /// Hosts of the lab beside the parent's.
    pub lab_hosts: u32,
    /// From the call of a fork of one clone until its host began to work.
    pub begin_ms: f64,
    /// What goes to each host before it can start clones.
    pub outline_bytes: f64,
    /// Processor time of the parent's host for each host that it hands over to.
    pub hand_over_cpu_ms: f64,
    /// Processor time of the parent's host for each frame.
    pub serve_cpu_ms: f64,
    /// A frame of the parent's host, while nothing else goes on.
    pub fetch_ms: f64,
    /// How many frames a host asks for ahead of their being read.
    pub ahead_frames: u32,
    /// A clone's start, until it has executed a command.
    pub start: Work,
    /// A task in a clone, after its start.
    pub task: Work,
    /// QEMU's own image of the parent, suspended.
    pub image_bytes: f64,
}

/// Work of a clone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Processor time of each clone.
    pub cpu_ms: f64,
    /// Frames that each host needs of the parent's, however many clones are there.
    pub frames: f64,
    /// Bytes of one of them, as they come.
    pub frame_bytes: f64,
}

/// Where clones run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// Hosts beside the parent's.
    pub hosts: u32,
    /// Clones of all hosts together, by turns at each.
    pub clones: u32,
    /// Who has them.
    pub processors: Processors,
}

/// Who has processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processors {
    /// Each host so many.
    OfEach(u32),
    /// All hosts, the parent's too, the same: a lab.
    Shared(u32),
}

/// How frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To each host that asks.
    Unicast,
    /// To all, when one asks.
    Multicast,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forked {
    /// From the call until the last clone is done.
    pub done_ms: f64,
    /// Bytes that left the parent's host.
    pub sent_bytes: f64,
}

impl Costs {
    /// A fork whose clones start, and do the task if they are to.
    pub fn fork(&self, cluster: Cluster, way: Way, with_task: bool) -> Forked {
        let works = [Some(self.start), with_task.then_some(self.task)];
        Simulation::new(self, cluster, way, works.into_iter().flatten()).run()
    }

    /// Clones that are there already do the task: nothing but that.
    pub fn zero_cost_ms(&self, cluster: Cluster) -> f64 {
        let task = Work {
            frames: 0.0,
            ..self.task
        };
        let idle = Self {
            begin_ms: 0.0,
            outline_bytes: 0.0,
            hand_over_cpu_ms: 0.0,
            ..self.clone()
        };
        Simulation::new(&idle, cluster, Way::Unicast, [task])
            .run()
            .done_ms
    }

    /// QEMU's image is copied to all hosts; nothing is started from it.
    pub fn copy_ms(&self, hosts: u32, way: Way) -> f64 {
        let times = match way {
            Way::Unicast => f64::from(hosts),
            Way::Multicast => 1.0,
        };
        times * self.image_bytes / self.bytes_per_ms()
    }

    fn bytes_per_ms(&self) -> f64 {
        self.link_mbit * GOODPUT * 1e3 / 8.0
    }
}

/// A work of more frames is simulated with so many, each standing for several.
const FRAMES_FOLLOWED: f64 = 400.0;

type Nanos = u64;

fn nanos(ms: f64) -> Nanos {
    (ms.max(0.0) * 1e6).round() as Nanos
}

/// Serves in the order in which it is asked, as many at a time as it has places.
struct Server {
    free_at: BinaryHeap<Reverse<Nanos>>,
}

impl Server {
    fn new(places: u32) -> Self {
        Self {
            free_at: (0..places.max(1)).map(|_| Reverse(0)).collect(),
        }
    }

    /// When it is done with what is asked for now.
    fn take(&mut self, now: Nanos, lasts: Nanos) -> Nanos {
        let free_at = self.free_at.pop().map_or(0, |Reverse(at)| at);
        let end = free_at.max(now) + lasts;
        self.free_at.push(Reverse(end));
        end
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The parent's host hands over to a host.
    HandedOver { host: usize },
    /// A host has the outline.
    Begun { host: usize },
    /// A clone has done a slice.
    Done { clone: usize },
    /// The parent's host is asked for a frame.
    Asked { host: usize, frame: usize },
    /// It has it ready.
    Served { host: usize, frame: usize },
    /// It has come to who asked, or to all.
    Came { host: usize, frame: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Lacking,
    Asked,
    Here,
}

struct HostState {
    has_begun: bool,
    frames: Vec<Presence>,
    /// The next that is asked for ahead, and how many are asked for.
    next: usize,
    asked: usize,
    /// Clones that wait, and for which frame.
    waiting: Vec<(usize, usize)>,
}

/// What is needed at one time: a frame, or several if there are too many to follow each.
struct Frames {
    bytes: f64,
    serve: Nanos,
}

/// One slice of a clone's work, and what it lacks after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slice {
    lasts: Nanos,
    lacks: Option<usize>,
}

struct Simulation {
    way: Way,
    cluster: Cluster,
    begin: Nanos,
    hand_over: Nanos,
    ahead: usize,
    /// Half of what a fetch takes beside the parent's processor and the wire.
    way_there: Nanos,
    outline_bytes: f64,
    bytes_per_ms: f64,
    /// The same for each clone: a frame is lacking at the end of each but the last of a work.
    slices: Vec<Slice>,
    frames: Vec<Frames>,
    /// By host; one alone when they share.
    processors: Vec<Server>,
    parent: Server,
    uplink: Server,
    hosts: Vec<HostState>,
    /// How many slices a clone has done.
    done: Vec<usize>,
    /// Frames that are on their way to all.
    under_way: Vec<bool>,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    /// Of events at the same time the first comes first.
    number: u64,
    sent_bytes: f64,
}

impl Simulation {
    fn new(costs: &Costs, cluster: Cluster, way: Way, works: impl IntoIterator<Item = Work>) -> Self {
        let bytes_per_ms = costs.bytes_per_ms();
        let works: Vec<Work> = works.into_iter().collect();
        let all_frames: f64 = works.iter().map(|work| work.frames.max(0.0)).sum();
        let all_bytes: f64 = works.iter().map(|work| work.frames * work.frame_bytes).sum();
        // So many are one step.
        let at_once = (all_frames / FRAMES_FOLLOWED).max(1.0);
        let (mut slices, mut frames) = (Vec::new(), Vec::new());
        for work in works {
            let steps = (work.frames.max(0.0) / at_once).ceil() as usize;
            for step in 0..=steps {
                let lacks = (step < steps).then_some(frames.len());
                frames.extend(lacks.map(|_| {
                    let in_step = work.frames / steps as f64;
                    Frames {
                        bytes: in_step * work.frame_bytes,
                        serve: nanos(in_step * costs.serve_cpu_ms),
                    }
                }));
                slices.push(Slice {
                    lasts: nanos(work.cpu_ms / (steps + 1) as f64),
                    lacks,
                });
            }
        }
        let wire_ms = all_bytes / all_frames.max(1.0) / bytes_per_ms;
        let count = frames.len();
        let host = || HostState {
            has_begun: false,
            frames: vec![Presence::Lacking; count],
            next: 0,
            asked: 0,
            waiting: Vec::new(),
        };
        let hosts = cluster.hosts.max(1) as usize;
        let own = match cluster.processors {
            Processors::OfEach(count) => (0..hosts).map(|_| Server::new(count)).collect(),
            Processors::Shared(count) => vec![Server::new(count)],
        };
        let parent = match cluster.processors {
            Processors::OfEach(count) | Processors::Shared(count) => count,
        };
        // The first outline is part of what was measured as the beginning.
        let first_ms = costs.hand_over_cpu_ms + costs.outline_bytes / bytes_per_ms;
        Self {
            way,
            cluster,
            begin: nanos(costs.begin_ms - first_ms),
            hand_over: nanos(costs.hand_over_cpu_ms),
            ahead: (f64::from(costs.ahead_frames) / at_once).ceil() as usize,
            way_there: nanos((costs.fetch_ms - costs.serve_cpu_ms - wire_ms) / 2.0),
            outline_bytes: costs.outline_bytes,
            bytes_per_ms,
            slices,
            under_way: vec![false; count],
            frames,
            processors: own,
            parent: Server::new(parent),
            uplink: Server::new(1),
            hosts: (0..hosts).map(|_| host()).collect(),
            done: vec![0; cluster.clones as usize],
            events: BinaryHeap::new(),
            number: 0,
            sent_bytes: 0.0,
        }
    }

    fn run(mut self) -> Forked {
        for host in 0..self.hosts.len() {
            self.on_parent(self.begin, self.hand_over, Event::HandedOver { host });
        }
        let mut last = self.begin;
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            match event {
                Event::HandedOver { host } => {
                    let at = self.send(now, self.outline_bytes);
                    self.at(at, Event::Begun { host });
                }
                Event::Begun { host } => {
                    self.hosts[host].has_begun = true;
                    for clone in self.clones_of(host) {
                        self.work(now, clone);
                    }
                    self.ask_ahead(now, host);
                }
                Event::Done { clone } => self.advance(now, clone),
                Event::Asked { host, frame } => {
                    // Who asks for what is on its way to all gets that, or has had it since.
                    let comes = self.under_way[frame] || self.hosts[host].frames[frame] == Presence::Here;
                    if self.way == Way::Unicast || !comes {
                        self.under_way[frame] = true;
                        self.on_parent(now, self.frames[frame].serve, Event::Served { host, frame });
                    }
                }
                Event::Served { host, frame } => {
                    let at = self.send(now, self.frames[frame].bytes);
                    self.at(at + self.way_there, Event::Came { host, frame });
                }
                Event::Came { host, frame } => {
                    self.under_way[frame] = false;
                    match self.way {
                        Way::Unicast => self.come(now, host, frame),
                        Way::Multicast => (0..self.hosts.len()).for_each(|host| self.come(now, host, frame)),
                    }
                }
            }
            last = now;
        }
        Forked {
            done_ms: last as f64 / 1e6,
            sent_bytes: self.sent_bytes,
        }
    }

    /// A clone has done a slice: it goes on, or waits for a frame.
    fn advance(&mut self, now: Nanos, clone: usize) {
        let lacks = self.slices[self.done[clone]].lacks;
        self.done[clone] += 1;
        let Some(frame) = lacks else {
            if self.done[clone] < self.slices.len() {
                self.work(now, clone);
            }
            return;
        };
        let host = self.host_of(clone);
        if self.hosts[host].frames[frame] == Presence::Here {
            return self.work(now, clone);
        }
        self.hosts[host].waiting.push((frame, clone));
        if self.hosts[host].frames[frame] == Presence::Lacking {
            self.ask(now, host, frame);
        }
    }

    fn ask(&mut self, now: Nanos, host: usize, frame: usize) {
        let state = &mut self.hosts[host];
        state.frames[frame] = Presence::Asked;
        state.asked += 1;
        self.at(now + self.way_there, Event::Asked { host, frame });
    }

    /// A host asks for what it will need, as much as it may at a time.
    fn ask_ahead(&mut self, now: Nanos, host: usize) {
        loop {
            let state = &mut self.hosts[host];
            if state.next == state.frames.len() || state.asked >= self.ahead {
                return;
            }
            let frame = state.next;
            state.next += 1;
            if state.frames[frame] == Presence::Lacking {
                self.ask(now, host, frame);
            }
        }
    }

    /// A frame comes to a host; one that is not there yet misses it.
    fn come(&mut self, now: Nanos, host: usize, frame: usize) {
        let state = &mut self.hosts[host];
        if !state.has_begun {
            return;
        }
        if state.frames[frame] == Presence::Asked {
            state.asked -= 1;
        }
        state.frames[frame] = Presence::Here;
        let waited: Vec<usize> = state
            .waiting
            .extract_if(.., |(waits, _)| *waits == frame)
            .map(|(_, clone)| clone)
            .collect();
        for clone in waited {
            self.work(now, clone);
        }
        self.ask_ahead(now, host);
    }

    /// A clone does its next slice.
    fn work(&mut self, now: Nanos, clone: usize) {
        let lasts = self.slices[self.done[clone]].lasts;
        let server = match self.cluster.processors {
            Processors::OfEach(_) => self.host_of(clone),
            Processors::Shared(_) => 0,
        };
        let end = self.processors[server].take(now, lasts);
        self.at(end, Event::Done { clone });
    }

    /// Work of the parent's host.
    fn on_parent(&mut self, now: Nanos, lasts: Nanos, then: Event) {
        let end = match self.cluster.processors {
            Processors::OfEach(_) => self.parent.take(now, lasts),
            Processors::Shared(_) => self.processors[0].take(now, lasts),
        };
        self.at(end, then);
    }

    /// When so many bytes have left the parent's host.
    fn send(&mut self, now: Nanos, bytes: f64) -> Nanos {
        self.sent_bytes += bytes;
        self.uplink.take(now, nanos(bytes / self.bytes_per_ms))
    }

    fn at(&mut self, at: Nanos, event: Event) {
        self.number += 1;
        self.events.push(Reverse((at, self.number, event)));
    }

    fn host_of(&self, clone: usize) -> usize {
        clone % self.hosts.len()
    }

    fn clones_of(&self, host: usize) -> impl Iterator<Item = usize> + use<> {
        (host..self.done.len()).step_by(self.hosts.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1000 bytes per millisecond on the wire.
    const LINK_MBIT: f64 = 8.0 / GOODPUT;

    fn costs() -> Costs {
        Costs {
            link_mbit: LINK_MBIT,
            lab_processors: 2,
            lab_hosts: 4,
            begin_ms: 100.0,
            outline_bytes: 10_000.0,
            hand_over_cpu_ms: 5.0,
            serve_cpu_ms: 0.5,
            fetch_ms: 4.0,
            ahead_frames: 0,
            start: work(60.0, 2.0, 1_000.0),
            task: work(500.0, 0.0, 0.0),
            image_bytes: 1e6,
        }
    }

    fn work(cpu_ms: f64, frames: f64, frame_bytes: f64) -> Work {
        Work {
            cpu_ms,
            frames,
            frame_bytes,
        }
    }

    fn each(hosts: u32, clones: u32) -> Cluster {
        Cluster {
            hosts,
            clones,
            processors: Processors::OfEach(2),
        }
    }

    fn near(is: f64, wanted: f64) {
        assert!((is - wanted).abs() < 1e-3 * wanted.max(1.0), "{is}, not {wanted}");
    }

    #[test]
    fn small_cases_are_as_calculated_by_hand() {
        let costs = costs();
        // One clone: the beginning with its one outline, three slices of 20 ms, two fetches of 4 ms.
        let one = costs.fork(each(1, 1), Way::Unicast, false);
        near(one.done_ms, 100.0 + 60.0 + 2.0 * 4.0);
        near(one.sent_bytes, 10_000.0 + 2.0 * 1_000.0);
        // With the task, which reads nothing.
        near(costs.fork(each(1, 1), Way::Unicast, true).done_ms, 168.0 + 500.0);
        // Two hosts are handed over to by two processors at once, and their outlines follow each other on the wire.
        near(costs.fork(each(2, 2), Way::Unicast, false).done_ms, 168.0 + 10.0);
        // A second clone at a host finds a second processor, and the frames that the first has asked for.
        near(costs.fork(each(1, 2), Way::Unicast, false).done_ms, 168.0);
        // Four share two processors: two slices of each after one another, while the others wait for a frame or not.
        let four = costs.fork(each(1, 4), Way::Unicast, false).done_ms;
        assert!(
            (100.0 + 120.0..100.0 + 120.0 + 2.0 * 4.0 + 1e-3).contains(&four),
            "{four}"
        );
        near(costs.zero_cost_ms(each(3, 12)), 1_000.0);
        near(costs.copy_ms(7, Way::Unicast), 7.0 * 1_000.0);
        near(costs.copy_ms(7, Way::Multicast), 1_000.0);
    }

    #[test]
    fn what_is_asked_for_ahead_is_there_in_time() {
        let ahead = |ahead_frames, start| {
            let costs = Costs {
                ahead_frames,
                start,
                ..costs()
            };
            costs.fork(each(1, 1), Way::Unicast, false).done_ms
        };
        // Slices of 20 ms hide fetches of 4 ms.
        near(ahead(1, work(60.0, 2.0, 1_000.0)), 160.0);
        // Without work in between: ten at a time, each ten as long as one.
        near(ahead(0, work(0.0, 100.0, 0.0)), 100.0 + 100.0 * 4.0);
        let ten_ms = ahead(10, work(0.0, 100.0, 0.0));
        // The two processors of the parent's host serve ten in 2.5 ms.
        assert!((140.0..165.0).contains(&ten_ms), "{ten_ms}");
    }

    #[test]
    fn many_frames_are_as_long_as_they_are_together() {
        let done = |frames| {
            let costs = Costs {
                start: work(100.0, frames, 1_000.0),
                ..costs()
            };
            costs.fork(each(8, 8), Way::Unicast, false)
        };
        near(done(4000.0).sent_bytes, 8.0 * (10_000.0 + 4000.0 * 1_000.0));
        // All of it goes over one wire.
        let wire_ms = 8.0 * 4000.0;
        assert!(
            (wire_ms..wire_ms * 1.1).contains(&done(4000.0).done_ms),
            "{:?}",
            done(4000.0)
        );
    }

    #[test]
    fn a_wire_that_is_full_is_what_is_waited_for() {
        let costs = Costs {
            task: work(0.0, 100.0, 50_000.0),
            ..costs()
        };
        let (unicast, multicast) = [Way::Unicast, Way::Multicast]
            .map(|way| costs.fork(each(64, 64), way, true))
            .into();
        // 64 hosts, 100 frames of 50 ms each.
        let all_ms = 64.0 * 100.0 * 50.0;
        assert!((all_ms..all_ms * 1.02).contains(&unicast.done_ms), "{unicast:?}");
        // Outlines go to each of 64 hosts, 10 ms each; frames once, but for those that come before a host is there.
        assert!(
            (64.0 * 10.0 + 100.0 * 50.0..64.0 * 10.0 + 110.0 * 50.0).contains(&multicast.done_ms),
            "{multicast:?}"
        );
        near(unicast.sent_bytes, 64.0 * (10_000.0 + 2_000.0 + 100.0 * 50_000.0));
        assert!(multicast.sent_bytes < 0.03 * unicast.sent_bytes, "{multicast:?}");
    }

    #[test]
    fn processors_that_are_shared_are_what_is_waited_for() {
        let costs = Costs {
            start: work(60.0, 0.0, 0.0),
            ..costs()
        };
        let lab = |hosts, clones| Cluster {
            hosts,
            clones,
            processors: Processors::Shared(2),
        };
        let sixteen = costs.fork(lab(4, 16), Way::Unicast, true).done_ms;
        let work_ms = 16.0 * 560.0 / 2.0;
        assert!((85.0 + work_ms..140.0 + work_ms).contains(&sixteen), "{sixteen}");
        // Where each host has its own, four clones at each take a quarter of that.
        let own = costs.fork(each(4, 16), Way::Unicast, true).done_ms;
        assert!(
            (85.0 + work_ms / 4.0..140.0 + work_ms / 4.0).contains(&own),
            "{own}"
        );
    }

    #[test]
    fn more_is_never_sooner() {
        let costs = Costs {
            task: work(50.0, 20.0, 3_000.0),
            ..costs()
        };
        for way in [Way::Unicast, Way::Multicast] {
            let done = |hosts, clones| costs.fork(each(hosts, clones), way, true).done_ms;
            let mut last = 0.0;
            for hosts in [1, 2, 4, 8, 16, 32, 64, 128] {
                let now = done(hosts, 2 * hosts);
                assert!(now >= last, "{way:?}, {hosts} hosts: {now} after {last}");
                assert!(done(hosts, 4 * hosts) >= now, "{way:?}, {hosts} hosts");
                assert!(now >= costs.zero_cost_ms(each(hosts, 2 * hosts)), "{hosts} hosts");
                last = now;
            }
        }
        let of = |way| costs.fork(each(128, 128), way, true);
        assert!(of(Way::Multicast).done_ms < of(Way::Unicast).done_ms);
    }

    #[test]
    fn a_thousand_hosts_are_simulated_the_same_each_time() {
        let costs = Costs {
            task: work(50.0, 200.0, 3_000.0),
            ..costs()
        };
        let of = || costs.fork(each(1024, 2048), Way::Unicast, true);
        let first = of();
        assert_eq!(first, of());
        near(first.sent_bytes, 1024.0 * (10_000.0 + 2_000.0 + 200.0 * 3_000.0));
    }
}
