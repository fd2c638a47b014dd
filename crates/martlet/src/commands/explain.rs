//! `martlet explain`: where the time of a machine's start went, as tables and a chart.

use super::Context;
use crate::failure::Outcome;
use crate::show;
use martlet_api::{Explanation, MachinePart, ReadSource, Stall, StallStep, WaitedFor};

/// The chart, with what stands around it, fits on 80 columns.
const CHART_COLUMNS: usize = 60;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

pub fn run(context: &Context, source: &str, top: usize) -> Outcome {
    context.get(&format!("/v1/explain/{source}?top={top}"), text)
}

fn text(explanation: Explanation) -> String {
    let Explanation {
        machine,
        snapshot,
        began_unix_ms,
        reads,
        read_bytes,
        stalls,
        waited_ms,
        hit_ratio,
        sources,
        waited_for,
        step_ms,
        timeline,
        longest,
    } = explanation;
    let from = snapshot.map_or_else(
        || "booted".into(),
        |id| format!("from snapshot {}", show::short_id(&id)),
    );
    let mut text = format!(
        "machine {machine}, {from}, {}\n{reads} reads of {}: {:.1} % at once; {stalls} waited, {} together\n",
        show::age(began_unix_ms),
        show::size(read_bytes),
        hit_ratio * 100.0,
        show::duration(waited_ms)
    );
    if reads > 0 {
        text += "\n";
        text += &show::table(
            ["FROM", "READS", "READ", "CAME", "WAITED", "TOGETHER", "LONGEST"],
            sources.into_iter().map(source),
        );
    }
    if stalls > 0 {
        text += "\n";
        text += &chart(&timeline, step_ms);
        text += "\n";
        text += &show::table(
            ["WAITED FOR", "TIMES", "TOGETHER"],
            waited_for.into_iter().map(kind),
        );
    }
    if !longest.is_empty() {
        text += "\n";
        text += &show::table(
            ["AT", "WAITED", "FROM", "READ", "SIZE", "WHAT"],
            longest.into_iter().map(stall),
        );
    }
    text
}

fn source(source: ReadSource) -> [String; 7] {
    [
        source.source,
        source.reads.to_string(),
        show::size(source.read_bytes),
        match source.came_bytes {
            0 => show::NONE.into(),
            bytes => show::size(bytes),
        },
        source.stalls.to_string(),
        show::duration(source.waited_ms),
        show::duration(source.waited_max_ms),
    ]
}

fn kind(kind: WaitedFor) -> [String; 3] {
    [kind.what, kind.stalls.to_string(), show::duration(kind.waited_ms)]
}

fn stall(stall: Stall) -> [String; 6] {
    let what = match (stall.what(), stall.same_on_disk_bytes) {
        ("page of the disk", Some(offset)) => format!("page of the disk, {offset:#x}"),
        (what, _) => what.to_owned(),
    };
    let read = match stall.part {
        MachinePart::Disk => format!("disk {:#x}", stall.offset_bytes),
        MachinePart::Memory => format!("memory {:#x}", stall.guest_address.unwrap_or(stall.offset_bytes)),
    };
    [
        show::duration(stall.at_ms),
        show::duration(stall.late_ms),
        stall.source,
        read,
        show::size(stall.size_bytes),
        what,
    ]
}

/// How long reads waited, over time; reads that wait at the same time add up.
fn chart(timeline: &[StallStep], step_ms: u64) -> String {
    let per_column = timeline.len().div_ceil(CHART_COLUMNS).max(1);
    let columns: Vec<f64> = timeline
        .chunks(per_column)
        .map(|steps| steps.iter().map(|step| step.waited_ms).sum())
        .collect();
    let highest = columns.iter().copied().fold(0.0, f64::max);
    let bars: String = columns.iter().map(|waited_ms| bar(*waited_ms, highest)).collect();
    let column_ms = (step_ms * per_column as u64) as f64;
    format!(
        "waited, a column for {}, the highest {}:\n|{bars}| {}\n",
        show::duration(column_ms),
        show::duration(highest),
        show::duration(column_ms * columns.len() as f64)
    )
}

/// Nothing is a space, and little is seen.
fn bar(value: f64, highest: f64) -> char {
    if value <= 0.0 || highest <= 0.0 {
        return ' ';
    }
    let height = (value / highest * BARS.len() as f64).ceil() as usize;
    BARS[height.clamp(1, BARS.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(waited_ms: impl IntoIterator<Item = u32>) -> Vec<StallStep> {
        let step = |waited_ms| StallStep {
            stalls: 1,
            waited_ms: f64::from(waited_ms),
        };
        waited_ms.into_iter().map(step).collect()
    }

    #[test]
    fn a_chart_fits_on_a_narrow_terminal_and_shows_the_least() {
        let shown = chart(&steps([0, 1, 400, 800]), 1000);
        assert_eq!(
            shown,
            "waited, a column for 1.00 s, the highest 800 ms:\n| ▁▄█| 4.00 s\n"
        );
        let shown = chart(&steps(0..600), 64_000);
        let widest = shown.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(80), "{shown}");
        assert!(shown.contains('█'), "{shown}");
        assert!(chart(&[], 1000).contains("||"));
    }

    #[test]
    fn what_was_read_is_said_as_exactly_as_it_is_known() {
        let read = |part, region: Option<&str>, same_on_disk_bytes| {
            let [_, _, _, read, _, what] = stall(Stall {
                at_ms: 10.0,
                part,
                offset_bytes: 0x5000,
                size_bytes: 4096,
                guest_address: Some(0x1_0000_5000),
                same_on_disk_bytes,
                region: region.map(String::from),
                source: "remote far".into(),
                late_ms: 20.0,
            });
            format!("{read}: {what}")
        };
        assert_eq!(read(MachinePart::Disk, None, None), "disk 0x5000: disk");
        assert_eq!(
            read(MachinePart::Memory, None, None),
            "memory 0x100005000: memory"
        );
        assert_eq!(
            read(MachinePart::Memory, None, Some(0x7000)),
            "memory 0x100005000: page of the disk, 0x7000"
        );
        assert_eq!(
            read(MachinePart::Memory, Some("Kernel code"), Some(0x7000)),
            "memory 0x100005000: Kernel code"
        );
    }
}
