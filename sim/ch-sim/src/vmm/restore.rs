//! `vm.restore`: a paused VM from a snapshot directory (cloud-hypervisor.md 5.2, 5.4).

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::calls::create_ports;
use super::snapshot::{CONFIG_FILE, MEMORY_FILE, MemoryState, STATE_FILE, SnapshotNode, directory};
use super::vm::Vm;
use super::{VmState, Vmm};
use crate::config::{MacAddr, MemoryRestoreMode, RestoreConfig, VmConfig};
use crate::error::{Chain, Outcome};
use crate::ram::Ram;

/// Environment variable: microseconds that OnDemand takes to load one MiB.
const LOAD_VARIABLE: &str = "CH_SIM_LOAD_US_PER_MIB";
/// About the rate measured for v53 (cloud-hypervisor.md 5.2: 4.7 s for 1.5 GiB).
const DEFAULT_LOAD_US: u64 = 3_000;

impl Vmm {
    pub(super) fn restore(&mut self, given: &RestoreConfig) -> Outcome<()> {
        if self.vm.is_some() || self.config.is_some() {
            return Err(Chain::already_created());
        }
        let mut restore = given.clone();
        if !self.context.version.has_restore_options() {
            restore.memory_restore_mode = MemoryRestoreMode::Copy;
            restore.resume = false;
        }
        let mut config = read_config(&restore.source_url).map_err(|chain| chain.under("Cannot restore VM"))?;
        check(&restore, &mut config).map_err(|chain| chain.under("Failed to validate config"))?;
        let restored = self.restore_config(config, &restore);
        let restored = restored.and_then(|()| match restore.resume {
            true => self.resume(),
            false => Ok(()),
        });
        restored.inspect_err(|chain| {
            self.context.log.error(&format!("VM Restore failed: {}", chain.line()));
            // Back to "no VM"; tearing down what exists cannot fail.
            let _ = self.delete();
        })
    }

    fn restore_config(&mut self, config: VmConfig, restore: &RestoreConfig) -> Outcome<()> {
        let url = &restore.source_url;
        let dir = directory(url).map_err(|chain| chain.under("Cannot restore VM"))?;
        let state: SnapshotNode =
            read_json(&dir, STATE_FILE, "state").map_err(|chain| chain.under("Cannot restore VM"))?;
        let config = self.config.insert(config);
        // Also a restore that fails later has emptied the serial file (cloud-hypervisor.md 8).
        let ports = create_ports(config)?;
        self.ports = Some(ports.clone());
        let memory = memory_state(&state).map_err(|c| c.under("Cannot restore VM"))?;
        let manager = |chain: Chain| chain.under("Memory manager error");
        let mut ram = Ram::from_mappings(&config.memory, memory.guest_ram_mappings).map_err(manager)?;
        let ranges = &memory.memory_ranges.data;
        let on_demand = restore.memory_restore_mode == MemoryRestoreMode::OnDemand;
        if !ranges.is_empty() {
            let opened = File::open(dir.join(MEMORY_FILE));
            let file = opened.map_err(|error| manager(Chain::io("Error opening snapshot file", &error)))?;
            ram.load(&file, ranges).map_err(|error| manager(Chain::io("Error reading from snapshot file", &error)))?;
            if on_demand || restore.prefault {
                ram.make_dense();
            }
        }
        let parts = self.parts(ports);
        let config = self.config.as_mut().ok_or_else(Chain::not_created)?;
        let loading = (on_demand && !ranges.is_empty() && self.context.version.loads_in_background())
            .then(|| Instant::now() + load_time(ram.size()));
        let mut vm = Vm::with_ram(config, parts, ram, VmState::Paused)?;
        for net in &mut vm.devices.nets {
            // The guest knows its address from its memory, whatever config.json says now.
            net.mac = saved_mac(&state, &net.id).unwrap_or(net.mac);
        }
        vm.loading_until = loading;
        vm.restore()?;
        self.vm = Some(vm);
        Ok(())
    }
}

/// Time in which the background loader gets through the memory.
fn load_time(bytes: u64) -> Duration {
    let given = std::env::var(LOAD_VARIABLE).ok().and_then(|us| us.parse().ok());
    Duration::from_micros(given.unwrap_or(DEFAULT_LOAD_US) * (bytes >> 20))
}

/// Checks the request against the configuration and hands the descriptors out.
fn check(restore: &RestoreConfig, config: &mut VmConfig) -> Outcome<()> {
    if restore.prefault && restore.memory_restore_mode == MemoryRestoreMode::OnDemand {
        return Err(Chain::new("'prefault' cannot be combined with 'memory_restore_mode=ondemand'"));
    }
    for net in config.net.iter_mut().flatten() {
        let (Some(id), Some(fds)) = (&net.pci_common.id, &net.fds) else {
            continue;
        };
        let given = restore.net_fds.iter().flatten().find(|given| given.id == *id);
        let Some(given) = given else {
            return Err(Chain::new(format!("Net id {id} is associated with FDs and is required")));
        };
        if given.num_fds != fds.len() {
            return Err(Chain::new(format!(
                "Number of Net FDs passed for '{id}' during Restore: {}. Expected: {}",
                given.num_fds,
                fds.len()
            )));
        }
        net.fds.clone_from(&given.fds);
    }
    Ok(())
}

fn read_config(url: &str) -> Outcome<VmConfig> {
    let dir = directory(url)?;
    read_json(&dir, CONFIG_FILE, "config")
}

fn read_json<T: DeserializeOwned>(dir: &Path, name: &str, what: &str) -> Outcome<T> {
    let path = dir.join(name);
    let receive = |chain: Chain| chain.under("Failed to receive migratable component snapshot");
    let bytes = std::fs::read(&path).map_err(|error| {
        let text = format!("Error opening VM {what} snapshot file {path:?}");
        receive(Chain::io(text, &error))
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let text = format!("Error deserialising VM {what} snapshot");
        receive(Chain::new(error.to_string()).under(text))
    })
}

fn memory_state(state: &SnapshotNode) -> Outcome<MemoryState> {
    let problem = |text: String| Chain::new(text).under("Failed to restore migratable component");
    let node = state.snapshots.get("memory-manager").and_then(|node| node.snapshot_data.as_ref());
    let node = node.ok_or_else(|| problem("Missing memory manager snapshot".to_owned()))?;
    serde_json::from_str(&node.state).map_err(|error| problem(format!("Error deserialising: {error}")))
}

/// MAC address of a net device when the snapshot was taken.
fn saved_mac(state: &SnapshotNode, id: &str) -> Option<MacAddr> {
    let node = state.snapshots.get("device-manager")?.snapshots.get(id)?;
    let state: serde_json::Value = serde_json::from_str(&node.snapshot_data.as_ref()?.state).ok()?;
    let bytes: [u8; 6] = serde_json::from_value(state["config"]["mac"].clone()).ok()?;
    Some(MacAddr(bytes))
}
