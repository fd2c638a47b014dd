//! What goes wrong while operations are at work, and which of their failures that excuses.

use crate::Daemon;
use crate::command::Answer;
use crate::model::{Model, State, World};
use crate::operation::Operation;
use crate::random::Random;
use crate::room::Room;
use std::process::Command;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of martletd; the next command starts another.
    KillDaemon,
    /// `kill -9` of a machine's QEMU.
    KillQemu { machine: String, pid: u64 },
    /// `kill -9` of the keeper; the daemon starts another.
    KillKeeper,
    /// So much is left in the file system for a while, and then there is room again.
    FullDisk { left_bytes: u64, time: Duration },
    /// Writes to the file system wait.
    StalledDisk { time: Duration },
    /// martletd stands still: it answers no page fault, disk request or command.
    StalledDaemon { time: Duration },
}

/// When it happens, after the operations were begun.
#[derive(Debug)]
pub struct Planned {
    pub fault: Fault,
    after: Duration,
}

fn signal(pid: u64, signal: &str) -> bool {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status();
    status.is_ok_and(|status| status.success())
}

fn ms(random: &mut Random, from: usize, to: usize) -> Duration {
    Duration::from_millis((from + random.below(to - from)) as u64)
}

/// Chooses one that is possible now.
pub fn choose(random: &mut Random, model: &Model, world: &World, room: &Room) -> Option<Planned> {
    let running = model
        .machines
        .iter()
        .filter(|(_, machine)| machine.state == State::Running);
    let names: Vec<&String> = running.map(|(name, _)| name).collect();
    let qemu = random.pick(&names).and_then(|name| {
        Some(Fault::KillQemu {
            machine: (*name).clone(),
            pid: world.machines.get(*name)?.pid?,
        })
    });
    let left_bytes = [0, 64, 512, 1024, 3072, 8192][random.below(6)] << 10;
    let full = Fault::FullDisk {
        left_bytes,
        time: ms(random, 1000, 5000),
    };
    let time = ms(random, 300, 2000);
    let mut may = vec![
        (4, Fault::KillDaemon),
        (1, Fault::KillKeeper),
        (4, full),
        (2, Fault::StalledDaemon { time }),
        (if room.can_stall { 2 } else { 0 }, Fault::StalledDisk { time }),
    ];
    may.extend(qemu.map(|qemu| (3, qemu)));
    let fault = random.weighted(&may)?;
    let after = ms(random, 0, 1200);
    Some(Planned { fault, after })
}

impl Fault {
    /// As the report counts it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::KillDaemon => "kill -9 martletd",
            Self::KillQemu { .. } => "kill -9 QEMU",
            Self::KillKeeper => "kill -9 keeper",
            Self::FullDisk { .. } => "full disk",
            Self::StalledDisk { .. } => "stalled disk",
            Self::StalledDaemon { .. } => "stalled martletd",
        }
    }

    /// May the operation fail like this because of it?
    pub fn excuses(&self, operation: &Operation, answer: &Answer) -> bool {
        match self {
            // What has lost the daemon says so; what finds it gone, or not yet back with all machines, too.
            Self::KillDaemon => !["damaged", "no_space", "hangs"].contains(&answer.code.as_str()),
            Self::KillQemu { machine, .. } => {
                let codes = ["hypervisor_failed", "guest_failed", "wrong_state", "busy"];
                operation.machine() == Some(machine) && codes.contains(&answer.code.as_str())
            }
            Self::KillKeeper => operation.needs_keeper() && answer.code == "hypervisor_failed",
            Self::FullDisk { .. } => answer.code == "no_space" && answer.has_way_out,
            Self::StalledDisk { .. } | Self::StalledDaemon { .. } => false,
        }
    }
}

impl Planned {
    /// Lets it happen. Did it?
    pub fn happen(&self, daemon: &Daemon, room: &Room) -> bool {
        if let Fault::FullDisk { left_bytes, time } = self.fault {
            // From the beginning: operations are short.
            let _filled = room.fill(left_bytes);
            std::thread::sleep(time);
            return true;
        }
        std::thread::sleep(self.after);
        let of_daemon = |signal_name| daemon.pid().is_some_and(|pid| signal(pid.into(), signal_name));
        match &self.fault {
            Fault::KillDaemon => of_daemon("-9"),
            // Unless it has ended meanwhile and its number is another's.
            Fault::KillQemu { machine, pid } => daemon.processes(machine).contains(pid) && signal(*pid, "-9"),
            Fault::KillKeeper => match daemon.processes("keeper --socket")[..] {
                [keeper] => daemon.pid().is_some() && signal(keeper, "-9"),
                _ => false,
            },
            Fault::FullDisk { .. } => unreachable!("it has happened"),
            Fault::StalledDisk { time } => {
                room.stall(*time);
                true
            }
            Fault::StalledDaemon { time } => {
                let stopped = of_daemon("-STOP");
                std::thread::sleep(*time);
                stopped && of_daemon("-CONT")
            }
        }
    }
}
