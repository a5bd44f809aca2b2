//! What the API does by itself as time passes (PROTOCOL.md 2.5 and 3).

use std::time::Duration;

use crate::job::{JobStatus, job_type};
use crate::options::Dialect;
use crate::report::Update;
use crate::runner::{RunnerState, UNRESPONSIVE_AFTER};
use crate::sandbox::SandboxState;
use crate::state::{Core, State};

/// Interval of the staleness sweep.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Interval of the check for silent runners.
pub(crate) const CHECK_EVERY: Duration = Duration::from_secs(10);

impl Core {
    /// Does what has become due on the simulated clock. Cheap when nothing has.
    pub fn tick(&self) {
        let now = self.clock.now();
        let due = {
            let state = self.lock();
            (now >= state.next_sweep, now >= state.next_check)
        };
        if due == (false, false) {
            return;
        }
        self.change(|state| {
            if due.0 {
                state.next_sweep = now + SWEEP_EVERY;
                state.sweep_jobs(now);
                state.sweep_sandboxes(now);
            }
            if due.1 {
                state.next_check = now + CHECK_EVERY;
                state.check_runners(now);
            }
        });
    }
}

/// Minutes without a change after which a job in progress is given up.
pub(crate) fn stale_minutes(dialect: Dialect, kind: &str) -> u64 {
    match (dialect, kind) {
        (Dialect::Branch, _) => 10,
        (_, job_type::CREATE_SANDBOX) => 30,
        (
            _,
            job_type::BUILD_SNAPSHOT | job_type::CREATE_BACKUP | job_type::PULL_SNAPSHOT | job_type::SNAPSHOT_SANDBOX,
        ) => 120,
        _ => 10,
    }
}

impl State {
    /// Fails jobs that nobody has touched for too long.
    pub fn sweep_jobs(&mut self, now: Duration) {
        let stale: Vec<(String, u64)> = self
            .unfinished
            .iter()
            .map(|&index| &self.jobs[index])
            .filter(|job| job.status == JobStatus::InProgress)
            .filter_map(|job| {
                let minutes = stale_minutes(self.dialect, &job.job_type);
                let age = now.saturating_sub(job.updated_clock);
                (age > Duration::from_secs(minutes * 60)).then(|| (job.id.clone(), minutes))
            })
            .collect();
        for (id, minutes) in stale {
            let update = Update {
                status: JobStatus::Failed,
                error_message: Some(format!("Job timed out - no update received for {minutes} minutes")),
                result_metadata: None,
            };
            if let Err(error) = self.report(None, &id, update, now) {
                self.event(format!("sweep of job {id} failed: {error}"));
            }
        }
    }

    /// Puts sandboxes into error that have been on their way for too long.
    fn sweep_sandboxes(&mut self, now: Duration) {
        let late: Vec<(String, &'static str)> = self
            .sandboxes
            .values()
            .filter_map(|row| {
                let (limit, reason) = row.state.patience()?;
                let age = now.saturating_sub(row.state_since);
                (age > limit).then(|| (row.id.clone(), reason))
            })
            .collect();
        for (id, reason) in late {
            self.update_sandbox(&id, now, |row| {
                row.state = SandboxState::Error;
                row.error_reason = Some(reason.to_owned());
                row.recoverable = false;
            });
        }
    }

    fn check_runners(&mut self, now: Duration) {
        let start = self.service_start;
        let mut lines = Vec::new();
        for runner in &mut self.runners {
            let Some(checked) = runner.last_checked_clock else {
                continue;
            };
            let silent = now.saturating_sub(checked.max(start)) > UNRESPONSIVE_AFTER;
            if runner.state == RunnerState::Ready && silent {
                runner.check(RunnerState::Unresponsive, now);
                lines.push(format!("runner {} is unresponsive", runner.id));
            }
        }
        for line in lines {
            self.event(line);
        }
    }
}
