//! Where a machine's network may lead: what may be asked for together, and the way out by a list (`martlet-egress`).

use crate::engine::Engine;
use crate::machine::{Config, Record};
use martlet_api::{Problem, ProblemCode, RunRequest};
use martlet_egress::{Counts, Options, Rule, System};
use martlet_switch::Plugged;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Entries of a list.
const RULES_MAX: usize = 256;
/// From what a modem was to what no network is yet.
const RATES_BYTES: RangeInclusive<u64> = 1000..=1_000_000_000_000;

/// Does a list say what it may reach?
pub(crate) fn leads_out(request: &RunRequest) -> bool {
    !request.outbound_to.is_empty()
}

/// Can this be asked for? `saved` is what the machine was, if one is restored.
pub(crate) fn check_network(request: &RunRequest, saved: Option<&Config>) -> Result<(), Problem> {
    let invalid = |words: String| Problem::new(ProblemCode::InvalidArgument, words);
    if leads_out(request) {
        if request.outbound {
            return Err(
                invalid("a machine that may reach everything needs no list".into())
                    .remediation("say outbound, or outbound_to"),
            );
        }
        if saved.is_some_and(|saved| !saved.family) {
            return Err(invalid(
                "the snapshot's machine has no card for the network that leads to what is on a list".into(),
            )
            .remediation("start one from a base, or from a snapshot of one with `--family`"));
        }
        options(&request.outbound_to, request.outbound_bytes_per_s)?;
    } else if request.outbound_bytes_per_s.is_some() {
        return Err(invalid(
            "a rate is for a machine with a list of what it may reach".into(),
        ));
    }
    match &request.tap {
        Some(tap) if !martlet_vm::tap::is_name(tap) => {
            Err(invalid(format!("{tap:?} cannot be the name of an interface")))
        }
        Some(tap) if request.outbound || leads_out(request) || !request.ports.is_empty() => Err(invalid(
            "a machine at a tap interface has no forwarded ports, and reaches what the interface leads to"
                .into(),
        )
        .remediation(format!(
            "leave these options out; the guest is reached by its own address, through {tap}"
        ))),
        _ => Ok(()),
    }
}

/// What a list says.
fn options(list: &[String], rate_bytes: Option<u64>) -> Result<Options, Problem> {
    let invalid = |words: String| Problem::new(ProblemCode::InvalidArgument, words);
    if list.len() > RULES_MAX {
        return Err(invalid(format!("a list has no more than {RULES_MAX} entries")));
    }
    if let Some(rate) = rate_bytes.filter(|rate| !RATES_BYTES.contains(rate)) {
        return Err(invalid(format!(
            "{rate} bytes a second are not possible: {} to {} are",
            RATES_BYTES.start(),
            RATES_BYTES.end()
        )));
    }
    let rules = list.iter().map(|entry| entry.parse::<Rule>());
    let rules = rules.collect::<Result<_, _>>();
    Ok(Options {
        rules: rules.map_err(|error| invalid(error.to_string()))?,
        rate_bytes,
    })
}

impl Config {
    /// Does it reach only what is on its list?
    pub(crate) fn has_list(&self) -> bool {
        !self.outbound_to.is_empty()
    }
}

impl Engine {
    /// Opens the way out of a machine that has a list.
    pub(crate) fn lead_out(&self, record: &Record, plugged: &Plugged) -> Result<(), Problem> {
        if !record.config.has_list() {
            return Ok(());
        }
        let options = options(&record.config.outbound_to, record.config.outbound_bytes_per_s)?;
        plugged
            .lead_out(&record.name, options, Arc::new(System))
            .map_err(|error| Problem::new(ProblemCode::Internal, "the machine has no way out").cause(error))
    }

    /// What came of the ways out of all machines that run now.
    pub fn went_out(&self) -> Counts {
        let mut all = Counts::default();
        for machine in self.all() {
            let Some(counts) = machine.live().and_then(|live| live.went_out()) else {
                continue;
            };
            all.connections += counts.connections;
            all.refused += counts.refused;
            all.bytes += counts.bytes;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut RunRequest)) -> String {
        let mut request: RunRequest = serde_json::from_str(r#"{"from": "debian"}"#).unwrap();
        change(&mut request);
        check_network(&request, None).map_or_else(|problem| problem.message, |()| String::new())
    }

    #[test]
    fn what_does_not_go_together_is_refused_in_words() {
        let list = || vec!["192.0.2.7:443".to_owned()];
        assert_eq!(refused(|request| request.outbound_to = list()), "");
        assert!(
            refused(|request| (request.outbound_to, request.outbound) = (list(), true))
                .contains("needs no list")
        );
        assert!(
            refused(|request| (request.outbound_to, request.tap) = (list(), Some("t".into())))
                .contains("tap")
        );
        assert!(refused(|request| request.outbound_bytes_per_s = Some(1 << 20)).contains("a rate is for"));
        let slow = |request: &mut RunRequest| {
            (request.outbound_to, request.outbound_bytes_per_s) = (list(), Some(1))
        };
        assert!(refused(slow).contains("not possible"));
        assert!(refused(|request| request.outbound_to = vec!["http://a".into()]).contains("\"http://a\""));
        assert!(refused(|request| request.outbound_to = vec!["any".into(); 257]).contains("256 entries"));
        assert!(refused(|request| request.tap = Some("a b".into())).contains("name of an interface"));
    }
}
