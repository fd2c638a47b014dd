//! Watching over running machines: QEMU's end is seen at once, and what a run touched is kept as its snapshot's trace.

use crate::engine::Engine;
use crate::launch::{LOAD_PAGES, Who};
use crate::live::Live;
use crate::machine::Machine;
use crate::phase::Phase;
use crate::state::When;
use martlet_image::{Manifest, PageLocation, Trace};
use martlet_vm::process::{tail_since, trim};
use martlet_vm::spec::{CONSOLE_LOG, STDERR_LOG};
use martlet_vm::{ChildState, EndReason, VmEvent};
use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A run's first touches up to this age are what the next start will want first.
const TRACE_AGE: Duration = Duration::from_secs(10);
/// What a machine of this age has of its memory, the next start will want at once: first commands are in it.
const START_AGE: Duration = Duration::from_secs(2);
/// Most pages kept of a trace: 64 MiB.
const TRACE_PAGES: usize = 16384;
/// So many pages that a run wrote are little: 16 MiB.
const WRITTEN_FIRST_PAGES: usize = 4096;
/// Console and QEMU may say this much before the older half goes.
const LOG_BYTES: u64 = 8 << 20;
/// How often a machine's logs are looked at.
const LOOK_AT_LOGS: Duration = Duration::from_secs(10);
/// A kernel's panic with all its traces is found within this much of the console's end.
const PANIC_BYTES: usize = 32 << 10;
/// A machine that ends so soon after its start is perhaps in a loop;
const SOON: Duration = Duration::from_secs(60);
/// it is when it does so this often, and is not started again.
const ENDS_MAX: u32 = 3;

