//! Threads for what takes its time. One that has done its work waits for more, because under emulation a guest that was
//! just restored has the code that starts a thread translated anew, which is a third of what running a command takes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// More that wait would only take memory.
const IDLE_MAX: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    idle: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Runs jobs at once, each on a thread of its own.
#[derive(Default)]
pub struct Workers(Arc<Shared>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, mut job: Job) {
        loop {
            job();
            let mut state = self.state();
            if state.idle >= IDLE_MAX {
                return;
            }
            state.idle += 1;
            let none = |state: &mut State| state.waiting.is_empty();
            let waited = self.changed.wait_while(state, none);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            let Some(next) = state.waiting.pop_front() else {
                return;
            };
            job = next;
        }
    }
}

impl Workers {
    /// Runs `job`. Fails when no thread waits and none can be started.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let job: Job = Box::new(job);
        let mut state = self.0.state();
        if state.idle > 0 {
            // Whoever is woken takes it, so it does not wait any more.
            state.idle -= 1;
            state.waiting.push_back(job);
            self.0.changed.notify_one();
            return Ok(());
        }
        drop(state);
        let shared = Arc::clone(&self.0);
        thread::Builder::new().spawn(move || shared.work(job)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn no_job_waits_for_another_and_threads_are_used_again() {
        const JOBS: usize = 8;
        let workers = Workers::default();
        let mut threads = std::collections::HashSet::new();
        for _ in 0..4 {
            let (met, meeting) = (Arc::new(std::sync::Barrier::new(JOBS)), channel());
            for _ in 0..JOBS {
                let (met, tell) = (Arc::clone(&met), meeting.0.clone());
                // They only get on all together.
                workers
                    .run(move || {
                        met.wait();
                        tell.send(thread::current().id()).unwrap();
                    })
                    .unwrap();
            }
            for _ in 0..JOBS {
                threads.insert(meeting.1.recv_timeout(Duration::from_secs(20)).unwrap());
            }
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while workers.0.state().idle < IDLE_MAX {
                assert!(std::time::Instant::now() < deadline, "nobody waits for more");
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(threads.len() <= JOBS + 3 * (JOBS - IDLE_MAX), "{}", threads.len());
    }
}
