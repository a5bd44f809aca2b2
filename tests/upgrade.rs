//! An update as the runbook has it, stop, copy, start, and one without the stop: the store that an older runner wrote is
//! read by this one while its VMs run. `PREVIOUS_RUNNER` names the older program; `make upgrade` builds one.

use std::path::PathBuf;

use serde_json::Value;

mod common;
mod life;

use common::{Host, leftovers};
use life::{Marks, host, marked, no_faults, post, rests, shown, start, stop};

fn previous() -> Option<PathBuf> {
    let path = std::env::var_os("PREVIOUS_RUNNER").map(PathBuf::from);
    if path.is_none() {
        println!("skipped: PREVIOUS_RUNNER names no older runner (make upgrade builds one)");
    }
    path
}

/// What must be the same before and after: who runs, with which VMM, and what was kept.
fn standing(host: &Host) -> Vec<[Value; 5]> {
    let listed = host.http().get("/sandboxes").json();
    let views = listed.as_array().unwrap().iter();
    views.map(|view| ["id", "state", "pid", "checkpoint", "createdAt"].map(|name| view[name].clone())).collect()
}

fn an_update(strategy: &str, in_order: bool) {
    let Some(previous) = previous() else { return };
    let host = host(strategy);
    let older = host.runner_of(&previous);
    let marks = marked(&host, "runs");
    let kept = marked(&host, "kept");
    stop(&host, "kept");
    let paused = marked(&host, "paused");
    post(&host, "/sandboxes/paused/pause", "");
    host.completed(&host.api.fork_sandbox("runs", "copy").unwrap());
    let before = standing(&host);
    // One more is cut off in the middle, as its job is.
    host.faults(serde_json::json!([{ "when": "vm.boot", "sandbox": "late", "action": "delay_ms", "value": 700 }]));
    let late = (!in_order).then(|| host.api.create_sandbox(&host.spec("late")).unwrap());
    match &late {
        Some(_) => {
            common::eventually("the creation is under way", || {
                host.http().try_get("/sandboxes/late")?.json().get("pid").cloned()
            });
            older.murder();
        }
        None => assert!(older.stop().success()),
    }
    no_faults(&host);

    let _runner = host.runner();
    if let Some(job) = late {
        host.completed(&job);
        post(&host, "/sandboxes/late/destroy", "");
    }
    assert_eq!(standing(&host), before);
    marks.still_runs(&host, "runs");
    marks.still_runs(&host, "copy");
    start(&host, "kept");
    kept.went_on(&host, "kept");
    post(&host, "/sandboxes/paused/resume", "");
    paused.still_runs(&host, "paused");
    // And what it makes of them from now on.
    stop(&host, "runs");
    start(&host, "runs");
    marks.went_on(&host, "runs");
    host.completed(&host.api.fork_sandbox("copy", "again").unwrap());
    let again = Marks::put(&host, "again");
    again.still_runs(&host, "again");
    rests(&host, "copy", "started");
    assert_eq!(shown(&host, "again")["parentId"], "copy");
    for id in ["runs", "kept", "paused", "copy", "again"] {
        host.completed(&host.api.destroy_sandbox(id).unwrap());
    }
    leftovers::none(&host);
}

#[test]
fn from_the_previous_version_in_order_on_reflink() {
    an_update("reflink", true);
}

#[test]
fn from_the_previous_version_in_order_on_overlays() {
    an_update("overlay", true);
}

#[test]
fn from_the_previous_version_after_a_kill() {
    an_update("reflink", false);
}
