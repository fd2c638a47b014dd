//! A remote that takes and gives no more than so many bytes per second, in each direction.

use crate::{Entry, Key, Objects, Put, Result, Room};
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// See the module's documentation. A request goes at once, and the next ones wait until its bytes are paid for.
#[derive(Debug)]
pub struct Throttled {
    objects: Arc<dyn Objects>,
    up: Bucket,
    down: Bucket,
}

impl Throttled {
    /// With one limit for each direction.
    pub fn new(objects: Arc<dyn Objects>, bytes_per_second: NonZeroU64) -> Self {
        let [up, down] = [(); 2].map(|()| Bucket {
            bytes_per_second,
            paid_at: Mutex::new(Instant::now()),
        });
        Self { objects, up, down }
    }
}

/// Tokens, as the time at which there are enough again.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: NonZeroU64,
    paid_at: Mutex<Instant>,
}

impl Bucket {
    /// Takes tokens for so many bytes, when all that were taken before are paid for. The time of that.
    fn take(&self, bytes: u64) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = Instant::now().max(*paid_at);
        *paid_at = begins.checked_add(takes).unwrap_or(begins);
        begins
    }

    fn wait(&self, bytes: u64) {
        thread::sleep(self.take(bytes).saturating_duration_since(Instant::now()));
    }
}

impl Objects for Throttled {
    fn place(&self) -> String {
        self.objects.place()
    }

    fn is_writable(&self) -> bool {
        self.objects.is_writable()
    }

    fn get(&self, key: &Key, size_bytes_max: u64) -> Result<Vec<u8>> {
        self.down.wait(0);
        let bytes = self.objects.get(key, size_bytes_max)?;
        self.down.take(bytes.len() as u64); // only known now
        Ok(bytes)
    }

    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.down.wait(range.end.saturating_sub(range.start));
        self.objects.get_range(key, range)
    }

    fn read_range(
        &self,
        key: &Key,
        range: Range<u64>,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.down.wait(range.end.saturating_sub(range.start));
        self.objects.read_range(key, range, each)
    }

    fn put_new(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.up.wait(bytes.len() as u64);
        self.objects.put_new(key, bytes)
    }

    fn list(&self, room: Room) -> Result<Vec<Entry>> {
        self.objects.list(room)
    }

    fn remove(&self, key: &Key) -> Result<()> {
        self.objects.remove(key)
    }

    fn tidy(&self) -> Result<()> {
        self.objects.tidy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Directory;
    use martlet_store::faulty::FaultyFiles;
    use std::path::Path;

    #[test]
    fn so_many_bytes_take_so_long_also_at_the_same_time() {
        let files = Arc::new(FaultyFiles::new());
        let directory = Directory::on(Path::new("/remote"), files);
        let remote = Throttled::new(Arc::new(directory), NonZeroU64::new(1 << 20).unwrap());
        let key = |number: u32| Key::new(Room::Packs, number.to_string()).unwrap();
        let content = vec![1; 16 << 10];
        let takes = |work: &(dyn Fn(u32) + Sync)| {
            let began = Instant::now();
            thread::scope(|scope| {
                for number in 0..4 {
                    scope.spawn(move || work(number));
                }
            });
            began.elapsed()
        };
        // The first one goes at once.
        let least = Duration::from_secs(3) / 64;
        let put = takes(&|number| assert_eq!(remote.put_new(&key(number), &content).unwrap(), Put::Made));
        let part = takes(&|number| drop(remote.get_range(&key(number), 0..16 << 10).unwrap()));
        assert!(put >= least && part >= least, "{put:?}, {part:?}");
        let whole = takes(&|_| {
            remote.get(&key(0), 16 << 10).unwrap();
            remote.get(&key(1), 16 << 10).unwrap();
        });
        assert!(whole >= Duration::from_secs(1) / 64, "{whole:?}");
    }
}
