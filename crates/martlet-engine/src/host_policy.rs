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
    Arc::new(move |host, access| match access {
        Access::Read => {
            let noted_lately = |last: &Instant| last.elapsed() < READS_NOTED_APART;
            // The lock is not held while the line is written: two reads at once may both be noted.
            if lock(&reads_noted).get(host).is_some_and(noted_lately) {
                return Ok(());
            }
            note(&audit, host, "read", "snapshots")?;
            lock(&reads_noted).insert(host.to_owned(), Instant::now());
            Ok(())
        }
        Access::Write => note(&audit, host, "write", "snapshots"),
        Access::Run => note(&audit, host, "run", "machines"),
    })
}

fn note(audit: &Audit, host: &str, action: &str, what: &str) -> Result<(), Refusal> {
    let noted = audit.note(&AuditEntry::now(host, action, what, "allowed"));
    noted.map_err(|error| {
        tracing::warn!(%error, "the audit log cannot be written");
        let code = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::NoSpace,
            _ => Code::Failed,
        };
        let words = format!("this host does nothing that it cannot note: {error}");
        Refusal::new(code, words)
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
