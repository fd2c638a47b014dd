//! One virtual machine: QEMU process, QMP, descriptor, memory capture, agent channel, keeper.
//!
//! ```text
//!  MachineSpec ──argv──► Spawner (direct | keeper) ──► qemu ◄──QMP── RunningVm ──► descriptor bytes
//!                                                       ▲
//!                                                       └── capture: private pages of its guest memory
//! ```
//!
//! Everything here blocks; callers give it threads. Nothing here knows of images or of the store: memory and disks
//! are paths, a descriptor is bytes, and captured pages are `(index, page)` pairs.

pub mod agent;
pub mod capture;
pub mod compat;
mod error;
mod fd_passing;
pub mod hypervisor;
pub mod keeper;
pub mod process;
pub mod qmp;
pub mod running;
pub mod spec;
pub mod tap;
pub mod usage;

pub use compat::{Accel, Hardware, Incompatible};
pub use error::VmError;
pub use hypervisor::Qemu;
pub use keeper::{KeeperClient, KeeperProgram};
pub use process::{ChildState, DirectSpawner, ExitStatus, SpawnError, SpawnRequest, Spawner};
pub use running::{EndReason, RunningVm, VmEvent};
pub use spec::MachineSpec;
