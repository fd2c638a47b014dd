//! The state directory.
//!
//! ```text
//! STATE/
//!   store/             frames, packs, index: martlet-store's
//!   engine.redb        machines, counters, traces; engine.lock: of who has it open
//!   mnt/               images as files (FUSE)
//!   boot/ID            kernels and initramfs, by blob id
//!   cache/             guest kernels and packages that were downloaded
//!   work/              bases under construction; emptied at every start
//!   keeper.sock        the keeper
//!   machines/ID/run/   sockets and logs; QEMU's own
//!   machines/ID/stalls.json  what the last run read and waited for
//!   machines/ID/disk-N layers of the disk, one directory for each start from a snapshot
//! ```

use crate::problem;
use martlet_api::Problem;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Longest state directory: sockets below it have paths of 107 bytes at most.
const LENGTH_MAX: usize = 60;

/// Paths below the state directory.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// The state directory itself.
    pub state: PathBuf,
}

impl Dirs {
    /// Makes what is missing.
    pub fn create(state: &Path) -> Result<Self, Problem> {
        if state.as_os_str().len() > LENGTH_MAX {
            return Err(Problem::new(
                martlet_api::ProblemCode::InvalidArgument,
                format!(
                    "the state directory's path is too long: {} bytes",
                    state.as_os_str().len()
                ),
            )
            .cause("unix sockets below it may have paths of 107 bytes at most")
            .remediation(format!(
                "choose one of at most {LENGTH_MAX} bytes with --state-dir"
            )));
        }
        let dirs = Self {
            state: state.to_owned(),
        };
        for dir in [
            state.to_owned(),
            dirs.store(),
            dirs.boot(),
            dirs.cache(),
            dirs.work(),
            dirs.machines(),
        ] {
            std::fs::create_dir_all(&dir).map_err(|error| problem::io("make", &dir, &error))?;
        }
        // Not so much as looked at while it is mounted: what a dead daemon left there answers only once it is served
        // again, which is for us to do, later.
        let mount = dirs.mount();
        if !martlet_fuse::mounts_at(&mount).is_ok_and(|count| count > 0) {
            std::fs::create_dir_all(&mount).map_err(|error| problem::io("make", &mount, &error))?;
        }
        // QEMU runs as another user: it may pass through, and look into nothing that is not its own.
        for dir in [state.to_owned(), dirs.boot(), dirs.machines()] {
            set_mode(&dir, 0o711)?;
        }
        for dir in [dirs.store(), dirs.work()] {
            set_mode(&dir, 0o700)?;
        }
        Ok(dirs)
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.state.join("store")
    }
    /// The state database.
    pub fn database(&self) -> PathBuf {
        self.state.join("engine.redb")
    }
    /// Where images are files.
    pub fn mount(&self) -> PathBuf {
        self.state.join("mnt")
    }
    /// A memory image as a file.
    pub fn memory_file(&self, name: &str) -> PathBuf {
        self.mount().join("mem").join(name)
    }
    /// A disk as a file.
    pub fn disk_file(&self, name: &str) -> PathBuf {
        self.mount().join("disk").join(name)
    }
    /// Kernels and initramfs.
    pub fn boot(&self) -> PathBuf {
        self.state.join("boot")
    }
    /// Downloads.
    pub fn cache(&self) -> PathBuf {
        self.state.join("cache")
    }
    /// Scratch.
    pub fn work(&self) -> PathBuf {
        self.state.join("work")
    }
    /// The keeper's socket.
    pub fn keeper_socket(&self) -> PathBuf {
        self.state.join("keeper.sock")
    }
    fn machines(&self) -> PathBuf {
        self.state.join("machines")
    }
    /// A machine's directory.
    pub fn machine(&self, id: &str) -> PathBuf {
        self.machines().join(id)
    }
    /// Sockets and logs of a machine.
    pub fn run(&self, id: &str) -> PathBuf {
        self.machine(id).join("run")
    }
    /// A disk of a machine.
    pub fn disk(&self, id: &str, number: u64) -> PathBuf {
        self.machine(id).join(format!("disk-{number}"))
    }

    /// The machines, and QEMUs started ahead, that have a directory.
    pub fn machine_ids(&self) -> Vec<String> {
        names_in(&self.machines()).collect()
    }

    /// A machine's disks.
    pub fn disks(&self, id: &str) -> Vec<PathBuf> {
        let dir = self.machine(id);
        let disks = names_in(&dir).filter(|name| name.starts_with("disk-"));
        disks.map(|name| dir.join(name)).collect()
    }

    /// Makes a machine's directory.
    pub fn create_machine(&self, id: &str) -> Result<(), Problem> {
        let dir = self.machine(id);
        std::fs::create_dir_all(&dir).map_err(|error| problem::io("make", &dir, &error))?;
        set_mode(&dir, 0o711)
    }

    /// The first directory on the way to the state that another user may not pass through.
    pub fn blocked_at(&self) -> Option<PathBuf> {
        let resolved = self.state.canonicalize().ok()?;
        let blocked = resolved
            .ancestors()
            .skip(1)
            .find(|dir| std::fs::metadata(dir).is_ok_and(|meta| meta.permissions().mode() & 0o001 == 0));
        blocked.map(Path::to_owned)
    }
}

/// None where there is no directory. A name that is not UTF-8 is none of ours.
fn names_in(dir: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

impl Dirs {
    /// Has nobody else read the state database: it keeps secrets of realms, hosts and remotes.
    pub fn close_database(&self) -> Result<(), Problem> {
        set_mode(&self.database(), 0o600)
    }
}

fn set_mode(dir: &Path, mode: u32) -> Result<(), Problem> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
        .map_err(|error| problem::io("restrict", dir, &error))
}
