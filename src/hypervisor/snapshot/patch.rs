//! The changes that make a snapshot another VM's: what has to be different in `config.json` and `state.json`
//! (cloud-hypervisor.md 9), and the checks that they describe the VM that is expected. Whatever is not known
//! stays as it is.

use serde_json::{Map, Value, json};

use super::{Adaptation, RestoreMode};
use crate::hypervisor::wire::{NET, RAM, ROOT_DISK, SEED_DISK};

/// What does not fit.
#[derive(Debug)]
pub struct Mismatch {
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

type Fit<T = ()> = Result<T, Mismatch>;

fn mismatch<T>(expected: impl Into<String>, found: impl Into<String>) -> Fit<T> {
    Err(Mismatch { expected: expected.into(), found: found.into() })
}

/// Changes `config.json`.
pub fn config(config: &mut Value, to: &Adaptation) -> Fit {
    exact(config)?;
    let config = object(config, "the configuration")?;
    memory(member(config, "memory")?, to)?;
    disks(member(config, "disks")?, to)?;
    net(member(config, "net")?, to)?;
    serial(member(config, "serial")?, to)
}

/// Changes `state.json`.
pub fn state(state: &mut Value, to: &Adaptation) -> Fit {
    let mut node = state;
    for name in ["snapshots", "memory-manager", "snapshot_data", "state"] {
        node = member(object(node, "the parents of memory-manager's state")?, name)?;
    }
    let Value::String(text) = node else {
        return mismatch("memory-manager's state as a JSON document in a string", kind(node));
    };
    let mut manager: Value = match serde_json::from_str(text) {
        Ok(manager) => manager,
        Err(error) => return mismatch("memory-manager's state as a JSON document in a string", error.to_string()),
    };
    exact(&manager)?;
    memory_manager(object(&mut manager, "memory-manager's state")?, to)?;
    *text = manager.to_string();
    Ok(())
}

fn memory(memory: &mut Value, to: &Adaptation) -> Fit {
    let memory = object(memory, "memory")?;
    let size = configured_bytes(memory)?;
    if size != to.memory_bytes {
        return mismatch(format!("{} bytes of RAM", to.memory_bytes), format!("{size}"));
    }
    // Beside zones this is an error, and what is copied into a process shall be its own.
    memory.insert("shared".into(), false.into());
    match to.mode {
        RestoreMode::Map => {
            memory.insert("size".into(), 0.into());
            let zone = json!({"id": RAM, "size": to.memory_bytes, "file": to.memory, "shared": false});
            memory.insert("zones".into(), json!([zone]));
        }
        RestoreMode::Copy => {
            memory.insert("size".into(), to.memory_bytes.into());
            memory.remove("zones");
        }
    }
    Ok(())
}

/// RAM of a memory section in bytes: its own and that of its zones.
fn configured_bytes(memory: &mut Map<String, Value>) -> Fit<u64> {
    let own = number(memory, "size")?;
    let mut sizes = vec![own];
    // Versions before v53 write null where there are none.
    if let Some(zones) = memory.get_mut("zones").filter(|zones| !zones.is_null()) {
        for zone in array(zones, "memory.zones")? {
            sizes.push(number(object(zone, "each memory zone")?, "size")?);
        }
    }
    sum(&sizes)
}

fn disks(disks: &mut Value, to: &Adaptation) -> Fit {
    let mut ids = Vec::new();
    for disk in array(disks, "disks")? {
        let disk = object(disk, "each disk")?;
        let id = text(disk, "id")?;
        match id.as_str() {
            ROOT_DISK => root(disk, to),
            SEED_DISK => drop(disk.insert("path".into(), json!(to.seed))),
            _ => {}
        }
        ids.push(id);
    }
    // Any other disk would be one that parent and child share.
    exactly(ids, &[ROOT_DISK, SEED_DISK], "disks")
}

fn root(disk: &mut Map<String, Value>, to: &Adaptation) {
    let (path, image) = &to.root;
    disk.insert("path".into(), json!(path));
    // Where it is missing although the version knows it, the format is guessed, and a raw disk loses writes to
    // its first sector (cloud-hypervisor.md 6). Versions that do not know it do not look at it.
    disk.insert("image_type".into(), json!(image));
    if to.backed || disk.contains_key("backing_files") {
        disk.insert("backing_files".into(), to.backed.into());
    }
}

fn net(net: &mut Value, to: &Adaptation) -> Fit {
    let mut ids = Vec::new();
    for device in array(net, "net")? {
        let device = object(device, "each network device")?;
        device.insert("tap".into(), json!(to.tap));
        // The parent's TAP's address, which the child would set on its own (cloud-hypervisor.md 7).
        device.remove("host_mac");
        ids.push(text(device, "id")?);
    }
    exactly(ids, &[NET], "network devices")
}

fn serial(serial: &mut Value, to: &Adaptation) -> Fit {
    let serial = object(serial, "serial")?;
    let mode = text(serial, "mode")?;
    if mode != "File" {
        return mismatch("serial.mode File", mode);
    }
    serial.insert("file".into(), json!(to.serial));
    Ok(())
}

/// A contiguous part of the guest's RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    gpa: u64,
    length: u64,
}

