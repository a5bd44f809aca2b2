//! State sync (PROTOCOL.md 4).

mod common;

use common::{Api, start};
use daytona_sim::{CreateSpec, DesiredState, Handle, SandboxState};
use serde_json::{Value, json};

fn started(sim: &Handle, id: &str) {
    let job = sim.create_sandbox(&CreateSpec::new(id)).unwrap();
    let api = Api::new(sim);
    api.poll("timeout=1");
    assert_eq!(api.report(&job, "COMPLETED").status, 201);
}

fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap();
    list.iter().map(|row| row["id"].as_str().unwrap()).collect()
}

#[test]
fn list_for_runner() {
    let sim = start();
    let api = Api::new(&sim);
    for id in ["a", "b", "c"] {
        started(&sim, id);
    }
    sim.stop_sandbox("b", None).unwrap();
    sim.edit_sandbox("c", |row| row.desired = DesiredState::Stopped);
    let all = api.get("/api/sandbox/for-runner").json();
    assert_eq!(names(&all), ["a", "b", "c"]);
    assert_eq!((&all[0]["state"], &all[0]["desiredState"]), (&json!("started"), &json!("started")));
    assert_eq!(all[2]["state"], "stopping", "the shown state names the direction");
    let path = "/api/sandbox/for-runner?states=started&skipReconcilingSandboxes=true";
    assert_eq!(names(&api.get(path).json()), ["a"]);
    let started = api.get("/api/sandbox/for-runner?states=started,stopped").json();
    assert_eq!(names(&started), ["a", "c"]);
    for bad in ["nonsense", "starting"] {
        let path = format!("/api/sandbox/for-runner?states={bad}");
        assert_eq!(api.get(&path).status, 400);
    }
}

#[test]
fn put_state_moves_state_and_desired_state() {
    let sim = start();
    let api = Api::new(&sim);
    started(&sim, "a");
    let put = |body| api.put("/api/sandbox/a/state", &body);
    let reply = put(json!({"state": "stopped"}));
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    let row = sim.sandbox("a").unwrap();
    assert_eq!((row.state, row.desired, row.pending), (SandboxState::Stopped, DesiredState::Stopped, false));
    assert_eq!(put(json!({"state": "stopped"})).status, 200);
    let failed = json!({"state": "error", "errorReason": "VMM died", "recoverable": true});
    assert_eq!(put(failed).status, 200);
    let row = sim.sandbox("a").unwrap();
    assert_eq!((row.state, row.recoverable), (SandboxState::Error, true));
    assert_eq!(row.error_reason.as_deref(), Some("VMM died"));
    assert_eq!(put(json!({"state": "stopped"})).status, 400, "only from started or stopped");
    assert_eq!(sim.state_puts().len(), 4);
}

#[test]
fn put_state_refusals() {
    let sim = start();
    let api = Api::new(&sim);
    started(&sim, "a");
    assert_eq!(api.put("/api/sandbox/nobody/state", &json!({})).status, 404);
    for bad in [
        json!({}),
        json!({"state": "gone"}),
        json!({"state": "stopped", "errorReason": 1}),
        json!({"state": "stopped", "recoverable": "yes"}),
    ] {
        assert_eq!(api.put("/api/sandbox/a/state", &bad).status, 400, "{bad}");
    }
    sim.edit_sandbox("a", |row| row.desired = DesiredState::Stopped);
    let stopped = json!({"state": "stopped"});
    assert_eq!(api.put("/api/sandbox/a/state", &stopped).status, 409, "pending");
    sim.edit_sandbox("a", |row| row.desired = DesiredState::Destroyed);
    assert_eq!(api.put("/api/sandbox/a/state", &stopped).status, 200);
    assert_eq!(sim.sandbox("a").unwrap().state, SandboxState::Started, "nothing done");
    sim.edit_sandbox("a", |row| row.runner_id = None);
    assert_eq!(api.put("/api/sandbox/a/state", &stopped).status, 404, "not this runner's");
}
