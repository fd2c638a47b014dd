//! Forking: a checkpoint, then N starts from it, each under an identity of its own.

use crate::crash;
use crate::engine::Engine;
use crate::identity;
use crate::launch::{DiskFrom, Who, no_memory, now_unix_ms};
use crate::machine::{Config, Machine, Record};
use crate::phase::{Phase, Verb};
use crate::problem::Told;
use crate::run::agentless;
use martlet_api::{
    CheckpointRequest, CloneResult, ForkReport, ForkRequest, Problem, ProblemCode, Progress, ProgressSink,
    ProgressUnit, Timeline,
};
use martlet_image::{SnapshotId, SnapshotRecord};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Most clones in one fork.
const CLONES_MAX: u32 = 1000;
/// Clones started at a time for each processor of the host: more only compete.
const STARTS_PER_CPU: usize = 2;

/// What all clones of a fork have in common.
struct Family {
    id: SnapshotId,
    snapshot: SnapshotRecord,
    source: String,
    prefix: String,
    first_number: u64,
    requested: Instant,
}

impl Engine {
    /// Starts clones of a running machine (after a checkpoint of it; it goes on) or of a snapshot. That a clone fails is
    /// told in its result, and harms no other.
    pub fn fork(
        self: &Arc<Self>,
        source: &str,
        request: ForkRequest,
        progress: ProgressSink<'_>,
    ) -> Result<ForkReport, Problem> {
        let requested = Instant::now();
        if request.count == 0 || request.count > CLONES_MAX {
            return Err(Problem::new(
                ProblemCode::InvalidArgument,
                format!("{} clones are not possible", request.count),
            )
            .remediation(format!("ask for 1 to {CLONES_MAX} with -n")));
        }
        let (id, pause_ms, prefix) = match self.find(source) {
            Ok(machine) => {
                let operation = machine.begin("fork")?;
                let live = machine.live_for(Verb::Checkpoint)?;
                if live.agent().is_none() && !machine.record().agent && !request.allow_agentless {
                    return Err(agentless(&format!("machine {source}")));
                }
                let tag = format!("fork-{}", self.state.next(&format!("fork of {source}")).told()?);
                let checkpoint = CheckpointRequest {
                    tag: Some(tag),
                    note: Some(format!("forked into {} clones", request.count)),
                    method: request.method,
                    ..CheckpointRequest::default()
                };
                crash::step("fork");
                let report = self.checkpoint_held(&machine, &operation, checkpoint, progress)?;
                let id = report.snapshot.parse().expect("the engine's own snapshot id");
                (id, report.pause_ms, source.to_owned())
            }
            Err(_) => {
                let (id, snapshot) = self.snapshot_named(source)?;
                if snapshot.memory.is_none() {
                    return Err(no_memory(&id));
                }
                if !snapshot.agent && !request.allow_agentless {
                    return Err(agentless(&format!("snapshot {source}")));
                }
                (id, 0.0, snapshot.machine)
            }
        };
        crash::step("fork");
        let prefix = request.prefix.clone().unwrap_or(prefix);
        martlet_api::names::check_name(&format!("{prefix}-{}", request.count))?;
        // Held until every clone holds it itself.
        let _pin = self.store.pin(id, "a fork under way").told()?;
        let family = Family {
            id,
            snapshot: self.store.snapshot(&id).told()?,
            source: source.to_owned(),
            first_number: self.state.take("machine", u64::from(request.count)).told()?,
            prefix,
            requested,
        };
        crash::step("fork");
        let clones = self.start_clones(&family, &request, progress);
        crash::step("fork");
        Ok(ForkReport {
            snapshot: id.to_string(),
            pause_ms,
            total_ms: requested.elapsed().as_secs_f64() * 1e3,
            clones,
        })
    }

