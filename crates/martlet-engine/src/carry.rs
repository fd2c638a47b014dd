//! Disks that are carried from host to host: filled with what is most likely to be read, and looked at before any network.

use crate::engine::Engine;
use crate::hosts::PeerPlace;
use crate::nearest::Nearest;
use crate::place::Place;
use crate::problem::Told;
use martlet_api::{
    CarryReport, CarryRequest, Problem, Progress, ProgressSink, ProgressUnit, RemoteAddRequest,
};
use martlet_image::SnapshotId;
use std::collections::HashSet;
use std::sync::Arc;

/// What a remote is called that a carried disk is, if it has no name yet.
const CARRIED: &str = "carried";

impl Engine {
    /// A place that has all of a snapshot, behind all nearer ones that have something of it: the directories that are known,
    /// then the hosts of the fleet.
    pub(crate) fn from_nearest(
        self: &Arc<Self>,
        id: SnapshotId,
        but: &str,
        last: Arc<dyn Place>,
    ) -> Arc<Nearest> {
        let nearest = Arc::new(Nearest::new(last));
        let (engine, found, but) = (Arc::downgrade(self), nearest.clone(), but.to_owned());
        let look = move || {
            let Some(engine) = engine.upgrade() else { return };
            if let Err(problem) = engine.look_nearer(id, &but, &found) {
                tracing::warn!(%problem, snapshot = %id, "nothing nearer is looked for");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("nearer".into()).spawn(look) {
            tracing::warn!(%error, snapshot = %id, "nothing nearer is looked for");
        }
        nearest
    }

    fn look_nearer(self: &Arc<Self>, id: SnapshotId, but: &str, nearest: &Nearest) -> Result<(), Problem> {
        let wanted = self.away.missing_of(&id).told()?;
        for name in self.directories()?.into_iter().filter(|name| name != but) {
            for remote in self.opened(&name, None)? {
                match remote.learn_all() {
                    Ok(()) => {
                        let has: HashSet<_> = remote.which(wanted.iter().copied());
                        nearest.add(&format!("remote {name}"), Arc::new(remote), has);
                    }
                    // A disk that is in another bag.
                    Err(error) => tracing::debug!(%error, name, "is not looked at"),
                }
            }
        }
        let wanted: Vec<_> = wanted.into_iter().collect();
        for name in self.other_hosts()?.into_iter().filter(|name| name != but) {
            let Some(peer) = self.peer(&name)? else { continue };
            match peer.lacks(&wanted) {
                Ok(lacking) => {
                    let lacking: HashSet<_> = lacking.into_iter().collect();
                    let has = wanted
                        .iter()
                        .copied()
                        .filter(|key| !lacking.contains(key))
                        .collect();
                    nearest.add(&format!("host {name}"), Arc::new(PeerPlace(peer)), has);
                }
                Err(error) => tracing::debug!(%error, name, "is not asked"),
            }
        }
        Ok(())
    }

    /// Fills a directory with what is most likely to be read of snapshots, each as far as there is room.
    pub fn carry(
        self: &Arc<Self>,
        request: CarryRequest,
        progress: ProgressSink<'_>,
    ) -> Result<Vec<CarryReport>, Problem> {
        let name = match self.directory_at(&request.dir)? {
            Some(name) => name,
            None => {
                let known = self.remotes()?;
                let is_free = |name: &String| known.iter().all(|known| known.name != *name);
                let name = (1..).map(numbered).find(is_free);
                let add = RemoteAddRequest {
                    name: name.expect("there are fewer remotes than numbers"),
                    address: request.dir,
                    endpoint: None,
                    region: None,
                    user: None,
                    secret: None,
                    realm: request.realm,
                };
                self.remote_add(add)?.name
            }
        };
        let remote = self.newest(&name, None)?;
        let mut left_bytes = request.size_bytes.unwrap_or(u64::MAX);
        let mut reports = Vec::new();
        for source in request.sources {
            let machine = self
                .find(&source)
                .ok()
                .and_then(|machine| machine.record().snapshot);
            let id = match machine {
                Some(id) => id,
                None => self.snapshot_named(&source)?.0,
            };
            let first = self.read_first(&id).unwrap_or_default(); // without, in any order
            let mut told = |done: u64, total: u64| {
                progress(Progress {
                    stage: format!("carrying {source}"),
                    done,
                    total: Some(total),
                    unit: ProgressUnit::Bytes,
                });
            };
            let carried = martlet_source::carry(&self.store, &remote, id, &first, left_bytes, &mut told);
            let (report, wanted_bytes) = carried.told()?;
            left_bytes = left_bytes.saturating_sub(report.sent_bytes);
            reports.push(CarryReport {
                source,
                snapshot: id.to_string(),
                remote: name.clone(),
                moved_bytes: report.sent_bytes,
                left_bytes: wanted_bytes - report.sent_bytes,
            });
        }
        Ok(reports)
    }
}

fn numbered(number: u32) -> String {
    match number {
        1 => CARRIED.to_owned(),
        _ => format!("{CARRIED}-{number}"),
    }
}
