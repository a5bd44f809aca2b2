//! Time inside the simulator.
//!
//! Two kinds of time exist side by side. Dates shown to the runner (`createdAt`, `updatedAt`) are real wall clock dates.
//! Everything the API decides by age (staleness, unresponsive runners, sandbox timeouts; PROTOCOL.md 2.5 and 3) is
//! measured on a [`Clock`] that can run faster than real time and can be pushed forward, so that a ten minute rule is
//! testable in milliseconds.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Serialize, Serializer};
use time::OffsetDateTime;

/// A clock that starts at zero, runs `speed` times as fast as real time and can be advanced by hand.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    speed: f64,
    skipped: Mutex<Duration>,
}

impl Clock {
    /// Starts a clock; a speed that is not a positive finite number counts as 1.
    pub fn new(speed: f64) -> Self {
        let speed = if speed.is_finite() && speed > 0.0 { speed } else { 1.0 };
        Self { start: Instant::now(), speed, skipped: Mutex::new(Duration::ZERO) }
    }

    /// Simulated time since the start.
    pub fn now(&self) -> Duration {
        let skipped = *self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        self.start.elapsed().mul_f64(self.speed) + skipped
    }

    /// Pushes the clock forward.
    pub fn advance(&self, by: Duration) {
        *self.skipped.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

/// A wall clock instant, written as an ISO date in UTC with exactly three decimals (PROTOCOL.md 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

impl Timestamp {
    /// The present moment.
    pub fn now() -> Self {
        Self(SystemTime::now())
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let date = OffsetDateTime::from(self.0);
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            date.year(),
            u8::from(date.month()),
            date.day(),
            date.hour(),
            date.minute(),
            date.second(),
            date.millisecond()
        )
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_three_decimals() {
        let date = Timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(1_727_784_000_050));
        assert_eq!(date.to_string(), "2024-10-01T12:00:00.050Z");
        let whole = Timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(951_782_400));
        assert_eq!(whole.to_string(), "2000-02-29T00:00:00.000Z");
    }

    #[test]
    fn clock_advances_and_runs_fast() {
        let clock = Clock::new(1000.0);
        clock.advance(Duration::from_secs(600));
        assert!(clock.now() >= Duration::from_secs(600));
        assert_eq!(Clock::new(f64::NAN).speed, 1.0);
    }
}
