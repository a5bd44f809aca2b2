//! The routes below `/api/jobs` (PROTOCOL.md 2).

use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use serde_json::{Value, json};

use super::reply::{Failure, json_reply, poll_reply};
use super::{Call, ok};
use crate::job::{Job, JobStatus};
use crate::options::DisconnectMode;
use crate::report::{self, Update};
use crate::state::Core;

/// Counts a poll for as long as the server works on it.
struct OpenPoll<'a>(&'a Core);

impl<'a> OpenPoll<'a> {
    fn new(core: &'a Core) -> Self {
        core.change(|state| {
            state.open_polls += 1;
            state.most_open_polls = state.most_open_polls.max(state.open_polls);
        });
        Self(core)
    }
}

impl Drop for OpenPoll<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.open_polls -= 1);
    }
}

impl Call {
    /// `GET /jobs/poll`
    pub(super) async fn poll(&self, runner: &str) -> Result<HttpResponse, Failure> {
        // Zero and anything that is no number mean the default; a negative timeout makes the wait fail at once.
        let number = |name: &str, default: f64| {
            let given = self.query(name).and_then(|text| text.parse::<f64>().ok());
            given.filter(|n| *n != 0.0 && !n.is_nan()).unwrap_or(default)
        };
        let timeout = number("timeout", 30.0).min(60.0);
        let limit = number("limit", 10.0).min(100.0);
        if limit < 0.0 {
            return Err(Failure::new(500, "An unexpected error occurred."));
        }
        let wait = Duration::try_from_secs_f64(timeout).unwrap_or(Duration::ZERO);
        let jobs = self.wait_for_jobs(runner, limit as usize, wait).await;
        let list: Vec<Value> = jobs.iter().map(Job::api_json).collect();
        let ids = jobs.into_iter().map(|job| job.id).collect();
        Ok(poll_reply(&self.shared.core, ids, &json!({ "jobs": list })))
    }

    async fn wait_for_jobs(&self, runner: &str, limit: usize, wait: Duration) -> Vec<Job> {
        let core = &self.shared.core;
        let _open = OpenPoll::new(core);
        let deadline = Instant::now() + wait;
        let mut changed = core.subscribe();
        let gone = async {
            match (&self.conn, core.options.on_disconnect) {
                (Some(conn), DisconnectMode::Abort) => conn.closed().await,
                _ => std::future::pending().await,
            }
        };
        tokio::pin!(gone);
        loop {
            changed.borrow_and_update();
            let jobs = core.claim(runner, limit);
            if !jobs.is_empty() || Instant::now() >= deadline {
                return jobs;
            }
            tokio::select! {
                biased;
                () = &mut gone => return Vec::new(),
                // The sender lives in the core, so this ends only with a change.
                _ = changed.changed() => {}
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
        }
    }

    /// `GET /jobs`
    pub(super) fn list_jobs(&self, runner: &str) -> Result<HttpResponse, Failure> {
        let page = self.page_number("page", 1, usize::MAX)?;
        let limit = self.page_number("limit", 100, 200)?;
        let status = match self.query("status") {
            None => None,
            Some(text) => Some(JobStatus::parse(&text).ok_or_else(|| {
                Failure::new(400, "status must be one of the following values: PENDING, IN_PROGRESS, COMPLETED, FAILED")
            })?),
        };
        let state = self.shared.core.lock();
        let fits = |job: &&Job| job.runner_id == runner && status.is_none_or(|s| s == job.status);
        let all: Vec<&Job> = state.jobs.iter().rev().filter(fits).collect();
        let skip = (page - 1).saturating_mul(limit);
        let items: Vec<Value> = all.iter().skip(skip).take(limit).map(|job| job.api_json()).collect();
        let pages = all.len().div_ceil(limit);
        ok(&json!({"items": items, "total": all.len(), "page": page, "totalPages": pages}))
    }

    fn page_number(&self, name: &str, default: usize, max: usize) -> Result<usize, Failure> {
        let Some(text) = self.query(name) else {
            return Ok(default);
        };
        match text.parse::<usize>() {
            Ok(number) if (1..=max).contains(&number) => Ok(number),
            Ok(0) => Err(Failure::new(400, format!("{name} must not be less than 1"))),
            Ok(_) => Err(Failure::new(400, format!("{name} must not be greater than {max}"))),
            Err(_) => Err(Failure::new(400, format!("{name} must be an integer number of at least 1"))),
        }
    }

    /// `GET /jobs/{id}`
    pub(super) fn get_job(&self, runner: &str) -> Result<HttpResponse, Failure> {
        let state = self.shared.core.lock();
        match state.job(&self.id).filter(|job| job.runner_id == runner) {
            Some(job) => ok(&job.api_json()),
            None => Err(Failure::new(404, "Job not found")),
        }
    }

    /// `POST /jobs/{id}/status`
    pub(super) fn post_status(&self, runner: &str, body: &Value) -> Result<HttpResponse, Failure> {
        let core = &self.shared.core;
        // Access is decided before the body is validated.
        let known = core.lock().job(&self.id).map(|job| job.runner_id == runner);
        if known != Some(true) {
            return Err(Failure::new(404, report::Error::NotFound.to_string()));
        }
        let update = Update::parse(body).map_err(|text| Failure::new(400, text))?;
        let now = core.clock.now();
        let result = core.change(|state| state.report(Some(runner), &self.id, update, now));
        let job = result.map_err(|error| {
            let status = match error {
                report::Error::NotFound => 404,
                report::Error::Transition { .. } => 409,
            };
            Failure::new(status, error.to_string())
        })?;
        Ok(json_reply(201, &job.api_json()))
    }
}
