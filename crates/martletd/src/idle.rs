//! Is there anything to do? Requests and calls under way are counted; machines are asked for.
//!
//! A machine that lives keeps the daemon, though it would outlive it: its page faults would wait for the next one.

use crate::control::Control;
use martlet_api::MachineState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is under way. Clones share it.
#[derive(Clone)]
pub struct Activity(Arc<Mutex<State>>);

struct State {
    under_way: u64,
    last: Instant,
}

/// Something is under way until this is dropped.
pub struct UnderWay(Activity);

impl Activity {
    /// Nothing is, from now on.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            under_way: 0,
            last: Instant::now(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something begins.
    pub fn begin(&self) -> UnderWay {
        self.state().under_way += 1;
        UnderWay(self.clone())
    }

    /// For how long nothing was under way.
    fn idle(&self) -> Duration {
        let state = self.state();
        match state.under_way {
            0 => state.last.elapsed(),
            _ => Duration::ZERO,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way -= 1;
        state.last = Instant::now();
    }
}

/// Memory goes back to the system when nothing was under way for so long.
const TIDY_AFTER: Duration = Duration::from_secs(2);

/// Whenever something was under way and nothing is any more, gives back the memory that it took.
pub async fn tidy(activity: Activity) {
    let mut tidied = None;
    loop {
        tokio::time::sleep(TIDY_AFTER / 2).await;
        let last = activity.state().last;
        if activity.idle() >= TIDY_AFTER && tidied != Some(last) {
            let _ = tokio::task::spawn_blocking(crate::allocator::give_back).await; // it has panicked, then
            tidied = Some(last);
        }
    }
}

/// Waits for the time when there is nothing to do.
pub struct Idle {
    /// What is under way.
    pub activity: Activity,
    /// Whose machines are looked at.
    pub control: Arc<dyn Control>,
}

impl Idle {
    /// Until nothing was under way for this long, no machine lives, and nothing else goes on.
    pub async fn wait(self, after: Duration) {
        loop {
            let left = after.saturating_sub(self.activity.idle());
            if !left.is_zero() {
                tokio::time::sleep(left).await;
                continue;
            }
            let control = self.control.clone();
            let lives =
                tokio::task::spawn_blocking(move || control.is_at_work() || any_lives(&*control)).await;
            if lives.unwrap_or(true) {
                tokio::time::sleep(after).await;
            } else if self.activity.idle() >= after {
                // Nor has anything begun while the machines were looked at.
                return;
            }
        }
    }
}

fn any_lives(control: &dyn Control) -> bool {
    use MachineState::*;
    let lives = |state| matches!(state, Starting | Running | Pausing);
    control
        .machines()
        .is_ok_and(|machines| machines.iter().any(|machine| lives(machine.state)))
}
