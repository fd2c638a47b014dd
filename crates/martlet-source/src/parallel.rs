//! Requests at the same time.

use crate::Result;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Does `work` for all items on so many threads, and `done` here with what comes of each, in any order. An item is made when a
/// thread is free for it, and no thread goes on before its last answer is taken: so there are no more than `threads` of
/// either. After an error nothing new is begun.
pub(crate) fn in_parallel<T: Send, R: Send>(
    threads: usize,
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(T) -> Result<R> + Sync,
    mut done: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let mut items = items.fuse();
    let first: Vec<T> = items.by_ref().take(threads).collect();
    let threads = first.len();
    if threads < 2 {
        return first.into_iter().try_for_each(|item| done(work(item)?));
    }
    let items = Mutex::new(first.into_iter().chain(items));
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let (answer, answers) = sync_channel(0);
    thread::scope(|scope| {
        for answer in vec![answer; threads] {
            let (next, work) = (&next, &work);
            scope.spawn(move || {
                while let Some(item) = next() {
                    let worked = work(item);
                    let failed = worked.is_err();
                    // Nobody listens any more after an error.
                    if answer.send(worked).is_err() || failed {
                        return;
                    }
                }
            });
        }
        answers.into_iter().try_for_each(|worked| done(worked?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SourceError;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn full() -> SourceError {
        SourceError::Full { place: "here".into() }
    }

    #[test]
    fn all_is_done_once_and_at_the_same_time() {
        let together = Barrier::new(4);
        let mut sum = 0;
        let work = |item: u64| {
            together.wait();
            Ok(item)
        };
        in_parallel(4, 0..40, work, |item| {
            sum += item;
            Ok(())
        })
        .unwrap();
        assert_eq!(sum, 40 * 39 / 2);
    }

    #[test]
    fn after_an_error_nothing_new_is_begun() {
        for fails_in_work in [true, false] {
            let begun = AtomicUsize::new(0);
            let work = |item: usize| {
                begun.fetch_add(1, Ordering::Relaxed);
                if fails_in_work && item >= 10 {
                    Err(full())
                } else {
                    Ok(item)
                }
            };
            let ended = in_parallel(3, 0.., work, |item| if item >= 10 { Err(full()) } else { Ok(()) });
            assert!(matches!(ended, Err(SourceError::Full { .. })));
            // One came to here, and each thread has one more.
            assert!(begun.into_inner() <= 10 + 1 + 3, "{fails_in_work}");
        }
    }
}
