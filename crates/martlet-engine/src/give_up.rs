//! What a guest gives up before it stands still, when its checkpoint asks for that. What each is worth is measured in
//! docs/dead-bytes.md.

use crate::guest::no_agent;
use crate::live::Live;
use crate::machine::Record;
use crate::problem::Told;
use martlet_api::{CheckpointRequest, Problem};
use martlet_vm::usage;
use std::time::{Duration, Instant};

/// A guest writes back its page cache, and discards its free blocks, within this time.
const GUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// A kernel reports free pages at most every two seconds, a part of them each time. When none came for longer than that,
/// none will.
const SILENCE: Duration = Duration::from_millis(2500);
/// A busy guest frees memory for ever.
const REPORTS_TIMEOUT: Duration = Duration::from_secs(15);
const LOOKS_EVERY: Duration = Duration::from_millis(100);

/// Lets the guest give up what `request` says. How long that took.
pub(crate) fn before_pause(
    live: &Live,
    record: &Record,
    request: &CheckpointRequest,
) -> Result<Duration, Problem> {
    if !request.trim && !request.drop_caches {
        return Ok(Duration::ZERO);
    }
    let since = Instant::now();
    let agent = live.agent().ok_or_else(|| no_agent(record))?;
    // Neither a dirty page nor a block that was freed a moment ago can be given up before this.
    agent
        .sync_fs(GUEST_TIMEOUT)
        .told_as("the guest did not write back its page cache, so nothing was saved")?;
    if request.drop_caches {
        agent
            .drop_caches(GUEST_TIMEOUT)
            .told_as("the guest did not drop its page cache, so nothing was saved")?;
    }
    if request.trim {
        agent
            .fstrim(GUEST_TIMEOUT)
            .told_as("the guest's file systems could not be trimmed, so nothing was saved")?;
    }
    if request.drop_caches {
        wait_for_reports(live);
    }
    Ok(since.elapsed())
}

/// What was dropped is free in the guest, and QEMU's no more once the guest has reported it.
fn wait_for_reports(live: &Live) {
    let private_bytes = || usage::of(live.vm.pid()).map_or(0, |usage| usage.private_bytes);
    let deadline = Instant::now() + REPORTS_TIMEOUT;
    let (mut least_bytes, mut since) = (private_bytes(), Instant::now());
    while since.elapsed() < SILENCE && Instant::now() < deadline {
        std::thread::sleep(LOOKS_EVERY);
        let now_bytes = private_bytes();
        if now_bytes < least_bytes {
            (least_bytes, since) = (now_bytes, Instant::now());
        }
    }
}
