//! Jobs as the API keeps them (PROTOCOL.md 2.1).

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::Timestamp;

/// Names of the job types. Types are plain text so that a test can also submit one that does not exist.
pub mod job_type {
    /// Create (or restore) a sandbox.
    pub const CREATE_SANDBOX: &str = "CREATE_SANDBOX";
    /// Start a stopped sandbox, or resume a paused one.
    pub const START_SANDBOX: &str = "START_SANDBOX";
    /// Stop a sandbox.
    pub const STOP_SANDBOX: &str = "STOP_SANDBOX";
    /// Pause a sandbox (v0.190 only).
    pub const PAUSE_SANDBOX: &str = "PAUSE_SANDBOX";
    /// Destroy a sandbox.
    pub const DESTROY_SANDBOX: &str = "DESTROY_SANDBOX";
    /// Change cpu, memory or disk (v0.190 only).
    pub const RESIZE_SANDBOX: &str = "RESIZE_SANDBOX";
    /// Repair a sandbox in error (v0.190 only).
    pub const RECOVER_SANDBOX: &str = "RECOVER_SANDBOX";
    /// Fork a running sandbox.
    pub const FORK_SANDBOX: &str = "FORK_SANDBOX";
    /// Clone a sandbox (branch only).
    pub const CLONE_SANDBOX: &str = "CLONE_SANDBOX";
    /// Make a snapshot of a sandbox.
    pub const SNAPSHOT_SANDBOX: &str = "SNAPSHOT_SANDBOX";
    /// Make a snapshot of a sandbox (branch only).
    pub const CREATE_SANDBOX_SNAPSHOT: &str = "CREATE_SANDBOX_SNAPSHOT";
    /// Back a sandbox up.
    pub const CREATE_BACKUP: &str = "CREATE_BACKUP";
    /// Build a snapshot from a Dockerfile.
    pub const BUILD_SNAPSHOT: &str = "BUILD_SNAPSHOT";
    /// Pull a snapshot to the runner.
    pub const PULL_SNAPSHOT: &str = "PULL_SNAPSHOT";
    /// Remove a snapshot from the runner.
    pub const REMOVE_SNAPSHOT: &str = "REMOVE_SNAPSHOT";
    /// Read hash and size of a snapshot in a registry (v0.190 only).
    pub const INSPECT_SNAPSHOT_IN_REGISTRY: &str = "INSPECT_SNAPSHOT_IN_REGISTRY";
    /// Change the network policy of a sandbox.
    pub const UPDATE_SANDBOX_NETWORK_SETTINGS: &str = "UPDATE_SANDBOX_NETWORK_SETTINGS";
}

/// Status of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobStatus {
    /// Waiting for a poll.
    Pending,
    /// Handed out.
    InProgress,
    /// Finished well.
    Completed,
    /// Finished badly, or given up by the sweep.
    Failed,
}

impl JobStatus {
    /// True for the two final states.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }

    /// Text on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::InProgress => "IN_PROGRESS",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
        }
    }

    /// Reads the text of the wire.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::InProgress, Self::Completed, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// Kind of the thing that a job works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ResourceType {
    /// A sandbox, by id.
    Sandbox,
    /// A snapshot, by ref or name.
    Snapshot,
    /// Exists in the API but is unused.
    Backup,
}

/// When a job passed which point; monotonic, microsecond precise.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Submission.
    pub submitted: Instant,
    /// First claim by a poll.
    pub claimed: Option<Instant>,
    /// The poll answer that first held the job was handed to the socket.
    pub answered: Option<Instant>,
    /// First final status.
    pub finished: Option<Instant>,
}

impl Timing {
    /// Submission to claim.
    pub fn queued(&self) -> Option<Duration> {
        self.claimed.map(|at| at - self.submitted)
    }

    /// Submission to the written poll answer.
    pub fn claim_latency(&self) -> Option<Duration> {
        self.answered.map(|at| at - self.submitted)
    }

    /// Claim to the final status.
    pub fn running(&self) -> Option<Duration> {
        Some(self.finished? - self.claimed?)
    }
}

/// A job with everything the simulator knows about it.
#[derive(Debug, Clone)]
pub struct Job {
    /// Random UUID.
    pub id: String,
    /// One of [`job_type`], or any other text.
    pub job_type: String,
    /// Present status.
    pub status: JobStatus,
    /// Kind of resource.
    pub resource_type: ResourceType,
    /// Id of the resource.
    pub resource_id: String,
    /// Runner that gets the job.
    pub runner_id: String,
    /// Text holding JSON.
    pub payload: Option<String>,
    /// W3C trace context.
    pub trace_context: Option<Map<String, Value>>,
    /// Reported error, cut to 10,000 characters.
    pub error_message: Option<String>,
    /// Reported result, text holding JSON.
    pub result_metadata: Option<String>,
    /// Date of submission.
    pub created_at: Timestamp,
    /// Date of the last change of the row.
    pub updated_at: Timestamp,
    /// Date of the first claim.
    pub started_at: Option<Timestamp>,
    /// Date of the last final report.
    pub completed_at: Option<Timestamp>,
    /// How often a poll answer held the job.
    pub deliveries: u32,
    /// Precise times.
    pub timing: Timing,
    /// Simulated time of the last change, for the sweep.
    pub(crate) updated_clock: Duration,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiJob<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    job_type: &'a str,
    status: JobStatus,
    resource_type: ResourceType,
    resource_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_context: Option<&'a Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<&'a str>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AdminJob<'a> {
    #[serde(flatten)]
    api: ApiJob<'a>,
    runner_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_metadata: Option<&'a str>,
    started_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    deliveries: u32,
    queued_us: Option<u128>,
    claim_latency_us: Option<u128>,
    running_us: Option<u128>,
}

impl Job {
    fn view(&self) -> ApiJob<'_> {
        ApiJob {
            id: &self.id,
            job_type: &self.job_type,
            status: self.status,
            resource_type: self.resource_type,
            resource_id: &self.resource_id,
            payload: self.payload.as_deref(),
            trace_context: self.trace_context.as_ref(),
            error_message: self.error_message.as_deref(),
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }

    /// The job as the runner sees it (`resultMetadata` is not part of it).
    pub fn api_json(&self) -> Value {
        // Serialising strings, enums and maps with string keys into a Value cannot fail.
        serde_json::to_value(self.view()).unwrap_or(Value::Null)
    }

    /// The job with runner, result and durations, for the admin interface.
    pub fn admin_json(&self) -> Value {
        let view = AdminJob {
            api: self.view(),
            runner_id: &self.runner_id,
            result_metadata: self.result_metadata.as_deref(),
            started_at: self.started_at,
            completed_at: self.completed_at,
            deliveries: self.deliveries,
            queued_us: self.timing.queued().map(|d| d.as_micros()),
            claim_latency_us: self.timing.claim_latency().map(|d| d.as_micros()),
            running_us: self.timing.running().map(|d| d.as_micros()),
        };
        serde_json::to_value(view).unwrap_or(Value::Null)
    }

    /// The payload as JSON; `None` when absent or not JSON.
    pub fn payload_json(&self) -> Option<Value> {
        serde_json::from_str(self.payload.as_deref()?).ok()
    }

    /// The result as JSON; `None` when absent or not JSON.
    pub fn result_json(&self) -> Option<Value> {
        serde_json::from_str(self.result_metadata.as_deref()?).ok()
    }
}
