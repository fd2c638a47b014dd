//! Talking to a running guest: commands, files, console, metrics.

use crate::engine::{Engine, lock};
use crate::live::Live;
use crate::machine::{Machine, Record};
use crate::phase::Verb;
use crate::problem::{Tell, Told};
use martlet_agent_api as agent;
use martlet_api::{ExecRequest, GuestUsage, MachineUsage, Problem, ProblemCode};
use martlet_image::PAGE_SIZE;
use martlet_vm::agent::{AgentClient, AgentError, AgentExec};
use martlet_vm::capture::{Mapping, private_pages};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Unpacking the rest of a copy in the guest may take this long.
const COPY_TIMEOUT: Duration = Duration::from_secs(120);

/// Who wants something of a machine that is being checkpointed waits this long.
const PAUSE_PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to start what must not be started while user code is held.
const PAUSE_INTERVAL: Duration = Duration::from_millis(5);

/// An agent that is in the guest, and not yet at hand.
pub fn not_connected(name: &str) -> Problem {
    Problem::new(
        ProblemCode::GuestFailed,
        format!("the agent of machine {name} has not answered yet"),
    )
    .cause("the daemon was started again and is still connecting to it")
    .remediation(format!(
        "try again in a moment; `martlet kill {name}` ends a guest that hangs"
    ))
}

/// Why nothing can be asked of a guest whose agent is not there.
pub(crate) fn no_agent(record: &Record) -> Problem {
    let name = &record.name;
    match record.agent {
        true => not_connected(name),
        false => Problem::new(
            ProblemCode::GuestFailed,
            format!("machine {name} has no agent in its guest"),
        )
        .remediation(format!("`martlet console {name}` connects to its serial console")),
    }
}

impl Engine {
    fn agent_of(self: &Arc<Self>, name: &str) -> Result<(Arc<Live>, AgentClient), Problem> {
        let machine = self.find(name)?;
        machine.wait_while_pausing(PAUSE_PATIENCE);
        let live = machine.live_for(Verb::Exec)?;
        match live.agent() {
            Some(agent) if !agent.is_closed() => Ok((live, agent)),
            Some(_) => {
                let agent = self.connect_agent(&machine.record()).told()?;
                self.take_calls(&machine, &agent);
                *lock(&live.agent) = Some(agent.clone());
                Ok((live, agent))
            }
            None => Err(no_agent(&machine.record())),
        }
    }

    /// Starts a command in the guest. The inner error is the guest's word about the command itself: there is no such
    /// program, or it may not be executed.
    pub fn exec(
        self: &Arc<Self>,
        name: &str,
        request: ExecRequest,
    ) -> Result<Result<AgentExec, Problem>, Problem> {
        if request.argv.first().is_none_or(String::is_empty) {
            return Err(
                Problem::new(ProblemCode::InvalidArgument, "there is no command to run")
                    .remediation(format!("`martlet exec {name} -- COMMAND`")),
            );
        }
        let spec = agent::ExecSpec {
            command: agent::Command {
                argv: request.argv,
                env: request.env,
                cwd: request.cwd,
                user: request.user,
            },
            tty: request.tty.map(|size| agent::TtySize {
                rows: size.rows,
                cols: size.cols,
            }),
            stdin: request.stdin,
        };
        let deadline = Instant::now() + PAUSE_PATIENCE;
        loop {
            let (_, agent) = self.agent_of(name)?;
            match agent.exec(spec.clone()) {
                // A checkpoint has just begun.
                Err(AgentError::Remote(error))
                    if error.kind == agent::RemoteErrorKind::State && Instant::now() < deadline =>
                {
                    std::thread::sleep(PAUSE_INTERVAL);
                }
                Err(error @ AgentError::Remote(_)) => return Ok(Err(error.tell())),
                started => return started.map(Ok).told(),
            }
        }
    }

    /// Writes a file or directory of the guest as a tar stream.
    pub fn get_path(
        self: &Arc<Self>,
        name: &str,
        path: &str,
        tar: &mut (dyn Write + Send),
    ) -> Result<(), Problem> {
        let (_, agent) = self.agent_of(name)?;
        let mut source = agent.read_path(path).told()?;
        copy(&mut source, tar, name)
    }

    /// Unpacks a tar stream into a directory of the guest.
    pub fn put_path(
        self: &Arc<Self>,
        name: &str,
        path: &str,
        tar: &mut (dyn Read + Send),
    ) -> Result<(), Problem> {
        let (_, agent) = self.agent_of(name)?;
        let mut sink = agent.write_path(path).told()?;
        let copied = copy(tar, &mut sink, name);
        // The guest's own reason says more than our broken pipe.
        sink.finish(COPY_TIMEOUT).told()?;
        copied
    }

    /// What machines use.
    pub fn usage(&self) -> Result<Vec<MachineUsage>, Problem> {
        let told = |machine: &Arc<Machine>| {
            let metrics = machine.live()?.agent()?.metrics().ok()?;
            Some(GuestUsage {
                load: metrics.load,
                memory_available_bytes: metrics.memory_available_bytes,
                disk_free_bytes: metrics.disk_free_bytes,
                processes: metrics.processes,
            })
        };
        let usage = |machine: &Arc<Machine>| MachineUsage {
            guest: told(machine),
            ..self.usage_of(machine)
        };
        Ok(self.all().iter().map(usage).collect())
    }

    /// What a machine uses, as its host sees it: its guest is not asked.
    pub(crate) fn usage_of(&self, machine: &Machine) -> MachineUsage {
        let record = machine.record();
        let mut usage = MachineUsage {
            name: record.name,
            state: record.phase.state(),
            cpu_percent: 0.0,
            memory_bytes: record.config.memory_bytes,
            private_bytes: 0,
            faulted_bytes: 0,
            disk_written_bytes: 0,
            guest: None,
        };
        if let Some(live) = machine.live() {
            usage.cpu_percent = cpu_percent(&live);
            usage.private_bytes = own_bytes(live.vm.pid(), &live.memory_path);
            usage.faulted_bytes = live.memory.image.stats().demand_pages * PAGE_SIZE as u64;
            usage.disk_written_bytes = live.disk.usage().data_bytes;
        }
        usage
    }
}

/// Guest memory that is a process's own.
fn own_bytes(pid: u32, memory_file: &Path) -> u64 {
    Mapping::find(pid, memory_file)
        .and_then(|mapping| private_pages(pid, &mapping))
        .map_or(0, |pages| pages.len() * PAGE_SIZE as u64)
}

/// Host CPU since the last look, in percent of one core.
fn cpu_percent(live: &Live) -> f64 {
    let Some(usage) = martlet_vm::usage::of(live.vm.pid()) else {
        return 0.0;
    };
    let now = [
        usage.cpu.as_micros() as u64,
        live.since.elapsed().as_micros() as u64,
    ];
    let before = [
        live.seen_cpu[0].swap(now[0], Ordering::Relaxed),
        live.seen_cpu[1].swap(now[1], Ordering::Relaxed),
    ];
    let (used, passed) = (now[0].saturating_sub(before[0]), now[1].saturating_sub(before[1]));
    if passed == 0 {
        0.0
    } else {
        used as f64 / passed as f64 * 100.0
    }
}

fn copy(from: &mut (impl Read + ?Sized), to: &mut (impl Write + ?Sized), name: &str) -> Result<(), Problem> {
    std::io::copy(from, to).map(drop).map_err(|error| {
        Problem::new(
            ProblemCode::GuestFailed,
            format!("copying to or from machine {name} broke off"),
        )
        .cause(error)
    })
}