impl Engine {
    /// Starts watching a machine that has just become alive.
    pub(crate) fn watch(self: &Arc<Self>, machine: &Arc<Machine>, live: &Arc<Live>) {
        let events = live.vm.events();
        // Weak: a watcher must not keep alive what it watches.
        let (engine, machine, live) = (
            Arc::downgrade(self),
            Arc::downgrade(machine),
            Arc::downgrade(live),
        );
        let watcher = move || {
            let begun = Instant::now();
            let (mut started, mut traced) = (false, false);
            loop {
                let left = match (started, traced) {
                    (false, _) => START_AGE.saturating_sub(begun.elapsed()),
                    (true, false) => TRACE_AGE.saturating_sub(begun.elapsed()),
                    (true, true) => LOOK_AT_LOGS,
                };
                match events.recv_timeout(left) {
                    Ok(VmEvent::Ended) | Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                    Ok(_) => {}
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) if !started => {
                        started = true;
                        if let Some(live) = live.upgrade() {
                            live.start_pages();
                        }
                    }
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) if !traced => {
                        traced = true;
                        if let (Some(engine), Some(live)) = (engine.upgrade(), live.upgrade()) {
                            engine.keep_trace(&live);
                        }
                    }
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                        if let (Some(engine), Some(machine)) = (engine.upgrade(), machine.upgrade()) {
                            engine.trim_logs(&machine);
                        }
                    }
                }
            }
            ended(&engine, &machine, &live);
        };
        if let Err(error) = std::thread::Builder::new().name("watch".into()).spawn(watcher) {
            tracing::warn!(%error, "a machine is not watched: its end will be seen late");
        }
    }

    /// Adds what a run touched to the trace of the snapshot it started from.
    pub(crate) fn keep_trace(&self, live: &Live) {
        let Some(id) = live.memory.snapshot else { return };
        let known = self.trace(&id).map_or(0, |trace| trace.pages().len());
        let trace = self.touched(live);
        if trace.pages().len() > known
            && let Err(error) = self.state.put_trace(&id.to_string(), &trace.encode())
        {
            tracing::warn!(%error, "a trace was not kept");
        }
    }

    /// What earlier runs of a run's snapshot touched, and then it.
    pub(crate) fn touched(&self, live: &Live) -> Trace {
        let known = live.memory.snapshot.and_then(|id| self.trace(&id));
        let mut pages = known.map(|trace| trace.pages().to_vec()).unwrap_or_default();
        let known: HashSet<u32> = pages.iter().copied().collect();
        let run = live.memory.image.trace();
        pages.extend(run.pages().iter().filter(|page| !known.contains(page)));
        pages.truncate(TRACE_PAGES);
        Trace::new(pages)
    }

    /// What the next run will want first, wherever that is: what this run touched and what it wrote. What was touched before
    /// the guest ran comes first of all. Then what was written, unless it is much: of a page that was handed over with others the
    /// trace says nothing, and what was written is mostly that.
    pub(crate) fn wanted_next(&self, live: &Live, now: &Manifest) -> Trace {
        if live.memory.snapshot.is_none() {
            return Trace::default(); // it was booted, which says nothing of a resume
        }
        let touched = self.touched(live);
        let before = live.memory.image.manifest();
        let written = now.stored_pages().filter(|(page, frame, slot)| {
            before.locate(*page)
                != PageLocation::Frame {
                    frame: *frame,
                    slot: *slot,
                }
        });
        let written = written.filter_map(|(page, _, _)| u32::try_from(page).ok());
        let written: Vec<u32> = written.take(TRACE_PAGES).collect();
        let touched = touched.pages();
        let (at_load, later) = touched.split_at(touched.len().min(LOAD_PAGES));
        let parts = match written.len() <= WRITTEN_FIRST_PAGES {
            true => [at_load, &written, later],
            false => [at_load, later, &written],
        };
        let mut known = HashSet::new();
        let mut pages = parts.concat();
        pages.retain(|page| known.insert(*page));
        pages.truncate(TRACE_PAGES);
        Trace::new(pages)
    }

    fn trim_logs(&self, machine: &Machine) {
        let run = self.run_dir(&machine.record());
        for log in [CONSOLE_LOG, STDERR_LOG] {
            // One that cannot be trimmed grows on: the machine's run is worth more.
            if let Err(error) = trim(&run.join(log), LOG_BYTES)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::debug!(%error, log, "a log was not trimmed");
            }
        }
    }

    /// QEMU has ended and nobody asked for it.
    fn ended_by_itself(self: &Arc<Self>, machine: &Arc<Machine>, live: Arc<Live>) {
        let record = machine.record();
        if record.phase.host().is_some() {
            // All of it is in its newest snapshot, and another host says whose it is.
            return self.stop_live(machine);
        }
        let reason = live.vm.end_reason();
        let status = match live.vm.wait(Duration::from_secs(5)) {
            Ok(ChildState::Ended { status, .. }) => status.to_string(),
            _ => "ended".into(),
        };
        let log = self.run_dir(&record).join(CONSOLE_LOG);
        let console = tail_since(&log, live.console_begin_bytes, PANIC_BYTES);
        let panic = console
            .lines()
            .rev()
            .find(|line| line.contains("Kernel panic"))
            .map(str::to_owned);
        let last_words = live.vm.last_words();
        let age = live.since.elapsed();
        self.end_live(machine);
        let again = machine.count_end(age < SOON) < ENDS_MAX;
        let phase = match (reason, &panic) {
            (Some(EndReason::GuestShutdown), _) => Phase::Stopped,
            (_, Some(panic)) => Phase::Failed {
                why: format!("the guest's kernel panicked: {}", panic.trim()),
            },
            _ if live.vm.has_panicked() => Phase::Failed {
                why: "the guest's kernel panicked, without a word on its console".into(),
            },
            (Some(EndReason::GuestReset), None) if again => Phase::Starting,
            (Some(EndReason::GuestReset), None) => Phase::Failed {
                why: format!("the guest reboots in a loop: {ENDS_MAX} times, each soon after its start"),
            },
            _ => Phase::Failed {
                why: match last_words.trim() {
                    "" => format!("QEMU {status}"),
                    words => format!("QEMU {status}; its last words: {words}"),
                },
            },
        };
        let how = match &phase {
            Phase::Starting => Some(Restart::Boot),
            Phase::Failed { .. } if record.config.restart && again => Some(Restart::Checkpoint),
            _ => None,
        };
        self.after_end(machine, live, phase, how);
    }

    fn after_end(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        live: Arc<Live>,
        phase: Phase,
        how: Option<Restart>,
    ) {
        let name = machine.record().name;
        tracing::warn!(machine = name, ?phase, "a machine has ended");
        let ended = phase.clone();
        if let Err(problem) = self.update(machine, When::Now, |record| {
            record.phase = phase;
            record.running = None;
        }) {
            tracing::error!(%problem, machine = name, "its end could not be recorded");
        }
        // With it goes the hold on the disk, which a restart takes again.
        drop(live);
        if let Some(how) = how {
            self.restart(machine, &ended, how);
        }
    }

    /// Starts a machine again that is in phase `ended` since its QEMU ended.
    fn restart(self: &Arc<Self>, machine: &Arc<Machine>, ended: &Phase, how: Restart) {
        // What was at work on it when it ended is about to fail.
        let _operation = loop {
            match machine.begin("restart") {
                Ok(operation) => break operation,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let record = machine.record();
        if record.phase != *ended {
            return; // somebody else has decided what becomes of it
        }
        let failed = Phase::Failed {
            why: "it could not be restarted".into(),
        };
        let restarted = match (how, record.snapshot) {
            (Restart::Checkpoint, Some(id)) => {
                self.restore_in_place(machine, id, Who::Same, Instant::now(), failed)
            }
            _ => self.boot_again(machine, Instant::now()),
        };
        match restarted {
            Ok(()) => tracing::info!(machine = record.name, "restarted"),
            Err(problem) => {
                tracing::error!(%problem, machine = record.name, "it could not be restarted");
                let kept = self.update(machine, When::Now, |record| {
                    if matches!(record.phase, Phase::Starting) {
                        let why = format!("it could not be restarted: {problem}");
                        record.phase = Phase::Failed { why };
                    }
                });
                if let Err(problem) = kept {
                    tracing::error!(%problem, machine = record.name, "that could not be recorded");
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Restart {
    /// From the disk it has.
    Boot,
    /// From its newest checkpoint, if it has one.
    Checkpoint,
}

fn ended(engine: &Weak<Engine>, machine: &Weak<Machine>, live: &Weak<Live>) {
    let (Some(engine), Some(machine), Some(live)) = (engine.upgrade(), machine.upgrade(), live.upgrade())
    else {
        return;
    };
    if !live.expect_end() {
        return;
    }
    engine.ended_by_itself(&machine, live);
}
