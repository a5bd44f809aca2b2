//! The VM configuration as it crosses the API (cloud-hypervisor.md 2.5; openapi `VmConfig`).
//!
//! Names, order, defaults and strictness follow the program: unknown members are dropped, enum values are
//! case-sensitive. Parts the simulator does not model (`fs`, `pmem`, `numa`, ...) are kept as given.

mod devices;
mod memory;
mod nulls;
mod requests;
mod validate;

pub use devices::{
    ConsoleConfig, ConsoleOutputMode, DebugConsoleConfig, DiskConfig, ImageType, LockGranularityChoice, MacAddr,
    NetConfig, PciDeviceCommonConfig, RngConfig, SerialConfig, VsockConfig,
};
pub use memory::{HotplugMethod, MemoryConfig, MemoryZoneConfig};
pub use nulls::without_nulls;
pub use requests::{
    MemoryRestoreMode, RestoreConfig, VmReceiveMigrationData, VmRemoveDevice, VmResize, VmResizeDisk, VmResizeZone,
    VmSendMigrationData, VmSnapshotConfig,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use devices::default_true;

/// Parts of a list that are carried but not modelled.
pub type Opaque = Option<Vec<Value>>;

/// vCPUs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CpusConfig {
    pub boot_vcpus: u32,
    pub max_vcpus: u32,
    #[serde(default)]
    pub topology: Option<CpuTopology>,
    #[serde(default)]
    pub kvm_hyperv: bool,
    #[serde(default = "default_phys_bits")]
    pub max_phys_bits: u8,
    #[serde(default)]
    pub affinity: Option<Vec<Value>>,
    #[serde(default)]
    pub features: CpuFeatures,
    #[serde(default = "default_true")]
    pub nested: bool,
    #[serde(default)]
    pub core_scheduling: CoreScheduling,
    #[serde(default)]
    pub profile: CpuProfile,
}

fn default_phys_bits() -> u8 {
    46
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot_vcpus: 1,
            max_vcpus: 1,
            topology: None,
            kvm_hyperv: false,
            max_phys_bits: default_phys_bits(),
            affinity: None,
            features: CpuFeatures::default(),
            nested: true,
            core_scheduling: CoreScheduling::default(),
            profile: CpuProfile::default(),
        }
    }
}

/// Arrangement of the vCPUs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CpuTopology {
    pub threads_per_core: u16,
    pub cores_per_die: u16,
    pub dies_per_package: u16,
    pub packages: u16,
}

/// Optional CPU features.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct CpuFeatures {
    #[serde(default)]
    pub amx: bool,
}

/// Which vCPUs may share a core.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub enum CoreScheduling {
    #[default]
    Vm,
    Vcpu,
    Off,
}

/// CPU model shown to the guest.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub enum CpuProfile {
    #[default]
    Host,
}

/// What boots: kernel or firmware.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PayloadConfig {
    #[serde(default)]
    pub firmware: Option<String>,
    #[serde(default)]
    pub kernel: Option<String>,
    #[serde(default)]
    pub cmdline: Option<String>,
    #[serde(default)]
    pub initramfs: Option<String>,
}

/// Memory balloon; its size is in bytes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BalloonConfig {
    #[serde(flatten)]
    pub pci_common: PciDeviceCommonConfig,
    pub size: u64,
    #[serde(default)]
    pub deflate_on_oom: bool,
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// A path the VMM may use; carried, not enforced.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LandlockConfig {
    pub path: String,
    pub access: String,
}