fn memory_manager(manager: &mut Map<String, Value>, to: &Adaptation) -> Fit {
    let mappings = array(member(manager, "guest_ram_mappings")?, "guest_ram_mappings")?;
    let ram = ranges_in_file(mappings, to)?;
    let written = array(member(object(member(manager, "memory_ranges")?, "memory_ranges")?, "data")?, "data")?;
    // A snapshot without ranges is one of a VM whose memory is a file, with the same bytes in the same order.
    if !written.is_empty() {
        let written: Vec<Range> = written.iter_mut().map(|range| range_of(range, "length")).collect::<Fit<_>>()?;
        if written != ram {
            return mismatch(format!("memory_ranges like the mappings, {ram:?}"), format!("{written:?}"));
        }
    }
    let data: Vec<Value> = match to.mode {
        RestoreMode::Map => Vec::new(),
        RestoreMode::Copy => ram.iter().map(|range| json!({"gpa": range.gpa, "length": range.length})).collect(),
    };
    if let Some(ranges) = manager.get_mut("memory_ranges") {
        ranges["data"] = data.into();
    }
    Ok(())
}

/// The mappings in the order of their addresses, which is the order of their bytes in the memory file. Where the
/// file is mapped, each mapping is told where its bytes begin.
fn ranges_in_file(mappings: &mut [Value], to: &Adaptation) -> Fit<Vec<Range>> {
    let mut found = Vec::new();
    for (index, mapping) in mappings.iter_mut().enumerate() {
        let range = range_of(mapping, "size")?;
        let mapping = object(mapping, "each mapping")?;
        let zone = text(mapping, "zone_id")?;
        if zone != RAM {
            return mismatch(format!("mappings of zone {RAM} only"), zone);
        }
        if mapping.get("virtio_mem").is_some_and(|hotplugged| *hotplugged != Value::Bool(false)) {
            return mismatch("no hot-plugged RAM", format!("some at {:#x}", range.gpa));
        }
        found.push((range, index));
    }
    found.sort_unstable();
    let size = sum(&found.iter().map(|(range, _)| range.length).collect::<Vec<_>>())?;
    if size != to.memory_bytes {
        return mismatch(format!("mappings of {} bytes of RAM", to.memory_bytes), format!("{size}"));
    }
    let (mut offset, mut end) = (0, 0);
    for (range, index) in &found {
        if range.gpa < end || range.length == 0 {
            return mismatch("mappings one after the other", format!("{:?}", ranges(&found)));
        }
        end = sum(&[range.gpa, range.length])?;
        if to.mode == RestoreMode::Map {
            mappings[*index]["file_offset"] = offset.into();
        }
        // Cannot overflow: it stays below the sum that was checked above.
        offset += range.length;
    }
    Ok(ranges(&found))
}

fn ranges(found: &[(Range, usize)]) -> Vec<Range> {
    found.iter().map(|(range, _)| *range).collect()
}

fn range_of(value: &mut Value, length: &str) -> Fit<Range> {
    let range = object(value, "each range of RAM")?;
    Ok(Range { gpa: number(range, "gpa")?, length: number(range, length)? })
}

fn exactly(mut ids: Vec<String>, expected: &[&str], what: &str) -> Fit {
    ids.sort_unstable();
    if ids == expected {
        return Ok(());
    }
    mismatch(format!("exactly the {what} {}", expected.join(", ")), format!("[{}]", ids.join(", ")))
}

/// Refuses numbers that are not kept to the last digit when they are read and written again.
fn exact(value: &Value) -> Fit {
    match value {
        Value::Number(number) if number.is_f64() => mismatch("whole numbers of at most 64 bits", number.to_string()),
        Value::Array(values) => values.iter().try_for_each(exact),
        Value::Object(members) => members.values().try_for_each(exact),
        _ => Ok(()),
    }
}

fn sum(numbers: &[u64]) -> Fit<u64> {
    let sum = numbers.iter().try_fold(0_u64, |sum, number| sum.checked_add(*number));
    sum.map_or_else(|| mismatch("sizes that fit into 64 bits", format!("{numbers:?}")), Ok)
}

fn member<'a>(object: &'a mut Map<String, Value>, name: &str) -> Fit<&'a mut Value> {
    object.get_mut(name).map_or_else(|| mismatch(format!("a member {name:?}"), "none"), Ok)
}

fn object<'a>(value: &'a mut Value, what: &str) -> Fit<&'a mut Map<String, Value>> {
    match value {
        Value::Object(members) => Ok(members),
        other => mismatch(format!("{what} as an object"), kind(other)),
    }
}

fn array<'a>(value: &'a mut Value, what: &str) -> Fit<&'a mut Vec<Value>> {
    match value {
        Value::Array(values) => Ok(values),
        other => mismatch(format!("{what} as an array"), kind(other)),
    }
}

fn number(object: &mut Map<String, Value>, name: &str) -> Fit<u64> {
    let value = member(object, name)?;
    value.as_u64().map_or_else(|| mismatch(format!("{name} as a number of bytes"), kind(value)), Ok)
}

fn text(object: &mut Map<String, Value>, name: &str) -> Fit<String> {
    let value = member(object, name)?;
    value.as_str().map_or_else(|| mismatch(format!("{name} as a string"), kind(value)), |text| Ok(text.to_owned()))
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => format!("the string {:?}", text.chars().take(80).collect::<String>()),
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
    }
}

#[cfg(test)]
mod tests;
