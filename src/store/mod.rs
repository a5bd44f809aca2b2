//! State that survives the runner: sandbox records and the job journal.
//!
//! A write is on disk when its future resolves: sled's `insert` alone means nothing after a kill.

use std::path::PathBuf;

use futures::future::LocalBoxFuture;

use crate::error::{Certainty, ErrorCode, Failure};
use crate::ids::{JobId, SandboxId};
use crate::jobs::journal::Entry;
use crate::net::Slot;
use crate::sandbox::Record;

pub mod backup;
mod engine;
pub mod format;
mod hex;
mod migrate;
pub mod quarantine;
pub mod reserve;
pub mod restore;
pub mod sled;

pub use engine::{Engine, Summary, is_in_use};
pub use sled::{Options, SledStore, watch};

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds it.
    #[error(
        "cannot open the state store {path}: another runner is using it; stop that one first, or set RUNNER_STATE_PATH to another directory"
    )]
    InUse {
        /// The store's directory.
        path: PathBuf,
        /// What sled said.
        source: ::sled::Error,
    },
    /// It cannot be opened.
    #[error("cannot open the state store {path}")]
    Open {
        /// The store's directory.
        path: PathBuf,
        /// What sled said.
        source: ::sled::Error,
    },
    /// Its directory cannot be made private.
    #[error("cannot prepare the directory {path} of the state store")]
    Directory {
        /// The store's directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It was written by a newer version.
    #[error(
        "the state store {path} has format {found}, this version reads up to {known}; install the newer runner again"
    )]
    Newer {
        /// The store's directory.
        path: PathBuf,
        /// Format found.
        found: u8,
        /// Highest format known.
        known: u8,
    },
    /// A write failed.
    #[error("cannot save {what} in the state store")]
    Write {
        /// The record.
        what: String,
        /// What sled said.
        source: ::sled::Error,
    },
    /// A read failed.
    #[error("cannot read {what} from the state store")]
    Read {
        /// The record.
        what: String,
        /// What sled said.
        source: ::sled::Error,
    },
    /// A record does not fit its type.
    #[error("the record of {what} in the state store cannot be read")]
    Corrupt {
        /// The record.
        what: String,
        /// What serde said.
        source: serde_json::Error,
    },
    /// A record lacks what its format demands.
    #[error("the record of {what} in the state store cannot be read: {reason}")]
    Unfit {
        /// The record.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A record lies under a key that is not its own.
    #[error("the record of {what} in the state store is that of {inside}")]
    Misplaced {
        /// The record by its key.
        what: String,
        /// What it says of itself.
        inside: String,
    },
    /// A record was written by a newer version; it stays where it is.
    #[error(
        "the record of {what} in the state store has format {found}, this version reads up to {known}; it is left as it is: install the newer runner again"
    )]
    NewerRecord {
        /// The record.
        what: String,
        /// Format found.
        found: u8,
        /// Highest format known.
        known: u8,
    },
    /// There is no such record in quarantine.
    #[error("there is no record {key} in quarantine; runner-ch store quarantine list names those that are")]
    NotQuarantined {
        /// What was asked for.
        key: String,
    },
    /// A quarantined record cannot go back.
    #[error("{key} stays in quarantine: {reason}")]
    StaysQuarantined {
        /// The record.
        key: String,
        /// Why.
        reason: String,
    },
    /// A backup could not be written.
    #[error("cannot write the backup")]
    Backup(#[source] std::io::Error),
    /// There is no room for a backup beside the store.
    #[error(
        "cannot make a backup: no space left on device: it takes up to {wanted} bytes beside the store {path}, and {free} are free; free some space"
    )]
    NoRoom {
        /// The store's directory.
        path: PathBuf,
        /// Bytes it takes.
        wanted: u64,
        /// Bytes that are free.
        free: u64,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::NotQuarantined { .. } => ErrorCode::NotFound,
            Error::StaysQuarantined { .. } => ErrorCode::Conflict,
            Error::NoRoom { .. } => ErrorCode::NoSpace,
            Error::Write { source: ::sled::Error::Io(ref io), .. } if is_full(io) => ErrorCode::NoSpace,
            _ => ErrorCode::Internal,
        };
        // A failed write may be on disk all the same; the next write of the key replaces it.
        Failure::from_error(code, Certainty::Unknown, &error)
    }
}

/// sled's error does not show its cause as a source.
fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// Everything found at start. Records that cannot be read are named, not dropped: the rest works.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Sandboxes.
    pub sandboxes: Vec<Record>,
    /// Job journal.
    pub jobs: Vec<Entry>,
    /// Records that could not be read; they stay in the store, in quarantine or, if they are of a newer version, where
    /// they are.
    pub unreadable: Vec<Unreadable>,
}

/// A record that is there but cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// The sandbox it is about, if it is about one.
    pub sandbox: Option<SandboxId>,
    /// The network slot that is still legible in it.
    pub slot: Option<Slot>,
    /// Kind and key, why it cannot be read, and what to do.
    pub reason: String,
}

/// The store. Every write is flushed before its future resolves, and never blocks the arbiter.
pub trait Store {
    /// Reads everything.
    fn load(&self) -> LocalBoxFuture<'_, Result<Loaded, Error>>;
    /// Reads one sandbox's record again: what a rebuilt actor starts from.
    fn sandbox<'a>(&'a self, id: &'a SandboxId) -> LocalBoxFuture<'a, Result<Option<Record>, Error>>;
    /// Writes a sandbox's record.
    fn put_sandbox<'a>(&'a self, record: &'a Record) -> LocalBoxFuture<'a, Result<(), Error>>;
    /// Removes a sandbox's record.
    fn remove_sandbox<'a>(&'a self, id: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>>;
    /// Writes a journal entry.
    fn put_job<'a>(&'a self, entry: &'a Entry) -> LocalBoxFuture<'a, Result<(), Error>>;
    /// Removes journal entries.
    fn remove_jobs<'a>(&'a self, ids: &'a [JobId]) -> LocalBoxFuture<'a, Result<(), Error>>;
    /// Flushes whatever is left, at shutdown.
    fn flush(&self) -> LocalBoxFuture<'_, Result<(), Error>>;
}
