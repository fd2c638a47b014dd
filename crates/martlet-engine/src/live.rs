//! What is alive of a machine: its QEMU, its agent, its disk and the memory image it maps.

use crate::engine::lock;
use crate::machine::RunningRecord;
use crate::mapped::Mapped;
use crate::stalls::Run;
use crate::start_pages::StartPages;
use martlet_disk::CowDisk;
use martlet_fuse::{Prefetcher, Registry};
use martlet_pager::VmKey;
use martlet_switch::Plugged;
use martlet_vm::RunningVm;
use martlet_vm::agent::AgentClient;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// A running VM and what serves it. Dropping it withdraws its files; QEMU must have ended by then.
pub struct Live {
    /// QEMU.
    pub vm: RunningVm,
    /// The agent, if the guest has one and it has answered.
    pub agent: Mutex<Option<AgentClient>>,
    /// The root disk.
    pub disk: Arc<CowDisk>,
    /// Number of the disk's file.
    pub disk_inode: u64,
    /// The memory image it maps.
    pub memory: Arc<Mapped>,
    /// The file that its free-page reports go to, when that is not the image: QEMU had it as memory when it was
    /// started ahead.
    pub placeholder: Option<Arc<Mapped>>,
    /// Path of the mapped file, as QEMU opened it.
    pub memory_path: PathBuf,
    /// Whose free-page reports are whose.
    pub key: VmKey,
    /// What it reads, and waits for.
    pub run: Arc<Run>,
    /// Length of the console's log when it was started.
    pub console_begin_bytes: u64,
    /// When it was started.
    pub since: Instant,
    /// Its end is our doing; nobody needs to be told.
    pub ending: AtomicBool,
    /// Host CPU time at the last look, for `top`: microseconds used, microseconds since `since`.
    pub seen_cpu: [AtomicU64; 2],
    /// Pushes the pages that earlier runs touched.
    pub _prefetcher: Option<Prefetcher>,
    /// What its start needed of its memory; none, if a former daemon started it, or it booted.
    pub(crate) start: Option<Mutex<StartPages>>,
    /// Where its disk is registered.
    pub registry: Arc<Registry>,
    /// The number that QEMU's user follows from, when it is not the machine's.
    pub user_number: Option<u64>,
    /// Name of its disk file.
    pub disk_name: String,
    /// Its plug in the network of its family.
    pub plugged: Option<Plugged>,
}

impl Live {
    /// What came of its way out, if it has one.
    pub fn went_out(&self) -> Option<martlet_egress::Counts> {
        self.plugged.as_ref().map(Plugged::went_out)
    }

    /// The agent, if the guest has one and it has answered.
    pub fn agent(&self) -> Option<AgentClient> {
        lock(&self.agent).clone()
    }

    /// What its start needed of its memory: what it has of it now, if that is not known yet.
    pub(crate) fn start_pages(&self) -> Option<MutexGuard<'_, StartPages>> {
        let mut start = lock(self.start.as_ref()?);
        start.end(self.vm.pid(), &self.memory_path);
        Some(start)
    }

    /// The file that QEMU punches its guest's free pages out of.
    pub fn reported(&self) -> &Mapped {
        self.placeholder.as_ref().unwrap_or(&self.memory)
    }

    /// What it takes to find it again.
    pub fn to_record(&self) -> RunningRecord {
        RunningRecord {
            pid: self.vm.pid(),
            mapped: self.memory.snapshot,
            memory_name: self.memory.name.clone(),
            memory_inode: self.memory.inode,
            placeholder: self
                .placeholder
                .as_ref()
                .map(|file| (file.inode, file.name.clone())),
            user_number: self.user_number,
            disk_inode: self.disk_inode,
            console_begin_bytes: self.console_begin_bytes,
        }
    }

    /// From here on the end of QEMU is expected. Was it not before?
    pub fn expect_end(&self) -> bool {
        !self.ending.swap(true, Ordering::SeqCst)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.registry.clear_owner(self.vm.pid());
        self.registry.remove_disk(&self.disk_name);
        self.reported().image.clear_free(self.key);
    }
}
