//! Figures: a value beside what it is compared with.

use crate::Point;
use crate::fork_model::Costs;
use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name.
    pub name: String,
    /// Median of the rounds.
    pub value: f64,
    /// Unit of `value`, `against_value`, `min` and `max`.
    pub unit: String,
    /// What it is compared with.
    pub against: String,
    /// Median of that.
    pub against_value: f64,
    /// `value / against_value`.
    pub ratio: f64,
    /// How many rounds.
    pub rounds: usize,
    /// Least value of a round.
    pub min: f64,
    /// Greatest value of a round.
    pub max: f64,
    /// What else must be known to understand it.
    pub conditions: String,
}

/// All figures of a run, and what is drawn of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// In the order in which they were measured.
    pub figures: Vec<Figure>,
    /// Points of plots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<Point>,
    /// What else must be known to understand those.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub conditions: String,
    /// What the parts of a fork cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub costs: Option<Costs>,
}

/// Values of one figure's rounds, ours and theirs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Samples {
    /// No rounds yet.
    pub const fn new() -> Self {
        Self {
            ours: Vec::new(),
            theirs: Vec::new(),
        }
    }

    /// Adds a round.
    pub fn add(&mut self, ours: f64, theirs: f64) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    /// The figure; `None` without rounds.
    pub fn figure(&self, name: &str, unit: &str, against: &str, conditions: &str) -> Option<Figure> {
        let (value, against_value) = (median(&self.ours)?, median(&self.theirs)?);
        Some(Figure {
            name: name.into(),
            value,
            unit: unit.into(),
            against: against.into(),
            against_value,
            ratio: value / against_value,
            rounds: self.ours.len(),
            min: self.ours.iter().copied().fold(f64::INFINITY, f64::min),
            max: self.ours.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            conditions: conditions.into(),
        })
    }
}

/// The middle one, or half-way between the two in the middle; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_beside_the_median() {
        let mut samples = Samples::default();
        assert_eq!(samples.figure("a", "ms", "b", ""), None);
        for (ours, theirs) in [(1.0, 10.0), (100.0, 10.0), (3.0, 30.0), (2.0, 20.0)] {
            samples.add(ours, theirs);
        }
        let figure = samples.figure("a", "ms", "b", "c").unwrap();
        assert_eq!((figure.value, figure.against_value), (2.5, 15.0));
        assert_eq!((figure.min, figure.max, figure.rounds), (1.0, 100.0, 4));
        assert_eq!(figure.ratio, 2.5 / 15.0);
    }
}
