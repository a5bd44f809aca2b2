//! What the API does to a sandbox or snapshot when a job is reported as finished (PROTOCOL.md 2.6).

use std::time::Duration;

use serde_json::Value;

use crate::job::{Job, JobStatus, ResourceType, job_type};
use crate::sandbox::{BackupState, DesiredState, Sandbox, SandboxState, Snapshot};
use crate::state::State;

use DesiredState as D;
use SandboxState as S;

/// The message of a failed job, split as the API does it.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    reason: String,
    recoverable: bool,
}

/// Splits an error message into reason and recoverability. `None` for an absent message: there the API's handler trips
/// over the missing text and changes nothing at all.
fn failure(job: &Job, default: &str) -> Option<Failure> {
    let message = job.error_message.as_deref()?;
    let (reason, recoverable) = match serde_json::from_str::<Value>(message) {
        Ok(Value::Null) | Err(_) => (message.to_owned(), false),
        Ok(json) => {
            (json["errorReason"].as_str().unwrap_or("").to_owned(), json["recoverable"].as_bool().unwrap_or(false))
        }
    };
    let reason = if reason.is_empty() { default.to_owned() } else { reason };
    Some(Failure { reason, recoverable })
}

impl State {
    /// Runs the completion handler of a job with a final status.
    pub fn complete(&mut self, index: usize, now: Duration) {
        let job = self.jobs[index].clone();
        let id = job.resource_id.as_str();
        match job.job_type.as_str() {
            job_type::FORK_SANDBOX | job_type::CLONE_SANDBOX => self.complete_fork(&job, now),
            job_type::SNAPSHOT_SANDBOX | job_type::CREATE_SANDBOX_SNAPSHOT => {
                self.complete_sandbox_snapshot(&job, now);
            }
            job_type::PULL_SNAPSHOT | job_type::BUILD_SNAPSHOT => self.complete_snapshot(&job),
            job_type::REMOVE_SNAPSHOT if job.status == JobStatus::Completed => {
                if let Some(row) = self.snapshots.get_mut(id) {
                    row.runner_state = None;
                }
            }
            _ if job.resource_type == ResourceType::Sandbox => {
                self.update_sandbox(id, now, |row| complete_sandbox(row, &job));
            }
            _ => {}
        }
        if job.job_type == job_type::RECOVER_SANDBOX {
            self.note_recovered(&job);
        }
    }

    /// The API would queue a START now; the test decides about it, so only a line is written.
    fn note_recovered(&mut self, job: &Job) {
        let wants_start = (self.sandboxes.get(&job.resource_id))
            .is_some_and(|row| row.state == S::Stopped && row.desired == D::Started);
        if wants_start && job.status == JobStatus::Completed {
            self.event(format!("sandbox {} waits for a START", job.resource_id));
        }
    }

    fn complete_fork(&mut self, job: &Job, now: Duration) {
        let payload = job.payload_json().unwrap_or(Value::Null);
        let Some(source) = payload["sourceSandboxId"].as_str() else {
            return;
        };
        let resting = self.sandboxes.get(source).map(|row| row.desired.resting_state());
        let Some(Some(resting)) = resting else {
            return;
        };
        self.update_sandbox(source, now, |row| row.state = resting);
        self.update_sandbox(&job.resource_id, now, |row| {
            if row.desired == D::Started {
                finish_start(row, job, "Failed to fork sandbox");
            }
        });
    }

    fn complete_sandbox_snapshot(&mut self, job: &Job, now: Duration) {
        let Some(row) = self.sandboxes.get(&job.resource_id) else {
            return;
        };
        let (S::Snapshotting, Some(resting)) = (row.state, row.desired.resting_state()) else {
            return;
        };
        self.update_sandbox(&job.resource_id, now, |row| row.state = resting);
        if job.status == JobStatus::Completed
            && let Some(snapshot) = snapshot_of_sandbox(job)
        {
            self.event(format!("snapshot {} is active", snapshot.reference));
            self.snapshots.insert(snapshot.reference.clone(), snapshot);
        }
    }

    fn complete_snapshot(&mut self, job: &Job) {
        let Some(row) = self.snapshots.get_mut(&job.resource_id) else {
            return;
        };
        let is_pull = job.job_type == job_type::PULL_SNAPSHOT;
        let initial = matches!((row.state, is_pull), ("pulling", true) | ("building", _));
        if job.status == JobStatus::Completed {
            row.runner_state = Some("ready");
            row.error_reason = None;
            let result = job.result_json().unwrap_or(Value::Null);
            row.size_gb = result["sizeGB"].as_f64();
            row.hash = result["hash"].as_str().map(str::to_owned);
            if initial {
                row.state = "active";
            }
        } else {
            let default = if is_pull { "pull" } else { "build" };
            let reason = job.error_message.clone();
            row.error_reason = Some(reason.unwrap_or(format!("Failed to {default} snapshot")));
            row.runner_state = Some("error");
            // A failed pull does not touch a snapshot that is being built.
            if initial && (!is_pull || row.state == "pulling") {
                row.state = "error";
            }
        }
        let line = format!("snapshot {} is {}", row.reference, row.state);
        self.event(line);
    }
}

fn complete_sandbox(row: &mut Sandbox, job: &Job) {
    match job.job_type.as_str() {
        job_type::CREATE_SANDBOX if row.desired == D::Started => {
            finish_start(row, job, "Failed to create sandbox");
        }
        job_type::START_SANDBOX if row.desired == D::Started => {
            finish_start(row, job, "Failed to start sandbox");
        }
        job_type::STOP_SANDBOX if row.desired == D::Stopped => finish_stop(row, job),
        job_type::PAUSE_SANDBOX if row.state == S::Pausing => {
            finish(row, job, S::Paused, "Failed to pause sandbox");
        }
        job_type::DESTROY_SANDBOX => complete_destroy(row, job),
        job_type::RESIZE_SANDBOX if row.state == S::Resizing => complete_resize(row, job),
        job_type::RECOVER_SANDBOX => complete_recover(row, job),
        job_type::CREATE_BACKUP => complete_backup(row, job),
        _ => {}
    }
}

