//! What is answered and drawn when forks were measured by the number of clones.

use super::model::{HOSTS, check_table, simulated};
use super::scaling::{Scaling, TASK_MIB};
use crate::commands::Context;
use crate::failure::Outcome;
use martlet_bench::plots::CHECK;
use martlet_bench::{Figure, Figures};
use serde_json::json;
use std::path::Path;

/// Shows figures and points, and draws what there is a plot of.
pub(super) fn answer(
    context: &Context,
    figures: Vec<Figure>,
    scaling: &Scaling,
    (conditions, dir): (&str, &Path),
) -> Outcome {
    let value = |name: &str| Some(figures.iter().find(|figure| figure.name == name)?.value);
    let single = value("fork_fetch").zip(value("descriptor_size"));
    let costs = single.and_then(|(fetch_ms, outline_bytes)| scaling.costs(fetch_ms, outline_bytes));
    let measured = scaling.points();
    // Those of the check come with their simulation.
    let mut points = measured.clone();
    if let Some(costs) = &costs {
        points.retain(|point| point.plot != CHECK);
        points.extend(simulated(costs, &measured, HOSTS, costs.lab_processors));
    }
    let results = Figures {
        figures,
        points,
        conditions: format!("{conditions}; the task reads {TASK_MIB} MiB of the parent's memory"),
        costs,
    };
    super::super::plot::draw(&results, dir)?;
    context.show(json!(results), |results: Figures| {
        let check = results.costs.as_ref();
        let check = check.map_or_else(String::new, |costs| check_table(costs, &results.points));
        let points = super::super::plot::table(&results.points);
        format!("{}\n{points}\n{check}", super::super::table(results))
    })
}
