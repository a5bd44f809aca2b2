//! What the ForkActor is asked.

use std::sync::Arc;

use actix::Message;

use crate::error::Failure;
use crate::ids::{SandboxId, SnapshotRef};
use crate::sandbox::View;
use crate::snapshots::{Found, Manifest};

/// What came of each copy that was asked for; each succeeds or fails alone.
pub type Copies = Vec<(SandboxId, Result<Arc<View>, Failure>)>;

/// Copies a sandbox, with its memory if it has one. All copies are of one point in time. The error is that
/// nothing could be copied at all.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Copies, Failure>")]
pub struct Fork {
    /// The sandbox to copy.
    pub source: SandboxId,
    /// The new sandboxes.
    pub copies: Vec<SandboxId>,
    /// It carries out a job of the control plane.
    pub by_job: bool,
}

/// Makes a snapshot of a sandbox.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Manifest, Failure>")]
pub struct TakeSnapshot {
    /// The sandbox.
    pub source: SandboxId,
    /// The new snapshot.
    pub reference: SnapshotRef,
    /// Its name as its owner wrote it.
    pub name: String,
    /// With the memory of the sandbox.
    pub memory: bool,
    /// It carries out a job of the control plane.
    pub by_job: bool,
}

/// Looks a snapshot up.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Option<Found>, Failure>")]
pub struct FindSnapshot(pub SnapshotRef);

/// Removes a snapshot; false when it was not there.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<bool, Failure>")]
pub struct RemoveSnapshot(pub SnapshotRef);
