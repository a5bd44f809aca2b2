//! The admin interface below `/sim`: for the command line and for tests in other processes. No key; loopback only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::reply::{Failure, empty_reply, error_reply, json_reply};
use crate::faults::{Action, DownMode, FaultPlan};
use crate::job::{Job, ResourceType};
use crate::payload::Payload;
use crate::server::{Control, Shared};
use crate::state::State;
use crate::submit::{self, JobRequest};

/// Longest wait of one request.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Large enough for any plan or payload.
const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// Body of `POST /sim/jobs`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewJob {
    #[serde(rename = "type")]
    job_type: String,
    #[serde(default = "sandbox")]
    resource_type: ResourceType,
    resource_id: String,
    /// A text is taken as it stands, anything else is encoded.
    #[serde(default)]
    payload: Value,
    #[serde(default)]
    trace_context: Option<Map<String, Value>>,
    #[serde(default)]
    runner_id: Option<String>,
}

fn sandbox() -> ResourceType {
    ResourceType::Sandbox
}

/// Answers a request below `/sim`.
pub(crate) async fn dispatch(shared: Arc<Shared>, req: HttpRequest, payload: web::Payload) -> HttpResponse {
    if !req.peer_addr().is_some_and(|peer| peer.ip().is_loopback()) {
        let failure = Failure::new(403, "The admin interface is open to loopback addresses only");
        return error_reply(&req, &failure);
    }
    let body = match payload.to_bytes_limited(BODY_LIMIT).await {
        Ok(Ok(body)) => body,
        _ => return error_reply(&req, &Failure::new(413, "request entity too large")),
    };
    let result = route(&shared, &req, &body).await;
    result.unwrap_or_else(|failure| error_reply(&req, &failure))
}

async fn route(shared: &Arc<Shared>, req: &HttpRequest, body: &Bytes) -> Result<HttpResponse, Failure> {
    let path = req.path().trim_end_matches('/').to_owned();
    let parts: Vec<&str> = path.split('/').skip(2).collect();
    match (req.method().as_str(), parts.as_slice()) {
        ("GET", ["info"]) => list(&info(shared)),
        ("POST", ["jobs"]) => submit(shared, &parse(body)?),
        ("GET", ["jobs"]) => {
            let jobs: Vec<Value> = with(shared, |s| s.jobs.iter().map(Job::admin_json).collect());
            list(&jobs)
        }
        ("GET", ["jobs", id]) => job(shared, id, millis(req, "wait")?).await,
        ("GET", ["sandboxes"]) => list(&with(shared, |s| s.sandboxes.values().cloned().collect::<Vec<_>>())),
        ("GET", ["snapshots"]) => list(&with(shared, |s| s.snapshots.values().cloned().collect::<Vec<_>>())),
        ("GET", ["runner"]) => list(&runner(shared)),
        ("GET", ["runners"]) => list(&with(shared, |s| s.runners.clone())),
        ("GET", ["reports"]) => list(&with(shared, |s| s.reports.clone())),
        ("GET", ["healthchecks"]) => list(&with(shared, |s| s.healthchecks.clone())),
        ("GET", ["state-puts"]) => list(&with(shared, |s| s.state_puts.clone())),
        ("GET", ["latencies"]) => list(&with(shared, |s| s.latencies.clone())),
        ("GET", ["events"]) => events(shared, number(req, "after")?, millis(req, "wait")?).await,
        ("GET", ["faults"]) => list(&with(shared, |s| s.faults.clone())),
        ("PUT", ["faults"]) => put_faults(shared, parse(body)?),
        ("DELETE", ["faults"]) => {
            shared.set_faults(FaultPlan::default());
            Ok(empty_reply(204))
        }
        ("POST", ["clock"]) => advance(shared, &parse(body)?),
        (method, _) => Err(Failure::new(404, format!("Cannot {method} {path}"))),
    }
}

fn with<T>(shared: &Shared, read: impl FnOnce(&State) -> T) -> T {
    read(&shared.core.lock())
}

fn list(value: &impl Serialize) -> Result<HttpResponse, Failure> {
    let json = serde_json::to_value(value);
    let json = json.map_err(|error| Failure::new(500, format!("cannot encode: {error}")))?;
    Ok(json_reply(200, &json))
}

fn parse<T: for<'a> Deserialize<'a>>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::new(400, error.to_string()))
}

