//! The sandbox's disks: a root disk that starts as a copy-on-write view of a base image, and a small
//! NoCloud seed. Two strategies stand behind one trait: a raw file cloned by reflink from a flattened
//! base (preferred: cloud-hypervisor.md 6), and a qcow2 overlay on the base.
//!
//! A base is only ever opened read-only, and is locked by us for as long as the runner uses it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

use crate::ids::{SandboxId, SnapshotRef};

mod base;
mod cloud_config;
pub mod error;
pub mod files;
pub mod flatten;
mod flight;
mod header;
pub mod lock;
pub mod overlay;
pub mod raw;
pub mod seed;
mod volume;

pub use error::Error;
pub use files::{FileDisks, Settings};

/// How root disks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Raw file, cloned by FICLONE from a flattened base; needs XFS, btrfs or the like.
    Reflink,
    /// qcow2 overlay with the base as backing file; works everywhere.
    Overlay,
}

/// What the operator asked for (`RUNNER_DISK_STRATEGY`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StrategySetting {
    /// Reflink where the file system of the sandboxes can, overlay elsewhere.
    #[default]
    Auto,
    /// Only reflink: an error where the file system cannot.
    Reflink,
    /// Only overlay.
    Overlay,
}

/// Image format as the hypervisor is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Plain bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// A root disk that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootDisk {
    /// The image file.
    pub path: PathBuf,
    /// Its format; given to the hypervisor explicitly.
    pub format: Format,
    /// True when the image has a backing file.
    pub backed: bool,
    /// Virtual size in bytes.
    pub size: u64,
    /// The base it was made from.
    pub base: PathBuf,
}

/// What the guest is told at its first boot through the NoCloud seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// `instance-id` and default host name.
    pub sandbox: SandboxId,
    /// Host name of the guest.
    pub hostname: String,
    /// Guest MAC, which the network configuration matches on.
    pub mac: [u8; 6],
    /// Environment for the toolbox daemon and login shells.
    pub env: BTreeMap<String, String>,
    /// The guest's user, `daytona` unless the job says otherwise.
    pub os_user: String,
}

/// What a new sandbox's disks shall be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The base: a snapshot's reference, or none for the configured base image.
    pub base: Option<SnapshotRef>,
    /// Virtual size in bytes; a base that is larger is refused.
    pub size: u64,
    /// The NoCloud seed.
    pub seed: Seed,
}

/// What exists after [`Disks::create`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxDisks {
    /// The root disk.
    pub root: RootDisk,
    /// The NoCloud seed image (raw vfat, read-only for the guest).
    pub seed: PathBuf,
}

/// Space on the data volume, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total: u64,
    /// Bytes that an unprivileged writer could still use.
    pub available: u64,
}

/// Disk effects. Blocking work goes to blocking threads inside the implementation.
pub trait Disks {
    /// The strategy in use, found out once at start.
    fn strategy(&self) -> Strategy;

    /// The sandbox's directory, `{CH_SANDBOXES_PATH}/{id}`.
    fn dir(&self, sandbox: &SandboxId) -> PathBuf;

    /// Makes the sandbox's directory (mode 0700), root disk and seed. What an earlier, interrupted
    /// attempt left there is removed first. On failure nothing is left.
    fn create<'a>(&'a self, plan: &'a Plan) -> LocalBoxFuture<'a, Result<SandboxDisks, Error>>;

    /// Removes the sandbox's directory with all that is in it; "not there" is success.
    fn remove<'a>(&'a self, sandbox: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Takes and keeps the lock on a base that a known sandbox uses, after a restart.
    fn hold_base<'a>(&'a self, base: &'a Path) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Space on the volume that holds the sandboxes.
    fn space(&self) -> LocalBoxFuture<'_, Result<Space, Error>>;

    /// Number of snapshots (bases) that are present on this host.
    fn snapshot_count(&self) -> LocalBoxFuture<'_, Result<u64, Error>>;
}

#[cfg(test)]
mod tests;
