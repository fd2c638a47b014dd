//! Which hosts of the fleet could run a machine: those whose QEMU and processor have the hardware that it was saved with.

use crate::engine::Engine;
use crate::machine::HardwareRecord;
use crate::problem::Told;
use martlet_api::Problem;
use martlet_vm::{VmError, compat};
use std::sync::Arc;

impl Engine {
    /// Could a machine with this hardware go on here?
    pub fn could(&self, hardware: &HardwareRecord) -> Result<(), Problem> {
        let offer = self.qemu()?.offer().told()?;
        compat::check(&hardware.to_compat(), &offer, None)
            .map_err(VmError::from)
            .told_as("this host cannot run it")
    }

    /// A refusal, with the hosts of the fleet that would not refuse.
    pub(crate) fn name_hosts_that_could(
        self: &Arc<Self>,
        refused: Problem,
        hardware: &HardwareRecord,
    ) -> Problem {
        let hosts = self.other_hosts().unwrap_or_default();
        let could = |host: &String| {
            let peer = self.peer(host).ok().flatten();
            let asked = peer.map(|peer| peer.post::<_, Result<(), Problem>>("/peer/moves/could", hardware));
            matches!(asked, Some(Ok(Ok(()))))
        };
        let hosts: Vec<String> = hosts.into_iter().filter(could).collect();
        match hosts.is_empty() {
            true => refused,
            false => refused.remediation(format!("hosts that could: {}", hosts.join(", "))),
        }
    }
}
