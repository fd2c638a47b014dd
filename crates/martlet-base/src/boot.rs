//! What a guest with our kernel boots by: kernel, initramfs and command line.

use crate::error::IoContext;
use crate::initramfs::initramfs;
use crate::kernel::{Kernel, guest_kernel};
use crate::scratch::Unfinished;
use crate::{Artifacts, BaseError, Job};
use martlet_api::InitKind;
use std::path::PathBuf;

/// The suite whose kernel boots what does not come from Debian packages: a stable kernel runs any user space.
pub(crate) const DEFAULT_SUITE: &str = "bookworm";

/// Options of every guest.
///
/// - `panic=-1`: reboot at once, which ends QEMU (`-no-reboot`), so that a panic is seen and not waited for.
/// - `net.ifnames=0`: the one network card is `eth0` in every image.
/// - `tsc=reliable no_timer_check`: a guest that stood still, or whose host was busy, must not take its clock for
///   broken; the agent sets the time after a restore.
/// - `random.trust_cpu=on`: early entropy; the agent reseeds clones.
/// - `init_on_free=0`: zeroing freed pages would touch what free-page reporting is about to give back.
/// - `cryptomgr.notests`: 0.35 s of a boot under emulation.
const COMMON: &str = "console=ttyS0 quiet rw root=/dev/vda rootfstype=ext4 panic=-1 net.ifnames=0 tsc=reliable \
    no_timer_check random.trust_cpu=on init_on_free=0 cryptomgr.notests";

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

    /// Puts kernel and initramfs beside the root disk.
    pub(crate) fn artifacts(
        &self,
        root_disk: PathBuf,
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
            cmdline: cmdline(init),
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

fn cmdline(init: InitKind) -> String {
    match init {
        InitKind::Systemd => format!("{COMMON} martlet.init=systemd"),
        InitKind::Command => format!("{COMMON} martlet.init=command"),
        InitKind::Firmware => String::new(),
    }
}
