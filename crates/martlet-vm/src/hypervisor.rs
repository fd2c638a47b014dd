//! The QEMU of this host: where it is, its version, and what machines it can build.

use crate::VmError;
use crate::compat::{Accel, Hardware, Offer};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The least QEMU version that works.
pub const VERSION_MIN: (u32, u32) = (7, 2);

const NAME: &str = "qemu-system-x86_64";
const PLACES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/libexec", "/opt/qemu/bin"];

/// A QEMU executable that has been asked for its version.
#[derive(Debug)]
pub struct Qemu {
    path: PathBuf,
    data_dir: Option<PathBuf>,
    version: String,
    lists: OnceLock<(Vec<String>, Vec<String>)>,
}

impl Qemu {
    /// Finds QEMU, at `path` if one is given, and checks that it is new enough.
    pub fn discover(path: Option<&Path>) -> Result<Self, VmError> {
        let looked: Vec<PathBuf> = match path {
            Some(path) => vec![path.to_path_buf()],
            None => PLACES.iter().map(|dir| Path::new(dir).join(NAME)).collect(),
        };
        match looked.iter().find(|p| p.is_file()) {
            Some(found) => Self::ask_version(found.clone()),
            None => Err(VmError::QemuMissing { looked }),
        }
    }

    fn ask_version(path: PathBuf) -> Result<Self, VmError> {
        let text = stdout(&path, &["--version"])?;
        let version = parse_version(&text).ok_or_else(|| VmError::NotQemu {
            path: path.clone(),
            detail: format!("it says {:?}", text.chars().take(80).collect::<String>()),
        })?;
        if version_number(&version) < VERSION_MIN {
            return Err(VmError::QemuTooOld {
                path,
                found: version,
                needed: "7.2",
            });
        }
        // A QEMU unpacked outside its place finds its firmware only when told where it is.
        let data_dir = path
            .ancestors()
            .nth(2)
            .map(|root| root.join("share/qemu"))
            .filter(|dir| dir.is_dir() && !dir.starts_with("/usr"));
        Ok(Self {
            path,
            data_dir,
            version,
            lists: OnceLock::new(),
        })
    }

    /// The executable.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Firmware directories to be named with `-L`, when QEMU would not find them itself.
    pub fn firmware_dirs(&self) -> Vec<PathBuf> {
        let Some(dir) = &self.data_dir else {
            return Vec::new();
        };
        let seabios = dir.parent().map(|share| share.join("seabios"));
        std::iter::once(dir.clone())
            .chain(seabios.filter(|d| d.is_dir()))
            .collect()
    }

    /// Its version, such as `7.2.22`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Machine types it can build. Asked once, then remembered.
    pub fn machine_types(&self) -> Result<&[String], VmError> {
        Ok(&self.lists()?.0)
    }

    /// CPU models it knows. Asked once, then remembered.
    pub fn cpu_models(&self) -> Result<&[String], VmError> {
        Ok(&self.lists()?.1)
    }

    fn lists(&self) -> Result<&(Vec<String>, Vec<String>), VmError> {
        if let Some(lists) = self.lists.get() {
            return Ok(lists);
        }
        let machines = parse_machines(&stdout(&self.path, &["-machine", "help"])?);
        let cpus = parse_cpus(&stdout(&self.path, &["-cpu", "help"])?);
        Ok(self.lists.get_or_init(|| (machines, cpus)))
    }

    /// What this host offers to saved machines.
    pub fn offer(&self) -> Result<Offer, VmError> {
        Ok(Offer {
            qemu_version: self.version.clone(),
            machine_types: self.machine_types()?.to_vec(),
            cpu_models: self.cpu_models()?.to_vec(),
            kvm: best_accel() == Accel::Kvm,
        })
    }

    /// Hardware of a new machine on this host.
    pub fn new_hardware(&self, accel: Option<Accel>) -> Hardware {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let vendor = cpuinfo_field(&info, "vendor_id").unwrap_or_default();
        Hardware::new_machine(accel.unwrap_or_else(best_accel), vendor, &self.version)
    }
}

