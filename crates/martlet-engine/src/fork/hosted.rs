//! Clones that other hosts have started here.
//!
//! ```text
//!   wanted ──► taken ──► starting ──► started or failed, one after the other ──► over: told to who asks, then forgotten
//! ```
//!
//! The snapshot that they start from has no name here: its machines keep it, and when the last of them is gone it is forgotten.

use super::ending::Ending;
use super::inboxes::Inboxes;
use super::task::{Input, News, Task};
use super::{CLONES_MAX, Family, config_of};
use crate::engine::{Engine, lock};
use crate::family_network::ForkNetwork;
use crate::handed::Handed;
use crate::identity;
use crate::multicast::OfferedGroup;
use crate::problem::Told;
use crate::run::{MEMORY_MIN_BYTES, check_memory, planned_hardware};
use martlet_api::{Probe, Problem, ProblemCode, User};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Who asks is told after this time that there is nothing new.
const TELL_WITHIN: Duration = Duration::from_secs(10);
/// Whoever has not asked for so long does not ask any more.
const KEPT: Duration = Duration::from_secs(600);
/// So many forks of other hosts at the same time.
const FLOCKS_MAX: usize = 64;

/// Clones that a host wants to be started here.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wanted {
    /// What they start from.
    pub handed: Handed,
    /// They are called `PREFIX-INDEX`.
    pub prefix: String,
    /// Their indices.
    pub indices: Vec<u32>,
    /// Who is asked in each until it answers.
    pub probe: Option<Probe>,
    /// What each is for.
    pub task: Task,
    /// Who asked for them there.
    #[serde(default)]
    pub user: User,
    /// Their network.
    #[serde(default)]
    pub network: Option<ForkNetwork>,
    /// Where the frames of what they start from are sent to all hosts at once.
    #[serde(default)]
    pub group: Option<OfferedGroup>,
}

/// What has become of them, but for what was told?
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask {
    /// Which fork.
    pub flock: String,
    /// How many news were told.
    pub seen: usize,
}

/// What a clone is to do next.
#[derive(Debug, Serialize, Deserialize)]
pub struct Give {
    /// Which fork.
    pub flock: String,
    /// Which of its clones.
    pub clone: u32,
    /// Nothing any more, when absent.
    pub input: Option<Input>,
}

/// What has become of some more.
#[derive(Debug, Serialize, Deserialize)]
pub struct Started {
    /// In the order in which it came.
    pub news: Vec<News>,
    /// There are no others.
    pub is_over: bool,
}

#[derive(Debug, Default)]
struct Results {
    news: Vec<News>,
    is_over: bool,
}

struct Flock {
    from: String,
    ending: Arc<Ending>,
    inboxes: Arc<Inboxes>,
    asked: Mutex<Instant>,
    results: Mutex<Results>,
    changed: Condvar,
}

/// All that are known.
#[derive(Default)]
pub(crate) struct Flocks(Mutex<HashMap<String, Arc<Flock>>>);

impl Engine {
    /// Begins to start clones for another host; their fork's id.
    pub fn clones_wanted(self: &Arc<Self>, from: &str, mut wanted: Wanted) -> Result<String, Problem> {
        let requested = Instant::now();
        self.check_wanted(&wanted)?;
        let flock = Arc::new(Flock {
            from: from.to_owned(),
            ending: Arc::default(),
            inboxes: Arc::default(),
            asked: Mutex::new(requested),
            results: Mutex::default(),
            changed: Condvar::new(),
        });
        let id = identity::machine_id();
        {
            let mut flocks = lock(&self.flocks.0);
            flocks.retain(|_, flock| !lock(&flock.results).is_over || lock(&flock.asked).elapsed() < KEPT);
            if flocks.len() >= FLOCKS_MAX {
                let words = format!("{FLOCKS_MAX} forks start clones at this host already");
                return Err(Problem::new(ProblemCode::Busy, words));
            }
            flocks.insert(id.clone(), flock.clone());
        }
        // Before anything is read, so that nothing is missed.
        let offered = wanted.group.as_ref().zip(wanted.handed.snapshot.parse().ok());
        if let Some((group, snapshot)) = offered {
            self.join_group(from, snapshot, group);
        }
        let taken = self.take_handed(from, &wanted.handed, |_| Ok(None));
        if let Some((_, snapshot)) = offered.filter(|(_, snapshot)| !self.away.has(snapshot)) {
            self.members.leave(&snapshot);
        }
        let (snapshot, keeper) = taken.inspect_err(|_| drop(lock(&self.flocks.0).remove(&id)))?;
        let pin = self.store.pin(snapshot, "a fork of another host").told()?;
        let user = std::mem::take(&mut wanted.user).at(from);
        wanted.user = user.here(&self.this_name()?.unwrap_or_default());
        let engine = self.clone();
        let start = move || {
            let Wanted {
                handed,
                prefix,
                indices,
                probe,
                task,
                user,
                network,
                group: _,
            } = wanted;
            let family = Family {
                id: snapshot,
                source: format!("{} of host {}", handed.reference, flock.from),
                snapshot: handed.record,
                made: None,
                prefix,
                probe,
                user,
                task,
                ending: flock.ending.clone(),
                inboxes: flock.inboxes.clone(),
                requested,
                network,
                _numbers: None,
                _pin: pin,
            };
            engine.start_clones(&family, &indices, &|news| {
                lock(&flock.results).news.push(news);
                flock.changed.notify_all();
            });
            drop((keeper, family));
            // If none has started.
            if let Err(problem) = engine.forget_unused(&snapshot) {
                tracing::warn!(%problem, %snapshot, "it still comes, for nobody");
            }
            lock(&flock.results).is_over = true;
            flock.changed.notify_all();
        };
        if let Err(error) = std::thread::Builder::new().name("clones".into()).spawn(start) {
            lock(&self.flocks.0).remove(&id);
            return Err(Problem::new(ProblemCode::Busy, "there is no thread for it").cause(error));
        }
        Ok(id)
    }

