//! Snapshots on this host: a directory below CH_SNAPSHOTS_PATH with a disk, maybe a memory, and a manifest
//! that says what they are. Written under a temporary name, synced, and committed by one rename.

use std::path::PathBuf;

use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

use crate::disk::RootDisk;
use crate::hypervisor::Version;
use crate::ids::{SandboxId, SnapshotRef};

mod digest;
pub mod error;
pub mod files;
mod find;
mod remove;
mod save;
pub mod survey;

pub use error::Error;
pub use files::FileSnapshots;
pub use survey::SnapshotSurvey;

/// The format of manifests that this version writes and reads.
pub const FORMAT: u32 = 1;

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name inside the directory.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
    /// Bytes that it takes on disk.
    pub allocated: u64,
    /// sha256 over the content, holes as zeroes, in hex.
    pub sha256: String,
}

/// The memory of a warm snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEntry {
    /// `memory`: the frozen memory file.
    pub file: FileEntry,
    /// `config.json` and `state.json` of the VMM.
    pub device: Vec<FileEntry>,
    /// The VMM that wrote them; another version does not read them (cloud-hypervisor.md 10).
    pub version: Version,
    /// The guest's MAC, which its memory holds.
    pub mac: [u8; 6],
}

/// What a snapshot is; `manifest.json` in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Its reference.
    pub reference: SnapshotRef,
    /// Name as its owner wrote it.
    pub name: String,
    /// The sandbox that it was taken from.
    pub source: SandboxId,
    /// The snapshot that this sandbox came from, if any.
    pub parent: Option<SnapshotRef>,
    /// When it was taken, in milliseconds since 1970.
    pub created_at: u64,
    /// Virtual CPUs of its source.
    pub vcpus: u32,
    /// Memory of its source in bytes.
    pub memory: u64,
    /// The disk: `disk.raw`.
    pub disk: FileEntry,
    /// The memory, if it is warm.
    pub warm: Option<MemoryEntry>,
}

impl Manifest {
    /// Bytes that the snapshot takes on disk.
    pub fn bytes(&self) -> u64 {
        let warm = self.warm.iter().flat_map(|warm| std::iter::once(&warm.file).chain(&warm.device));
        self.disk.allocated + warm.map(|file| file.allocated).sum::<u64>()
    }

    /// What the API calls the snapshot's hash: sha256 over the checksums of its files, in hex.
    pub fn hash(&self) -> String {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        let warm = self.warm.iter().flat_map(|warm| std::iter::once(&warm.file).chain(&warm.device));
        for file in std::iter::once(&self.disk).chain(warm) {
            hash.update(file.sha256.as_bytes());
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The memory that goes into a warm snapshot.
#[derive(Debug, Clone)]
pub struct SaveMemory {
    /// The frozen memory file.
    pub file: PathBuf,
    /// Directory with the `config.json` and `state.json` that the VMM wrote.
    pub device: PathBuf,
    /// The VMM that wrote them.
    pub version: Version,
    /// The guest's MAC.
    pub mac: [u8; 6],
}

/// A snapshot to be made of a frozen point in time. Nothing named here is changed or taken away.
#[derive(Debug, Clone)]
pub struct Save {
    /// Its reference.
    pub reference: SnapshotRef,
    /// Name as its owner wrote it.
    pub name: String,
    /// The sandbox that it was taken from.
    pub source: SandboxId,
    /// The snapshot that this sandbox came from.
    pub parent: Option<SnapshotRef>,
    /// Milliseconds since 1970.
    pub created_at: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// A disk that nobody writes to any more.
    pub disk: RootDisk,
    /// For a warm snapshot.
    pub warm: Option<SaveMemory>,
}

/// A snapshot that is there.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its directory; of an image that was put there by hand without one (`{reference}.qcow2`) the image itself.
    pub dir: PathBuf,
    /// What it is; none for an image that was put there by hand.
    pub manifest: Option<Manifest>,
    /// Bytes on disk of all its files.
    pub bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub created_at: u64,
}

/// The snapshots of this host. Blocking work goes to blocking threads inside the implementation.
pub trait Snapshots {
    /// Makes a snapshot. An existing one of that name is an error; what a crash left under the temporary name is
    /// removed first. On failure nothing is left.
    fn save<'a>(&'a self, save: &'a Save) -> LocalBoxFuture<'a, Result<Manifest, Error>>;

    /// Looks one up; a manifest that cannot be read is an error that names it.
    fn find<'a>(&'a self, reference: &'a SnapshotRef) -> LocalBoxFuture<'a, Result<Option<Found>, Error>>;

    /// Where its files are, if it is there.
    fn dir(&self, reference: &SnapshotRef) -> PathBuf;

    /// Removes one; false when it was not there. Refused while a sandbox's disk is backed by it: `users` are those.
    fn remove<'a>(
        &'a self,
        reference: &'a SnapshotRef,
        users: &'a [SandboxId],
    ) -> LocalBoxFuture<'a, Result<bool, Error>>;

    /// What lies under temporary names; only looks.
    fn survey(&self) -> LocalBoxFuture<'_, Result<SnapshotSurvey, Error>>;

    /// Removes what has one of our temporary names and is not under way; false when it is not there, or is by now.
    fn remove_leaked<'a>(&'a self, path: &'a std::path::Path) -> LocalBoxFuture<'a, Result<bool, Error>>;

    /// Removes what crashes have left under temporary names; at start.
    fn sweep(&self) -> LocalBoxFuture<'_, Result<u64, Error>>;
}

#[cfg(test)]
mod tests;
