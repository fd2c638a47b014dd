//! `martlet move`, `resume --on`.

use super::Context;
use crate::failure::Outcome;
use crate::show;
use martlet_api::{MachineInfo, MachineState, MoveReport, MoveRequest, Problem, ProblemCode};

pub fn move_to(context: &Context, name: &str, request: MoveRequest) -> Outcome {
    context.long(
        &format!("/v1/machines/{name}/move"),
        &request,
        &format!("asking host {}", request.host),
        |report| moved(&report),
    )
}

/// The same of a suspended machine, and only of one.
pub fn resume_on(context: &Context, name: &str, host: String) -> Outcome {
    let machine: MachineInfo = super::understood(context.client()?.get(&format!("/v1/machines/{name}"))?)?;
    if machine.state == MachineState::Running {
        let words = format!("machine {name} is running");
        return Err(Problem::new(ProblemCode::WrongState, words)
            .remediation(format!("`martlet move {name} {host}`"))
            .into());
    }
    move_to(context, name, MoveRequest { host, tap: None })
}

fn moved(report: &MoveReport) -> String {
    let mut text = String::new();
    if !report.rounds.is_empty() {
        let rounds = report.rounds.iter().enumerate().map(|(at, round)| {
            [
                match at {
                    0 => "all".into(),
                    at => format!("{at}"),
                },
                show::size(round.sent_bytes),
                show::duration(round.ms),
                show::or_none(&round.rest_bytes.map(show::size).unwrap_or_default()),
            ]
        });
        text = show::table(["ROUND", "SENT", "TOOK", "WRITTEN MEANWHILE"], rounds) + "\n";
    }
    text += &format!(
        "{} runs on host {}; it stood still for {}\n",
        report.machine,
        report.host,
        show::duration(report.pause_ms)
    );
    if report.left_objects > 0 {
        text += &format!(
            "{} objects of it are still to come there: keep this host up until `martlet ps` does not list it\n",
            report.left_objects
        );
    }
    text
}
