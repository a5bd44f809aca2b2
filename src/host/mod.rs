//! This host as the scheduler sees it (PROTOCOL.md 3): load, CPU and memory from `/proc`, the default of
//! `RUNNER_DOMAIN`, and the healthcheck made of these and of what the runner knows itself.

use std::path::PathBuf;

use crate::control_plane::{Healthcheck, Metrics, ServiceHealth};
use crate::disk::Space;
use crate::error::{Certainty, ErrorCode, Failure};

pub mod domain;
pub mod metrics;
pub mod volume;

pub use domain::default_domain;
pub use metrics::{FreeMemory, LinuxHost, ProcMemory, SAMPLE_INTERVAL};

/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;

/// Why the host's state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of `/proc` cannot be read.
    #[error("cannot read {}; is /proc mounted?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of `/proc` has not the known form.
    #[error("cannot find {what} in {}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The addresses of the host cannot be listed.
    #[error("cannot list the addresses of this host's interfaces")]
    Addresses {
        /// Why.
        source: nix::Error,
    },
}

impl Error {
    /// The kind of failure.
    pub fn code(&self) -> ErrorCode {
        ErrorCode::Internal
    }

    /// Reading has no effect.
    pub fn certainty(&self) -> Certainty {
        Certainty::NotDone
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::from_error(error.code(), error.certainty(), &error)
    }
}

/// Measures this host. Reads a few small files of `/proc`; takes microseconds and may run on any thread.
pub trait HostMetrics {
    /// Takes one sample of the CPU counters; call it each [`SAMPLE_INTERVAL`].
    fn sample(&mut self) -> Result<(), Error>;

    /// The state now, with the CPU usage of the samples so far.
    fn snapshot(&self) -> Result<HostSnapshot, Error>;
}

/// The host at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HostSnapshot {
    /// 15-minute load divided by the number of CPUs.
    pub load_per_cpu: f64,
    /// Mean over up to five minutes, 0 to 100.
    pub cpu_used_percent: f64,
    /// Memory that is not available to new processes, 0 to 100.
    pub memory_used_percent: f64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// CPUs that are online.
    pub cpus: u32,
}

/// What the runner's sandboxes take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// vCPUs of running sandboxes.
    pub running_vcpus: u64,
    /// Memory of running sandboxes in bytes.
    pub running_memory_bytes: u64,
    /// Virtual disk size of all sandboxes in bytes.
    pub disk_bytes: u64,
    /// Running sandboxes.
    pub running: u64,
    /// Snapshots (bases) present on this host.
    pub snapshots: u64,
}

/// How this runner is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Version of this program.
    pub version: String,
    /// `RUNNER_DOMAIN`, or its default; none leaves what the API has stored.
    pub domain: Option<String>,
    /// `API_PORT`.
    pub port: u16,
    /// `ENABLE_TLS`.
    pub tls: bool,
}

/// The healthcheck. Pure; `services` with an unhealthy entry makes the API take this runner out of use.
///
/// Sizes of the host are rounded down and allocations up, so that the scheduler never counts on what is not
/// there, and all are whole numbers, as the API stores them. None is negative; `cpu`, `memoryGiB` and `diskGiB`
/// are at least 1, as 0 breaks the score (PROTOCOL.md 3).
pub fn healthcheck(
    host: &HostSnapshot,
    space: &Space,
    totals: &Totals,
    identity: &Identity,
    services: Vec<ServiceHealth>,
) -> Healthcheck {
    let url = identity.url();
    Healthcheck {
        app_version: identity.version.clone(),
        domain: identity.domain.clone(),
        api_url: url.clone(),
        proxy_url: url,
        service_health: services,
        metrics: Metrics {
            current_cpu_load_average: finite(host.load_per_cpu),
            current_cpu_usage_percentage: percentage(host.cpu_used_percent),
            current_memory_usage_percentage: percentage(host.memory_used_percent),
            current_disk_usage_percentage: share(space.total.saturating_sub(space.available), space.total),
            current_allocated_cpu: totals.running_vcpus,
            current_allocated_memory_gib: totals.running_memory_bytes.div_ceil(GIB),
            current_allocated_disk_gib: totals.disk_bytes.div_ceil(GIB),
            current_snapshot_count: totals.snapshots,
            current_started_sandboxes: totals.running,
            cpu: u64::from(host.cpus).max(1),
            memory_gib: (host.memory_bytes / GIB).max(1),
            disk_gib: (space.total / GIB).max(1),
        },
    }
}

