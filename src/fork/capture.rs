//! A frozen point in time of a sandbox, as files in a directory of its own.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::plan::Recipe;
use crate::disk::RootDisk;
use crate::hypervisor::Version;
use crate::hypervisor::snapshot::RestoreMode;
use crate::jobs::payload::CreateSpec;
use crate::sandbox::Size;
use crate::sandbox::record::Origin;

/// Name of the directory with `config.json` and `state.json`, in a capture's or checkpoint's directory.
pub const DEVICE: &str = "device";
/// Name of the memory file, there and in a sandbox's directory.
pub const MEMORY: &str = "memory";

/// The memory of a captured VM.
#[derive(Debug, Clone)]
pub struct FrozenMemory {
    /// The frozen memory file.
    pub file: PathBuf,
    /// Directory with the `config.json` and `state.json` that the VMM wrote.
    pub device: PathBuf,
    /// That VMM.
    pub version: Version,
    /// How the memory is brought back.
    pub mode: RestoreMode,
    /// The guest's MAC, which its memory holds.
    pub mac: [u8; 6],
}

/// A point in time of a sandbox.
#[derive(Debug, Clone)]
pub struct Capture {
    /// The directory that holds what is not held otherwise; none where it belongs to a snapshot.
    pub dir: Option<PathBuf>,
    /// Where it came from.
    pub origin: Origin,
    /// A disk that nobody writes to any more.
    pub disk: RootDisk,
    /// Its memory; none of a sandbox that has been shut down, or where none was wanted.
    pub memory: Option<FrozenMemory>,
    /// Resources of the VM that was captured.
    pub size: Size,
    /// What the source was made from.
    pub spec: CreateSpec,
    /// What it took; none where nothing had to be paused.
    pub report: Option<Report>,
}

/// What a capture took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How the memory came out.
    pub recipe: Recipe,
    /// A new VMM has taken the source over.
    pub replaced: bool,
    /// Why it was done like this.
    pub why: String,
    /// Microseconds from just before `vm.pause` until `vm.resume` has answered; of a replaced source until it was
    /// handed on, its own resume comes later.
    pub pause_micros: u64,
    /// Microseconds of that for `vm.pause`.
    pub paused_after_micros: u64,
    /// Microseconds of that until `config.json` and `state.json` were there.
    pub device_micros: u64,
    /// Microseconds of that to find and copy memory.
    pub memory_micros: u64,
    /// Bytes of memory that were copied inside the pause.
    pub memory_bytes: u64,
    /// Microseconds of that to freeze the disk.
    pub disk_micros: u64,
    /// Microseconds before the pause: copying the memory file, writing cached disk blocks, storing the intent.
    pub prepare_micros: u64,
    /// Microseconds after the pause: completing the memory file.
    pub keep_micros: u64,
}
