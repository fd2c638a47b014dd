//! The cable of a machine's second network card: datagrams of unix sockets, to and from the switch of its family's network.

use super::{RunningVm, VmError};
use crate::spec;
use serde_json::json;
use std::path::Path;

const DURING: &str = "plugging in the family's network";
const CABLE: &str = "family";
const PORT: &str = "family-port";

impl RunningVm {
    /// Plugs in the network of its family: QEMU makes socket `own` and reads frames there, and sends them to socket `to`, which
    /// may come and go. (QEMU, `-netdev dgram`.)
    pub fn bind_family(&self, own: &Path, to: &Path) -> Result<(), VmError> {
        let cable = json!({
            "type": "dgram",
            "id": CABLE,
            "local": { "type": "unix", "path": own },
            "remote": { "type": "unix", "path": to },
        });
        self.command(DURING, "netdev_add", cable)?;
        let port = json!({ "type": "hubport", "id": PORT, "hubid": spec::FAMILY_HUB, "netdev": CABLE });
        self.command(DURING, "netdev_add", port)
            .map(drop)
            .inspect_err(|_| {
                let _ = self.command(DURING, "netdev_del", json!({ "id": CABLE }));
            })
    }
}
