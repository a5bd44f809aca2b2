//! What is remembered of a job, so that it is executed once however often it is handed out.

use serde::{Deserialize, Serialize};

use super::outcome::Outcome;
use crate::control_plane::Job;

/// How far a job has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Progress {
    /// Begun; its effects may exist in part.
    Running,
    /// Done; the control plane does not know yet.
    Finished {
        /// What will be reported.
        outcome: Outcome,
    },
    /// The control plane has taken the report, or has refused it for good.
    Reported {
        /// What was reported.
        outcome: Outcome,
    },
}

/// A journal entry, keyed by the job's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The job as it was handed out.
    pub job: Job,
    /// How far it has come.
    pub progress: Progress,
    /// When that changed, in milliseconds since 1970.
    pub at: u64,
}

#[cfg(test)]
impl Entry {
    /// An entry for tests of the store.
    pub fn for_tests(id: &str) -> Self {
        let job = serde_json::json!({
            "id": id, "type": "STOP_SANDBOX", "status": "IN_PROGRESS", "resourceType": "SANDBOX", "resourceId": "box",
        });
        Self { job: serde_json::from_value(job).unwrap(), progress: Progress::Running, at: 1 }
    }
}
