//! `map`: a command over many inputs.

use super::{Context, understood};
use crate::failure::{Failure, Outcome};
use crate::show;
use martlet_api::{ExitStatus, MapOutput, MapReport, MapRequest, ProblemCode};
use std::fmt::Write;
use std::io::Read;
use std::path::Path;

/// Exit code when some outputs are there and some are not.
const PARTIAL: u8 = 8;

/// The lines of a file, or of standard input.
pub fn inputs(path: &Path) -> Outcome<Vec<String>> {
    let read = match path == Path::new("-") {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(path),
    };
    let text = read.map_err(|error| {
        let words = format!("the inputs cannot be read from {}: {error}", path.display());
        Failure::new(ProblemCode::InvalidArgument, words)
    })?;
    Ok(text.lines().map(str::to_owned).collect())
}

pub fn map(context: &Context, source: &str, request: &MapRequest) -> Outcome<u8> {
    let path = format!("/v1/machines/{source}/map");
    let answer = context.operation(&path, request, "working")?;
    let report: MapReport = understood(answer.clone())?;
    let failed = report
        .outputs
        .iter()
        .filter(|output| why_bad(output).is_some())
        .count();
    context.show(answer, outputs)?;
    if failed == 0 {
        return Ok(0);
    }
    if !context.json {
        let mut words = format!("{failed} of {} inputs failed", report.outputs.len());
        let bad = report
            .outputs
            .iter()
            .filter_map(|output| Some((output, why_bad(output)?)));
        for (output, why) in bad.take(10) {
            let _ = write!(words, "\n  {}: {why}", output.input); // a String takes all
        }
        eprint!("{}", Failure::new(ProblemCode::GuestFailed, words).text(false));
    }
    Ok(PARTIAL)
}

/// What the command wrote, in the order of its inputs.
fn outputs(report: MapReport) -> String {
    let written = report.outputs.iter().filter_map(|output| output.output.as_ref());
    let mut text: String = written.map(|output| output.stdout.as_str()).collect();
    if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        let clones = report.clones.len();
        let inputs = report.outputs.len();
        let _ = writeln!(
            text,
            "{inputs} inputs in {clones} clones: {}",
            show::duration(report.total_ms)
        );
    }
    text
}

fn why_bad(output: &MapOutput) -> Option<String> {
    if let Some(problem) = &output.problem {
        return Some(problem.message.clone());
    }
    let done = output.output.as_ref()?;
    let how = match done.status {
        ExitStatus::Code(0) => return None,
        ExitStatus::Code(code) => format!("exited with {code}"),
        ExitStatus::Signal(signal) => format!("ended by signal {signal}"),
    };
    match done.stderr.trim() {
        "" => Some(how),
        said => Some(format!("{how}: {said}")),
    }
}
