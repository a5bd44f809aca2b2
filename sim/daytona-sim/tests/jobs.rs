//! Jobs: uniqueness, listing, reports (PROTOCOL.md 2.1, 2.3, 2.4).

mod common;

use common::{Api, start, start_with};
use daytona_sim::{
    CreateSpec, Dialect, JobRequest, JobStatus, Payload, ResourceType, RunnerKey, SubmitError, job_type,
};
use serde_json::json;

const SANDBOX: ResourceType = ResourceType::Sandbox;

#[test]
fn one_unfinished_job_and_one_backup_per_resource() {
    let sim = start();
    let api = Api::new(&sim);
    let create = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    let clash = sim.stop_sandbox("a", None).unwrap_err();
    assert!(matches!(clash, SubmitError::Conflict { ref other, .. } if *other == create));
    let backup = || sim.submit(job_type::CREATE_BACKUP, SANDBOX, "a", json!({"snapshot": "s"}));
    backup().unwrap();
    assert!(matches!(backup(), Err(SubmitError::Conflict { .. })));
    assert!(sim.submit(job_type::PULL_SNAPSHOT, ResourceType::Snapshot, "a", ()).is_ok());
    assert_eq!(api.poll("timeout=1").len(), 3);
    assert!(sim.stop_sandbox("a", None).is_err(), "in progress is unfinished");
    assert_eq!(api.report(&create, "COMPLETED").status, 201);
    sim.stop_sandbox("a", None).unwrap();
}

#[test]
fn the_branch_allows_one_unfinished_job_per_resource_only() {
    let sim = start_with(|options| options.dialect = Dialect::Branch);
    sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    let backup = sim.submit(job_type::CREATE_BACKUP, SANDBOX, "a", ());
    assert!(matches!(backup, Err(SubmitError::Conflict { .. })));
}

#[test]
fn listing_is_newest_first_and_paged() {
    let sim = start();
    let api = Api::new(&sim);
    let mut made: Vec<String> =
        (0..5).map(|n| sim.create_sandbox(&CreateSpec::new(format!("s{n}"))).unwrap()).collect();
    made.reverse();
    let page = api.get("/api/jobs?limit=2&page=2").json();
    assert_eq!(common::ids(&page["items"]), made[2..4]);
    assert_eq!((&page["total"], &page["page"], &page["totalPages"]), (&json!(5), &json!(2), &json!(3)));
    assert_eq!(common::ids(&api.get("/api/jobs").json()["items"]), made);
    assert_eq!(api.poll("timeout=1&limit=2").len(), 2);
    let running = api.get("/api/jobs?status=IN_PROGRESS").json();
    assert_eq!(running["total"], 2);
    for bad in ["limit=201", "limit=0", "page=0", "limit=x", "status=DONE"] {
        assert_eq!(api.get(&format!("/api/jobs?{bad}")).status, 400, "{bad}");
    }
    let past = api.get("/api/jobs?page=9").json();
    assert_eq!(past["items"], json!([]));
}

#[test]
fn job_form() {
    let sim = start();
    let api = Api::new(&sim);
    let id = sim
        .submit_request(JobRequest {
            job_type: job_type::START_SANDBOX.to_owned(),
            resource_type: SANDBOX,
            resource_id: "a".to_owned(),
            payload: Payload::from(json!({"authToken": "t"})),
            trace_context: json!({"traceparent": "00-1-2-01"}).as_object().cloned(),
            runner_id: None,
        })
        .unwrap();
    let job = api.get(&format!("/api/jobs/{id}")).json();
    assert_eq!(job["payload"], "{\"authToken\":\"t\"}");
    assert_eq!(job["traceContext"]["traceparent"], "00-1-2-01");
    assert_eq!((&job["status"], &job["resourceType"]), (&json!("PENDING"), &json!("SANDBOX")));
    assert!(job.get("errorMessage").is_none() && job.get("runnerId").is_none());
    for name in ["createdAt", "updatedAt"] {
        let date = job[name].as_str().unwrap();
        assert_eq!((date.len(), &date[19..20], &date[23..]), (24, ".", "Z"), "{date}");
    }
    let bare = sim.destroy_sandbox("b").unwrap();
    assert!(api.get(&format!("/api/jobs/{bare}")).json().get("payload").is_none());
}

