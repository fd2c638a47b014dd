//! The four instants of a start, always apart: a machine that is loaded has not yet answered anybody.

use crate::show::maybe_duration;
use martlet_api::Timeline;

/// Names of the columns.
pub const COLUMNS: [&str; 4] = ["LOAD", "FIRST INSTRUCTION", "FIRST EXEC", "FIRST RESPONSE"];

/// The columns.
pub fn cells(timeline: &Timeline) -> [String; 4] {
    let Timeline {
        load_ms,
        first_instruction_ms,
        first_exec_ms,
        first_response_ms,
    } = *timeline;
    [load_ms, first_instruction_ms, first_exec_ms, first_response_ms].map(maybe_duration)
}

/// What is known of it, in one line.
pub fn line(timeline: &Timeline) -> String {
    let names = ["load", "first instruction", "first exec", "first response"];
    let cells = cells(timeline);
    let known = names
        .iter()
        .zip(&cells)
        .filter(|(_, cell)| *cell != crate::show::NONE);
    known
        .map(|(name, cell)| format!("{name} {cell}"))
        .collect::<Vec<_>>()
        .join(", ")
}
