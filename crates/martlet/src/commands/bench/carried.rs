//! A snapshot of this daemon, carried to sites of a lab: they reach nothing outside, and a directory is the same for all.

use super::{Bench, failed};
use crate::commands::understood;
use crate::failure::{Failure, Outcome};
use martlet_api::MachineInfo;
use martlet_bench::roam::Site;
use serde_json::{Value, json};

/// The snapshot in a directory, and what else a site needs for it.
pub(super) struct Carried {
    dir: tempfile::TempDir,
    /// What the snapshot is called.
    pub name: String,
    /// By which sites join the realm that it is sealed in.
    invitation: String,
}

impl Bench<'_> {
    /// Suspends the machine, and puts it into a directory.
    pub(super) fn carry(&self, machine: &MachineInfo) -> Outcome<Carried> {
        self.machine_verb("suspend", &json!({ "tag": "travels" }))?;
        self.carry_snapshot(format!("{}:travels", machine.name))
    }

    /// Puts a snapshot into a directory.
    pub(super) fn carry_snapshot(&self, name: String) -> Outcome<Carried> {
        let dir = tempfile::tempdir().map_err(|error| Failure::io("cannot make a directory", error))?;
        let remote = format!("lab-{}", std::process::id());
        self.act(
            "/v1/remotes",
            &json!({ "name": remote, "address": dir.path().join("remote") }),
        )?;
        let pushed = self.act(
            &format!("/v1/remotes/{remote}/push"),
            &json!({ "snapshot": name }),
        );
        let line = self.act("/v1/realms/default/share", &json!({}));
        let _ = self.client.delete(&format!("/v1/remotes/{remote}"));
        pushed?;
        let line: Value = understood(line?)?;
        let invitation = line["invitation"].as_str().unwrap_or_default().to_owned();
        Ok(Carried {
            dir,
            name,
            invitation,
        })
    }
}

impl Carried {
    /// Has these sites be of its realm, and the first have the snapshot.
    pub(super) fn bring_to(&self, first: &Site, others: &[&Site]) -> Outcome {
        let bring = || {
            for site in [&[first], others].concat() {
                site.run_with_input(&["realm", "join"], &self.invitation)?;
            }
            let address = self.dir.path().join("remote");
            first.run(&["remote", "add", "carried", &address.to_string_lossy()])?;
            first.run(&["pull", "carried", &self.name])
        };
        bring().map(drop).map_err(failed)
    }
}
