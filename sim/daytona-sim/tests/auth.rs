//! Keys, limits and forms of errors (PROTOCOL.md 1).

mod common;

use std::time::Duration;

use common::{Api, TOKEN, send, start, start_with};
use daytona_sim::{CreateSpec, FailedAuthLimit};
use serde_json::json;

#[test]
fn every_route_wants_a_runner_key() {
    let sim = start();
    sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    let routes = [
        ("GET", "/api/jobs"),
        ("GET", "/api/jobs/poll?timeout=1"),
        ("GET", "/api/jobs/x"),
        ("POST", "/api/jobs/x/status"),
        ("POST", "/api/runners/healthcheck"),
        ("GET", "/api/runners/me"),
        ("GET", "/api/sandbox/for-runner"),
        ("PUT", "/api/sandbox/a/state"),
    ];
    for (method, path) in routes {
        let wrong = Api::with_token(&sim, "wrong").try_call(method, path, None).unwrap();
        assert_eq!(wrong.status, 401, "{path}");
        let foreign = Api::with_token(&sim, "sim-user-token").try_call(method, path, None);
        let foreign = foreign.unwrap();
        assert_eq!(foreign.status, 403, "{path}");
        assert_eq!(foreign.message(), "Invalid authentication context");
    }
    let bare = send(sim.address(), "GET /api/jobs", "", b"").unwrap();
    assert_eq!(common::receive(bare).unwrap().status, 401);
}

#[test]
fn error_body() {
    let sim = start();
    let reply = Api::with_token(&sim, "wrong").get("/api/jobs?limit=5");
    let body = reply.json();
    assert_eq!(body["path"], "/api/jobs?limit=5");
    assert_eq!(body["statusCode"], 401);
    assert_eq!(body["error"], "Unauthorized");
    assert!(body["timestamp"].as_str().unwrap().ends_with('Z'));
    let unknown = Api::new(&sim).get("/api/nothing");
    assert_eq!((unknown.status, unknown.message().as_str()), (404, "Cannot GET /api/nothing"));
}

#[test]
fn outside_the_prefix_is_the_dashboard() {
    let sim = start();
    let api = Api::new(&sim);
    for (method, path) in [("GET", "/jobs/poll"), ("POST", "/jobs/x/status"), ("GET", "/anything")] {
        let reply = api.try_call(method, path, None).unwrap();
        assert_eq!(reply.status, 200);
        assert!(reply.header("content-type").unwrap().starts_with("text/html"));
        assert!(reply.body.starts_with("<!doctype html>"));
    }
    let root = api.get("/");
    assert_eq!((root.status, root.header("location")), (302, Some("/dashboard/")));
}

#[test]
fn failed_logins_block_the_address_and_good_keys_are_never_limited() {
    let ttl = Duration::from_secs(30);
    let sim = start_with(|options| options.failed_auth = Some(FailedAuthLimit { limit: 3, ttl }));
    let good = Api::new(&sim);
    for _ in 0..50 {
        assert_eq!(good.get("/api/jobs").status, 200);
    }
    let bad = Api::with_token(&sim, "wrong");
    assert_eq!(bad.get("/api/jobs").status, 401);
    assert_eq!(bad.get("/api/jobs").status, 401);
    let third = bad.get("/api/jobs");
    assert_eq!((third.status, third.header("retry-after")), (429, Some("30")));
    let blocked = good.get("/api/jobs");
    assert_eq!(blocked.status, 429, "the whole address is blocked");
    let left: u64 = blocked.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&left));
    let headers = format!("authorization: Bearer {TOKEN}\r\nx-forwarded-for: 10.9.8.7, 1.1.1.1\r\n");
    let other = send(sim.address(), "GET /api/jobs", &headers, b"").unwrap();
    assert_eq!(common::receive(other).unwrap().status, 200, "another address is not");
    sim.forgive_logins();
    assert_eq!(good.get("/api/jobs").status, 200);
}

#[test]
fn a_block_ends() {
    let ttl = Duration::from_millis(150);
    let sim = start_with(|options| options.failed_auth = Some(FailedAuthLimit { limit: 1, ttl }));
    assert_eq!(Api::with_token(&sim, "wrong").get("/api/jobs").status, 429);
    let good = Api::new(&sim);
    let deadline = std::time::Instant::now() + common::SOON;
    while good.get("/api/jobs").status == 429 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(good.get("/api/jobs").status, 200);
}

#[test]
fn malformed_json_is_400() {
    let sim = start();
    let headers = format!("authorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n");
    let sent = send(sim.address(), "POST /api/runners/healthcheck", &headers, b"{\"appVersion\":");
    assert_eq!(common::receive(sent.unwrap()).unwrap().status, 400);
}

#[test]
fn runner_row() {
    let sim = start();
    let api = Api::new(&sim);
    api.post("/api/runners/healthcheck", &json!({"appVersion": "7", "metrics": common::metrics()}));
    let row = api.get("/api/runners/me").json();
    assert_eq!((&row["state"], &row["cpu"]), (&json!("ready"), &json!(48)));
    assert_eq!(row["apiKey"], TOKEN);
}
