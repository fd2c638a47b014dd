//! `martlet bench`: Martlet beside what one would use without it, by turns, in one run.

use super::{Context, understood};
use crate::cli::BenchLocalArgs;
use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::progress::Reporter;
use crate::show;
use martlet_api::*;
use martlet_bench::{BenchError, Figure, Figures, Recipe, Samples, Stock};
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Clones of a fork, and QEMUs that are restored beside it.
const CLONES: u32 = 8;
/// Stock QEMUs restored at a time, as many as Martlet starts.
const AT_A_TIME: usize = 4;

/// The base that is measured when none is named.
const BASE: &str = "martlet-bench";

/// Measures checkpoint, resume, fork and boot on this host.
pub fn local(context: &Context, args: &BenchLocalArgs) -> Outcome {
    let client = context.client()?;
    let mut bench = Bench {
        context,
        client,
        machine: format!("bench-{}", std::process::id()),
        rounds: args.rounds as usize,
        steps: (0, u64::from(args.rounds) * 5 + 3),
        made: Vec::new(),
    };
    let measured = bench.measure(args);
    bench.clean_up(args.base.is_none());
    let figures = measured?;
    context.show(json!({ "figures": figures }), table)
}

/// Figures as people read them.
fn table(figures: Figures) -> String {
    let value = |figure: &Figure, value: f64| match figure.unit.as_str() {
        "ms" => show::duration(value),
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
    machine: String,
    rounds: usize,
    /// Done and in all.
    steps: (u64, u64),
    /// Machines that are there now.
    made: Vec<String>,
}

impl Bench<'_> {
    fn measure(&mut self, args: &BenchLocalArgs) -> Outcome<Vec<Figure>> {
        let reporter = Reporter::new("measuring", self.context.quiet, self.context.json);
        let base = args.base.clone().unwrap_or_else(|| BASE.into());
        self.step(&reporter, "making the base");
        if self.client.get(&format!("/v1/bases/{base}")).is_err() {
            let request = BaseBuildRequest {
                name: base.clone(),
                packages: Vec::new(),
                size_bytes: None,
                suite: "bookworm".into(),
                init: InitKind::Command,
                tiny: true,
            };
            self.act("/v1/bases/build", &request)?;
        }
        self.step(&reporter, "starting both");
        let ours = self.start(&base, &self.machine.clone(), args.memory)?;
        self.guest("sync")?;
        let pid = ours
            .pid
            .ok_or_else(|| Failure::new(ProblemCode::Internal, "the machine has no QEMU"))?;
        let recipe = Recipe::of(pid).map_err(failed)?;
        let theirs = self.boot_stock(&recipe)?;
        self.step(&reporter, "touching memory in both");
        let touched_mib = (args.memory.min(512 << 20) >> 20) * 5 / 16;
        let touch = format!(
            "mkdir -p /dev/shm && mount -t tmpfs -o size=90% bench /dev/shm 2>/dev/null; \
             dd if=/dev/urandom of=/dev/shm/load bs=1M count={touched_mib} 2>/dev/null; sync"
        );
        self.guest(&touch)?;
        theirs.exec(&touch).map_err(failed)?;
        let conditions = format!(
            "{}, {} processors, {} guest with {touched_mib} MiB touched, QEMU {}, store and state files in the page cache",
            serde_json::to_value(ours.accel)
                .unwrap_or_default()
                .as_str()
                .unwrap_or_default(),
            std::thread::available_parallelism().map_or(1, |count| count.get()),
            show::size(args.memory),
            ours.qemu_version,
        );

        let mut figures = Vec::new();
        let mut keep = |samples: &Samples, name: &str, unit: &str, against: &str| {
            figures.extend(samples.figure(name, unit, against, &conditions));
        };
        let state = recipe.file("state");
        let (mut pause, mut stored) = (Samples::default(), Samples::default());
        for _ in 0..self.rounds {
            self.step(&reporter, "checkpoint");
            let report: CheckpointReport = understood(self.machine_verb("checkpoint", &json!({}))?)?;
            let stock = theirs.save(&state, true).map_err(failed)?;
            pause.add(report.pause_ms, stock);
            stored.add(report.stored_bytes as f64, size_of(&state));
        }
        keep(
            &pause,
            "checkpoint_pause_copy",
            "ms",
            "QEMU: stop, save to a file, go on",
        );
        keep(&stored, "checkpoint_stored", "bytes", "QEMU's file");

        theirs.save(&state, false).map_err(failed)?;
        let overlay = theirs.overlay().to_owned();
        drop(theirs);
        let mut resume = [const { Samples::new() }; 3];
        let mut bare = Samples::default();
        for _ in 0..self.rounds {
            self.step(&reporter, "resume");
            self.machine_verb("suspend", &json!({}))?;
            let machine: MachineInfo = understood(self.machine_verb("resume", &json!({}))?)?;
            let below = recipe.overlay(Some(&overlay)).map_err(failed)?;
            let (stock, restored) = recipe.restore(&below, &state).map_err(failed)?;
            drop(stock);
            let idle = recipe.boot(&below).map_err(failed)?;
            idle.cont().map_err(failed)?;
            let bare_ms = idle.age_ms();
            drop(idle);
            let ours = machine.timeline;
            let first_instruction_ms = ours.first_instruction_ms.unwrap_or(f64::NAN);
            resume[0].add(ours.load_ms.unwrap_or(f64::NAN), restored.load_ms);
            resume[1].add(first_instruction_ms, restored.first_instruction_ms);
            resume[2].add(ours.first_exec_ms.unwrap_or(f64::NAN), restored.first_exec_ms);
            bare.add(first_instruction_ms, bare_ms);
        }
        keep(&resume[0], "resume_load", "ms", "QEMU: restore from its file");
        keep(
            &resume[1],
            "resume_first_instruction",
            "ms",
            "QEMU: restore from its file",
        );
        keep(
            &bare,
            "resume_first_instruction_bare",
            "ms",
            "a bare QEMU's start, nothing restored",
        );
        keep(
            &resume[2],
            "resume_first_exec",
            "ms",
            "QEMU: restore from its file",
        );

        // A snapshot has no trace at its first start, and that of the first run at its second.
        let mut prefetch = Samples::default();
        for round in 0..self.rounds {
            self.step(&reporter, "prefetch");
            let report: CheckpointReport = understood(self.machine_verb("checkpoint", &json!({}))?)?;
            let mut first_exec_ms = [f64::NAN; 2];
            for (start, took_ms) in first_exec_ms.iter_mut().enumerate() {
                let name = format!("{}-prefetch-{round}-{start}", self.machine);
                let request = json!({ "from": report.reference, "name": name });
                let machine: MachineInfo = understood(self.act("/v1/machines", &request)?)?;
                self.made.push(name);
                *took_ms = machine.timeline.first_exec_ms.unwrap_or(f64::NAN);
                self.remove_clones();
            }
            prefetch.add(first_exec_ms[1], first_exec_ms[0]);
        }
        keep(
            &prefetch,
            "prefetch_first_exec",
            "ms",
            "the same snapshot before it had a trace",
        );

        let mut fork = Samples::default();
        let (mut private, mut read) = (Samples::default(), Samples::default());
        for _ in 0..self.rounds {
            self.step(&reporter, "fork");
            let request = json!({ "count": CLONES });
            let report: ForkReport = understood(self.machine_verb("fork", &request)?)?;
            if let Some(problem) = report.clones.iter().find_map(|clone| clone.problem.clone()) {
                return Err(problem.into());
            }
            self.made
                .extend(report.clones.iter().map(|clone| clone.name.clone()));
            let usage: Vec<MachineUsage> = understood(self.client.get("/v1/usage")?)?;
            let clones = usage.iter().filter(|usage| self.made[1..].contains(&usage.name));
            for clone in clones {
                private.add(clone.private_bytes as f64, args.memory as f64);
                read.add(clone.faulted_bytes as f64, args.memory as f64);
            }
            self.remove_clones();
            fork.add(report.total_ms, restore_many(&recipe, &overlay, &state)?);
        }
        keep(&fork, "fork8_all_exec", "ms", "QEMU: 8 restores from its file");
        keep(&private, "clone_private", "bytes", "the guest's memory");
        keep(&read, "clone_state_read", "bytes", "the guest's memory");

        let mut boot = Samples::default();
        for _ in 0..self.rounds {
            self.step(&reporter, "boot");
            let name = format!("{}-boot", self.machine);
            let machine = self.start(&base, &name, 128 << 20)?;
            self.remove_clones();
            let stock = self.boot_stock(&recipe)?;
            boot.add(machine.timeline.first_exec_ms.unwrap_or(f64::NAN), stock.age_ms());
        }
        keep(&boot, "boot_first_exec", "ms", "QEMU: the same boot");
        Ok(figures)
    }

    fn boot_stock(&self, recipe: &Recipe) -> Outcome<Stock> {
        let overlay = recipe.overlay(None).map_err(failed)?;
        let stock = recipe.boot(&overlay).map_err(failed)?;
        stock.cont().map_err(failed)?;
        stock.first_exec().map_err(failed)?;
        Ok(stock)
    }

    fn start(&mut self, base: &str, name: &str, memory_bytes: u64) -> Outcome<MachineInfo> {
        let request = json!({ "from": base, "name": name, "memory_bytes": memory_bytes });
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

    /// A line of shell in our guest, by this very program.
    fn guest(&self, line: &str) -> Outcome {
        let program =
            std::env::current_exe().map_err(|error| Failure::io("cannot find this program", error))?;
        let status = Command::new(program)
            .arg("--socket")
            .arg(&self.context.daemon.socket)
            .args(["exec", &self.machine, "--", "sh", "-c", line])
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

    fn step(&mut self, reporter: &Reporter, stage: &str) {
        self.steps.0 += 1;
        reporter.show(&Progress {
            stage: stage.into(),
            done: self.steps.0,
            total: Some(self.steps.1),
            unit: ProgressUnit::Items,
        });
    }

    /// All but the first.
    fn remove_clones(&mut self) {
        for name in self.made.split_off(1) {
            // What stays behind is seen in `ps`.
            let _ = self.client.delete(&format!("/v1/machines/{name}?force=true"));
        }
    }

    /// Nothing is left: machines, snapshots, the base that was made for this.
    fn clean_up(&mut self, own_base: bool) {
        for name in self.made.drain(..) {
            let _ = self.client.delete(&format!("/v1/machines/{name}?force=true"));
        }
        let snapshots = self
            .client
            .get("/v1/snapshots")
            .ok()
            .and_then(|all| understood::<Vec<SnapshotInfo>>(all).ok());
        for snapshot in snapshots
            .into_iter()
            .flatten()
            .filter(|one| one.machine == self.machine)
        {
            for reference in snapshot.references {
                let _ = self.client.delete(&format!("/v1/snapshots/{reference}"));
            }
        }
        if own_base {
            let _ = self.client.delete(&format!("/v1/bases/{BASE}?force=true"));
        }
        let _ = self.client.post("/v1/store/gc", &json!({}));
    }
}

/// Milliseconds until each of [`CLONES`] stock QEMUs has executed a command.
fn restore_many(recipe: &Recipe, overlay: &std::path::Path, state: &std::path::Path) -> Outcome<f64> {
    let overlays: Result<Vec<_>, _> = (0..CLONES).map(|_| recipe.overlay(Some(overlay))).collect();
    let waiting = Mutex::new(overlays.map_err(failed)?);
    let begun = std::time::Instant::now();
    let work = || -> Result<Vec<Stock>, BenchError> {
        let mut restored = Vec::new();
        loop {
            let next = waiting.lock().unwrap_or_else(|error| error.into_inner()).pop();
            let Some(overlay) = next else { return Ok(restored) };
            restored.push(recipe.restore(&overlay, state)?.0);
        }
    };
    let restored: Result<Vec<_>, _> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(BenchError::Other("a restore panicked".into())))
            })
            .collect()
    });
    let took_ms = begun.elapsed().as_secs_f64() * 1e3;
    drop(restored.map_err(failed)?);
    Ok(took_ms)
}

fn size_of(path: &std::path::Path) -> f64 {
    use std::os::unix::fs::MetadataExt;
    // What it takes on disk: mapped-ram leaves holes for zero pages.
    std::fs::metadata(path).map_or(f64::NAN, |meta| meta.blocks() as f64 * 512.0)
}

fn failed(error: BenchError) -> Failure {
    Problem::new(ProblemCode::HypervisorFailed, "the measurement could not be made")
        .cause(error)
        .remediation(
            "it needs root, or the user who owns the daemon, and qemu-img; `martlet doctor` checks the rest",
        )
        .into()
}
