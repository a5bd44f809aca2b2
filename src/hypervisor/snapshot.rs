//! Snapshots of VMs as files: `config.json` and `state.json`, and what has to be changed in them so that
//! another VM can be restored from them (cloud-hypervisor.md 5.4 and 9).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::wire::ImageType;

pub(super) mod capture;
pub(super) mod files;
mod patch;

/// Who writes the memory of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotMemory {
    /// The VMM, into `memory-ranges`.
    Written,
    /// Somebody else, or nobody: the memory is a file anyway.
    Left,
}

/// How guest memory comes into a restored VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreMode {
    /// The VMM maps the memory file privately and reads what it needs.
    Map,
    /// The VMM reads all of it into memory of its own.
    Copy,
}

/// What is different in the VM that is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adaptation {
    /// Root disk and its format.
    pub root: (PathBuf, ImageType),
    /// Whether the root disk has a backing file.
    pub backed: bool,
    /// Read-only seed image (raw).
    pub seed: PathBuf,
    /// TAP in the VMM's namespace.
    pub tap: String,
    /// File for the guest's serial output.
    pub serial: PathBuf,
    /// The frozen memory file: the bytes of all RAM ranges one after the other.
    pub memory: PathBuf,
    /// Size of the guest's RAM in bytes.
    pub memory_bytes: u64,
    /// How it is used.
    pub mode: RestoreMode,
}
