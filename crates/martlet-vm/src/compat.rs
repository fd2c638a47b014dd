//! Can a saved machine run on this host? A pure check, with the refusal in words.
//!
//! A descriptor holds the registers of devices and CPUs, so the host must offer the same ones: the same *versioned*
//! machine type, the same named CPU model, and the same accelerator (an emulated CPU and a real one keep different
//! hidden state). The QEMU version itself may differ, both ways; that is what versioned machine types are for.

use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// The machine type new machines get. Every QEMU from 7.2 on has it.
pub const MACHINE_TYPE: &str = "pc-q35-7.2";

/// The CPU of machines under emulation: what Debian's userland is optimised for (x86-64-v2, AES, a hardware random
/// generator) and no more, all of it emulated without warnings by QEMU 7.2 and by 10.0. An AMD model, so that guest
/// kernels do not turn on page-table isolation, which is costly under emulation.
pub const CPU_MODEL_TCG: &str = "qemu64-v1,svm=off,popcnt=on,ssse3=on,sse4.1=on,sse4.2=on,aes=on,pclmulqdq=on,rdrand=on,fsgsbase=on,enforce=on";

/// The CPU of machines with hardware virtualisation on Intel hosts.
pub const CPU_MODEL_KVM_INTEL: &str = "Westmere-v1,enforce=on";

/// The CPU of machines with hardware virtualisation on AMD hosts.
pub const CPU_MODEL_KVM_AMD: &str =
    "qemu64-v1,svm=off,popcnt=on,ssse3=on,sse4.1=on,sse4.2=on,aes=on,pclmulqdq=on,enforce=on";

/// How guest instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        })
    }
}

/// What a descriptor was saved from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Versioned machine type.
    pub machine_type: String,
    /// CPU model with its features, as given to `-cpu`.
    pub cpu_model: String,
    /// Accelerator.
    pub accel: Accel,
    /// Version of the QEMU that saved it; for the message only.
    pub qemu_version: String,
}

impl Hardware {
    /// What new machines get under this accelerator; `cpu_vendor` as in `/proc/cpuinfo`.
    pub fn new_machine(accel: Accel, cpu_vendor: &str, qemu_version: &str) -> Self {
        let cpu_model = match accel {
            Accel::Tcg => CPU_MODEL_TCG,
            Accel::Kvm if cpu_vendor == "GenuineIntel" => CPU_MODEL_KVM_INTEL,
            Accel::Kvm => CPU_MODEL_KVM_AMD,
        };
        Self {
            machine_type: MACHINE_TYPE.into(),
            cpu_model: cpu_model.into(),
            accel,
            qemu_version: qemu_version.into(),
        }
    }
}

/// What a host offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Version of its QEMU.
    pub qemu_version: String,
    /// Machine types that QEMU knows.
    pub machine_types: Vec<String>,
    /// CPU models that QEMU knows, without features.
    pub cpu_models: Vec<String>,
    /// Usable hardware virtualisation?
    pub kvm: bool,
}

/// Why a saved machine cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Incompatible {
    /// The machine type is unknown.
    #[error(
        "it needs machine type {needed}, which QEMU {here} on this host does not have (it was saved by QEMU {saved_by}); use a QEMU that lists it under `-machine help`"
    )]
    MachineType {
        /// What it needs.
        needed: String,
        /// QEMU version here.
        here: String,
        /// QEMU version there.
        saved_by: String,
    },
    /// The machine type means something else in each QEMU.
    #[error("its machine type {0} is not versioned, so no other QEMU is sure to build the same machine")]
    UnversionedMachineType(String),
    /// The CPU model is unknown.
    #[error(
        "it needs CPU model {needed}, which QEMU {here} on this host does not have (it was saved by QEMU {saved_by})"
    )]
    CpuModel {
        /// What it needs.
        needed: String,
        /// QEMU version here.
        here: String,
        /// QEMU version there.
        saved_by: String,
    },
    /// The CPU model means something else on each host.
    #[error("its CPU model {0} is whatever the host happened to have; only named models can be moved")]
    HostCpuModel(String),
    /// It was saved under hardware virtualisation.
    #[error(
        "it was saved under KVM, and this host has none (no vmx or svm in /proc/cpuinfo, or /dev/kvm does not open)"
    )]
    NeedsKvm,
    /// It was asked for under another accelerator than it was saved under.
    #[error("it was saved under {saved}, so it cannot go on under {asked}: the two keep different CPU state")]
    OtherAccel {
        /// What it was saved under.
        saved: Accel,
        /// What was asked for.
        asked: Accel,
    },
}

