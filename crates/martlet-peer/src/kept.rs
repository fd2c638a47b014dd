//! Connections that are kept for who asks next.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Connections that are kept.
const KEPT_MAX: usize = 8;
/// For so long, which is less than servers keep them.
const KEPT: Duration = Duration::from_secs(60);

/// See the module's documentation. What was used last is used next.
pub(crate) struct Kept<T>(Mutex<Vec<(Instant, T)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Kept<T> {
    fn all(&self) -> MutexGuard<'_, Vec<(Instant, T)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of which nothing is known against it. It may have ended all the same.
    pub(crate) fn take(&self, is_open: impl Fn(&T) -> bool) -> Option<T> {
        let mut all = self.all();
        all.retain(|(since, connection)| since.elapsed() < KEPT && is_open(connection));
        all.pop().map(|(_, connection)| connection)
    }

    /// This one may be used again.
    pub(crate) fn keep(&self, connection: T) {
        let mut all = self.all();
        if all.len() < KEPT_MAX {
            all.push((Instant::now(), connection));
        }
    }

    /// The host that they lead to has gone: each would be waited for.
    pub(crate) fn clear(&self) {
        self.all().clear();
    }
}
