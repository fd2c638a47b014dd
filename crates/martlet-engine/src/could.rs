//! Which hosts of the fleet could run a machine: those whose QEMU and processor have the hardware that it was saved with.

use crate::engine::Engine;
use crate::machine::HardwareRecord;
use crate::problem::Told;
use martlet_api::{Problem, ProblemCode};
use martlet_vm::{VmError, compat};

impl Engine {
    /// Could a machine with this hardware go on here?
    pub fn could(&self, hardware: &HardwareRecord) -> Result<(), Problem> {
        let offer = self.qemu()?.offer().told()?;
        compat::check(&hardware.to_compat(), &offer, None)
            .map_err(VmError::from)
            .told_as("this host cannot run it")
    }

    /// The same of one that another host has.
    pub fn could_take(&self, hardware: &HardwareRecord) -> Result<(), Problem> {
        self.check_takes()?;
        self.could(hardware)
    }

    /// Are machines of other hosts taken at all?
    pub(crate) fn check_takes(&self) -> Result<(), Problem> {
        match self.options.takes_machines {
            true => Ok(()),
            false => Err(Problem::new(
                ProblemCode::PermissionDenied,
                "this host takes no machines from other hosts",
            )
            .remediation("choose another one, or start its martletd without MARTLET_TAKE=no")),
        }
    }

    /// The other hosts of the fleet that answer and could.
    pub(crate) fn hosts_that_could(&self, hardware: &HardwareRecord) -> Result<Vec<String>, Problem> {
        let asked = self.ask_hosts(|peer| {
            let answer = peer.post::<_, Result<(), Problem>>("/peer/moves/could", hardware);
            answer.map_err(|error| error.to_string())
        })?;
        let could = asked
            .into_iter()
            .filter(|(_, answer)| matches!(answer, Some(Ok(Ok(())))));
        Ok(could.map(|(host, _)| host.name).collect())
    }

    /// A refusal, with the hosts of the fleet that would not refuse. Others are not asked about what the user has asked for.
    pub(crate) fn name_hosts_that_could(&self, refused: Problem, hardware: &HardwareRecord) -> Problem {
        let hosts = self.hosts_that_could(hardware).unwrap_or_default();
        match hosts.is_empty() {
            true => refused,
            false => {
                let could = format!("hosts that could: {}", hosts.join(", "));
                let remedy = match &refused.remediation {
                    Some(remedy) => format!("{remedy}; {could}"),
                    None => could,
                };
                refused.remediation(remedy)
            }
        }
    }
}
