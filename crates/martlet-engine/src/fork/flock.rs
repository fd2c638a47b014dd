//! A fork across hosts: its clones start wherever they were placed, at the same time.
//!
//! ```text
//!   checkpoint ──► placed ──► here: start_clones ─────────────────────────────────────┐
//!                    └──────► there: outline handed over ──► start ──► wait, wait … ──┴──► one result for each clone
//! ```
//!
//! Frames go to those hosts as their clones read them, and behind. (SnowFlock: Lagar-Cavilla et al., EuroSys 2009.)

use super::Family;
use super::hosted::{Ask, Started, Wanted};
use super::placing::Share;
use super::task::News;
use crate::engine::{Engine, lock};
use crate::moving::of_host;
use crate::multicast::{GettingReady, Invited};
use crate::problem::Told;
use martlet_api::{CloneResult, Problem, ProblemCode, Progress, ProgressSink, ProgressUnit};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

impl Engine {
    /// Starts all clones and sees them through their task; one result for each, by index, and how many bytes went before the
    /// others could start theirs.
    pub(crate) fn start_and_collect(
        self: &Arc<Self>,
        family: &Family,
        shares: &[Share],
        progress: ProgressSink<'_>,
    ) -> (Vec<CloneResult>, u64) {
        let total = shares.iter().map(|share| share.indices.len() as u64).sum();
        let results = Mutex::new(BTreeMap::new());
        let sent_bytes = self.start_everywhere(family, shares, &|news| {
            if !news.is_over {
                return;
            }
            let mut results = lock(&results);
            results.insert(news.clone.index, news.clone);
            progress(Progress {
                stage: "starting clones".into(),
                done: results.len() as u64,
                total: Some(total),
                unit: ProgressUnit::Items,
            });
        });
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        (results.into_values().collect(), sent_bytes)
    }

    /// Starts all clones, and tells what becomes of each; how many bytes went before other hosts could start theirs.
    pub(crate) fn start_everywhere(
        self: &Arc<Self>,
        family: &Family,
        shares: &[Share],
        each: &(dyn Fn(News) + Sync),
    ) -> u64 {
        let sent_bytes = AtomicU64::new(0);
        let hosts: Vec<&str> = shares.iter().filter_map(|share| share.host.as_deref()).collect();
        let group = self.offer_group(&family.id, &hosts);
        let each = &|mut news: News| {
            family.ending.explain(&mut news.clone);
            each(news);
        };
        std::thread::scope(|scope| {
            for share in shares {
                let (sent_bytes, group) = (&sent_bytes, group.as_ref());
                match &share.host {
                    None => scope.spawn(move || self.start_clones(family, &share.indices, each)),
                    Some(host) => scope.spawn(move || {
                        let there = self.start_at(family, host, &share.indices, (sent_bytes, group), each);
                        if let Err((left, problem)) = there {
                            for index in left {
                                let failed = family.failed(index, problem.clone());
                                each(at(host, News::last(failed)));
                            }
                        }
                    }),
                };
            }
        });
        sent_bytes.into_inner()
    }

    /// Has another host start these clones. What is said when it fails: of which it has not told, and why.
    fn start_at(
        self: &Arc<Self>,
        family: &Family,
        host: &str,
        indices: &[u32],
        (sent_bytes, group): (&AtomicU64, Option<&Invited>),
        each: &(dyn Fn(News) + Sync),
    ) -> Result<(), (Vec<u32>, Problem)> {
        let all = |problem: Problem| (indices.to_vec(), of_host(host, problem));
        let ready = group.and_then(|group| group.getting_ready(host));
        let peer = self.peer(host).map_err(all)?;
        let peer = peer.ok_or_else(|| all(crate::hosts::no_host(host)))?;
        let (handed, bytes) = self.hand_over(&peer, family.id, &|_| ()).map_err(all)?;
        sent_bytes.fetch_add(bytes, Relaxed);
        let joining = ready.map(GettingReady::together);
        let wanted = Wanted {
            handed,
            prefix: family.prefix.clone(),
            indices: indices.to_vec(),
            probe: family.probe.clone(),
            task: family.task.clone(),
            user: family.user.clone(),
            network: self.network_for_others(family.network.as_ref()).map_err(all)?,
            group: group.and_then(|group| group.offer_for(host)),
        };
        let flock: Result<String, Problem> = peer.post("/peer/clones/start", &wanted).told().map_err(all)?;
        drop(joining);
        let flock = flock.map_err(all)?;
        if family.ending.add_elsewhere(host, &flock) {
            self.end_clones(&family.ending);
        }
        let (mut left, mut seen) = (indices.to_vec(), 0);
        while !left.is_empty() {
            let ask = Ask {
                flock: flock.clone(),
                seen,
            };
            let answer = peer.post::<_, Result<Started, Problem>>("/peer/clones/wait", &ask);
            let started = match answer.told().and_then(|answer| answer) {
                Ok(started) => started,
                Err(problem) => return Err((left, of_host(host, problem))),
            };
            seen += started.news.len();
            for news in started.news {
                let Some(of) = left.iter().position(|index| *index == news.clone.index) else {
                    continue; // no clone that was wanted there
                };
                if news.is_over {
                    left.swap_remove(of);
                }
                each(at(host, news));
            }
            if started.is_over && !left.is_empty() {
                let words = format!("host {host} does not say what became of it");
                return Err((left, Problem::new(ProblemCode::Internal, words)));
            }
        }
        Ok(())
    }
}

fn at(host: &str, news: News) -> News {
    let clone = CloneResult {
        host: Some(host.to_owned()),
        ..news.clone
    };
    News { clone, ..news }
}
