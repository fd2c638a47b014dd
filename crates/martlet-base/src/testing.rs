//! What the tests of this crate share: a job in a directory of its own.

use crate::{Job, Tools};
use std::path::Path;
use std::sync::atomic::AtomicBool;

pub(crate) struct Bench {
    pub dir: tempfile::TempDir,
    pub tools: Tools,
    pub cancel: AtomicBool,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools {
            agent: dir.path().join("agent"),
            cache_dir: dir.path().join("cache"),
        };
        Self {
            dir,
            tools,
            cancel: AtomicBool::new(false),
        }
    }

    pub fn job(&self) -> Job<'_> {
        Job {
            tools: &self.tools,
            work_dir: self.dir.path(),
            progress: &|_| (),
            cancel: &self.cancel,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}
