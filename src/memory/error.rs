//! What can go wrong with guest memory. Texts name the object and, where there is one, the remedy; the
//! cause is in `source`.

use std::io;
use std::path::PathBuf;

use crate::error::{Certainty, ErrorCode, Failure};

/// A failed effect on guest memory.
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
    /// The size is no size that guest memory can have.
    #[error("guest memory of {size} bytes is not possible; expected a multiple of {page} greater than 0")]
    Size {
        /// The wanted size in bytes.
        size: u64,
        /// The host's page size in bytes.
        page: u64,
    },
    /// The memory file is not as long as the guest's memory.
    #[error("the memory file {path:?} has {found} bytes, but the guest has {wanted} bytes of memory")]
    Length {
        /// The memory file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// Size of the guest's memory in bytes.
        wanted: u64,
    },
    /// The process of that pid, start time and boot is not there, or not any more.
    #[error("VMM {pid} has ended; whoever has its pid now is not touched")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// Whether the process is there could not be found out.
    #[error("cannot tell whether VMM {pid} still runs")]
    Identity {
        /// The process.
        pid: i32,
        /// Why.
        source: Box<crate::hypervisor::Error>,
    },
    /// The guest's RAM is not a private mapping of the file.
    #[error("VMM {pid} does not map {path:?} privately and completely (0 to {size}) as its guest's memory: {found}")]
    Mapping {
        /// The process.
        pid: i32,
        /// The memory file.
        path: PathBuf,
        /// Size of the guest's memory in bytes.
        size: u64,
        /// What it maps instead.
        found: String,
    },
    /// The kernel did not tell which pages were written.
    #[error("cannot find the written pages of VMM {pid}")]
    Scan {
        /// The process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// Pages of the guest could not be read.
    #[error("cannot read {len} bytes of the guest's memory at address {address:#x} of VMM {pid}")]
    Read {
        /// The process.
        pid: i32,
        /// Address in the process.
        address: u64,
        /// How many bytes were asked for there.
        len: u64,
        /// Why.
        source: io::Error,
    },
    /// No host memory for the pages that are copied during the pause.
    #[error("cannot get {bytes} bytes of host memory for the copy of the guest's memory")]
    Room {
        /// How much was asked for.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// The steps of a capture came in the wrong order.
    #[error("the capture of guest memory to {path:?} cannot be {what} now: it is {phase} (a defect of the runner)")]
    Order {
        /// The capture's target.
        path: PathBuf,
        /// What was asked for.
        what: &'static str,
        /// How far the capture is.
        phase: &'static str,
    },
    /// The caller went away.
    #[error("{what} was abandoned before it was done")]
    Abandoned {
        /// What was being done.
        what: &'static str,
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
            Self::Io { source, .. } if is_full(source) => ErrorCode::NoSpace,
            Self::Size { .. } => ErrorCode::BadRequest,
            Self::Abandoned { .. } => ErrorCode::Interrupted,
            _ => ErrorCode::Internal,
        }
    }

    /// The VM is only read, and a capture that failed leaves no file. Only a thread that died may have
    /// done more than is known.
    pub fn certainty(&self) -> Certainty {
        if matches!(self, Self::Died { .. }) { Certainty::Unknown } else { Certainty::NotDone }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(error.code(), error.certainty(), &error)
    }
}
