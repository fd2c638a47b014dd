//! `martlet bench`: Martlet beside what one would use without it, by turns, in one run.

use super::{Context, understood};
use crate::cli::BenchLocalArgs;
use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::progress::Reporter;
use crate::show;
use martlet_api::*;
use martlet_bench::{BenchError, Figure, Figures, Recipe, Samples, Stock, archive};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Stdio};

mod carried;
mod dead;
mod dead_stock;
mod flock;
mod fork;
mod handover;
mod interrupted;
mod one;
mod plot;
mod roam;
mod store;

pub use dead::dead;
pub use fork::{fork, fork_model};
pub use interrupted::interrupted;
pub use plot::plot;
pub use roam::roam;

/// The base that is measured when none is named.
const BASE: &str = "martlet-bench";

/// Measures, on this host, what one machine does, what many do, and the store.
pub fn local(context: &Context, args: &BenchLocalArgs) -> Outcome {
    let missing = archive::missing();
    if !missing.is_empty() {
        let problem = Problem::new(
            ProblemCode::MissingDependency,
            format!(
                "what the store is compared with is not installed: {}",
                missing.join(", ")
            ),
        );
        return Err(problem
            .remediation(format!("`apt-get install {}`", missing.join(" ")))
            .into());
    }
    let base = args.base.as_deref();
    let mut bench = Bench::new(
        context,
        base,
        args.memory,
        args.rounds,
        u64::from(args.rounds) * 11 + 5,
    )?;
    let measured = bench.measure(args.clones);
    bench.clean_up(base.is_none());
    measured?;
    context.show(json!({ "figures": bench.figures }), table)
}

/// Figures as people read them.
fn table(figures: Figures) -> String {
    let value = |figure: &Figure, value: f64| match figure.unit.as_str() {
        "ms" if value < 10.0 => format!("{value:.2} ms"),
        "ms" => show::duration(value),
        "percent" => format!("{value:.2} %"),
        "bytes per second" => format!("{}/s", show::size(value as u64)),
        _ => show::size(value as u64),
    };
    let rows = figures.figures.iter().map(|figure| {
        [
            figure.name.clone(),
            value(figure, figure.value),
            format!("{} to {}", value(figure, figure.min), value(figure, figure.max)),
            figure.against.clone(),
            value(figure, figure.against_value),
            format!("{:.2}", figure.ratio),
        ]
    });
    let table = show::table(["FIGURE", "MEDIAN", "SPREAD", "AGAINST", "MEDIAN", "RATIO"], rows);
    match figures.figures.first() {
        Some(first) => format!("{table}\n{} rounds; {}\n", first.rounds, first.conditions),
        None => table,
    }
}

struct Bench<'a> {
    context: &'a Context,
    client: Client,
    /// The machine that is measured.
    machine: String,
    base: String,
    memory_bytes: u64,
    rounds: usize,
    reporter: Reporter,
    /// Done and in all.
    steps: (u64, u64),
    /// Machines that are there now, beside the one that is measured.
    made: Vec<String>,
    conditions: String,
    figures: Vec<Figure>,
}

/// What a measured machine is compared with.
struct Peer {
    recipe: Recipe,
    /// The stock QEMU's disk when its state was saved, and that state.
    overlay: PathBuf,
    state: PathBuf,
}

impl<'a> Bench<'a> {
    /// A measurement in so many steps. Without a base, one is made for it.
    fn new(
        context: &'a Context,
        base: Option<&str>,
        memory_bytes: u64,
        rounds: u32,
        steps: u64,
    ) -> Outcome<Self> {
        Ok(Self {
            context,
            client: context.client()?,
            machine: format!("bench-{}", std::process::id()),
            base: base.unwrap_or(BASE).to_owned(),
            memory_bytes,
            rounds: rounds as usize,
            reporter: Reporter::new("measuring", context.quiet, context.json),
            steps: (0, steps),
            made: Vec::new(),
            conditions: String::new(),
            figures: Vec::new(),
        })
    }

    /// What is measured at hosts of a lab asks nothing of the daemon here, which ends by itself after some time of that.
    fn reach_daemon(&mut self) -> Outcome {
        self.client = self.context.client()?;
        Ok(())
    }

    fn make_base(&mut self) -> Outcome {
        self.step("making the base");
        self.reach_daemon()?;
        if self.client.get(&format!("/v1/bases/{}", self.base)).is_err() {
            let request = BaseBuildRequest {
                name: self.base.clone(),
                packages: Vec::new(),
                size_bytes: None,
                suite: "bookworm".into(),
                init: InitKind::Command,
                tiny: true,
            };
            self.act("/v1/bases/build", &request)?;
        }
        Ok(())
    }

    /// Where it is measured.
    fn host(&self, machine: &MachineInfo) -> String {
        format!(
            "{}, {} processors, {} guest, QEMU {}",
            serde_json::to_value(machine.accel)
                .unwrap_or_default()
                .as_str()
                .unwrap_or_default(),
            std::thread::available_parallelism().map_or(1, |count| count.get()),
            show::size(self.memory_bytes),
            machine.qemu_version,
        )
    }

