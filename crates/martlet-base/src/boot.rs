//! What a guest with our kernel boots by: kernel, initramfs and command line.

use crate::error::IoContext;
use crate::initramfs::{AGENT_FILE, initramfs};
use crate::kernel::{Kernel, guest_kernel};
use crate::scratch::Unfinished;
use crate::{Artifacts, BaseError, Job};
use martlet_api::InitKind;
use std::path::PathBuf;

/// The suite whose kernel boots what does not come from Debian packages: a stable kernel runs any user space.
pub(crate) const DEFAULT_SUITE: &str = "bookworm";

/// Options of every guest.
///
/// - `rdinit=@…`: see [`AGENT_FILE`].
/// - `noreplace-smp`: on one processor the kernel would otherwise rewrite each of its thousands of locked instructions,
///   0.1 s of a boot under emulation; left alone, its pages are also the same whatever the number of processors.
/// - `panic=-1`: reboot at once, which ends QEMU (`-no-reboot`), so that a panic is seen and not waited for.
/// - `net.ifnames=0`: the one network card is `eth0` in every image.
/// - `tsc=reliable no_timer_check`: a guest that stood still, or whose host was busy, must not take its clock for
///   broken; the agent sets the time after a restore.
/// - `random.trust_cpu=on`: early entropy; the agent reseeds clones.
/// - `init_on_free=0`: zeroing freed pages would touch what free-page reporting is about to give back.
/// - `cryptomgr.notests`: 0.35 s of a boot under emulation.
const COMMON: &str = "console=ttyS0 quiet rw rootfstype=ext4 panic=-1 net.ifnames=0 tsc=reliable no_timer_check \
    noreplace-smp random.trust_cpu=on init_on_free=0 cryptomgr.notests";

/// The disk that every guest of ours has its root on, or on a partition of.
pub(crate) const ROOT_DISK: &str = "/dev/vda";

/// A guest's kernel, once it is known.
pub(crate) struct Boot {
    pub kernel: Kernel,
}

impl Boot {
    pub(crate) fn new(suite: &str, job: &Job) -> Result<Self, BaseError> {
        Ok(Self {
            kernel: guest_kernel(suite, job)?,
        })
    }

    /// Puts kernel and initramfs beside the root disk, whose root file system is the device `root`.
    pub(crate) fn artifacts(
        &self,
        root_disk: PathBuf,
        root: &str,
        init: InitKind,
        origin: String,
        unfinished: &mut Unfinished,
        job: &Job,
    ) -> Result<Artifacts, BaseError> {
        job.stage("making the boot initramfs");
        let kernel = unfinished.add(job.work_dir.join("vmlinux"));
        std::fs::copy(&self.kernel.image, &kernel).during("copy the guest kernel to", &kernel)?;
        let initrd = unfinished.add(job.work_dir.join("initramfs.cpio"));
        std::fs::write(&initrd, initramfs(&self.kernel, &job.tools.agent, job)?).during("write", &initrd)?;
        Ok(Artifacts {
            root_disk,
            kernel: Some(kernel),
            initrd: Some(initrd),
            cmdline: cmdline(init, root),
            init,
            origin,
            kernel_version: Some(self.kernel.release.clone()),
            cmd: Vec::new(),
            env: Vec::new(),
            workdir: None,
            user: None,
        })
    }
}

fn cmdline(init: InitKind, root: &str) -> String {
    let init = match init {
        InitKind::Systemd => "systemd",
        InitKind::Command => "command",
        InitKind::Firmware => unreachable!("what boots by firmware is given no kernel"),
    };
    format!("{COMMON} rdinit={AGENT_FILE} root={root} martlet.init={init}")
}
