//! The admin interface and the command line.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Api, SOON, start};
use daytona_sim::{CreateSpec, Handle};
use serde_json::{Value, json};

fn command(sim_url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daytona-sim"));
    command.args(["--sim-url", sim_url]);
    command
}

fn run(sim: &Handle, args: &[&str]) -> Output {
    command(&sim.sim_url()).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Starts a command that waits for a job, plays the runner, and returns the command's result.
fn run_with_runner(sim: &Handle, args: &[&str], status: &str, body: &Value) -> Output {
    let child = command(&sim.sim_url()).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let api = Api::new(sim);
    let jobs = api.poll("timeout=20");
    assert_eq!(jobs.len(), 1);
    let mut report = body.clone();
    report["status"] = Value::from(status);
    let reply = api.post(&format!("/api/jobs/{}/status", jobs[0]), &report);
    assert_eq!(reply.status, 201);
    child.wait_with_output().unwrap()
}

#[test]
fn commands_tell_the_result_by_their_exit_code() {
    let sim = start();
    let create = ["create", "a", "--cpu", "2", "--env", "A=1=2", "--wait"];
    let result = json!({"resultMetadata": "{\"daemonVersion\":\"9\"}"});
    let done = run_with_runner(&sim, &create, "COMPLETED", &result);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let line = stdout(&done);
    assert!(line.contains("CREATE_SANDBOX a COMPLETED (queued ") && line.contains(" ms, ran "));
    let payload = sim.jobs()[0].payload_json().unwrap();
    assert_eq!((&payload["cpuQuota"], &payload["env"]["A"]), (&json!(2), &json!("1=2")));
    let failed = run_with_runner(&sim, &["stop", "a", "--force", "--wait"], "FAILED", &json!({"errorMessage": "no"}));
    assert_eq!(failed.status.code(), Some(1));
    assert!(stdout(&failed).contains("error: no"));
    assert_eq!(sim.jobs()[1].payload.as_deref(), Some("{\"force\":true}"));
    let late = run(&sim, &["destroy", "a", "--wait", "--timeout", "0"]);
    assert_eq!(late.status.code(), Some(3));
    let clash = run(&sim, &["start", "a"]);
    assert_eq!(clash.status.code(), Some(2));
    assert!(String::from_utf8(clash.stderr).unwrap().contains("is unfinished"));
    let list = stdout(&run(&sim, &["jobs"]));
    assert_eq!(list.lines().count(), 3);
    assert!(stdout(&run(&sim, &["sandboxes"])).starts_with("a destroying (wanted: destroyed) 2.0 vCPU"));
    assert!(stdout(&run(&sim, &["runner"])).contains("\"state\": \"initializing\""));
}

#[test]
fn submit_reads_its_payload_from_a_file() {
    let sim = start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("payload.json");
    std::fs::write(&file, "{\"cpu\": 4}").unwrap();
    let payload = format!("@{}", file.display());
    let args = ["submit", "--type", "RESIZE_SANDBOX", "--resource-id", "a", "--payload", &payload];
    let done = run(&sim, &args);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let job = sim.job(stdout(&done).trim()).unwrap();
    assert_eq!(job.payload.as_deref(), Some("{\"cpu\": 4}"));
    let args = ["submit", "--type", "NO_SUCH", "--resource-type", "snapshot", "--resource-id", "s"];
    assert_eq!(run(&sim, &args).status.code(), Some(0));
    assert_eq!(sim.jobs()[1].job_type, "NO_SUCH");
}

#[test]
fn faults_by_command() {
    let sim = start();
    let plan = r#"{"faults":[{"route":"poll","kind":"hang"}],"double_delivery":2}"#;
    assert_eq!(run(&sim, &["faults", "--set", plan]).status.code(), Some(0));
    assert_eq!(sim.faults().plan().double_delivery, 2);
    assert_eq!(run(&sim, &["faults", "--clear"]).status.code(), Some(0));
    assert!(sim.faults().plan().faults.is_empty());
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn serve_and_watch() {
    let mut serve = Command::new(env!("CARGO_BIN_EXE_daytona-sim"));
    serve.args(["serve", "--listen", "127.0.0.1:0", "--token", "t", "--dialect", "branch"]);
    let mut server = KillOnDrop(serve.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let url = first.strip_prefix("SERVER_URL=").unwrap().strip_suffix("/api").unwrap();
    let mut watch = KillOnDrop(command(url).arg("watch").stdout(Stdio::piped()).spawn().unwrap());
    let mut events = BufReader::new(watch.0.stdout.take().unwrap()).lines();
    let made = command(url).args(["stop", "a"]).output().unwrap();
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let seen = events.find(|line| line.as_ref().unwrap().contains("STOP_SANDBOX for a submitted"));
    assert!(seen.is_some());
    let pid = server.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let deadline = Instant::now() + SOON;
    let status = loop {
        if let Some(status) = server.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "serve ends on SIGTERM");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(0));
    let gone = command(url).arg("jobs").output().unwrap();
    assert_eq!(gone.status.code(), Some(2));
}

#[test]
fn admin_routes() {
    let sim = start();
    let api = Api::new(&sim);
    let job = json!({"type": "STOP_SANDBOX", "resourceId": "a", "payload": {"force": true}});
    let made = api.post("/sim/jobs", &job);
    assert_eq!(made.status, 201);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(api.post("/sim/jobs", &job).status, 409);
    assert_eq!(api.post("/sim/jobs", &json!({"type": "X"})).status, 400);
    let mut foreign = job.clone();
    foreign["runnerId"] = json!("nobody");
    assert_eq!(api.post("/sim/jobs", &foreign).status, 404);
    let path = format!("/sim/jobs/{id}");
    assert_eq!(api.get(&format!("{path}?wait=20")).json()["status"], "PENDING");
    assert_eq!(api.get("/sim/jobs/none").status, 404);
    assert_eq!(api.get(&format!("{path}?wait=x")).status, 400);
    let waiting = api.open("GET", &format!("{path}?wait=20000"), None).unwrap();
    api.poll("timeout=1");
    api.report(&id, "COMPLETED");
    let seen = common::receive(waiting).unwrap().json();
    assert_eq!(seen["status"], "COMPLETED");
    for name in ["queuedUs", "claimLatencyUs", "runningUs"] {
        assert!(seen[name].is_u64(), "{name}");
    }
    for path in [
        "sandboxes",
        "snapshots",
        "runner",
        "runners",
        "reports",
        "healthchecks",
        "state-puts",
        "latencies",
        "events",
        "info",
    ] {
        assert_eq!(api.get(&format!("/sim/{path}")).status, 200, "{path}");
    }
    assert_eq!(api.get("/sim/reports").json()[0]["jobId"], id.as_str());
    assert_eq!(api.get("/sim/nothing").status, 404);
}

#[test]
fn clock_and_events_over_http() {
    let sim = start();
    let api = Api::new(&sim);
    let id = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    api.poll("timeout=1");
    assert_eq!(api.post("/sim/clock", &json!({"advanceSeconds": 1900})).status, 204);
    assert_eq!(sim.wait_job(&id, SOON).unwrap().status.as_str(), "FAILED");
    assert_eq!(api.post("/sim/clock", &json!({"advanceSeconds": -1})).status, 400);
    let events = api.get("/sim/events").json();
    let last = events.as_array().unwrap().last().unwrap()["seq"].as_u64().unwrap();
    let begun = Instant::now();
    let none = api.get(&format!("/sim/events?after={last}&wait=100")).json();
    assert_eq!(none, json!([]));
    assert!(begun.elapsed() >= Duration::from_millis(100));
}

#[test]
fn stop_ends_the_server_and_records_stay() {
    let sim = start();
    let api = Api::new(&sim);
    let id = sim.create_sandbox(&CreateSpec::new("a")).unwrap();
    sim.stop();
    assert!(api.try_call("GET", "/api/jobs", None).is_err());
    assert!(sim.job(&id).is_some());
    assert!(sim.wait_job(&id, Duration::from_millis(20)).is_none());
}