fn number(req: &HttpRequest, name: &str) -> Result<u64, Failure> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(req.query_string())
        .map_err(|error| Failure::new(400, error.to_string()))?;
    match pairs.iter().find(|(key, _)| key == name) {
        None => Ok(0),
        Some((_, text)) => text.parse().map_err(|_| Failure::new(400, format!("{name} must be a whole number"))),
    }
}

fn millis(req: &HttpRequest, name: &str) -> Result<Duration, Failure> {
    Ok(Duration::from_millis(number(req, name)?).min(MAX_WAIT))
}

fn info(shared: &Shared) -> Value {
    let options = &shared.core.options;
    json!({"dialect": options.dialect, "onDisconnect": options.on_disconnect,
        "runners": options.runners.iter().map(|runner| &runner.id).collect::<Vec<_>>(),
        "clockSpeed": options.clock_speed, "startedAt": shared.core.started_at,
        "openPolls": with(shared, |state| state.open_polls)})
}

fn runner(shared: &Shared) -> Value {
    with(shared, |state| {
        let runner = state.runners.first();
        json!({"runner": runner, "healthchecks": state.healthchecks.len(),
            "lastHealthcheck": state.healthchecks.last()})
    })
}

fn submit(shared: &Shared, body: &Value) -> Result<HttpResponse, Failure> {
    let new: NewJob = serde_json::from_value(body.clone()).map_err(|error| Failure::new(400, error.to_string()))?;
    let payload = match new.payload {
        Value::String(text) => Payload::text(text),
        value => Payload::from(value),
    };
    let request = JobRequest {
        job_type: new.job_type,
        resource_type: new.resource_type,
        resource_id: new.resource_id,
        payload,
        trace_context: new.trace_context,
        runner_id: new.runner_id,
    };
    match shared.core.submit(request) {
        Ok(id) => Ok(json_reply(201, &json!({ "id": id }))),
        Err(error @ submit::Error::UnknownRunner { .. }) => Err(Failure::new(404, error.to_string())),
        Err(error) => Err(Failure::new(409, error.to_string())),
    }
}

/// Repeats a probe after every change, until it finds something or the time is over.
async fn wait_for<T>(shared: &Shared, wait: Duration, mut probe: impl FnMut(&State) -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + wait;
    let mut changed = shared.core.subscribe();
    loop {
        changed.borrow_and_update();
        if let Some(found) = probe(&shared.core.lock()) {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep_until(deadline.into()) => {}
        }
    }
}

/// The job as it stands when it has finished or the time is over.
async fn job(shared: &Shared, id: &str, wait: Duration) -> Result<HttpResponse, Failure> {
    let finished = |state: &State| match state.job(id) {
        Some(job) if !job.status.is_terminal() => None,
        other => Some(other.map(Job::admin_json)),
    };
    let found = match wait_for(shared, wait, finished).await {
        Some(found) => found,
        None => with(shared, |state| state.job(id).map(Job::admin_json)),
    };
    match found {
        Some(json) => Ok(json_reply(200, &json)),
        None => Err(Failure::new(404, "Job not found")),
    }
}

async fn events(shared: &Shared, after: u64, wait: Duration) -> Result<HttpResponse, Failure> {
    let found = wait_for(shared, wait, |state| {
        let new = state.events.iter().filter(|event| event.seq > after);
        let new: Vec<_> = new.cloned().collect();
        (!new.is_empty()).then_some(new)
    });
    list(&found.await.unwrap_or_default())
}

fn put_faults(shared: &Arc<Shared>, plan: FaultPlan) -> Result<HttpResponse, Failure> {
    for fault in &plan.faults {
        if let Action::Status { code, .. } = fault.action
            && !(200..=599).contains(&code)
        {
            return Err(Failure::new(400, format!("{code} is no final status")));
        }
    }
    let refuse = plan.down.filter(|down| down.mode == DownMode::Refuse);
    if let Some(down) = refuse {
        // This answer has to leave before the listener goes.
        let shared = Arc::clone(shared);
        actix_web::rt::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            shared.control(Control::Refuse { back_after: down.for_ms.map(Duration::from_millis), done: None });
        });
    }
    shared.set_faults(plan.clone());
    list(&plan)
}

fn advance(shared: &Shared, body: &Value) -> Result<HttpResponse, Failure> {
    let seconds = body["advanceSeconds"].as_f64();
    let by = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let by = by.ok_or_else(|| Failure::new(400, "advanceSeconds must be a number from 0"))?;
    shared.core.clock.advance(by);
    shared.core.tick();
    Ok(empty_reply(204))
}
