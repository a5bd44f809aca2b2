//! The result of a job, as it is stored and reported.

use serde::{Deserialize, Serialize};

use crate::control_plane::JobReport;
use crate::error::Failure;
use crate::ids::SandboxId;
use crate::sandbox::View;
use crate::sandbox::view::Begun;
use crate::snapshots::Manifest;

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
        let note = view.and_then(|view| view.begin.note.clone());
        let metadata = version.map(|version| match note {
            // The API reads the version; the rest is for people.
            Some(note) => serde_json::json!({ "daemonVersion": version, "note": note }),
            None => serde_json::json!({ "daemonVersion": version }),
        });
        Outcome::Completed { metadata }
    }

    /// The outcome of a fork or clone. The API reads `daemonVersion`; the rest is that of the branch, and what the copy
    /// was made with.
    pub fn copied(view: &View, source: &SandboxId, clone: bool) -> Self {
        let mut metadata = serde_json::json!({
            "id": view.id,
            "state": view.state,
            if clone { "sourceSandboxId" } else { "parentId" }: source,
            "begin": Begun::from(view),
        });
        if let (Some(version), Some(fields)) = (&view.daemon_version, metadata.as_object_mut()) {
            fields.insert("daemonVersion".to_owned(), version.clone().into());
        }
        Outcome::Completed { metadata: Some(metadata) }
    }

    /// The outcome of a snapshot job; `branch`: of CREATE_SANDBOX_SNAPSHOT.
    pub fn snapshot(manifest: &Manifest, branch: bool) -> Self {
        let bytes = manifest.bytes();
        let metadata = if branch {
            serde_json::json!({
                "name": manifest.name,
                "snapshotPath": manifest.reference,
                "sizeBytes": bytes,
                "liveMode": manifest.warm.is_some(),
            })
        } else {
            let gib = bytes as f64 / (1_u64 << 30) as f64;
            serde_json::json!({ "ref": manifest.reference, "hash": manifest.hash(), "sizeGB": gib })
        };
        Outcome::Completed { metadata: Some(metadata) }
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
