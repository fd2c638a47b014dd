//! Who did what: a file of lines of JSON, to which only is added. When it is full it becomes `FILE.old`, in place of the one
//! before.

use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub time_unix_ms: u64,
    /// A host, a person's token, …
    pub caller: String,
    /// What was to be done.
    pub action: String,
    /// With what.
    pub object: String,
    /// What came of it.
    pub outcome: String,
}

impl Entry {
    /// Of now.
    pub fn now(caller: &str, action: &str, object: &str, outcome: &str) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            time_unix_ms: since.map_or(0, |since| since.as_millis() as u64),
            caller: caller.to_owned(),
            action: action.to_owned(),
            object: object.to_owned(),
            outcome: outcome.to_owned(),
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    bytes_max: u64,
    file: Mutex<(File, u64)>,
}

impl Audit {
    /// Goes on in this file, which is to become no longer than `bytes_max`.
    pub fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            bytes_max,
            file: Mutex::new(open(path)?),
        })
    }

    /// Adds a line.
    pub fn note(&self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let len = line.len() as u64;
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.1 > 0 && guard.1 + len > self.bytes_max {
            let mut old = self.path.clone().into_os_string();
            old.push(".old");
            std::fs::rename(&self.path, old)?;
            *guard = open(&self.path)?;
        }
        if let Err(error) = guard.0.write_all(&line) {
            let _ = guard.0.set_len(guard.1); // half a line would spoil the next one
            return Err(error);
        }
        guard.1 += len;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)?;
    let mut len = file.metadata()?.len();
    // A line that a crash has cut short stays alone.
    let mut last = [b'\n'];
    if len > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last != *b"\n" {
        file.write_all(b"\n")?;
        len += 1;
    }
    Ok((file, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_whole_and_files_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        std::fs::write(&path, "{\"time_un").unwrap();
        let entry = Entry::now("host attic", "pull", "web:\n1", "done");
        for _ in 0..10 {
            let audit = Audit::open(&path, 1000).unwrap();
            (0..3).for_each(|_| audit.note(&entry).unwrap());
        }
        let mut whole = 0;
        for path in [path.clone(), dir.path().join("audit.old")] {
            let text = std::fs::read_to_string(path).unwrap();
            assert!(text.len() <= 1000 && text.ends_with('\n'), "{}", text.len());
            for line in text.lines() {
                assert_eq!(serde_json::from_str::<Entry>(line).unwrap(), entry);
                whole += 1;
            }
        }
        assert!((9..30).contains(&whole), "{whole}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
