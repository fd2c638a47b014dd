//! What other hosts of the fleet may do here: all of it, as long as it can be noted.

use crate::engine::lock;
use martlet_peer::{Access, Audit, AuditEntry, Code, Policy, Refusal};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Guests read memory of other hosts thousands of times a second; that a host goes on reading is noted no more often than this.
const READS_NOTED_APART: Duration = Duration::from_secs(60);

/// Allows what can be noted.
pub(crate) fn noting(audit: Arc<Audit>) -> Policy {
    let reads_noted: Mutex<HashMap<String, Instant>> = Mutex::default();
    Arc::new(move |host, access| {
        let (action, what) = match access {
            Access::Read => ("read", "snapshots"),
            Access::Write => ("write", "snapshots"),
            Access::Run => ("run", "machines"),
        };
        let mut reads_noted = lock(&reads_noted);
        let last = reads_noted.get(host);
        if access == Access::Read && last.is_some_and(|last| last.elapsed() < READS_NOTED_APART) {
            return Ok(());
        }
        let noted = audit.note(&AuditEntry::now(host, action, what, "allowed"));
        noted.map_err(|error| {
            tracing::warn!(%error, "the audit log cannot be written");
            let code = match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::NoSpace,
                _ => Code::Failed,
            };
            Refusal::new(
                code,
                format!("this host does nothing that it cannot note: {error}"),
            )
        })?;
        if access == Access::Read {
            reads_noted.insert(host.to_owned(), Instant::now());
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_goes_on_reading_is_noted_once_and_all_else_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let policy = noting(Audit::open(&path, 1 << 20).unwrap().into());
        for _ in 0..3 {
            for (host, access) in [
                ("attic", Access::Read),
                ("cellar", Access::Read),
                ("attic", Access::Write),
                ("attic", Access::Run),
            ] {
                policy(host, access).unwrap();
            }
        }
        let text = std::fs::read_to_string(path).unwrap();
        let entries = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let entries: Vec<AuditEntry> = entries.collect();
        let count = |host: &str, action: &str| {
            let is_it = |entry: &&AuditEntry| entry.caller == host && entry.action == action;
            entries.iter().filter(is_it).count()
        };
        assert_eq!([count("attic", "read"), count("cellar", "read")], [1, 1]);
        assert_eq!([count("attic", "write"), count("attic", "run")], [3, 3]);
    }
}
