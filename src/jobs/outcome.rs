//! The result of a job, as it is stored and reported.

use serde::{Deserialize, Serialize};

use crate::control_plane::JobReport;
use crate::error::Failure;
use crate::sandbox::View;

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// It is so. `metadata` is what the API reads (PROTOCOL.md 2.6).
    Completed {
        /// `resultMetadata`, if the job type has any.
        metadata: Option<serde_json::Value>,
    },
    /// It could not be done.
    Failed {
        /// The reason, for the API's user.
        message: String,
        /// Freeing space and trying again can help.
        recoverable: bool,
    },
}

impl Outcome {
    /// The outcome of a create or start: the guest's daemon version.
    pub fn started(view: Option<&View>) -> Self {
        let version = view.and_then(|view| view.daemon_version.clone());
        Outcome::Completed { metadata: version.map(|version| serde_json::json!({ "daemonVersion": version })) }
    }

    /// The outcome of a job without result.
    pub fn done() -> Self {
        Outcome::Completed { metadata: None }
    }

    /// The outcome of a job that failed.
    pub fn failed(failure: &Failure) -> Self {
        Outcome::Failed { message: failure.message.clone(), recoverable: failure.recoverable() }
    }

    /// The body for the control plane.
    pub fn report(&self) -> JobReport {
        match self {
            Outcome::Completed { metadata } => JobReport::completed(metadata.clone()),
            Outcome::Failed { message, recoverable } => JobReport::failed(message, *recoverable),
        }
    }
}
