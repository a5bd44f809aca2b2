//! FORK_SANDBOX and CLONE_SANDBOX as the API orders them, from sources in every state, one and many at a time.

use std::collections::BTreeSet;

use daytona_sim::{Dialect, JobStatus, ResourceType, SandboxState};
use serde_json::{Value, json};

mod common;
mod life;

use common::{Host, SOON, leftovers};
use life::{consistent, failed, host, marked, no_faults, post, result, shown, start, stop};

#[track_caller]
fn rows(host: &Host, source: SandboxState, child: &str) {
    assert!(host.api.wait_sandbox(child, SandboxState::Started, SOON).is_some(), "{:?}", host.api.sandbox(child));
    assert!(host.api.wait_sandbox("box", source, SOON).is_some(), "{:?}", host.api.sandbox("box"));
}

/// The result of a copy as both dialects read it.
#[track_caller]
fn copied(made: &Value, child: &str, parent: &str, host: &Host) {
    assert_eq!(
        (&made["id"], &made["state"], &made[parent]),
        (&json!(child), &json!("started"), &json!("box")),
        "{made}"
    );
    let version = host.http().get(&format!("/sandboxes/{child}/toolbox/version")).json()["version"].clone();
    assert_eq!(made["daemonVersion"], version, "{made}");
    assert_eq!(host.api.sandbox(child).unwrap().daemon_version.as_deref(), version.as_str());
    assert_eq!(shown(host, child)["parentId"], "box");
}

fn of_a_running_source(dialect: Dialect) {
    let host = Host::with(|options| options.dialect = dialect);
    let _runner = host.runner();
    let marks = marked(&host, "box");
    let made = result(&host, &host.api.fork_sandbox("box", "fork").unwrap());
    copied(&made, "fork", "parentId", &host);
    assert_eq!((&made["begin"]["from"], &made["begin"]["identity"]), (&json!("memory"), &json!("confirmed")), "{made}");
    assert!(made["begin"]["copy"]["pauseMicros"].as_u64().is_some_and(|micros| micros > 0), "{made}");
    rows(&host, SandboxState::Started, "fork");
    let made = result(&host, &host.api.clone_sandbox("box", "clone").unwrap());
    copied(&made, "clone", "sourceSandboxId", &host);
    rows(&host, SandboxState::Started, "clone");
    for id in ["box", "fork", "clone"] {
        marks.still_runs(&host, id);
    }
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    for id in ["fork", "clone"] {
        marks.still_runs(&host, id);
        host.completed(&host.api.destroy_sandbox(id).unwrap());
    }
    leftovers::none(&host);
}

#[test]
fn of_a_running_source_by_the_current_api() {
    of_a_running_source(Dialect::V0190);
}

#[test]
fn of_a_running_source_by_the_branch() {
    of_a_running_source(Dialect::Branch);
}

