//! Deaths on demand, for tests: with `MARTLET_CRASH_AT=fork:3` in its environment the daemon kills itself (SIGKILL) at the
//! third step of a fork. `docs/faults.md` lists what has steps. A step without it is one look at an empty constant.

use rustix::process::{Signal, getpid, kill_process};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Planned {
    operation: String,
    /// Steps still to come, this one included.
    left: AtomicU64,
}

static PLANNED: LazyLock<Option<Planned>> = LazyLock::new(|| {
    let text = std::env::var("MARTLET_CRASH_AT").ok()?;
    let (operation, step) = text.split_once(':')?;
    Some(Planned {
        operation: operation.to_owned(),
        left: AtomicU64::new(step.parse().ok()?),
    })
});

/// The operation has come to its next step.
pub(crate) fn step(operation: &str) {
    let Some(planned) = &*PLANNED else { return };
    if planned.operation == operation && planned.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        tracing::warn!(operation, "the daemon kills itself, as MARTLET_CRASH_AT says");
        let _ = kill_process(getpid(), Signal::KILL); // nobody is there to hear of it
        std::thread::park();
    }
}
