//! A lab: a switch that hosts are plugged into.

use crate::host::{self, Host};
use crate::relay::Relay;
use crate::{LabError, Link, Result};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// See the crate's documentation.
pub struct Lab {
    relay: Arc<Relay>,
}

impl Lab {
    /// A lab without hosts. An error if this machine cannot have one: it says what lacks.
    pub fn new() -> Result<Self> {
        let lacking = |what| move |source| LabError::Lacking { what, source };
        Command::new("ip")
            .arg("-V")
            .stdout(Stdio::null())
            .status()
            .map_err(lacking("`ip` (package iproute2)"))?;
        host::namespace()?;
        let relay = Relay::start().map_err(lacking("one more thread"))?;
        Ok(Self {
            relay: Arc::new(relay),
        })
    }

    /// Plugs a new host in, which is up when this returns: 192.0.2.1 is the first. It stays as long as the lab or any host
    /// of it does.
    pub fn host(&self, name: &str, link: Link) -> Result<Host> {
        Host::new(self.relay.clone(), name, link)
    }

    /// Whether the switch carries multicast, as it does unless told otherwise. Broadcasts go through all the same.
    pub fn set_multicast(&self, is_carried: bool) -> Result<()> {
        let changed = self.relay.change(move |switch| switch.has_multicast = is_carried);
        changed.map_err(|source| LabError::Failed {
            host: "the switch".into(),
            action: "change what it carries".into(),
            source,
        })
    }
}
