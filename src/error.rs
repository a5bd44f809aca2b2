//! What an operation can fail with, as callers see it: a closed list of codes, a message that names
//! the object and the cause, and whether the effect surely did not happen.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Closed list of failure kinds. [`crate::http`] alone knows which status each one becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The request itself is malformed; the message names the field.
    BadRequest,
    /// No valid token.
    Unauthorized,
    /// The object does not exist.
    NotFound,
    /// The object exists but its state does not allow the request.
    Conflict,
    /// The request is well-formed but cannot be served by this host (missing base image, too large).
    UnprocessableEntity,
    /// The runner takes no such work right now; try again later.
    Busy,
    /// A deadline passed.
    Timeout,
    /// The data volume is full. Texts contain "no space left on device", which the API matches
    /// (PROTOCOL.md 2.6).
    NoSpace,
    /// A later request (stop, destroy) or the runner's shutdown overtook this one.
    Interrupted,
    /// The hypervisor, the kernel or a file did not do what it was told.
    Internal,
}

/// Whether a failed effect can have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Certainty {
    /// It surely did not happen; repeating is safe.
    NotDone,
    /// It may have happened: look at the host before acting again.
    Unknown,
}

/// A failure as it is answered, stored and logged. `Clone`, because one operation may answer several
/// callers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind.
    pub code: ErrorCode,
    /// What was tried, on which object, why it failed.
    pub message: String,
    /// Whether the effect can have happened.
    pub certainty: Certainty,
}

impl Failure {
    /// A failure whose effect surely did not happen.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), certainty: Certainty::NotDone }
    }

    /// The same with a sentence in front that says during what it happened.
    #[must_use]
    pub fn during(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Makes a failure from any error, keeping the words of all its causes.
    pub fn from_error(code: ErrorCode, certainty: Certainty, error: &(dyn StdError + 'static)) -> Self {
        let code = if is_no_space(error) { ErrorCode::NoSpace } else { code };
        Self { code, message: chain(error), certainty }
    }

    /// True when freeing space and trying again can help (PROTOCOL.md 2.6, `recoverable`).
    pub fn recoverable(&self) -> bool {
        // By code, not by words: a message may end with what the guest printed.
        self.code == ErrorCode::NoSpace
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Failure {}

/// The error and its causes, outermost first, joined by `: `; a cause whose words are already there
/// is not repeated.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    text
}

fn is_no_space(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        cause = inner.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write {path}")]
    struct Write {
        path: &'static str,
        source: std::io::Error,
    }

    #[test]
    fn the_chain_names_every_cause_once() {
        let error = Write { path: "/d/x", source: std::io::Error::from_raw_os_error(2) };
        assert_eq!(chain(&error), "cannot write /d/x: No such file or directory (os error 2)");
    }

    #[test]
    fn a_full_disk_is_recognised_through_the_chain() {
        let error = Write { path: "/d/x", source: std::io::Error::from_raw_os_error(28) };
        let failure = Failure::from_error(ErrorCode::Internal, Certainty::NotDone, &error);
        assert_eq!(failure.code, ErrorCode::NoSpace);
        assert!(failure.recoverable(), "{failure}");
    }
}
