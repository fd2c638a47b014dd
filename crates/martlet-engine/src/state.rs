//! What the engine remembers across its own death: one record for each machine, counters that never go back, the
//! trace of each snapshot, and what it takes to adopt a running FUSE connection.
//!
//! An embedded database (redb): every write is one transaction, so a crash leaves the old record or the new one.
//! Snapshots are not here; they are in the store.
//!
//! A write that fails, as on a full disk, leaves the database closed: redb takes no other after it. The next access opens
//! it anew, as after a crash.
//!
//! A new database is made beside its place, and put there when it is whole: half of one could never be opened.

use martlet_store::{Backend, Files};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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
    /// Another process has it open.
    #[error("the state database is in use by another process")]
    InUse,
}

impl StateError {
    /// No room left for the database?
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Database(redb::Error::Io(error)) if error.kind() == io::ErrorKind::StorageFull)
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

impl From<io::Error> for StateError {
    fn from(error: io::Error) -> Self {
        Self::Database(redb::Error::Io(error))
    }
}

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
    files: Arc<dyn Files>,
    path: PathBuf,
    _lock: Box<dyn Any + Send + Sync>,
    /// None after a failed write.
    database: Mutex<Option<Database>>,
}

/// The database in a file, made if the file is empty.
fn open_in(file: Arc<dyn martlet_store::File>) -> Result<Database, StateError> {
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(Backend(file))?;
    let transaction = database.begin_write()?;
    transaction.open_table(MACHINES)?;
    transaction.open_table(COUNTERS)?;
    transaction.open_table(TRACES)?;
    transaction.open_table(SETTINGS)?;
    transaction.commit()?;
    Ok(database)
}

fn open(files: &dyn Files, path: &Path) -> Result<Database, StateError> {
    match files.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(files, path)?;
            open_in(files.open(path)?)
        }
        file => open_in(file?),
    }
}

/// A new database, in its place once all of it is durable.
fn make(files: &dyn Files, path: &Path) -> Result<(), StateError> {
    let new = path.with_extension("new");
    match files.remove(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => drop(open_in(files.create(&new)?)?),
    }
    files.rename(&new, path)?;
    Ok(files.sync_dir(path.parent().unwrap_or(Path::new(".")))?)
}

impl State {
    /// Opens or creates the database. One process at a time.
    pub fn open(path: &Path, files: Arc<dyn Files>) -> Result<Self, StateError> {
        let lock = files
            .lock(&path.with_extension("lock"))?
            .ok_or(StateError::InUse)?;
        Ok(Self {
            database: Mutex::new(Some(open(&*files, path)?)),
            files,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Works with the database, opened if need be.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, StateError>) -> Result<T, StateError> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = match database.take() {
            Some(opened) => opened,
            None => open(&*self.files, &self.path)?,
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

    /// Changes a setting, in one transaction. `change` is given what there is and says what there is to be, or why it is to
    /// stay as it is.
    pub fn change_setting<T: Serialize + DeserializeOwned, E>(
        &self,
        key: &str,
        change: impl FnOnce(Option<T>) -> Result<T, E>,
    ) -> Result<Result<(), E>, StateError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let changed = {
                let mut table = transaction.open_table(SETTINGS)?;
                let now = table.get(key)?.map(|value| value.value().to_vec());
                let now = now.map(|bytes| serde_json::from_slice(&bytes)).transpose()?;
                match change(now) {
                    Ok(value) => {
                        table.insert(key, &*serde_json::to_vec(&value)?)?;
                        Ok(())
                    }
                    Err(refused) => Err(refused),
                }
            };
            match changed {
                Ok(()) => transaction.commit()?,
                Err(_) => transaction.abort()?,
            }
            Ok(changed)
        })
    }

    /// Keeps a setting.
    pub fn put_setting<T: Serialize>(&self, key: &str, value: &T) -> Result<(), StateError> {
        self.put(SETTINGS, key, Some(&serde_json::to_vec(value)?), When::Now)
    }

    /// Changes a setting that may be changed in any way, in one transaction.
    pub fn edit_setting<T: Serialize + DeserializeOwned + Default, R>(
        &self,
        key: &str,
        edit: impl FnOnce(&mut T) -> R,
    ) -> Result<R, StateError> {
        let mut edited = None;
        let changed = self.change_setting(key, |value: Option<T>| {
            let mut value = value.unwrap_or_default();
            edited = Some(edit(&mut value));
            Ok::<_, std::convert::Infallible>(value)
        })?;
        let Ok(()) = changed;
        Ok(edited.expect("the change was made"))
    }

    /// Forgets a setting.
    pub fn remove_setting(&self, key: &str) -> Result<(), StateError> {
        self.put(SETTINGS, key, None, When::Now)
    }

    /// A setting.
    pub fn setting<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StateError> {
        self.get(SETTINGS, key)?
            .map(|bytes| Ok(serde_json::from_slice(&bytes)?))
            .transpose()
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
