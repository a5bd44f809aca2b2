//! Bodies of the hypervisor's API: the configuration of a sandbox's VM and the VM's state
//! (cloud-hypervisor.md 2.5).

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Version;

/// Id of the root disk; snapshots are matched by it.
pub const ROOT_DISK: &str = "root";
/// Id of the seed disk.
pub const SEED_DISK: &str = "seed";
/// Id of the network device.
pub const NET: &str = "net0";

/// Id of the guest's RAM as a memory zone. It is also the name that the hypervisor gives to RAM without zones, so
/// that saved mappings fit both (cloud-hypervisor.md 5.4).
pub const RAM: &str = "mem0";

/// Format of a disk image, spelled as the API wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageType {
    /// Plain bytes.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

/// What guest memory is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "layout", rename_all = "snake_case")]
pub enum MemoryLayout {
    /// A memfd: the VMM writes the touched pages itself when it is told to snapshot.
    Shared,
    /// A shared mapping of a named file: the file is the memory, and a snapshot has none.
    File {
        /// The file; as long as the VM runs nobody else may use it.
        path: PathBuf,
    },
    /// A private mapping of a frozen file: see [`crate::memory`].
    Private {
        /// The file.
        path: PathBuf,
    },
    /// Anonymous memory: after a restore by copy.
    Anonymous,
}

/// What a sandbox's VM is made of; [`VmConfig::for_sandbox`] turns it into a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// What it is made of.
    pub layout: MemoryLayout,
    /// Upper bound for adding virtual CPUs while the VM runs.
    pub max_vcpus: u32,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk, if the kernel needs one.
    pub initramfs: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Root disk and its format.
    pub root: (PathBuf, ImageType),
    /// Whether the root disk has a backing file.
    pub backed: bool,
    /// Read-only seed image (raw).
    pub seed: PathBuf,
    /// TAP inside the sandbox's namespace; must exist.
    pub tap: String,
    /// The guest's MAC, `02:..`.
    pub mac: String,
    /// File that gets the guest's serial output; truncated at boot and reboot.
    pub serial: PathBuf,
}

/// Body of `vm.create`. Also what a snapshot's `config.json` begins as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmConfig {
    /// What is booted.
    pub payload: Payload,
    /// Processors.
    pub cpus: Cpus,
    /// Memory.
    pub memory: Memory,
    /// Disks, in the order the guest sees them.
    pub disks: Vec<Disk>,
    /// Network devices.
    pub net: Vec<Net>,
    /// Source of randomness.
    pub rng: Rng,
    /// Serial line.
    pub serial: Console,
    /// virtio console.
    pub console: Console,
    /// A device by which the guest's kernel tells that it panics, as an event (cloud-hypervisor.md 4; there since v34).
    /// Snapshots that were made without it are restored without it.
    pub pvpanic: bool,
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Payload {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
}

/// Processors; both numbers are mandatory once one is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cpus {
    /// Processors at boot.
    pub boot_vcpus: u32,
    /// Upper bound for hot-plugging.
    pub max_vcpus: u32,
}

/// Memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Size in bytes; 0 where zones say it.
    pub size: u64,
    /// A memfd instead of private memory: snapshots hold the touched pages only. Not allowed beside zones.
    pub shared: bool,
    /// Memory that is made of files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<Zone>,
}

/// A piece of memory that is made of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Zone {
    /// Id by which saved mappings find it.
    pub id: String,
    /// Size in bytes.
    pub size: u64,
    /// The file; at least that long.
    pub file: PathBuf,
    /// Whether the guest writes to the file, or to memory of the process in front of it.
    pub shared: bool,
}

impl Memory {
    fn new(size: u64, layout: MemoryLayout) -> Self {
        let zone = |file, shared| Zone { id: RAM.to_owned(), size, file, shared };
        match layout {
            MemoryLayout::Shared => Self { size, shared: true, zones: Vec::new() },
            MemoryLayout::Anonymous => Self { size, shared: false, zones: Vec::new() },
            MemoryLayout::File { path } => Self { size: 0, shared: false, zones: vec![zone(path, true)] },
            MemoryLayout::Private { path } => Self { size: 0, shared: false, zones: vec![zone(path, false)] },
        }
    }
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Id by which snapshots and device calls find it.
    pub id: String,
    /// Image file.
    pub path: PathBuf,
    /// Format; left out for versions that do not know the field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_type: Option<ImageType>,
    /// Whether the guest may only read.
    #[serde(skip_serializing_if = "is_false")]
    pub readonly: bool,
    /// Allows a backing file; left out where it is not needed or not known.
    #[serde(skip_serializing_if = "is_false")]
    pub backing_files: bool,
}

