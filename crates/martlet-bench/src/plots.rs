//! Which plots there are of forks, and how each is made of points or figures. After those of SnowFlock (EuroSys 2009).

use crate::plot::{Axis, Bars, Line, Look, Plot, Scale, Shape, Spot};
use crate::{Figure, Figures, Point};

/// Time to clone by the number of clones, stage on stage.
pub const STAGES: &str = "fork_stages";
/// Time to clone by the number of clones, beside copies of an image.
pub const CLONES: &str = "fork_clones";
/// Time until all clones have done a task.
pub const WORK: &str = "fork_work";
/// What has left the parent's host.
pub const SENT: &str = "fork_sent";
/// The simulation beside what was measured.
pub const CHECK: &str = "fork_model_check";
/// The simulation of many hosts.
pub const MODEL: &str = "fork_model";

/// Series: a fork.
pub const FORK: &str = "fork";
/// Clones that have their memory and wait for work: what a fork would be that costs nothing.
pub const THERE: &str = "clones already there";
/// A suspended image is sent to each host.
pub const IMAGE_TCP: &str = "image to each, TCP";
/// A suspended image is sent to all hosts at once.
pub const IMAGE_MULTICAST: &str = "image to all, multicast";
/// A fork whose clones execute a command.
pub const FIRST_COMMAND: &str = "fork: first command";
/// A fork whose clones do a task.
pub const TASK: &str = "fork: task done";
/// A fork whose frames go to all hosts at once.
pub const FORK_MULTICAST: &str = "fork, multicast";
/// Before the name of the series that it is the simulation of.
pub const SIMULATED: &str = "simulated: ";

/// How points become a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// Lines by series.
    Lines,
    /// For each `x` its series on top of each other.
    Stacks,
    /// One bar for each series.
    Bars,
}

