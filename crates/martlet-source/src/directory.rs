//! A directory: on this host, on a disk that is carried, on a network's file system.
//!
//! ```text
//! DIR/packs/NAME      an object, under its name only once it is whole and durable
//! DIR/tmp/UNIQUE      one that is being written, or whose writer has died
//! DIR/martlet-remote  says that this is one: where a disk is to be mounted that is not, there is none
//! ```

use crate::unique::{DAY_S, age_s, now_unix_s, unique_name};
use crate::{Entry, Key, Objects, Put, Result, Room, SourceError};
use martlet_store::{File, Files, RealFiles};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Directory {
    dir: PathBuf,
    files: Arc<dyn Files>,
    must_exist: bool,
}

const MARKER: &str = "martlet-remote";

impl Directory {
    /// At `dir`, which becomes one with the first object that is put.
    pub fn new(dir: &Path) -> Self {
        Self::on(dir, Arc::new(RealFiles))
    }

    /// At `dir`, unavailable as long as that is none: nothing is put beside the disk that should be there, and an empty mount
    /// point is not one that has lost everything.
    pub fn existing(dir: &Path) -> Self {
        Self {
            must_exist: true,
            ..Self::new(dir)
        }
    }

    /// The same on other files.
    pub fn on(dir: &Path, files: Arc<dyn Files>) -> Self {
        Self {
            dir: dir.to_owned(),
            files,
            must_exist: false,
        }
    }

    fn check_exists(&self, action: &'static str) -> Result<()> {
        if !self.must_exist || self.files.open_to_read(&self.dir.join(MARKER)).is_ok() {
            return Ok(());
        }
        Err(SourceError::Unavailable {
            place: self.place(),
            action,
            reason: format!("there is no file {MARKER} in it; is its disk not mounted?"),
        })
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.room(key.room()).join(key.name())
    }

    fn room(&self, room: Room) -> PathBuf {
        self.dir.join(room.as_str())
    }

    fn open(&self, key: &Key, action: &'static str) -> Result<Arc<dyn File>> {
        self.files
            .open_to_read(&self.path(key))
            .map_err(|error| match self.check_exists(action) {
                Ok(()) => self.failure(Some(key), action, &error),
                Err(missing) => missing,
            })
    }

    fn failure(&self, key: Option<&Key>, action: &'static str, error: &io::Error) -> SourceError {
        let (place, reason) = (self.place(), error.to_string());
        match (error.kind(), key) {
            (ErrorKind::NotFound, Some(key)) => SourceError::NotFound {
                place,
                key: key.clone(),
            },
            (ErrorKind::StorageFull | ErrorKind::QuotaExceeded, _) => SourceError::Full { place },
            (ErrorKind::ReadOnlyFilesystem, _) => SourceError::ReadOnly { place },
            (ErrorKind::PermissionDenied, _) => SourceError::Refused {
                place,
                action,
                reason,
            },
            _ => SourceError::Unavailable {
                place,
                action,
                reason,
            },
        }
    }

    /// Writes a file that nobody else writes.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = self.files.create(path)?;
        file.set_size(bytes.len() as u64)?;
        file.write_at(0, bytes)?;
        file.sync()
    }

    fn put_by_way_of(&self, tmp: &Path, key: &Key, bytes: &[u8]) -> io::Result<Put> {
        let room = self.room(key.room());
        for dir in [&room, &self.dir.join("tmp")] {
            self.files.create_dir(dir)?;
        }
        if !self.must_exist {
            match self.files.create(&self.dir.join(MARKER)) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        self.write(tmp, bytes)?;
        let put = match self.files.rename_new(tmp, &self.path(key)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.files.remove(tmp)?;
                Put::WasThere
            }
            renamed => renamed.map(|()| Put::Made)?,
        };
        // Also what was there may not have been durable: whoever put it may have died before.
        self.files.sync_dir(&room)?;
        self.files.sync_dir(&self.dir)?;
        Ok(put)
    }
}

impl Objects for Directory {
    fn place(&self) -> String {
        self.dir.display().to_string()
    }

