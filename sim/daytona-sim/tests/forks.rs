//! Forks, pauses, sizes and snapshots as a runner with live forks sees them: payloads of both dialects and what
//! becomes of the rows (PROTOCOL.md 2.6, 5), ordered by handle, command line and admin interface.

mod common;

use std::process::Command;

use common::{Api, start, start_with};
use daytona_sim::{CreateSpec, DesiredState, Dialect, Handle, JobStatus, Resize, ResourceType, SandboxState, job_type};
use serde_json::{Value, json};

fn state(sim: &Handle, id: &str) -> SandboxState {
    sim.sandbox(id).unwrap().state
}

/// Hands the job out and reports it; what the runner saw of it.
fn finish(sim: &Handle, job: &str, status: &str, result: &Value) -> (Value, Value) {
    let api = Api::new(sim);
    let seen = api.get("/api/jobs/poll?timeout=1").json()["jobs"][0].clone();
    assert_eq!(seen["id"], job);
    let error = if status == "FAILED" { "no room" } else { "" };
    assert_eq!(api.report_full(job, status, error, result).status, 201);
    let payload = seen["payload"].as_str().map_or(Value::Null, |text| serde_json::from_str(text).unwrap());
    (seen, payload)
}

fn started(sim: &Handle, id: &str) {
    let mut spec = CreateSpec::new(id);
    (spec.cpu, spec.memory, spec.disk) = (2, 4, 10);
    let job = sim.create_sandbox(&spec).unwrap();
    finish(sim, &job, "COMPLETED", &json!({}));
}

fn stopped(sim: &Handle, id: &str) {
    started(sim, id);
    let job = sim.stop_sandbox(id, None).unwrap();
    finish(sim, &job, "COMPLETED", &json!({}));
}

#[test]
fn forks_and_clones_in_both_dialects() {
    for (dialect, branch_state) in [(Dialect::V0190, None), (Dialect::Branch, Some("started"))] {
        let sim = start_with(|options| options.dialect = dialect);
        started(&sim, "a");
        let fork = sim.fork_sandbox("a", "b").unwrap();
        assert_eq!((state(&sim, "a"), state(&sim, "b")), (SandboxState::Forking, SandboxState::Creating));
        let (seen, payload) = finish(&sim, &fork, "COMPLETED", &json!({"daemonVersion": "9"}));
        assert_eq!((&seen["type"], &seen["resourceId"]), (&"FORK_SANDBOX".into(), &"b".into()));
        assert_eq!((&payload["sourceSandboxId"], &payload["newSandboxId"]), (&"a".into(), &"b".into()));
        assert_eq!(payload.get("sourceState").and_then(Value::as_str), branch_state);
        assert_eq!((state(&sim, "a"), state(&sim, "b")), (SandboxState::Started, SandboxState::Started));
        let child = sim.sandbox("b").unwrap();
        assert_eq!((child.cpu, child.memory, child.disk), (2.0, 4.0, 10.0), "a fork has what its source has");
        assert_eq!(child.daemon_version.as_deref(), Some("9"));
        let clone = sim.clone_sandbox("b", "c").unwrap();
        assert_eq!(finish(&sim, &clone, "FAILED", &json!({})).0["type"], "CLONE_SANDBOX");
        assert_eq!((state(&sim, "b"), state(&sim, "c")), (SandboxState::Started, SandboxState::Error));
    }
}

#[test]
fn a_stopped_source_goes_back_to_stopped() {
    let sim = start_with(|options| options.dialect = Dialect::Branch);
    stopped(&sim, "a");
    let fork = sim.fork_sandbox("a", "b").unwrap();
    let (_, payload) = finish(&sim, &fork, "COMPLETED", &json!({}));
    assert_eq!(payload["sourceState"], "stopped");
    assert_eq!((state(&sim, "a"), state(&sim, "b")), (SandboxState::Stopped, SandboxState::Started));
}

