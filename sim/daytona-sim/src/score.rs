//! The availability score that decides whether a runner is given sandboxes (PROTOCOL.md 3).
//!
//! The score is the relative closeness of the runner's load to an ideal point against a critical point (both fixed by the
//! API's default configuration), times exponential penalties for each resource above its threshold. Percentages are
//! 0..100, allocations are ratios to the runner's capacity in percent.

use serde_json::{Map, Value};

/// One measured quantity on the common scale, with the API's default weight and target values.
struct Axis {
    value: f64,
    weight: f64,
    optimal: f64,
    critical: f64,
}

/// Capacity of a runner: vCPUs, GiB, GiB.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Capacity {
    /// vCPUs.
    pub cpu: f64,
    /// Memory in GiB.
    pub memory: f64,
    /// Disk in GiB.
    pub disk: f64,
}

fn metric(metrics: &Map<String, Value>, name: &str) -> f64 {
    metrics.get(name).and_then(Value::as_f64).unwrap_or(0.0)
}

/// Capacity told by the metrics; a zero or missing figure keeps the stored one, as the API does.
pub fn capacity(metrics: &Map<String, Value>, stored: Capacity) -> Capacity {
    let pick = |name, old| match metric(metrics, name) {
        0.0 => old,
        new => new,
    };
    Capacity {
        cpu: pick("cpu", stored.cpu),
        memory: pick("memoryGiB", stored.memory),
        disk: pick("diskGiB", stored.disk),
    }
}

const MEASURED: [&str; 8] = [
    "currentCpuLoadAverage",
    "currentCpuUsagePercentage",
    "currentMemoryUsagePercentage",
    "currentDiskUsagePercentage",
    "currentAllocatedCpu",
    "currentAllocatedMemoryGiB",
    "currentAllocatedDiskGiB",
    "currentStartedSandboxes",
];

/// Score 0..100. `None` when the figures give no number (a capacity of zero), which the API answers with an error.
pub fn availability(metrics: &Map<String, Value>, capacity: Capacity) -> Option<u32> {
    if MEASURED.iter().any(|name| metric(metrics, name) < 0.0) {
        return Some(0);
    }
    let score = closeness(&axes(metrics, capacity)) * penalty(metrics) * 100.0;
    score.is_finite().then(|| score.round() as u32)
}

fn axes(metrics: &Map<String, Value>, capacity: Capacity) -> [Axis; 7] {
    let usage = |name, weight| Axis { value: metric(metrics, name), weight, optimal: 0.0, critical: 100.0 };
    let allocation = |name, whole: f64| Axis {
        value: metric(metrics, name) / whole * 100.0,
        weight: 0.03,
        optimal: 100.0,
        critical: 500.0,
    };
    [
        usage("currentCpuUsagePercentage", 0.25),
        usage("currentMemoryUsagePercentage", 0.4),
        usage("currentDiskUsagePercentage", 0.4),
        allocation("currentAllocatedCpu", capacity.cpu),
        allocation("currentAllocatedMemoryGiB", capacity.memory),
        allocation("currentAllocatedDiskGiB", capacity.disk),
        usage("currentStartedSandboxes", 0.1),
    ]
}

fn closeness(axes: &[Axis]) -> f64 {
    let distance = |target: fn(&Axis) -> f64| {
        let sum: f64 = axes.iter().map(|axis| axis.weight * ((axis.value - target(axis)) / 100.0).powi(2)).sum();
        sum.sqrt()
    };
    let to_optimal = distance(|axis| axis.optimal);
    let to_critical = distance(|axis| axis.critical);
    to_critical / (to_optimal + to_critical)
}

fn penalty(metrics: &Map<String, Value>) -> f64 {
    [
        ("currentCpuUsagePercentage", 90.0, 0.15),
        ("currentCpuLoadAverage", 0.7, 0.1),
        ("currentMemoryUsagePercentage", 75.0, 0.15),
        ("currentDiskUsagePercentage", 75.0, 0.15),
    ]
    .into_iter()
    .map(|(name, threshold, exponent)| {
        let over: f64 = (metric(metrics, name) - threshold).max(0.0);
        (-exponent * over).exp()
    })
    .product()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CAPACITY: Capacity = Capacity { cpu: 48.0, memory: 377.0, disk: 438.0 };

    fn score(metrics: Value) -> Option<u32> {
        availability(metrics.as_object().unwrap(), CAPACITY)
    }

    #[test]
    fn idle_runner_is_good_and_full_disk_is_not() {
        let idle = score(json!({})).unwrap();
        assert!(idle > 70, "{idle}");
        let full = score(json!({"currentDiskUsagePercentage": 95.0})).unwrap();
        assert!(full < 10, "{full}");
    }

    #[test]
    fn negative_figure_gives_zero() {
        assert_eq!(score(json!({"currentAllocatedCpu": -1})), Some(0));
    }

    #[test]
    fn zero_capacity_gives_no_number() {
        let none = availability(&Map::new(), Capacity::default());
        assert_eq!(none, None);
    }

    #[test]
    fn load_penalty_is_mild() {
        let calm = score(json!({"currentCpuLoadAverage": 0.7})).unwrap();
        let busy = score(json!({"currentCpuLoadAverage": 2.0})).unwrap();
        assert!(busy < calm && busy > calm / 2);
    }
}