    fn start_clones(
        self: &Arc<Self>,
        family: &Family,
        request: &ForkRequest,
        progress: ProgressSink<'_>,
    ) -> Vec<CloneResult> {
        let workers = std::thread::available_parallelism().map_or(2, |n| n.get()) * STARTS_PER_CPU;
        let (next, done) = (AtomicU32::new(1), AtomicU64::new(0));
        let total = Some(u64::from(request.count));
        let work = || {
            let mut results = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index > request.count {
                    return results;
                }
                results.push(self.start_clone(family, request, index));
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                progress(Progress {
                    stage: "starting clones".into(),
                    done,
                    total,
                    unit: ProgressUnit::Items,
                });
            }
        };
        let mut clones: Vec<CloneResult> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers.min(request.count as usize))
                .map(|_| scope.spawn(work))
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap_or_default())
                .collect()
        });
        clones.sort_by_key(|clone| clone.index);
        clones
    }

    fn start_clone(self: &Arc<Self>, family: &Family, request: &ForkRequest, index: u32) -> CloneResult {
        let name = format!("{}-{index}", family.prefix);
        let mut timeline = Timeline::default();
        let started = self.try_clone(family, request, index, &name);
        let (machine, problem) = match started {
            Ok(machine) => {
                timeline = machine.record().timeline;
                (Some(machine.info()), None)
            }
            Err(problem) => (None, Some(problem)),
        };
        CloneResult {
            index,
            name,
            machine,
            timeline,
            problem,
        }
    }

    fn try_clone(
        self: &Arc<Self>,
        family: &Family,
        request: &ForkRequest,
        index: u32,
        name: &str,
    ) -> Result<Arc<Machine>, Problem> {
        let snapshot = &family.snapshot;
        let number = family.first_number + u64::from(index - 1);
        let saved = snapshot.hardware.as_ref().ok_or_else(|| {
            Problem::new(
                ProblemCode::Damaged,
                format!(
                    "snapshot {} does not say what hardware it needs",
                    family.id.short()
                ),
            )
        })?;
        let config: Config = serde_json::from_value(saved.config.clone()).map_err(|error| {
            Problem::new(
                ProblemCode::Damaged,
                format!(
                    "the configuration in snapshot {} cannot be read",
                    family.id.short()
                ),
            )
            .cause(error)
        })?;
        let config = Config {
            // A port of the host is one machine's.
            ports: crate::run::pick_ports(
                &config
                    .ports
                    .iter()
                    .map(|port| martlet_api::PortForward {
                        host_port: 0,
                        ..*port
                    })
                    .collect::<Vec<_>>(),
            )?,
            // So is a tap interface.
            tap: None,
            ..config
        };
        let record = Record {
            id: identity::machine_id(),
            name: name.to_owned(),
            hostname: name.to_owned(),
            number,
            from: family.source.clone(),
            created_unix_ms: now_unix_ms(),
            phase: Phase::Starting,
            generation: snapshot.generation + 1,
            snapshot: Some(family.id),
            disk_base: family.id,
            disk_number: 1,
            run_number: 0,
            running: None,
            agent: false,
            timeline: Timeline::default(),
            hardware: crate::run::planned_hardware(&config, snapshot),
            undo: None,
            awaited: true,
            line: None,
            config,
        };
        crash::step("fork");
        let machine = self.add(record.clone())?;
        crash::step("fork");
        let _operation = machine.begin("fork")?;
        self.repin(&machine, &record);
        crash::step("fork");
        let who = Who::Clone {
            parent: snapshot.machine_id.clone(),
            index,
        };
        let started = self.disk_of(snapshot).and_then(|disk| {
            self.launch_machine(
                &machine,
                family.id,
                snapshot,
                who,
                DiskFrom::New(disk),
                family.requested,
            )?;
            crash::step("fork");
            self.probe(&machine, request.probe.as_ref(), family.requested, &|_| ())
        });
        match started {
            Ok(()) => Ok(machine),
            Err(problem) => {
                // Nothing of a clone that failed is left.
                self.stop_live(&machine);
                let _ = self.forget(&machine); // logged
                Err(problem)
            }
        }
    }
}
