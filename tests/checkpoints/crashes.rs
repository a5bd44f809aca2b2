//! Stops and starts that are cut off: the runner dies in the middle of them, or the VMM does.

use serde_json::json;

use super::life::{Marks, consistent, fault_met, host, marked, no_faults, rests, shown, start, stop};
use super::{Host, kept};

/// Nothing that was promised is lost: the jobs are executed again, and the guest goes on from where it was.
fn the_runner_dies(host: &Host, when: &str, order: impl Fn() -> String) {
    no_faults(host);
    host.faults(json!([{ "when": when, "action": "delay_ms", "value": 700, "times": 1 }]));
    let runner = host.runner();
    let job = order();
    fault_met(host);
    runner.murder();
    let again = host.runner();
    host.completed(&job);
    drop(again);
}

fn in_the_middle_of_a_stop(strategy: &str) {
    let host = host(strategy);
    let marks = {
        let _runner = host.runner();
        marked(&host, "box")
    };
    for when in ["vm.pause", "vm.pause:done", "vm.snapshot", "vm.snapshot:done", "vmm.shutdown"] {
        the_runner_dies(&host, when, || host.api.stop_sandbox("box", None).unwrap());
        let _runner = host.runner();
        let stopped = rests(&host, "box", "stopped");
        assert!(kept(&host, "box"), "cut off at {when}: {stopped}\n{}", host.log());
        start(&host, "box");
        marks.went_on(&host, "box");
        assert!(!kept(&host, "box"));
    }
}

#[test]
fn a_runner_that_dies_in_the_middle_of_a_stop_on_reflink() {
    in_the_middle_of_a_stop("reflink");
}

#[test]
fn a_runner_that_dies_in_the_middle_of_a_stop_on_overlays() {
    in_the_middle_of_a_stop("overlay");
}

fn in_the_middle_of_a_start(strategy: &str) {
    let host = host(strategy);
    let marks = {
        let _runner = host.runner();
        marked(&host, "box")
    };
    for when in ["vmm.ping", "vm.restore", "vm.restore:done", "vm.resume", "vm.resume:done"] {
        {
            let _runner = host.runner();
            stop(&host, "box");
        }
        the_runner_dies(&host, when, || host.api.start_sandbox("box").unwrap());
        let _runner = host.runner();
        rests(&host, "box", "started");
        marks.went_on(&host, "box");
        assert!(!kept(&host, "box"), "cut off at {when}: it is used up");
    }
}

#[test]
fn a_runner_that_dies_in_the_middle_of_a_start_on_reflink() {
    in_the_middle_of_a_start("reflink");
}

#[test]
fn a_runner_that_dies_in_the_middle_of_a_start_on_overlays() {
    in_the_middle_of_a_start("overlay");
}

fn restarts(strategy: &str) {
    let host = host(strategy);
    let runner = host.runner();
    let marks = marked(&host, "box");
    // Right behind the answer, by SIGKILL; then in order.
    stop(&host, "box");
    runner.murder();
    let runner = host.runner();
    assert!(kept(&host, "box"));
    assert!(runner.stop().success());
    let runner = host.runner();
    assert!(kept(&host, "box"));
    start(&host, "box");
    marks.went_on(&host, "box");
    // The same the other way round: a start that was answered is not undone.
    runner.murder();
    let _runner = host.runner();
    marks.went_on(&host, "box");
    assert!(!kept(&host, "box"));
}

#[test]
fn the_memory_of_a_stopped_sandbox_outlives_the_runner_on_reflink() {
    restarts("reflink");
}

#[test]
fn the_memory_of_a_stopped_sandbox_outlives_the_runner_on_overlays() {
    restarts("overlay");
}

/// Its memory is on disk by then, and what its disk has of the last writes depends on the format: a qcow2 image has
/// them only after an orderly end. Memory and disk must agree in any case.
fn the_vmm_dies_before_its_orderly_end(strategy: &str, action: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    let marks = marked(&host, "box");
    host.in_guest("box", "sync; write-block 5000 fresh; write-block 9000 fresh");
    host.faults(json!([{ "when": "vmm.shutdown", "action": action, "times": 1 }]));
    let answer = host.http().post("/sandboxes/box/stop", "");
    rests(&host, "box", "stopped");
    no_faults(&host);
    start(&host, "box");
    let shown = shown(&host, "box");
    match shown["begin"]["from"].as_str() {
        Some("memory") => {
            marks.went_on(&host, "box");
            assert_eq!(host.in_guest("box", "read-block 5000; read-block 9000"), "fresh\nfresh");
        }
        _ => {
            // The kernel has every write of a process that died.
            assert_eq!(strategy, "overlay", "{shown}");
            let told = shown["begin"]["note"].is_string() || answer.status >= 400;
            assert!(told, "its memory was given up without a word: {shown} {answer:?}");
            host.in_guest("box", "writer start");
            consistent(&host, "box");
        }
    }
    let _ = Marks::put(&host, "box");
}

#[test]
fn a_vmm_that_crashes_at_its_end_on_reflink() {
    the_vmm_dies_before_its_orderly_end("reflink", "crash");
}

#[test]
fn a_vmm_that_crashes_at_its_end_on_overlays() {
    the_vmm_dies_before_its_orderly_end("overlay", "crash");
}

#[test]
fn a_vmm_that_exits_at_its_end_without_writing_on_overlays() {
    the_vmm_dies_before_its_orderly_end("overlay", "exit");
}