fn of_a_stopped_source(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    let marks = marked(&host, "box");
    // With its memory in a checkpoint, and the source can still go on from it itself.
    stop(&host, "box");
    let made = result(&host, &host.api.fork_sandbox("box", "warm").unwrap());
    assert_eq!(made["begin"]["from"], "memory", "{made}");
    rows(&host, SandboxState::Stopped, "warm");
    let source = shown(&host, "box");
    assert_eq!((&source["state"], &source["checkpoint"]), (&json!("stopped"), &json!(true)), "{source}");
    marks.went_on(&host, "warm");
    host.in_guest("warm", "write-block 9 warms; sync");
    start(&host, "box");
    marks.went_on(&host, "box");
    assert_eq!(host.in_guest("box", "read-block 9"), "");

    // Without: from the disk, which is as the guest left it.
    host.in_guest("box", "write-block 9 boxs; sync");
    post(&host, "/sandboxes/box/stop", r#"{"mode":"shutdown"}"#);
    let made = result(&host, &host.api.clone_sandbox("box", "cold").unwrap());
    assert_eq!(made["begin"]["from"], "boot", "{made}");
    let copy = marks.booted_again(&host, "cold");
    assert!(copy["begin"].get("note").is_none(), "{copy}");
    assert_eq!(host.in_guest("cold", "hostname; read-block 9"), "cold\nboxs");
    assert_eq!(host.in_guest("warm", "read-block 9"), "warms");
    start(&host, "box");
    assert_eq!(host.in_guest("box", "read-block 9"), "boxs");
    for id in ["box", "warm", "cold"] {
        post(&host, &format!("/sandboxes/{id}/destroy"), "");
    }
    leftovers::none(&host);
    assert_eq!(leftovers::layers(&host), 0);
}

#[test]
fn of_a_stopped_source_on_reflink() {
    of_a_stopped_source("reflink");
}

#[test]
fn of_a_stopped_source_on_overlays() {
    of_a_stopped_source("overlay");
}

#[test]
fn of_a_paused_source() {
    let host = host("overlay");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    post(&host, "/sandboxes/box/pause", "");
    let made = result(&host, &host.api.fork_sandbox("box", "child").unwrap());
    copied(&made, "child", "parentId", &host);
    assert_eq!(shown(&host, "box")["state"], "paused");
    marks.went_on(&host, "child");
    post(&host, "/sandboxes/box/resume", "");
    marks.still_runs(&host, "box");
}

fn jobs_that_come_together(strategy: &str) {
    let host = host(strategy);
    let marks = {
        let _runner = host.runner();
        marked(&host, "box")
    };
    // Nobody polls while they are ordered, so that they are handed out by one poll.
    let children: Vec<String> = (1..=5).map(|n| format!("child-{n}")).collect();
    let jobs: Vec<String> = children.iter().map(|id| host.api.fork_sandbox("box", id).unwrap()).collect();
    let _runner = host.runner();
    let copies: BTreeSet<String> = jobs.iter().map(|job| result(&host, job)["begin"]["copy"].to_string()).collect();
    assert_eq!(copies.len(), 1, "one pause serves all, to the microsecond: {copies:?}");
    assert!(!copies.contains("null"), "{copies:?}");
    let log = host.log();
    let pauses = log.lines().filter(|line| line.contains("captured") || line.contains("stage=\"suspend\"")).count();
    assert_eq!(pauses, 1, "{log}");
    for id in &children {
        marks.went_on(&host, id);
        rows(&host, SandboxState::Started, id);
    }
    marks.still_runs(&host, "box");
    let names: BTreeSet<String> = children.iter().map(|id| host.in_guest(id, "random")).collect();
    assert_eq!(names.len(), 5, "no two have the same random numbers");
}

#[test]
fn jobs_that_come_together_are_served_by_one_pause_on_reflink() {
    jobs_that_come_together("reflink");
}

#[test]
fn jobs_that_come_together_are_served_by_one_pause_on_overlays() {
    jobs_that_come_together("overlay");
}

#[test]
fn a_job_that_comes_twice_is_done_once() {
    let host = host("overlay");
    let runner = host.runner();
    let marks = marked(&host, "box");
    host.api.faults().double_delivery(1);
    host.completed(&host.api.fork_sandbox("box", "child").unwrap());
    let pid = shown(&host, "child")["pid"].clone();
    assert_eq!(host.log().matches("stage=\"suspend\"").count(), 1, "{}", host.log());
    // The same job executed again, as after a crash: the child is there.
    let payload = json!({ "sourceSandboxId": "box", "newSandboxId": "child" }).to_string();
    let again = host.api.submit("FORK_SANDBOX", ResourceType::Sandbox, "child", payload).unwrap();
    let made = result(&host, &again);
    assert_eq!((&made["id"], &made["parentId"]), (&json!("child"), &json!("box")), "{made}");
    assert_eq!(shown(&host, "child")["pid"], pid, "the same VM");
    marks.still_runs(&host, "child");
    runner.murder();
    let _runner = host.runner();
    assert_eq!(shown(&host, "child")["pid"], pid);
    marks.still_runs(&host, "box");
}

#[test]
fn what_cannot_be_copied() {
    let host = host("overlay");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    let submit = |id: &str, payload: Value| {
        host.api.submit("FORK_SANDBOX", ResourceType::Sandbox, id, payload.to_string()).unwrap()
    };
    let reason = failed(&host, &submit("child", json!({ "sourceSandboxId": "no-box", "newSandboxId": "child" })));
    assert!(reason.contains("no-box") && reason.contains("does not exist"), "{reason}");
    let reason = failed(&host, &submit("child", json!({ "newSandboxId": "child" })));
    assert!(reason.contains("sourceSandboxId: expected"), "{reason}");
    let reason = failed(&host, &submit("box", json!({ "sourceSandboxId": "box", "newSandboxId": "box" })));
    assert!(reason.contains("itself"), "{reason}");
    // Over an existing one that is no copy of this source.
    host.completed(&host.api.create_sandbox(&host.spec("other")).unwrap());
    host.in_guest("other", "echo mine > /tmp/mark");
    let reason = failed(&host, &submit("other", json!({ "sourceSandboxId": "box", "newSandboxId": "other" })));
    assert!(reason.contains("other") && reason.contains("exists"), "{reason}");
    let answer = host.http().post("/sandboxes/box/fork", r#"{"newSandboxId":"other"}"#);
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(host.in_guest("other", "cat /tmp/mark"), "mine");
    marks.still_runs(&host, "box");
    assert_eq!(host.http().get("/sandboxes/child").status, 404);
    assert!(leftovers::of_copies(&host).is_empty());
}

/// What the VMM of an overlay has not written at its end is lost: no copy may have memory that knows more.
#[test]
fn a_source_whose_vmm_does_not_end_in_order() {
    let host = host("overlay");
    let _runner = host.runner();
    let _ = marked(&host, "box");
    host.in_guest("box", "sync; write-block 5000 fresh; write-block 9000 fresh");
    host.faults(json!([{ "when": "vmm.shutdown", "sandbox": "box", "action": "crash", "times": 1 }]));
    let job = host.done(&host.api.fork_sandbox("box", "child").unwrap());
    no_faults(&host);
    let ids: &[&str] = if job.status == JobStatus::Completed { &["box", "child"] } else { &["box"] };
    for id in ids {
        life::rests(&host, id, "started");
        if shown(&host, id)["begin"]["from"] == "memory" || host.in_guest(id, "cat /tmp/mark || echo gone") == "kept" {
            assert_eq!(host.in_guest(id, "read-block 5000; read-block 9000"), "fresh\nfresh", "{id}");
            consistent(&host, id);
        }
        assert_eq!(host.in_guest(id, "read-block 7"), "kept");
    }
}
