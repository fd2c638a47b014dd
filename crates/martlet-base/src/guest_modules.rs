//! Kernel modules in a guest's own `/lib/modules`, for what its programs may ask for after boot.
//!
//! The whole set is 90 MB, nearly all of it drivers of devices that our machines do not have; so this is a selection:
//! file systems, containers, firewalls, sockets' diagnosis, nested virtualisation, each with what it needs.

use crate::command::Run;
use crate::error::IoContext;
use crate::kernel::Kernel;
use crate::{BaseError, Job};
use std::path::Path;

const SELECTION: &[&str] = &[
    "autofs4",
    "binfmt_misc",
    "fuse",
    "isofs",
    "loop",
    "overlay",
    "squashfs",
    "virtiofs",
    "xfs",
    "zram", // storage
    "bridge",
    "dummy",
    "macvlan",
    "tun",
    "veth",
    "vxlan",
    "wireguard", // networks
    "nf_tables",
    "nft_ct",
    "nft_chain_nat",
    "nft_compat",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_reject_inet",
    "xt_MASQUERADE",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack", // firewalls
    "af_packet_diag",
    "inet_diag",
    "netlink_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag", // CRIU, ss
    "kvm_amd",
    "kvm_intel",
    "vsock",
    "vmw_vsock_virtio_transport", // nested machines
];

/// Copies the selection into `tree`, which must be of trusted packages.
pub(crate) fn install(kernel: &Kernel, tree: &Path, job: &Job) -> Result<(), BaseError> {
    let target = tree.join("lib/modules").join(&kernel.release);
    if target.join("modules.dep").exists() {
        return Ok(()); // the kernel's own package is among those chosen
    }
    let modules = kernel.modules()?;
    let copy = |file: &str| {
        let (from, to) = (kernel.modules_dir.join(file), target.join(file));
        let parent = to.parent().expect("it lies in the modules directory");
        std::fs::create_dir_all(parent).during("create", parent)?;
        std::fs::copy(&from, &to).during("copy", &from).map(drop)
    };
    for file in modules.load_order(&[], SELECTION)? {
        copy(&file)?;
    }
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        if kernel.modules_dir.join(list).exists() {
            copy(list)?;
        }
    }
    Run::new("depmod", "kmod")
        .arg("-b")
        .arg(tree)
        .arg(&kernel.release)
        .output(job)
        .map(drop)
}
