//! `vmm.ping`, `vm.info`, `vm.counters`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::{Vmm, tree::Tree};
use crate::error::{Chain, Outcome};

/// Latency before the first request: the largest number, and its thousandth as an average.
const NO_LATENCY: u64 = u64::MAX;
const NO_AVERAGE: u64 = 1_844_674_407_370_955;

#[derive(Serialize)]
struct Tail<'a> {
    memory_actual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_tree: Option<&'a Tree>,
}

impl Vmm {
    pub(super) fn ping(&self) -> Outcome<String> {
        // The members stand in this order in the program's answer.
        let version = self.context.version;
        Ok(format!(
            r#"{{"build_version":"{}","version":"{}","pid":{},"features":["io_uring","kvm"]}}"#,
            version.build(),
            version.package(),
            std::process::id()
        ))
    }

    pub(super) fn info(&self) -> Outcome<String> {
        let config = self.config.as_ref().ok_or_else(Chain::not_created)?;
        let failed = |error: serde_json::Error| Chain::new(error.to_string()).under("Failed serializing into JSON");
        let json = config.to_json(self.context.version.omits_nulls()).map_err(failed)?;
        let hotplugged = config.memory.hotplugged_size.unwrap_or(0);
        let balloon = self.vm.as_ref().and(config.balloon.as_ref()).map_or(0, |b| b.size);
        let tail = Tail {
            memory_actual_size: (config.ram_bytes() - hotplugged).saturating_sub(balloon),
            device_tree: self.vm.as_ref().map(|vm| &vm.devices.tree),
        };
        let tail = serde_json::to_string(&tail).map_err(failed)?;
        let state = self.state();
        Ok(format!(r#"{{"config":{json},"state":"{state:?}",{}"#, &tail[1..]))
    }

    pub(super) fn counters(&mut self) -> Outcome<String> {
        let vm = self.vm_mut()?;
        let mut counters = BTreeMap::new();
        for disk in &vm.devices.disks {
            let none = json!({
                "read_bytes": 0, "read_ops": 0, "write_bytes": 0, "write_ops": 0,
                "read_latency_min": NO_LATENCY, "read_latency_max": NO_LATENCY,
                "read_latency_avg": NO_AVERAGE, "write_latency_min": NO_LATENCY,
                "write_latency_max": NO_LATENCY, "write_latency_avg": NO_AVERAGE,
            });
            counters.insert(disk.id.clone(), none);
        }
        for net in &vm.devices.nets {
            let none = json!({"rx_bytes": 0, "rx_frames": 0, "tx_bytes": 0, "tx_frames": 0});
            counters.insert(net.id.clone(), none);
        }
        Ok(json!(counters).to_string())
    }
}
