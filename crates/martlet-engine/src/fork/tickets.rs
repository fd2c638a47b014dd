//! Tickets: what programs in a machine may fork it into, and what has become of it.
//!
//! ```text
//!   granted ──begin──► forking ──► forked: clones start, their processes exit ──► over
//!      └───────────────────┴────────────────┴──── discarded: its clones are ended
//! ```
//!
//! They are the daemon's: when that ends, they are void, and clones go when they are done.

use super::allocator::Allocation;
use super::ending::Ending;
use super::placing::{Placed, Share};
use super::task::News;
use crate::engine::{Engine, lock};
use martlet_agent_api::guest::{FailedClone, GuestAnswer, GuestError, GuestErrorKind};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most tickets of one machine that were not discarded.
const TICKETS_MAX: usize = 64;
/// How often whoever waits looks whether the machine is still there.
const LOOK: Duration = Duration::from_secs(1);

/// One ticket.
pub(crate) struct Ticket {
    pub id: String,
    /// Of which machine.
    pub machine: String,
    /// For how many processes.
    pub granted: u32,
    /// How many of them in each clone.
    pub processes: u32,
    /// Each clone is ended so long after its start.
    pub timeout_s: Option<u64>,
    /// Where its clones go.
    pub shares: Vec<Share>,
    /// For ending them.
    pub ending: Arc<Ending>,
    /// By whose leave.
    allocation: Mutex<Option<Allocation>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Granted,
    Forking,
    Forked,
    Discarded,
}

#[derive(Default)]
struct State {
    stage: Stage,
    /// By clone: why it did not start, if it did not.
    started: BTreeMap<u32, Option<String>>,
    /// In the order in which they came.
    exits: Vec<GuestAnswer>,
    /// The snapshot that was made for it.
    snapshot: Option<String>,
}

/// All that are known.
#[derive(Default)]
pub(crate) struct Tickets(Mutex<HashMap<String, Arc<Ticket>>>);

impl Tickets {
    /// A machine's own ticket.
    pub(crate) fn of(&self, machine: &str, id: &str) -> Result<Arc<Ticket>, GuestError> {
        let found = lock(&self.0).get(id).cloned();
        found.filter(|ticket| ticket.machine == machine).ok_or_else(|| {
            let words =
                format!("this VM has no ticket {id}: it was joined or killed, or the daemon started anew");
            GuestError::new(GuestErrorKind::NotFound, words)
        })
    }

    /// For how many processes a machine has tickets.
    pub(crate) fn granted_to(&self, machine: &str) -> u32 {
        let tickets = lock(&self.0);
        let own = tickets.values().filter(|ticket| ticket.machine == machine);
        own.map(|ticket| ticket.granted).sum()
    }

    /// One more, if its machine has tickets for no more than `most` processes with it.
    pub(crate) fn add(&self, ticket: Ticket, most: u32) -> Result<(), GuestError> {
        let mut tickets = lock(&self.0);
        let own = tickets.values().filter(|other| other.machine == ticket.machine);
        let own: Vec<u32> = own.map(|other| other.granted).collect();
        // Others may have been granted while this one's places were asked for.
        if own.iter().sum::<u32>() + ticket.granted > most {
            return Err(all_in_use(most));
        }
        if own.len() >= TICKETS_MAX {
            let words = format!("this VM has {TICKETS_MAX} tickets: join or kill them first");
            return Err(GuestError::new(GuestErrorKind::Busy, words));
        }
        tickets.insert(ticket.id.clone(), Arc::new(ticket));
        Ok(())
    }

    /// The machine is gone, and will not use what it was granted.
    pub(crate) fn forget_unused(&self, machine: &str) {
        let is_unused = |ticket: &Ticket| ticket.machine == machine && ticket.state().stage == Stage::Granted;
        let mut tickets = lock(&self.0);
        let unused: Vec<_> = tickets.extract_if(|_, ticket| is_unused(ticket)).collect();
        drop(tickets);
        unused.iter().for_each(|(_, ticket)| ticket.give_back());
    }

    /// It is no longer known; the name of the snapshot that was made for it.
    pub(crate) fn discard(&self, ticket: &Ticket) -> Option<String> {
        lock(&self.0).remove(&ticket.id);
        let mut state = ticket.state();
        state.stage = Stage::Discarded;
        ticket.changed.notify_all();
        state.snapshot.take()
    }
}

/// There is no ticket until others were joined or killed.
pub(crate) fn all_in_use(most: u32) -> GuestError {
    let words =
        format!("all {most} processes that this VM may have in clones are in use: join or kill a ticket");
    GuestError::new(GuestErrorKind::Busy, words)
}

