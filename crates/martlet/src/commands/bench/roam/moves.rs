//! Moves of a busy machine, beside QEMU's own live migration over the same link.

use super::{Bench, failed};
use crate::failure::Outcome;
use martlet_bench::roam::{Pings, Site, TAP};
use martlet_bench::{BenchError, Migration, Recipe, Samples, Stock};
use martlet_lab::{Lab, Link};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

/// How it is called among the links that are measured.
pub(super) const LINK: &str = "move";
const RATE_MBIT: f64 = 100.0;
/// Half a megabyte is written five times a second, over and over the same five.
const BUSY: &str = "(n=0; while :; do dd if=/dev/urandom of=/dev/shm/hot$n bs=64k count=8 conv=notrunc; n=$(((n+1)%10)); \
                    sleep 0.2; done) </dev/null >/dev/null 2>&1 &";
const STOCK_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 200);
const SNAPSHOT: &str = "m:first";
const MACHINE: &str = "v";
/// Answers before and after a move.
const AROUND: Duration = Duration::from_secs(2);

impl Bench<'_> {
    pub(super) fn moves(&mut self, lab: &Lab, home: &Site, away: &Site, recipe: &Recipe) -> Outcome {
        self.step("moves of a busy machine");
        let rounds = self.rounds;
        let measure = || -> Result<_, BenchError> {
            let program = std::env::current_exe().map_err(|error| BenchError::Other(error.to_string()))?;
            let outside = Site::new(lab, "outside", &program)?;
            let link = Link {
                rate_mbit: Some(RATE_MBIT),
                ..Link::local()
            };
            for site in [home, away] {
                site.set_link(link)?;
                site.bridge()?;
            }
            let ours = our_gaps(rounds, &outside, home, away)?;
            let theirs = |how| qemus_gaps(rounds, &outside, home, away, recipe, how);
            Ok((ours, theirs(Migration::PreCopy)?, theirs(Migration::PostCopy)?))
        };
        let (ours, pre_copy, post_copy) = measure().map_err(failed)?;
        let conditions = format!(
            "{}; longest time without an answer to a ping each millisecond, {RATE_MBIT} Mb/s; the guest writes 2.5 MiB a second",
            self.conditions
        );
        for (name, against, theirs) in [
            (
                "move_downtime",
                "QEMU's pre-copy, which shares the disk",
                pre_copy,
            ),
            (
                "move_downtime_postcopy",
                "QEMU's post-copy, which shares the disk",
                post_copy,
            ),
        ] {
            let mut samples = Samples::new();
            ours.iter()
                .zip(theirs)
                .for_each(|(ours, theirs)| samples.add(*ours, theirs));
            self.figures
                .extend(samples.figure(name, "ms", against, &conditions));
        }
        Ok(())
    }
}

/// The longest time without an answer while something is done.
fn gap_during(
    outside: &Site,
    guest: Ipv4Addr,
    act: impl FnOnce() -> Result<(), BenchError>,
) -> Result<f64, BenchError> {
    let pings = Pings::start(outside, guest)?;
    std::thread::sleep(AROUND);
    let done = act();
    std::thread::sleep(AROUND);
    let gap = pings.longest_gap_ms();
    done?;
    gap.map(|(gap_ms, _)| gap_ms)
}

/// There and back again.
fn our_gaps(rounds: usize, outside: &Site, home: &Site, away: &Site) -> Result<Vec<f64>, BenchError> {
    let machine = home.run(&["run", SNAPSHOT, "--name", MACHINE, "--tap", TAP])?;
    let address = machine["address"]
        .as_str()
        .and_then(|address| address.parse().ok());
    let guest = address.ok_or_else(|| BenchError::Other("a machine has no address".into()))?;
    home.exec(MACHINE, BUSY)?;
    let mut gaps = Vec::new();
    let (mut from, mut to) = (home, away);
    for _ in 0..rounds {
        let host = to.name();
        gaps.push(gap_during(outside, guest, || {
            from.run(&["move", MACHINE, host]).map(drop)
        })?);
        (from, to) = (to, from);
    }
    from.run(&["rm", "--force", MACHINE])?;
    Ok(gaps)
}

/// The same by QEMU's own means.
fn qemus_gaps(
    rounds: usize,
    outside: &Site,
    home: &Site,
    away: &Site,
    recipe: &Recipe,
    how: Migration,
) -> Result<Vec<f64>, BenchError> {
    // Each boots anew: a QEMU 7.2 that has come by a migration sometimes ends in the next one.
    let one = || {
        let overlay = recipe.overlay(None)?;
        let stock = booted(home, recipe, &overlay)?;
        let _waits = recipe.await_at(away, &overlay, how)?;
        gap_during(outside, STOCK_ADDRESS, || stock.migrate_to(away, how))
    };
    (0..rounds).map(|_| one()).collect()
}

/// A stock QEMU with the same in its memory, as busy.
fn booted(site: &Site, recipe: &Recipe, overlay: &Path) -> Result<Stock, BenchError> {
    let stock = recipe.boot_at(site, overlay)?;
    stock.cont()?;
    stock.exec(&format!(
        "ip address add {STOCK_ADDRESS}/24 dev eth0; ip link set eth0 up; {}; {BUSY}",
        super::FILL
    ))?;
    Ok(stock)
}
