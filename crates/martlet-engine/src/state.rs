//! What the engine remembers across its own death: one record for each machine, counters that never go back, the
//! trace of each snapshot, and what it takes to adopt a running FUSE connection.
//!
//! An embedded database (redb): every write is one transaction, so a crash leaves the old record or the new one.
//! Snapshots are not here; they are in the store.
//!
//! A write that fails, as on a full disk, leaves the database closed: redb takes no other after it. The next access opens
//! it anew, as after a crash.

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Of the database's pages, this much is kept in memory.
const CACHE_BYTES: usize = 4 << 20;

const MACHINES: TableDefinition<&str, &[u8]> = TableDefinition::new("machines");
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
const TRACES: TableDefinition<&str, &[u8]> = TableDefinition::new("traces");
const SETTINGS: TableDefinition<&str, &[u8]> = TableDefinition::new("settings");

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The database itself.
    #[error("the state database failed: {0}")]
    Database(#[from] redb::Error),
    /// A record that does not decode.
    #[error("a record in the state database is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
}

impl StateError {
    /// No room left for the database?
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Database(redb::Error::Io(error)) if error.raw_os_error() == Some(libc::ENOSPC))
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => { $(impl From<$error> for StateError {
        fn from(error: $error) -> Self { Self::Database(error.into()) }
    })* };
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

/// How soon a write must survive a crash of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before the call returns.
    Now,
    /// With the next write that must; it survives a crash of this process only if one follows.
    Later,
}

/// The state database.
pub struct State {
    path: PathBuf,
    /// None after a failed write.
    database: Mutex<Option<Database>>,
}

fn open(path: &Path) -> Result<Database, StateError> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
    let transaction = database.begin_write()?;
    transaction.open_table(MACHINES)?;
    transaction.open_table(COUNTERS)?;
    transaction.open_table(TRACES)?;
    transaction.open_table(SETTINGS)?;
    transaction.commit()?;
    Ok(database)
}

