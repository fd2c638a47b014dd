//! `martlet bench fork-model`: what forks across more hosts than there are would take, by what their parts cost.

use super::super::plot::{draw, results_in};
use crate::cli::BenchForkModelArgs;
use crate::commands::Context;
use crate::failure::Outcome;
use crate::show;
use martlet_api::{Problem, ProblemCode};
use martlet_bench::fork_model::Costs;
use martlet_bench::many_hosts::{check, check_points, many_hosts, measured_hosts};
use martlet_bench::plots::{
    CHECK, FORK, FORK_MULTICAST, IMAGE_MULTICAST, IMAGE_TCP, MODEL, SIMULATED, THERE,
};
use martlet_bench::{Figures, Point};
use serde_json::json;

/// As many hosts as are simulated when nothing else is said.
pub(super) const HOSTS: u32 = 1024;

/// Simulates, from what a run has measured.
pub fn fork_model(context: &Context, args: &BenchForkModelArgs) -> Outcome {
    let measured = results_in(&args.results)?;
    let Some(costs) = measured.costs.clone() else {
        return Err(Problem::new(
            ProblemCode::InvalidArgument,
            format!(
                "{} does not say what the parts of a fork cost",
                args.results.display()
            ),
        )
        .remediation("`martlet --json bench fork --plots DIR` measures it")
        .into());
    };
    let processors = args.processors.unwrap_or(costs.lab_processors);
    let results = Figures {
        figures: Vec::new(),
        points: simulated(&costs, &measured.points, args.hosts, processors),
        ..measured
    };
    if let Some(dir) = &args.plots {
        draw(&results, dir)?;
    }
    context.show(json!(results), |results: Figures| {
        format!(
            "{}\n{}",
            check_table(&costs, &results.points),
            hosts_table(&results.points)
        )
    })
}

/// The points that were measured in the lab, with the simulation of each, and that of more hosts.
pub(super) fn simulated(costs: &Costs, points: &[Point], hosts: u32, processors: u32) -> Vec<Point> {
    let measured = points
        .iter()
        .filter(|point| point.plot == CHECK && !point.is_calculated);
    let measured: Vec<Point> = measured.cloned().collect();
    let checked = check_points(&check(costs, &measured));
    let more = many_hosts(costs, hosts, processors);
    let alike = measured_hosts(costs, &measured);
    [measured, checked, more, alike].concat()
}

/// How far the simulation is from what was measured.
pub(super) fn check_table(costs: &Costs, points: &[Point]) -> String {
    let rows = check(costs, points).into_iter().map(|checked| {
        [
            checked.series.clone(),
            checked.clones.to_string(),
            show::duration(checked.measured_ms),
            show::duration(checked.simulated_ms),
            format!("{:+.0} %", 100.0 * checked.error()),
        ]
    });
    show::table(["SERIES", "CLONES", "MEASURED", "SIMULATED", "ERROR"], rows)
}

/// What was simulated, by the number of hosts.
fn hosts_table(points: &[Point]) -> String {
    let of_model: Vec<&Point> = points
        .iter()
        .filter(|point| point.plot == MODEL && point.is_calculated)
        .collect();
    let value = |hosts: f64, series: &str| {
        let found = of_model
            .iter()
            .find(|point| point.x == hosts && point.series.strip_prefix(SIMULATED) == Some(series));
        show::maybe_duration(found.map(|point| point.y))
    };
    let mut sizes: Vec<f64> = of_model.iter().map(|point| point.x).collect();
    sizes.dedup();
    let rows = sizes.into_iter().map(|hosts| {
        let [there, fork, multicast, image, images] =
            [THERE, FORK, FORK_MULTICAST, IMAGE_MULTICAST, IMAGE_TCP].map(|series| value(hosts, series));
        [hosts.to_string(), there, fork, multicast, image, images]
    });
    let header = [
        "HOSTS",
        "CLONES THERE",
        "FORK",
        "FORK, MULTICAST",
        "IMAGE, MULTICAST",
        "IMAGE, TCP",
    ];
    show::table(header, rows)
}