/// The whole configuration of a VM.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VmConfig {
    #[serde(default)]
    pub cpus: CpusConfig,
    #[serde(default)]
    pub memory: MemoryConfig,
    pub payload: Option<PayloadConfig>,
    pub rate_limit_groups: Opaque,
    pub disks: Option<Vec<DiskConfig>>,
    pub net: Option<Vec<NetConfig>>,
    #[serde(default)]
    pub rng: RngConfig,
    pub balloon: Option<BalloonConfig>,
    pub generic_vhost_user: Opaque,
    pub fs: Opaque,
    pub pmem: Opaque,
    #[serde(default)]
    pub serial: SerialConfig,
    #[serde(default)]
    pub console: ConsoleConfig,
    #[serde(default)]
    pub debug_console: DebugConsoleConfig,
    pub devices: Opaque,
    pub user_devices: Opaque,
    pub vdpa: Opaque,
    pub vsock: Option<VsockConfig>,
    #[serde(default)]
    pub pvpanic: bool,
    #[serde(default)]
    pub iommu: bool,
    pub numa: Opaque,
    #[serde(default)]
    pub watchdog: bool,
    #[serde(default)]
    pub rtc: Option<Value>,
    pub pci_segments: Opaque,
    pub platform: Option<Value>,
    pub tpm: Option<Value>,
    #[serde(default)]
    pub landlock_enable: bool,
    pub landlock_rules: Option<Vec<LandlockConfig>>,
}

impl VmConfig {
    /// Removes the disk, net, vsock or opaque device with this id; false when there is none.
    pub fn remove_device(&mut self, id: &str) -> bool {
        let matches = |common: &PciDeviceCommonConfig| common.id.as_deref() == Some(id);
        let found = drop_from(&mut self.disks, |d| matches(&d.pci_common))
            | drop_from(&mut self.net, |n| matches(&n.pci_common));
        let vsock = self.vsock.as_ref().is_some_and(|v| matches(&v.pci_common));
        if vsock {
            self.vsock = None;
        }
        let opaque = [
            &mut self.devices,
            &mut self.user_devices,
            &mut self.fs,
            &mut self.generic_vhost_user,
            &mut self.pmem,
            &mut self.vdpa,
        ]
        .into_iter()
        .any(|list| drop_from(list, |v| v.get("id").and_then(Value::as_str) == Some(id)));
        found | vsock | opaque
    }

    /// All RAM the guest has, in bytes: `size`, or the sum of the zones.
    pub fn ram_bytes(&self) -> u64 {
        self.memory.total_bytes()
    }

    /// The configuration as JSON text, the way `vm.info` and `config.json` carry it.
    pub fn to_json(&self, omit_nulls: bool) -> serde_json::Result<String> {
        let text = serde_json::to_string(self)?;
        Ok(if omit_nulls { without_nulls(&text) } else { text })
    }
}

fn drop_from<T>(list: &mut Option<Vec<T>>, mut matches: impl FnMut(&T) -> bool) -> bool {
    let Some(items) = list else { return false };
    let before = items.len();
    items.retain(|item| !matches(item));
    items.len() != before
}

#[cfg(test)]
mod tests {
    use super::{ImageType, VmConfig};

    #[test]
    fn an_empty_object_has_the_documented_defaults() {
        let config: VmConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(config.cpus.boot_vcpus, 1);
        assert_eq!(config.memory.size, 512 << 20);
        let json = config.to_json(true).unwrap();
        assert!(json.contains(r#""console":{"mode":"Tty""#), "{json}");
        assert!(json.contains(r#""serial":{"mode":"Null"}"#), "{json}");
        assert!(!json.contains("null,") && !json.contains(":null"), "{json}");
    }

    #[test]
    fn unknown_members_are_dropped_and_enums_are_case_sensitive() {
        let config: VmConfig =
            serde_json::from_str(r#"{"surprise":1,"disks":[{"path":"/d","image_type":"Raw","other":2}]}"#).unwrap();
        let disk = &config.disks.unwrap()[0];
        assert_eq!(disk.image_type, ImageType::Raw);
        let error = serde_json::from_str::<VmConfig>(r#"{"disks":[{"image_type":"raw"}]}"#).unwrap_err().to_string();
        assert!(error.starts_with("unknown variant `raw`, expected one of `FixedVhd`"));
    }

    #[test]
    fn devices_are_removed_by_id() {
        let mut config: VmConfig = serde_json::from_str(
            r#"{"disks":[{"id":"a"}],"net":[{"id":"n"}],"vsock":{"id":"v","cid":3,"socket":"/s"},"fs":[{"id":"f"}]}"#,
        )
        .unwrap();
        for id in ["a", "n", "v", "f"] {
            assert!(config.remove_device(id), "{id}");
            assert!(!config.remove_device(id), "{id}");
        }
    }
}
