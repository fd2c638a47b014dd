//! Ways of giving up memory that Martlet does not go, in a stock QEMU with the same hardware, kernel and disk. Its memory is
//! written to a file as it is, and put into a store of ours.

use super::dead::{Compared, Reading, timed};
use super::{Bench, failed};
use crate::failure::{Failure, Outcome};
use martlet_bench::{BenchError, Change, Recipe, Stock, archive, usage};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const PAGE: u64 = 4096;
/// In `/proc/kpageflags`: the page is the allocator's own (KPF_BUDDY).
const FREE_FLAG: u64 = 1 << 10;
/// The balloon leaves the guest so much more than it needs.
const LEFT_BYTES: u64 = 16 << 20;

/// One way.
pub(super) struct Way {
    name: &'static str,
    change: Change,
    step: Step,
}

/// What is done before memory is saved.
enum Step {
    Nothing,
    /// Takes all that the guest says it can do without, page cache and all.
    Balloon,
    /// The guest's allocator is asked which pages are free.
    Introspection,
}

const KEEPS: Change = Change {
    keeps_free_pages: true,
    kernel_words: "",
};

const fn way(name: &'static str, change: Change, step: Step) -> Way {
    Way { name, change, step }
}

/// The first is what the others are compared with.
pub(super) const WAYS: [Way; 5] = [
    way("stock_none", KEEPS, Step::Nothing),
    way(
        "stock_reporting",
        Change {
            keeps_free_pages: false,
            kernel_words: "",
        },
        Step::Nothing,
    ),
    way("stock_balloon", KEEPS, Step::Balloon),
    way(
        "stock_init_on_free",
        Change {
            kernel_words: "init_on_free=1",
            ..KEEPS
        },
        Step::Nothing,
    ),
    way("stock_introspection", KEEPS, Step::Introspection),
];

impl Bench<'_> {
    pub(super) fn dead_stock(&mut self, recipe: &Recipe, settle: Duration) -> Outcome {
        let mut all = WAYS.each_ref().map(|way| Compared::new(way.name));
        for round in 0..self.rounds {
            let mut readings = WAYS.each_ref().map(|_| Vec::new());
            for turn in 0..WAYS.len() {
                let turn = (turn + round) % WAYS.len();
                readings[turn] = self.go_stock(recipe, &WAYS[turn], round, settle)?;
            }
            for (compared, ours) in all.iter_mut().zip(&readings) {
                compared.add(ours, &readings[0]);
            }
        }
        for compared in all.into_iter().skip(1) {
            self.keep_compared(compared, "stock QEMU, nothing given up");
        }
        Ok(())
    }

    fn go_stock(
        &mut self,
        recipe: &Recipe,
        way: &Way,
        round: usize,
        settle: Duration,
    ) -> Outcome<Vec<Reading>> {
        self.step(way.name);
        let overlay = recipe.overlay(None).map_err(failed)?;
        let stock = recipe.boot_changed(&overlay, way.change).map_err(failed)?;
        stock.cont().map_err(failed)?;
        stock.first_exec().map_err(failed)?;
        let boot_ms = stock.age_ms();
        let private = || usage::of(stock.pid()).map_or(f64::NAN, |usage| usage.private_bytes as f64);
        let booted_private = private();
        let exec = |line: &str| stock.exec(line).map_err(failed);
        exec("mkdir -p /dev/shm && mount -t tmpfs -o size=90% bench /dev/shm")?;
        let allocate = self.allocate_line();
        exec(&allocate)?;
        std::thread::sleep(settle);
        let allocate_ms = timed(|| exec(&allocate))?;
        let load_ms = timed(|| exec(&self.load_line()))?;
        std::thread::sleep(settle);
        let mut readings = vec![
            ("boot", "ms", boot_ms),
            ("booted_private", "bytes", booted_private),
            ("allocate", "ms", allocate_ms),
            ("load", "ms", load_ms),
        ];

        let memory = recipe.file("memory");
        let dump = || stock.dump(&memory, self.memory_bytes).map_err(failed);
        match way.step {
            Step::Nothing => {
                readings.push(("private", "bytes", private()));
                dump()?;
            }
            Step::Balloon => {
                let left_bytes = self.memory_bytes - available_bytes(&stock)? + LEFT_BYTES;
                let give_up_ms = timed(|| stock.balloon(left_bytes).map_err(failed))?;
                readings.push(("give_up", "ms", give_up_ms));
                readings.push(("private", "bytes", private()));
                dump()?;
                stock.cont().map_err(failed)?;
                let deflate_ms = timed(|| stock.balloon(self.memory_bytes).map_err(failed))?;
                readings.push(("deflate", "ms", deflate_ms));
            }
            Step::Introspection => {
                let mut free = Vec::new();
                let give_up_ms = timed(|| free_pages(&stock).map(|pages| free = pages))?;
                readings.push(("give_up", "ms", give_up_ms));
                dump()?;
                stock.cont().map_err(failed)?;
                readings.push(("lost", "bytes", lost_bytes(&free, &free_pages(&stock)?)));
                zero(&memory, &free)?;
            }
        }
        drop(stock);
        let dir = recipe.file(&format!("{}-{round}", way.name));
        std::fs::create_dir(&dir).map_err(|error| Failure::io("cannot make a directory", error))?;
        let kept = archive::ours(&[memory], &dir).map_err(failed)?;
        readings.push(("stored", "bytes", kept.size_bytes));
        let _ = std::fs::remove_dir_all(dir); // the recipe's directory goes with all that is in it
        let _ = std::fs::remove_file(overlay);
        Ok(readings)
    }
}

/// What the guest could give up without swapping.
fn available_bytes(stock: &Stock) -> Outcome<u64> {
    let meminfo = stock
        .output("grep MemAvailable /proc/meminfo | tr -cd 0-9")
        .map_err(failed)?;
    let kib: Option<u64> = std::str::from_utf8(&meminfo)
        .ok()
        .and_then(|text| text.parse().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| {
        failed(BenchError::Other(
            "the guest does not say what memory it has".into(),
        ))
    })
}

/// Is each page free? Below the memory hole of q35 a guest's page numbers are those of its image.
fn free_pages(stock: &Stock) -> Outcome<Vec<bool>> {
    let flags = stock.output("cat /proc/kpageflags").map_err(failed)?;
    let (flags, _) = flags.as_chunks::<8>();
    Ok(flags
        .iter()
        .map(|flags| u64::from_ne_bytes(*flags) & FREE_FLAG != 0)
        .collect())
}

/// What was listed as free and is in use soon after: a checkpoint that trusts the list loses some of it.
fn lost_bytes(listed: &[bool], later: &[bool]) -> f64 {
    let lost = listed
        .iter()
        .zip(later)
        .filter(|(listed, later)| **listed && !**later);
    (lost.count() as u64 * PAGE) as f64
}

fn zero(memory: &Path, pages: &[bool]) -> Outcome {
    let failed = |error| Failure::io("cannot write the guest's memory", error);
    let file = File::options().write(true).open(memory).map_err(failed)?;
    let size_bytes = file.metadata().map_err(failed)?.len();
    let offsets = (0..).step_by(PAGE as usize).take_while(|at| *at < size_bytes);
    for (at, _) in offsets.zip(pages).filter(|(_, free)| **free) {
        file.write_all_at(&[0; PAGE as usize], at).map_err(failed)?;
    }
    Ok(())
}
