//! Sizes, durations, times and tables for people.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use martlet_api::MachineState;
use std::io::{self, IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// What stands where nothing is known.
pub const NONE: &str = "-";

/// `2 of 2 QEMUs, 71 MiB`.
pub fn pool(usage: &martlet_api::PoolUsage) -> String {
    format!(
        "{} of {} QEMUs, {}",
        usage.ready,
        usage.size,
        size(usage.memory_bytes)
    )
}

/// `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 9.95 => format!("{value:.1} {}", units[unit]),
        _ => format!("{value:.0} {}", units[unit]),
    }
}

/// `0.7 ms`, `45 ms`, `1.25 s`, `3 min 5 s`.
pub fn duration(ms: f64) -> String {
    match ms {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms if ms < 59_995.0 => format!("{:.2} s", ms / 1e3),
        ms => format!(
            "{} min {} s",
            (ms / 1e3).round() as u64 / 60,
            (ms / 1e3).round() as u64 % 60
        ),
    }
}

/// A duration that may not be known.
pub fn maybe_duration(ms: Option<f64>) -> String {
    ms.map_or_else(|| NONE.into(), duration)
}

/// `5 min ago`.
pub fn age(unix_ms: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64;
    let seconds = now.saturating_sub(unix_ms) / 1000;
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86400),
    }
}

/// `for 5 days`.
pub fn until(unix_ms: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64;
    let hours = unix_ms.saturating_sub(now) / 3_600_000;
    match hours {
        0 if unix_ms <= now => "over".into(),
        0..48 => format!("for {} h more", hours + 1),
        _ => format!("for {} days more", hours / 24),
    }
}

/// First 12 digits of an id.
pub fn short_id(id: &str) -> String {
    id.chars().take(12).collect()
}

/// The state in lower case.
pub fn state(state: MachineState) -> &'static str {
    match state {
        MachineState::Starting => "starting",
        MachineState::Running => "running",
        MachineState::Pausing => "pausing",
        MachineState::Suspended => "suspended",
        MachineState::Stopped => "stopped",
        MachineState::Failed => "failed",
        MachineState::Given => "given",
        MachineState::Moved => "moved",
    }
}

/// The text, or a dash.
pub fn or_none(text: &str) -> String {
    if text.is_empty() { NONE.into() } else { text.into() }
}

/// A table without lines, columns apart by two spaces. On a terminal only the last column is broken into lines; when
/// even that is not enough, columns are left out from the right, and a `…` says so.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut header = header.map(String::from).to_vec();
    let mut rows: Vec<_> = rows
        .into_iter()
        .map(|row| row.map(|cell| crate::failure::printable(&cell)).to_vec())
        .collect();
    if let Some(width) = terminal_width() {
        let wide = |at: usize| {
            rows.iter()
                .chain([&header])
                .map(|row| row[at].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<_> = (0..N).map(wide).collect();
        let kept = columns_that_fit(&widths, width.into());
        rows.iter_mut()
            .chain([&mut header])
            .for_each(|row| row.truncate(kept));
        if kept < N {
            header.push("…".into());
        }
    }
    let mut table = plain_table();
    table.set_header(header);
    table.add_rows(rows);
    finish(table)
}

/// Names and values, one pair in a line.
pub fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = plain_table();
    for (name, value) in pairs {
        table.add_row([format!("{name}:"), crate::failure::printable(&value)]);
    }
    finish(table)
}

/// Between two columns.
const GAP: usize = 2;
/// A last column that is broken into lines should keep this much.
const LAST_MIN: usize = 16;

/// How many columns of these widths a terminal of this width can show.
fn columns_that_fit(widths: &[usize], width: usize) -> usize {
    let fits = |count: usize| {
        let (last, others) = (widths[count - 1], &widths[..count - 1]);
        let mark = if count < widths.len() { GAP + 1 } else { 0 };
        others.iter().map(|width| width + GAP).sum::<usize>() + last.min(LAST_MIN) + mark <= width
    };
    (2..=widths.len()).rev().find(|count| fits(*count)).unwrap_or(1)
}

fn terminal_width() -> Option<u16> {
    crate::terminal::size()
        .filter(|_| io::stdout().is_terminal())
        .map(|size| size.cols)
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if let Some(width) = terminal_width() {
        // The gap behind the last column is cut off again.
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width + GAP as u16);
    }
    table
}

fn finish(mut table: Table) -> String {
    let breakable = table.column_count().saturating_sub(1);
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP as u16));
        if at != breakable {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    let lines = table.to_string();
    lines
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// Shows a text that is shown again and again in the place of the one before, as much of it as the terminal has rows for.
pub fn redraw(text: &str) {
    let rows = crate::terminal::size().map_or(24, |size| size.rows as usize);
    let lines = text.lines().take(rows.saturating_sub(2));
    let text: String = lines.map(|line| format!("{line}\x1b[K\n")).collect();
    // Home, the text over the old one, and the rest of the screen cleared.
    print(&format!("\x1b[H{text}\x1b[J\nCtrl-C ends"));
}

/// Writes to standard output. A reader that has seen enough (`| head`) ends the program in peace.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_two_digits() {
        let shown = [0, 1023, 1024, 1536, 10 << 20, 1023 << 20, 1 << 30, u64::MAX].map(size);
        assert_eq!(
            shown,
            [
                "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 MiB", "1023 MiB", "1.0 GiB", "16 EiB"
            ]
        );
    }

    #[test]
    fn narrow_terminals_lose_columns_from_the_right() {
        let widths = [10, 10, 10, 30];
        assert_eq!(columns_that_fit(&widths, 200), 4);
        assert_eq!(
            columns_that_fit(&widths, 36 + LAST_MIN),
            4,
            "the last column is broken into lines"
        );
        assert_eq!(columns_that_fit(&widths, 35 + LAST_MIN), 3);
        assert_eq!(columns_that_fit(&widths, 34), 2, "the mark needs room too");
        assert_eq!(columns_that_fit(&widths, 3), 1);
    }

    #[test]
    fn durations_change_unit_without_a_gap() {
        let shown = [0.04, 0.7, 9.96, 45.4, 999.4, 999.6, 59_990.0, 59_996.0, 185_000.0].map(duration);
        assert_eq!(
            shown,
            [
                "0.0 ms",
                "0.7 ms",
                "10 ms",
                "45 ms",
                "999 ms",
                "1.00 s",
                "59.99 s",
                "1 min 0 s",
                "3 min 5 s"
            ]
        );
    }
}
