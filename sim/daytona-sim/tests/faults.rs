//! Ordered failures and outages.

mod common;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use common::{Api, SOON, start};
use daytona_sim::{Action, CreateSpec, Down, DownMode, Fault, FaultPlan, JobStatus, Route};
use serde_json::json;

const POLL: &str = "/api/jobs/poll?timeout=1";

fn status(code: u16) -> Action {
    Action::Status { code, retry_after: None }
}

#[test]
fn status_faults_are_counted_and_per_route() {
    let sim = start();
    let api = Api::new(&sim);
    sim.faults().add(Fault::times(Route::Status, status(503), 2));
    let id = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    assert_eq!(api.poll("timeout=1"), [id.as_str()]);
    let first = api.report(&id, "COMPLETED");
    assert_eq!((first.status, &first.json()["statusCode"]), (503, &json!(503)));
    assert_eq!(api.report(&id, "COMPLETED").status, 503);
    assert_eq!(sim.job(&id).unwrap().status, JobStatus::InProgress, "not processed");
    assert_eq!(api.report(&id, "COMPLETED").status, 201);
    let reports = sim.reports();
    let seen: Vec<_> = reports.iter().map(|r| (r.http_status, r.fault)).collect();
    assert_eq!(seen, [(503, Some("status")), (503, Some("status")), (201, None)]);
    assert!(sim.faults().plan().faults.is_empty());
}

#[test]
fn wrong_bodies() {
    let sim = start();
    let api = Api::new(&sim);
    for action in [Action::Html, Action::Garbage, Action::Empty] {
        sim.faults().add(Fault::once(Route::Poll, action));
    }
    let html = api.get(POLL);
    assert!(html.status == 200 && html.body.starts_with("<!doctype"));
    let garbage = api.get(POLL);
    assert_eq!(garbage.header("content-type"), Some("application/json"));
    assert!(serde_json::from_str::<serde_json::Value>(&garbage.body).is_err());
    let empty = api.get(POLL);
    assert_eq!((empty.status, empty.body.as_str()), (200, ""));
    let retry = Action::Status { code: 429, retry_after: Some(7) };
    sim.faults().add(Fault::once(Route::Any, retry));
    assert_eq!(api.get(POLL).header("retry-after"), Some("7"));
}

#[test]
fn hang_lasts_until_the_client_gives_up() {
    let sim = start();
    let api = Api::new(&sim);
    sim.faults().add(Fault::once(Route::Healthcheck, Action::Hang));
    let body = json!({"appVersion": "1"});
    let stream = api.open("POST", "/api/runners/healthcheck", Some(&body)).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let error = common::receive(stream).err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    let record = &sim.wait_healthchecks(1, SOON).unwrap()[0];
    assert_eq!((record.http_status, record.fault), (0, Some("hang")));
    assert_eq!(api.post("/api/runners/healthcheck", &body).status, 201);
}

#[test]
fn closed_before_and_after_the_work() {
    let sim = start();
    let api = Api::new(&sim);
    let id = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    sim.faults().add(Fault::once(Route::Poll, Action::CloseBefore));
    assert!(api.try_call("GET", POLL, None).is_err());
    assert_eq!(sim.job(&id).unwrap().status, JobStatus::Pending);
    sim.faults().add(Fault::once(Route::Poll, Action::CloseAfter));
    assert!(api.try_call("GET", POLL, None).is_err());
    assert_eq!(sim.job(&id).unwrap().status, JobStatus::InProgress, "claimed and lost");
    sim.faults().add(Fault::once(Route::Status, Action::CloseAfter));
    let path = format!("/api/jobs/{id}/status");
    let body = json!({"status": "COMPLETED"});
    assert!(api.try_call("POST", &path, Some(&body)).is_err());
    assert_eq!(sim.job(&id).unwrap().status, JobStatus::Completed);
    assert_eq!(sim.reports()[0].fault, Some("close_after"));
}

