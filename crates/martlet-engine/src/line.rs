//! A machine's line: the history of it that a remote keeps, and what this host holds of it.
//!
//! ```text
//!          acquired: first published, resumed
//!   Free ─────────────────────────────────────► Held
//!    ▲ ▲        suspended, published             │ │
//!    │ └─────────────────────────────────────────┘ │ broken or taken over elsewhere
//!    │          published as a side branch         ▼
//!    └─────────────────────────────────────────── Lost
//! ```
//!
//! Only a machine whose line is held runs on it. One whose line was lost goes on, as nothing of its work is to be lost, but
//! off the line.

use martlet_api::{LineInfo, LineState};
use martlet_image::SnapshotId;
use martlet_source::{Beat, Lease, LeaseId, Stamp};
use martlet_store::{RefName, StoreError};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Other hosts' clocks may be so wrong.
const CLOCKS_S: u64 = 60 * 60;

/// See the module's documentation. Part of a machine's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The remote that keeps it.
    pub remote: String,
    /// What it is called there.
    pub reference: String,
    /// Who may go on with it.
    pub hold: Hold,
    /// The version that was published last from here, or came from there; 0: none yet.
    pub version: u32,
    /// The snapshot that is.
    pub published: Option<SnapshotId>,
    /// While it runs it is published so often.
    pub every_s: Option<u32>,
    /// Names of the checkpoints that were made for that and are still here: the newest stays until the next one.
    #[serde(default)]
    pub behind: Vec<String>,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// Nobody does here.
    Free,
    /// This host does.
    Held {
        /// Under this lease.
        lease: String,
        /// It may be silent for so long.
        lasts_s: u32,
        /// It is checked out until then.
        until_unix_s: Option<u64>,
    },
    /// This host did.
    Lost,
}

impl Hold {
    pub fn of(lease: &Lease) -> Self {
        Self::Held {
            lease: lease.id.to_string(),
            lasts_s: lease.lasts_s,
            until_unix_s: lease.until_unix_s,
        }
    }

    /// The lease that is held.
    pub fn lease(&self) -> Option<Lease> {
        match self {
            Self::Held {
                lease,
                lasts_s,
                until_unix_s,
            } => Some(Lease {
                id: lease.parse().ok()?,
                lasts_s: *lasts_s,
                until_unix_s: *until_unix_s,
            }),
            Self::Free | Self::Lost => None,
        }
    }

    pub fn is(&self, id: &LeaseId) -> bool {
        self.lease().is_some_and(|lease| lease.id == *id)
    }
}

impl Line {
    /// One of which nothing is published from here, nor held.
    pub fn new(remote: &str, reference: &RefName) -> Self {
        Self {
            remote: remote.to_owned(),
            reference: reference.to_string(),
            hold: Hold::Free,
            version: 0,
            published: None,
            every_s: None,
            behind: Vec::new(),
        }
    }

    /// What it is called at its remote.
    pub fn name(&self) -> Result<RefName, StoreError> {
        self.reference.parse()
    }

    /// As the API shows it, of a machine whose newest snapshot is this one.
    pub fn info(&self, newest: Option<SnapshotId>) -> LineInfo {
        LineInfo {
            remote: self.remote.clone(),
            reference: self.reference.clone(),
            state: match self.hold {
                Hold::Free => LineState::Free,
                Hold::Held { .. } => LineState::Held,
                Hold::Lost => LineState::Lost,
            },
            version: self.version,
            published: self.published.is_some() && self.published == newest,
            every_s: self.every_s,
        }
    }
}

/// Whether another holder of a lease is to be presumed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presumed {
    /// It is.
    There,
    /// It has been silent for as long as its lease lasts.
    Gone,
    /// It has, if it is so for this long.
    GoneAfter(Duration),
}

/// What is to be presumed of the holder of a lease that put `version` and gave this last sign. `seen` is how long that sign
/// has been the last one, by this host's own clock. Clocks of two hosts are compared only to say sooner that it is there.
pub fn presumed(
    lease: &Lease,
    version: &Stamp,
    beat: Option<&Beat>,
    seen: Duration,
    now_unix_s: u64,
) -> Presumed {
    if let Some(until) = lease.until_unix_s {
        return match now_unix_s > until.saturating_add(CLOCKS_S) {
            true => Presumed::Gone,
            false => Presumed::There,
        };
    }
    let lasts = Duration::from_secs(lease.lasts_s.into());
    let sign_unix_s = beat.map_or(version.unix_s, |beat| beat.by.unix_s);
    if seen >= lasts {
        return Presumed::Gone;
    }
    match now_unix_s.saturating_sub(sign_unix_s) < lease.lasts_s.into() {
        true => Presumed::There,
        false => Presumed::GoneAfter(lasts - seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const HOUR: u64 = 3600;

    fn stamp(unix_s: u64) -> Stamp {
        Stamp {
            unix_s,
            host: "home".into(),
        }
    }

    fn after(seen_s: u64, sign_unix_s: u64) -> Presumed {
        let beat = Beat {
            number: 3,
            by: stamp(sign_unix_s),
        };
        let lease = Lease::new(60, None);
        presumed(
            &lease,
            &stamp(NOW - 9 * HOUR),
            Some(&beat),
            Duration::from_secs(seen_s),
            NOW,
        )
    }

    #[test]
    fn who_gives_signs_is_there_and_who_gives_none_is_gone_after_a_while() {
        assert_eq!(after(0, NOW - 20), Presumed::There);
        assert_eq!(after(0, NOW - 61), Presumed::GoneAfter(Duration::from_secs(60)));
        assert_eq!(after(45, NOW - 106), Presumed::GoneAfter(Duration::from_secs(15)));
        assert_eq!(after(60, NOW - 121), Presumed::Gone);
    }

    #[test]
    fn clocks_an_hour_apart_take_nothing_from_who_is_there() {
        // One that is behind looks silent: it is observed, and its next sign is seen in time.
        assert_eq!(
            after(20, NOW - HOUR - 20),
            Presumed::GoneAfter(Duration::from_secs(40))
        );
        // One that is ahead and has died counts as gone all the same, once it was observed.
        assert_eq!(after(59, NOW + HOUR), Presumed::There);
        assert_eq!(after(60, NOW + HOUR), Presumed::Gone);
        let lease = Lease::new(60, Some(NOW - HOUR + 1));
        let of_checked_out = |now| presumed(&lease, &stamp(1), None, Duration::from_secs(99), now);
        assert_eq!(of_checked_out(NOW), Presumed::There);
        assert_eq!(of_checked_out(NOW + 2), Presumed::Gone);
    }

    #[test]
    fn a_hold_is_of_its_lease() {
        let lease = Lease::new(60, Some(7));
        let hold = Hold::of(&lease);
        assert!(hold.is(&lease.id) && !hold.is(&Lease::new(60, None).id));
        assert_eq!(hold.lease(), Some(lease));
        assert_eq!(Hold::Lost.lease(), None);
    }
}
