//! What a machine is doing, and what may be asked of it then.
//!
//! ```text
//!              run, start, resume, rollback
//!   (new) ───────────────► Starting ──────────► Running ◄─────┐
//!                             │                 │ │ │  goes on│
//!                             │  QEMU or the    │ │ └─► Pausing
//!                             │  guest failed   │ │       │ suspend: durable, then ended
//!                             ▼                 │ │       ▼
//!                          Failed ◄─────────────┘ │   Suspended ── resume, rollback ──► Starting
//!                             │   QEMU died       │
//!                             │                   └ stop, kill ► Stopped ── start, rollback ──► Starting
//!                             └── start, rollback ──► Starting
//!
//!   Pausing, Suspended ── move, resume --on ──► Given ── the other host has it ──► Moved ── and all of it ──► (forgotten)
//!                                                 └── it does not ──► Running, Suspended
//! ```
//!
//! A phase is persisted with the machine's record before the effect that it announces, so that after a crash the
//! record never promises more than there is: `Starting` and `Pausing` found by a new daemon mean that the step was
//! not finished.

use martlet_api::{MachineState, Problem, ProblemCode};
use serde::{Deserialize, Serialize};

/// A machine's phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// QEMU is being started or the state loaded.
    Starting,
    /// The guest runs.
    Running,
    /// The guest stands still while its state is taken.
    Pausing,
    /// All its state is in its newest snapshot.
    Suspended,
    /// Shut down; its disk is kept.
    Stopped,
    /// It ended against our will.
    Failed {
        /// Why, with QEMU's last words.
        why: String,
    },
    /// Another host was told to go on with it and has not answered yet: it stands still, all of it in its newest snapshot.
    Given {
        /// That host.
        to: String,
        /// Name of that snapshot, if it was made for this.
        made: Option<String>,
    },
    /// Another host goes on with it, and still gets what it left here.
    Moved {
        /// That host.
        to: String,
        /// Name of the snapshot that it gets, if that was made for this: it goes when all of it is there.
        made: Option<String>,
    },
}

/// What can be asked of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Run a command, copy files, read metrics.
    Exec,
    /// Checkpoint, suspend or fork.
    Checkpoint,
    /// Shut down or kill.
    Stop,
    /// Boot from its disk.
    Start,
    /// Go on from the snapshot it was suspended to.
    Resume,
    /// Go back to an earlier snapshot.
    Rollback,
    /// Have another host go on with it.
    Move,
    /// Forget it.
    Remove,
}

impl Phase {
    /// The phase as the API names it.
    pub fn state(&self) -> MachineState {
        match self {
            Self::Starting => MachineState::Starting,
            Self::Running => MachineState::Running,
            Self::Pausing => MachineState::Pausing,
            Self::Suspended => MachineState::Suspended,
            Self::Stopped => MachineState::Stopped,
            Self::Failed { .. } => MachineState::Failed,
            Self::Given { .. } => MachineState::Given,
            Self::Moved { .. } => MachineState::Moved,
        }
    }

    /// The host that goes on with it, or was told to.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Given { to, .. } | Self::Moved { to, .. } => Some(to),
            _ => None,
        }
    }

    /// Is there a QEMU?
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Pausing)
    }

    /// May this be asked of the machine called `name` now?
    pub fn allow(&self, verb: Verb, name: &str) -> Result<(), Problem> {
        let allowed = match verb {
            Verb::Exec | Verb::Checkpoint => matches!(self, Self::Running),
            Verb::Stop => self.is_live(),
            Verb::Start => matches!(self, Self::Stopped | Self::Failed { .. }),
            Verb::Resume => matches!(self, Self::Suspended),
            Verb::Move => matches!(self, Self::Running | Self::Suspended),
            Verb::Rollback => !matches!(
                self,
                Self::Starting | Self::Pausing | Self::Given { .. } | Self::Moved { .. }
            ),
            Verb::Remove => !self.is_live() && self.host().is_none(),
        };
        if allowed {
            return Ok(());
        }
        let (is, remedy) = match self {
            Self::Starting => (
                "still starting",
                format!("wait for it (`martlet inspect {name}`) or `martlet kill {name}`"),
            ),
            Self::Running => (
                "running",
                format!("`martlet suspend {name}`, `martlet stop {name}` or `martlet rm --force {name}`"),
            ),
            Self::Pausing => ("being checkpointed", "try again in a moment".into()),
            Self::Suspended => ("suspended", format!("`martlet resume {name}` first")),
            Self::Stopped => ("stopped", format!("`martlet start {name}` first")),
            Self::Failed { .. } => (
                "failed",
                format!(
                    "`martlet inspect {name}` says why; `martlet start {name}` boots it again, `martlet rollback {name}` goes back to a snapshot"
                ),
            ),
            Self::Given { to, .. } => (
                "given to another host, which has not said yet whether it goes on with it",
                format!(
                    "it goes on there or here as soon as host {to} answers; `martlet rm --force {name}` forgets what is here"
                ),
            ),
            Self::Moved { to, .. } => (
                "gone on with by another host",
                format!("ask host {to}; what it still needs from here goes away when it has come there"),
            ),
        };
        let problem =
            Problem::new(ProblemCode::WrongState, format!("machine {name} is {is}")).remediation(remedy);
        Err(match self {
            Self::Failed { why } => problem.cause(why),
            _ => problem,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_machine_its_phase_and_a_way_out() {
        let failed = Phase::Failed {
            why: "QEMU was killed by signal 9".into(),
        };
        let problem = failed.allow(Verb::Exec, "web").unwrap_err();
        assert_eq!(problem.code, ProblemCode::WrongState);
        assert_eq!(problem.message, "machine web is failed");
        assert_eq!(problem.cause.as_deref(), Some("QEMU was killed by signal 9"));
        assert!(problem.remediation.unwrap().contains("rollback"));
    }

    #[test]
    fn what_is_allowed_when() {
        let phases = [
            Phase::Starting,
            Phase::Running,
            Phase::Pausing,
            Phase::Suspended,
            Phase::Stopped,
            Phase::Failed { why: String::new() },
            Phase::Given {
                to: "b".into(),
                made: None,
            },
            Phase::Moved {
                to: "b".into(),
                made: None,
            },
        ];
        let allowed = |verb| {
            phases
                .iter()
                .map(|p| p.allow(verb, "m").is_ok())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            allowed(Verb::Exec),
            [false, true, false, false, false, false, false, false]
        );
        assert_eq!(
            allowed(Verb::Checkpoint),
            [false, true, false, false, false, false, false, false]
        );
        assert_eq!(
            allowed(Verb::Stop),
            [true, true, true, false, false, false, false, false]
        );
        assert_eq!(
            allowed(Verb::Start),
            [false, false, false, false, true, true, false, false]
        );
        assert_eq!(
            allowed(Verb::Resume),
            [false, false, false, true, false, false, false, false]
        );
        assert_eq!(
            allowed(Verb::Rollback),
            [false, true, false, true, true, true, false, false]
        );
        assert_eq!(
            allowed(Verb::Move),
            [false, true, false, true, false, false, false, false]
        );
        assert_eq!(
            allowed(Verb::Remove),
            [false, false, false, true, true, true, false, false]
        );
    }
}
