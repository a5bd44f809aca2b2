//! Where memory lies in the guest: zones, and the hole for devices below 4 GiB (cloud-hypervisor.md 5.4).

use serde::{Deserialize, Serialize};

use crate::config::{MemoryConfig, MemoryZoneConfig};
use crate::error::{Chain, Outcome};

/// RAM below the hole for devices ends here.
const LOW_RAM_END: u64 = 3 << 30;
/// RAM goes on here.
const HIGH_RAM_START: u64 = 4 << 30;
/// Zone that stands for plain `memory.size`.
const DEFAULT_ZONE: &str = "mem0";

/// One contiguous mapping, as the memory manager's state names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    pub slot: u32,
    pub gpa: u64,
    pub size: u64,
    pub zone_id: String,
    pub virtio_mem: bool,
    pub file_offset: u64,
}

/// The zones of a configuration; plain memory is one zone of its own.
pub fn zones(config: &MemoryConfig) -> Outcome<Vec<MemoryZoneConfig>> {
    let given = config.zones.clone().filter(|zones| !zones.is_empty());
    match (config.size, given) {
        (0, None) => Err(Chain::new("No memory zones found")),
        (0, Some(zones)) => Ok(zones),
        (_, _) if config.zones.is_some() => Err(Chain::new("Memory configuration is not valid")),
        (size, _) => Ok(vec![MemoryZoneConfig {
            id: DEFAULT_ZONE.to_owned(),
            size,
            shared: config.shared,
            hugepages: config.hugepages,
            hugepage_size: config.hugepage_size,
            ..MemoryZoneConfig::default()
        }]),
    }
}

/// Places a zone from `gpa` on, around the hole below 4 GiB.
pub fn place(zone: &MemoryZoneConfig, gpa: &mut u64, mappings: &mut Vec<Mapping>) {
    let mut left = zone.size;
    let mut file_offset = 0;
    while left > 0 {
        if *gpa == LOW_RAM_END {
            *gpa = HIGH_RAM_START;
        }
        let room = if *gpa < LOW_RAM_END { LOW_RAM_END - *gpa } else { left };
        let size = left.min(room);
        mappings.push(Mapping {
            slot: u32::try_from(mappings.len()).unwrap_or(u32::MAX),
            gpa: *gpa,
            size,
            zone_id: zone.id.clone(),
            virtio_mem: false,
            file_offset,
        });
        *gpa += size;
        file_offset += size;
        left -= size;
    }
}