/// One network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Net {
    /// Id by which snapshots find it.
    pub id: String,
    /// TAP in the VMM's namespace.
    pub tap: String,
    /// The guest's MAC.
    pub mac: String,
    /// Receive plus transmit queues; 2 is one pair and needs a TAP that is not multi-queue.
    pub num_queues: u32,
}

/// Source of randomness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rng {
    /// Host file.
    pub src: PathBuf,
}

/// A serial line or console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Console {
    /// What it is connected to.
    pub mode: ConsoleMode,
    /// The file of [`ConsoleMode::File`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// What a serial line or console is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ConsoleMode {
    /// Not there at all. The default of the virtio console writes to the VMM's stdout.
    Off,
    /// A file.
    File,
}

impl VmConfig {
    /// The configuration of a sandbox for a hypervisor of that version.
    pub fn for_sandbox(spec: VmSpec, version: &Version) -> Self {
        let typed = |image| version.image_type().then_some(image);
        let (path, image) = spec.root;
        let root = Disk {
            id: ROOT_DISK.to_owned(),
            path,
            image_type: typed(image),
            readonly: false,
            backing_files: spec.backed && version.backing_files(),
        };
        let seed = Disk {
            id: SEED_DISK.to_owned(),
            path: spec.seed,
            image_type: typed(ImageType::Raw),
            readonly: true,
            backing_files: false,
        };
        Self {
            payload: Payload { kernel: spec.kernel, initramfs: spec.initramfs, cmdline: spec.cmdline },
            cpus: Cpus { boot_vcpus: spec.vcpus, max_vcpus: spec.max_vcpus.max(spec.vcpus) },
            memory: Memory::new(spec.memory_bytes, spec.layout),
            disks: vec![root, seed],
            net: vec![Net { id: NET.to_owned(), tap: spec.tap, mac: spec.mac, num_queues: 2 }],
            rng: Rng { src: PathBuf::from("/dev/urandom") },
            serial: Console { mode: ConsoleMode::File, file: Some(spec.serial) },
            console: Console { mode: ConsoleMode::Off, file: None },
            pvpanic: true,
        }
    }
}

/// Body of `vm.snapshot`.
#[derive(Debug, Serialize)]
pub struct SnapshotTo {
    /// `file://` and the directory.
    pub destination_url: String,
}

/// Body of `vm.restore`. Versions before v52 know neither `resume` nor `memory_restore_mode`, so the VM is
/// resumed by a call of its own everywhere, and its memory is loaded at once where there is any to load.
#[derive(Debug, Serialize)]
pub struct RestoreFrom {
    /// `file://` and the directory.
    pub source_url: String,
}

/// Body of `vm.resize`; what is left out stays as it is.
#[derive(Debug, Serialize)]
pub struct Resize {
    /// Number of virtual CPUs.
    pub desired_vcpus: u32,
}

// serde hands the field over by reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

/// State of a VM as `vm.info` reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum VmState {
    /// Configured and not running: not booted yet, shut down, or half-booted.
    Created,
    /// Running.
    Running,
    /// Paused.
    Paused,
    /// Shut down. Documented by the hypervisor, but `Created` is what it says in that case
    /// (cloud-hypervisor.md 1).
    Shutdown,
    /// A state this code does not know, in the hypervisor's spelling.
    Other(String),
}

impl From<String> for VmState {
    fn from(text: String) -> Self {
        match text.as_str() {
            "Created" => Self::Created,
            "Running" => Self::Running,
            "Paused" => Self::Paused,
            "Shutdown" => Self::Shutdown,
            _ => Self::Other(text),
        }
    }
}

impl From<VmState> for String {
    fn from(state: VmState) -> Self {
        state.to_string()
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "Created",
            Self::Running => "Running",
            Self::Paused => "Paused",
            Self::Shutdown => "Shutdown",
            Self::Other(text) => text,
        })
    }
}

/// The part of `vm.info` that is used.
#[derive(Debug, Deserialize)]
pub struct VmInfo {
    /// The VM's state.
    pub state: VmState,
}

/// Answer of `vmm.ping`.
#[derive(Debug, Deserialize)]
pub struct Ping {
    /// Version of the build with its distance from a release, `v53.0`; newer than `version`.
    #[serde(default)]
    pub build_version: Option<String>,
    /// Version of the package, `53.0.0`.
    #[serde(default)]
    pub version: Option<String>,
}

#[cfg(test)]
mod tests;
