//! What can go wrong with snapshots. Texts name the object and, where there is one, the remedy; the cause is in
//! `source`.

use std::io;
use std::path::PathBuf;

use crate::error::{Certainty, ErrorCode, Failure};
use crate::ids::{SandboxId, SnapshotRef};

/// A failed effect on a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a file failed.
    #[error("cannot {doing} {path:?}")]
    Io {
        /// What was tried, as a verb phrase.
        doing: &'static str,
        /// On which object.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The snapshot's disk could not be made.
    #[error("cannot make the disk of the snapshot {reference}")]
    Disk {
        /// The snapshot.
        reference: SnapshotRef,
        /// Why.
        source: crate::disk::Error,
    },
    /// There is one already.
    #[error("the snapshot {reference} exists already, at {path:?}; remove it first, or take another name")]
    Exists {
        /// The snapshot.
        reference: SnapshotRef,
        /// What has its name.
        path: PathBuf,
    },
    /// The name cannot be a directory's beside the others.
    #[error("the snapshot cannot be named {reference}: {why}; take another name")]
    Name {
        /// The name.
        reference: SnapshotRef,
        /// What is in the way.
        why: String,
    },
    /// One snapshot lies in the directory of another.
    #[error("the snapshot {reference} cannot be removed: its directory holds another one, {path:?}; move that away")]
    Holds {
        /// The snapshot.
        reference: SnapshotRef,
        /// An image of the other one.
        path: PathBuf,
    },
    /// Sandboxes stand on it.
    #[error(
        "the snapshot {reference} cannot be removed: the disks of these sandboxes stand on it: {}; destroy them first",
        users.iter().map(SandboxId::as_str).collect::<Vec<_>>().join(", ")
    )]
    InUse {
        /// The snapshot.
        reference: SnapshotRef,
        /// The sandboxes.
        users: Vec<SandboxId>,
    },
    /// An image of it is locked.
    #[error(
        "the snapshot {reference} cannot be removed: {path:?} is locked, because a sandbox is being made from it or \
         another program uses it; try again when that is over"
    )]
    Locked {
        /// The snapshot.
        reference: SnapshotRef,
        /// The image.
        path: PathBuf,
    },
    /// The way to it leads through a symbolic link.
    #[error("the snapshot {reference} is not touched, because the way to it below {root:?} is a symbolic link")]
    Link {
        /// The snapshot.
        reference: SnapshotRef,
        /// The snapshots directory.
        root: PathBuf,
    },
    /// The manifest is not one, or not that of this snapshot.
    #[error("the manifest {path:?} cannot be used: {why}; remove the snapshot and take it again")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A newer runner wrote it.
    #[error(
        "the manifest {path:?} has the format {found}, and this runner reads up to {known}; use the runner's version \
         that wrote it, or remove the snapshot and take it again"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest known one.
        known: u32,
    },
    /// A file is not as its manifest says.
    #[error("the snapshot's file {path:?} is damaged: {why}; remove the snapshot and take it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The runner stops.
    #[error("making the snapshot {reference} was abandoned, because the runner stops or nobody waits for it")]
    Abandoned {
        /// The snapshot.
        reference: SnapshotRef,
    },
    /// It failed, and so did removing what was made.
    #[error("{source_error}; what it left in {path:?} could not be removed")]
    Leftover {
        /// The temporary directory.
        path: PathBuf,
        /// Why it failed, with all causes.
        source_error: String,
        /// Why the removal failed.
        source: io::Error,
    },
    /// A worker thread ended without an answer.
    #[error("{what} ended without an answer (a defect of the runner)")]
    Died {
        /// What was being done.
        what: &'static str,
    },
}

impl Error {
    /// For `map_err`: adds what was tried on which path to an input/output error.
    pub(super) fn io<E: Into<io::Error>>(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source: source.into() }
    }

    /// The kind of failure, as callers see it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Disk { source, .. } => source.code(),
            Self::Exists { .. } | Self::Holds { .. } | Self::InUse { .. } | Self::Locked { .. } => ErrorCode::Conflict,
            Self::Name { .. } | Self::Newer { .. } | Self::Damaged { .. } | Self::Manifest { .. } => {
                ErrorCode::UnprocessableEntity
            }
            Self::Abandoned { .. } => ErrorCode::Interrupted,
            Self::Io { .. } | Self::Link { .. } | Self::Leftover { .. } | Self::Died { .. } => ErrorCode::Internal,
        }
    }

    /// On failure nothing is left, and nothing is gone.
    pub fn certainty(&self) -> Certainty {
        match self {
            Self::Leftover { .. } | Self::Died { .. } => Certainty::Unknown,
            _ => Certainty::NotDone,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(error.code(), error.certainty(), &error)
    }
}
