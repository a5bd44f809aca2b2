//! The runner's settings: validated once at start, then passed around as plain values.
//!
//! `raw` lays defaults, file and environment over each other, `check` turns the texts into the
//! types below and names every problem at once, `host` compares them with the machine. Names,
//! defaults and meanings are those of PROTOCOL.md 12; docs/configuration.md lists them for operators.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::actors::vm::IdentityPolicy;
use crate::disk::StrategySetting;
use crate::fork::plan::MemorySetting;
use crate::ids::LinkName;
use crate::ledger::RepairSetting;
use crate::net::addresses::Ipv4Net;
use crate::sandbox::StopMode;
use crate::sandbox::capacity::Limits;

mod absent;
mod check;
mod host;
pub mod offline;
mod parse;
mod problem;
mod raw;
mod reader;
mod secret;
mod ssh;

pub use host::Warnings;
pub use problem::{Problem, Problems};
pub use secret::Secret;
pub use ssh::Ssh;

/// Exit code for a configuration or a host that does not let the runner start (sysexits.h).
pub const EX_CONFIG: u8 = 78;

/// The Daytona API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    /// Base URL without a slash at its end, `http` or `https`; paths such as `/jobs/poll` are appended.
    pub base_url: String,
    /// Key of this runner: sent to the API, demanded from callers.
    pub token: Secret,
    /// How long the API may hold a poll open, whole seconds, 1 s to 60 s.
    pub poll_timeout: Duration,
    /// Most jobs of one poll, 1 to 100.
    pub poll_limit: u32,
    /// Time between two healthchecks, at least 10 s.
    pub healthcheck_interval: Duration,
    /// Longest a healthcheck request may take.
    pub healthcheck_timeout: Duration,
    /// Time between two looks for jobs that were handed out but never arrived (PROTOCOL.md 2.2).
    pub reconcile_interval: Duration,
    /// Time between two comparisons of states with the API (PROTOCOL.md 4).
    pub sync_interval: Duration,
}

/// Files for HTTPS; both were readable when the configuration was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// The runner's own HTTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Address to listen on.
    pub address: IpAddr,
    /// Port to listen on.
    pub port: u16,
    /// HTTPS instead of HTTP.
    pub tls: Option<Tls>,
}

/// Directories and files; all absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Directory of the VMMs' API sockets.
    pub sockets: PathBuf,
    /// Directory of the sandboxes' directories.
    pub sandboxes: PathBuf,
    /// Directory of the snapshots.
    pub snapshots: PathBuf,
    /// Directory of the store.
    pub state: PathBuf,
    /// Bytes that are kept aside beside it against a full volume.
    pub state_reserve: u64,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest initramfs; none when the kernel mounts its root by itself.
    pub initramfs: Option<PathBuf>,
    /// Image of sandboxes that name no snapshot. Where only the other of the guide's two layouts exists
    /// (`{name}/disk.qcow2`, `{name}.qcow2`), this is that one.
    pub base_image: PathBuf,
    /// Guest firmware; kept for a boot without kernel, which this version does not do.
    pub firmware: PathBuf,
}

/// The host's side of the sandboxes' network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Bridge that the sandboxes are linked to.
    pub bridge: LinkName,
    /// Addresses of the namespaces on the bridge.
    pub pool: Ipv4Net,
    /// Networks that no sandbox may reach.
    pub deny: Vec<Ipv4Net>,
}

/// What a sandbox gets that asks for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB (2^20 bytes).
    pub memory_mib: u64,
    /// Root disk in GiB (2^30 bytes).
    pub disk_gib: u64,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For reading.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// Logging; see [`crate::telemetry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level's name or directives, both known to be good.
    pub level: String,
    /// Form of the lines.
    pub format: LogFormat,
    /// File that lines are appended to, beside stderr.
    pub file: Option<PathBuf>,
    /// Name of the deployment.
    pub environment: Option<String>,
}

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The Daytona API.
    pub api: Api,
    /// The runner's own HTTP server.
    pub http: Http,
    /// What may pass to the guests, and how long it may wait.
    pub proxy: crate::http::proxy::Limits,
    /// The SSH gateway; none when it is off.
    pub ssh: Option<Ssh>,
    /// Name or address under which others reach this runner; none: to be found out from the default
    /// route (PROTOCOL.md 12).
    pub runner_domain: Option<String>,
    /// Directories and files.
    pub paths: Paths,
    /// The hypervisor's program: a path, or a name to look for in PATH.
    pub ch_binary: PathBuf,
    /// Kernel command line of the guests.
    pub kernel_cmdline: String,
    /// The host's side of the network.
    pub network: Network,
    /// Resources of sandboxes that ask for none.
    pub defaults: Defaults,
    /// How long the guest's toolbox daemon may take to answer; none: the guests have no such daemon.
    pub daemon_start_timeout: Option<Duration>,
    /// How long starting the VM may take.
    pub sandbox_start_timeout: Duration,
    /// How long a guest may take to power off before it is ended; zero: it is not asked.
    pub stop_timeout: Duration,
    /// How long running work may take when the runner ends.
    pub drain_timeout: Duration,
    /// How root disks are made.
    pub disk_strategy: StrategySetting,
    /// What guest memory is made of.
    pub memory: MemorySetting,
    /// How a sandbox is stopped when nobody says how.
    pub stop_mode: StopMode,
    /// Whether a copied guest must be given an identity of its own.
    pub fork_identity: IdentityPolicy,
    /// Sandboxes that may be created or started at the same time, at least 1.
    pub max_starting: usize,
    /// Whether sandboxes that end unasked are started again.
    pub restart: crate::sandbox::restart::Settings,
    /// Requests, and jobs, that may be under way at the same time, at least 1.
    pub max_queued: usize,
    /// How much may be promised to sandboxes.
    pub limits: Limits,
    /// Free bytes of a data volume below which work that needs space is refused; 0: never.
    pub min_free_disk: u64,
    /// Between two comparisons of the host with what should be on it.
    pub ledger_interval: Duration,
    /// Whether harmless leaks are removed without being asked.
    pub ledger_repair: RepairSetting,
    /// Logging.
    pub log: LogConfig,
    /// Accepted, but probably not what was meant; for one log line each.
    pub warnings: Vec<String>,
    /// Variables that were set and have no effect in this version, and why; for one log line each.
    pub ignored: Vec<(&'static str, &'static str)>,
}

impl Config {
    /// Reads and checks everything. The environment is given, not looked at; files are read: the one
    /// that RUNNER_CONFIG_FILE names, and with ENABLE_TLS certificate and key.
    ///
    /// # Errors
    /// All problems, each with the variable, its value (secrets masked) and what was expected.
    pub fn load(env: impl Iterator<Item = (String, String)>) -> Result<Self, Problems> {
        check::check(raw::Raw::read(env))
    }

    /// [`Config::load`] with the environment of this process. Bytes that are no UTF-8 do not panic,
    /// as `std::env::vars` would; they are refused where they stand in a variable of ours.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_process_env() -> Result<Self, Problems> {
        Self::load(process_env())
    }

    /// Compares the settings with this machine: makes missing directories, looks for kernel, images,
    /// hypervisor, devices and rights.
    ///
    /// # Errors
    /// All problems, each with its remedy.
    pub fn check_host(&self) -> Result<Warnings, Problems> {
        host::check(self)
    }
}

/// The environment of this process; what is no UTF-8 gets a replacement character, which no setting may have.
pub fn process_env() -> impl Iterator<Item = (String, String)> {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (lossy(name), lossy(value)))
}

#[cfg(test)]
mod tests;
