//! A fork that is watched: what it took of processors, of the link, and of its parent's memory; and what each part costs by that.

use super::{Hosts, LINK, number};
use martlet_bench::fork_model::{Costs, Work};
use martlet_bench::roam::Site;
use martlet_bench::{BenchError, median, usage};
use serde_json::Value;

/// What is known of a fork when it has returned.
pub(super) struct Watched {
    pub report: Value,
    pub sent_bytes: f64,
    count: f64,
    hosts: f64,
    has_task: bool,
    /// Processor time of the parent's daemon, and of all that ran for clones at other hosts.
    parent_cpu_ms: f64,
    clones_cpu_ms: f64,
    read_objects: f64,
    read_bytes: f64,
}

/// Hosts whose daemons are known by their processes.
pub(super) struct Watch<'a> {
    pub hosts: &'a Hosts,
    parent: u32,
    others: Vec<u32>,
}

impl<'a> Watch<'a> {
    pub fn of(hosts: &'a Hosts) -> Result<Self, BenchError> {
        Ok(Self {
            hosts,
            parent: daemon_of(&hosts.origin)?,
            others: hosts.others.iter().map(daemon_of).collect::<Result<_, _>>()?,
        })
    }

    /// Forks so many clones, at as many hosts as there are. They stay, also when they have done their task.
    pub fn fork(&self, count: u32, task: Option<&str>) -> Result<Watched, BenchError> {
        let hosts = self.hosts.others.len().min(count as usize);
        let others_cpu_ms = || self.others.iter().map(|pid| cpu_ms(*pid)).sum::<f64>();
        let (parent_ms, others_ms) = (cpu_ms(self.parent), others_cpu_ms());
        let before_bytes = self.hosts.origin.sent_bytes()?;
        let with_task = task.map(|task| ["--keep", "--", "sh", "-c", task]);
        let report = self
            .hosts
            .fork(count, hosts, with_task.as_ref().map_or(&[], |args| args))?;
        let sent_bytes = self.hosts.origin.sent_bytes()? - before_bytes;
        let qemus_ms: f64 = clones(&report)
            .filter_map(|clone| clone["machine"]["pid"].as_u64())
            .map(|pid| cpu_ms(pid as u32))
            .sum();
        let mut watched = Watched {
            sent_bytes: sent_bytes as f64,
            count: f64::from(count),
            hosts: hosts as f64,
            has_task: task.is_some(),
            parent_cpu_ms: cpu_ms(self.parent) - parent_ms,
            clones_cpu_ms: qemus_ms + others_cpu_ms() - others_ms,
            read_objects: 0.0,
            read_bytes: 0.0,
            report,
        };
        for site in &self.hosts.others[..hosts] {
            for snapshot in site.run(&["away"])?.as_array().into_iter().flatten() {
                watched.read_objects += number(snapshot, "read_objects");
                watched.read_bytes += number(snapshot, "read_bytes");
            }
        }
        Ok(watched)
    }
}

pub(super) fn clones(report: &Value) -> impl Iterator<Item = &Value> {
    report["clones"].as_array().into_iter().flatten()
}

fn daemon_of(site: &Site) -> Result<u32, BenchError> {
    let pid = site.run(&["version"])?["daemon"]["pid"].as_u64();
    pid.and_then(|pid| u32::try_from(pid).ok())
        .ok_or_else(|| BenchError::Other(format!("{} has no daemon", site.name())))
}

/// Processor time of a process so far; none when it has ended.
pub(super) fn cpu_ms(pid: u32) -> f64 {
    usage::of(pid).map_or(0.0, |usage| usage.cpu.as_secs_f64() * 1e3)
}

/// When the last clone came to this, by the clock of its host.
pub(super) fn last_ms(report: &Value, of: &str) -> f64 {
    let times = clones(report).map(|clone| number(&clone["timeline"], of));
    times.fold(0.0, f64::max)
}

impl Watched {
    /// From the call until hosts began to start clones.
    pub fn begun_ms(&self) -> f64 {
        number(&self.report, "total_ms") - last_ms(&self.report, "first_exec_ms")
    }
}

/// What each part costs, by all forks that were watched. `fetch_ms`: a frame of the parent's host, while nothing else goes on.
pub(super) fn costs(all: &[Watched], lab_hosts: u32, fetch_ms: f64, image_bytes: f64) -> Option<Costs> {
    // The median over forks with or without the task, of one clone or of several.
    let of = |has_task: bool, is_one: Option<bool>, value: &dyn Fn(&Watched) -> f64| {
        let alike = all
            .iter()
            .filter(|fork| fork.has_task == has_task && is_one.is_none_or(|one| one == (fork.count == 1.0)));
        median(&alike.map(value).collect::<Vec<_>>())
    };
    // Of all clones; what is measured of one alone has the beginning and the end of its daemon's work in it.
    let cpu_ms = |has_task| of(has_task, None, &|fork| fork.clones_cpu_ms / fork.count);
    let frames = |has_task| of(has_task, None, &|fork| fork.read_objects / fork.hosts);
    let bytes = |has_task| of(has_task, None, &|fork| fork.read_bytes / fork.hosts);
    // What the parent's host does for each host beside the first.
    let by_host_ms = |has_task| {
        let one = of(has_task, Some(true), &|fork| fork.parent_cpu_ms)?;
        let rest = of(has_task, Some(false), &|fork| {
            (fork.parent_cpu_ms - one) / (fork.hosts - 1.0).max(1.0)
        });
        Some(rest?.max(0.0))
    };
    let (start_frames, start_bytes) = (frames(false)?, bytes(false)?);
    let task_frames = (frames(true)? - start_frames).max(0.0);
    let task_bytes = (bytes(true)? - start_bytes).max(0.0);
    let more_ms = (by_host_ms(true)? - by_host_ms(false)?).max(0.0);
    let each = |value: f64, count: f64| if count > 0.0 { value / count } else { 0.0 };
    let serve_cpu_ms = each(more_ms, task_frames);
    Some(Costs {
        link_mbit: LINK.rate_mbit?,
        lab_processors: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        lab_hosts,
        begin_ms: of(false, Some(true), &Watched::begun_ms)?,
        outline_bytes: of(false, None, &|fork| {
            number(&fork.report, "sent_bytes") / fork.hosts
        })?,
        hand_over_cpu_ms: (by_host_ms(false)? - serve_cpu_ms * start_frames).max(0.0),
        serve_cpu_ms,
        fetch_ms,
        start: Work {
            cpu_ms: cpu_ms(false)?,
            frames: start_frames,
            frame_bytes: each(start_bytes, start_frames),
        },
        task: Work {
            cpu_ms: (cpu_ms(true)? - cpu_ms(false)?).max(0.0),
            frames: task_frames,
            frame_bytes: each(task_bytes, task_frames),
        },
        image_bytes,
    })
}
