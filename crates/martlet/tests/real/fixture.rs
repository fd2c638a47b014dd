//! Bases and booted machines that tests start from. Each is made when it is first asked for and never changed
//! afterwards: a test copies the state directory that holds it. It is kept in cargo's directory for what tests make,
//! until the programs or QEMU change.

use crate::Daemon;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// What a daemon's store has at the start of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fixture {
    /// Base `tiny`, and its checkpoint `tiny0:booted` of 128 MiB with nothing but the agent and busybox.
    Tiny,
    /// Base `debian` with systemd and [`PACKAGES`], and its checkpoint `debian0:booted` of 512 MiB, booted.
    Debian,
}

/// Packages of the Debian fixture.
const PACKAGES: &str = "redis-server,postgresql,sqlite3,fio,stress-ng,procps,iproute2";
/// Parts of a state directory that a store and its bases consist of.
const PARTS: [&str; 3] = ["store", "engine.redb", "cache"];

static MAKING: Mutex<()> = Mutex::new(());

impl Fixture {
    /// Gives `daemon`, which does not run, a copy of the fixture.
    pub fn copy_to(self, state_dir: &Path) {
        copy(&self.made(), state_dir);
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Debian => "debian",
        }
    }

    /// The directory that holds it, made if need be.
    fn made(self) -> PathBuf {
        let _one_at_a_time = MAKING.lock().unwrap_or_else(|error| error.into_inner());
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let prefix = format!("fixture-{}-", self.name());
        let dir = kept.join(format!("{prefix}{:016x}", self.key()));
        if dir.exists() {
            return dir;
        }
        for old in fs::read_dir(kept).unwrap().flatten() {
            if old.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_dir_all(old.path()).unwrap();
            }
        }
        let daemon = Daemon::for_fixture(self.name());
        let (base, memory) = (self.name(), self.memory());
        match self {
            Self::Tiny => daemon.ok(&["base", "build", base, "--tiny"]),
            Self::Debian => daemon.ok(&["base", "build", base, "--packages", PACKAGES]),
        };
        let machine = format!("{base}0");
        daemon.ok(&["run", base, "--name", &machine, "--memory", memory]);
        daemon.ok(&["checkpoint", &machine, "--tag", "booted"]);
        daemon.ok(&["rm", "--force", &machine]);
        let index = daemon.state_dir().join("store/index.redb");
        let grown_bytes = fs::metadata(&index).unwrap().len();
        daemon.ok(&["daemon", "stop"]);
        let left_bytes = fs::metadata(&index).unwrap().len();
        // A whole system makes it grow by many commits, and most of that is free at the end.
        assert!(
            left_bytes <= grown_bytes && (self == Self::Tiny || left_bytes * 2 < grown_bytes),
            "of an index of {grown_bytes} bytes {left_bytes} are left"
        );
        let scratch = dir.with_extension(std::process::id().to_string());
        fs::create_dir_all(&scratch).unwrap();
        copy(daemon.state_dir(), &scratch);
        fs::rename(&scratch, &dir).unwrap();
        dir
    }

    fn memory(self) -> &'static str {
        match self {
            Self::Tiny => "128M",
            Self::Debian => "512M",
        }
    }

    /// What it depends on: other programs make another fixture.
    fn key(self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self, PACKAGES).hash(&mut hasher);
        let programs = Path::new(env!("CARGO_BIN_EXE_martlet")).parent().unwrap();
        for program in ["martletd", "martlet-agent"] {
            fs::read(programs.join(program))
                .unwrap_or_default()
                .hash(&mut hasher);
        }
        let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
        qemu.map(|output| output.stdout)
            .unwrap_or_default()
            .hash(&mut hasher);
        hasher.finish()
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .args(["-a", "--reflink=auto", "--"])
        .args(PARTS.map(|part| from.join(part)))
        .arg(to)
        .status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "a fixture was not copied"
    );
}
