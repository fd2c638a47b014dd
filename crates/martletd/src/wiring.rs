//! Where the rooms are wired together: which engine stands behind the API, and what the keeper is.

use crate::engine_control::EngineControl;
use anyhow::{Context, Result};
use martlet_engine::{Engine, Options};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most QEMUs started ahead.
const POOL_MAX: usize = 256;

/// The holder of a line gives a few signs in that time, and nobody waits longer to know that it is gone.
const LEASE_S: RangeInclusive<u32> = 2..=86_400;

/// Where the programs of allocators are installed.
const ALLOCATORS: &str = "/usr/lib/martlet/allocators";

/// Opens the engine on a state directory.
///
/// The agent lies beside this program, or where `MARTLET_AGENT` says; `MARTLET_QEMU` names a QEMU that is not the
/// distribution's, `MARTLET_POOL` how many of it are started ahead, `MARTLET_LEASE` for how many seconds the holder of a
/// machine's line may be silent, `MARTLET_TAKE=no` that machines of other hosts may not go on here, `MARTLET_CLONES_MAX` how many
/// clones may live here at the same time, `MARTLET_CLONES_EACH` how many of the same user, `MARTLET_ALLOCATORS` where the programs of allocators are,
/// `MARTLET_MULTICAST` how fast frames of forks are sent to several hosts at once, if they are.
pub fn control(state_dir: &Path) -> Result<Arc<EngineControl>> {
    let program = std::env::current_exe().context("cannot find out where this program lies")?;
    let beside = program.with_file_name("martlet-agent");
    let options = Options {
        state_dir: state_dir.to_owned(),
        keeper: program,
        agent: std::env::var_os("MARTLET_AGENT").map_or(beside, PathBuf::from),
        qemu: std::env::var_os("MARTLET_QEMU").map(PathBuf::from),
        pool_size: pool_size()?,
        lease_s: lease_s()?,
        takes_machines: takes_machines()?,
        clones_max: clones("MARTLET_CLONES_MAX")?,
        clones_each: clones("MARTLET_CLONES_EACH")?,
        allocators: std::env::var_os("MARTLET_ALLOCATORS").map_or(ALLOCATORS.into(), PathBuf::from),
        multicast: crate::multicast_options::from_env()?,
    };
    let engine = Engine::open(options).map_err(|problem| {
        let because = problem
            .cause
            .as_deref()
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        let remedy = problem
            .remediation
            .as_deref()
            .map(|remedy| format!("; {remedy}"))
            .unwrap_or_default();
        anyhow::anyhow!("{}{because}{remedy}", problem.message)
    })?;
    Ok(Arc::new(EngineControl(engine)))
}

/// How many QEMUs are started ahead: `MARTLET_POOL`, or as many as there are processors, up to four.
fn pool_size() -> Result<usize> {
    match std::env::var("MARTLET_POOL") {
        Ok(text) => match text.parse() {
            Ok(size) if size <= POOL_MAX => Ok(size),
            _ => anyhow::bail!("MARTLET_POOL is {text:?}; a number from 0 to {POOL_MAX} is possible"),
        },
        Err(_) => Ok(std::thread::available_parallelism().map_or(2, |n| n.get()).min(4)),
    }
}

/// Whether machines of other hosts of the fleet may go on here: `MARTLET_TAKE`, `yes` if it is absent.
fn takes_machines() -> Result<bool> {
    match std::env::var("MARTLET_TAKE").as_deref() {
        Ok("yes") | Err(_) => Ok(true),
        Ok("no") => Ok(false),
        Ok(text) => anyhow::bail!("MARTLET_TAKE is {text:?}; yes and no are possible"),
    }
}

/// How many clones may live here at the same time, by a variable; without it as many as there is room for.
fn clones(variable: &str) -> Result<Option<u32>> {
    match std::env::var(variable) {
        Ok(text) => match text.parse() {
            Ok(most) => Ok(Some(most)),
            Err(_) => anyhow::bail!("{variable} is {text:?}; a number is possible"),
        },
        Err(_) => Ok(None),
    }
}

/// For how long the holder of a line may be silent: `MARTLET_LEASE`, or a minute.
fn lease_s() -> Result<u32> {
    match std::env::var("MARTLET_LEASE") {
        Ok(text) => match text.parse() {
            Ok(seconds) if LEASE_S.contains(&seconds) => Ok(seconds),
            _ => anyhow::bail!(
                "MARTLET_LEASE is {text:?}; {} to {} seconds are possible",
                LEASE_S.start(),
                LEASE_S.end()
            ),
        },
        Err(_) => Ok(60),
    }
}

/// Runs the keeper: holds the FUSE descriptor and is the parent of every QEMU.
pub fn keeper(socket: &Path) -> Result<()> {
    martlet_vm::keeper::run(socket).with_context(|| format!("the keeper on {} ended", socket.display()))
}
