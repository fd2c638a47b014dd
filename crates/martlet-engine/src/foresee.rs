//! Where a machine will be wanted next, told from where it was before.
//!
//! People have habits: from the office they go home, in the evening. So the hosts that followed on the present one count, more
//! those at this time of day and those of late; a host that nothing speaks for is foreseen by nothing.

use std::collections::BTreeMap;

const DAY_S: u64 = 24 * 60 * 60;
/// What happened within so much of this time of day counts in full, what is twice as far not at all.
const SAME_TIME_S: f64 = 3.0 * 3600.0;
/// Each acquisition counts so much less than the one after it.
const FADES: f64 = 0.9;
/// Of what followed at any time of day, this much counts.
const ANY_TIME: f64 = 0.2;

/// A host acquired the machine's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquired {
    /// The host.
    pub host: String,
    /// When, by its clock.
    pub unix_s: u64,
}

/// What is foreseen.
#[derive(Debug, Clone, PartialEq)]
pub struct Foreseen {
    /// The host.
    pub host: String,
    /// How likely it is, of 1.
    pub likely: f64,
}

/// The hosts that may go on next with a machine at this time, the likeliest first. `history` is in order.
pub fn foresee(history: &[Acquired], now_unix_s: u64) -> Vec<Foreseen> {
    let Some(last) = history.last() else {
        return Vec::new();
    };
    let mut weights: BTreeMap<&str, f64> = BTreeMap::new();
    let mut weight = 1.0;
    for pair in history.windows(2).rev() {
        if pair[0].host == last.host {
            let at_this_time = nearness(pair[1].unix_s, now_unix_s);
            *weights.entry(&pair[1].host).or_default() +=
                weight * (ANY_TIME + (1.0 - ANY_TIME) * at_this_time);
        }
        weight *= FADES;
    }
    let sum: f64 = weights.values().sum();
    let mut foreseen: Vec<_> = weights
        .into_iter()
        .map(|(host, weight)| Foreseen {
            host: host.to_owned(),
            likely: weight / sum,
        })
        .collect();
    foreseen.sort_by(|a, b| b.likely.total_cmp(&a.likely));
    foreseen
}

/// How often the likeliest host was the one, of the times when anything was foreseen.
pub fn looked_back(history: &[Acquired]) -> (u32, u32) {
    let (mut right, mut foreseen) = (0, 0);
    for at in 1..history.len() {
        if let Some(likeliest) = foresee(&history[..at], history[at].unix_s).first() {
            foreseen += 1;
            right += u32::from(likeliest.host == history[at].host);
        }
    }
    (right, foreseen)
}

/// 1 for the same time of day, 0 for another.
fn nearness(one_unix_s: u64, other_unix_s: u64) -> f64 {
    let apart = one_unix_s.abs_diff(other_unix_s) % DAY_S;
    let apart = apart.min(DAY_S - apart) as f64;
    (2.0 - apart / SAME_TIME_S).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    fn acquired(host: &str, day: u64, hour: u64) -> Acquired {
        Acquired {
            host: host.into(),
            unix_s: 1_800_000_000 / DAY_S * DAY_S + day * DAY_S + hour * HOUR,
        }
    }

    /// Home in the evening, the office in the morning, at noon the lab.
    fn week() -> Vec<Acquired> {
        (0..5)
            .flat_map(|day| {
                [("office", 8), ("lab", 12), ("office", 14), ("home", 19)]
                    .map(|(host, hour)| acquired(host, day, hour))
            })
            .collect()
    }

    #[test]
    fn habits_are_learnt_by_place_and_time() {
        let mut history = week();
        let likeliest = |history: &[Acquired], day, hour| {
            let foreseen = foresee(history, acquired("", day, hour).unix_s);
            assert!((foreseen.iter().map(|one| one.likely).sum::<f64>() - 1.0).abs() < 1e-9);
            foreseen[0].host.clone()
        };
        assert_eq!(likeliest(&history, 5, 8), "office");
        history.push(acquired("office", 5, 8));
        assert_eq!(likeliest(&history, 5, 12), "lab");
        assert_eq!(likeliest(&history, 5, 19), "home");
        let (right, foreseen) = looked_back(&week());
        assert!(
            foreseen >= 16 && right * 10 >= foreseen * 8,
            "{right} of {foreseen}"
        );
    }

    #[test]
    fn of_nothing_nothing_is_foreseen() {
        assert_eq!(foresee(&[], 0), []);
        assert_eq!(foresee(&[acquired("home", 0, 0)], 0), []);
        assert_eq!(
            looked_back(&[acquired("home", 0, 0), acquired("office", 0, 1)]),
            (0, 0)
        );
    }
}
