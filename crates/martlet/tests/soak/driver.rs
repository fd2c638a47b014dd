//! One step after the other: operations at the same time, perhaps with a fault among them; then what is listed and what
//! guests hold is compared with what must be.

use crate::Daemon;
use crate::command::{Answer, call, call_with_input};
use crate::content::{self, Content, Place};
use crate::fault::{self, Fault, Planned};
use crate::model::{Machine, Model, Possible, Reference, Snapshot, State, World};
use crate::operation::{self, Limits, NewSnapshot, Numbers, Operation};
use crate::random::Random;
use crate::report::{End, Report};
use crate::room::Room;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

/// What is not as it must be.
pub type Discrepancy = String;

/// All is at rest again within this time after a fault.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Steps of a hundred in which something goes wrong,
const FAULTS_PERCENT: usize = 40;
/// and in which a guest that nothing was done to is looked at.
const LOOKS_PERCENT: usize = 30;

pub struct Driver<'a> {
    pub daemon: &'a Daemon,
    pub room: &'a Room,
    pub limits: Limits,
    pub random: Random,
    pub model: Model,
    pub report: Report,
    /// What was done, for whoever looks for a discrepancy's cause.
    pub log: File,
    /// The snapshot that all machines come from.
    pub kept: Reference,
    pub numbers: Numbers,
    pub world: World,
}

/// An operation that is over.
struct Ended {
    operation: Operation,
    answer: Answer,
    failed: bool,
}

