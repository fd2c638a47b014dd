//! A machine's description, and the QEMU command line it means: a pure function.
//!
//! Every device has its PCI address written down, so that a descriptor saved today finds each device at its place in
//! any later version of this file. **Addresses here are a format**: add, never move.
//!
//! | slot | device |
//! | --- | --- |
//! | 2 | virtio-serial (the agent's channel) |
//! | 3 | virtio-net |
//! | 4 | virtio-rng |
//! | 5 | virtio-balloon (free-page reporting) |
//! | 6 | pvpanic |
//! | 7 | virtio-net of the family's network |
//! | 8.. | disks, in order |
//!
//! A guest that asks for a reboot makes QEMU exit: a restored machine has no firmware left to boot with (the
//! descriptor carries no ROM), so whoever owns the machine starts it anew instead.

use crate::VmError;
use crate::compat::{Accel, Hardware};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Most disks of a machine.
pub const DISKS_MAX: usize = 8;
/// Most virtual CPUs of a machine.
pub const CPUS_MAX: u32 = 64;
/// Name of the agent's virtio-serial port.
pub const AGENT_PORT: &str = "martlet.agent";

const FIRST_DISK_SLOT: usize = 8;
const MEMORY_MIN_BYTES: u64 = 32 << 20;
const MEMORY_STEP_BYTES: u64 = 1 << 20;
/// Translated code kept by the emulator. Its default is an eighth of host memory, for every idle clone.
const TCG_CACHE_MIB: u32 = 64;

/// One machine, complete: what `-cpu`, `-device` and the rest say.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineSpec {
    /// Shown in process lists.
    pub name: String,
    /// Machine type, CPU model, accelerator.
    pub hardware: Hardware,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory: Memory,
    /// Disks, in order.
    pub disks: Vec<Disk>,
    /// What is booted; ignored by a machine that is restored.
    pub boot: Boot,
    /// Network card, if it has one.
    pub net: Option<Net>,
    /// Identifies this very start to guests that look (VMGenID): a new one for each clone.
    pub generation_id: String,
    /// The machine's own directory: sockets and logs. The user QEMU runs as must own it.
    pub run_dir: PathBuf,
    /// Start paused, waiting for a descriptor.
    pub incoming: bool,
}

/// Guest memory: a private mapping of a file. The machine's writes never reach the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The file.
    pub path: PathBuf,
    /// Its size, and the guest's.
    pub size_bytes: u64,
    /// Let the guest report free pages. **Only for files that ignore hole punching**: QEMU punches the reported
    /// ranges out of the *file*.
    pub free_page_reporting: bool,
}

/// A raw disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The file; none yet in a machine that is started ahead (`RunningVm::bind_disk`).
    pub path: Option<PathBuf>,
    /// Refuse writes.
    pub read_only: bool,
}

/// What a machine boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// The firmware looks for a boot loader on the first disk.
    Firmware,
    /// A kernel, given directly.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// Its initial file system.
        initrd: Option<PathBuf>,
        /// Its command line.
        cmdline: String,
    },
}

/// A network card. All machines have addresses in 10.77.0.0/16, each its own on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    /// The guest's address; the agent sets it.
    pub address: Ipv4Addr,
    /// Its MAC address.
    pub mac: String,
    /// Where the cable leads.
    pub link: Link,
    /// A second card, for the network of the machine's family, which `RunningVm::bind_family` plugs in.
    pub family: Option<FamilyCard>,
}

/// A second network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FamilyCard {
    /// Its MAC address.
    pub mac: String,
    /// Bytes of a packet.
    pub mtu: u16,
}

/// The other end of a network card's cable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// User-mode networking: no privilege, no interface on the host, and the machine has the network for itself. DHCP
    /// offers the guest its address.
    User {
        /// Ports forwarded from the start. Port 0 is not allowed here; see `RunningVm::add_forward`.
        forwards: Vec<Forward>,
        /// May the guest reach the outside?
        outbound: bool,
    },
    /// An interface of the host, which `RunningVm::bind_tap` plugs in.
    Tap,
}

/// `127.0.0.1:host_port` on the host reaches `guest_port` in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Port on the host's loopback.
    pub host_port: u16,
    /// Port in the guest.
    pub guest_port: u16,
}

impl Net {
    /// The gateway, which is also the host as the guest sees it.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
    /// The name server.
    pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
    /// Length of the network's prefix.
    pub const PREFIX_LEN: u8 = 16;

    /// Can a guest have this address?
    pub fn is_guest_address(address: Ipv4Addr) -> bool {
        let o = address.octets();
        o[0] == 10 && o[1] == 77 && (o[2] > 0 || o[3] > 3) && o != [10, 77, 255, 255]
    }
}

/// The hub that a tap interface is plugged into.
pub(crate) const HUB: u32 = 0;
/// The hub that the family's network is plugged into.
pub(crate) const FAMILY_HUB: u32 = 1;

