//! Load, CPU and memory of a Linux host, from `/proc`.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Error, HostMetrics, HostSnapshot};

/// Time between two samples of the CPU counters (PROTOCOL.md 3).
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// Most samples that the CPU usage is the mean of (PROTOCOL.md 3).
const SAMPLES: usize = 60;

/// The CPU counters since boot, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    total: u64,
}

impl Ticks {
    /// Percentage of time spent busy since `earlier`; none when no tick went by. The kernel may let single
    /// counters step back (idle and iowait), hence saturating.
    fn used_since(self, earlier: Self) -> Option<f64> {
        let total = self.total.saturating_sub(earlier.total);
        let busy = self.busy.saturating_sub(earlier.busy).min(total);
        (total > 0).then(|| busy as f64 / total as f64 * 100.0)
    }
}

/// The host behind a `/proc`.
#[derive(Debug)]
pub struct LinuxHost {
    proc: PathBuf,
    last: Ticks,
    used: VecDeque<f64>,
}

impl LinuxHost {
    /// This host. Takes the first sample, which later ones are compared with.
    pub fn new() -> Result<Self, Error> {
        Self::at("/proc")
    }

    /// A host whose `/proc` is elsewhere.
    pub fn at(proc: impl Into<PathBuf>) -> Result<Self, Error> {
        let proc = proc.into();
        let last = cpu(&proc)?.0;
        Ok(Self { proc, last, used: VecDeque::with_capacity(SAMPLES) })
    }

    /// Mean of the samples. Before the first interval is over there is none: then the time since the start of
    /// this program counts, and right after it the time since boot.
    fn cpu_used(&self, now: Ticks) -> f64 {
        if !self.used.is_empty() {
            return self.used.iter().sum::<f64>() / self.used.len() as f64;
        }
        let boot = Ticks { busy: 0, total: 0 };
        now.used_since(self.last).or_else(|| now.used_since(boot)).unwrap_or_default()
    }
}

