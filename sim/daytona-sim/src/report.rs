//! Job status reports (PROTOCOL.md 2.4).

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clock::Timestamp;
use crate::job::{Job, JobStatus};
use crate::options::Dialect;
use crate::state::State;

/// Longest stored error message, in characters.
pub const MAX_ERROR_CHARS: usize = 10_000;
const CUT_MARK: &str = "\n\n... [truncated] ...\n\n";

/// A validated report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Update {
    pub status: JobStatus,
    pub error_message: Option<String>,
    pub result_metadata: Option<String>,
}

/// Why a report was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// 404.
    #[error("Job not found")]
    NotFound,
    /// 409.
    #[error("Invalid job status transition from {from} to {to} for job {id}")]
    Transition { id: String, from: &'static str, to: &'static str },
}

impl Update {
    /// Reads a body; the error is the text of the 400 answer. Unknown fields are ignored, `null` counts as absent.
    pub fn parse(body: &Value) -> Result<Self, String> {
        let mut problems = Vec::new();
        let status = body["status"].as_str().and_then(JobStatus::parse);
        if status.is_none() {
            problems
                .push("status must be one of the following values: PENDING, IN_PROGRESS, COMPLETED, FAILED".to_owned());
        }
        let mut text = |name: &str| match &body[name] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            _ => {
                problems.push(format!("{name} must be a string"));
                None
            }
        };
        let error_message = text("errorMessage");
        let result_metadata = text("resultMetadata");
        match status {
            Some(status) if problems.is_empty() => Ok(Self { status, error_message, result_metadata }),
            _ => Err(problems.join(", ")),
        }
    }
}

/// Whether v0.190 allows a change of status.
fn allowed(from: JobStatus, to: JobStatus) -> bool {
    use JobStatus::{Completed, Failed, InProgress, Pending};
    from == to || matches!((from, to), (Pending, InProgress | Failed) | (InProgress, Completed | Failed))
}

impl State {
    /// Applies a report of a runner; `None` stands for the API itself. Runs the completion handler for final states.
    pub fn report(
        &mut self,
        runner_id: Option<&str>,
        job_id: &str,
        update: Update,
        now: Duration,
    ) -> Result<Job, Error> {
        let index = *self.job_index.get(job_id).ok_or(Error::NotFound)?;
        let job = &self.jobs[index];
        if runner_id.is_some_and(|runner| runner != job.runner_id) {
            return Err(Error::NotFound);
        }
        if self.dialect == Dialect::V0190 && !allowed(job.status, update.status) {
            return Err(Error::Transition {
                id: job_id.to_owned(),
                from: job.status.as_str(),
                to: update.status.as_str(),
            });
        }
        let line = report_line(job, &update);
        self.event(line);
        self.apply(index, update, now);
        if self.jobs[index].status.is_terminal() {
            self.complete(index, now);
        }
        Ok(self.jobs[index].clone())
    }

    fn apply(&mut self, index: usize, update: Update, now: Duration) {
        let cut = self.dialect == Dialect::V0190;
        let job = &mut self.jobs[index];
        let before = (job.status, job.error_message.clone(), job.result_metadata.clone(), job.started_at);
        let date = Timestamp::now();
        job.status = update.status;
        if let Some(text) = update.error_message {
            job.error_message = Some(if cut { truncate(&text) } else { text });
        }
        if let Some(text) = update.result_metadata {
            job.result_metadata = Some(text);
        }
        if update.status == JobStatus::InProgress {
            job.started_at.get_or_insert(date);
            job.timing.claimed.get_or_insert_with(Instant::now);
        }
        if update.status.is_terminal() {
            job.completed_at = Some(date);
            job.timing.finished.get_or_insert_with(Instant::now);
        }
        let after = (job.status, job.error_message.clone(), job.result_metadata.clone(), job.started_at);
        // A save that changes no column writes no row, so a bare heartbeat does not move updatedAt (PROTOCOL.md 2.5).
        if before != after || update.status.is_terminal() {
            job.updated_at = date;
            job.updated_clock = now;
        }
        self.reindex(index);
    }

    fn reindex(&mut self, index: usize) {
        let job = &self.jobs[index];
        if job.status == JobStatus::Pending {
            self.pending.insert(index);
        } else {
            self.pending.remove(&index);
        }
        // What counts for the uniqueness rule is the completion date, which is never taken back.
        if job.completed_at.is_some() {
            self.unfinished.remove(&index);
        }
    }
}

fn report_line(job: &Job, update: &Update) -> String {
    let mut line = format!("job {} {} {} -> {}", job.id, job.job_type, job.status.as_str(), update.status.as_str());
    if let Some(text) = &update.error_message {
        line.push_str(": ");
        line.extend(text.chars().take(200));
    }
    line
}

/// Cuts a long message: its first line, a mark, and as much of its end as fits.
fn truncate(text: &str) -> String {
    let length = text.chars().count();
    if length <= MAX_ERROR_CHARS {
        return text.to_owned();
    }
    let first = text.split('\n').next().unwrap_or(text);
    let used = first.chars().count() + CUT_MARK.chars().count();
    if used >= MAX_ERROR_CHARS {
        return first.chars().take(MAX_ERROR_CHARS).collect();
    }
    let tail = text.chars().skip(length - (MAX_ERROR_CHARS - used));
    first.chars().chain(CUT_MARK.chars()).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn transition_table() {
        use JobStatus::{Completed, Failed, InProgress, Pending};
        let all = [Pending, InProgress, Completed, Failed];
        let good = [(Pending, InProgress), (Pending, Failed), (InProgress, Completed), (InProgress, Failed)];
        for from in all {
            for to in all {
                assert_eq!(allowed(from, to), from == to || good.contains(&(from, to)));
            }
        }
    }

    #[test]
    fn bodies_are_checked() {
        let good = Update::parse(&json!({"status": "FAILED", "errorMessage": "", "x": 1})).unwrap();
        assert_eq!(good.error_message, None);
        for bad in [
            json!({}),
            json!({"status": "DONE"}),
            json!({"status": 1}),
            json!({"status": "COMPLETED", "resultMetadata": {"a": 1}}),
            json!({"status": "FAILED", "errorMessage": 7}),
        ] {
            assert!(Update::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn long_messages_keep_first_line_and_tail() {
        let long = format!("head\n{}tail", "x".repeat(20_000));
        let cut = truncate(&long);
        assert_eq!(cut.chars().count(), MAX_ERROR_CHARS);
        assert!(cut.starts_with("head\n\n... ") && cut.ends_with("xtail"));
        assert_eq!(truncate(&"y".repeat(12_000)).len(), MAX_ERROR_CHARS);
        assert_eq!(truncate("short"), "short");
    }
}