#[test]
fn several_forks_of_one_source_wait_side_by_side() {
    let sim = start();
    started(&sim, "a");
    let jobs = ["b", "c", "d"].map(|new| sim.fork_sandbox("a", new).unwrap());
    assert!(sim.fork_sandbox("a", "b").is_err(), "one unfinished job per new id");
    let api = Api::new(&sim);
    assert_eq!(api.poll("timeout=1&limit=10"), jobs);
    for job in &jobs {
        api.report(job, "COMPLETED");
    }
    for id in ["a", "b", "c", "d"] {
        assert_eq!(state(&sim, id), SandboxState::Started, "{id}");
    }
}

#[test]
fn a_fork_counts_only_while_somebody_wants_it() {
    let sim = start();
    started(&sim, "a");
    let fork = sim.fork_sandbox("a", "b").unwrap();
    sim.edit_sandbox("b", |row| row.desired = DesiredState::Destroyed);
    finish(&sim, &fork, "COMPLETED", &json!({}));
    assert_eq!((state(&sim, "a"), state(&sim, "b")), (SandboxState::Started, SandboxState::Creating));
    let orphan = sim.submit(job_type::FORK_SANDBOX, ResourceType::Sandbox, "c", json!({})).unwrap();
    finish(&sim, &orphan, "COMPLETED", &json!({}));
    assert_eq!(state(&sim, "c"), SandboxState::Creating, "without a source in the payload nothing happens");
}

#[test]
fn pause_resume_and_stop_of_a_paused_sandbox() {
    let sim = start();
    started(&sim, "a");
    let pause = sim.pause_sandbox("a").unwrap();
    assert_eq!(state(&sim, "a"), SandboxState::Pausing);
    assert_eq!(finish(&sim, &pause, "COMPLETED", &json!({})).1, json!({"sandboxId": "a"}));
    let resume = sim.start_sandbox("a").unwrap();
    assert_eq!(state(&sim, "a"), SandboxState::Resuming);
    let (seen, payload) = finish(&sim, &resume, "COMPLETED", &json!({}));
    assert_eq!(seen["type"], "START_SANDBOX");
    let names: Vec<&String> = payload.as_object().unwrap().keys().collect();
    assert_eq!(names, ["authToken"], "a resume carries only the token");
    let pause = sim.pause_sandbox("a").unwrap();
    finish(&sim, &pause, "COMPLETED", &json!({}));
    let stop = sim.stop_sandbox("a", None).unwrap();
    finish(&sim, &stop, "COMPLETED", &json!({}));
    assert_eq!(state(&sim, "a"), SandboxState::Stopped);
    let failed = {
        started(&sim, "b");
        sim.pause_sandbox("b").unwrap()
    };
    finish(&sim, &failed, "FAILED", &json!({}));
    assert_eq!(state(&sim, "b"), SandboxState::Error);
}

#[test]
fn resize_leaves_out_what_stays() {
    let sim = start();
    stopped(&sim, "a");
    let job = sim.resize_sandbox("a", Resize { disk: Some(20), ..Resize::default() }).unwrap();
    assert_eq!(state(&sim, "a"), SandboxState::Resizing);
    assert_eq!(finish(&sim, &job, "COMPLETED", &json!({})).1, json!({"disk": 20}));
    let row = sim.sandbox("a").unwrap();
    assert_eq!((row.state, row.cpu, row.memory, row.disk), (SandboxState::Stopped, 2.0, 4.0, 20.0));
}

