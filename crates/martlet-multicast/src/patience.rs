//! How long to wait for what was sent, before it is taken for lost: as long as such things took so far, and four times as long as that
//! varied (as TCP does; Jacobson 1988). In vain, twice as long the next time: a busy machine is no network that loses everything.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(400);
const LEAST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Mean and deviation; none before the first has come.
    took: Option<(f64, f64)>,
    wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            took: None,
            wait: FIRST,
        }
    }
}

impl Patience {
    /// So long.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// All that was waited for has come after this time.
    pub fn came_after(&mut self, took: Duration) {
        let took = took.min(MOST).as_secs_f64();
        let (mean, deviation) = match self.took {
            None => (took, took / 2.0),
            Some((mean, deviation)) => (
                mean + (took - mean) / 8.0,
                deviation + ((took - mean).abs() - deviation) / 4.0,
            ),
        };
        self.took = Some((mean, deviation));
        self.wait = Duration::from_secs_f64(mean + 4.0 * deviation).clamp(LEAST, MOST);
    }

    /// Some has not.
    pub fn waited_in_vain(&mut self) {
        self.wait = (self.wait * 2).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_long_as_things_take_and_longer_after_a_vain_wait() {
        let ms = Duration::from_millis;
        let mut patience = Patience::default();
        assert_eq!(patience.wait(), FIRST);
        (0..50).for_each(|_| patience.came_after(ms(3)));
        assert_eq!(patience.wait(), LEAST);
        patience.waited_in_vain();
        patience.waited_in_vain();
        assert_eq!(patience.wait(), LEAST * 4);
        (0..50).for_each(|at| patience.came_after(ms(if at % 2 == 0 { 50 } else { 250 })));
        assert!((ms(400)..ms(800)).contains(&patience.wait()), "{patience:?}");
        patience.came_after(Duration::MAX);
        (0..9).for_each(|_| patience.waited_in_vain());
        assert_eq!(patience.wait(), MOST);
    }
}