/// Name of the QMP socket in a machine's run directory.
pub const QMP_SOCKET: &str = "qmp.sock";
/// The agent's channel.
pub const AGENT_SOCKET: &str = "agent.sock";
/// The serial console.
pub const CONSOLE_SOCKET: &str = "console.sock";
/// What the serial console said.
pub const CONSOLE_LOG: &str = "console.log";
/// What QEMU itself said.
pub const STDERR_LOG: &str = "qemu.log";

impl MachineSpec {
    /// QMP socket.
    pub fn qmp_socket(&self) -> PathBuf {
        self.run_dir.join(QMP_SOCKET)
    }

    /// The agent's channel.
    pub fn agent_socket(&self) -> PathBuf {
        self.run_dir.join(AGENT_SOCKET)
    }

    /// The serial console.
    pub fn console_socket(&self) -> PathBuf {
        self.run_dir.join(CONSOLE_SOCKET)
    }

    /// What the serial console said. Opened for appending, so it may be truncated at any time.
    pub fn console_log(&self) -> PathBuf {
        self.run_dir.join(CONSOLE_LOG)
    }

    /// What QEMU itself said. Opened for appending, so it may be truncated at any time.
    pub fn stderr_log(&self) -> PathBuf {
        self.run_dir.join(STDERR_LOG)
    }

    /// Refuses what no QEMU could run, before one is started.
    pub fn check(&self) -> Result<(), VmError> {
        let bad = |reason: String| Err(VmError::BadSpec(reason));
        if self.cpus == 0 || self.cpus > CPUS_MAX {
            return bad(format!("{} CPUs; 1 to {CPUS_MAX} are possible", self.cpus));
        }
        let size_bytes = self.memory.size_bytes;
        if size_bytes < MEMORY_MIN_BYTES || !size_bytes.is_multiple_of(MEMORY_STEP_BYTES) {
            return bad(format!(
                "{size_bytes} bytes of memory; a whole number of MiB from 32 on is possible"
            ));
        }
        if self.disks.len() > DISKS_MAX {
            return bad(format!("{} disks; {DISKS_MAX} are possible", self.disks.len()));
        }
        if let Some(net) = &self.net {
            if !Net::is_guest_address(net.address) {
                return bad(format!("{} is not a guest address in 10.77.0.0/16", net.address));
            }
            if !is_mac(&net.mac) {
                return bad(format!("{:?} is not a MAC address", net.mac));
            }
            if let Link::User { forwards, .. } = &net.link
                && forwards.iter().any(|f| f.host_port == 0 || f.guest_port == 0)
            {
                return bad("a forwarded port is 0".into());
            }
        }
        // A unix socket's path is limited by the kernel, and the error would come from QEMU, late.
        if self.console_socket().as_os_str().len() > 100 {
            return bad(format!(
                "{} is too long for a socket's directory",
                self.run_dir.display()
            ));
        }
        Ok(())
    }

