//! The end of a machine's network cable that is a tap interface: plugged in when a QEMU that was started ahead becomes the machine.

use super::{RunningVm, VmError};
use crate::spec;
use crate::tap;
use serde_json::json;
use std::io::ErrorKind;
use std::os::fd::AsFd;

const DURING: &str = "plugging in a tap interface";
const TAP: &str = "tap";
const PORT: &str = "tap-port";

impl RunningVm {
    /// Plugs tap interface `name` in. Nobody else may be attached to it.
    pub fn bind_tap(&self, name: &str) -> Result<(), VmError> {
        let tap = tap::attach(name).map_err(|error| {
            VmError::BadSpec(match error.kind() {
                ErrorKind::ResourceBusy => format!("tap interface {name} is in use by another process"),
                ErrorKind::PermissionDenied => {
                    format!("tap interface {name} is not ours to use: {error}")
                }
                _ => format!("tap interface {name}: {error}"),
            })
        })?;
        self.command_with_fds(DURING, "getfd", json!({ "fdname": TAP }), &[tap.as_fd()])?;
        self.command(
            DURING,
            "netdev_add",
            json!({ "type": "tap", "id": TAP, "fd": TAP, "vhost": false }),
        )?;
        let port = json!({ "type": "hubport", "id": PORT, "hubid": spec::HUB, "netdev": TAP });
        self.command(DURING, "netdev_add", port)
            .map(drop)
            .inspect_err(|_| {
                let _ = self.command(DURING, "netdev_del", json!({ "id": TAP }));
            })
    }
}
