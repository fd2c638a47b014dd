//! Numbers about the engine, for monitoring.

use crate::engine::Engine;
use crate::problem::Told;
use martlet_api::{MachineInfo, Problem};
use std::collections::BTreeMap;

/// What monitoring wants to know.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Size of the packs.
    pub pack_bytes: u64,
    /// Bytes in them that nothing refers to.
    pub garbage_bytes: u64,
    /// Frames found decoded.
    pub pager_hits: u64,
    /// Frames fetched from the store.
    pub pager_fetches: u64,
    /// Their content.
    pub pager_fetched_bytes: u64,
    /// What frames took on the wire that were sent to several hosts at once.
    pub multicast_sent_bytes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Machines by state.
    pub machines: BTreeMap<String, u64>,
}

impl Engine {
    /// All machines.
    pub fn machines(&self) -> Vec<MachineInfo> {
        self.all().iter().map(|machine| machine.info()).collect()
    }

    /// One machine.
    pub fn machine(&self, name: &str) -> Result<MachineInfo, Problem> {
        Ok(self.find(name)?.info())
    }

    /// How many processes the keeper keeps.
    pub fn keeper_children(&self) -> Result<usize, Problem> {
        Ok(self
            .keeper
            .children()
            .map_err(martlet_vm::VmError::from)
            .told()?
            .len())
    }

    /// Numbers for monitoring. What cannot be had is zero: a monitor is no place for errors.
    pub fn facts(&self) -> Facts {
        let usage = self.store.usage().unwrap_or_default();
        let pager = self.pager.stats();
        let mut machines = BTreeMap::new();
        for machine in self.machines() {
            *machines
                .entry(format!("{:?}", machine.state).to_lowercase())
                .or_default() += 1;
        }
        Facts {
            pack_bytes: usage.pack_bytes,
            garbage_bytes: usage.garbage_bytes,
            pager_hits: pager.hits,
            pager_fetches: pager.fetches,
            pager_fetched_bytes: pager.fetched_bytes,
            multicast_sent_bytes: self.multicast_sent().wire_bytes,
            snapshots: self.store.snapshots().len() as u64,
            machines,
        }
    }
}
