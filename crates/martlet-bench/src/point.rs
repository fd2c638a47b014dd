//! Points of plots: what was measured or calculated at one place of one axis.

use crate::figure::median;
use serde::{Deserialize, Serialize};

/// A point of a plot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Which plot.
    pub plot: String,
    /// Which series of it.
    pub series: String,
    /// Where on its axis.
    pub x: f64,
    /// Median of the rounds.
    pub y: f64,
    /// Least value of a round.
    pub min: f64,
    /// Greatest value of a round.
    pub max: f64,
    /// `ms` or `bytes`: of `y`, `min` and `max`.
    pub unit: String,
    /// Not measured, but calculated from what was.
    #[serde(default)]
    pub is_calculated: bool,
}

impl Point {
    /// What was measured in these rounds; `None` without rounds.
    pub fn measured(plot: &str, series: &str, x: f64, unit: &str, rounds: &[f64]) -> Option<Self> {
        Some(Self {
            plot: plot.into(),
            series: series.into(),
            x,
            y: median(rounds)?,
            min: rounds.iter().copied().fold(f64::INFINITY, f64::min),
            max: rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            unit: unit.into(),
            is_calculated: false,
        })
    }

    /// What was calculated.
    pub fn calculated(plot: &str, series: &str, x: f64, unit: &str, y: f64) -> Self {
        Self {
            plot: plot.into(),
            series: series.into(),
            x,
            y,
            min: y,
            max: y,
            unit: unit.into(),
            is_calculated: true,
        }
    }
}

/// Rounds of points, in the order in which they were first measured.
#[derive(Debug, Clone, Default)]
pub struct Rounds(Vec<Round>);

#[derive(Debug, Clone)]
struct Round {
    plot: &'static str,
    series: &'static str,
    x: f64,
    unit: &'static str,
    values: Vec<f64>,
}

impl Rounds {
    /// Adds what a round has measured.
    pub fn add(&mut self, plot: &'static str, series: &'static str, x: f64, unit: &'static str, value: f64) {
        let known = self
            .0
            .iter_mut()
            .find(|round| (round.plot, round.series, round.x) == (plot, series, x));
        match known {
            Some(round) => round.values.push(value),
            None => self.0.push(Round {
                plot,
                series,
                x,
                unit,
                values: vec![value],
            }),
        }
    }

    /// The points.
    pub fn points(&self) -> Vec<Point> {
        let points = self.0.iter().filter_map(|round| {
            Point::measured(round.plot, round.series, round.x, round.unit, &round.values)
        });
        points.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_the_median_of_its_rounds() {
        let mut rounds = Rounds::default();
        for (x, value) in [(1.0, 5.0), (2.0, 50.0), (1.0, 7.0), (1.0, 100.0)] {
            rounds.add("p", "s", x, "ms", value);
        }
        let points = rounds.points();
        let of = |point: &Point| (point.x, point.y, point.min, point.max);
        assert_eq!(of(&points[0]), (1.0, 7.0, 5.0, 100.0));
        assert_eq!(of(&points[1]), (2.0, 50.0, 50.0, 50.0));
        assert_eq!(points.len(), 2);
    }
}
