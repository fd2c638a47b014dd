//! Snapshots that one host hands to another: their outline goes at once, their frames when they are read there, and behind.
//!
//! ```text
//!   hand_over ──► outline put there ──► Handed ──► take_handed: promised ──► put ──► used, while the rest comes
//! ```
//!
//! The outline is what a machine goes on from: device state, manifests and trace. It does not grow with memory as such, but with what of it is
//! not zero (SnowFlock calls it the VM descriptor).

use crate::engine::Engine;
use crate::problem::Told;
use crate::transfer::Listed;
use martlet_api::{Problem, ProblemCode, Progress, ProgressSink, ProgressUnit};
use martlet_image::{SnapshotId, SnapshotRecord};
use martlet_peer::PeerClient;
use martlet_store::{Batch, Key, Kind, Part, RefName, StoreError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A snapshot of which a host has the outline by now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Handed {
    /// Its id.
    pub snapshot: String,
    /// What it is called where it comes from.
    pub reference: String,
    /// Its record.
    pub record: SnapshotRecord,
}

impl Engine {
    /// Sends another host what it lacks of a snapshot's outline. Also tells how many bytes went.
    pub(crate) fn hand_over(
        &self,
        peer: &PeerClient,
        id: SnapshotId,
        progress: ProgressSink<'_>,
    ) -> Result<(Handed, u64), Problem> {
        let record = self.store.snapshot(&id).told()?;
        let mut keys = Vec::new();
        let walked: Result<(), StoreError> = self.store.walk(&record, Part::Outline, &mut |some| {
            keys.extend_from_slice(some);
            Ok(())
        });
        walked.told()?;
        let needs = self.store.located(keys).told()?;
        let sent_bytes = self.send_to(peer, &needs, "handing it over", progress)?;
        let reference = self.store.refs_to(&id).first().map(RefName::to_string);
        let reference = reference.ok_or_else(|| {
            Problem::new(
                ProblemCode::Internal,
                "the snapshot that is handed over has no name",
            )
        })?;
        let handed = Handed {
            snapshot: id.to_string(),
            reference,
            record,
        };
        Ok((handed, sent_bytes))
    }

    /// Sends another host those of these objects that it lacks; how many bytes went.
    pub(crate) fn send_to(
        &self,
        peer: &PeerClient,
        needs: &[(Key, u32)],
        stage: &str,
        progress: ProgressSink<'_>,
    ) -> Result<u64, Problem> {
        let mut told = |done: u64, total: u64| {
            progress(Progress {
                stage: stage.into(),
                done,
                total: Some(total),
                unit: ProgressUnit::Bytes,
            });
        };
        let sent = martlet_peer::send(&self.store, peer, needs, &mut told).told()?;
        Ok(sent.sent_bytes)
    }

    /// Believes a snapshot whose outline is here: `name` says what it is called here, if anything. The rest is promised, and comes
    /// when it is read, and behind. What has no name is kept from collection while the batch lives.
    pub(crate) fn take_handed(
        self: &Arc<Self>,
        from: &str,
        handed: &Handed,
        name: impl FnOnce(SnapshotId) -> Result<Option<RefName>, Problem>,
    ) -> Result<(SnapshotId, Batch), Problem> {
        let record = &handed.record;
        let bad = |words: &str| Problem::new(ProblemCode::Damaged, format!("{}: {words}", handed.reference));
        let there: RefName = handed.reference.parse().told()?;
        let mut batch = self.store.begin().told()?;
        self.store
            .walk(record, Part::Outline, &mut |keys| {
                batch.rely_on(keys.iter().copied());
                match self.store.lacks(keys)?.len() {
                    0 => Ok(()),
                    count => Err(StoreError::NotFound(format!("{count} objects"))),
                }
            })
            .told_as("what the machine goes on from has not come")?;
        let encoded = record.encode();
        let id = SnapshotId::of(&encoded.map_err(|error| bad("this is no snapshot").cause(error))?);
        if id.to_string() != handed.snapshot {
            return Err(bad("this is another snapshot"));
        }
        let listed = Listed {
            remote: from.to_owned(),
            reference: there.to_string(),
            rest: true,
        };
        let called = name(id)?;
        let keeper = self.store.begin().told()?;
        keeper.rely_on([Key::new(Kind::Snapshot, id.0)]);
        self.promise_rest(id, record, listed, None)?;
        batch.put_snapshot(record).told()?;
        let named: Vec<_> = called.into_iter().map(|name| (name, id)).collect();
        batch.commit(&named).told()?;
        if self.away.has(&id) {
            self.bring_rest(id);
        }
        Ok((id, keeper))
    }

    /// Does a snapshot have a name, or somebody who needs it?
    pub(crate) fn is_used(&self, id: &SnapshotId) -> bool {
        !self.store.refs_to(id).is_empty() || !self.store.users(id).is_empty()
    }

    /// A snapshot that nobody names, uses or waits for need not come.
    pub(crate) fn forget_unused(&self, id: &SnapshotId) -> Result<(), Problem> {
        match self.away.has(id) && !self.is_used(id) && self.who_waits_for(id)?.is_empty() {
            true => self.forget_away(id),
            false => Ok(()),
        }
    }
}
