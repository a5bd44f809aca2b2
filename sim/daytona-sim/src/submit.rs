//! Making jobs, with what the API does to the resource's row at that moment (PROTOCOL.md 2.1, 2.6, 5).

use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::job::{Job, JobStatus, ResourceType, Timing, job_type};
use crate::options::Dialect;
use crate::payload::Payload;
use crate::runner::RunnerState;
use crate::sandbox::{BackupState, DesiredState, Sandbox, SandboxState, Snapshot};
use crate::state::{Core, State, describe};

/// A job to be made.
#[derive(Debug, Clone)]
pub struct JobRequest {
    /// One of [`job_type`], or any other text.
    pub job_type: String,
    /// Kind of resource.
    pub resource_type: ResourceType,
    /// Id of the resource.
    pub resource_id: String,
    /// Payload.
    pub payload: Payload,
    /// W3C trace context.
    pub trace_context: Option<Map<String, Value>>,
    /// Runner that gets the job; the first one by default.
    pub runner_id: Option<String>,
}

/// Why a job was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An unfinished job of the resource exists.
    #[error("cannot submit {job_type} for {resource_id}: job {other} of the same resource is unfinished")]
    Conflict {
        /// Type that was to be submitted.
        job_type: String,
        /// Resource.
        resource_id: String,
        /// Unfinished job.
        other: String,
    },
    /// No runner has this id.
    #[error("cannot submit {job_type} for {resource_id}: no runner {runner_id}")]
    UnknownRunner {
        /// Type that was to be submitted.
        job_type: String,
        /// Resource.
        resource_id: String,
        /// Runner that was named.
        runner_id: String,
    },
    /// The runner is not READY and the simulator was told to mind that.
    #[error("cannot submit {job_type} for {resource_id}: runner {runner_id} is not ready")]
    NotReady {
        /// Type that was to be submitted.
        job_type: String,
        /// Resource.
        resource_id: String,
        /// Runner.
        runner_id: String,
    },
}

impl Core {
    /// Makes a job; returns its id. Polls are woken.
    pub fn submit(&self, request: JobRequest) -> Result<String, Error> {
        let now = self.clock.now();
        let require_ready = self.options.require_ready;
        self.change(|state| state.submit(request, require_ready, now))
    }
}

impl State {
    fn submit(&mut self, request: JobRequest, require_ready: bool, now: Duration) -> Result<String, Error> {
        let runner_id = self.target_runner(&request, require_ready)?;
        self.check_unique(&request, &runner_id)?;
        let job = new_job(request, runner_id, now);
        let id = job.id.clone();
        self.event(format!("job {id} {} for {} submitted", job.job_type, job.resource_id));
        self.prepare(&job, now);
        let index = self.jobs.len();
        self.jobs.push(job);
        self.job_index.insert(id.clone(), index);
        self.pending.insert(index);
        self.unfinished.insert(index);
        Ok(id)
    }

    fn target_runner(&self, request: &JobRequest, require_ready: bool) -> Result<String, Error> {
        let runner = match &request.runner_id {
            None => self.runners.first(),
            Some(id) => self.runners.iter().find(|runner| runner.id == *id),
        };
        let Some(runner) = runner else {
            return Err(Error::UnknownRunner {
                job_type: request.job_type.clone(),
                resource_id: request.resource_id.clone(),
                runner_id: request.runner_id.clone().unwrap_or_default(),
            });
        };
        if require_ready && runner.state != RunnerState::Ready {
            return Err(Error::NotReady {
                job_type: request.job_type.clone(),
                resource_id: request.resource_id.clone(),
                runner_id: runner.id.clone(),
            });
        }
        Ok(runner.id.clone())
    }

    /// The database rule on unfinished jobs of one resource.
    fn check_unique(&self, request: &JobRequest, runner_id: &str) -> Result<(), Error> {
        let is_backup = |text: &str| text == job_type::CREATE_BACKUP;
        let clash = self.unfinished.iter().map(|&i| &self.jobs[i]).find(|job| {
            let same_resource = job.resource_type == request.resource_type && job.resource_id == request.resource_id;
            let same_slot = self.dialect == Dialect::Branch
                || (job.runner_id == runner_id && is_backup(&job.job_type) == is_backup(&request.job_type));
            same_resource && same_slot
        });
        match clash {
            None => Ok(()),
            Some(other) => Err(Error::Conflict {
                job_type: request.job_type.clone(),
                resource_id: request.resource_id.clone(),
                other: other.id.clone(),
            }),
        }
    }

    /// Puts the resource's row into the state that the API gives it when it orders the job.
    fn prepare(&mut self, job: &Job, now: Duration) {
        match job.resource_type {
            ResourceType::Sandbox if job.job_type == job_type::BUILD_SNAPSHOT => {
                self.prepare_snapshot(job);
            }
            ResourceType::Sandbox => self.prepare_sandbox(job, now),
            ResourceType::Snapshot => self.prepare_snapshot(job),
            ResourceType::Backup => {}
        }
    }

    fn prepare_sandbox(&mut self, job: &Job, now: Duration) {
        let payload = job.payload_json().unwrap_or(Value::Null);
        self.ensure_sandbox(job, &payload, now);
        let forks = matches!(job.job_type.as_str(), job_type::FORK_SANDBOX | job_type::CLONE_SANDBOX);
        if forks && let Some(source) = payload["sourceSandboxId"].as_str() {
            self.update_sandbox(source, now, |row| row.state = SandboxState::Forking);
        }
        self.update_sandbox(&job.resource_id, now, |row| {
            enter_transition(row, &job.job_type, &payload);
        });
    }

