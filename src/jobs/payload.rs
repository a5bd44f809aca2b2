//! The payload of a job as a typed command (PROTOCOL.md 5). Both dialects of the API are read: that of the
//! current one, and that of the branch the original runner was made for.
//!
//! Unknown fields are ignored, since the API may add some; `null` counts as absent. Everything else that has not the
//! documented form is refused, and the refusal names the field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::control_plane::Job;
use crate::error::{Certainty, ErrorCode, Failure};
use crate::ids::{SandboxId, SnapshotRef};
use crate::messages::vm::Resize;

pub mod copy;
pub mod create;
mod fields;
#[cfg(test)]
mod tests;

pub use create::{CreateSpec, Secret};
use fields::Fields;

/// What a job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// CREATE_SANDBOX.
    Create(Box<CreateSpec>),
    /// START_SANDBOX.
    Start {
        /// For the guest's daemon (`POST /init`).
        auth_token: Option<Secret>,
        /// Organisation, network limits and the like.
        metadata: BTreeMap<String, String>,
    },
    /// STOP_SANDBOX.
    Stop {
        /// True: without waiting for the guest.
        force: bool,
    },
    /// DESTROY_SANDBOX.
    Destroy,
    /// PAUSE_SANDBOX.
    Pause,
    /// RESIZE_SANDBOX.
    Resize(Resize),
    /// FORK_SANDBOX and CLONE_SANDBOX.
    Fork {
        /// The sandbox to copy.
        source: SandboxId,
        /// The new one.
        copy: SandboxId,
        /// The name of the source in the result differs: CLONE_SANDBOX.
        clone: bool,
    },
    /// SNAPSHOT_SANDBOX and CREATE_SANDBOX_SNAPSHOT.
    Snapshot(SnapshotSpec),
    /// REMOVE_SNAPSHOT.
    RemoveSnapshot(SnapshotRef),
    /// A type that this runner does not serve.
    Unknown(String),
}

/// A snapshot that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// The sandbox.
    pub source: SandboxId,
    /// What it is to be called.
    pub reference: SnapshotRef,
    /// Its name as its owner wrote it.
    pub name: String,
    /// With memory.
    pub memory: bool,
    /// The result has the form of CREATE_SANDBOX_SNAPSHOT.
    pub branch: bool,
}

/// A field that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}, got {got}")]
pub struct PayloadError {
    /// Path of the field, for example `env.HOME` or `entrypoint[1]`.
    pub field: String,
    /// What would have been accepted.
    pub expected: String,
    /// What came, shortened; never a secret.
    pub got: String,
}

impl PayloadError {
    /// The kind of failure.
    pub fn code(&self) -> ErrorCode {
        ErrorCode::BadRequest
    }

    /// Nothing was done yet.
    pub fn certainty(&self) -> Certainty {
        Certainty::NotDone
    }
}

impl From<PayloadError> for Failure {
    fn from(error: PayloadError) -> Self {
        Failure::from_error(error.code(), error.certainty(), &error)
    }
}

/// The job types that this runner does.
pub const KNOWN: [&str; 11] = [
    "CREATE_SANDBOX",
    "START_SANDBOX",
    "STOP_SANDBOX",
    "DESTROY_SANDBOX",
    "PAUSE_SANDBOX",
    "RESIZE_SANDBOX",
    "FORK_SANDBOX",
    "CLONE_SANDBOX",
    "SNAPSHOT_SANDBOX",
    "CREATE_SANDBOX_SNAPSHOT",
    "REMOVE_SNAPSHOT",
];

/// Turns a job into a command. The resource id must be a usable sandbox id, or a snapshot's reference where the job is
/// about one, and an id in the body the same.
pub fn parse(job: &Job) -> Result<Command, PayloadError> {
    match job.job_type.as_str() {
        "CREATE_SANDBOX" => create(job),
        "START_SANDBOX" => {
            sandbox(job)?;
            start(&body(job)?)
        }
        "STOP_SANDBOX" => {
            sandbox(job)?;
            Ok(Command::Stop { force: Fields::new(&body(job)?).flag("force")? })
        }
        // Has no payload; whatever came would not change what to do.
        "DESTROY_SANDBOX" => sandbox(job).map(|_| Command::Destroy),
        "PAUSE_SANDBOX" => sandbox(job).map(|_| Command::Pause),
        "RESIZE_SANDBOX" => {
            sandbox(job)?;
            copy::resize(&body(job)?).map(Command::Resize)
        }
        "FORK_SANDBOX" => copy::fork(sandbox(job)?, &body(job)?, false),
        "CLONE_SANDBOX" => copy::fork(sandbox(job)?, &body(job)?, true),
        "SNAPSHOT_SANDBOX" => copy::snapshot(sandbox(job)?, &body(job)?, false).map(Command::Snapshot),
        "CREATE_SANDBOX_SNAPSHOT" => copy::snapshot(sandbox(job)?, &body(job)?, true).map(Command::Snapshot),
        // Has no payload in either dialect.
        "REMOVE_SNAPSHOT" => copy::reference("resourceId", &job.resource_id).map(Command::RemoveSnapshot),
        other => Ok(Command::Unknown(other.to_owned())),
    }
}

fn create(job: &Job) -> Result<Command, PayloadError> {
    let sandbox = sandbox(job)?;
    let spec = CreateSpec::from_json(&Value::Object(body(job)?))?;
    if spec.id != sandbox {
        let expected = format!("the job's resourceId {sandbox}");
        return Err(PayloadError { field: "id".into(), expected, got: spec.id.to_string() });
    }
    Ok(Command::Create(Box::new(spec)))
}

/// `{authToken, metadata}`, or a flat map that is the metadata itself. A flat map holds only texts and no
/// token, which tells the two apart.
fn start(body: &Map<String, Value>) -> Result<Command, PayloadError> {
    let wrapped = body.contains_key("authToken") || matches!(body.get("metadata"), Some(Value::Object(_)));
    let fields = Fields::new(body);
    if wrapped {
        return Ok(Command::Start { auth_token: fields.secret("authToken")?, metadata: fields.metadata("metadata")? });
    }
    Ok(Command::Start { auth_token: None, metadata: fields::metadata(body) })
}

/// The sandbox that the job is about.
fn sandbox(job: &Job) -> Result<SandboxId, PayloadError> {
    job.resource_id.parse().map_err(|error: crate::ids::Error| PayloadError {
        field: "resourceId".into(),
        expected: format!("a sandbox id ({error})"),
        got: fields::quoted(&job.resource_id),
    })
}

/// The payload's object; empty when there is none.
fn body(job: &Job) -> Result<Map<String, Value>, PayloadError> {
    let wrong = |got: String| PayloadError { field: "payload".into(), expected: "a JSON object".into(), got };
    let text = job.payload.as_deref().unwrap_or_default();
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(body)) => Ok(body),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(other) => Err(wrong(fields::kind(&other).to_owned())),
        Err(error) => Err(wrong(format!("text that is not JSON ({error})"))),
    }
}