#[test]
fn transitions_over_http() {
    let sim = start();
    let api = Api::new(&sim);
    let id = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    let early = api.report(&id, "COMPLETED");
    assert_eq!(early.status, 409);
    assert_eq!(early.message(), format!("Invalid job status transition from PENDING to COMPLETED for job {id}"));
    assert_eq!(api.poll("timeout=1"), [id.as_str()]);
    assert_eq!(api.report(&id, "IN_PROGRESS").status, 201);
    assert_eq!(api.report(&id, "PENDING").status, 409);
    let done = api.report(&id, "COMPLETED");
    assert_eq!((done.status, &done.json()["status"]), (201, &json!("COMPLETED")));
    assert_eq!(api.report(&id, "COMPLETED").status, 201);
    for late in ["FAILED", "IN_PROGRESS", "PENDING"] {
        assert_eq!(api.report(&id, late).status, 409, "{late}");
    }
    let codes: Vec<u16> = sim.reports().iter().map(|report| report.http_status).collect();
    assert_eq!(codes, [409, 201, 409, 201, 201, 409, 409, 409]);
}

#[test]
fn the_branch_accepts_any_transition() {
    let sim = start_with(|options| options.dialect = Dialect::Branch);
    let api = Api::new(&sim);
    let id = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    for status in ["COMPLETED", "FAILED", "IN_PROGRESS", "COMPLETED"] {
        assert_eq!(api.report(&id, status).status, 201, "{status}");
    }
}

#[test]
fn unknown_and_foreign_jobs_are_404() {
    let sim = start_with(|options| {
        options.runners.push(RunnerKey { id: "other".to_owned(), token: "other-token".to_owned() });
    });
    let api = Api::with_token(&sim, "other-token");
    let id = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    for id in [id.as_str(), "no-uuid", "00000000-0000-4000-8000-000000000000"] {
        let reply = api.post(&format!("/api/jobs/{id}/status"), &json!({"status": 5}));
        assert_eq!((reply.status, reply.message().as_str()), (404, "Job not found"));
        assert_eq!(api.get(&format!("/api/jobs/{id}")).status, 404);
    }
    assert_eq!(api.poll("timeout=0.05"), Vec::<String>::new());
    assert_eq!(api.get("/api/jobs").json()["total"], 0);
}

#[test]
fn wrong_types_are_400_and_unknown_fields_are_ignored() {
    let sim = start();
    let api = Api::new(&sim);
    let id = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    api.poll("timeout=1");
    let path = format!("/api/jobs/{id}/status");
    let object = json!({"status": "COMPLETED", "resultMetadata": {"daemonVersion": "1"}});
    let reply = api.post(&path, &object);
    assert_eq!((reply.status, reply.message().as_str()), (400, "resultMetadata must be a string"));
    assert_eq!(api.post(&path, &json!({"status": "DONE"})).status, 400);
    assert_eq!(api.post(&path, &json!("COMPLETED")).status, 400);
    let text = "authorization: Bearer test-token\r\ncontent-type: text/plain\r\n";
    let sent = common::send(api.to, &format!("POST {path}"), text, br#"{"status":"FAILED"}"#);
    assert_eq!(common::receive(sent.unwrap()).unwrap().status, 400);
    assert_eq!(sim.job(&id).unwrap().status, JobStatus::InProgress);
    assert_eq!(api.post(&path, &json!({"status": "IN_PROGRESS", "extra": 1})).status, 201);
}

#[test]
fn error_messages_are_cut_and_empty_ones_absent() {
    let sim = start();
    let api = Api::new(&sim);
    let id = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    api.poll("timeout=1");
    let path = format!("/api/jobs/{id}/status");
    let empty = json!({"status": "IN_PROGRESS", "errorMessage": ""});
    assert!(api.post(&path, &empty).json().get("errorMessage").is_none());
    let long = format!("first line\n{}", "z".repeat(30_000));
    let failed = api.post(&path, &json!({"status": "FAILED", "errorMessage": long}));
    let stored = failed.json()["errorMessage"].as_str().unwrap().to_owned();
    assert_eq!(stored.chars().count(), 10_000);
    assert!(stored.starts_with("first line\n"));
}

#[test]
fn big_bodies_are_413() {
    let sim = start();
    let api = Api::new(&sim);
    let id = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    let path = format!("/api/jobs/{id}/status");
    let fits = json!({"status": "IN_PROGRESS", "resultMetadata": "x".repeat(100_000)});
    assert_eq!(api.post(&path, &fits).status, 201);
    let big = json!({"status": "IN_PROGRESS", "resultMetadata": "x".repeat(103_000)});
    assert_eq!(api.post(&path, &big).status, 413);
}
