//! The real runner when it is asked for more than there is: no room, no space, too much at once, a drain, and VMMs
//! that never answer.

use std::fs::File;

use daytona_sim::{JobStatus, SandboxState};
use serde_json::json;

mod common;

use common::http::Answer;
use common::{Host, eventually, leftovers};

fn body(id: &str) -> String {
    json!({ "id": id, "snapshot": "ubuntu-base.1", "cpuQuota": 1, "memoryQuota": 1, "storageQuota": 1 }).to_string()
}

fn create(host: &Host, id: &str) -> Answer {
    host.http().post("/sandboxes", &body(id))
}

#[track_caller]
fn busy(answer: &Answer, words: &[&str]) {
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.header("retry-after").is_some(), "{}", answer.head);
    for word in words {
        assert!(answer.body.contains(word), "{word:?} is not in {}", answer.body);
    }
}

/// Leaves so many bytes of the data volume.
fn fill(host: &Host, left: u64) {
    let volume = host.path("volume");
    let about = rustix::fs::statvfs(&volume).expect("the volume");
    let free = about.f_bavail * about.f_frsize;
    let filler = File::create(volume.join("filler")).expect("a file");
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, free - left).expect("room");
}

#[test]
fn a_full_data_volume_stops_new_work_until_there_is_space_again() {
    let mut host = Host::on_xfs();
    host.set("RUNNER_MIN_FREE_DISK_MB", "200");
    let _runner = host.runner();
    for id in ["runs", "stops", "goes"] {
        host.completed(&host.api.create_sandbox(&host.spec(id)).unwrap());
    }
    fill(&host, 100 << 20);

    let refused = eventually("creations are refused", || {
        let answer = create(&host, "new");
        // One that was let in before the next look at the volume.
        if answer.status == 201 {
            assert_eq!(host.http().delete("/sandboxes/new").status, 200);
        }
        (answer.status != 201).then_some(answer)
    });
    assert_eq!(refused.status, 507, "{}", refused.body);
    for words in ["no space left on device", "MiB free", "RUNNER_MIN_FREE_DISK_MB"] {
        assert!(refused.body.contains(words), "{}", refused.body);
    }
    assert_eq!(refused.json()["code"], "NO_SPACE");
    let job = host.create("by-job");
    assert_eq!(job.status, JobStatus::Failed);
    let reason = job.error_message.unwrap();
    assert!(reason.contains("no space left on device") && reason.contains("\"recoverable\":true"), "{reason}");
    let copy = host.http().post("/sandboxes/runs/fork", r#"{"newSandboxId":"copy"}"#);
    assert_eq!(copy.status, 507, "{}", copy.body);
    let snapshot = host.http().post("/snapshots/create", r#"{"sandboxId":"runs","name":"point"}"#);
    assert_eq!(snapshot.status, 507, "{}", snapshot.body);
    let kept = host.http().post("/sandboxes/stops/stop", r#"{"mode":"checkpoint"}"#);
    assert_eq!(kept.status, 507, "{}", kept.body);

    assert_eq!(host.in_guest("runs", "echo on"), "on");
    assert_eq!(host.in_guest("stops", "echo on"), "on");
    host.completed(&host.api.stop_sandbox("stops", None).unwrap());
    let stopped = host.http().get("/sandboxes/stops").json();
    let note = stopped["begin"]["note"].as_str().unwrap_or_default();
    assert!(note.starts_with("stopped without its memory"), "{stopped}");
    assert_eq!(host.http().post("/sandboxes/stops/start", "").status, 507);
    host.completed(&host.api.destroy_sandbox("goes").unwrap());

    std::fs::remove_file(host.path("volume/filler")).unwrap();
    eventually("creations work again", || (create(&host, "new").status == 201).then_some(()));
    host.completed(&host.api.start_sandbox("stops").unwrap());
    let said = |words: &str| host.log().matches(words).count();
    assert_eq!((said("work that needs space is refused"), said("there is space again")), (1, 1), "{}", host.log());
}

#[test]
fn what_does_not_fit_is_refused_over_http_and_to_the_api_with_the_figures() {
    let mut host = Host::new();
    host.set("RUNNER_MEMORY_OVERCOMMIT", "0.01");
    let runner = host.runner();
    busy(
        &create(&host, "box"),
        &["1024 MiB asked for", "0 MiB are promised to 0 sandboxes", "RUNNER_MEMORY_OVERCOMMIT"],
    );
    let job = host.create("box");
    assert_eq!(job.status, JobStatus::Failed);
    let reason = job.error_message.unwrap();
    assert!(reason.contains("cannot create sandbox box: no memory left to promise"), "{reason}");
    leftovers::none(&host);
    assert!(runner.stop().success());
    host.set("RUNNER_MEMORY_OVERCOMMIT", "0");
    host.set("RUNNER_MIN_FREE_MEMORY_MB", "16777216");
    let _runner = host.runner();
    busy(&create(&host, "box"), &["not enough free memory", "16777216 MiB must stay free"]);
    leftovers::none(&host);
}

#[test]
fn what_waits_is_bounded_and_jobs_stay_with_the_api() {
    let mut host = Host::new();
    host.set("RUNNER_MAX_QUEUED", "1");
    host.faults(json!([{ "when": "toolbox", "sandbox": "hangs", "action": "never" }]));
    let _runner = host.runner();
    let http = host.http();
    let creating = std::thread::spawn(move || http.post("/sandboxes", &body("hangs")));
    eventually("it is under way", || {
        let under_way = host.http().get("/drain").json();
        let seen = host.http().get("/sandboxes/hangs").status == 200;
        (seen && under_way["requests"][0]["object"] == "hangs").then_some(())
    });
    busy(&create(&host, "more"), &["1 requests are under way", "RUNNER_MAX_QUEUED"]);
    assert_eq!(host.http().delete("/sandboxes/hangs").status, 200, "and so does what frees the host");
    assert_eq!(creating.join().unwrap().status, 409);

    host.faults(json!([{ "when": "toolbox", "sandbox": "first", "action": "delay_ms", "value": 3000 }]));
    let first = host.api.create_sandbox(&host.spec("first")).unwrap();
    eventually("the first job is begun", || (host.api.job(&first)?.status == JobStatus::InProgress).then_some(()));
    let second = host.api.create_sandbox(&host.spec("second")).unwrap();
    host.completed(&first);
    let (first, second) = (host.api.job(&first).unwrap(), host.completed(&second));
    assert!(first.completed_at <= second.started_at, "the second waited at the API: {first:?} {second:?}");
}

#[test]
fn a_drained_runner_begins_nothing_and_finishes_what_it_has() {
    let mut host = Host::new();
    host.set("POLL_TIMEOUT", "1s");
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("runs")).unwrap());
    host.faults(json!([{ "when": "toolbox", "sandbox": "late", "action": "delay_ms", "value": 2000 }]));
    let late = host.api.create_sandbox(&host.spec("late")).unwrap();
    eventually("the job is begun", || (host.api.job(&late)?.status == JobStatus::InProgress).then_some(()));

    let drain = host.http().post("/drain", "");
    assert_eq!((drain.status, &drain.json()["draining"]), (200, &json!(true)));
    assert_eq!(host.http().get("/").json()["status"], "draining");
    assert_eq!(host.http().get("/info").json()["draining"], true);
    let quiet = eventually("it is drained", || {
        let drain = host.http().get("/drain").json();
        (drain["drained"] == true).then_some(drain)
    });
    assert_eq!(quiet["jobs"], json!([]));
    assert_eq!(host.api.job(&late).unwrap().status, JobStatus::Completed, "what was begun is finished first");

    let waits = host.api.create_sandbox(&host.spec("waits")).unwrap();
    for (path, body) in [
        ("/sandboxes", body("new")),
        ("/sandboxes/runs/start", String::new()),
        ("/sandboxes/runs/fork", r#"{"newSandboxId":"copy"}"#.to_owned()),
        ("/sandboxes/runs/clone", r#"{"newSandboxId":"copy"}"#.to_owned()),
        ("/snapshots/create", r#"{"sandboxId":"runs","name":"point"}"#.to_owned()),
    ] {
        busy(&host.http().post(path, &body), &["being drained by its operator"]);
    }
    assert_eq!(host.in_guest("runs", "echo on"), "on", "the proxy works");
    assert_eq!(host.http().post("/sandboxes/runs/pause", "").status, 200);
    assert_eq!(host.http().post("/sandboxes/runs/resume", "").status, 200, "it is no new work");
    assert_eq!(host.http().post("/sandboxes/runs/stop", "").status, 200);
    busy(&host.http().post("/sandboxes/runs/resume", ""), &["being drained"]);
    assert_eq!(host.http().delete("/sandboxes/late").status, 200);
    assert_eq!(host.http().get("/drain").json()["drained"], true);
    assert_eq!(host.api.job(&waits).unwrap().status, JobStatus::Pending, "the API keeps the job");

    let ended = host.http().delete("/drain").json();
    assert_eq!((&ended["draining"], &ended["drained"]), (&json!(false), &json!(false)));
    host.completed(&waits);
    assert_eq!(host.http().post("/sandboxes/runs/start", "").status, 200);

    // A drain does not outlive the runner.
    host.http().post("/drain", "");
    assert!(runner.stop().success());
    let _runner = host.runner();
    assert_eq!(host.http().get("/drain").json()["draining"], false);
    assert_eq!(host.http().with_token("wrong").post("/drain", "").status, 401);
}

/// Calls that a VMM never answers end in time, and so does its process.
#[test]
fn a_vmm_that_never_answers_is_gone_in_the_end() {
    let mut host = Host::new();
    host.set("SANDBOX_START_TIMEOUT_SEC", "2");
    let _runner = host.runner();
    for (when, words) in [("vm.create", "vm.create"), ("vm.boot", "SANDBOX_START_TIMEOUT_SEC")] {
        host.faults(json!([{ "when": when, "action": "never" }]));
        let job = host.create("box");
        assert_eq!(job.status, JobStatus::Failed);
        let reason = job.error_message.unwrap();
        assert!(reason.contains(words), "{when}: {reason}");
        leftovers::none(&host);
    }
    host.faults(json!([]));
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    assert_eq!(host.api.sandbox("box").unwrap().state, SandboxState::Started);
}
