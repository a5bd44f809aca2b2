//! Order statistics of measured durations.

use std::time::Duration;

/// Measured durations.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        let mut sorted: Vec<Duration> = durations.into_iter().collect();
        sorted.sort_unstable();
        Self(sorted)
    }
}

impl Samples {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that at least `percent` of all do not exceed (nearest rank); zero of nothing.
    pub fn percentile(&self, percent: u32) -> Duration {
        let rank = (self.0.len() * percent as usize).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// The median.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }
}

/// The median of numbers; zero of nothing.
pub fn median(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    let rank = numbers.len().div_ceil(2);
    numbers.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// `part` by `whole`; infinite for a whole of nothing.
pub fn ratio(part: Duration, whole: Duration) -> f64 {
    part.as_secs_f64() / whole.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let of = |range: std::ops::RangeInclusive<u64>| range.rev().map(Duration::from_millis).collect::<Samples>();
        let hundred = of(1..=100);
        assert_eq!(hundred.median(), Duration::from_millis(50));
        assert_eq!(hundred.percentile(99), Duration::from_millis(99));
        assert_eq!(of(1..=3).median(), Duration::from_millis(2));
        assert_eq!(of(7..=7).percentile(99), Duration::from_millis(7));
        assert_eq!(Samples::default().median(), Duration::ZERO);
        assert_eq!((median(vec![3, 1, 2]), median(vec![])), (2, 0));
    }
}
