//! The VMM of a source is killed; the sandbox is started again from its disk, and copied, stopped and started as if
//! nothing had happened.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::copies::{beats, consistent, describe, destroy, faults, forked, host, only, parent};
use crate::common::{Host, eventually};

/// A guest that has booted anew writes again. What its disk lost with its VMM is soon written over.
fn write_anew(host: &Host) {
    host.in_guest("parent", "writer start");
    eventually("the writer is through all its blocks", || {
        let check: Value = serde_json::from_str(&host.in_guest("parent", "writer check")).ok()?;
        (check["consistent"] == true && beats(host, "parent").0 > 50).then_some(())
    });
}

fn killed_and_copied(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    parent(&host);
    for round in 0..3 {
        eventually("the writer has written", || (beats(&host, "parent").0 > 20).then_some(()));
        let pid = describe(&host, "parent")["pid"].as_i64().expect("a pid");
        kill(Pid::from_raw(pid.try_into().expect("a pid")), Signal::SIGKILL).expect("it runs");
        eventually("the end is seen", || (describe(&host, "parent")["state"] == "stopped").then_some(()));
        let reason = describe(&host, "parent")["errorReason"].clone();
        assert_eq!(reason, "the VMM was ended by signal 9", "round {round}");
        only(&host, &[], &["parent"]);
        assert_eq!(host.http().post("/sandboxes/parent/start", "").status, 200);
        write_anew(&host);
        forked(&host, "parent", "child");
        consistent(&host, "child");
        consistent(&host, "parent");
        destroy(&host, "child");
        only(&host, &["parent"], &[]);
    }
}

#[test]
fn a_source_whose_vmm_was_killed_is_copied_again_on_reflink() {
    killed_and_copied("reflink");
}

#[test]
fn a_source_whose_vmm_was_killed_is_copied_again_on_overlays() {
    killed_and_copied("overlay");
}

/// A stop keeps the memory, but the VMM dies before it has written all of its disk: the memory is newer than the disk
/// and must not be used.
fn killed_while_it_stops(strategy: &str, when: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    parent(&host);
    eventually("the writer has written", || (beats(&host, "parent").0 > 20).then_some(()));
    let before = beats(&host, "parent");
    faults(&host, serde_json::json!([{ "when": when, "sandbox": "parent", "action": "crash", "times": 1 }]));
    let stopped = host.http().post("/sandboxes/parent/stop", r#"{"mode":"checkpoint"}"#);
    println!("{strategy} {when}: {} {}", stopped.status, stopped.body);
    eventually("it is stopped", || (describe(&host, "parent")["state"] == "stopped").then_some(()));
    only(&host, &[], &["parent"]);
    assert_eq!(host.http().post("/sandboxes/parent/start", "").status, 200, "{}", host.log());
    let view = describe(&host, "parent");
    println!("{strategy} {when}: {}", view["begin"]);
    if beats(&host, "parent").1 == before.1 {
        consistent(&host, "parent");
    } else {
        assert!(view["begin"]["note"].is_string() || view["begin"]["from"] == "boot", "{view}");
    }
}

#[test]
fn a_vmm_that_dies_while_its_memory_is_kept_on_reflink() {
    killed_while_it_stops("reflink", "vmm.shutdown");
}

#[test]
fn a_vmm_that_dies_while_its_memory_is_kept_on_overlays() {
    killed_while_it_stops("overlay", "vmm.shutdown");
}
