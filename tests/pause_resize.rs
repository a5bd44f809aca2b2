//! Pause and resume, and other resources for a sandbox that is there (PROTOCOL.md 5, PAUSE_SANDBOX and RESIZE_SANDBOX).

use std::time::{Duration, Instant};

use daytona_sim::SandboxState;
use serde_json::json;

mod common;
mod life;
#[path = "pause_resize/resize.rs"]
mod resize;

use common::{Host, SOON, eventually, leftovers};
use life::{consistent, counter, failed, fault_met, host, marked, no_faults, post, refused, shown, start, stop};

#[track_caller]
fn row(host: &Host, id: &str, state: SandboxState) {
    assert!(host.api.wait_sandbox(id, state, SOON).is_some(), "the API's row is {:?}", host.api.sandbox(id));
}

#[track_caller]
fn pause(host: &Host, id: &str) {
    host.completed(&host.api.pause_sandbox(id).unwrap());
    assert_eq!(shown(host, id)["state"], "paused");
    row(host, id, SandboxState::Paused);
}

/// Milliseconds that the guest has run.
fn ran(host: &Host, id: &str) -> u64 {
    let answer = host.http().get(&format!("/sandboxes/{id}/toolbox/counter"));
    answer.json()["runningMs"].as_u64().unwrap_or_else(|| panic!("{answer:?}"))
}

