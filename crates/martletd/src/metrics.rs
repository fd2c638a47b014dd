//! Prometheus' text format, as little of it as is needed: counters and gauges.

use std::collections::BTreeMap;
use std::fmt::Write;

/// One sample. Samples of one name share help and kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Name in Prometheus' terms, without `martlet_`: `store_pack_bytes`, `faults_total`.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// How it behaves.
    pub kind: MetricKind,
    /// Labels, if any.
    pub labels: Vec<(&'static str, String)>,
    /// Its value.
    pub value: f64,
}

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl Metric {
    /// A metric that only goes up; its name ends in `_total`.
    pub fn counter(name: &'static str, help: &'static str, value: f64) -> Self {
        Self {
            name,
            help,
            kind: MetricKind::Counter,
            labels: Vec::new(),
            value,
        }
    }
    /// A metric that goes up and down.
    pub fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self {
            kind: MetricKind::Gauge,
            ..Self::counter(name, help, value)
        }
    }
    /// Adds a label.
    pub fn label(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.labels.push((name, value.into()));
        self
    }
}

/// The text Prometheus reads. Samples of one name are put together, as the format demands.
pub fn render(metrics: &[Metric]) -> String {
    let mut families: BTreeMap<&str, Vec<&Metric>> = BTreeMap::new();
    for metric in metrics {
        families.entry(metric.name).or_default().push(metric);
    }
    let mut text = String::new();
    for (name, samples) in families {
        let kind = match samples[0].kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "# HELP martlet_{name} {}\n# TYPE martlet_{name} {kind}",
            samples[0].help
        );
        for sample in samples {
            let labels: Vec<_> = sample
                .labels
                .iter()
                .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
                .collect();
            let labels = if labels.is_empty() {
                String::new()
            } else {
                format!("{{{}}}", labels.join(","))
            };
            let _ = writeln!(text, "martlet_{name}{labels} {}", sample.value);
        }
    }
    text
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_stay_together_and_labels_are_escaped() {
        let text = render(&[
            Metric::gauge("machine_cpu", "CPU.", 1.5).label("machine", "a\"\\\n"),
            Metric::counter("faults_total", "Faults.", 7.0),
            Metric::gauge("machine_cpu", "CPU.", 2.0).label("machine", "b"),
        ]);
        assert_eq!(
            text,
            "# HELP martlet_faults_total Faults.\n# TYPE martlet_faults_total counter\nmartlet_faults_total 7\n\
             # HELP martlet_machine_cpu CPU.\n# TYPE martlet_machine_cpu gauge\n\
             martlet_machine_cpu{machine=\"a\\\"\\\\\\n\"} 1.5\nmartlet_machine_cpu{machine=\"b\"} 2\n"
        );
    }
}