impl HostMetrics for LinuxHost {
    fn sample(&mut self) -> Result<(), Error> {
        let (now, _) = cpu(&self.proc)?;
        if let Some(used) = now.used_since(self.last) {
            self.used.truncate(SAMPLES - 1);
            self.used.push_front(used);
            self.last = now;
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<HostSnapshot, Error> {
        let (now, cpus) = cpu(&self.proc)?;
        let (total, available) = memory(&self.proc)?;
        Ok(HostSnapshot {
            load_per_cpu: load(&self.proc)? / f64::from(cpus),
            cpu_used_percent: self.cpu_used(now),
            memory_used_percent: super::share(total.saturating_sub(available), total),
            memory_bytes: total,
            cpus,
        })
    }
}

/// How much memory the host could still give. Asked at each admission: takes microseconds, and never waits for a disk.
pub trait FreeMemory {
    /// Bytes available without swapping.
    fn available(&self) -> Result<u64, Error>;
}

/// MemAvailable of `/proc/meminfo`.
#[derive(Debug)]
pub struct ProcMemory(PathBuf);

impl Default for ProcMemory {
    fn default() -> Self {
        Self("/proc".into())
    }
}

impl FreeMemory for ProcMemory {
    fn available(&self) -> Result<u64, Error> {
        memory(&self.0).map(|(_, available)| available)
    }
}

fn read(proc: &Path, name: &str) -> Result<(PathBuf, String), Error> {
    let path = proc.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(source) => Err(Error::Read { path, source }),
    }
}

/// Counters of all CPUs together, and the number of CPUs that are online.
fn cpu(proc: &Path) -> Result<(Ticks, u32), Error> {
    let (path, text) = read(proc, "stat")?;
    let mut lines = text.lines().filter(|line| line.starts_with("cpu"));
    let ticks = lines.next().and_then(ticks);
    let cpus = lines.count();
    match (ticks, u32::try_from(cpus)) {
        (Some(ticks), Ok(cpus)) if cpus > 0 => Ok((ticks, cpus)),
        _ => Err(Error::Format { path, what: "the cpu lines" }),
    }
}

/// `cpu user nice system idle iowait irq softirq steal guest guest_nice`: time of guests is counted in user and
/// nice already; waiting for a disk is not being busy.
fn ticks(line: &str) -> Option<Ticks> {
    let fields: Vec<u64> = line.split_whitespace().skip(1).take(8).map_while(|field| field.parse().ok()).collect();
    let idle = fields.get(3)? + fields.get(4).copied().unwrap_or_default();
    let total: u64 = fields.iter().sum();
    Some(Ticks { busy: total - idle, total })
}

/// The load over 15 minutes.
fn load(proc: &Path) -> Result<f64, Error> {
    let (path, text) = read(proc, "loadavg")?;
    let value = text.split_whitespace().nth(2).and_then(|field| field.parse().ok());
    value.ok_or(Error::Format { path, what: "the 15-minute load" })
}

/// Total and available memory in bytes.
fn memory(proc: &Path) -> Result<(u64, u64), Error> {
    let (path, text) = read(proc, "meminfo")?;
    let bytes = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    match (bytes("MemTotal"), bytes("MemAvailable")) {
        (Some(total), Some(available)) => Ok((total, available)),
        _ => Err(Error::Format { path, what: "MemTotal and MemAvailable in kB" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Proc(tempfile::TempDir);

    impl Proc {
        fn new() -> Self {
            let proc = Self(tempfile::tempdir().unwrap());
            proc.stat([0; 8]);
            proc.write("loadavg", "0.10 0.20 3.00 1/345 6789\n");
            proc.write("meminfo", "MemTotal:       8388608 kB\nMemFree: 1 kB\nMemAvailable:   6291456 kB\n");
            proc
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).unwrap();
        }

        fn stat(&self, counters: [u64; 8]) {
            let counters = counters.map(|counter| counter.to_string()).join(" ");
            self.write("stat", &format!("cpu  {counters} 900 900\ncpu0 1\ncpu1 1\nintr 5\n"));
        }

        fn host(&self) -> LinuxHost {
            LinuxHost::at(self.0.path()).unwrap()
        }
    }

    #[test]
    fn load_and_memory_are_read() {
        let snapshot = Proc::new().host().snapshot().unwrap();
        assert_eq!((snapshot.cpus, snapshot.load_per_cpu), (2, 1.5));
        assert_eq!((snapshot.memory_bytes, snapshot.memory_used_percent), (8 << 30, 25.0));
        let proc = Proc::new();
        assert_eq!(ProcMemory(proc.0.path().to_owned()).available().unwrap(), 6 << 30);
    }

    #[test]
    fn cpu_usage_is_the_mean_of_the_samples() {
        let proc = Proc::new();
        let mut host = proc.host();
        proc.stat([10, 5, 10, 60, 10, 1, 2, 2]);
        host.sample().unwrap();
        assert_eq!(host.snapshot().unwrap().cpu_used_percent, 30.0);
        proc.stat([20, 10, 20, 120, 20, 2, 4, 104]);
        host.sample().unwrap();
        assert_eq!(host.snapshot().unwrap().cpu_used_percent, (30.0 + 65.0) / 2.0);
    }

    #[test]
    fn only_the_last_sixty_samples_count() {
        let proc = Proc::new();
        let mut host = proc.host();
        for busy in 1..=5 {
            proc.stat([busy * 100, 0, 0, 0, 0, 0, 0, 0]);
            host.sample().unwrap();
        }
        for idle in 1..=60 {
            proc.stat([500, 0, 0, idle * 100, 0, 0, 0, 0]);
            host.sample().unwrap();
        }
        assert_eq!(host.snapshot().unwrap().cpu_used_percent, 0.0);
        assert_eq!(host.used.len(), SAMPLES);
    }

    #[test]
    fn before_the_first_interval_the_time_since_start_or_boot_counts() {
        let proc = Proc::new();
        proc.stat([40, 0, 0, 60, 0, 0, 0, 0]);
        let mut host = proc.host();
        host.sample().unwrap();
        assert_eq!(host.snapshot().unwrap().cpu_used_percent, 40.0, "no tick went by: since boot");
        proc.stat([50, 0, 0, 60, 0, 0, 0, 0]);
        assert_eq!(host.snapshot().unwrap().cpu_used_percent, 100.0);
    }

    #[test]
    fn counters_that_step_back_do_no_harm() {
        let proc = Proc::new();
        proc.stat([50, 0, 0, 60, 20, 0, 0, 0]);
        let mut host = proc.host();
        proc.stat([60, 0, 0, 60, 5, 0, 0, 0]);
        host.sample().unwrap();
        let used = host.snapshot().unwrap().cpu_used_percent;
        assert!((0.0..=100.0).contains(&used), "{used}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let proc = Proc::new();
        proc.write("meminfo", "MemTotal: 5 kB\n");
        let text = proc.host().snapshot().unwrap_err().to_string();
        assert!(text.contains("MemAvailable") && text.contains("meminfo"), "{text}");
        proc.write("stat", "nothing\n");
        assert!(LinuxHost::at(proc.0.path()).is_err());
        assert!(LinuxHost::at(proc.0.path().join("none")).unwrap_err().to_string().contains("stat"));
    }

    #[test]
    fn the_real_host_can_be_read() {
        let mut host = LinuxHost::new().unwrap();
        host.sample().unwrap();
        let snapshot = host.snapshot().unwrap();
        assert!(snapshot.cpus > 0 && snapshot.memory_bytes > 0, "{snapshot:?}");
        assert!((0.0..=100.0).contains(&snapshot.memory_used_percent), "{snapshot:?}");
    }
}
