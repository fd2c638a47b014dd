//! Stock QEMUs on the hosts of a lab, and QEMU's own live migration between them: with all of memory copied before the guest
//! goes on over there, or with the rest fetched afterwards. Both see the same disk, of which nothing has to go.

use super::{MIGRATION_TIMEOUT, Recipe, Stock};
use crate::BenchError;
use crate::roam::{Site, TAP};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const PORT: u16 = 4444;
const LOOK: Duration = Duration::from_millis(20);

/// QEMU's two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migration {
    /// All of memory goes before.
    PreCopy,
    /// After one pass over it the guest goes on over there, and what it lacks is fetched.
    PostCopy,
}

impl Recipe {
    /// Boots on a host of a lab, at its tap interface. The virtual CPUs do not run yet.
    pub fn boot_at(&self, site: &Site, overlay: &Path) -> Result<Stock, BenchError> {
        self.start_by(
            |program| site.program(program),
            &at_tap(&self.argv),
            overlay,
            false,
        )
    }

    /// Waits on a host of a lab for a guest that comes, and goes on with it.
    pub fn await_at(&self, site: &Site, overlay: &Path, how: Migration) -> Result<Stock, BenchError> {
        let mut argv = at_tap(&self.argv);
        argv.retain(|word| word != "-S"); // it goes on by itself
        let stock = self.start_by(|program| site.program(program), &argv, overlay, true)?;
        stock.wants_events(how.capabilities())?;
        stock.command(
            "migrate-incoming",
            json!({ "uri": format!("tcp:0.0.0.0:{PORT}") }),
        )?;
        Ok(stock)
    }
}

impl Migration {
    fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::PreCopy => &[],
            Self::PostCopy => &["postcopy-ram"],
        }
    }
}

impl Stock {
    /// Migrates to a QEMU that waits on another host. Returns when nothing more has to go.
    pub fn migrate_to(&self, site: &Site, how: Migration) -> Result<(), BenchError> {
        self.wants_events(how.capabilities())?;
        let uri = format!("tcp:{}:{PORT}", site.address());
        self.command("migrate", json!({ "uri": uri }))?;
        if how == Migration::PostCopy {
            let deadline = Instant::now() + MIGRATION_TIMEOUT;
            while self.passes()? < 2 {
                if Instant::now() > deadline {
                    return Err(BenchError::Other(
                        "the stock QEMU's first pass does not end".into(),
                    ));
                }
                std::thread::sleep(LOOK);
            }
            self.command("migrate-start-postcopy", Value::Null)?;
        }
        self.wait_for_migration()
    }

    /// Passes over memory that it has begun.
    fn passes(&self) -> Result<u64, BenchError> {
        let state = self.command("query-migrate", Value::Null)?;
        Ok(state["ram"]["dirty-sync-count"].as_u64().unwrap_or(0))
    }
}

/// The command line with the network at the host's tap interface.
fn at_tap(argv: &[String]) -> Vec<String> {
    let mut argv = argv.to_vec();
    for at in 1..argv.len() {
        if argv[at - 1] == "-netdev" {
            argv[at] = format!("tap,id=net,ifname={TAP},script=no,downscript=no");
        }
    }
    argv
}
