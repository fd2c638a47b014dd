//! What there is at a site: what somebody has left behind there is more than was there before.

use super::{Site, lab_failed};
use crate::BenchError;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What ends ends soon after who waits for it is told; QEMUs are started ahead when nothing else is.
const SETTLES_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How many of each there are, QEMUs that are started ahead aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    machines: usize,
    snapshots: usize,
    /// Files of memory and disks that the daemon serves.
    images: usize,
    /// Those in the host's network, so all of the site's and nobody else's.
    processes: usize,
}

impl Census {
    /// Is there as much, or less, of everything?
    fn is_within(&self, before: &Self) -> bool {
        self.machines <= before.machines
            && self.snapshots <= before.snapshots
            && self.images <= before.images
            && self.processes <= before.processes
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} machines, {} snapshots, {} images, {} processes",
            self.machines, self.snapshots, self.images, self.processes
        )
    }
}

impl Site {
    /// What there is once everything has come to rest: as many QEMUs wait as are to.
    pub fn census(&self) -> Result<Census, BenchError> {
        let (census, rests) = self.settled(|_, pool_is_full| pool_is_full)?;
        match rests {
            true => Ok(census),
            false => Err(BenchError::Other(format!(
                "{} does not come to rest: {census}",
                self.name()
            ))),
        }
    }

    /// Fails if there is more of anything than there was before.
    pub fn check_left(&self, before: &Census) -> Result<(), BenchError> {
        let (census, is_within) = self.settled(|census, _| census.is_within(before))?;
        match is_within {
            true => Ok(()),
            false => Err(BenchError::Other(format!(
                "something is left at {}: {census}; before: {before}",
                self.name()
            ))),
        }
    }

    /// Looks until what is seen satisfies; what was seen last, and whether it did.
    fn settled(&self, satisfies: impl Fn(&Census, bool) -> bool) -> Result<(Census, bool), BenchError> {
        let until = Instant::now() + SETTLES_WITHIN;
        loop {
            let (census, pool_is_full) = self.count()?;
            let is_satisfied = satisfies(&census, pool_is_full);
            if is_satisfied || Instant::now() > until {
                return Ok((census, is_satisfied));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What there is now, and whether all QEMUs are there that are to be started ahead. A snapshot that nothing needs any more
    /// is not left behind: it only waits for the next collection.
    fn count(&self) -> Result<(Census, bool), BenchError> {
        self.run(&["gc"])?;
        let of = |what: &str| -> Result<usize, BenchError> {
            Ok(self.run(&[what])?.as_array().map_or(0, Vec::len))
        };
        let pool = self.run(&["df"])?["pool"].take();
        let number = |of: &str| pool[of].as_u64().unwrap_or_default() as usize;
        let ready = number("ready");
        let census = Census {
            machines: of("ps")?,
            snapshots: of("images")?,
            // Each that waits maps a file of zeros.
            images: self.images()?.saturating_sub(ready),
            processes: self.processes()?.saturating_sub(ready),
        };
        Ok((census, ready >= number("size")))
    }

    fn images(&self) -> Result<usize, BenchError> {
        let mut images = 0;
        for kind in ["mem", "disk"] {
            let listed = std::fs::read_dir(self.state.path().join("mnt").join(kind));
            images += listed.map_err(BenchError::io("list images"))?.count();
        }
        Ok(images)
    }

    fn processes(&self) -> Result<usize, BenchError> {
        let own = self.host.run(|| std::fs::read_link("/proc/thread-self/ns/net"));
        let own: PathBuf = own.map_err(lab_failed)?.map_err(BenchError::io("read a link"))?;
        let all = std::fs::read_dir("/proc").map_err(BenchError::io("list processes"))?;
        let is_here = |entry: &std::fs::DirEntry| {
            std::fs::read_link(entry.path().join("ns/net")).is_ok_and(|network| network == own)
        };
        Ok(all.flatten().filter(is_here).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_of_anything_is_left_behind() {
        let before = Census {
            machines: 1,
            snapshots: 2,
            images: 3,
            processes: 4,
        };
        assert!(before.is_within(&before));
        let fewer = Census {
            processes: 2,
            ..before
        };
        assert!(fewer.is_within(&before));
        for more in [
            Census {
                machines: 2,
                ..before
            },
            Census {
                snapshots: 3,
                ..before
            },
            Census { images: 4, ..before },
            Census {
                processes: 5,
                ..before
            },
        ] {
            assert!(!more.is_within(&before), "{more}");
        }
    }
}