    fn get(&self, key: &Key, size_bytes_max: u64) -> Result<Vec<u8>> {
        let file = self.open(key, "read")?;
        let size_bytes = file
            .size()
            .map_err(|error| self.failure(Some(key), "read", &error))?;
        if size_bytes > size_bytes_max {
            return Err(SourceError::Wrong {
                place: self.place(),
                key: key.clone(),
                reason: format!("{size_bytes} bytes; at most {size_bytes_max} are expected"),
            });
        }
        self.read(&*file, key, 0..size_bytes)
    }

    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        let file = self.open(key, "read")?;
        self.read(&*file, key, range)
    }

    fn put_new(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.check_exists("write")?;
        // Another host may be writing the same one.
        let tmp = self.dir.join("tmp").join(unique_name(now_unix_s()));
        self.put_by_way_of(&tmp, key, bytes).map_err(|error| {
            let _ = self.files.remove(&tmp); // if it is still there
            self.failure(None, "write", &error)
        })
    }

    fn list(&self, room: Room) -> Result<Vec<Entry>> {
        self.check_exists("list")?;
        let listed = |error: io::Error| self.failure(None, "list", &error);
        let names = self.files.list(&self.room(room)).map_err(listed)?;
        let mut entries = Vec::new();
        // Files of other names are none of ours.
        for key in names.into_iter().filter_map(|name| Key::new(room, name)) {
            match self.files.open_to_read(&self.path(&key)) {
                Ok(file) => entries.push(Entry {
                    size_bytes: file.size().map_err(listed)?,
                    key,
                }),
                Err(error) if error.kind() == ErrorKind::NotFound => {} // removed meanwhile
                Err(error) => return Err(listed(error)),
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn remove(&self, key: &Key) -> Result<()> {
        self.check_exists("remove")?;
        let removed = self.files.remove(&self.path(key));
        let removed = removed.and_then(|()| self.files.sync_dir(&self.room(key.room())));
        match removed {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|error| self.failure(None, "remove", &error)),
        }
    }

    fn tidy(&self) -> Result<()> {
        self.check_exists("tidy")?;
        let tmp = self.dir.join("tmp");
        let tidied = self.files.list(&tmp).and_then(|names| {
            let now = now_unix_s();
            let left = |name: &String| age_s(name, now).is_some_and(|age_s| age_s > DAY_S);
            names
                .iter()
                .filter(|name| left(name))
                .map(|name| self.files.remove(&tmp.join(name)))
                .filter(|removed| !matches!(removed, Err(error) if error.kind() == ErrorKind::NotFound))
                .collect()
        });
        tidied.map_err(|error| self.failure(None, "tidy", &error))
    }
}

impl Directory {
    fn read(&self, file: &dyn File, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        match file.read_at(range.start, &mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(SourceError::Wrong {
                place: self.place(),
                key: key.clone(),
                reason: format!("it ends before byte {}", range.end),
            }),
            Err(error) => Err(self.failure(Some(key), "read", &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use martlet_store::faulty::{Fault, FaultyFiles};

    #[test]
    fn a_disk_that_is_not_there_is_not_one_that_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (place, away) = (dir.path().join("remote"), dir.path().join("away"));
        let key = Key::new(Room::Packs, "pack").unwrap();
        let remote = Directory::existing(&place);
        let is_away = |remote: &Directory| {
            let errors = [
                remote.get(&key, 10).unwrap_err(),
                remote.put_new(&key, b"x").map(drop).unwrap_err(),
                remote.list(Room::Packs).map(drop).unwrap_err(),
                remote.remove(&key).unwrap_err(),
            ];
            errors
                .iter()
                .all(|error| matches!(error, SourceError::Unavailable { .. }))
        };
        assert!(is_away(&remote) && !place.exists());
        Directory::new(&place).put_new(&key, b"x").unwrap();
        assert_eq!(remote.get(&key, 10).unwrap(), b"x");
        std::fs::rename(&place, &away).unwrap();
        std::fs::create_dir(&place).unwrap(); // the mount point
        assert!(is_away(&remote));
        std::fs::remove_dir(&place).unwrap();
        std::fs::rename(&away, &place).unwrap();
        assert_eq!(remote.put_new(&key, b"y").unwrap(), Put::WasThere);
    }

    /// Puts an object on a disk that fails at its `after`-th operation, and looks at what is left of it.
    fn cut_short(fault: Fault, after: u64) -> bool {
        let files = FaultyFiles::new();
        let remote = Directory::on(Path::new("/remote"), Arc::new(files.clone()));
        let [old, new] = ["old", "new"].map(|name| Key::new(Room::Packs, name).unwrap());
        let content = vec![7; 100_000];
        assert_eq!(remote.put_new(&old, b"old").unwrap(), Put::Made);
        files.fail_after(after, fault);
        let put = remote.put_new(&new, &content);
        match fault {
            Fault::NoPower => files.crash(after),
            Fault::NoSpace | Fault::Broken => files.mend(),
        }
        match (&put, remote.get(&new, 1 << 20)) {
            (Ok(Put::Made), there) => assert_eq!(there.unwrap(), content),
            (Err(error), Ok(there)) => {
                assert_eq!(there, content, "{error}");
            }
            (Err(error), Err(missing)) => {
                assert!(matches!(missing, SourceError::NotFound { .. }), "{missing}");
                assert!(
                    fault != Fault::NoSpace || matches!(error, SourceError::Full { .. }),
                    "{error}"
                );
            }
            (Ok(Put::WasThere), _) => panic!("nobody else put it"),
        }
        assert_eq!(remote.get(&old, 3).unwrap(), b"old");
        // It goes on where it was cut short.
        remote.put_new(&new, &content).unwrap();
        assert_eq!(remote.get(&new, 1 << 20).unwrap(), content);
        assert_eq!(remote.list(Room::Packs).unwrap().len(), 2);
        put.is_err()
    }

    #[test]
    fn what_dead_writers_left_goes_after_a_day() {
        let dir = Path::new("/remote");
        let files = FaultyFiles::new();
        files.create_dir(&dir.join("tmp")).unwrap();
        let now = now_unix_s();
        let names = [now, now - DAY_S - 100, now + 2 * DAY_S].map(unique_name);
        for name in names.iter().map(String::as_str).chain(["theirs"]) {
            files.create(&dir.join("tmp").join(name)).unwrap();
        }
        Directory::on(dir, Arc::new(files.clone())).tidy().unwrap();
        let left = files.list(&dir.join("tmp")).unwrap();
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(!left.contains(&names[1]));
    }

    #[test]
    fn an_object_is_there_wholly_or_not_at_all() {
        for fault in [Fault::NoSpace, Fault::Broken, Fault::NoPower] {
            let steps = (0..).take_while(|after| cut_short(fault, *after)).count();
            assert!(steps > 2, "{fault:?}: {steps} steps");
        }
    }
}
