//! Which hosts of the fleet could run a machine: those whose QEMU and processor have the hardware that it was saved with.

use crate::engine::Engine;
use crate::machine::HardwareRecord;
use crate::problem::Told;
use martlet_api::Problem;
use martlet_vm::{VmError, compat};

impl Engine {
    /// Could a machine with this hardware go on here?
    pub fn could(&self, hardware: &HardwareRecord) -> Result<(), Problem> {
        let offer = self.qemu()?.offer().told()?;
        compat::check(&hardware.to_compat(), &offer, None)
            .map_err(VmError::from)
            .told_as("this host cannot run it")
    }

    /// A refusal, with the hosts of the fleet that would not refuse.
    pub(crate) fn name_hosts_that_could(&self, refused: Problem, hardware: &HardwareRecord) -> Problem {
        let asked = self.ask_hosts(|peer| {
            let answer = peer.post::<_, Result<(), Problem>>("/peer/moves/could", hardware);
            answer.map_err(|error| error.to_string())
        });
        let could = asked
            .unwrap_or_default()
            .into_iter()
            .filter(|(_, answer)| matches!(answer, Some(Ok(Ok(())))));
        let hosts: Vec<String> = could.map(|(host, _)| host.name).collect();
        match hosts.is_empty() {
            true => refused,
            false => refused.remediation(format!("hosts that could: {}", hosts.join(", "))),
        }
    }
}