#[test]
fn snapshots_of_sandboxes_and_their_removal() {
    for (dialect, kind, result, reference) in [
        (Dialect::V0190, "SNAPSHOT_SANDBOX", json!({"ref": "r/n", "sizeGB": 1.5}), "r/n"),
        (Dialect::Branch, "CREATE_SANDBOX_SNAPSHOT", json!({"snapshotPath": "org/n"}), "org/n"),
    ] {
        let sim = start_with(|options| options.dialect = dialect);
        started(&sim, "a");
        let job = sim.snapshot_sandbox("a", "n", true).unwrap();
        assert_eq!(state(&sim, "a"), SandboxState::Snapshotting);
        let (seen, payload) = finish(&sim, &job, "COMPLETED", &result);
        assert_eq!((&seen["type"], &payload["name"]), (&kind.into(), &"n".into()));
        let memory = if dialect == Dialect::Branch { &payload["live"] } else { &payload["includeMemory"] };
        assert_eq!(memory, true);
        assert_eq!(state(&sim, "a"), SandboxState::Started);
        assert_eq!(sim.snapshots()[0].reference, reference);
        let failed = sim.snapshot_sandbox("a", "m", false).unwrap();
        finish(&sim, &failed, "FAILED", &json!({}));
        assert_eq!((state(&sim, "a"), sim.snapshots().len()), (SandboxState::Started, 1));
        let remove = sim.remove_snapshot(reference).unwrap();
        let (seen, _) = finish(&sim, &remove, "COMPLETED", &json!({}));
        assert!(seen.get("payload").is_none(), "{seen}");
        assert_eq!(sim.snapshots()[0].runner_state, None);
    }
}

fn run(sim: &Handle, args: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daytona-sim"));
    let done = command.args(["--sim-url", &sim.sim_url()]).args(args).output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{args:?}: {done:?}");
}

#[test]
fn the_command_line_orders_all_of_it() {
    let sim = start_with(|options| options.dialect = Dialect::Branch);
    stopped(&sim, "a");
    let expected = [
        (
            &["fork", "a", "b"][..],
            "FORK_SANDBOX",
            json!({"sourceSandboxId": "a", "newSandboxId": "b", "sourceState": "stopped"}),
        ),
        (
            &["clone", "a", "c"],
            "CLONE_SANDBOX",
            json!({"sourceSandboxId": "a", "newSandboxId": "c", "sourceState": "stopped"}),
        ),
        (&["pause", "b"], "PAUSE_SANDBOX", json!({"sandboxId": "b"})),
        (&["start", "b"], "START_SANDBOX", json!({"authToken": CreateSpec::new("b").auth_token})),
        (&["resize", "b", "--cpu", "4", "--memory", "8"], "RESIZE_SANDBOX", json!({"cpu": 4, "memory": 8})),
        (
            &["snapshot", "b", "n 1", "--memory"],
            "CREATE_SANDBOX_SNAPSHOT",
            json!({"sandboxId": "b", "name": "n 1", "organizationId": "sim-organization", "live": true}),
        ),
        (&["remove-snapshot", "org/n"], "REMOVE_SNAPSHOT", Value::Null),
    ];
    for (args, kind, wanted) in expected {
        run(&sim, args);
        let job = sim.jobs().last().unwrap().clone();
        let (seen, payload) = finish(&sim, &job.id, "COMPLETED", &json!({}));
        assert_eq!((&seen["type"], payload), (&kind.into(), wanted), "{args:?}");
        assert_eq!(sim.job(&job.id).unwrap().status, JobStatus::Completed);
    }
}

#[test]
fn the_admin_interface_takes_all_of_it() {
    let sim = start();
    started(&sim, "a");
    let api = Api::new(&sim);
    for (kind, resource, id, payload) in [
        ("FORK_SANDBOX", "SANDBOX", "b", json!({"sourceSandboxId": "a", "newSandboxId": "b"})),
        ("PAUSE_SANDBOX", "SANDBOX", "a", json!({"sandboxId": "a"})),
        ("RESIZE_SANDBOX", "SANDBOX", "b", json!({"cpu": 2})),
        ("SNAPSHOT_SANDBOX", "SANDBOX", "b", json!({"sandboxId": "b", "name": "n"})),
        ("REMOVE_SNAPSHOT", "SNAPSHOT", "n", Value::Null),
    ] {
        let order = json!({"type": kind, "resourceType": resource, "resourceId": id, "payload": payload});
        let made = api.post("/sim/jobs", &order);
        assert_eq!(made.status, 201, "{kind}");
        let (seen, given) = finish(&sim, made.json()["id"].as_str().unwrap(), "COMPLETED", &json!({}));
        assert_eq!((&seen["resourceType"], given), (&resource.into(), payload), "{kind}");
    }
    assert_eq!(state(&sim, "a"), SandboxState::Paused);
}
