//! The periodic look at the data volumes: admission asks [`Pressure`], never a file system.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use crate::pressure::Pressure;

/// Between two looks. A look is one system call per directory, on a blocking thread; one that hangs is waited for, and
/// what was seen last counts meanwhile.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// One volume as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The directory that was looked at.
    pub path: PathBuf,
    /// Bytes that could still be written.
    pub free: u64,
}

/// Whether there is room for new work, with hysteresis: a volume at the edge must not take and refuse by turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauge {
    low: u64,
}

impl Gauge {
    /// Below `low` free bytes new work is refused (`RUNNER_MIN_FREE_DISK_MB`); 0: never.
    pub fn new(low: u64) -> Self {
        Self { low }
    }

    /// Free bytes from which on work is taken again: a quarter more.
    pub fn high(self) -> u64 {
        self.low.saturating_add(self.low / 4)
    }

    /// Why no work is taken now; `refusing` tells whether none was taken before.
    pub fn judge(self, seen: &[Seen], refusing: bool) -> Option<String> {
        let enough = if refusing { self.high() } else { self.low };
        let full = seen.iter().filter(|volume| volume.free < enough).min_by_key(|volume| volume.free)?;
        Some(format!(
            "the volume of {} has {} MiB free, and {} MiB must be (RUNNER_MIN_FREE_DISK_MB; work that needs space is taken again from {} MiB on)",
            full.path.display(),
            full.free >> 20,
            self.low >> 20,
            self.high() >> 20
        ))
    }
}

/// Looks at the volumes of these directories for ever.
pub async fn watch(paths: Vec<PathBuf>, gauge: Gauge, pressure: Pressure) {
    if gauge.low == 0 {
        return;
    }
    let mut refusing = false;
    let mut blind = false;
    loop {
        let wanted = paths.clone();
        match tokio::task::spawn_blocking(move || look(wanted)).await {
            Ok(Ok(seen)) => {
                blind = false;
                let reason = gauge.judge(&seen, refusing);
                match (&reason, refusing) {
                    (Some(reason), false) => {
                        warn!(reason, "work that needs space is refused until there is some again")
                    }
                    (None, true) => info!("there is space again: work that needs it is taken"),
                    _ => {}
                }
                refusing = reason.is_some();
                pressure.set_data(reason);
            }
            // What was seen last still counts.
            Ok(Err(error)) if !blind => {
                blind = true;
                warn!(%error, "cannot read the free space of the data volumes");
            }
            Err(error) if !blind => {
                blind = true;
                warn!(%error, "cannot read the free space of the data volumes");
            }
            _ => {}
        }
        sleep(INTERVAL).await;
    }
}

fn look(paths: Vec<PathBuf>) -> std::io::Result<Vec<Seen>> {
    let look = |path: PathBuf| {
        let found = rustix::fs::statvfs(&path)?;
        Ok(Seen { path, free: found.f_bavail.saturating_mul(found.f_frsize) })
    };
    paths.into_iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn seen(free: &[u64]) -> Vec<Seen> {
        free.iter().map(|free| Seen { path: "/data".into(), free: *free }).collect()
    }

    #[test]
    fn it_refuses_below_the_limit_and_takes_work_again_somewhat_above() {
        let gauge = Gauge::new(1024 * MIB);
        assert_eq!(gauge.judge(&seen(&[1024 * MIB]), false), None);
        let reason = gauge.judge(&seen(&[4096 * MIB, 1023 * MIB]), false).unwrap();
        assert!(reason.contains("1023 MiB free") && reason.contains("from 1280 MiB"), "{reason}");
        assert!(gauge.judge(&seen(&[1279 * MIB]), true).is_some());
        assert_eq!(gauge.judge(&seen(&[1280 * MIB]), true), None);
    }

    #[test]
    fn zero_never_refuses() {
        assert_eq!(Gauge::new(0).judge(&seen(&[0]), false), None);
    }
}
