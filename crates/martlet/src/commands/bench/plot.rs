//! `martlet bench plot`: plots of what `bench --json` has answered.

use crate::cli::BenchPlotArgs;
use crate::commands::Context;
use crate::failure::{Failure, Outcome};
use crate::show;
use martlet_api::{Problem, ProblemCode};
use martlet_bench::{Figures, Point, plots};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Draws the results in a file.
pub fn plot(context: &Context, args: &BenchPlotArgs) -> Outcome {
    let drawn = draw(&results_in(&args.results)?, &args.dir)?;
    if drawn.is_empty() {
        return Err(Problem::new(
            ProblemCode::InvalidArgument,
            format!("{} has nothing that there is a plot of", args.results.display()),
        )
        .remediation("`martlet --json bench fork --plots DIR` answers what can be drawn again")
        .into());
    }
    context.show(json!({ "plots": drawn }), |drawn: Value| {
        let files = drawn["plots"].as_array().into_iter().flatten();
        let lines = files.filter_map(|file| file.as_str().map(|file| format!("{file}\n")));
        lines.collect()
    })
}

/// What a run of a bench has answered.
pub(super) fn results_in(file: &Path) -> Outcome<Figures> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::io(format!("cannot read {}", file.display()), error))?;
    serde_json::from_str(&text).map_err(|error| {
        Problem::new(
            ProblemCode::InvalidArgument,
            format!("{} is no answer of `martlet --json bench`", file.display()),
        )
        .cause(error)
        .into()
    })
}

/// Draws all that there is a plot of; the files.
pub(super) fn draw(results: &Figures, dir: &Path) -> Outcome<Vec<PathBuf>> {
    let failed = |error| Failure::io(format!("cannot write into {}", dir.display()), error);
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut files = Vec::new();
    for plot in plots::plots(results) {
        let file = dir.join(format!("{}.svg", plot.name));
        std::fs::write(&file, plot.svg().map_err(super::failed)?).map_err(failed)?;
        files.push(file);
    }
    Ok(files)
}

/// Points as people read them.
pub(super) fn table(points: &[Point]) -> String {
    let value = |point: &Point, value: f64| match point.unit.as_str() {
        "ms" => show::duration(value),
        _ => show::size(value as u64),
    };
    let rows = points.iter().map(|point| {
        let spread = match point.is_calculated {
            true => show::NONE.into(),
            false => format!("{} to {}", value(point, point.min), value(point, point.max)),
        };
        [
            point.plot.clone(),
            point.series.clone(),
            if point.x > 0.0 {
                point.x.to_string()
            } else {
                show::NONE.into()
            },
            value(point, point.y),
            spread,
        ]
    });
    show::table(["PLOT", "SERIES", "AT", "MEDIAN", "SPREAD"], rows)
}