/// Between `pause` and `resume` half a second passes, and none of it in the guest.
#[track_caller]
fn stands_still(host: &Host, id: &str, pause: impl Fn(), resume: impl Fn()) {
    let (began, before) = (Instant::now(), ran(host, id));
    pause();
    let paused = Instant::now();
    // That nothing happens can only be seen where time passes.
    std::thread::sleep(Duration::from_millis(500));
    let still = paused.elapsed();
    resume();
    let run = Duration::from_millis(ran(host, id) - before);
    let awake = began.elapsed().saturating_sub(still);
    assert!(run <= awake + Duration::from_millis(20), "the guest ran {run:?}, and was awake {awake:?}");
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let host = host("overlay");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    let pid = shown(&host, "box")["pid"].clone();
    stands_still(&host, "box", || pause(&host, "box"), || start(&host, "box"));
    row(&host, "box", SandboxState::Started);
    assert_eq!(shown(&host, "box")["pid"], pid, "the same VMM");
    marks.still_runs(&host, "box");
    // Its resources are still taken.
    pause(&host, "box");
    let metrics = host.http().get("/info").json()["metrics"].clone();
    assert_eq!((&metrics["currentAllocatedMemoryGiB"], &metrics["currentStartedSandboxes"]), (&json!(1), &json!(0)));
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn pause_and_resume_over_http() {
    let host = host("overlay");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    let pause = || assert_eq!(post(&host, "/sandboxes/box/pause", ""), "Sandbox paused");
    let resume = || assert_eq!(post(&host, "/sandboxes/box/resume", ""), "Sandbox resumed");
    stands_still(&host, "box", pause, resume);
    for _ in 0..3 {
        pause();
        assert_eq!(shown(&host, "box")["state"], "paused");
    }
    for _ in 0..3 {
        resume();
        assert_eq!(shown(&host, "box")["state"], "started");
    }
    // Start is resume, too; of a job that is executed again nobody notices anything.
    pause();
    post(&host, "/sandboxes/box/start", "");
    marks.still_runs(&host, "box");

    stop(&host, "box");
    let message = refused(&host, "/sandboxes/box/pause", "", 409);
    assert!(message.contains("cannot pause sandbox box") && message.contains("not running"), "{message}");
    resume();
    marks.went_on(&host, "box");
    for route in ["pause", "resume"] {
        let message = refused(&host, &format!("/sandboxes/no-box/{route}"), "", 404);
        assert!(message.contains("no-box"), "{message}");
    }
    let reason = failed(&host, &host.api.pause_sandbox("no-box").unwrap());
    assert!(reason.contains("no-box") && reason.contains("does not exist"), "{reason}");
}

#[test]
fn a_pause_that_fails_leaves_it_running() {
    let host = host("overlay");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    host.faults(json!([{ "when": "vm.pause", "action": "error", "value": "Injected by the test" }]));
    let reason = failed(&host, &host.api.pause_sandbox("box").unwrap());
    assert!(reason.contains("box") && reason.contains("Injected by the test"), "{reason}");
    assert_eq!(shown(&host, "box")["state"], "started");
    marks.still_runs(&host, "box");
    no_faults(&host);
    post(&host, "/sandboxes/box/pause", "");
    host.faults(json!([{ "when": "vm.resume", "action": "error" }]));
    assert_eq!(host.http().post("/sandboxes/box/resume", "").status, 500);
    assert_eq!(shown(&host, "box")["state"], "paused");
    no_faults(&host);
    post(&host, "/sandboxes/box/resume", "");
    marks.still_runs(&host, "box");
}

fn copies_of_a_paused_sandbox(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    let marks = marked(&host, "box");
    pause(&host, "box");
    let made = post(&host, "/sandboxes/box/fork", r#"{"newSandboxId":"child"}"#);
    assert_eq!((&made["state"], &made["begin"]["from"]), (&json!("started"), &json!("memory")), "{made}");
    assert_eq!(shown(&host, "box")["state"], "paused");
    marks.still_runs(&host, "child");
    for (name, live) in [("warm", true), ("cold", false)] {
        let body = json!({ "sandboxId": "box", "name": name, "organizationId": "org", "live": live });
        assert_eq!(post(&host, "/snapshots/create", &body.to_string())["liveMode"], live);
        assert_eq!(shown(&host, "box")["state"], "paused", "after a {name} snapshot");
    }
    // The child does not hold its parent up, nor the other way round.
    host.in_guest("child", "write-block 9 childs");
    post(&host, "/sandboxes/box/resume", "");
    marks.still_runs(&host, "box");
    assert_eq!(host.in_guest("box", "read-block 9"), "");
    consistent(&host, "child");
    post(&host, "/sandboxes/box/pause", "");
    post(&host, "/sandboxes/box/destroy", "");
    assert_eq!(host.in_guest("child", "read-block 9"), "childs");
    post(&host, "/sandboxes/child/destroy", "");
    leftovers::none(&host);
}

#[test]
fn copies_of_a_paused_sandbox_on_reflink() {
    copies_of_a_paused_sandbox("reflink");
}

#[test]
fn copies_of_a_paused_sandbox_on_overlays() {
    copies_of_a_paused_sandbox("overlay");
}

#[test]
fn a_paused_sandbox_outlives_the_runner_as_it_is() {
    let host = host("overlay");
    let runner = host.runner();
    let marks = marked(&host, "box");
    let before = counter(&host, "box");
    pause(&host, "box");
    let pid = shown(&host, "box")["pid"].clone();
    assert!(runner.stop().success());
    let runner = host.runner();
    assert_eq!((&shown(&host, "box")["state"], &shown(&host, "box")["pid"]), (&json!("paused"), &pid));
    runner.murder();
    let _runner = host.runner();
    assert_eq!((&shown(&host, "box")["state"], &shown(&host, "box")["pid"]), (&json!("paused"), &pid));
    start(&host, "box");
    marks.still_runs(&host, "box");
    assert!(counter(&host, "box") >= before);
}

/// Whether the guest answers, that is, runs.
fn answers(host: &Host, id: &str) -> bool {
    use std::io::{Read, Write};
    let mut stream = host.http().connect().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let token = common::TOKEN;
    let head = format!(
        "GET /sandboxes/{id}/toolbox/counter HTTP/1.1\r\nhost: h\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).is_ok() && start.ends_with(b"200")
}

/// The runner dies between what it did and the note of it; what it shows afterwards must be so.
fn dies_in_the_middle(first: &[&str], route: &'static str, when: &str) {
    let host = host("overlay");
    let runner = host.runner();
    let marks = marked(&host, "box");
    for route in first {
        post(&host, &format!("/sandboxes/box/{route}"), "");
    }
    host.faults(json!([{ "when": when, "action": "delay_ms", "value": 300, "times": 1 }]));
    let http = host.http();
    let asking = std::thread::spawn(move || life::try_post(&http, &format!("/sandboxes/box/{route}")));
    fault_met(&host);
    runner.murder();
    assert!(asking.join().unwrap().is_none(), "nobody was told anything");
    let _runner = host.runner();
    let state = eventually("the sandbox rests", || {
        // A pause that is being finished is shown as "started".
        let quiet = host.http().get("/drain").json()["unsettled"].as_array()?.is_empty();
        let shown = Some(shown(&host, "box")).filter(|_| quiet)?;
        ["paused", "started"].map(|state| json!(state)).contains(&shown["state"]).then(|| shown["state"].clone())
    });
    assert_eq!(answers(&host, "box"), state == "started", "it is shown as {state}");
    // And either way it does what it is told from then on.
    post(&host, "/sandboxes/box/pause", "");
    assert!(!answers(&host, "box"));
    post(&host, "/sandboxes/box/resume", "");
    marks.still_runs(&host, "box");
}

#[test]
fn a_runner_that_dies_in_the_middle_of_a_pause() {
    dies_in_the_middle(&[], "pause", "vm.pause");
}

#[test]
fn a_runner_that_dies_in_the_middle_of_a_resume() {
    dies_in_the_middle(&["pause"], "resume", "vm.resume");
}

#[test]
fn a_runner_that_dies_right_after_a_resume() {
    dies_in_the_middle(&["pause"], "resume", "vm.resume:done");
}
