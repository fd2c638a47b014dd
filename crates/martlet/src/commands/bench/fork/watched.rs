//! A fork that is watched: what it took of processors, of the link, and of its parent's memory; and what each part costs by that.

use super::{Hosts, LINK, PARENT, number};
use martlet_bench::fork_model::{Costs, Work};
use martlet_bench::roam::Site;
use martlet_bench::{BenchError, median, usage};
use serde_json::Value;

/// Two pieces of 64 objects each are on their way to a host that gets what it lacks.
const AHEAD_FRAMES: u32 = 128;

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
}

/// What a clone needs of its parent's memory, when nothing comes but what it reads.
pub(super) struct Needed {
    start: Came,
    /// With the start.
    task: Came,
    /// Processor time of the parent's daemon for all of it.
    parent_cpu_ms: f64,
}

#[derive(Clone, Copy)]
struct Came {
    objects: f64,
    bytes: f64,
}

impl Came {
    fn at(site: &Site) -> Result<Self, BenchError> {
        let mut came = Self {
            objects: 0.0,
            bytes: 0.0,
        };
        for snapshot in site.run(&["away"])?.as_array().into_iter().flatten() {
            came.objects += number(snapshot, "read_objects");
            came.bytes += number(snapshot, "read_bytes");
        }
        Ok(came)
    }
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
        Ok(Watched {
            sent_bytes: sent_bytes as f64,
            count: f64::from(count),
            hosts: hosts as f64,
            has_task: task.is_some(),
            parent_cpu_ms: cpu_ms(self.parent) - parent_ms,
            clones_cpu_ms: qemus_ms + others_cpu_ms() - others_ms,
            report,
        })
    }

    /// Starts a clone at a host that has nothing, and has it do the task.
    pub fn needs(&self, task: &str, round: usize) -> Result<Needed, BenchError> {
        let (origin, reader) = (&self.hosts.origin, &self.hosts.reader);
        // It stays: the parent's memory is on top of it.
        let tag = format!("needed{round}");
        origin.run(&["checkpoint", PARENT, "--tag", &tag])?;
        let snapshot = format!("{PARENT}:{tag}");
        let parent_ms = cpu_ms(self.parent);
        let clone = [
            "clone",
            "--policy",
            "demand",
            "--name",
            "needs",
            origin.name(),
            &snapshot,
        ];
        reader.run(&clone)?;
        reader.exec("needs", "true")?;
        let start = Came::at(reader)?;
        reader.exec("needs", task)?;
        let needed = Needed {
            start,
            task: Came::at(reader)?,
            parent_cpu_ms: cpu_ms(self.parent) - parent_ms,
        };
        reader.run(&["rm", "--force", "needs"])?;
        reader.run(&["rmi", &snapshot])?;
        reader.run(&["gc"])?;
        Ok(needed)
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

/// What each part costs. `fetch_ms`: a frame of the parent's host, while nothing else goes on; `outline_bytes`: what a host that knows
/// nothing is sent.
pub(super) fn costs(
    forks: &[Watched],
    needed: &[Needed],
    lab_hosts: u32,
    (fetch_ms, outline_bytes): (f64, f64),
    image_bytes: f64,
) -> Option<Costs> {
    // Medians of forks with or without the task, and of what was needed.
    let of_forks = |has_task: bool, value: &dyn Fn(&Watched) -> f64| {
        let alike = forks.iter().filter(|fork| fork.has_task == has_task);
        median(&alike.map(value).collect::<Vec<_>>())
    };
    let of_needed = |value: &dyn Fn(&Needed) -> f64| median(&needed.iter().map(value).collect::<Vec<_>>());
    let cpu_ms = |has_task| of_forks(has_task, &|fork| fork.clones_cpu_ms / fork.count);
    let one = forks.iter().filter(|fork| !fork.has_task && fork.count == 1.0);
    let (begun, parent): (Vec<f64>, Vec<f64>) = one.map(|fork| (fork.begun_ms(), fork.parent_cpu_ms)).unzip();
    let one_cpu_ms = median(&parent)?;
    let more = forks.iter().filter(|fork| !fork.has_task && fork.hosts > 1.0);
    let by_host: Vec<f64> = more
        .map(|fork| (fork.parent_cpu_ms - one_cpu_ms) / (fork.hosts - 1.0))
        .collect();
    let each = |value: f64, count: f64| if count > 0.0 { value / count } else { 0.0 };
    let work = |cpu_ms: f64, frames: f64, bytes: f64| Work {
        cpu_ms: cpu_ms.max(0.0),
        frames,
        frame_bytes: each(bytes, frames),
    };
    Some(Costs {
        link_mbit: LINK.rate_mbit?,
        lab_processors: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        lab_hosts,
        begin_ms: median(&begun)?,
        outline_bytes,
        hand_over_cpu_ms: median(&by_host).unwrap_or(0.0).max(0.0),
        serve_cpu_ms: of_needed(&|needed| each(needed.parent_cpu_ms, needed.task.objects))?,
        fetch_ms,
        ahead_frames: AHEAD_FRAMES,
        start: work(
            cpu_ms(false)?,
            of_needed(&|needed| needed.start.objects)?,
            of_needed(&|needed| needed.start.bytes)?,
        ),
        task: work(
            cpu_ms(true)? - cpu_ms(false)?,
            of_needed(&|needed| needed.task.objects - needed.start.objects)?,
            of_needed(&|needed| needed.task.bytes - needed.start.bytes)?,
        ),
        image_bytes,
    })
}