impl Identity {
    fn url(&self) -> Option<String> {
        let scheme = if self.tls { "https" } else { "http" };
        let domain = self.domain.as_deref()?;
        // A bare IPv6 address needs brackets in a URL.
        let host = if domain.contains(':') && !domain.starts_with('[') { format!("[{domain}]") } else { domain.into() };
        Some(format!("{scheme}://{host}:{}", self.port))
    }
}

/// `part` of `whole` in percent; 0 of nothing.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { percentage(part as f64 / whole as f64 * 100.0) }
}

fn percentage(value: f64) -> f64 {
    finite(value).min(100.0)
}

/// JSON has no NaN: it would become null and the API would answer 400 to the whole healthcheck.
fn finite(value: f64) -> f64 {
    if value.is_finite() { value.max(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn identity(domain: Option<&str>, tls: bool) -> Identity {
        Identity { version: "v1.2.3".into(), domain: domain.map(Into::into), port: 3006, tls }
    }

    #[test]
    fn the_body_has_the_units_of_the_api() {
        let host = HostSnapshot {
            load_per_cpu: 0.5,
            cpu_used_percent: 31.5,
            memory_used_percent: 44.0,
            memory_bytes: 377 * GIB + 5,
            cpus: 48,
        };
        let space = Space { total: 438 * GIB + 1, available: 219 * GIB };
        let totals = Totals {
            running_vcpus: 12,
            running_memory_bytes: 24 * GIB - 1,
            disk_bytes: 300 * GIB,
            running: 6,
            snapshots: 4,
        };
        let services = vec![ServiceHealth::healthy("cloud-hypervisor"), ServiceHealth::unhealthy("net", "no bridge")];
        let body = healthcheck(&host, &space, &totals, &identity(Some("10.1.2.3"), false), services);
        let mut body = serde_json::to_value(body).unwrap();
        let disk = body["metrics"]["currentDiskUsagePercentage"].take().as_f64().unwrap();
        assert!((disk - 50.0).abs() < 1e-6, "{disk}");
        let expected = json!({
            "appVersion": "v1.2.3", "domain": "10.1.2.3",
            "apiUrl": "http://10.1.2.3:3006", "proxyUrl": "http://10.1.2.3:3006",
            "serviceHealth": [
                {"serviceName": "cloud-hypervisor", "healthy": true},
                {"serviceName": "net", "healthy": false, "errorReason": "no bridge"},
            ],
            "metrics": {
                "currentCpuLoadAverage": 0.5, "currentCpuUsagePercentage": 31.5,
                "currentMemoryUsagePercentage": 44.0, "currentDiskUsagePercentage": null,
                "currentAllocatedCpu": 12, "currentAllocatedMemoryGiB": 24, "currentAllocatedDiskGiB": 300,
                "currentSnapshotCount": 4, "currentStartedSandboxes": 6,
                "cpu": 48, "memoryGiB": 377, "diskGiB": 438,
            },
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn nothing_is_negative_zero_or_not_a_number_where_that_hurts() {
        let host = HostSnapshot {
            load_per_cpu: f64::NAN,
            cpu_used_percent: -3.0,
            memory_used_percent: 170.0,
            memory_bytes: 5,
            cpus: 0,
        };
        let space = Space { total: 0, available: 7 };
        let body = healthcheck(&host, &space, &Totals::default(), &identity(None, true), Vec::new());
        let metrics = &body.metrics;
        assert_eq!((metrics.cpu, metrics.memory_gib, metrics.disk_gib), (1, 1, 1));
        assert_eq!((metrics.current_cpu_load_average, metrics.current_cpu_usage_percentage), (0.0, 0.0));
        assert_eq!((metrics.current_memory_usage_percentage, metrics.current_disk_usage_percentage), (100.0, 0.0));
        assert_eq!((body.domain, body.api_url), (None, None));
    }

    #[test]
    fn urls_follow_tls_and_address_kind() {
        assert_eq!(identity(Some("h.example"), true).url().unwrap(), "https://h.example:3006");
        assert_eq!(identity(Some("fd00::1"), false).url().unwrap(), "http://[fd00::1]:3006");
    }
}
