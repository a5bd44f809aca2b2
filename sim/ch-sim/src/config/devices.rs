//! Device sections of the VM configuration: disks, nets, vsock, consoles.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

pub fn default_true() -> bool {
    true
}

/// What all PCI devices have in common.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PciDeviceCommonConfig {
    #[serde(default)]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "<&bool as std::ops::Not>::not")]
    pub iommu: bool,
    #[serde(default)]
    pub pci_segment: u16,
    #[serde(default)]
    pub pci_device_id: Option<u8>,
}

/// Format of a disk image; `Unknown` means "look at the file".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum ImageType {
    FixedVhd,
    Qcow2,
    Raw,
    Vhdx,
    #[default]
    Unknown,
}

impl fmt::Display for ImageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FixedVhd => "vhd",
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
            Self::Unknown => "unknown",
        })
    }
}

/// Extent of the advisory lock on a disk image (cloud-hypervisor.md 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum LockGranularityChoice {
    #[default]
    ByteRange,
    Full,
}

/// A disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DiskConfig {
    #[serde(flatten)]
    pub pci_common: PciDeviceCommonConfig,
    pub path: Option<String>,
    #[serde(default)]
    pub readonly: bool,
    #[serde(default)]
    pub direct: bool,
    #[serde(default = "default_disk_queues")]
    pub num_queues: usize,
    #[serde(default = "default_disk_queue_size")]
    pub queue_size: u16,
    #[serde(default)]
    pub vhost_user: bool,
    pub vhost_socket: Option<String>,
    #[serde(default)]
    pub rate_limit_group: Option<String>,
    #[serde(default)]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    #[serde(default)]
    pub disable_io_uring: bool,
    #[serde(default)]
    pub disable_aio: bool,
    #[serde(default)]
    pub serial: Option<String>,
    #[serde(default)]
    pub queue_affinity: Option<Vec<serde_json::Value>>,
    #[serde(default)]
    pub backing_files: bool,
    #[serde(default = "default_true")]
    pub sparse: bool,
    #[serde(default)]
    pub image_type: ImageType,
    #[serde(default)]
    pub lock_granularity: LockGranularityChoice,
}

fn default_disk_queues() -> usize {
    1
}

fn default_disk_queue_size() -> u16 {
    128
}

/// Limits of a device; carried, not enforced. The only place where unknown members are refused.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    pub bandwidth: Option<TokenBucketConfig>,
    pub ops: Option<TokenBucketConfig>,
}

/// One limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct TokenBucketConfig {
    pub size: u64,
    pub one_time_burst: Option<u64>,
    pub refill_time: u64,
}

/// An Ethernet address, written `xx:xx:xx:xx:xx:xx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A locally administered address, as CH makes one when the configuration has none.
    fn random() -> Self {
        let mut bytes = crate::random::bytes::<6>();
        bytes[0] = 0x2e;
        Self(bytes)
    }

    /// Parses exactly six pairs of hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let mut bytes = [0; 6];
        if parts.len() != bytes.len() {
            return None;
        }
        for (byte, part) in bytes.iter_mut().zip(parts) {
            let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits)?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            let wrong = format!("parsing of {text} into a MAC address failed");
            serde::de::Error::custom(wrong)
        })
    }
}

/// Role of a vhost-user net device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum VhostMode {
    #[default]
    Client,
    Server,
}

/// A net device.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NetConfig {
    #[serde(flatten)]
    pub pci_common: PciDeviceCommonConfig,
    #[serde(default)]
    pub tap: Option<String>,
    pub ip: Option<std::net::IpAddr>,
    pub mask: Option<std::net::IpAddr>,
    #[serde(default = "MacAddr::random")]
    pub mac: MacAddr,
    #[serde(default)]
    pub host_mac: Option<MacAddr>,
    #[serde(default)]
    pub mtu: Option<u16>,
    #[serde(default = "default_net_queues")]
    pub num_queues: usize,
    #[serde(default = "default_net_queue_size")]
    pub queue_size: u16,
    #[serde(default)]
    pub vhost_user: bool,
    pub vhost_socket: Option<String>,
    #[serde(default)]
    pub vhost_mode: VhostMode,
    #[serde(default, deserialize_with = "forget_fds")]
    pub fds: Option<Vec<i32>>,
    #[serde(default)]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    #[serde(default = "default_true")]
    pub offload_tso: bool,
    #[serde(default = "default_true")]
    pub offload_ufo: bool,
    #[serde(default = "default_true")]
    pub offload_csum: bool,
}

fn default_net_queues() -> usize {
    2
}

fn default_net_queue_size() -> u16 {
    256
}

/// Descriptor numbers in JSON mean nothing in this process: they become -1 (cloud-hypervisor.md 7).
pub fn forget_fds<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<i32>>, D::Error> {
    let given: Option<Vec<i32>> = Option::deserialize(d)?;
    Ok(given.map(|fds| vec![-1; fds.len()]))
}

/// Source of random numbers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RngConfig {
    #[serde(flatten)]
    pub pci_common: PciDeviceCommonConfig,
    pub src: String,
}

impl Default for RngConfig {
    fn default() -> Self {
        Self { pci_common: PciDeviceCommonConfig::default(), src: "/dev/urandom".to_owned() }
    }
}

/// Where a console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum ConsoleOutputMode {
    Off,
    Pty,
    Tty,
    File,
    Socket,
    Null,
}

/// What serial port and console have in common.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CommonConsoleConfig {
    #[serde(default)]
    pub file: Option<String>,
    pub mode: ConsoleOutputMode,
    #[serde(default)]
    pub socket: Option<String>,
}

impl CommonConsoleConfig {
    fn without_target(mode: ConsoleOutputMode) -> Self {
        Self { file: None, mode, socket: None }
    }
}

/// The serial port.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SerialConfig {
    #[serde(flatten)]
    pub common: CommonConsoleConfig,
}

impl Default for SerialConfig {
    fn default() -> Self {
        Self { common: CommonConsoleConfig::without_target(ConsoleOutputMode::Null) }
    }
}

/// The virtio console.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ConsoleConfig {
    #[serde(flatten)]
    pub common: CommonConsoleConfig,
    #[serde(default, flatten)]
    pub pci_common: PciDeviceCommonConfig,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            common: CommonConsoleConfig::without_target(ConsoleOutputMode::Tty),
            pci_common: PciDeviceCommonConfig::default(),
        }
    }
}

/// The debug console.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DebugConsoleConfig {
    #[serde(default)]
    pub file: Option<String>,
    pub mode: ConsoleOutputMode,
    pub iobase: Option<u16>,
}

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        Self { file: None, mode: ConsoleOutputMode::Off, iobase: Some(0xe9) }
    }
}

/// The vsock device.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VsockConfig {
    #[serde(flatten)]
    pub pci_common: PciDeviceCommonConfig,
    pub cid: u32,
    pub socket: String,
}
