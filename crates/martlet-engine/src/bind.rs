//! A machine takes a QEMU that was started ahead.

use crate::crash;
use crate::engine::Engine;
use crate::launch::{From, Launch};
use crate::mapped::Mapped;
use crate::pool::{Ahead, Shape};
use crate::problem::{self, Told};
use crate::run_dir;
use martlet_api::Problem;
use martlet_vm::spec::{Link, MachineSpec};
use martlet_vm::{RunningVm, compat};
use std::sync::Arc;

/// A QEMU that was started ahead and is a machine's now.
pub(crate) struct Bound {
    pub vm: RunningVm,
    /// The file that it had as memory until now: it still punches free pages out of it.
    pub placeholder: Arc<Mapped>,
    /// Removes the directory that it was started in, when nobody waits for that.
    pub left: Ahead,
}

impl Engine {
    /// A QEMU that was started ahead for a machine like this one. What boots gets none: it is given its kernel at its
    /// start; nor does a guest without an agent, which may ask its network's DHCP for the address that it had.
    pub(crate) fn take_ahead(&self, launch: &Launch<'_>, hardware: &compat::Hardware) -> Option<Ahead> {
        let shape = Shape::new(hardware, &launch.record.config);
        match &launch.from {
            From::Snapshot(_, snapshot) if snapshot.agent => self.pool.take(&shape),
            From::Snapshot(..) | From::Firmware => None,
            From::Boot(_) => {
                self.pool.want(shape);
                None
            }
        }
    }

    /// Makes it the QEMU of `spec`: the place of its sockets and logs, its memory, its disks. `memory_is_open` is done as soon as
    /// the file of its memory is open, while QEMU opens the others.
    pub(crate) fn bind_ahead(
        &self,
        mut ahead: Ahead,
        spec: &MachineSpec,
        memory_is_open: impl FnOnce(),
    ) -> Result<Bound, Problem> {
        let placeholder = ahead.placeholder.clone();
        run_dir::replace(&spec.run_dir, &ahead.run_dir)
            .map_err(|error| problem::io("move", &ahead.run_dir, &error))?;
        crash::step("start");
        let vm = ahead.vm();
        vm.bind_place(&spec.run_dir, spec.net.as_ref().map(|net| net.address));
        if let Some(Link::User { forwards, .. }) = spec.net.as_ref().map(|net| &net.link) {
            for forward in forwards {
                vm.add_forward(*forward).told()?;
            }
        }
        crash::step("start");
        let placeholder_file = self.dirs.memory_file(&placeholder.name);
        let binding = vm
            .bind_files(&placeholder_file, &spec.memory, &spec.disks)
            .told()?;
        let binding = binding.memory_open().told()?;
        memory_is_open();
        crash::step("start");
        binding.finish().told()?;
        crash::step("start");
        Ok(Bound {
            vm: ahead.take_vm(),
            placeholder,
            left: ahead,
        })
    }
}