/// Puts a sandbox into its new state, or into error. Returns true when the job went well.
fn finish(row: &mut Sandbox, job: &Job, state: SandboxState, default: &str) -> bool {
    if job.status == JobStatus::Completed {
        row.state = state;
        row.error_reason = None;
        return true;
    }
    if let Some(failure) = failure(job, default) {
        row.state = S::Error;
        row.error_reason = Some(failure.reason);
        row.recoverable = failure.recoverable;
    }
    false
}

fn finish_stop(row: &mut Sandbox, job: &Job) {
    if finish(row, job, S::Stopped, "Failed to stop sandbox") {
        reset_backup(row);
    }
}

fn finish_start(row: &mut Sandbox, job: &Job, default: &str) {
    if !finish(row, job, S::Started, default) {
        return;
    }
    forget_finished_backup(row);
    let result = job.result_json().unwrap_or(Value::Null);
    if let Some(version) = result["daemonVersion"].as_str().filter(|v| !v.is_empty()) {
        row.daemon_version = Some(version.to_owned());
    }
}

fn forget_finished_backup(row: &mut Sandbox) {
    if matches!(row.backup_state, BackupState::Error | BackupState::Completed) {
        reset_backup(row);
    }
}

fn reset_backup(row: &mut Sandbox) {
    row.backup_state = BackupState::None;
    row.backup_snapshot = None;
}

fn complete_destroy(row: &mut Sandbox, job: &Job) {
    if row.desired == D::Destroyed {
        finish(row, job, S::Destroyed, "Failed to destroy sandbox");
    } else if row.desired == D::Archived && row.backup_state == BackupState::Completed {
        row.state = S::Archived;
        row.error_reason = None;
    }
}

fn complete_resize(row: &mut Sandbox, job: &Job) {
    let Some(resting) = row.desired.resting_state() else {
        return;
    };
    row.state = resting;
    if job.status == JobStatus::Completed {
        let payload = job.payload_json().unwrap_or(Value::Null);
        row.cpu = payload["cpu"].as_f64().unwrap_or(row.cpu);
        row.memory = payload["memory"].as_f64().unwrap_or(row.memory);
        row.disk = payload["disk"].as_f64().unwrap_or(row.disk);
    }
}

fn complete_recover(row: &mut Sandbox, job: &Job) {
    let payload = job.payload_json().unwrap_or(Value::Null);
    let skip_start = payload["skipStart"].as_bool().unwrap_or(true);
    let expected = if skip_start { D::Stopped } else { D::Started };
    if row.desired == expected && finish(row, job, S::Stopped, "Failed to recover sandbox") {
        row.recoverable = false;
        forget_finished_backup(row);
    }
}

fn complete_backup(row: &mut Sandbox, job: &Job) {
    let payload = job.payload_json().unwrap_or(Value::Null);
    let made = payload["snapshot"].as_str().filter(|text| !text.is_empty());
    let superseded = |made: &str| row.backup_snapshot.as_deref().is_some_and(|now| now != made);
    if made.is_some_and(superseded) {
        return;
    }
    if job.status == JobStatus::Completed {
        if row.backup_state != BackupState::Completed {
            row.backup_state = BackupState::Completed;
            row.backup_error_reason = None;
            row.backup_snapshot = row.backup_snapshot.take().or(made.map(str::to_owned));
        }
    } else if let Some(failure) = failure(job, "") {
        row.backup_state = BackupState::Error;
        row.recoverable = failure.recoverable && row.desired == D::Archived;
        row.backup_error_reason = Some(failure.reason);
    }
}

/// The snapshot row made from a finished SNAPSHOT_SANDBOX or CREATE_SANDBOX_SNAPSHOT.
fn snapshot_of_sandbox(job: &Job) -> Option<Snapshot> {
    let payload = job.payload_json()?;
    let result = job.result_json().unwrap_or(Value::Null);
    let name = payload["name"].as_str()?.to_owned();
    let text = |names: &[&str]| {
        let found = names.iter().find_map(|name| result[*name].as_str());
        found.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let hash = text(&["hash", "Hash"]);
    let reference = if job.job_type == job_type::CREATE_SANDBOX_SNAPSHOT {
        text(&["snapshotPath"])
    } else {
        let built = hash.as_deref().map(|hash| built_ref(&payload, hash));
        text(&["ref", "Ref"]).or(built)
    };
    let size = [&result["sizeGB"], &result["size_gb"]]
        .into_iter()
        .find(|value| !value.is_null())
        .and_then(|value| value.as_f64().or_else(|| value.as_str()?.parse().ok()));
    Some(Snapshot {
        reference: reference.unwrap_or(name.clone()),
        name,
        state: "active",
        runner_state: Some("ready"),
        error_reason: None,
        size_gb: size,
        hash,
    })
}

fn built_ref(payload: &Value, hash: &str) -> String {
    let hash = hash.strip_prefix("sha256:").unwrap_or(hash);
    let registry = &payload["registry"];
    match registry["url"].as_str().filter(|url| !url.is_empty()) {
        None => format!("daytona-{hash}"),
        Some(url) => {
            let project = registry["project"].as_str().filter(|text| !text.is_empty());
            format!("{url}/{}/daytona-{hash}:daytona", project.unwrap_or("daytona"))
        }
    }
}
