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
mod captures;
mod cloud_config;
mod collect;
pub(crate) mod copy;
mod create;
pub mod error;
pub(crate) mod export;
pub mod files;
pub mod flatten;
mod flight;
mod graft;
mod header;
mod layers;
pub mod lock;
mod merge;
pub(crate) mod open;
pub mod overlay;
pub mod raw;
pub mod seed;
mod service;
pub mod survey;
pub(crate) mod volume;

pub use error::Error;
pub use files::{FileDisks, Settings};
pub use layers::MOST_LAYERS;
pub use survey::{DiskLeak, DiskSurvey};

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
    /// Frozen images between this one and the base, the nearest first; they may be shared with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<PathBuf>,
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

/// A sandbox whose disk continues a frozen one: a fork, or a creation from a snapshot's disk.
#[derive(Debug, Clone)]
pub struct Graft {
    /// The new sandbox.
    pub sandbox: SandboxId,
    /// The disk it continues; nobody writes to it any more.
    pub disk: RootDisk,
    /// Virtual size in bytes of the new disk; not smaller than that of the frozen one.
    pub size: u64,
    /// The NoCloud seed.
    pub seed: Seed,
}

/// A version of a disk's content, as far as the file system tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Inode of the image.
    pub inode: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Nanoseconds since 1970 of the last write.
    pub modified: i128,
}

impl Stamp {
    /// The stamp of no disk at all: memory that is bound to it is never used.
    pub const NEVER: Self = Self { inode: 0, length: 0, modified: 0 };

    /// Whether the disk that was `found` has the content of this one. It may have grown since: [`Disks::grow`] keeps the
    /// time of the last write.
    pub fn still_holds(&self, found: &Self) -> bool {
        (self.inode, self.modified) == (found.inode, found.modified) && found.length >= self.length
    }
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

    /// Takes and keeps the locks on the base and the layers that a known sandbox uses, after a restart.
    fn hold<'a>(&'a self, sandbox: &'a SandboxId, root: &'a RootDisk) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Makes a new directory (mode 0700) for one capture below `{CH_SANDBOXES_PATH}/.captures`; a crash leaves it to
    /// [`Disks::sweep`].
    fn begin_capture(&self) -> LocalBoxFuture<'_, Result<PathBuf, Error>>;

    /// Makes an empty `{sandbox's directory}/checkpoint`; what was there is removed.
    fn begin_checkpoint<'a>(&'a self, sandbox: &'a SandboxId) -> LocalBoxFuture<'a, Result<PathBuf, Error>>;

    /// Removes the sandbox's checkpoint; "not there" is success.
    fn end_checkpoint<'a>(&'a self, sandbox: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Removes a capture's directory; "not there" is success.
    fn end_capture<'a>(&'a self, dir: &'a Path) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Writes what the host has cached of the disk to it, so that a freeze right after is short. The VM may run.
    fn flush<'a>(&'a self, root: &'a RootDisk) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Clones a raw disk into the capture's directory. Its VM is paused or ended. A qcow2 disk is refused: a paused
    /// VMM has not written all of it (cloud-hypervisor.md 6).
    fn freeze<'a>(&'a self, root: &'a RootDisk, capture: &'a Path) -> LocalBoxFuture<'a, Result<RootDisk, Error>>;

    /// Freezes a qcow2 disk whose VMM has ended: it becomes a layer, and the sandbox goes on with an empty image on
    /// top of it, under the path of before. Returns the sandbox's new disk and the frozen one, which stays as long as
    /// a sandbox stands on it or [`Disks::release`] was not called. A crash at any instant leaves a complete disk
    /// under the sandbox's path.
    fn split<'a>(
        &'a self,
        sandbox: &'a SandboxId,
        root: &'a RootDisk,
    ) -> LocalBoxFuture<'a, Result<(RootDisk, RootDisk), Error>>;

    /// The sandbox's disk and its stamp after a split whose result was not stored: `root` and `stamp` are from before.
    /// `None` where the disk was not split since, or something was written to it.
    fn after_split<'a>(
        &'a self,
        sandbox: &'a SandboxId,
        root: &'a RootDisk,
        stamp: Stamp,
    ) -> LocalBoxFuture<'a, Result<Option<(RootDisk, Stamp)>, Error>>;

    /// Ends the capture's own hold on a frozen disk of [`Disks::split`].
    fn release<'a>(&'a self, frozen: &'a RootDisk) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Makes a sandbox's directory, root disk and seed from a frozen disk; as [`Disks::create`] otherwise, but keeps
    /// the files that a VMM which waits for its disk has made there.
    fn graft<'a>(&'a self, graft: &'a Graft) -> LocalBoxFuture<'a, Result<SandboxDisks, Error>>;

    /// Makes the empty directory (mode 0700) of a sandbox whose disk comes later; what an earlier attempt left there
    /// is removed first.
    fn room<'a>(&'a self, sandbox: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Grows the disk of a sandbox without VMM to `size` bytes; returns it as it is then. The time of its last write
    /// stays.
    fn grow<'a>(&'a self, root: &'a RootDisk, size: u64) -> LocalBoxFuture<'a, Result<RootDisk, Error>>;

    /// What a memory image may only be used with: changes with every write to the disk.
    fn stamp<'a>(&'a self, root: &'a RootDisk) -> LocalBoxFuture<'a, Result<Stamp, Error>>;

    /// Merges the layers of a disk into one, in the background and beside a running VM, when there are more than a few;
    /// `None` when there is nothing to gain. The disk itself is not changed.
    fn merge<'a>(&'a self, root: &'a RootDisk) -> LocalBoxFuture<'a, Result<Option<PathBuf>, Error>>;

    /// Puts a disk without VMM on the merged layer that [`Disks::merge`] made of its layers.
    fn rebase<'a>(
        &'a self,
        sandbox: &'a SandboxId,
        root: &'a RootDisk,
        merged: &'a Path,
    ) -> LocalBoxFuture<'a, Result<RootDisk, Error>>;

    /// Removes captures and layers that no sandbox's disk stands on, by what the images themselves say. Before
    /// anything is started; returns how many were removed.
    fn sweep(&self) -> LocalBoxFuture<'_, Result<u64, Error>>;

    /// What is below the sandboxes' directory; only looks.
    fn survey(&self) -> LocalBoxFuture<'_, Result<DiskSurvey, Error>>;

    /// Removes something that nobody needs, once it is proven again that the runner made it and that no process of
    /// this host uses it; false when it is not there, or needed by now. The caller sees to it that the sandbox which
    /// it is about begins nothing meanwhile.
    fn remove_leaked<'a>(&'a self, leak: &'a DiskLeak) -> LocalBoxFuture<'a, Result<bool, Error>>;

    /// Sandboxes whose disks are backed by a file below `dir`.
    fn users_of<'a>(&'a self, dir: &'a Path) -> LocalBoxFuture<'a, Result<Vec<SandboxId>, Error>>;

    /// Space on the volume that holds the sandboxes.
    fn space(&self) -> LocalBoxFuture<'_, Result<Space, Error>>;

    /// Number of snapshots (bases) that are present on this host.
    fn snapshot_count(&self) -> LocalBoxFuture<'_, Result<u64, Error>>;
}

#[cfg(test)]
mod tests;