struct OfPoints {
    name: &'static str,
    title: &'static str,
    x: (&'static str, Scale),
    y: (&'static str, Scale),
    made: Made,
}

const OF_POINTS: [OfPoints; 6] = [
    OfPoints {
        name: STAGES,
        title: "From the call of a fork until each clone has executed a command",
        x: ("clones", Scale::Doublings),
        y: ("time (s)", Scale::Linear),
        made: Made::Stacks,
    },
    OfPoints {
        name: CLONES,
        title: "A fork beside copies of a suspended image",
        x: ("clones", Scale::Doublings),
        y: ("time (s)", Scale::Tens),
        made: Made::Lines,
    },
    OfPoints {
        name: WORK,
        title: "Until all clones have done a task",
        x: ("", Scale::Linear),
        y: ("time (s)", Scale::Linear),
        made: Made::Bars,
    },
    OfPoints {
        name: SENT,
        title: "What leaves the parent's host",
        x: ("", Scale::Linear),
        y: ("MiB", Scale::Linear),
        made: Made::Bars,
    },
    OfPoints {
        name: CHECK,
        title: "The simulation of the lab beside what was measured in it",
        x: ("clones", Scale::Doublings),
        y: ("time (s)", Scale::Tens),
        made: Made::Lines,
    },
    OfPoints {
        name: MODEL,
        title: "Simulated: until clones at all hosts have done a task, or have an image",
        x: ("hosts", Scale::Doublings),
        y: ("time (s)", Scale::Tens),
        made: Made::Lines,
    },
];

/// Figures of one kind, each with what it is compared with: name of the plot, how their names begin, title.
const OF_FIGURES: [(&str, &str, &str); 3] = [
    ("fork_fetch", "fork_fetch", "A page of the parent's host"),
    (
        "fork_overhead",
        "fork_overhead",
        "Applications in clones beside clones that are there already",
    ),
    (
        "fork_adversarial",
        "fork_adversarial",
        "Several parents, whose clones are at each other's hosts",
    ),
];

/// All plots that there is something for.
pub fn plots(results: &Figures) -> Vec<Plot> {
    let conditions = || match results.conditions.is_empty() {
        false => results.conditions.clone(),
        true => results
            .figures
            .first()
            .map(|first| first.conditions.clone())
            .unwrap_or_default(),
    };
    let of_points = OF_POINTS.iter().filter_map(|plot| {
        let points: Vec<&Point> = results
            .points
            .iter()
            .filter(|point| point.plot == plot.name)
            .collect();
        (!points.is_empty()).then(|| plot.of(&points, conditions()))
    });
    let of_figures = OF_FIGURES.iter().filter_map(|(name, prefix, title)| {
        let figures: Vec<&Figure> = results
            .figures
            .iter()
            .filter(|figure| figure.name.starts_with(prefix))
            .collect();
        of_figures(name, prefix, title, &figures)
    });
    of_points.chain(of_figures).collect()
}

/// As it is drawn: seconds and MiB.
fn drawn(value: f64, unit: &str) -> f64 {
    match unit {
        "ms" => value / 1e3,
        "bytes" => value / f64::from(1 << 20),
        _ => value,
    }
}

impl OfPoints {
    fn of(&self, points: &[&Point], conditions: String) -> Plot {
        let mut names: Vec<&str> = Vec::new();
        for point in points {
            if !names.contains(&point.series.as_str()) {
                names.push(&point.series);
            }
        }
        let shape = match self.made {
            Made::Lines => {
                let lines = names.iter().map(|name| line(name, &names, points));
                Shape::Lines(lines.collect())
            }
            Made::Stacks => stacks(&names, points),
            Made::Bars => bars(&names, points),
        };
        let axis = |(label, scale): (&str, Scale)| Axis {
            label: label.into(),
            scale,
        };
        Plot {
            name: self.name.into(),
            title: self.title.into(),
            conditions,
            x: axis(self.x),
            y: axis(self.y),
            shape,
        }
    }
}

fn line(name: &str, names: &[&str], points: &[&Point]) -> Line {
    let of_it = || points.iter().filter(|point| point.series == name);
    let mut spots: Vec<Spot> = of_it()
        .map(|point| Spot {
            x: point.x,
            y: drawn(point.y, &point.unit),
            min: drawn(point.min, &point.unit),
            max: drawn(point.max, &point.unit),
        })
        .collect();
    spots.sort_by(|one, other| one.x.total_cmp(&other.x));
    let others_are_calculated = points.iter().any(|point| point.is_calculated);
    let look = match of_it().any(|point| point.is_calculated) {
        true => Look::Plain,
        false if others_are_calculated => Look::Marks,
        false => Look::Marked,
    };
    // What is measured and what is simulated of it have one colour.
    let of = |name| str::strip_prefix(name, SIMULATED).unwrap_or(name);
    let mut kinds: Vec<&str> = Vec::new();
    for name in names.iter().map(|name| of(name)) {
        if !kinds.contains(&name) {
            kinds.push(name);
        }
    }
    Line {
        name: name.into(),
        look,
        colour: kinds.iter().position(|kind| *kind == of(name)).unwrap_or(0),
        spots,
    }
}

fn stacks(names: &[&str], points: &[&Point]) -> Shape {
    let mut places: Vec<f64> = points.iter().map(|point| point.x).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let value = |name: &str, x: f64| {
        let found = points.iter().find(|point| point.series == name && point.x == x);
        found.map_or(f64::NAN, |point| drawn(point.y, &point.unit))
    };
    Shape::Bars {
        names: places.iter().map(f64::to_string).collect(),
        series: names
            .iter()
            .map(|name| Bars {
                name: (*name).into(),
                values: places.iter().map(|x| value(name, *x)).collect(),
            })
            .collect(),
        is_stacked: true,
    }
}

fn bars(names: &[&str], points: &[&Point]) -> Shape {
    let value = |name: &&str| {
        let found = points.iter().find(|point| point.series == *name);
        found.map_or(f64::NAN, |point| drawn(point.y, &point.unit))
    };
    Shape::Bars {
        names: names.iter().map(|name| (*name).into()).collect(),
        series: vec![Bars {
            name: String::new(),
            values: names.iter().map(value).collect(),
        }],
        is_stacked: false,
    }
}

/// Pairs of bars: the value, and what it is compared with. Of figures in one unit, the first's.
fn of_figures(name: &str, prefix: &str, title: &str, figures: &[&Figure]) -> Option<Plot> {
    let first = figures.first()?;
    let alike: Vec<&&Figure> = figures
        .iter()
        .filter(|figure| figure.unit == first.unit)
        .collect();
    let greatest = alike.iter().map(|figure| figure.value.max(figure.against_value));
    // Times below a second are told in milliseconds.
    let is_short = first.unit == "ms" && greatest.fold(0.0, f64::max) < 1e3;
    let unit = match first.unit.as_str() {
        "ms" if is_short => "time (ms)",
        "ms" => "time (s)",
        "bytes" => "MiB",
        other => other,
    };
    let drawn = |value: f64| {
        if is_short {
            value
        } else {
            drawn(value, &first.unit)
        }
    };
    let called = |figure: &&&Figure| {
        let rest = figure.name[prefix.len()..]
            .trim_start_matches('_')
            .replace('_', " ");
        let percent = 100.0 * (figure.ratio - 1.0);
        match rest.is_empty() {
            true if alike.len() == 1 => format!("{percent:+.1} %"),
            true => format!("all\n{percent:+.1} %"),
            false => format!("{rest}\n{percent:+.1} %"),
        }
    };
    let series = |name: &str, of: fn(&Figure) -> f64| Bars {
        name: name.into(),
        values: alike.iter().map(|figure| drawn(of(figure))).collect(),
    };
    Some(Plot {
        name: name.into(),
        title: title.into(),
        conditions: first.conditions.clone(),
        x: Axis {
            label: String::new(),
            scale: Scale::Linear,
        },
        y: Axis {
            label: unit.into(),
            scale: Scale::Linear,
        },
        shape: Shape::Bars {
            names: alike.iter().map(called).collect(),
            series: vec![
                series("Martlet", |figure| figure.value),
                series(&first.against, |figure| figure.against_value),
            ],
            is_stacked: false,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Samples;

    fn results() -> Figures {
        let measured =
            |plot, series, x, y| Point::measured(plot, series, x, "ms", &[y, y * 2.0, y * 3.0]).unwrap();
        let mut samples = Samples::new();
        samples.add(1050.0, 1000.0);
        Figures {
            conditions: "in a lab".into(),
            figures: vec![
                samples
                    .figure("fork_overhead_blast", "ms", "zero cost", "elsewhere")
                    .unwrap(),
                samples.figure("fork_pause", "ms", "one", "elsewhere").unwrap(),
            ],
            points: vec![
                measured(STAGES, "pause", 2.0, 10.0),
                measured(STAGES, "first command", 2.0, 100.0),
                measured(STAGES, "pause", 1.0, 20.0),
                measured(CHECK, "measured", 1.0, 500.0),
                Point::calculated(CHECK, "simulated: measured", 1.0, "ms", 900.0),
                measured("of a later version", "a", 1.0, 1.0),
            ],
            costs: None,
        }
    }

    #[test]
    fn what_is_there_is_drawn() {
        let plots = plots(&results());
        let names: Vec<&str> = plots.iter().map(|plot| plot.name.as_str()).collect();
        assert_eq!(names, [STAGES, CHECK, "fork_overhead"]);
        let Shape::Bars { names, series, .. } = &plots[0].shape else {
            panic!()
        };
        assert_eq!(names, &["1", "2"]);
        assert_eq!((series[0].values[0], series[0].values[1]), (0.04, 0.02));
        assert!(series[1].values[0].is_nan(), "nobody measured that");
        assert_eq!(plots[0].conditions, "in a lab");
        let Shape::Lines(lines) = &plots[1].shape else {
            panic!()
        };
        assert_eq!((lines[0].look, lines[1].look), (Look::Marks, Look::Plain));
        assert_eq!(lines[0].colour, lines[1].colour);
        assert_eq!((lines[0].spots[0].min, lines[0].spots[0].max), (0.5, 1.5));
        let Shape::Bars { names, series, .. } = &plots[2].shape else {
            panic!()
        };
        assert_eq!(names, &["blast\n+5.0 %"]);
        assert_eq!((series[0].values[0], series[1].values[0]), (1.05, 1.0));
        for plot in &plots {
            assert!(plot.svg().unwrap().starts_with("<svg"));
        }
    }

    #[test]
    fn results_of_before_there_were_points_are_read() {
        let old: Figures = serde_json::from_str(r#"{"figures": []}"#).unwrap();
        assert_eq!(plots(&old), []);
        let now = results();
        let text = serde_json::to_string(&now).unwrap();
        assert_eq!(serde_json::from_str::<Figures>(&text).unwrap(), now);
    }
}
