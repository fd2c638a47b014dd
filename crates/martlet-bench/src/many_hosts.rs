//! What the simulation says of the lab, beside what was measured there, and of more hosts than there are.

use crate::Point;
use crate::fork_model::{Cluster, Costs, Processors, Way};
use crate::plots::{
    CHECK, FIRST_COMMAND, FORK, FORK_MULTICAST, IMAGE_MULTICAST, IMAGE_TCP, MODEL, SIMULATED, TASK, THERE,
};

/// A measured time and the simulated one.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Which series of [`CHECK`].
    pub series: String,
    /// Clones, over as many hosts as the lab has.
    pub clones: u32,
    /// Median.
    pub measured_ms: f64,
    /// By the simulation.
    pub simulated_ms: f64,
}

impl Checked {
    /// How much more than measured the simulation says, of what was measured.
    pub fn error(&self) -> f64 {
        self.simulated_ms / self.measured_ms - 1.0
    }
}

/// The simulation of all that was measured in the lab.
pub fn check(costs: &Costs, points: &[Point]) -> Vec<Checked> {
    let measured = points
        .iter()
        .filter(|point| point.plot == CHECK && !point.is_calculated);
    let checked = measured.filter_map(|point| {
        let clones = point.x as u32;
        let cluster = Cluster {
            hosts: clones.min(costs.lab_hosts),
            clones,
            processors: Processors::Shared(costs.lab_processors),
        };
        let simulated_ms = match point.series.as_str() {
            FIRST_COMMAND => costs.fork(cluster, Way::Unicast, false).done_ms,
            TASK => costs.fork(cluster, Way::Unicast, true).done_ms,
            IMAGE_TCP => costs.copy_ms(cluster.hosts, Way::Unicast),
            IMAGE_MULTICAST => costs.copy_ms(cluster.hosts, Way::Multicast),
            _ => return None,
        };
        Some(Checked {
            series: point.series.clone(),
            clones,
            measured_ms: point.y,
            simulated_ms,
        })
    });
    checked.collect()
}

/// As points beside the measured ones.
pub fn check_points(checked: &[Checked]) -> Vec<Point> {
    let point = |checked: &Checked| {
        let series = format!("{SIMULATED}{}", checked.series);
        Point::calculated(
            CHECK,
            &series,
            f64::from(checked.clones),
            "ms",
            checked.simulated_ms,
        )
    };
    checked.iter().map(point).collect()
}

/// Clusters of 2, 4, 8 … hosts, each with so many processors and a clone on each of them that does the task; or with nothing but
/// the image.
pub fn many_hosts(costs: &Costs, most_hosts: u32, processors: u32) -> Vec<Point> {
    let mut points = Vec::new();
    let sizes = (1..)
        .map(|power| 1 << power)
        .take_while(|hosts| *hosts <= most_hosts);
    for hosts in sizes {
        let cluster = Cluster {
            hosts,
            clones: hosts * processors,
            processors: Processors::OfEach(processors),
        };
        for (series, ms) in [
            (FORK, costs.fork(cluster, Way::Unicast, true).done_ms),
            (FORK_MULTICAST, costs.fork(cluster, Way::Multicast, true).done_ms),
            (IMAGE_MULTICAST, costs.copy_ms(hosts, Way::Multicast)),
            (IMAGE_TCP, costs.copy_ms(hosts, Way::Unicast)),
            (THERE, costs.zero_cost_ms(cluster)),
        ] {
            let series = format!("{SIMULATED}{series}");
            points.push(Point::calculated(MODEL, &series, f64::from(hosts), "ms", ms));
        }
    }
    points
}

/// What was measured of the same in the lab: as many clones as hosts.
pub fn measured_hosts(costs: &Costs, points: &[Point]) -> Vec<Point> {
    let is_alike = |point: &&Point| {
        point.plot == CHECK && !point.is_calculated && point.x >= 2.0 && point.x <= f64::from(costs.lab_hosts)
    };
    let of_model = |point: &Point| {
        let series = match point.series.as_str() {
            TASK => FORK,
            IMAGE_TCP => IMAGE_TCP,
            IMAGE_MULTICAST => IMAGE_MULTICAST,
            _ => return None,
        };
        Some(Point {
            plot: MODEL.into(),
            series: series.into(),
            ..point.clone()
        })
    };
    points.iter().filter(is_alike).filter_map(of_model).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fork_model::Work;

    fn costs() -> Costs {
        let work = |cpu_ms, frames| Work {
            cpu_ms,
            frames,
            frame_bytes: 16_000.0,
        };
        Costs {
            link_mbit: 1000.0,
            lab_processors: 2,
            lab_hosts: 4,
            begin_ms: 200.0,
            outline_bytes: 500_000.0,
            hand_over_cpu_ms: 3.0,
            serve_cpu_ms: 0.1,
            fetch_ms: 1.0,
            ahead_frames: 0,
            start: work(400.0, 100.0),
            task: work(1000.0, 500.0),
            image_bytes: 600e6,
        }
    }

    #[test]
    fn each_measured_point_has_its_simulation() {
        let measured = |series, x, ms| Point::measured(CHECK, series, x, "ms", &[ms]).unwrap();
        let points = [
            measured(IMAGE_TCP, 16.0, 21_000.0),
            measured(FIRST_COMMAND, 1.0, 700.0),
            measured("of a later version", 1.0, 700.0),
            Point::calculated(CHECK, IMAGE_TCP, 2.0, "ms", 1.0),
        ];
        let checked = check(&costs(), &points);
        assert_eq!(checked.len(), 2);
        // Four hosts, however many clones.
        assert_eq!(checked[0].simulated_ms, costs().copy_ms(4, Way::Unicast));
        assert!((checked[0].error() - (checked[0].simulated_ms / 21_000.0 - 1.0)).abs() < 1e-12);
        // A start of 400 ms and 100 fetches of 1 ms, after the beginning.
        assert!((checked[1].simulated_ms - 700.0).abs() < 1.0, "{:?}", checked[1]);
        assert_eq!(
            check_points(&checked)[1].series,
            format!("{SIMULATED}{FIRST_COMMAND}")
        );
    }

    #[test]
    fn many_hosts_are_powers_of_two_up_to_the_most() {
        let points = many_hosts(&costs(), 1024, 2);
        assert_eq!(points.len(), 10 * 5);
        let of = |series: &str, hosts: f64| {
            let series = format!("{SIMULATED}{series}");
            let found = points
                .iter()
                .find(|point| point.series == series && point.x == hosts);
            found.unwrap().y
        };
        for hosts in [2.0, 64.0, 1024.0] {
            assert!(of(THERE, hosts) < of(FORK_MULTICAST, hosts));
            assert!(of(FORK_MULTICAST, hosts) <= of(FORK, hosts) + 1e-6);
            assert!(of(FORK, hosts) < of(IMAGE_TCP, hosts));
        }
        assert_eq!(of(IMAGE_MULTICAST, 1024.0), of(IMAGE_MULTICAST, 2.0));
    }
}
