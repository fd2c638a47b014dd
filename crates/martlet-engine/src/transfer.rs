//! Snapshots that go to remotes and come from them.
//!
//! ```text
//!   push   all of it ──► the remote
//!   pull   all of it ──► here
//!   fetch  all but the frames ──► here: away (away.rs) ──► pull, or the rest behind ──► here
//! ```

use crate::engine::{Engine, lock};
use crate::hosts::PeerPlace;
use crate::multicast::ByMulticast;
use crate::nearest::Later;
use crate::place::{Open, Place};
use crate::problem::Told;
use crate::starter;
use martlet_api::{
    AwaySnapshot, FetchRequest, Problem, ProblemCode, Progress, ProgressSink, ProgressUnit, PullRequest,
    PushRequest, TransferReport,
};
use martlet_image::{PageLocation, SnapshotId, SnapshotRecord};
use martlet_source::{SourceError, Under};
use martlet_store::{Key, Kind, RefName, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Setting in the state database: what is away, by snapshot id.
const AWAY: &str = "away";
/// After a failure here (a full disk, say) the rest of a snapshot waits this long.
const RETRY_REST: Duration = Duration::from_secs(10);

/// Where the frames of a snapshot are that is away.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) remote: String,
    pub(crate) reference: String,
    /// Is the rest to come without being read?
    pub(crate) rest: bool,
}

impl Engine {
    /// Sends a snapshot to a remote, which then has a name for it.
    pub fn push(
        self: &Arc<Self>,
        remote: &str,
        request: PushRequest,
        progress: ProgressSink<'_>,
    ) -> Result<TransferReport, Problem> {
        let (id, _) = self.snapshot_named(&request.snapshot)?;
        let reference = match request.reference {
            Some(reference) => reference.parse::<RefName>().told()?,
            None => self.reference_of(&request.snapshot, &id)?,
        };
        let peer = self.peer(remote)?;
        let mut told = |done: u64, total: u64| {
            progress(Progress {
                stage: format!("pushing {reference}"),
                done,
                total: Some(total),
                unit: ProgressUnit::Bytes,
            });
        };
        if let Some(peer) = peer {
            no_choice(request.dry_run, request.bandwidth_bytes)?;
            let report = martlet_peer::push(&self.store, &peer, id, &reference, &mut told).told()?;
            return Ok(moved(&id, &reference, report.sent_objects, report.sent_bytes));
        }
        let remote = self.newest(remote, request.bandwidth_bytes)?;
        let pushed = martlet_source::push(
            &self.store,
            &remote,
            id,
            &reference,
            Under::Nothing,
            request.dry_run,
            &mut told,
        );
        let (report, _) = pushed.told()?;
        Ok(TransferReport {
            dry_run: request.dry_run,
            ..moved(&id, &reference, report.sent_objects, report.sent_bytes)
        })
    }

    /// The name that a snapshot was asked for by, or the first that it has.
    fn reference_of(&self, asked: &str, id: &SnapshotId) -> Result<RefName, Problem> {
        let names = self.store.refs_to(id);
        let asked = asked
            .parse::<RefName>()
            .ok()
            .filter(|asked| names.contains(asked));
        asked.or_else(|| names.into_iter().next()).ok_or_else(|| {
            Problem::new(
                ProblemCode::InvalidArgument,
                format!(
                    "snapshot {} has no name that the remote could call it by",
                    id.short()
                ),
            )
            .remediation("say what it is to be called: `--as NAME:TAG`")
        })
    }

