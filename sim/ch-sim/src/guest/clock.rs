//! Running time of the guest: stands still while it is paused, goes on after a restore.

use std::time::{Duration, Instant};

/// Milliseconds of one tick of the counter.
const TICK_MS: u64 = 10;

/// Computes the counter from the time; nothing ticks in the background.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    before: Duration,
    since: Option<Instant>,
}

impl Clock {
    /// A stopped clock that has run for this many milliseconds.
    pub fn stopped_at(ms: u64) -> Self {
        Self { before: Duration::from_millis(ms), since: None }
    }

    /// Lets the clock run.
    pub fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Stops the clock.
    pub fn stop(&mut self) {
        self.before = self.running();
        self.since = None;
    }

    /// Time the guest has run.
    pub fn running(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Milliseconds the guest has run.
    pub fn running_ms(&self) -> u64 {
        u64::try_from(self.running().as_millis()).unwrap_or(u64::MAX)
    }

    /// The counter: one tick for each 10 ms of running time.
    pub fn ticks(&self) -> u64 {
        self.running_ms() / TICK_MS
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn a_stopped_clock_keeps_its_time() {
        let mut clock = Clock::stopped_at(1234);
        assert_eq!(clock.ticks(), 123);
        clock.start();
        clock.stop();
        let stopped = clock.running();
        assert_eq!(clock.running(), stopped);
        assert!(clock.running_ms() >= 1234);
    }
}