    /// The command line, without the program itself.
    pub fn args(&self) -> Vec<String> {
        let mut args = Args(Vec::new());
        args.opt(
            "-name",
            format!("{},process=martlet:{}", escaped(&self.name), escaped(&self.name)),
        );
        args.flag("-no-user-config").flag("-nodefaults");
        args.opt("-action", "reboot=shutdown,panic=exit-failure");
        args.opt("-display", "none")
            .opt("-vga", "none")
            .opt("-msg", "timestamp=on");
        args.opt(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        self.processors_and_memory(&mut args);
        self.boot(&mut args);
        self.channels(&mut args);
        self.network(&mut args);
        args.opt("-object", "rng-random,id=entropy,filename=/dev/urandom");
        args.opt("-device", "virtio-rng-pci,rng=entropy,addr=0x4");
        let reporting = if self.memory.free_page_reporting {
            "on"
        } else {
            "off"
        };
        args.opt(
            "-device",
            format!("virtio-balloon-pci,id=balloon,free-page-reporting={reporting},addr=0x5"),
        );
        args.opt("-device", "pvpanic-pci,addr=0x6");
        args.opt(
            "-device",
            format!("vmgenid,guid={}", escaped(&self.generation_id)),
        );
        for (index, disk) in self.disks.iter().enumerate() {
            disk_args(&mut args, index, disk);
        }
        args.flag("-S");
        if self.incoming {
            // User-mode networking has nobody to announce a guest to, and each of QEMU's five rounds is work for the guest.
            // Not none: QEMU 7.2 then drops a timer that it needs when the guest is reset, and dies.
            args.opt("-incoming", "defer")
                .opt("-global", "migration.send-configuration=off")
                .opt("-global", "migration.announce-rounds=1");
        }
        args.0
    }

    fn processors_and_memory(&self, args: &mut Args) {
        args.opt(
            "-machine",
            format!(
                "{},memory-backend=mem,suppress-vmdesc=on,mem-merge=off,dump-guest-core=off",
                self.hardware.machine_type
            ),
        );
        match self.hardware.accel {
            Accel::Tcg => args.opt("-accel", format!("tcg,thread=multi,tb-size={TCG_CACHE_MIB}")),
            Accel::Kvm => args.opt("-accel", "kvm"),
        };
        args.opt("-cpu", &self.hardware.cpu_model);
        args.opt("-smp", format!("{0},sockets=1,cores={0},threads=1", self.cpus));
        args.opt("-m", format!("{}M", self.memory.size_bytes >> 20));
        args.opt(
            "-object",
            format!(
                "memory-backend-file,id=mem,size={},mem-path={},share=off",
                self.memory.size_bytes,
                path(&self.memory.path)
            ),
        );
    }

    fn boot(&self, args: &mut Args) {
        // A restored machine has its kernel in its memory; loading one again would only cost time.
        if let (
            Boot::Kernel {
                kernel,
                initrd,
                cmdline,
            },
            false,
        ) = (&self.boot, self.incoming)
        {
            args.opt("-kernel", kernel.display().to_string());
            if let Some(initrd) = initrd {
                args.opt("-initrd", initrd.display().to_string());
            }
            args.opt("-append", cmdline);
        }
    }

    fn channels(&self, args: &mut Args) {
        let socket =
            |id: &str, path_: &Path| format!("socket,id={id},path={},server=on,wait=off", path(path_));
        args.opt("-chardev", socket("qmp", &self.qmp_socket()));
        args.opt("-mon", "chardev=qmp,mode=control");
        let console = socket("console", &self.console_socket());
        args.opt(
            "-chardev",
            format!("{console},logfile={},logappend=on", path(&self.console_log())),
        );
        args.opt("-serial", "chardev:console");
        args.opt("-chardev", socket("agent", &self.agent_socket()));
        args.opt("-device", "virtio-serial-pci,id=channels,max_ports=4,addr=0x2");
        args.opt(
            "-device",
            format!("virtserialport,bus=channels.0,nr=1,chardev=agent,name={AGENT_PORT}"),
        );
    }

    fn network(&self, args: &mut Args) {
        let Some(net) = &self.net else { return };
        args.opt(
            "-netdev",
            match &net.link {
                Link::User { forwards, outbound } => user_netdev(net.address, forwards, *outbound),
                // QEMU gives a card its cable at its start; what is plugged into a hub may come and go.
                Link::Tap => format!("hubport,id=net,hubid={HUB}"),
            },
        );
        if net.link == Link::Tap {
            // It leads nowhere; but QEMU refuses the descriptor of a machine that had one when there is none.
            args.opt("-netdev", "user,id=unused,ipv6=off,restrict=on");
        }
        // No boot ROM: nothing boots from this network, and ROMs differ between distributions.
        args.opt(
            "-device",
            format!(
                "virtio-net-pci,id=nic,netdev=net,mac={},romfile=,addr=0x3",
                net.mac
            ),
        );
        if let Some(FamilyCard { mac, mtu }) = &net.family {
            args.opt("-netdev", format!("hubport,id=family-net,hubid={FAMILY_HUB}"));
            args.opt(
                "-device",
                format!("virtio-net-pci,id=family-nic,netdev=family-net,mac={mac},host_mtu={mtu},romfile=,addr=0x7"),
            );
        }
    }
}

fn user_netdev(address: Ipv4Addr, forwards: &[Forward], outbound: bool) -> String {
    let restrict = if outbound { "off" } else { "on" };
    let mut user = format!(
        "user,id=net,ipv6=off,net=10.77.0.0/{},host={},dns={},dhcpstart={address},restrict={restrict}",
        Net::PREFIX_LEN,
        Net::GATEWAY,
        Net::DNS,
    );
    for f in forwards {
        user += &format!(
            ",hostfwd=tcp:127.0.0.1:{}-{address}:{}",
            f.host_port, f.guest_port
        );
    }
    user
}

fn disk_args(args: &mut Args, index: usize, disk: &Disk) {
    let node = match &disk.path {
        Some(path) => disk_node(index, path, disk.read_only),
        None => {
            serde_json::json!({ "driver": "null-co", "node-name": format!("empty{index}"), "read-zeroes": true })
        }
    };
    args.opt("-blockdev", node.to_string());
    let slot = FIRST_DISK_SLOT + index;
    args.opt(
        "-device",
        format!(
            "virtio-blk-pci,id=vd{index},drive={},addr={slot:#x}",
            node["node-name"].as_str().expect("each node has a name")
        ),
    );
}

/// QEMU's block node of a disk. `locking=off`: the files are ours alone, and the file system that serves them knows no
/// locks.
pub(crate) fn disk_node(index: usize, path: &Path, read_only: bool) -> serde_json::Value {
    serde_json::json!({
        "driver": "raw", "node-name": format!("disk{index}"), "read-only": read_only, "discard": "unmap",
        "file": { "driver": "file", "filename": path.display().to_string(), "locking": "off", "discard": "unmap" },
    })
}

struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn opt(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.into());
        self
    }
}

/// QEMU ends an option's value at a comma unless it is doubled.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

fn path(path: &Path) -> String {
    escaped(&path.display().to_string())
}

fn is_mac(mac: &str) -> bool {
    let parts: Vec<&str> = mac.split(':').collect();
    parts.len() == 6
        && parts
            .iter()
            .all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
