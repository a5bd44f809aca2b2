//! The routes below `/api/runners` and `/api/sandbox`, and the record of what was received (PROTOCOL.md 3, 4).

use actix_web::HttpResponse;
use serde_json::{Value, json};

use super::reply::{Failure, empty_reply};
use super::{Call, ok};
use crate::clock::Timestamp;
use crate::faults::Route;
use crate::runner::{self, Runner};
use crate::state::{Healthcheck, Report, StatePut, word};
use crate::sync::{self, StateUpdate};

impl Call {
    /// `POST /runners/healthcheck`
    pub(super) fn healthcheck(&self, id: &str, body: &Value) -> Result<HttpResponse, Failure> {
        let core = &self.shared.core;
        let now = core.clock.now();
        let result = core.change(|state| {
            let Some(runner) = state.runners.iter_mut().find(|runner| runner.id == id) else {
                return Ok(());
            };
            let before = (runner.state, runner.availability_score);
            let result = runner.healthcheck(body, now);
            if (runner.state, runner.availability_score) != before {
                let line = describe(runner);
                state.event(line);
            }
            result
        });
        match result {
            Ok(()) => Ok(empty_reply(201)),
            Err(runner::Error::Invalid(text)) => Err(Failure::new(400, text)),
            Err(error @ runner::Error::Unstorable(_)) => {
                core.change(|state| state.event(format!("healthcheck of {id}: {error}")));
                Err(Failure::new(500, "An unexpected error occurred."))
            }
        }
    }

    /// `GET /runners/me`
    pub(super) fn me(&self, id: &str) -> Result<HttpResponse, Failure> {
        let state = self.shared.core.lock();
        match state.runners.iter().find(|runner| runner.id == id) {
            Some(runner) => ok(&runner_json(runner)),
            None => Err(Failure::new(404, "Runner not found")),
        }
    }

    /// `GET /sandbox/for-runner`
    pub(super) fn for_runner(&self, runner: &str) -> Result<HttpResponse, Failure> {
        let states = self.query("states");
        let skip = self.query("skipReconcilingSandboxes").as_deref() == Some("true");
        let state = self.shared.core.lock();
        let list = state.for_runner(runner, states.as_deref(), skip);
        ok(&Value::Array(list.map_err(refused)?))
    }

    /// `PUT /sandbox/{id}/state`
    pub(super) fn put_state(&self, runner: &str, body: &Value) -> Result<HttpResponse, Failure> {
        let core = &self.shared.core;
        core.lock().check_owner(runner, &self.id).map_err(refused)?;
        let update = StateUpdate::parse(body).map_err(refused)?;
        let now = core.clock.now();
        core.change(|state| state.put_state(runner, &self.id, update, now)).map_err(refused)?;
        Ok(empty_reply(200))
    }

    /// Remembers a request whose body tests look at.
    pub(super) fn record(&self, http_status: u16, fault: Option<&'static str>) {
        let at = Timestamp::now();
        let body: Value = serde_json::from_slice(&self.body).unwrap_or(Value::Null);
        let id = self.id.clone();
        match self.route {
            Route::Status => self.shared.core.change(|state| {
                state.reports.push(Report { at, job_id: id, body, http_status, fault });
            }),
            Route::Healthcheck => self.shared.core.change(|state| {
                state.healthchecks.push(Healthcheck { at, body, http_status, fault });
            }),
            Route::SandboxState => self.shared.core.change(|state| {
                state.state_puts.push(StatePut { at, sandbox_id: id, body, http_status, fault });
            }),
            _ => {}
        }
    }
}

fn describe(runner: &Runner) -> String {
    format!("runner {} is {} with score {}", runner.id, word(&runner.state), runner.availability_score)
}

fn refused(error: sync::Error) -> Failure {
    let status = match error {
        sync::Error::NotFound(_) => 404,
        sync::Error::Invalid(_) => 400,
        sync::Error::Conflict => 409,
    };
    Failure::new(status, error.to_string())
}

/// The runner row as the API shows it to the runner itself.
fn runner_json(runner: &Runner) -> Value {
    let metrics = runner.metrics.clone().unwrap_or(json!({}));
    let figure = |name: &str| metrics.get(name).cloned().unwrap_or(json!(0));
    let date = runner.last_checked.unwrap_or(Timestamp::now());
    json!({
        "id": runner.id, "name": runner.id, "apiKey": runner.token, "apiVersion": "2", "version": "2",
        "region": "sim", "regionType": "dedicated", "runnerClass": "container", "sandboxClass": "linux-vm",
        "state": runner.state, "unschedulable": false, "tags": [], "domain": runner.domain,
        "apiUrl": runner.api_url, "proxyUrl": runner.proxy_url, "appVersion": runner.app_version,
        "availabilityScore": runner.availability_score, "lastChecked": runner.last_checked,
        "cpu": figure("cpu"), "memory": figure("memoryGiB"), "disk": figure("diskGiB"), "gpu": figure("gpu"),
        "createdAt": date, "updatedAt": date,
    })
}
