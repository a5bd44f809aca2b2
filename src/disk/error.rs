//! What can go wrong with disks. Texts name the object and, where there is one, the remedy; the cause
//! is in `source`.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Certainty, ErrorCode, Failure};

/// A failed disk operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path of the settings cannot be used.
    #[error("the {what} directory {path:?} must be an absolute path")]
    Settings {
        /// Which setting.
        what: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// Reflink was asked for where the file system cannot.
    #[error(
        "RUNNER_DISK_STRATEGY=reflink, but the file system of {dir:?} cannot clone files; put the directory on \
         XFS (made with reflink=1) or btrfs, or set RUNNER_DISK_STRATEGY=overlay"
    )]
    NoReflink {
        /// The sandboxes directory.
        dir: PathBuf,
        /// What the trial clone answered.
        source: io::Error,
    },
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
    /// No base under any of the names it could have.
    #[error("{wanted} is not on this host; looked for {}; {remedy}", list(tried))]
    BaseMissing {
        /// The snapshot, or the configured base image.
        wanted: String,
        /// Every path that was looked at, in order.
        tried: Vec<PathBuf>,
        /// What to do.
        remedy: &'static str,
    },
    /// A snapshot's file, or a backing file of it, lies outside the snapshots directory.
    #[error("{path:?} leads out of the snapshots directory {root:?} and is refused; put the image itself there")]
    BaseOutside {
        /// The path that was followed.
        path: PathBuf,
        /// Where it has to stay.
        root: PathBuf,
    },
    /// The base image is there, but it cannot be used.
    #[error("the base image {path:?} cannot be used: {why}")]
    BaseInvalid {
        /// The image.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// The base was rewritten in place below overlays that depend on it.
    #[error(
        "the base image {path:?} was changed while sandboxes use it as backing file; put the old content back, or \
         destroy those sandboxes, and give new images a new name"
    )]
    BaseChanged {
        /// The image.
        path: PathBuf,
    },
    /// The sandbox's disk would be smaller than the image it starts from.
    #[error(
        "the base image {path:?} has a virtual size of {base} bytes, but the sandbox's disk shall have {wanted} bytes; \
         ask for a storageQuota of at least {} GiB", .base.div_ceil(1 << 30)
    )]
    TooSmall {
        /// The base.
        path: PathBuf,
        /// Its virtual size in bytes.
        base: u64,
        /// The wanted size in bytes.
        wanted: u64,
    },
    /// The wanted size is no disk size.
    #[error("a disk of {size} bytes is not possible (storageQuota); expected a multiple of 512 greater than 0")]
    Size {
        /// The wanted size in bytes.
        size: u64,
    },
    /// Somebody else may write to an image that we want to read or replace.
    #[error("{path:?} is locked for writing by {holder}; stop that first")]
    Locked {
        /// The image.
        path: PathBuf,
        /// The processes that hold the lock, as far as they can be seen.
        holder: String,
    },
    /// A qcow2 disk cannot be frozen beside its VMM.
    #[error(
        "the qcow2 disk {path:?} cannot be frozen while its VMM lives, which has not written all of it; end the VMM \
         and split the disk, or put the sandboxes on XFS or btrfs, where disks are raw"
    )]
    NotRaw {
        /// The disk.
        path: PathBuf,
    },
    /// Only qcow2 disks have layers.
    #[error("the raw disk {path:?} has no layers and cannot be split; freeze it instead")]
    NotLayered {
        /// The disk.
        path: PathBuf,
    },
    /// A disk has as many layers as it may have.
    #[error("the disk {path:?} stands on {layers} layers, which is the most; they are being merged: try again")]
    TooDeep {
        /// The disk.
        path: PathBuf,
        /// Its layers.
        layers: usize,
    },
    /// A merged layer does not fit a disk any more.
    #[error(
        "the disk {path:?} cannot be put on the merged layer {merged:?}: it does not replace the layers that the disk \
         stands on now; merge again"
    )]
    Outdated {
        /// The disk.
        path: PathBuf,
        /// The merged layer.
        merged: PathBuf,
    },
    /// Disks only grow.
    #[error(
        "the disk {path:?} has {size} bytes and cannot have {wanted}: disks only grow; ask for at least {} GiB",
        .size.div_ceil(1 << 30)
    )]
    Shrink {
        /// The disk.
        path: PathBuf,
        /// Its virtual size in bytes.
        size: u64,
        /// The wanted size in bytes.
        wanted: u64,
    },
    /// A path that is not where such a thing can be.
    #[error("{path:?} is not {what} below {root:?}; nothing was done with it")]
    Foreign {
        /// What it would have to be.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Where it would have to be.
        root: PathBuf,
    },
    /// A disk's chain of images cannot be followed, so nobody knows what it needs.
    #[error("cannot tell what the disk {path:?} stands on: {why}")]
    Chain {
        /// The image that cannot be followed.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A field of the seed cannot be handed to the guest.
    #[error("{field} cannot be given to the guest: {why}")]
    Seed {
        /// The field, as the job names it.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// The flattened copy of a base could not be made; several callers may get the same error.
    #[error("cannot make the raw copy of the base image {base:?}")]
    Flatten {
        /// The base.
        base: PathBuf,
        /// Why.
        source: Arc<Error>,
    },
    /// The caller went away, or the runner stops.
    #[error("{what} was abandoned before it was done")]
    Abandoned {
        /// What was being done.
        what: &'static str,
    },
    /// Creation failed, and so did removing what it had made.
    #[error("{source_error}; what it left in {path:?} could not be removed")]
    Leftover {
        /// The sandbox's directory.
        path: PathBuf,
        /// Why the creation failed, with all causes.
        source_error: String,
        /// Why the removal failed.
        source: Box<Error>,
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
        if self.no_space() {
            return ErrorCode::NoSpace;
        }
        match self {
            Self::Size { .. } | Self::Seed { .. } | Self::Shrink { .. } => ErrorCode::BadRequest,
            Self::BaseMissing { .. } | Self::BaseOutside { .. } | Self::BaseInvalid { .. } | Self::TooSmall { .. } => {
                ErrorCode::UnprocessableEntity
            }
            Self::BaseChanged { .. }
            | Self::Locked { .. }
            | Self::NotRaw { .. }
            | Self::NotLayered { .. }
            | Self::TooDeep { .. }
            | Self::Outdated { .. } => ErrorCode::Conflict,
            Self::Abandoned { .. } => ErrorCode::Interrupted,
            Self::Flatten { source, .. } => source.code(),
            Self::Settings { .. }
            | Self::NoReflink { .. }
            | Self::Foreign { .. }
            | Self::Chain { .. }
            | Self::Io { .. }
            | Self::Leftover { .. }
            | Self::Died { .. } => ErrorCode::Internal,
        }
    }

    /// A failed creation leaves nothing behind, so it is certain not to have happened; a failed
    /// removal may have removed something.
    pub fn certainty(&self) -> Certainty {
        match self {
            Self::Io { doing: REMOVE, .. } | Self::Leftover { .. } | Self::Died { .. } => Certainty::Unknown,
            _ => Certainty::NotDone,
        }
    }

    fn no_space(&self) -> bool {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(self);
        while let Some(inner) = cause {
            if let Some(io) = inner.downcast_ref::<io::Error>()
                && matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            {
                return true;
            }
            cause = inner.source();
        }
        false
    }
}

/// The verb phrase of removals, which alone can have happened in part.
pub(super) const REMOVE: &str = "remove";

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(error.code(), error.certainty(), &error)
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("{path:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Error {
        Error::io("write", "/d/x")(io::Error::from_raw_os_error(28))
    }

    #[test]
    fn a_full_disk_is_no_space_through_every_wrapping() {
        let shared = Error::Flatten { base: "/b".into(), source: Arc::new(full()) };
        for error in [full(), shared] {
            assert_eq!(error.code(), ErrorCode::NoSpace);
            let failure = Failure::from(error);
            assert_eq!(failure.certainty, Certainty::NotDone);
            assert!(failure.recoverable(), "{failure}");
        }
    }

    #[test]
    fn a_missing_base_names_every_path_and_the_remedy() {
        let error = Error::BaseMissing {
            wanted: "snapshot a/b".into(),
            tried: vec!["/s/a/b/disk.raw".into(), "/s/a/b.raw".into()],
            remedy: "pull it",
        };
        let failure = Failure::from(error);
        assert_eq!(failure.code, ErrorCode::UnprocessableEntity);
        for words in ["snapshot a/b", "/s/a/b/disk.raw", "/s/a/b.raw", "pull it"] {
            assert!(failure.message.contains(words), "{failure}");
        }
    }

    #[test]
    fn a_failed_removal_is_uncertain() {
        let error = Error::io(REMOVE, "/d/x")(io::Error::from_raw_os_error(5));
        assert_eq!(error.certainty(), Certainty::Unknown);
    }
}