    /// What a snapshot that comes is to be called here, if that is free or it already.
    fn called_here(
        &self,
        asked: Option<&str>,
        there: &RefName,
        found: Option<SnapshotId>,
    ) -> Result<RefName, Problem> {
        let called = match asked {
            Some(reference) => {
                martlet_api::names::check_new_reference(reference)?;
                reference.parse::<RefName>().told()?
            }
            None => there.clone(),
        };
        match self.store.refs().get(&called) {
            Some(here) if found.is_some_and(|found| *here != found) => Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!("{called} is another snapshot here"),
            )
            .remediation("choose another name: `--as NAME:TAG`")),
            _ => Ok(called),
        }
    }

    /// Gets a snapshot from a remote.
    pub fn pull(
        self: &Arc<Self>,
        remote: &str,
        request: PullRequest,
        progress: ProgressSink<'_>,
    ) -> Result<TransferReport, Problem> {
        let name = request.snapshot.parse::<RefName>().told()?;
        let mut told = |done: u64, total: u64| {
            progress(Progress {
                stage: format!("pulling {name}"),
                done,
                total: Some(total),
                unit: ProgressUnit::Items,
            });
        };
        if let Some(peer) = self.peer(remote)? {
            no_choice(request.dry_run, request.bandwidth_bytes)?;
            let found = peer.refs().told()?.get(&name).copied();
            let called = self.called_here(request.reference.as_deref(), &name, found)?;
            let (report, id) = martlet_peer::pull(&self.store, &peer, &name, &called, &mut told).told()?;
            self.all_here(&id)?;
            return Ok(moved(&id, &called, report.got_objects, report.got_bytes));
        }
        let (remote, found) = self.find_remote(remote, &name, request.bandwidth_bytes)?;
        let called = self.called_here(request.reference.as_deref(), &name, Some(found.snapshot))?;
        let pulled = martlet_source::pull(&self.store, &remote, &name, &called, request.dry_run, &mut told);
        let (report, found) = pulled.told()?;
        if !request.dry_run {
            self.all_here(&found.snapshot)?;
        }
        Ok(TransferReport {
            dry_run: request.dry_run,
            ..moved(&found.snapshot, &called, report.got_objects, report.got_bytes)
        })
    }

    /// Gets a snapshot from a remote but for its frames, which come when they are read, and behind if that is wanted. It can
    /// be started at once.
    pub fn fetch(self: &Arc<Self>, from: &str, request: FetchRequest) -> Result<TransferReport, Problem> {
        let name = request.snapshot.parse::<RefName>().told()?;
        let asked = request.reference.as_deref();
        // What has come is kept from collection until it has its name.
        let (called, id, record, report, _kept, place) = match self.peer(from)? {
            Some(peer) => {
                let found = peer.refs().told()?.get(&name).copied();
                let called = self.called_here(asked, &name, found)?;
                let (report, id, record, kept) =
                    martlet_peer::fetch_without_frames(&self.store, &peer, &name).told()?;
                let report = moved(&id, &called, report.got_objects, report.got_bytes);
                (called, id, record, report, kept, None)
            }
            None => {
                let (remote, found) = self.find_remote(from, &name, None)?;
                let called = self.called_here(asked, &name, Some(found.snapshot))?;
                let (report, found, record, kept) =
                    martlet_source::fetch_without_frames(&self.store, &remote, &name, found).told()?;
                let report = moved(&found.snapshot, &called, report.got_objects, report.got_bytes);
                let place: Arc<dyn Place> = Arc::new(remote);
                (called, found.snapshot, record, report, kept, Some(place))
            }
        };
        let listed = Listed {
            remote: from.to_owned(),
            reference: name.to_string(),
            rest: request.rest,
        };
        self.promise_rest(id, &record, listed, place)?;
        let mut batch = self.store.begin().told()?;
        batch.put_snapshot(&record).told()?;
        batch.commit(&[(called.clone(), id)]).told()?;
        if request.rest {
            self.bring_rest(id);
        }
        Ok(report)
    }

    /// Snapshots of which not all is here.
    pub fn snapshots_away(&self) -> Result<Vec<AwaySnapshot>, Problem> {
        let listed = self.listed()?;
        let mut snapshots = Vec::new();
        for id in self.away.all() {
            let Some((progress, listed)) = self.away.progress(&id).told()?.zip(listed.get(&id.to_string()))
            else {
                continue;
            };
            snapshots.push(AwaySnapshot {
                snapshot: id.to_string(),
                references: self.store.refs_to(&id).iter().map(RefName::to_string).collect(),
                remote: listed.remote.clone(),
                rest: listed.rest,
                objects: progress.objects,
                missing_objects: progress.missing_objects,
                read_objects: progress.read_objects,
                read_bytes: progress.read_bytes,
                waited_ms: progress.waited_us as f64 / 1000.0,
                waited_max_ms: progress.waited_max_us as f64 / 1000.0,
                rest_bytes: progress.rest_bytes,
            });
        }
        Ok(snapshots)
    }

    /// Goes on where a predecessor was.
    pub(crate) fn recover_away(self: &Arc<Self>) -> Result<(), Problem> {
        let here = self.store.snapshots();
        for (id, listed) in self.listed()? {
            let Some(id) = here.iter().find(|here| here.to_string() == id) else {
                self.state
                    .edit_setting(AWAY, |all: &mut BTreeMap<String, Listed>| all.remove(&id))
                    .told()?; // it never came, or is gone
                continue;
            };
            let promised = self.store.snapshot(id).told();
            let promised = promised.and_then(|record| self.promise(*id, &record, &listed, None));
            if let Err(problem) = promised {
                // Damaged here, as `verify` says; everything else goes on.
                tracing::error!(%problem, snapshot = %id, "what is away of it does not come");
                continue;
            }
            if listed.rest {
                self.bring_rest(*id);
            }
        }
        Ok(())
    }

    /// Snapshots that still come from a remote, or from a host.
    pub(crate) fn coming_from(&self, remote: &str) -> Result<Vec<String>, Problem> {
        let listed = self.listed()?.into_iter();
        let from = listed.filter(|(_, listed)| listed.remote == remote);
        let ids: Vec<String> = from.map(|(id, _)| id).collect();
        let away = self
            .away
            .all()
            .into_iter()
            .filter(|id| ids.contains(&id.to_string()));
        Ok(away.map(|id| format!("snapshot {}", id.short())).collect())
    }

    /// Snapshots here, beside one that is away, that need something of it that is still to come. What only waits for a collection
    /// needs nothing.
    pub(crate) fn who_waits_for(&self, id: &SnapshotId) -> Result<Vec<SnapshotId>, Problem> {
        let missing = self.away.missing_of(id).told()?;
        let mut waiting = Vec::new();
        if missing.is_empty() {
            return Ok(waiting);
        }
        // Those that are away themselves have a promise of their own.
        for other in self
            .store
            .snapshots()
            .into_iter()
            .filter(|other| !self.away.has(other) && self.is_used(other))
        {
            let record = self.store.snapshot(&other).told()?;
            if !missing.is_disjoint(&self.store.leaves(&record).told()?) {
                waiting.push(other);
            }
        }
        Ok(waiting)
    }

    /// Nothing waits for a snapshot's frames any more.
    pub(crate) fn forget_away(&self, id: &SnapshotId) -> Result<(), Problem> {
        self.away.forget(id);
        self.starters.forget(id);
        self.members.leave(id);
        self.list(id, None)
    }

    /// Promises what is not here of a snapshot that is about to be: with a place that has it and is open, that is asked first.
    pub(crate) fn promise_rest(
        self: &Arc<Self>,
        id: SnapshotId,
        record: &SnapshotRecord,
        listed: Listed,
        place: Option<Arc<dyn Place>>,
    ) -> Result<(), Problem> {
        let leaves: Vec<Key> = self.store.leaves(record).told()?.into_iter().collect();
        if self.store.lacks(&leaves).told()?.is_empty() {
            return Ok(());
        }
        // Known to be away before anybody can use it, also to a successor.
        self.list(&id, Some(listed.clone()))?;
        self.promise(id, record, &listed, place)
    }

    fn promise(
        self: &Arc<Self>,
        id: SnapshotId,
        record: &SnapshotRecord,
        listed: &Listed,
        place: Option<Arc<dyn Place>>,
    ) -> Result<(), Problem> {
        let place = Mutex::new(place); // is asked first; one that fails is opened anew
        let engine = Arc::downgrade(self);
        let (listed, eager) = (listed.clone(), listed.rest);
        let is_host = self.peer(&listed.remote).is_ok_and(|peer| peer.is_some());
        let from = format!("{} {}", if is_host { "host" } else { "remote" }, listed.remote);
        let open: Open = Box::new(move || {
            let alive = engine
                .upgrade()
                .ok_or_else(|| gone(&listed.remote, "the daemon is ending"))?;
            let (engine, from) = (engine.clone(), listed.clone());
            let last = Later {
                name: listed.remote.clone(),
                open: Box::new(move || {
                    let engine = engine
                        .upgrade()
                        .ok_or_else(|| gone(&from.remote, "the daemon is ending"))?;
                    engine.place_of(&id, &from)
                }),
                opened: Mutex::new(lock(&place).take()),
            };
            Ok(alive.from_nearest(id, &listed.remote, Arc::new(last)) as Arc<dyn Place>)
        });
        self.away.promise(id, record, &from, eager, open).told()
    }

    /// The place that has all of a snapshot.
    fn place_of(self: &Arc<Self>, id: &SnapshotId, listed: &Listed) -> Result<Arc<dyn Place>, SourceError> {
        let told = |problem: Problem| gone(&listed.remote, &problem.message);
        if let Some(peer) = self.peer(&listed.remote).map_err(told)? {
            let host = PeerPlace(peer);
            return Ok(match self.members.of(id) {
                Some(member) => Arc::new(ByMulticast {
                    member,
                    host,
                    away: Arc::downgrade(&self.away),
                }),
                None => Arc::new(host),
            });
        }
        let name: RefName = listed.reference.parse().map_err(SourceError::Store)?;
        let (remote, found) = self.find_version(&listed.remote, &name, id).map_err(told)?;
        remote.learn(&found)?;
        Ok(Arc::new(remote))
    }

    /// Has the rest of a snapshot come, while nobody reads it.
    pub(crate) fn bring_rest(self: &Arc<Self>, id: SnapshotId) {
        let (engine, away, store) = (Arc::downgrade(self), self.away.clone(), self.store.clone());
        let first = self.read_first(&id).unwrap_or_default(); // without, it comes all the same
        let starter = self.expect_starter(&id);
        let bring = move || {
            if let Some((starter, chunks)) = starter {
                starter::bring(&store, &away, &id, &starter, &chunks);
            }
            loop {
                match away.complete(&id, first.clone()) {
                    Ok(false) => return,
                    Ok(true) => match engine.upgrade().map(|engine| engine.all_here(&id)) {
                        Some(Err(problem)) => tracing::warn!(%problem, snapshot = %id, "all of it is here"),
                        _ => return,
                    },
                    Err(_) if matches!(store.snapshot(&id), Err(StoreError::NotFound(_))) => {
                        tracing::warn!(snapshot = %id, "it was collected while it came");
                        if let Some(Err(problem)) = engine.upgrade().map(|engine| engine.forget_away(&id)) {
                            tracing::warn!(%problem, snapshot = %id, "it is still on the list");
                        }
                        return;
                    }
                    Err(error) => tracing::warn!(%error, snapshot = %id, "the rest does not come"),
                }
                if away.pause(RETRY_REST).is_err() {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("rest".into()).spawn(bring) {
            tracing::warn!(%error, snapshot = %id, "its rest comes only as it is read");
            self.starters.forget(&id);
        }
    }

    /// What the next start will read first: its starter; frames that earlier runs read first, in that order, but those last
    /// that the starter does without.
    pub(crate) fn read_first(&self, id: &SnapshotId) -> Option<Vec<Key>> {
        let trace = self.trace(id)?;
        let memory = self.store.snapshot(id).ok()?.memory?;
        let manifest = self.store.manifest(&memory.manifest).ok()?;
        let starter = self.starter_chunks(id).unwrap_or_default();
        let in_starter: HashSet<u32> = starter.iter().flat_map(|(_, pages)| pages).copied().collect();
        let (later, sooner): (Vec<u32>, Vec<u32>) =
            trace.pages().iter().partition(|page| in_starter.contains(page));
        let mut seen = HashSet::new();
        let frames =
            sooner
                .into_iter()
                .chain(later)
                .filter_map(|page| match manifest.locate(u64::from(page)) {
                    PageLocation::Frame { frame, .. } => Some(Key::new(Kind::Frame, frame.0)),
                    PageLocation::Zero => None,
                });
        let frames = frames.filter(|frame| seen.insert(*frame));
        let chunks = starter.iter().map(|(chunk, _)| Key::new(Kind::Blob, chunk.0));
        Some(chunks.chain(frames).collect())
    }

    /// All of a snapshot is here, if it was away.
    fn all_here(&self, id: &SnapshotId) -> Result<(), Problem> {
        match self.away.progress(id).told()? {
            Some(progress) if progress.missing_objects == 0 => self.forget_away(id),
            _ => Ok(()),
        }
    }

    fn listed(&self) -> Result<BTreeMap<String, Listed>, Problem> {
        Ok(self.state.setting(AWAY).told()?.unwrap_or_default())
    }

    fn list(&self, id: &SnapshotId, listed: Option<Listed>) -> Result<(), Problem> {
        let id = id.to_string();
        let edited = self
            .state
            .edit_setting(AWAY, |all: &mut BTreeMap<String, Listed>| match listed {
                Some(listed) => drop(all.insert(id, listed)),
                None => drop(all.remove(&id)),
            });
        edited.told()
    }
}

fn gone(place: &str, reason: &str) -> SourceError {
    SourceError::Unavailable {
        place: place.to_owned(),
        action: "be opened",
        reason: reason.to_owned(),
    }
}

fn moved(id: &SnapshotId, reference: &RefName, objects: u64, moved_bytes: u64) -> TransferReport {
    TransferReport {
        snapshot: id.to_string(),
        reference: reference.to_string(),
        objects,
        moved_bytes,
        dry_run: false,
    }
}

/// Between hosts there is nothing to choose.
fn no_choice(dry_run: bool, bandwidth_bytes: Option<u64>) -> Result<(), Problem> {
    match dry_run || bandwidth_bytes.is_some() {
        false => Ok(()),
        true => Err(Problem::new(
            ProblemCode::InvalidArgument,
            "between hosts nothing is limited or only tried",
        )
        .remediation("leave --dry-run and --bandwidth away, or go by way of a remote")),
    }
}
