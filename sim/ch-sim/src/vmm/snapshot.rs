//! `vm.snapshot`: config.json, state.json, memory-ranges, in this order (cloud-hypervisor.md 5.1).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{VmState, Vmm, vm::Vm};
use crate::error::{Chain, Outcome};
use crate::ram::{Mapping, Range};

/// Names inside a snapshot directory.
pub const CONFIG_FILE: &str = "config.json";
pub const STATE_FILE: &str = "state.json";
pub const MEMORY_FILE: &str = "memory-ranges";

/// Slots for memory that may be plugged in.
const HOTPLUG_SLOTS: usize = 8;

/// A node of state.json. Its own state is a JSON document inside a string.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SnapshotNode {
    pub snapshots: BTreeMap<String, SnapshotNode>,
    pub snapshot_data: Option<SnapshotData>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotData {
    pub state: String,
}

/// State of the memory manager.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemoryState {
    pub memory_ranges: RangeTable,
    pub guest_ram_mappings: Vec<Mapping>,
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RangeTable {
    pub data: Vec<Range>,
}

impl SnapshotNode {
    fn leaf(state: &Value) -> Self {
        Self { snapshots: BTreeMap::new(), snapshot_data: Some(SnapshotData { state: state.to_string() }) }
    }
}

/// Directory behind a `file://` URL. The error is the text below "Failed to send migratable component snapshot".
pub fn directory(url: &str) -> Outcome<PathBuf> {
    let problem = |text: String| Err(Chain::new(text).under("Failed to send migratable component snapshot"));
    let Some(path) = url.strip_prefix("file://") else {
        return problem(format!("Could not extract path from URL: {url}"));
    };
    let path = PathBuf::from(path);
    if !path.is_dir() {
        return problem(format!("Destination is not a directory: {path:?}"));
    }
    Ok(path)
}

impl Vmm {
    pub(super) fn snapshot(&mut self, url: &str) -> Outcome<()> {
        let vm = self.vm.as_mut().ok_or_else(Chain::not_running)?;
        if vm.is_loading() {
            return Err(Chain::new("VM on-demand memory restore is still in progress"));
        }
        // The descriptors of console and serial port are given up, so the next boot makes them anew.
        self.ports = None;
        self.context.events.emit("vm", "snapshotting");
        if vm.state() != VmState::Paused {
            return Err(Chain::new("Trying to snapshot while VM is running")
                .under("Failed to snapshot migratable component")
                .under("Cannot snapshot VM"));
        }
        let ranges = vm.ram.snapshot_ranges();
        let state = tree(vm, &ranges);
        self.context.events.emit("vm", "snapshotted");
        self.write_snapshot(url, &state, &ranges).map_err(|chain| chain.under("Cannot send VM snapshot"))
    }

    fn write_snapshot(&self, url: &str, state: &SnapshotNode, ranges: &[Range]) -> Outcome<()> {
        let dir = directory(url)?;
        let send = |chain: Chain| chain.under("Failed to send migratable component snapshot");
        let (Some(config), Some(vm)) = (&self.config, &self.vm) else {
            return Err(Chain::not_running());
        };
        let serial = |error: serde_json::Error| {
            send(Chain::new(error.to_string()).under("Error serializing VM config snapshot"))
        };
        let config = config.to_json(self.context.version.omits_nulls()).map_err(serial)?;
        write_new(&dir, CONFIG_FILE, &config, "config").map_err(send)?;
        let state = serde_json::to_string(state).map_err(serial)?;
        write_new(&dir, STATE_FILE, &state, "state").map_err(send)?;
        if ranges.is_empty() {
            return Ok(());
        }
        let path = dir.join(MEMORY_FILE);
        let text = format!("Error creating memory snapshot file {path:?}");
        let file = create_new(&path).map_err(|error| send(Chain::io(text, &error)))?;
        if let Some(fault) = self.fault("vm.snapshot.memory") {
            return Err(send(fault.under("Error writing dense memory snapshot region")));
        }
        let sparse = self.context.version.sparse_snapshots();
        vm.ram
            .save(&file, ranges, sparse)
            .map_err(|error| send(Chain::io("Error writing dense memory snapshot region", &error)))
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

fn write_new(dir: &Path, name: &str, text: &str, what: &str) -> Outcome<()> {
    let mut file =
        create_new(&dir.join(name)).map_err(|e| Chain::io(format!("Error creating VM {what} snapshot file"), &e))?;
    file.write_all(text.as_bytes()).map_err(|e| Chain::io(format!("Error writing VM {what} snapshot"), &e))
}

/// The tree of state.json.
fn tree(vm: &Vm, ranges: &[Range]) -> SnapshotNode {
    let ram = vm.ram.size();
    let no_slot = &json!({
        "base": 0, "length": 0, "active": false, "inserting": false, "removing": false,
    });
    let memory = json!({
        "memory_ranges": {"data": ranges},
        "guest_ram_mappings": vm.ram.mappings(),
        "start_of_device_area": vm.ram.end().max(4 << 30),
        "boot_ram": ram,
        "current_ram": ram,
        "arch_mem_regions": [],
        "hotplug_slots": vec![no_slot; HOTPLUG_SLOTS],
        "next_memory_slot": vm.ram.mappings().len(),
        "selected_slot": 0,
        "next_hotplug_slot": 0,
    });
    let mut devices = SnapshotNode::leaf(&json!({
        "device_tree": vm.devices.tree,
        "device_id_cnt": 0,
    }));
    for id in vm.devices.tree.ids() {
        devices.snapshots.insert(id.to_owned(), SnapshotNode::leaf(&json!({})));
    }
    for net in &vm.devices.nets {
        let state = json!({"queue_size": [256, 256, 256], "config": {"mac": net.mac.0}});
        devices.snapshots.insert(net.id.clone(), SnapshotNode::leaf(&state));
    }
    for disk in &vm.devices.disks {
        let state = json!({"disk_path": disk.path(), "disk_nsectors": disk.sectors()});
        devices.snapshots.insert(disk.id.clone(), SnapshotNode::leaf(&state));
    }
    let mut root = SnapshotNode::leaf(&json!({"clock": null, "common_cpuid": []}));
    root.snapshots.insert("cpu-manager".to_owned(), SnapshotNode::leaf(&json!({})));
    root.snapshots.insert("memory-manager".to_owned(), SnapshotNode::leaf(&memory));
    root.snapshots.insert("device-manager".to_owned(), devices);
    root
}
