//! Bodies of the calls other than `vm.create` and `vm.add-*`.

use serde::{Deserialize, Serialize};

use super::devices::forget_fds;

/// Body of `vm.resize`; sizes in bytes.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct VmResize {
    pub desired_vcpus: Option<u32>,
    pub desired_ram: Option<u64>,
    pub desired_balloon: Option<u64>,
}

/// Body of `vm.resize-disk`; size in bytes.
#[derive(Clone, Debug, Deserialize)]
pub struct VmResizeDisk {
    pub id: String,
    pub desired_size: u64,
}

/// Body of `vm.resize-zone`; size in bytes.
#[derive(Clone, Debug, Deserialize)]
pub struct VmResizeZone {
    pub id: String,
    pub desired_ram: u64,
}

/// Body of `vm.remove-device`.
#[derive(Clone, Debug, Deserialize)]
pub struct VmRemoveDevice {
    pub id: String,
}

/// Body of `vm.snapshot`.
#[derive(Clone, Debug, Deserialize)]
pub struct VmSnapshotConfig {
    pub destination_url: String,
}

/// How memory comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum MemoryRestoreMode {
    #[default]
    Copy,
    OnDemand,
}

/// Descriptors for one net device of a restored VM (cloud-hypervisor.md 7).
#[derive(Clone, Debug, Deserialize)]
pub struct RestoredNetConfig {
    pub id: String,
    #[serde(default)]
    pub num_fds: usize,
    #[serde(default, deserialize_with = "forget_fds")]
    pub fds: Option<Vec<i32>>,
}

/// Body of `vm.restore`.
#[derive(Clone, Debug, Deserialize)]
pub struct RestoreConfig {
    pub source_url: String,
    #[serde(default)]
    pub prefault: bool,
    #[serde(default)]
    pub memory_restore_mode: MemoryRestoreMode,
    #[serde(default)]
    pub net_fds: Option<Vec<RestoredNetConfig>>,
    #[serde(default)]
    pub resume: bool,
}

/// Body of `vm.receive-migration`.
#[derive(Clone, Debug, Deserialize)]
pub struct VmReceiveMigrationData {
    pub receiver_url: String,
}

/// Body of `vm.send-migration`.
#[derive(Clone, Debug, Deserialize)]
pub struct VmSendMigrationData {
    pub destination_url: String,
}
