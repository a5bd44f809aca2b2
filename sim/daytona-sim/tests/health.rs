//! Healthchecks and what passes with time (PROTOCOL.md 2.5, 3).

mod common;

use std::time::Duration;

use common::{Api, SOON, metrics, start, start_with};
use daytona_sim::{CreateSpec, Dialect, JobStatus, ResourceType, RunnerState, SandboxState, SubmitError, job_type};
use serde_json::{Value, json};

const PATH: &str = "/api/runners/healthcheck";

fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

#[test]
fn healthcheck_answers_201_without_a_body() {
    let sim = start();
    let api = Api::new(&sim);
    assert_eq!(sim.runner().unwrap().state, RunnerState::Initializing);
    let body = json!({"appVersion": "v1", "domain": "10.1.2.3", "apiUrl": "http://a", "proxyUrl": "http://p",
        "serviceHealth": [{"serviceName": "vmm", "healthy": true}], "metrics": metrics()});
    let reply = api.post(PATH, &body);
    assert_eq!((reply.status, reply.body.as_str()), (201, ""));
    let runner = sim.runner().unwrap();
    assert_eq!(runner.state, RunnerState::Ready);
    assert!(runner.schedulable && runner.availability_score >= 30);
    assert_eq!(runner.api_url.as_deref(), Some("http://a"));
    assert_eq!(sim.wait_healthchecks(1, SOON).unwrap()[0].body, body);
    api.post(PATH, &json!({"appVersion": "v2", "apiUrl": ""}));
    let runner = sim.runner().unwrap();
    assert_eq!(runner.api_url.as_deref(), Some("http://a"));
    assert_eq!(runner.app_version.as_deref(), Some("v2"));
    assert!(runner.service_health.is_none());
}

#[test]
fn bad_healthchecks() {
    let sim = start();
    let api = Api::new(&sim);
    assert_eq!(api.post(PATH, &json!({})).status, 400);
    let mut broken = metrics();
    broken["cpu"] = Value::from(0);
    assert_eq!(api.post(PATH, &json!({"appVersion": "1", "metrics": broken})).status, 500);
    assert_eq!(sim.runner().unwrap().state, RunnerState::Initializing);
    let mut negative = metrics();
    negative["currentAllocatedCpu"] = Value::from(-1);
    assert_eq!(api.post(PATH, &json!({"appVersion": "1", "metrics": negative})).status, 201);
    let runner = sim.runner().unwrap();
    assert_eq!((runner.availability_score, runner.schedulable), (0, false));
}

#[test]
fn silence_makes_unresponsive_and_jobs_can_depend_on_it() {
    let sim = start_with(|options| options.require_ready = true);
    let api = Api::new(&sim);
    let create = || sim.create_sandbox(&CreateSpec::new("a"));
    assert!(matches!(create(), Err(SubmitError::NotReady { .. })));
    api.post(PATH, &json!({"appVersion": "1"}));
    sim.advance(Duration::from_secs(55));
    assert_eq!(sim.runner().unwrap().state, RunnerState::Ready);
    sim.advance(Duration::from_secs(15));
    assert_eq!(sim.runner().unwrap().state, RunnerState::Unresponsive);
    assert!(matches!(create(), Err(SubmitError::NotReady { .. })));
    api.post(PATH, &json!({"appVersion": "1"}));
    create().unwrap();
}

#[test]
fn decommissioned_runner_is_ignored() {
    let sim = start();
    let api = Api::new(&sim);
    sim.set_runner_state(RunnerState::Decommissioned);
    assert_eq!(api.post(PATH, &json!({"appVersion": "1"})).status, 201);
    assert_eq!(sim.runner().unwrap().state, RunnerState::Decommissioned);
}

#[test]
fn clock_speed_makes_the_rules_fast() {
    let sim = start_with(|options| options.clock_speed = 2000.0);
    Api::new(&sim).post(PATH, &json!({"appVersion": "1"}));
    assert!(sim.wait_runner(RunnerState::Unresponsive, SOON).is_some());
}

#[test]
fn stale_jobs_fail_by_type() {
    let cases = [
        (Dialect::V0190, job_type::STOP_SANDBOX, 10),
        (Dialect::V0190, job_type::CREATE_SANDBOX, 30),
        (Dialect::V0190, job_type::CREATE_BACKUP, 120),
        (Dialect::V0190, job_type::SNAPSHOT_SANDBOX, 120),
        (Dialect::V0190, job_type::PULL_SNAPSHOT, 120),
        (Dialect::V0190, job_type::BUILD_SNAPSHOT, 120),
        (Dialect::Branch, job_type::PULL_SNAPSHOT, 10),
    ];
    for (dialect, kind, limit) in cases {
        let sim = start_with(|options| options.dialect = dialect);
        let api = Api::new(&sim);
        let job = sim.submit(kind, ResourceType::Sandbox, "a", ()).unwrap();
        sim.advance(minutes(300));
        assert_eq!(sim.job(&job).unwrap().status, JobStatus::Pending, "pending never expires");
        assert_eq!(api.poll("timeout=1"), [job.as_str()]);
        sim.advance(minutes(limit - 1));
        assert_eq!(sim.job(&job).unwrap().status, JobStatus::InProgress, "{kind}");
        sim.advance(minutes(2));
        let failed = sim.job(&job).unwrap();
        assert_eq!(failed.status, JobStatus::Failed, "{kind}");
        let text = format!("Job timed out - no update received for {limit} minutes");
        assert_eq!(failed.error_message, Some(text));
        let late = api.report(&job, "COMPLETED").status;
        assert_eq!(late, if dialect == Dialect::V0190 { 409 } else { 201 });
    }
}

#[test]
fn the_sweep_runs_the_handler() {
    let sim = start();
    let job = sim.stop_sandbox("a", None).unwrap();
    Api::new(&sim).poll("timeout=1");
    sim.advance(minutes(12));
    assert_eq!(sim.job(&job).unwrap().status, JobStatus::Failed);
    let row = sim.wait_sandbox("a", SandboxState::Error, SOON).unwrap();
    assert!(row.error_reason.unwrap().starts_with("Job timed out"));
}

#[test]
fn only_a_changed_heartbeat_keeps_a_job_alive() {
    let sim = start();
    let api = Api::new(&sim);
    let bare = sim.stop_sandbox("a", None).unwrap();
    let counted = sim.stop_sandbox("b", None).unwrap();
    assert_eq!(api.poll("timeout=1").len(), 2);
    for n in 0..3 {
        sim.advance(minutes(4));
        let path = format!("/api/jobs/{counted}/status");
        let body = json!({"status": "IN_PROGRESS", "resultMetadata": format!("{{\"n\":{n}}}")});
        assert_eq!(api.post(&path, &body).status, 201);
        api.report(&bare, "IN_PROGRESS");
    }
    assert_eq!(sim.job(&bare).unwrap().status, JobStatus::Failed);
    assert_eq!(sim.job(&counted).unwrap().status, JobStatus::InProgress);
}

#[test]
fn sandboxes_run_into_their_own_timeouts() {
    let sim = start();
    sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    sim.start_sandbox("b").unwrap();
    sim.advance(minutes(7));
    assert_eq!(sim.sandbox("a").unwrap().state, SandboxState::Creating);
    let late = sim.sandbox("b").unwrap();
    assert_eq!(late.state, SandboxState::Error);
    assert_eq!(late.error_reason.as_deref(), Some("Timeout while starting sandbox"));
    sim.advance(minutes(10));
    assert_eq!(sim.sandbox("a").unwrap().state, SandboxState::Error);
}