    /// A job for a sandbox that the simulator has never heard of implies its row.
    fn ensure_sandbox(&mut self, job: &Job, payload: &Value, now: Duration) {
        use SandboxState as S;
        let creates = matches!(
            job.job_type.as_str(),
            job_type::CREATE_SANDBOX | job_type::FORK_SANDBOX | job_type::CLONE_SANDBOX
        );
        if !creates && self.sandboxes.contains_key(&job.resource_id) {
            return;
        }
        let restored = creates && (self.sandboxes.get(&job.resource_id)).is_some_and(|row| row.state == S::Archived);
        let state = match job.job_type.as_str() {
            _ if restored => S::Restoring,
            _ if creates => S::Creating,
            job_type::START_SANDBOX => S::Stopped,
            job_type::RECOVER_SANDBOX => S::Error,
            _ => S::Started,
        };
        let mut row = Sandbox::new(&job.resource_id, &job.runner_id, state, now);
        let source = payload["sourceSandboxId"].as_str().and_then(|source| self.sandboxes.get(source));
        if let Some(source) = source.filter(|_| creates) {
            inherit(&mut row, source);
        }
        fill_from_payload(&mut row, payload);
        row.settle();
        let text = describe(&row);
        self.sandboxes.insert(row.id.clone(), row);
        self.event(text);
    }

    fn prepare_snapshot(&mut self, job: &Job) {
        let (state, runner_state) = match job.job_type.as_str() {
            job_type::PULL_SNAPSHOT => ("pulling", "pulling_snapshot"),
            job_type::BUILD_SNAPSHOT => ("building", "building_snapshot"),
            job_type::REMOVE_SNAPSHOT => ("active", "removing"),
            _ => return,
        };
        let reference = job.resource_id.clone();
        let row = self.snapshots.entry(reference.clone()).or_insert_with(|| Snapshot {
            name: reference.clone(),
            reference,
            state,
            runner_state: None,
            error_reason: None,
            size_gb: None,
            hash: None,
        });
        row.runner_state = Some(runner_state);
        if row.state == "error" {
            row.state = state;
        }
    }
}

fn new_job(request: JobRequest, runner_id: String, now: Duration) -> Job {
    let date = Timestamp::now();
    Job {
        id: Uuid::new_v4().to_string(),
        job_type: request.job_type,
        status: JobStatus::Pending,
        resource_type: request.resource_type,
        resource_id: request.resource_id,
        runner_id,
        payload: request.payload.into_text(),
        trace_context: request.trace_context,
        error_message: None,
        result_metadata: None,
        created_at: date,
        updated_at: date,
        started_at: None,
        completed_at: None,
        deliveries: 0,
        timing: Timing { submitted: Instant::now(), claimed: None, answered: None, finished: None },
        updated_clock: now,
    }
}

/// A fork has what its source has (PROTOCOL.md 5).
fn inherit(row: &mut Sandbox, source: &Sandbox) {
    (row.cpu, row.memory, row.disk) = (source.cpu, source.memory, source.disk);
    row.snapshot.clone_from(&source.snapshot);
    row.sandbox_class.clone_from(&source.sandbox_class);
    row.env = source.env.clone();
    row.network = source.network.clone();
}

/// Takes from a CREATE payload what the row shows.
fn fill_from_payload(row: &mut Sandbox, payload: &Value) {
    let number = |name: &str, old: f64| payload[name].as_f64().unwrap_or(old);
    row.cpu = number("cpuQuota", row.cpu);
    row.memory = number("memoryQuota", row.memory);
    row.disk = number("storageQuota", row.disk);
    let text = |name: &str| payload[name].as_str().map(str::to_owned);
    row.name = text("name").unwrap_or(row.id.clone());
    row.snapshot = text("snapshot").or(row.snapshot.take());
    row.sandbox_class = text("sandboxClass").unwrap_or(row.sandbox_class.clone());
    if payload["env"].is_object() {
        row.env = payload["env"].clone();
    }
    store_network(row, payload);
}

fn store_network(row: &mut Sandbox, payload: &Value) {
    for name in ["networkBlockAll", "networkAllowList", "domainAllowList"] {
        if let Some(value) = payload.get(name) {
            row.network[name] = value.clone();
        }
    }
}

fn enter_transition(row: &mut Sandbox, job: &str, payload: &Value) {
    use DesiredState as D;
    use SandboxState as S;
    match job {
        job_type::START_SANDBOX => {
            let resumes = row.state == S::Paused;
            row.state = if resumes { S::Resuming } else { S::Starting };
            row.desired = D::Started;
        }
        job_type::STOP_SANDBOX => (row.state, row.desired) = (S::Stopping, D::Stopped),
        job_type::PAUSE_SANDBOX => (row.state, row.desired) = (S::Pausing, D::Paused),
        job_type::DESTROY_SANDBOX if row.desired == D::Archived => row.state = S::Archiving,
        job_type::DESTROY_SANDBOX => (row.state, row.desired) = (S::Destroying, D::Destroyed),
        job_type::RESIZE_SANDBOX => row.state = S::Resizing,
        job_type::SNAPSHOT_SANDBOX | job_type::CREATE_SANDBOX_SNAPSHOT => {
            row.state = S::Snapshotting;
        }
        job_type::RECOVER_SANDBOX => {
            let skip_start = payload["skipStart"].as_bool().unwrap_or(true);
            row.desired = if skip_start { D::Stopped } else { D::Started };
        }
        job_type::CREATE_BACKUP => {
            row.backup_state = BackupState::InProgress;
            row.backup_snapshot = payload["snapshot"].as_str().map(str::to_owned);
        }
        job_type::UPDATE_SANDBOX_NETWORK_SETTINGS => store_network(row, payload),
        _ => {}
    }
}