impl Ticket {
    /// As granted.
    pub(crate) fn new(
        id: String,
        machine: String,
        granted: u32,
        processes: u32,
        timeout_s: Option<u64>,
        placed: Placed,
    ) -> Self {
        Self {
            id,
            machine,
            granted,
            processes,
            timeout_s,
            shares: placed.shares,
            ending: Arc::default(),
            allocation: Mutex::new(placed.allocation),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Its clones end with its allocation.
    pub(crate) fn end_with(&self, engine: &Arc<Engine>) {
        if let Some(allocation) = &*lock(&self.allocation) {
            engine.end_with(allocation, &self.ending);
        }
    }

    /// Nothing needs its clones' places any more.
    pub(crate) fn give_back(&self) {
        let allocation = lock(&self.allocation).take();
        drop(allocation); // that takes a while
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// How many clones it is for.
    pub(crate) fn clones(&self) -> u32 {
        self.granted.div_ceil(self.processes)
    }

    fn ids(&self, index: u32) -> std::ops::RangeInclusive<u32> {
        let first = (index - 1) * self.processes + 1;
        first..=(first + self.processes - 1).min(self.granted)
    }

    /// It is used, once.
    pub(crate) fn begin(&self) -> Result<(), GuestError> {
        let mut state = self.state();
        match state.stage {
            Stage::Granted => {
                state.stage = Stage::Forking;
                Ok(())
            }
            _ => Err(GuestError::new(
                GuestErrorKind::State,
                format!("ticket {} was used already", self.id),
            )),
        }
    }

    /// The machine was not forked: it can be used again.
    pub(crate) fn take_back(&self) {
        let mut state = self.state();
        if state.stage == Stage::Forking {
            state.stage = Stage::Granted;
        }
    }

    /// The machine was forked: its clones start from now on. `snapshot` was made for that.
    pub(crate) fn forked(&self, snapshot: Option<String>) {
        let mut state = self.state();
        state.snapshot = snapshot;
        if state.stage == Stage::Forking {
            state.stage = Stage::Forked;
        }
        self.changed.notify_all();
    }

    /// News of a clone.
    pub(crate) fn hear(&self, news: &News) {
        let index = news.clone.index;
        if index == 0 || index > self.clones() {
            return; // a host that says so knows of others
        }
        let mut state = self.state();
        let why = news.clone.problem.as_ref().map(|problem| match &problem.cause {
            Some(cause) => format!("{}: {cause}", problem.message),
            None => problem.message.clone(),
        });
        let is_new = !state.started.contains_key(&index);
        if is_new {
            let failed = why.clone().filter(|_| news.clone.machine.is_none());
            state.started.insert(index, failed);
        }
        if news.is_over {
            for id in self.ids(index) {
                let exit = news.exits.iter().find(|exit| exit.id == id);
                state.exits.push(GuestAnswer::Exited {
                    id,
                    status: exit.map(|exit| exit.status),
                    data: exit.map_or_else(String::new, |exit| exit.data.clone()),
                    problem: match exit {
                        Some(_) => None,
                        None => Some(why.clone().unwrap_or_else(|| "its clone is gone".into())),
                    },
                });
            }
        }
        self.changed.notify_all();
    }

    /// Waits until all clones have started, or failed to: the processes of those.
    pub(crate) fn wait_until_started(&self, is_there: impl Fn() -> bool) -> Vec<FailedClone> {
        let some_left =
            |state: &State| state.stage != Stage::Discarded && state.started.len() < self.clones() as usize;
        let state = self.wait(some_left, is_there);
        let failed = state
            .started
            .iter()
            .filter_map(|(index, why)| Some((index, why.as_ref()?)));
        let of_clone = |(index, why): (&u32, &String)| {
            let problem = why.clone();
            self.ids(*index)
                .map(move |id| FailedClone {
                    id,
                    problem: problem.clone(),
                })
                .collect::<Vec<_>>()
        };
        failed.flat_map(of_clone).collect()
    }

    /// Waits for one more exit than are known.
    pub(crate) fn next_exit(
        &self,
        seen: u32,
        is_there: impl Fn() -> bool,
    ) -> Result<GuestAnswer, GuestError> {
        if matches!(self.state().stage, Stage::Granted) {
            let words = format!("ticket {} was not used: there is nobody to join", self.id);
            return Err(GuestError::new(GuestErrorKind::State, words));
        }
        let seen = seen as usize;
        let none_new = |state: &State| {
            state.stage != Stage::Discarded
                && state.exits.len() <= seen
                && state.exits.len() < self.granted as usize
        };
        let state = self.wait(none_new, is_there);
        match state.exits.get(seen) {
            Some(exit) => Ok(exit.clone()),
            None if state.exits.len() >= self.granted as usize => Ok(GuestAnswer::Over),
            None => Err(GuestError::new(
                GuestErrorKind::NotFound,
                format!("ticket {} was killed", self.id),
            )),
        }
    }

    fn wait(
        &self,
        unfinished: impl Fn(&State) -> bool,
        is_there: impl Fn() -> bool,
    ) -> MutexGuard<'_, State> {
        let mut state = self.state();
        while unfinished(&state) && is_there() {
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::super::children::ProcessExit;
    use super::*;
    use martlet_api::{CloneResult, Problem, ProblemCode, Timeline};

    fn ticket(granted: u32, processes: u32) -> Ticket {
        let placed = Placed {
            shares: Vec::new(),
            allocation: None,
        };
        Ticket::new("t1".into(), "m".into(), granted, processes, None, placed)
    }

    fn news(index: u32, exits: &[(u32, i32)], is_over: bool, problem: Option<&str>) -> News {
        News {
            clone: CloneResult {
                index,
                name: format!("a-{index}"),
                host: None,
                machine: None,
                timeline: Timeline::default(),
                output: None,
                problem: problem.map(|words| Problem::new(ProblemCode::GuestFailed, words)),
            },
            exits: exits
                .iter()
                .map(|(id, status)| ProcessExit {
                    id: *id,
                    status: *status,
                    data: "ZGF0YQ==".into(),
                })
                .collect(),
            wants_input: false,
            done: None,
            is_over,
        }
    }

    fn told(answer: GuestAnswer) -> (u32, Option<i32>, Option<String>) {
        match answer {
            GuestAnswer::Exited {
                id, status, problem, ..
            } => (id, status, problem),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn exits_are_told_in_their_order_each_once_and_again_if_asked() {
        let ticket = ticket(3, 1);
        assert_eq!(
            ticket.next_exit(0, || true).unwrap_err().kind,
            GuestErrorKind::State
        );
        ticket.begin().unwrap();
        assert_eq!(ticket.begin().unwrap_err().kind, GuestErrorKind::State);
        ticket.forked(None);
        ticket.hear(&news(2, &[], false, None));
        ticket.hear(&news(2, &[(2, 7)], true, None));
        ticket.hear(&news(1, &[(1, 0)], true, None));
        ticket.hear(&news(3, &[], true, Some("no room")));
        ticket.hear(&news(4, &[(4, 0)], true, None)); // of no clone of this ticket
        for _ in 0..2 {
            assert_eq!(told(ticket.next_exit(0, || true).unwrap()), (2, Some(7), None));
        }
        assert_eq!(told(ticket.next_exit(1, || true).unwrap()), (1, Some(0), None));
        let (id, status, problem) = told(ticket.next_exit(2, || true).unwrap());
        assert_eq!((id, status, problem.as_deref()), (3, None, Some("no room")));
        assert_eq!(ticket.next_exit(3, || true).unwrap(), GuestAnswer::Over);
        let failed = ticket.wait_until_started(|| true);
        assert_eq!(failed.iter().map(|failed| failed.id).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_clone_may_have_several_processes_and_the_last_fewer() {
        let ticket = ticket(5, 2);
        assert_eq!(ticket.clones(), 3);
        ticket.begin().unwrap();
        ticket.forked(None);
        ticket.hear(&news(3, &[(5, 0)], true, None));
        ticket.hear(&news(1, &[(2, 1)], true, Some("its time was up")));
        assert_eq!(told(ticket.next_exit(0, || true).unwrap()).0, 5);
        let (id, status, problem) = told(ticket.next_exit(1, || true).unwrap());
        assert_eq!(
            (id, status, problem.as_deref()),
            (1, None, Some("its time was up"))
        );
        assert_eq!(told(ticket.next_exit(2, || true).unwrap()), (2, Some(1), None));
    }

    #[test]
    fn who_waits_is_told_of_the_end() {
        let tickets = Tickets::default();
        tickets.add(ticket(1, 1), 1).unwrap();
        assert_eq!(
            tickets.add(ticket(1, 1), 1).unwrap_err().kind,
            GuestErrorKind::Busy
        );
        let ticket = tickets.of("m", "t1").unwrap();
        assert!(tickets.of("other", "t1").is_err(), "a ticket is its machine's");
        assert_eq!(tickets.granted_to("m"), 1);
        ticket.begin().unwrap();
        ticket.forked(Some("a:fork-1".into()));
        let waiting = std::thread::spawn({
            let ticket = ticket.clone();
            move || ticket.next_exit(0, || true)
        });
        assert_eq!(tickets.discard(&ticket).as_deref(), Some("a:fork-1"));
        assert_eq!(
            waiting.join().unwrap().unwrap_err().kind,
            GuestErrorKind::NotFound
        );
        assert_eq!(tickets.granted_to("m"), 0);
        // What is unused goes with the machine.
        tickets.add(self::ticket(2, 1), 2).unwrap();
        tickets.forget_unused("other");
        assert_eq!(tickets.granted_to("m"), 2);
        tickets.forget_unused("m");
        assert_eq!(tickets.granted_to("m"), 0);
    }
}
