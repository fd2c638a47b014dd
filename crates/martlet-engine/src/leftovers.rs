//! What a daemon that died left in the state directory and no record speaks of: machines whose first start nobody
//! waits for any more, directories of machines that were being forgotten and of QEMUs that were started ahead, disks that
//! a restore or a suspend was about to delete.

use crate::engine::Engine;
use crate::machine::Record;
use crate::phase::Phase;
use std::collections::HashMap;
use std::path::Path;

impl Engine {
    /// Removes it. All records are loaded, and nothing else works on a machine yet.
    pub(crate) fn remove_leftovers(&self) {
        for machine in self.all().iter().filter(|machine| machine.record().awaited) {
            // Whoever waited for its start has heard that the daemon is gone, and not of the machine.
            let _ = self.forget(machine); // logged
        }
        let known: HashMap<String, Record> = self
            .all()
            .iter()
            .map(|machine| machine.record())
            .map(|record| (record.id.clone(), record))
            .collect();
        for id in self.dirs.machine_ids() {
            match known.get(&id) {
                None => remove(&self.dirs.machine(&id)),
                Some(record) => self.remove_old_disks(record),
            }
        }
    }

    fn remove_old_disks(&self, record: &Record) {
        let kept = match record.phase {
            // All that it had is in its snapshot.
            Phase::Suspended | Phase::Moved { .. } => [None, None],
            _ => [
                Some(record.disk_number),
                record.undo.as_ref().map(|before| before.disk_number),
            ],
        };
        let kept = kept.map(|number| number.map(|number| self.dirs.disk(&record.id, number)));
        for disk in self.dirs.disks(&record.id) {
            if !kept.contains(&Some(disk.clone())) {
                remove(&disk);
            }
        }
    }
}

fn remove(dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(dir) {
        tracing::warn!(dir = %dir.display(), %error, "it stays behind");
    }
}
