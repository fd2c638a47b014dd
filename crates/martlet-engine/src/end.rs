//! Ending machines: stop, kill, rm; and rename.

use crate::crash;
use crate::engine::{Engine, lock};
use crate::machine::{Machine, Record};
use crate::phase::{Phase, Verb};
use crate::problem::Told;
use crate::state::When;
use martlet_api::{MachineInfo, Problem, ProblemCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between the end we ask for and the one we enforce.
const QUIT_TIMEOUT: Duration = Duration::from_secs(10);

impl Engine {
    /// Asks the guest to shut down; ends it by force when it takes longer than this.
    pub fn stop(self: &Arc<Self>, name: &str, timeout_ms: u64) -> Result<MachineInfo, Problem> {
        let machine = self.find(name)?;
        let _operation = machine.begin("stop")?;
        machine.record().phase.allow(Verb::Stop, name)?;
        if let Some(live) = machine.live() {
            live.expect_end();
            let deadline = Instant::now() + Duration::from_millis(timeout_ms);
            let asked = match live.agent() {
                Some(agent) => agent.shutdown(false).told(),
                None => live.vm.system_powerdown().told(),
            };
            if let Err(problem) = asked {
                tracing::info!(%problem, machine = name, "the guest was not asked to shut down");
            }
            while live.vm.is_alive() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.stop_live(&machine);
        self.update(&machine, When::Now, |record| record.phase = Phase::Stopped)?;
        Ok(machine.info())
    }

    /// Ends a machine at once. Its disk is kept, as after a power failure. Of a machine that is still starting, QEMU
    /// is ended, and the start fails.
    pub fn kill(self: &Arc<Self>, name: &str) -> Result<MachineInfo, Problem> {
        let machine = self.find(name)?;
        // No `begin`: whatever is at work on it is what may have to be ended.
        machine.record().phase.allow(Verb::Stop, name)?;
        if let Some(pid) = machine.starting_pid() {
            self.spawner
                .signal(pid, libc::SIGKILL)
                .map_err(martlet_vm::VmError::from)
                .told()?;
            return self.after_failed_start(&machine);
        }
        if let Some(live) = machine.live() {
            live.expect_end();
            // Not asked for over QMP: a QEMU that hangs does not answer.
            live.vm.kill().told()?;
        }
        self.stop_live(&machine);
        self.update(&machine, When::Now, |record| record.phase = Phase::Stopped)?;
        Ok(machine.info())
    }

    /// A start whose QEMU was killed fails; that was wanted, so the machine is stopped and not failed.
    fn after_failed_start(&self, machine: &Arc<Machine>) -> Result<MachineInfo, Problem> {
        let deadline = Instant::now() + QUIT_TIMEOUT;
        while machine.is_at_work() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let name = machine.record().name;
        // One that nobody would have heard of again is forgotten by its start.
        if self.find(&name).is_ok() && matches!(machine.record().phase, Phase::Failed { .. }) {
            self.update(machine, When::Now, |record| record.phase = Phase::Stopped)?;
        }
        Ok(machine.info())
    }

    /// Forgets a machine and its disk. Its snapshots stay.
    pub fn remove(self: &Arc<Self>, name: &str, force: bool) -> Result<(), Problem> {
        let machine = self.find(name)?;
        let _operation = machine.begin("rm")?;
        if !force {
            machine.record().phase.allow(Verb::Remove, name)?;
        }
        self.stop_live(&machine);
        if let (Some(line), None) = (machine.record().line, machine.record().phase.host())
            && let (Some(lease), Ok(called)) = (line.hold.lease(), line.name())
        {
            self.release(&line.remote, &called, &lease.id);
        }
        self.forget(&machine)
    }

    /// Gives a machine another name. Its guest keeps its host name until it is started again.
    pub fn rename(self: &Arc<Self>, name: &str, new: &str) -> Result<MachineInfo, Problem> {
        martlet_api::names::check_name(new)?;
        let machine = self.find(name)?;
        let _operation = machine.begin("rename")?;
        {
            let mut machines = lock(&self.machines);
            if machines.contains_key(new) {
                return Err(Problem::new(
                    ProblemCode::AlreadyExists,
                    format!("there is a machine {new} already"),
                ));
            }
            machines.remove(name);
            machines.insert(new.to_owned(), machine.clone());
        }
        self.update(&machine, When::Now, |record: &mut Record| {
            record.name = new.to_owned()
        })?;
        Ok(machine.info())
    }

    /// Ends QEMU, if there is one, and withdraws what served it. The phase is the caller's to set, and the record to keep.
    pub(crate) fn stop_live(&self, machine: &Arc<Machine>) {
        if let Some(live) = machine.live() {
            live.expect_end();
        }
        crash::step("end");
        self.end_live(machine);
        crash::step("end");
        self.repin(machine, &machine.change(|record| record.running = None));
    }

    /// Ends QEMU, if there is one, and withdraws what served it.
    pub(crate) fn end_live(&self, machine: &Arc<Machine>) {
        let Some(live) = machine.set_live(None) else {
            return;
        };
        self.keep_trace(&live);
        live.run.keep();
        if let Some(agent) = live.agent() {
            agent.close();
        }
        let ended = |timeout| matches!(live.vm.wait(timeout), Ok(martlet_vm::ChildState::Ended { .. }));
        if live.vm.is_alive() && !ended(Duration::ZERO) && live.vm.quit().is_err() {
            let _ = live.vm.kill();
        }
        if !ended(QUIT_TIMEOUT) {
            tracing::warn!(pid = live.vm.pid(), "QEMU does not quit; it is killed");
            let _ = live.vm.kill();
            ended(QUIT_TIMEOUT);
        }
        let _ = self.spawner.forget(live.vm.pid());
    }
}