#[test]
fn delays() {
    let sim = start();
    let api = Api::new(&sim);
    sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    sim.faults().add(Fault::once(Route::List, Action::Delay { ms: 150 }));
    sim.faults().add(Fault::once(Route::Poll, Action::DelayAfter { ms: 150 }));
    for path in ["/api/jobs", POLL] {
        let begun = Instant::now();
        assert_eq!(api.get(path).status, 200);
        assert!(begun.elapsed() >= Duration::from_millis(150), "{path}");
    }
}

#[test]
fn double_delivery() {
    let sim = start();
    let api = Api::new(&sim);
    sim.faults().double_delivery(1);
    let one = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    let two = sim.create_sandbox(&CreateSpec::new("b")).unwrap();
    assert_eq!(api.poll("timeout=1"), [one.clone(), two]);
    assert_eq!(api.poll("timeout=1"), [one.as_str()]);
    assert_eq!(api.poll("timeout=0.02"), Vec::<String>::new());
    assert_eq!(sim.job(&one).unwrap().deliveries, 2);
}

#[test]
fn down_cuts_open_polls_and_new_requests() {
    let sim = start();
    let api = Api::new(&sim);
    let open = api.open("GET", "/api/jobs/poll?timeout=30", None).unwrap();
    assert!(sim.wait_open_polls(1, SOON));
    sim.faults().down();
    assert!(common::receive(open).is_err());
    assert!(api.try_call("GET", "/api/jobs", None).is_err());
    let admin = api.get("/sim/info");
    assert_eq!(admin.status, 200, "the admin interface stays");
    sim.faults().up();
    assert_eq!(api.get("/api/jobs").status, 200);
}

#[test]
fn refuse_closes_the_listener() {
    let sim = start();
    let api = Api::new(&sim);
    let open = api.open("GET", "/api/jobs/poll?timeout=30", None).unwrap();
    assert!(sim.wait_open_polls(1, SOON));
    let id = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    assert_eq!(common::ids(&common::receive(open).unwrap().json()["jobs"]), [id.as_str()]);
    let open = api.open("GET", "/api/jobs/poll?timeout=30", None).unwrap();
    assert!(sim.wait_open_polls(1, SOON));
    sim.faults().refuse();
    assert!(common::receive(open).is_err(), "open polls are cut");
    let refused = api.try_call("GET", "/api/jobs", None).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    sim.faults().up();
    let list = api.get("/api/jobs?status=IN_PROGRESS").json();
    assert_eq!(common::ids(&list["items"]), [id], "nothing is forgotten");
}

#[test]
fn an_outage_can_end_by_itself() {
    let sim = start();
    let api = Api::new(&sim);
    for mode in [DownMode::Close, DownMode::Refuse] {
        let down = Some(Down { mode, for_ms: Some(200) });
        let plan = FaultPlan { down, ..FaultPlan::default() };
        let reply = api.put("/sim/faults", &serde_json::to_value(&plan).unwrap());
        assert_eq!(reply.status, 200);
        let deadline = Instant::now() + SOON;
        let mut failures = 0;
        while Instant::now() < deadline {
            match api.try_call("GET", "/api/jobs", None) {
                Ok(_) if failures > 0 => break,
                Ok(_) => {}
                Err(_) => failures += 1,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(failures > 0 && Instant::now() < deadline, "{mode:?}");
        assert_eq!(sim.faults().plan().down, None);
    }
}

#[test]
fn faults_over_http() {
    let sim = start();
    let api = Api::new(&sim);
    let plan = json!({"faults": [{"route": "healthcheck", "kind": "status", "code": 500, "times": null}]});
    assert_eq!(api.put("/sim/faults", &plan).status, 200);
    for _ in 0..3 {
        assert_eq!(api.post("/api/runners/healthcheck", &json!({"appVersion": "1"})).status, 500);
    }
    assert_eq!(api.get("/sim/faults").json()["faults"][0]["code"], 500);
    assert_eq!(api.try_call("DELETE", "/sim/faults", None).unwrap().status, 204);
    assert_eq!(api.post("/api/runners/healthcheck", &json!({"appVersion": "1"})).status, 201);
    for bad in
        [json!({"fault": []}), json!({"faults": [{"kind": "status", "code": 42}]}), json!({"faults": [{"kind": "x"}]})]
    {
        assert_eq!(api.put("/sim/faults", &bad).status, 400, "{bad}");
    }
}
