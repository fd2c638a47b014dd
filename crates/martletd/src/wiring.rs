//! Where the rooms are wired together: which engine stands behind the API, and what the keeper is.

use anyhow::{Result, bail};
use martletd::control::Control;
use std::path::Path;
use std::sync::Arc;

/// Opens the engine on a state directory.
pub fn control(state_dir: &Path) -> Result<Arc<dyn Control>> {
    bail!("this build has no engine to open {} with", state_dir.display())
}

/// Runs the keeper: holds the FUSE descriptor and is the parent of every QEMU.
pub fn keeper(socket: &Path) -> Result<()> {
    bail!("this build has no keeper to serve {} with", socket.display())
}