/// KVM where the CPU has it and the device opens, else TCG. That the device opens proves nothing by itself: some
/// paravirtual kernels offer a `/dev/kvm` on which a stock guest hangs.
pub fn best_accel() -> Accel {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let open = || {
        std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
    };
    if cpu_virtualises(&info) && open() {
        Accel::Kvm
    } else {
        Accel::Tcg
    }
}

fn cpu_virtualises(cpuinfo: &str) -> bool {
    cpuinfo_field(cpuinfo, "flags")
        .is_some_and(|flags| flags.split_whitespace().any(|f| f == "vmx" || f == "svm"))
}

fn cpuinfo_field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn stdout(path: &Path, args: &[&str]) -> Result<String, VmError> {
    let output = Command::new(path)
        .args(args)
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|e| VmError::NotQemu {
            path: path.into(),
            detail: e.to_string(),
        })?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let detail = format!("{} {}: {}", args.join(" "), output.status, words.trim());
        return Err(VmError::NotQemu {
            path: path.into(),
            detail,
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn parse_version(text: &str) -> Option<String> {
    let rest = text.strip_prefix("QEMU emulator version ")?;
    let version: String = rest
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let mut parts = version.split('.');
    (parts.next()?.parse::<u32>().is_ok() && parts.next()?.parse::<u32>().is_ok()).then_some(version)
}

fn version_number(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|p| p.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn parse_machines(text: &str) -> Vec<String> {
    text.lines()
        .skip(1)
        .filter_map(|l| l.split_whitespace().next())
        .map(String::from)
        .collect()
}

fn parse_cpus(text: &str) -> Vec<String> {
    // 7.2 writes `x86 NAME description`, later versions `  NAME description`; flags follow after an empty line.
    let models = text.lines().skip(1).take_while(|line| !line.trim().is_empty());
    models
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let first = words.next()?;
            if first == "x86" { words.next() } else { Some(first) }
        })
        .map(String::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright";
        assert_eq!(parse_version(text).as_deref(), Some("7.2.22"));
        assert_eq!(parse_version("QEMU emulator version banana"), None);
        assert_eq!(parse_version("bash 5"), None);
        assert!(version_number("10.0.2") > version_number("7.2.1"));
        assert!(version_number("7.1.9") < VERSION_MIN);
        assert!(version_number("7.2") >= VERSION_MIN);
    }

    #[test]
    fn both_list_formats_are_read() {
        let old = "Available CPUs:\nx86 486                   (alias)\nx86 qemu64-v1             QEMU\n\nRecognized CPUID flags:\n  3dnow\n";
        let new = "Available CPUs:\n  486                   (alias)\n  qemu64-v1             QEMU\n\nRecognized CPUID flags:\n  3dnow\n";
        assert_eq!(parse_cpus(old), ["486", "qemu64-v1"]);
        assert_eq!(parse_cpus(new), ["486", "qemu64-v1"]);
        let machines = "Supported machines are:\npc-q35-7.2           Standard PC\nmicrovm   x\n";
        assert_eq!(parse_machines(machines), ["pc-q35-7.2", "microvm"]);
    }

    #[test]
    fn a_kvm_device_without_vmx_or_svm_is_not_hardware_virtualisation() {
        assert!(!cpu_virtualises(
            "vendor_id\t: GenuineIntel\nflags\t\t: fpu vme svmish avmx\n"
        ));
        assert!(cpu_virtualises("flags\t\t: fpu vmx\n"));
        assert!(cpu_virtualises("flags\t\t: svm fpu\n"));
        assert!(!cpu_virtualises(""));
    }

    #[test]
    fn a_missing_or_foreign_program_is_refused_with_advice() {
        let missing = Qemu::discover(Some(Path::new("/nonexistent/qemu"))).unwrap_err();
        assert!(missing.to_string().contains("apt-get install qemu-system-x86"));
        let foreign = Qemu::discover(Some(Path::new("/bin/true"))).unwrap_err();
        assert!(matches!(foreign, VmError::NotQemu { .. }), "{foreign}");
    }
}