    /// What has become of clones, as soon as there is something new to tell.
    pub fn clones_started(&self, from: &str, ask: &Ask) -> Result<Started, Problem> {
        let flock = self.flock(from, &ask.flock)?;
        *lock(&flock.asked) = Instant::now();
        let nothing = |results: &mut Results| !results.is_over && results.news.len() <= ask.seen;
        let waited = flock
            .changed
            .wait_timeout_while(lock(&flock.results), TELL_WITHIN, nothing);
        let (results, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Ok(Started {
            news: results.news.get(ask.seen..).unwrap_or_default().to_vec(),
            is_over: results.is_over,
        })
    }

    /// Ends all clones of a fork of another host; how many there were.
    pub fn clones_ended(self: &Arc<Self>, from: &str, flock: &str) -> Result<u32, Problem> {
        let flock = self.flock(from, flock)?;
        Ok(self.end_clones(&flock.ending))
    }

    /// How many clones of a fork of another host there still are here.
    pub fn clones_left_here(&self, from: &str, flock: &str) -> Result<u32, Problem> {
        let flock = self.flock(from, flock)?;
        *lock(&flock.asked) = Instant::now();
        Ok(self.clones_left(&flock.ending))
    }

    /// What a clone that another host started here is to do next.
    pub fn clone_given(&self, from: &str, give: Give) -> Result<(), Problem> {
        self.flock(from, &give.flock)?.inboxes.put(give.clone, give.input);
        Ok(())
    }

    fn flock(&self, from: &str, id: &str) -> Result<Arc<Flock>, Problem> {
        let flock = lock(&self.flocks.0).get(id).cloned();
        flock.filter(|flock| flock.from == from).ok_or_else(|| {
            let words = "this host knows nothing of such a fork: its daemon may have been started anew";
            Problem::new(ProblemCode::NotFound, words)
        })
    }

    fn check_wanted(&self, wanted: &Wanted) -> Result<(), Problem> {
        self.check_takes()?;
        let indices: BTreeSet<u32> = wanted.indices.iter().copied().collect();
        let is_fork = (1..=CLONES_MAX as usize).contains(&wanted.indices.len())
            && indices.len() == wanted.indices.len()
            && indices.iter().all(|index| (1..=CLONES_MAX).contains(index));
        if !is_fork {
            return Err(Problem::new(
                ProblemCode::InvalidArgument,
                "these are no clones of a fork",
            ));
        }
        wanted.task.check(&wanted.indices)?;
        if let Some(network) = &wanted.network {
            network.check()?;
        }
        for index in indices {
            martlet_api::names::check_name(&format!("{}-{index}", wanted.prefix))?;
        }
        let record = &wanted.handed.record;
        let memory = record.memory.as_ref().ok_or_else(|| {
            let words = format!("{} holds no memory", wanted.handed.reference);
            Problem::new(ProblemCode::InvalidArgument, words)
        })?;
        check_memory(memory.size_bytes, MEMORY_MIN_BYTES)?;
        self.could(&planned_hardware(&config_of(record)?, record))
    }
}
