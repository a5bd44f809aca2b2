//! Pauses between tries: growing, bounded, with jitter, or what the other side asked for.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::control_plane::Retry;

/// The row of pauses of one thing that is tried again and again.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    pauses: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    /// Pauses that double from `first` to `longest`, each up to twice as long by jitter.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let builder =
            ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest).with_jitter().without_max_times();
        Self { builder, pauses: builder.build(), longest }
    }

    /// The next pause for this decision.
    pub fn pause(&mut self, retry: Retry) -> Duration {
        match retry {
            Retry::Now => Duration::ZERO,
            Retry::After(pause) => pause,
            Retry::Backoff | Retry::Never => self.pauses.next().unwrap_or(self.longest),
        }
    }

    /// It worked: the next pause is short again.
    pub fn reset(&mut self) {
        self.pauses = self.builder.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let first = backoff.pause(Retry::Backoff);
        assert!(first >= Duration::from_millis(100) && first <= Duration::from_millis(200), "{first:?}");
        for _ in 0..100 {
            assert!(backoff.pause(Retry::Backoff) <= Duration::from_secs(2));
        }
        assert!(backoff.pause(Retry::Backoff) >= Duration::from_secs(1));
        backoff.reset();
        assert!(backoff.pause(Retry::Backoff) <= Duration::from_millis(200));
        assert_eq!(backoff.pause(Retry::After(Duration::from_secs(7))), Duration::from_secs(7));
    }
}