/// Can `saved` go on at `offer`, under the accelerator asked for (if one was)?
pub fn check(saved: &Hardware, offer: &Offer, asked: Option<Accel>) -> Result<(), Incompatible> {
    if let Some(asked) = asked
        && asked != saved.accel
    {
        return Err(Incompatible::OtherAccel {
            saved: saved.accel,
            asked,
        });
    }
    if saved.accel == Accel::Kvm && !offer.kvm {
        return Err(Incompatible::NeedsKvm);
    }
    if !saved.machine_type.ends_with(|c: char| c.is_ascii_digit()) || saved.machine_type == "q35" {
        return Err(Incompatible::UnversionedMachineType(saved.machine_type.clone()));
    }
    if !offer.machine_types.contains(&saved.machine_type) {
        return Err(Incompatible::MachineType {
            needed: saved.machine_type.clone(),
            here: offer.qemu_version.clone(),
            saved_by: saved.qemu_version.clone(),
        });
    }
    let model = saved.cpu_model.split(',').next().unwrap_or_default();
    if matches!(model, "host" | "max" | "") {
        return Err(Incompatible::HostCpuModel(model.into()));
    }
    if !offer.cpu_models.iter().any(|m| m == model) {
        return Err(Incompatible::CpuModel {
            needed: model.into(),
            here: offer.qemu_version.clone(),
            saved_by: saved.qemu_version.clone(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(kvm: bool) -> Offer {
        Offer {
            qemu_version: "10.0.2".into(),
            machine_types: vec!["pc-q35-7.2".into(), "pc-q35-10.0".into()],
            cpu_models: vec!["qemu64-v1".into(), "Westmere-v1".into()],
            kvm,
        }
    }

    fn saved(accel: Accel) -> Hardware {
        Hardware::new_machine(accel, "GenuineIntel", "7.2.22")
    }

    #[test]
    fn new_machines_go_on_where_the_same_is_offered() {
        assert_eq!(check(&saved(Accel::Tcg), &offer(false), None), Ok(()));
        assert_eq!(check(&saved(Accel::Tcg), &offer(true), Some(Accel::Tcg)), Ok(()));
        assert_eq!(check(&saved(Accel::Kvm), &offer(true), None), Ok(()));
        let amd = Hardware::new_machine(Accel::Kvm, "AuthenticAMD", "7.2.22");
        assert_eq!(check(&amd, &offer(true), None), Ok(()));
    }

    #[test]
    fn each_refusal_says_what_is_missing() {
        let mut newer = saved(Accel::Tcg);
        newer.machine_type = "pc-q35-11.0".into();
        newer.qemu_version = "11.0.0".into();
        let why = check(&newer, &offer(false), None).unwrap_err().to_string();
        assert!(
            why.contains("pc-q35-11.0") && why.contains("10.0.2") && why.contains("11.0.0"),
            "{why}"
        );

        let mut unversioned = saved(Accel::Tcg);
        for name in ["q35", "microvm"] {
            unversioned.machine_type = name.into();
            assert!(matches!(
                check(&unversioned, &offer(false), None),
                Err(Incompatible::UnversionedMachineType(_))
            ));
        }

        let mut odd = saved(Accel::Tcg);
        odd.cpu_model = "Unobtainium-v9,aes=on".into();
        assert!(
            check(&odd, &offer(false), None)
                .unwrap_err()
                .to_string()
                .contains("Unobtainium-v9")
        );
        for model in ["host", "max,svm=off", ""] {
            odd.cpu_model = model.into();
            assert!(matches!(
                check(&odd, &offer(false), None),
                Err(Incompatible::HostCpuModel(_))
            ));
        }

        assert_eq!(
            check(&saved(Accel::Kvm), &offer(false), None),
            Err(Incompatible::NeedsKvm)
        );
        assert!(matches!(
            check(&saved(Accel::Tcg), &offer(true), Some(Accel::Kvm)),
            Err(Incompatible::OtherAccel { .. })
        ));
    }
}
