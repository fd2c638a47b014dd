//! The boot initramfs: the agent, and the modules it loads before it can see the root disk.
//!
//! It is left uncompressed: under emulation the guest would take longer to inflate it than the host takes to hand it
//! over, and the store compresses and deduplicates it anyway.

use crate::cpio::Archive;
use crate::error::IoContext;
use crate::kernel::Kernel;
use crate::modules::name;
use crate::{BaseError, Job};
use std::path::Path;

/// Without these a guest has no disk, no channel to its agent and no network.
const REQUIRED: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_console", "virtio_net"];
/// Kernels have these built in, as modules, or not at all. Order matters: entropy first.
const OPTIONAL: [&str; 5] = ["virtio_rng", "virtio_balloon", "ext4", "vmgenid", "af_packet"];

/// The agent's name in the initramfs, for `rdinit=`. The kernel calls process 1 as it is named there: systemd spares
/// processes whose name begins with `@` when it ends all others, and this way the agent need not start twice.
pub(crate) const AGENT_FILE: &str = "@martlet-agent";

/// An initramfs for `kernel` with `agent` as process 1.
pub fn initramfs(kernel: &Kernel, agent: &Path, job: &Job) -> Result<Vec<u8>, BaseError> {
    let program = std::fs::read(agent).during("read the guest agent", agent)?;
    if !program.starts_with(b"\x7fELF") {
        return Err(BaseError::Invalid(format!(
            "the guest agent {} is not a program",
            agent.display()
        )));
    }
    let mut archive = Archive::new();
    for dir in ["dev", "modules", "proc", "run", "sys", "root"] {
        archive.directory(dir);
    }
    // The kernel opens it for process 1 before anything could mount /dev.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file(AGENT_FILE, 0o755, &program);
    let modules = kernel.modules()?;
    for (number, file) in modules.load_order(&REQUIRED, &OPTIONAL)?.iter().enumerate() {
        archive.file(
            &format!("modules/{number:02}-{}.ko", name(file)),
            0o644,
            &modules.read(file, job)?,
        );
    }
    Ok(archive.finish())
}