impl Driver<'_> {
    pub fn note(&mut self, words: &str) {
        let at = self.report.elapsed().as_secs_f64();
        let _ = writeln!(self.log, "{at:8.2} {words}");
    }

    /// Runs a command that must succeed.
    pub fn must(&mut self, args: &[&str]) -> Result<Answer, Discrepancy> {
        let answer = call(self.daemon, args);
        match answer.is_ok {
            true => Ok(answer),
            false => Err(format!("{args:?} failed: {} {}", answer.code, answer.words)),
        }
    }

    /// The first world, and what it must be.
    pub fn begin(&mut self) -> Result<(), Discrepancy> {
        self.world = self.list()?;
        let id = self
            .world
            .references
            .get(&self.kept)
            .ok_or("the fixture has no snapshot")?;
        let nothing = Content {
            memory: None,
            disk: None,
        };
        let snapshot = Snapshot {
            id: id.clone(),
            machine: String::new(),
            contents: [nothing].into(),
        };
        self.model.snapshots.insert(self.kept.clone(), snapshot);
        Ok(())
    }

    fn list(&mut self) -> Result<World, Discrepancy> {
        let machines = self.must(&["ps"])?.json();
        let snapshots = self.must(&["images"])?.json();
        Ok(World::new(&machines, &snapshots))
    }

    pub fn step(&mut self) -> Result<(), Discrepancy> {
        self.report.steps += 1;
        let operations = operation::choose(
            &mut self.random,
            &mut self.numbers,
            &self.model,
            self.limits,
            &self.kept,
        );
        let planned = match self.random.chance(FAULTS_PERCENT) {
            true => fault::choose(&mut self.random, &self.model, &self.world, self.room),
            false => None,
        };
        self.note(&format!(
            "step {}: {operations:?}, {planned:?}",
            self.report.steps
        ));
        let (answers, happened) = self.perform(&operations, planned.as_ref());
        let fault = planned.filter(|_| happened).map(|planned| planned.fault);
        if let Some(fault) = &fault {
            self.report.count_fault(fault.kind());
        }
        let mut ended = Vec::new();
        for (operation, answer) in operations.into_iter().zip(answers) {
            self.note(&format!("  {operation:?}: {} {}", answer.is_ok, answer.words));
            let failed = self.judge(&operation, &answer, fault.as_ref())?;
            ended.push(Ended {
                operation,
                answer,
                failed,
            });
        }
        self.end_half_ended(&ended);
        self.settle(fault.as_ref())?;
        let uncertain = self.reconcile(&ended, fault.as_ref())?;
        self.respond(fault.as_ref())?;
        self.look(&ended, uncertain)?;
        self.report.progress(&self.model);
        Ok(())
    }

    /// Does all at the same time, and lets the fault happen meanwhile.
    fn perform(&self, operations: &[Operation], planned: Option<&Planned>) -> (Vec<Answer>, bool) {
        let (daemon, room, seed) = (self.daemon, self.room, self.report.seed);
        std::thread::scope(|scope| {
            let threads: Vec<_> = operations
                .iter()
                .map(|operation| scope.spawn(move || perform(daemon, seed, operation)))
                .collect();
            let happened = planned.is_some_and(|planned| planned.happen(daemon, room));
            let answers = threads
                .into_iter()
                .map(|thread| thread.join().expect("it does not panic"));
            (answers.collect(), happened)
        })
    }

    /// Has it failed, and may it?
    fn judge(
        &mut self,
        operation: &Operation,
        answer: &Answer,
        fault: Option<&Fault>,
    ) -> Result<bool, Discrepancy> {
        let kind = operation.kind();
        if answer.is_ok {
            self.report.count(kind, End::Done);
            return Ok(false);
        }
        let in_use = matches!(operation, Operation::RemoveImage { .. }) && answer.code == "in_use";
        if in_use || fault.is_some_and(|fault| fault.excuses(operation, answer)) {
            let why = fault.filter(|_| !in_use).map_or("no fault", Fault::kind);
            self.report.count(kind, End::Expected);
            self.report.count_reason(format!("{why}: {}", answer.code));
            return Ok(true);
        }
        self.report.count(kind, End::Unexpected);
        Err(format!("{operation:?} failed: {} {}", answer.code, answer.words))
    }

    /// A guest that was told to shut down may yet do so when the daemon that told it is gone, and a removal may be half
    /// done: each is brought to its end.
    fn end_half_ended(&mut self, ended: &[Ended]) {
        for ended in ended.iter().filter(|ended| ended.failed) {
            let args = match &ended.operation {
                Operation::Stop { machine } | Operation::Kill { machine } => ["kill", machine, "--quiet"],
                Operation::Remove { machine } => ["rm", "--force", machine],
                _ => continue,
            };
            // Refused if it is over already.
            let again = call(self.daemon, &args);
            self.note(&format!("  {args:?}: {} {}", again.is_ok, again.words));
        }
    }

    /// Waits until nothing is at work any more, whoever has died is known to have, and there is a keeper.
    fn settle(&mut self, fault: Option<&Fault>) -> Result<(), Discrepancy> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.world = self.list()?;
            let is_there = |pid: u64| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
            let machines = self.world.machines.values();
            let mut unsettled: Vec<String> = machines
                .filter(|seen| seen.state.is_none() || seen.pid.is_some_and(|pid| !is_there(pid)))
                .map(|seen| format!("{seen:?}"))
                .collect();
            if fault == Some(&Fault::KillKeeper) {
                unsettled.extend(self.keeper_lacks()?);
            }
            if unsettled.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("after {PATIENCE:?} there is no rest: {unsettled:?}"));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The keeper keeps every QEMU, those that are started ahead, too; else what it says.
    fn keeper_lacks(&mut self) -> Result<Option<String>, Discrepancy> {
        let checks = call(self.daemon, &["doctor"]).json();
        let keeper = checks
            .as_array()
            .into_iter()
            .flatten()
            .find(|check| check["name"] == "keeper");
        let found = keeper
            .and_then(|keeper| keeper["found"].as_str())
            .unwrap_or_default()
            .to_owned();
        // Also those that were started ahead, and those that a machine was handed over from.
        let living = self.daemon.processes("-name ").len();
        let wanted = format!("keeps {living} processes");
        Ok((found != wanted).then(|| format!("{found}, and {living} live")))
    }

    /// The model is what it may be and what is listed; names of machines of which something is uncertain.
    fn reconcile(&mut self, ended: &[Ended], fault: Option<&Fault>) -> Result<Vec<String>, Discrepancy> {
        let before: BTreeMap<String, Machine> = self.model.machines.clone();
        let mut possible: BTreeMap<String, Vec<Possible>> = before
            .iter()
            .map(|(name, machine)| (name.clone(), vec![Some(machine.clone())]))
            .collect();
        let mut uncertain = Vec::new();
        for ended in ended {
            let forked = self.forked(ended);
            let after = ended
                .operation
                .afterwards(&self.model, ended.failed, forked.as_ref());
            for (name, machines) in after.machines {
                if ended.failed || ended.operation.restores() {
                    uncertain.push(name.clone());
                }
                possible.insert(name, machines);
            }
            if let Some(snapshot) = after.snapshot {
                self.add_snapshot(snapshot, ended.failed)?;
            }
            if let Some(gone) = after.gone
                && !(ended.failed && self.world.references.contains_key(&gone))
            {
                self.model.snapshots.remove(&gone);
            }
        }
        if let Some(Fault::KillQemu { machine, .. }) = fault {
            let those = possible.entry(machine.clone()).or_default();
            let failed = those.iter().flatten().filter(|one| one.state == State::Running);
            let failed: Vec<Possible> = failed.map(|one| Some(one.ended(State::Failed))).collect();
            match ended
                .iter()
                .any(|ended| ended.operation.machine() == Some(machine))
            {
                true => those.extend(failed),
                false => *those = failed,
            }
        }
        if fault == Some(&Fault::KillKeeper) {
            possible
                .values_mut()
                .flatten()
                .flatten()
                .for_each(|machine| machine.adopted = true);
        }
        for machine in possible.values_mut().flatten().flatten() {
            // What was removed is not the one that it maps, when it may be another.
            if machine.mapped.len() > 1 {
                machine
                    .mapped
                    .retain(|one| self.model.snapshots.contains_key(one));
            }
        }
        let mut machines = BTreeMap::new();
        for (name, possible) in &possible {
            if let Some(machine) = self.world.narrow(name, possible)? {
                self.check_last_words(name, &machine, fault)?;
                machines.insert(name.clone(), machine);
            }
        }
        self.model.machines = machines;
        self.check_listed()?;
        self.check_in_use(ended, &before)?;
        Ok(uncertain)
    }

    /// The reference of a fork's snapshot: the engine chooses its tag.
    fn forked(&self, ended: &Ended) -> Option<Reference> {
        let Operation::Fork { machine, .. } = &ended.operation else {
            return None;
        };
        let prefix = format!("{machine}:fork-");
        let mut new = self.world.references.keys();
        new.find(|reference| reference.starts_with(&prefix) && !self.model.snapshots.contains_key(*reference))
            .cloned()
    }

    fn add_snapshot(&mut self, snapshot: NewSnapshot, failed: bool) -> Result<(), Discrepancy> {
        let NewSnapshot {
            reference,
            machine,
            contents,
        } = snapshot;
        match self.world.references.get(&reference) {
            Some(id) => {
                let snapshot = Snapshot {
                    id: id.clone(),
                    machine,
                    contents,
                };
                self.model.snapshots.insert(reference, snapshot);
                Ok(())
            }
            None if failed => Ok(()),
            None => Err(format!("snapshot {reference} is lost: it was said to exist")),
        }
    }

    /// A machine whose QEMU was killed says so.
    fn check_last_words(
        &self,
        name: &str,
        machine: &Machine,
        fault: Option<&Fault>,
    ) -> Result<(), Discrepancy> {
        let was_killed = matches!(fault, Some(Fault::KillQemu { machine, .. }) if machine == name);
        let words = self.world.machines.get(name).map_or("", |seen| &seen.last_error);
        let right = match machine.adopted || !was_killed {
            true => !words.is_empty(),
            false => words.contains("signal 9"),
        };
        match machine.state != State::Failed || right {
            true => Ok(()),
            false => Err(format!("{name} failed, and its last words are {words:?}")),
        }
    }

    /// What is listed is what must be, and nothing else.
    fn check_listed(&self) -> Result<(), Discrepancy> {
        for (reference, snapshot) in &self.model.snapshots {
            match self.world.references.get(reference) {
                Some(id) if *id == snapshot.id => {}
                listed => {
                    return Err(format!(
                        "snapshot {reference} is {snapshot:?}, and listed as {listed:?}"
                    ));
                }
            }
        }
        let snapshots = self.world.references.keys();
        if let Some(more) = snapshots
            .into_iter()
            .find(|one| !self.model.snapshots.contains_key(*one))
        {
            return Err(format!("snapshot {more} is listed, and nobody made it"));
        }
        let machines = self.world.machines.keys();
        match machines
            .into_iter()
            .find(|one| !self.model.machines.contains_key(*one))
        {
            Some(more) => Err(format!("machine {more} is listed, and nobody made it")),
            None => Ok(()),
        }
    }

    /// A snapshot was removed only if no machine needed it all the while, and its removal refused only if one did.
    fn check_in_use(&self, ended: &[Ended], before: &BTreeMap<String, Machine>) -> Result<(), Discrepancy> {
        let before = Model {
            machines: before.clone(),
            snapshots: BTreeMap::new(),
        };
        for ended in ended {
            let Operation::RemoveImage { snapshot } = &ended.operation else {
                continue;
            };
            let (earlier, later) = (before.users(snapshot), self.model.users(snapshot));
            let users: Vec<_> = earlier.intersection(&later).collect();
            if ended.answer.is_ok && !users.is_empty() {
                return Err(format!("{snapshot} was removed, and {users:?} need it"));
            }
            let nobody = |model: &Model| model.possible_users(snapshot).is_empty();
            if ended.answer.code == "in_use" && nobody(&before) && nobody(&self.model) {
                return Err(format!("{snapshot} is needed by nobody: {}", ended.answer.words));
            }
        }
        Ok(())
    }

    /// After a fault every machine that runs answers again.
    fn respond(&mut self, fault: Option<&Fault>) -> Result<(), Discrepancy> {
        if fault.is_none() {
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        for name in self.running() {
            loop {
                let answer = call(self.daemon, &["exec", &name, "--", "true"]);
                if answer.is_ok {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(format!(
                        "{name} does not answer after {PATIENCE:?}: {}",
                        answer.words
                    ));
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        Ok(())
    }

    pub fn running(&self) -> Vec<String> {
        let running = self
            .model
            .machines
            .iter()
            .filter(|(_, machine)| machine.state == State::Running);
        running.map(|(name, _)| name.clone()).collect()
    }

    /// Guests that were restored, of which something is uncertain, or that luck chooses.
    fn look(&mut self, ended: &[Ended], mut names: Vec<String>) -> Result<(), Discrepancy> {
        for ended in ended.iter().filter(|ended| !ended.failed) {
            if let Operation::Check { machine } = &ended.operation {
                self.compare(machine, &ended.answer)?;
            }
        }
        let running = self.running();
        if self.random.chance(LOOKS_PERCENT) {
            names.extend(self.random.pick(&running).cloned());
        }
        names.sort();
        names.dedup();
        for name in names.iter().filter(|name| running.contains(name)) {
            self.verify(name)?;
            self.furnish(name)?;
        }
        Ok(())
    }

    /// Gives a guest that has nothing, or nothing in its memory, something to hold.
    fn furnish(&mut self, name: &str) -> Result<(), Discrepancy> {
        let lacks = |machine: &&mut Machine| machine.contents.iter().any(|content| content.memory.is_none());
        let Some(machine) = self.model.machines.get_mut(name).filter(lacks) else {
            return Ok(());
        };
        let version = self.numbers.next();
        let content = Content {
            memory: Some(version),
            disk: Some(version),
        };
        machine.contents = [content].into();
        let write = Operation::Write {
            machine: name.to_owned(),
            version,
        };
        let answer = perform(self.daemon, self.report.seed, &write);
        self.judge(&write, &answer, None).map(drop)
    }

    /// A guest holds what it must, to the byte.
    pub fn verify(&mut self, name: &str) -> Result<(), Discrepancy> {
        let answer = read(self.daemon, name);
        self.compare(name, &answer)
    }

    fn compare(&mut self, name: &str, answer: &Answer) -> Result<(), Discrepancy> {
        if !answer.is_ok {
            return Err(format!("{name} cannot be read: {}", answer.words));
        }
        let found =
            content::check(self.report.seed, &answer.stdout).map_err(|wrong| format!("{name}: {wrong}"))?;
        let Some(machine) = self.model.machines.get_mut(name) else {
            return Ok(());
        };
        if !machine.contents.contains(&found) {
            return Err(format!(
                "{name} holds {found:?}, and must hold {:?}",
                machine.contents
            ));
        }
        machine.contents = [found].into();
        self.report.contents_verified += 1;
        self.report.bytes_verified += answer.stdout.len() as u64;
        Ok(())
    }
}

fn perform(daemon: &Daemon, seed: u64, operation: &Operation) -> Answer {
    match operation {
        Operation::Write { machine, version } => {
            let write = |place: Place| {
                let line = place.write();
                let args = ["exec", "-i", machine, "--", "sh", "-c", &line];
                call_with_input(daemon, &args, place.bytes(seed, *version))
            };
            match write(Place::Memory) {
                answer if answer.is_ok => write(Place::Disk),
                answer => answer,
            }
        }
        Operation::Check { machine } => read(daemon, machine),
        operation => call(daemon, &operation.args()),
    }
}

fn read(daemon: &Daemon, machine: &str) -> Answer {
    call(daemon, &["exec", machine, "--", "sh", "-c", &content::read()])
}
