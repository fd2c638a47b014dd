//! A command over many inputs: each clone gets the next one when it has done the last.
//!
//! ```text
//!   waiting ──► given to a clone ──► done
//!      ▲              │ the clone failed: to another one, so many times
//!      └──────────────┘
//! ```
//!
//! A clone that finds none waiting stays until all are done: it may get what another one fails at.

use super::Family;
use super::task::{Done, Input, News, Task};
use crate::engine::{Engine, lock};
use crate::problem::Told;
use martlet_api::{
    CloneResult, ForkRequest, MapOutput, MapReport, MapRequest, Problem, ProblemCode, Progress, ProgressSink,
    ProgressUnit, User,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// An input is given to so many clones, should each of them fail.
const ATTEMPTS_MAX: u32 = 3;

/// A clone, and what it is to do next: nothing any more, when absent.
type Order = (u32, Option<u32>);

struct Queue {
    waiting: VecDeque<u32>,
    attempts: Vec<u32>,
    /// Which clone has which input.
    given: HashMap<u32, u32>,
    /// Clones with nothing to do.
    idle: BTreeSet<u32>,
    outputs: Vec<Option<MapOutput>>,
}

impl Queue {
    fn new(inputs: u32) -> Self {
        Self {
            waiting: (0..inputs).collect(),
            attempts: vec![0; inputs as usize],
            given: HashMap::new(),
            idle: BTreeSet::new(),
            outputs: vec![None; inputs as usize],
        }
    }

    fn done(&self) -> usize {
        self.outputs.iter().flatten().count()
    }

    /// A clone wants an input; with what it has done with the last.
    fn wants(&mut self, clone: u32, done: Option<(u32, MapOutput)>) -> Vec<Order> {
        if let Some((number, output)) = done
            && self.given.get(&clone) == Some(&number)
        {
            self.given.remove(&clone);
            self.outputs[number as usize] = Some(output);
        }
        if !self.given.contains_key(&clone) {
            self.idle.insert(clone);
        }
        self.orders()
    }

    /// A clone is gone; `failed` is the output of what it was at, if that has failed too often.
    fn gone(&mut self, clone: u32, failed: impl FnOnce(u32) -> MapOutput) -> Vec<Order> {
        self.idle.remove(&clone);
        if let Some(number) = self.given.remove(&clone) {
            match self.attempts[number as usize] < ATTEMPTS_MAX {
                true => self.waiting.push_front(number),
                false => self.outputs[number as usize] = Some(failed(number)),
            }
        }
        self.orders()
    }

    fn orders(&mut self) -> Vec<Order> {
        let mut orders = Vec::new();
        while !self.idle.is_empty()
            && let Some(number) = self.waiting.pop_front()
            && let Some(clone) = self.idle.pop_first()
        {
            self.attempts[number as usize] += 1;
            self.given.insert(clone, number);
            orders.push((clone, Some(number)));
        }
        if self.done() == self.outputs.len() {
            orders.extend(
                std::mem::take(&mut self.idle)
                    .into_iter()
                    .map(|clone| (clone, None)),
            );
        }
        orders
    }
}

/// A map under way.
struct Map<'a> {
    inputs: &'a [String],
    queue: Mutex<Queue>,
    clones: Mutex<BTreeMap<u32, CloneResult>>,
}

impl Map<'_> {
    fn output(&self, number: u32, clone: &CloneResult) -> MapOutput {
        MapOutput {
            input: self.inputs[number as usize].clone(),
            clone: Some(clone.name.clone()),
            host: clone.host.clone(),
            took_ms: 0.0,
            output: None,
            problem: None,
        }
    }

    fn hear(&self, news: News) -> Vec<Order> {
        let index = news.clone.index;
        let mut queue = lock(&self.queue);
        let orders = match (news.is_over, news.wants_input) {
            (true, _) => queue.gone(index, |number| MapOutput {
                problem: news.clone.problem.clone(),
                ..self.output(number, &news.clone)
            }),
            (false, true) => {
                let done = news
                    .done
                    .filter(|done| (done.number as usize) < self.inputs.len());
                let done = done.map(
                    |Done {
                         number,
                         took_ms,
                         outcome,
                     }| {
                        let (output, problem) = match outcome {
                            Ok(output) => (Some(output), None),
                            Err(problem) => (None, Some(problem)),
                        };
                        let output = MapOutput {
                            took_ms,
                            output,
                            problem,
                            ..self.output(number, &news.clone)
                        };
                        (number, output)
                    },
                );
                queue.wants(index, done)
            }
            (false, false) => Vec::new(),
        };
        drop(queue);
        lock(&self.clones).insert(index, news.clone);
        orders
    }
}

