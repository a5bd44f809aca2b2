//! The jobs, each with what comes before it and what is looked at.

use daytona_sim::{CreateSpec, Resize};
use serde_json::{Value, json};

use super::common::Host;
use super::harness::{Ids, Story};

fn nothing(_: &Host, _: &Ids) -> Value {
    Value::Null
}

fn keep(_: &Host, _: &Ids) {}

/// A running sandbox with a mark in its memory and one on its disk.
fn running(host: &Host, ids: &Ids) {
    host.completed(&host.api.create_sandbox(&host.spec(&ids.sandbox)).unwrap());
    host.in_guest(&ids.sandbox, "touch-ram 4; echo kept > /tmp/mark; write-block 7 kept; sync");
}

fn stopped(host: &Host, ids: &Ids) {
    running(host, ids);
    host.completed(&host.api.stop_sandbox(&ids.sandbox, None).unwrap());
}

fn stopped_without_memory(host: &Host, ids: &Ids) {
    running(host, ids);
    host.completed(&host.api.stop_sandbox(&ids.sandbox, Some(true)).unwrap());
}

fn paused(host: &Host, ids: &Ids) {
    running(host, ids);
    host.completed(&host.api.pause_sandbox(&ids.sandbox).unwrap());
}

/// What the guest of a running sandbox knows.
fn marks_of(host: &Host, id: &str) -> Value {
    json!([
        host.in_guest(id, "cat /tmp/mark || echo gone"),
        host.in_guest(id, "read-block 7"),
        host.in_guest(id, "hostname") == id
    ])
}

fn marks(host: &Host, ids: &Ids) -> Value {
    marks_of(host, &ids.sandbox)
}

fn marks_of_both(host: &Host, ids: &Ids) -> Value {
    json!([marks_of(host, &ids.sandbox), marks_of(host, &ids.copy)])
}

/// The same after a start: what was kept of a sandbox that rests.
fn marks_after_start(host: &Host, ids: &Ids) -> Value {
    host.completed(&host.api.start_sandbox(&ids.sandbox).unwrap());
    marks(host, ids)
}

pub fn create(strategy: &'static str, idle: bool) -> Story {
    let order = |host: &Host, ids: &Ids| host.api.create_sandbox(&host.spec(&ids.sandbox)).unwrap();
    let order_idle = |host: &Host, ids: &Ids| {
        host.api.create_sandbox(&CreateSpec { skip_start: true, ..host.spec(&ids.sandbox) }).unwrap()
    };
    let look = |host: &Host, ids: &Ids| marks_of(host, &ids.sandbox);
    Story {
        strategy,
        prepare: keep,
        order: if idle { order_idle } else { order },
        look: if idle { nothing } else { look },
        clear: keep,
    }
}

pub fn create_warm() -> Story {
    Story {
        strategy: "reflink",
        prepare: |host, ids| {
            running(host, ids);
            take(host, ids, true);
        },
        order: |host, ids| {
            let snapshot = reference(host, ids);
            host.api.create_sandbox(&CreateSpec { snapshot, ..host.spec(&ids.copy) }).unwrap()
        },
        look: marks_of_both,
        clear: |host, ids| {
            host.http().delete(&format!("/sandboxes/{}", ids.copy));
            remove(host, ids);
        },
    }
}

pub fn start(strategy: &'static str) -> Story {
    let order = |host: &Host, ids: &Ids| host.api.start_sandbox(&ids.sandbox).unwrap();
    Story { strategy, prepare: stopped, order, look: marks, clear: keep }
}

pub fn start_cold() -> Story {
    Story { prepare: stopped_without_memory, ..start("reflink") }
}

pub fn stop(strategy: &'static str) -> Story {
    let order = |host: &Host, ids: &Ids| host.api.stop_sandbox(&ids.sandbox, None).unwrap();
    Story { strategy, prepare: running, order, look: marks_after_start, clear: keep }
}

pub fn stop_forced() -> Story {
    Story { order: |host, ids| host.api.stop_sandbox(&ids.sandbox, Some(true)).unwrap(), ..stop("reflink") }
}