    /// `many`: clones of the large fork.
    fn measure(&mut self, many: u32) -> Outcome {
        self.make_base()?;
        self.step("starting both");
        let ours = self.start(&self.machine.clone(), self.memory_bytes)?;
        self.made.clear();
        self.guest("sync")?;
        let pid = ours.pid.ok_or_else(no_qemu)?;
        let recipe = Recipe::of(pid).map_err(failed)?;
        let theirs = self.boot_stock(&recipe)?;
        self.step("touching memory in both");
        let touched_mib = self.touched_mib();
        let touch = format!(
            "mkdir -p /dev/shm && mount -t tmpfs -o size=90% bench /dev/shm 2>/dev/null; \
             dd if=/dev/urandom of=/dev/shm/load bs=1M count={touched_mib} 2>/dev/null; sync"
        );
        self.guest(&touch)?;
        theirs.exec(&touch).map_err(failed)?;
        self.conditions = format!(
            "{}; {touched_mib} MiB touched, store and state files in the page cache",
            self.host(&ours)
        );
        let peer = self.checkpoints(recipe, theirs)?;
        self.resumes(&peer)?;
        self.prefetches()?;
        self.forks(&peer, many)?;
        self.boots(&peer)?;
        self.store(&peer)
    }

    /// What the guests touch before they are measured.
    fn touched_mib(&self) -> u64 {
        (self.memory_bytes.min(512 << 20) >> 20) * 5 / 16
    }

    /// A figure of these rounds.
    fn keep(&mut self, samples: &Samples, name: &str, unit: &str, against: &str) {
        self.figures
            .extend(samples.figure(name, unit, against, &self.conditions));
    }

    fn boot_stock(&self, recipe: &Recipe) -> Outcome<Stock> {
        let overlay = recipe.overlay(None).map_err(failed)?;
        let stock = recipe.boot(&overlay).map_err(failed)?;
        stock.cont().map_err(failed)?;
        stock.first_exec().map_err(failed)?;
        Ok(stock)
    }

    fn start(&mut self, name: &str, memory_bytes: u64) -> Outcome<MachineInfo> {
        let request = json!({ "from": self.base, "name": name, "memory_bytes": memory_bytes });
        let machine = understood(self.act("/v1/machines", &request)?)?;
        self.made.push(name.to_owned());
        Ok(machine)
    }

    fn machine_verb(&self, verb: &str, request: &Value) -> Outcome<Value> {
        self.act(&format!("/v1/machines/{}/{verb}", self.machine), request)
    }

    fn act(&self, path: &str, request: &impl serde::Serialize) -> Outcome<Value> {
        self.client.post(path, request)
    }

    /// A line of shell in the machine that is measured.
    fn guest(&self, line: &str) -> Outcome {
        self.exec_in(&self.machine, line)
    }

    /// A line of shell in a guest of ours, by this very program.
    fn exec_in(&self, machine: &str, line: &str) -> Outcome {
        let program =
            std::env::current_exe().map_err(|error| Failure::io("cannot find this program", error))?;
        let status = Command::new(program)
            .arg("--socket")
            .arg(&self.context.daemon.socket)
            .args(["exec", machine, "--", "sh", "-c", line])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .map_err(|error| Failure::io("cannot run this program", error))?;
        match status.success() {
            true => Ok(()),
            false => Err(Failure::new(
                ProblemCode::GuestFailed,
                format!("`{line}` failed in the guest: {status}"),
            )),
        }
    }

    fn step(&mut self, stage: &str) {
        self.steps.0 += 1;
        self.reporter.show(&Progress {
            stage: stage.into(),
            done: self.steps.0,
            total: Some(self.steps.1),
            unit: ProgressUnit::Items,
        });
    }

    /// All but the one that is measured.
    fn remove_made(&mut self) {
        for name in self.made.drain(..) {
            // What stays behind is seen in `ps`.
            let _ = self.client.delete(&format!("/v1/machines/{name}?force=true"));
        }
    }

    /// The machine that is measured, and all that was saved of it.
    fn forget_machine(&self) {
        let _ = self
            .client
            .delete(&format!("/v1/machines/{}?force=true", self.machine));
        let snapshots = self
            .client
            .get("/v1/snapshots")
            .ok()
            .and_then(|all| understood::<Vec<SnapshotInfo>>(all).ok());
        for snapshot in snapshots
            .into_iter()
            .flatten()
            .filter(|one| one.machine.starts_with(&self.machine))
        {
            for reference in snapshot.references {
                let _ = self.client.delete(&format!("/v1/snapshots/{reference}"));
            }
        }
    }

    /// Nothing is left: machines, snapshots, the base that was made for this.
    fn clean_up(&mut self, own_base: bool) {
        let _ = self.reach_daemon(); // the last one is asked, then
        self.remove_made();
        self.forget_machine();
        if own_base {
            let _ = self.client.delete(&format!("/v1/bases/{BASE}?force=true"));
        }
        let _ = self.client.post("/v1/store/gc", &json!({}));
    }
}

fn no_qemu() -> Failure {
    Failure::new(ProblemCode::Internal, "the machine has no QEMU")
}

fn failed(error: BenchError) -> Failure {
    Problem::new(ProblemCode::HypervisorFailed, "the measurement could not be made")
        .cause(error)
        .remediation(
            "it needs root, or the user who owns the daemon, and qemu-img; `martlet doctor` checks the rest",
        )
        .into()
}