impl Engine {
    /// Runs a command for each input in clones of a machine or snapshot; the outputs are in the order of the inputs.
    pub fn map(
        self: &Arc<Self>,
        user: &User,
        source: &str,
        request: MapRequest,
        progress: ProgressSink<'_>,
    ) -> Result<MapReport, Problem> {
        let requested = Instant::now();
        let inputs = u32::try_from(request.inputs.len()).unwrap_or(u32::MAX);
        if inputs == 0 {
            return Err(Problem::new(ProblemCode::InvalidArgument, "there are no inputs")
                .remediation("give one on each line of standard input, or a file with --input FILE"));
        }
        let count = match request.count {
            Some(count) => count,
            None => self.processors(&request.on)?,
        };
        let fork = ForkRequest {
            count: count.min(inputs),
            on: request.on,
            prefix: request.prefix,
            method: request.method,
            ..ForkRequest::default()
        };
        let task = Task::Inputs {
            argv: request.argv,
            timeout_s: request.timeout_s,
        };
        let (family, placed, pause_ms) = self.prepare((source, user), &fork, task, requested, progress)?;
        let map = Map {
            inputs: &request.inputs,
            queue: Mutex::new(Queue::new(inputs)),
            clones: Mutex::default(),
        };
        self.start_everywhere(&family, &placed.shares, &|news| {
            for (clone, number) in map.hear(news) {
                let input = number.map(|number| Input {
                    number,
                    text: map.inputs[number as usize].clone(),
                });
                let host = lock(&map.clones).get(&clone).and_then(|known| known.host.clone());
                // One that does not get it is lost, and that is told as the end of the clone.
                if let Err(problem) = self.give(&family, host.as_deref(), clone, input) {
                    tracing::warn!(%problem, clone, "a clone does not get its input");
                }
            }
            progress(Progress {
                stage: "working".into(),
                done: lock(&map.queue).done() as u64,
                total: Some(inputs.into()),
                unit: ProgressUnit::Items,
            });
        });
        drop(placed.allocation);
        self.forget_made(&family);
        let clones = map.clones.into_inner().unwrap_or_else(PoisonError::into_inner);
        let queue = map.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        let last_problem = clones.values().find_map(|clone| clone.problem.clone());
        let undone = |input: &String| MapOutput {
            input: input.clone(),
            clone: None,
            host: None,
            took_ms: 0.0,
            output: None,
            problem: Some(
                last_problem
                    .clone()
                    .unwrap_or_else(|| Problem::new(ProblemCode::Internal, "no clone was left for it")),
            ),
        };
        let outputs = queue.outputs.into_iter().zip(&request.inputs);
        Ok(MapReport {
            snapshot: family.id.to_string(),
            pause_ms,
            total_ms: requested.elapsed().as_secs_f64() * 1e3,
            outputs: outputs
                .map(|(output, input)| output.unwrap_or_else(|| undone(input)))
                .collect(),
            clones: clones.into_values().collect(),
        })
    }

    /// Tells a clone, wherever it is, what to do next.
    fn give(
        &self,
        family: &Family,
        host: Option<&str>,
        clone: u32,
        input: Option<Input>,
    ) -> Result<(), Problem> {
        let Some(host) = host else {
            family.inboxes.put(clone, input);
            return Ok(());
        };
        let flock = family
            .ending
            .flock_at(host)
            .ok_or_else(|| crate::hosts::no_host(host))?;
        let peer = self.peer(host)?.ok_or_else(|| crate::hosts::no_host(host))?;
        let give = super::hosted::Give { flock, clone, input };
        let answer = peer.post::<_, Result<(), Problem>>("/peer/clones/give", &give);
        answer.told().and_then(|answer| answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(input: u32) -> MapOutput {
        MapOutput {
            input: input.to_string(),
            clone: None,
            host: None,
            took_ms: 1.0,
            output: None,
            problem: None,
        }
    }

    #[test]
    fn clones_get_inputs_as_they_are_ready_and_end_when_all_are_done() {
        let mut queue = Queue::new(3);
        assert_eq!(queue.wants(1, None), [(1, Some(0))]);
        assert_eq!(queue.wants(2, None), [(2, Some(1))]);
        assert_eq!(queue.wants(2, Some((1, output(1)))), [(2, Some(2))]);
        assert_eq!(
            queue.wants(1, Some((0, output(0)))),
            [],
            "it waits: the other may fail"
        );
        assert_eq!(queue.wants(2, Some((2, output(2)))), [(1, None), (2, None)]);
        assert_eq!(queue.done(), 3);
    }

    #[test]
    fn what_a_clone_failed_at_goes_to_another_so_many_times() {
        let mut queue = Queue::new(1);
        assert_eq!(queue.wants(1, None), [(1, Some(0))]);
        assert_eq!(queue.wants(2, None), []);
        assert_eq!(queue.gone(1, output), [(2, Some(0))]);
        assert_eq!(queue.wants(3, None), []);
        assert_eq!(queue.gone(2, output), [(3, Some(0))]);
        assert_eq!(queue.wants(4, None), []);
        assert_eq!(
            queue.gone(3, output),
            [(4, None)],
            "it is given up, and all is done"
        );
        assert_eq!(queue.done(), 1);
    }

    #[test]
    fn what_a_clone_says_of_what_it_does_not_have_is_not_believed() {
        let mut queue = Queue::new(2);
        queue.wants(1, None);
        queue.wants(2, None);
        queue.wants(2, Some((0, output(7))));
        assert_eq!(queue.done(), 0);
    }
}
