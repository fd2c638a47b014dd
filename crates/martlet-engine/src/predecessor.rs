//! A process that a machine was handed over from. It stands still for good, and its own pages are part of the machine's
//! memory image until they are in the store.

use crate::live::Live;
use crate::machine::PredecessorRecord;
use crate::problem::Told;
use martlet_api::Problem;
use martlet_image::PageSet;
use martlet_pager::{Layer, PageSource, SourceError, Unsaved};
use martlet_vm::Spawner;
use martlet_vm::capture::{Mapping, PausedMemory};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A process that was killed has ended within this time.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Pages of a process that stands still.
pub struct InPlace(pub PausedMemory);

impl PageSource for InPlace {
    fn read(&self, pages: Range<u64>, buf: &mut [u8]) -> Result<(), SourceError> {
        let page = pages.start;
        self.0.read(pages, buf).map_err(|error| SourceError::Unsaved {
            page,
            reason: error.to_string(),
        })
    }
}

impl InPlace {
    /// All of its pages, over what was unsaved before; `zeros` are pages that hold nothing any more.
    pub fn over(self: &Arc<Self>, below: Option<&Unsaved>, zeros: &PageSet) -> Unsaved {
        let layer = Layer {
            pages: self.0.pages().clone(),
            source: self.clone(),
        };
        Unsaved::over(below, layer, zeros)
    }
}

/// See the module's documentation.
pub struct Predecessor {
    pid: u32,
    memory_name: String,
    run_number: u64,
    run_dir: PathBuf,
    spawner: Arc<dyn Spawner>,
    /// What served it; not there when a former daemon did.
    live: Option<Arc<Live>>,
}

impl Predecessor {
    /// The process of `live`, which runs no more.
    pub fn new(live: Arc<Live>, run_number: u64, run_dir: PathBuf, spawner: Arc<dyn Spawner>) -> Self {
        Self {
            pid: live.vm.pid(),
            memory_name: live.memory.name.clone(),
            run_number,
            run_dir,
            spawner,
            live: Some(live),
        }
    }

    /// One that a former daemon has recorded, and its pages.
    pub fn find_again(
        record: &PredecessorRecord,
        run_dir: PathBuf,
        memory_file: &std::path::Path,
        spawner: Arc<dyn Spawner>,
    ) -> Result<(Self, Arc<InPlace>), Problem> {
        let mapping = Mapping::find(record.pid, memory_file).told()?;
        let mut memory = PausedMemory::open(record.pid, mapping).told()?;
        memory.find_pages(record.pid).told()?;
        let predecessor = Self {
            pid: record.pid,
            memory_name: record.memory_name.clone(),
            run_number: record.run_number,
            run_dir,
            spawner,
            live: None,
        };
        Ok((predecessor, Arc::new(InPlace(memory))))
    }

    /// What it takes to find it again.
    pub fn to_record(&self) -> PredecessorRecord {
        PredecessorRecord {
            pid: self.pid,
            memory_name: self.memory_name.clone(),
            run_number: self.run_number,
        }
    }

    /// Was it the process of `live`?
    pub fn was(&self, live: &Live) -> bool {
        self.live.as_ref().is_some_and(|own| std::ptr::eq(&**own, live))
    }
}

impl Predecessor {
    /// Its pages are in the store, or nobody wants them any more. (Not on a drop: a daemon that ends leaves its machines
    /// to the next one.)
    pub fn end(self) {
        if let Some(live) = &self.live {
            live.expect_end();
        }
        // It runs nothing that could be lost; one that has ended already is as well.
        let _ = self.spawner.signal(self.pid, libc::SIGKILL);
        if self.spawner.wait(self.pid, END_TIMEOUT).is_err() {
            tracing::warn!(pid = self.pid, "a process that was handed over from does not end");
        }
        let _ = self.spawner.forget(self.pid);
        let _ = std::fs::remove_dir_all(&self.run_dir); // goes with the machine's directory, else
    }
}