impl State {
    /// Opens or creates the database.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        Ok(Self {
            path: path.to_owned(),
            database: Mutex::new(Some(open(path)?)),
        })
    }

    /// Works with the database, opened if need be.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, StateError>) -> Result<T, StateError> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = match database.take() {
            Some(opened) => opened,
            None => open(&self.path)?,
        };
        let done = work(&opened);
        if !matches!(done, Err(StateError::Database(redb::Error::Io(_)))) {
            *database = Some(opened);
        }
        done
    }

    fn put(
        &self,
        table: TableDefinition<&str, &[u8]>,
        key: &str,
        value: Option<&[u8]>,
        when: When,
    ) -> Result<(), StateError> {
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            if when == When::Later {
                transaction
                    .set_durability(Durability::None)
                    .expect("no savepoint was taken in this transaction");
            }
            {
                let mut table = transaction.open_table(table)?;
                match value {
                    Some(value) => drop(table.insert(key, value)?),
                    None => drop(table.remove(key)?),
                }
            }
            Ok(transaction.commit()?)
        })
    }

    fn get(&self, table: TableDefinition<&str, &[u8]>, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            Ok(transaction
                .open_table(table)?
                .get(key)?
                .map(|value| value.value().to_vec()))
        })
    }

    /// Keeps a machine's record.
    pub fn put_machine<T: Serialize>(&self, id: &str, record: &T, when: When) -> Result<(), StateError> {
        self.put(MACHINES, id, Some(&serde_json::to_vec(record)?), when)
    }

    /// Forgets a machine.
    pub fn remove_machine(&self, id: &str) -> Result<(), StateError> {
        self.put(MACHINES, id, None, When::Now)
    }

    /// All machines.
    pub fn machines<T: DeserializeOwned>(&self) -> Result<Vec<T>, StateError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let table = transaction.open_table(MACHINES)?;
            let mut machines = Vec::new();
            for entry in table.iter()? {
                machines.push(serde_json::from_slice(entry?.1.value())?);
            }
            Ok(machines)
        })
    }

    /// The next value of a counter; never the same twice, also across crashes.
    pub fn next(&self, counter: &str) -> Result<u64, StateError> {
        self.take(counter, 1)
    }

    /// `count` consecutive values of a counter; the first one is returned.
    pub fn take(&self, counter: &str, count: u64) -> Result<u64, StateError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let first = {
                let mut table = transaction.open_table(COUNTERS)?;
                let first = table.get(counter)?.map_or(1, |value| value.value());
                table.insert(counter, first + count)?;
                first
            };
            transaction.commit()?;
            Ok(first)
        })
    }

    /// Keeps the trace of a snapshot's first run.
    pub fn put_trace(&self, snapshot: &str, trace: &[u8]) -> Result<(), StateError> {
        self.put(TRACES, snapshot, Some(trace), When::Later)
    }

    /// The trace of a snapshot's first run.
    pub fn trace(&self, snapshot: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.get(TRACES, snapshot)
    }

    /// Forgets a trace.
    pub fn remove_trace(&self, snapshot: &str) -> Result<(), StateError> {
        self.put(TRACES, snapshot, None, When::Later)
    }

    /// Keeps a setting.
    pub fn put_setting<T: Serialize>(&self, key: &str, value: &T) -> Result<(), StateError> {
        self.put(SETTINGS, key, Some(&serde_json::to_vec(value)?), When::Now)
    }

    /// A setting.
    pub fn setting<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StateError> {
        self.get(SETTINGS, key)?
            .map(|bytes| Ok(serde_json::from_slice(&bytes)?))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_counters_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        {
            let state = State::open(&path).unwrap();
            state
                .put_machine("a", &serde_json::json!({"name": "web"}), When::Now)
                .unwrap();
            assert_eq!(state.next("machine").unwrap(), 1);
            assert_eq!(state.take("machine", 8).unwrap(), 2);
            state.put_trace("s", b"abc").unwrap();
            state.put_setting("fuse", &7u32).unwrap();
        }
        let state = State::open(&path).unwrap();
        assert_eq!(
            state.machines::<serde_json::Value>().unwrap(),
            [serde_json::json!({"name": "web"})]
        );
        assert_eq!(state.next("machine").unwrap(), 10);
        assert_eq!(state.trace("s").unwrap().as_deref(), Some(&b"abc"[..]));
        assert_eq!(state.setting::<u32>("fuse").unwrap(), Some(7));
        state.remove_machine("a").unwrap();
        assert!(state.machines::<serde_json::Value>().unwrap().is_empty());
    }

    #[test]
    fn a_database_is_opened_by_one_process_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let _first = State::open(&path).unwrap();
        assert!(matches!(State::open(&path), Err(StateError::Database(_))));
    }

    /// A file system of 1 MiB, gone at the end.
    struct Small(tempfile::TempDir);

    impl Small {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mount = std::process::Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=1M", "small"])
                .arg(dir.path())
                .status();
            assert!(mount.unwrap().success());
            Self(dir)
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount")
                .arg("-l")
                .arg(self.0.path())
                .status();
        }
    }

    #[test]
    fn a_full_disk_costs_the_write_that_found_it_and_no_other() {
        let small = Small::new();
        let state = State::open(&small.0.path().join("state.redb")).unwrap();
        state.put_machine("a", &"kept", When::Now).unwrap();
        let large = "x".repeat(300 << 10);
        let failed = (0..8).find_map(|n| state.put_machine(&format!("large-{n}"), &large, When::Now).err());
        let failed = failed.expect("there is no room for all of them");
        assert!(failed.is_no_space(), "{failed}");
        for n in 0..8 {
            // What no room was found for is not there, and is no harm to remove.
            state.remove_machine(&format!("large-{n}")).unwrap();
        }
        state.put_machine("b", &"kept too", When::Now).unwrap();
        assert_eq!(state.machines::<String>().unwrap(), ["kept", "kept too"]);
    }
}
