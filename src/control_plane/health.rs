//! The body of `POST /runners/healthcheck` (PROTOCOL.md 3); [`crate::host::healthcheck`] fills it in.

use serde::{Deserialize, Serialize};

/// What this runner is and how it fares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Healthcheck {
    /// Version of this program; only stored.
    pub app_version: String,
    /// Host name or address of this runner; the API keeps the old one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Where the API reads build logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_url: Option<String>,
    /// Where the proxy sends traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
    /// One unhealthy entry makes the runner UNRESPONSIVE at once.
    pub service_health: Vec<ServiceHealth>,
    /// Without them the runner is never scheduled.
    pub metrics: Metrics,
}

/// One service this runner depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceHealth {
    /// Its name.
    pub service_name: String,
    /// Whether it works.
    pub healthy: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
}

impl ServiceHealth {
    /// A service that works.
    pub fn healthy(name: impl Into<String>) -> Self {
        Self { service_name: name.into(), healthy: true, error_reason: None }
    }

    /// A service that does not, and why.
    pub fn unhealthy(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { service_name: name.into(), healthy: false, error_reason: Some(reason.into()) }
    }
}

/// Inputs of the scheduler. A negative one gives score 0; `cpu`, `memory_gib` or `disk_gib` of 0 break the
/// score. `gpu` is left out: a host with none does not send it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// 15-minute load divided by the number of CPUs.
    pub current_cpu_load_average: f64,
    /// 0 to 100.
    pub current_cpu_usage_percentage: f64,
    /// 0 to 100.
    pub current_memory_usage_percentage: f64,
    /// 0 to 100, of the volume that holds the sandboxes.
    pub current_disk_usage_percentage: f64,
    /// vCPUs of running sandboxes.
    pub current_allocated_cpu: u64,
    /// GiB of running sandboxes.
    #[serde(rename = "currentAllocatedMemoryGiB")]
    pub current_allocated_memory_gib: u64,
    /// GiB of all sandboxes.
    #[serde(rename = "currentAllocatedDiskGiB")]
    pub current_allocated_disk_gib: u64,
    /// Snapshots present on this host.
    pub current_snapshot_count: u64,
    /// Running sandboxes.
    pub current_started_sandboxes: u64,
    /// CPUs of this host.
    pub cpu: u64,
    /// Memory of this host in GiB.
    #[serde(rename = "memoryGiB")]
    pub memory_gib: u64,
    /// Size of the volume that holds the sandboxes in GiB.
    #[serde(rename = "diskGiB")]
    pub disk_gib: u64,
}