pub fn pause() -> Story {
    let order = |host: &Host, ids: &Ids| host.api.pause_sandbox(&ids.sandbox).unwrap();
    Story { strategy: "reflink", prepare: running, order, look: marks_after_start, clear: keep }
}

pub fn resume() -> Story {
    Story { prepare: paused, ..start("reflink") }
}

pub fn resize_running() -> Story {
    Story {
        strategy: "reflink",
        prepare: running,
        order: |host, ids| {
            host.api.resize_sandbox(&ids.sandbox, Resize { cpu: Some(2), memory: None, disk: None }).unwrap()
        },
        look: |host, ids| json!([marks(host, ids), host.in_guest(&ids.sandbox, "nproc")]),
        clear: keep,
    }
}

pub fn resize_stopped() -> Story {
    Story {
        strategy: "overlay",
        prepare: stopped_without_memory,
        order: |host, ids| {
            host.api.resize_sandbox(&ids.sandbox, Resize { cpu: Some(2), memory: Some(2), disk: Some(2) }).unwrap()
        },
        look: marks_after_start,
        clear: keep,
    }
}

pub fn fork(strategy: &'static str) -> Story {
    let order = |host: &Host, ids: &Ids| host.api.fork_sandbox(&ids.sandbox, &ids.copy).unwrap();
    Story { strategy, prepare: running, order, look: marks_of_both, clear: keep }
}

pub fn fork_stopped() -> Story {
    Story {
        prepare: stopped,
        look: |host, ids| json!([marks_of(host, &ids.copy), marks_after_start(host, ids)]),
        ..fork("overlay")
    }
}

pub fn clone() -> Story {
    Story { order: |host, ids| host.api.clone_sandbox(&ids.sandbox, &ids.copy).unwrap(), ..fork("reflink") }
}

fn order_snapshot(host: &Host, ids: &Ids, memory: bool) -> String {
    host.api.snapshot_sandbox(&ids.sandbox, &ids.snapshot, memory).unwrap()
}

fn take(host: &Host, ids: &Ids, memory: bool) {
    host.completed(&order_snapshot(host, ids, memory));
}

fn reference(host: &Host, ids: &Ids) -> String {
    format!("{}/{}", CreateSpec::new(&host.spec("any").id).organization_id, ids.snapshot)
}

pub fn snapshot(memory: bool) -> Story {
    let with_memory = |host: &Host, ids: &Ids| order_snapshot(host, ids, true);
    let of_the_disk = |host: &Host, ids: &Ids| order_snapshot(host, ids, false);
    Story {
        strategy: "reflink",
        prepare: running,
        order: if memory { with_memory } else { of_the_disk },
        look: |host, ids| {
            let snapshot = reference(host, ids);
            let info = host.http().get(&format!("/snapshots/info?snapshot={snapshot}")).status;
            host.completed(&host.api.create_sandbox(&CreateSpec { snapshot, ..host.spec(&ids.copy) }).unwrap());
            json!([info, marks_of_both(host, ids)])
        },
        clear: |host, ids| {
            host.http().delete(&format!("/sandboxes/{}", ids.copy));
            remove(host, ids);
        },
    }
}

pub fn remove_snapshot() -> Story {
    Story {
        prepare: |host, ids| {
            running(host, ids);
            take(host, ids, true);
        },
        order: |host, ids| host.api.remove_snapshot(&reference(host, ids)).unwrap(),
        look: |host, ids| {
            let there = host.http().get(&format!("/snapshots/exists?snapshot={}", reference(host, ids))).json();
            json!([there, marks(host, ids)])
        },
        clear: keep,
        ..snapshot(true)
    }
}

pub fn destroy(strategy: &'static str) -> Story {
    let order = |host: &Host, ids: &Ids| host.api.destroy_sandbox(&ids.sandbox).unwrap();
    Story { strategy, prepare: running, order, look: nothing, clear: keep }
}

fn remove(host: &Host, ids: &Ids) {
    let answer = host.http().post(&format!("/snapshots/remove?snapshot={}", reference(host, ids)), "");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", host.log());
}
