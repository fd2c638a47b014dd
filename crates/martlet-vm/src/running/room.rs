//! A guest whose disk write found the host's disk full stands still: QEMU stops it, with the write still to be done. It
//! goes on when there is room again, and loses nothing.
//!
//! ```text
//!   running ──► no room ──► wait a little ──► is it meant to run? ── yes ──► cont: the write is done again ──► running
//!                  ▲                            no: who stopped it lets it go on  │
//!                  └──────────────────────────────────── still no room ───────────┘
//! ```

use super::{COMMAND_TIMEOUT, RunningVm, Seen};
use crate::qmp::{QmpClient, QmpError};
use serde_json::Value;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

/// Between two attempts to go on.
const RETRY: Duration = Duration::from_millis(500);
/// A write that finds no room again has done so after this time.
const SETTLE: Duration = Duration::from_millis(50);

impl RunningVm {
    /// Does the guest stand still because a write found the disk full?
    pub fn is_out_of_room(&self) -> bool {
        self.seen.facts().out_of_room
    }
}

/// Lets the guest go on whenever it was out of room, as long as somebody is connected to QEMU.
pub(super) fn watch(seen: Arc<Seen>, qmp: Weak<QmpClient>) -> std::io::Result<()> {
    let watcher = move || {
        while wait_until_out_of_room(&seen) {
            let Some(tried) = qmp.upgrade().map(|qmp| go_on(&seen, &qmp)) else {
                return;
            };
            std::thread::sleep(SETTLE);
            let Some(now) = qmp.upgrade().map(|qmp| stands_still(&qmp)) else {
                return;
            };
            match tried.and(now) {
                Ok(true) => std::thread::sleep(RETRY),
                Ok(false) => seen.facts().out_of_room = false,
                Err(error) => {
                    tracing::warn!(%error, "a guest does not go on after the disk was full");
                    std::thread::sleep(RETRY);
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("room".into())
        .spawn(watcher)
        .map(drop)
}

/// False when QEMU is at its end.
fn wait_until_out_of_room(seen: &Seen) -> bool {
    let facts = seen.facts();
    let facts = seen
        .changed
        .wait_while(facts, |facts| !facts.out_of_room && !facts.ended);
    !facts.unwrap_or_else(PoisonError::into_inner).ended
}

fn go_on(seen: &Seen, qmp: &QmpClient) -> Result<(), QmpError> {
    // Nobody stops the guest meanwhile: it would run where it must stand still.
    let is_meant_to_run = seen.meant_to_run();
    match *is_meant_to_run {
        true => qmp.execute("cont", Value::Null, COMMAND_TIMEOUT).map(drop),
        false => Ok(()),
    }
}

fn stands_still(qmp: &QmpClient) -> Result<bool, QmpError> {
    let answer = qmp.execute("query-status", Value::Null, COMMAND_TIMEOUT)?;
    Ok(answer["status"] == "io-error")
}
