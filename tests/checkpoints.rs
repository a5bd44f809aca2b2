//! Stop and start: the memory of a stopped sandbox lies on disk, is used at most once, and never over a disk that is
//! newer, by another version, or as another machine than it knows.

use std::io::{Seek, SeekFrom, Write};

use serde_json::json;

mod common;
#[path = "checkpoints/crashes.rs"]
mod crashes;
mod life;

use common::{Host, leftovers};
use life::{Marks, host, kill_vmm, marked, no_faults, post, refused, rests, shown, start, stop};

fn kept(host: &Host, id: &str) -> bool {
    let kept = shown(host, id)["checkpoint"].as_bool().unwrap();
    let dir = host.path(format!("boxes/{id}/checkpoint")).exists();
    assert_eq!(kept, dir, "the view and the directory disagree");
    kept
}

fn memory_outlives_a_stop(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    let marks = marked(&host, "box");
    stop(&host, "box");
    assert!(kept(&host, "box"));
    start(&host, "box");
    marks.went_on(&host, "box");
    assert!(!kept(&host, "box"), "it is used at most once");

    // Once more, and then not again: what ran since is lost, and the old memory does not come back.
    stop(&host, "box");
    start(&host, "box");
    marks.went_on(&host, "box");
    host.in_guest("box", "sync");
    kill_vmm(&host, "box");
    assert!(!kept(&host, "box"));
    start(&host, "box");
    marks.booted_again(&host, "box");
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn memory_outlives_a_stop_on_reflink() {
    memory_outlives_a_stop("reflink");
}

#[test]
fn memory_outlives_a_stop_on_overlays() {
    memory_outlives_a_stop("overlay");
}

fn a_newer_disk_is_not_met_by_older_memory(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    let marks = marked(&host, "box");
    stop(&host, "box");
    let names = ["disk.raw", "disk.qcow2"].map(|name| host.path("boxes/box").join(name));
    let disk = names.into_iter().find(|path| path.exists()).expect("a disk");
    // Somebody repairs the disk from outside; that the bytes are those which were there does not matter.
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&disk).unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(&mut file, &mut byte).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&byte).unwrap();
    drop(file);
    start(&host, "box");
    let shown = marks.booted_again(&host, "box");
    let note = shown["begin"]["note"].as_str().unwrap_or_default();
    assert!(note.contains("was written to after") && note.contains(disk.to_str().unwrap()), "{shown}");
    assert!(!kept(&host, "box"));
}

#[test]
fn a_newer_raw_disk_is_not_met_by_older_memory() {
    a_newer_disk_is_not_met_by_older_memory("reflink");
}

#[test]
fn a_newer_overlay_is_not_met_by_older_memory() {
    a_newer_disk_is_not_met_by_older_memory("overlay");
}

#[test]
fn another_version_does_not_read_the_memory() {
    let host = host("reflink");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    stop(&host, "box");
    let script = std::fs::read_to_string(host.path("vmm")).unwrap();
    std::fs::write(host.path("vmm"), script.replace("CH_SIM_FAULTS", "CH_SIM_VERSION=v52.0 CH_SIM_FAULTS")).unwrap();
    start(&host, "box");
    let shown = marks.booted_again(&host, "box");
    let note = shown["begin"]["note"].as_str().unwrap_or_default();
    assert!(note.contains("v53.0") && note.contains("v52.0"), "{shown}");

    // The new version reads what it has written itself.
    let marks = Marks::put(&host, "box");
    stop(&host, "box");
    start(&host, "box");
    marks.went_on(&host, "box");
}

fn a_stop_that_fails_leaves_it_running(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    let marks = marked(&host, "box");
    for (when, action) in [("vm.pause", "error"), ("vm.snapshot", "error"), ("vm.snapshot", "enospc")] {
        host.faults(json!([{ "when": when, "action": action, "value": "Injected by the test" }]));
        let answer = host.http().post("/sandboxes/box/stop", "");
        assert!(answer.status >= 500, "{when} {action}: {answer:?}");
        assert!(answer.json()["message"].as_str().unwrap().contains("cannot stop sandbox box"), "{answer:?}");
        assert!(!kept(&host, "box"));
        assert_eq!(shown(&host, "box")["state"], "started", "after {when} {action}");
        marks.still_runs(&host, "box");
    }
    // As a job, so that the API knows.
    let reason = life::failed(&host, &host.api.stop_sandbox("box", None).unwrap());
    assert!(reason.contains("vm.snapshot"), "{reason}");
    marks.still_runs(&host, "box");
    no_faults(&host);
    stop(&host, "box");
    start(&host, "box");
    marks.went_on(&host, "box");
}

#[test]
fn a_stop_that_fails_leaves_it_running_on_reflink() {
    a_stop_that_fails_leaves_it_running("reflink");
}

#[test]
fn a_stop_that_fails_leaves_it_running_on_overlays() {
    a_stop_that_fails_leaves_it_running("overlay");
}

#[test]
fn a_full_volume_fails_the_stop_and_not_the_sandbox() {
    let host = host("reflink");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    host.in_guest("box", "touch-ram 64");
    let volume = host.path("volume");
    let filler = volume.join("filler");
    let room = nix::sys::statvfs::statvfs(&volume).unwrap();
    let free = room.blocks_available() * room.fragment_size();
    let file = std::fs::File::create(&filler).unwrap();
    let length = free.saturating_sub(24 << 20).try_into().unwrap();
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, length).unwrap();

    let answer = host.http().post("/sandboxes/box/stop", "");
    assert_eq!((answer.status, answer.json()["code"].as_str()), (507, Some("NO_SPACE")), "{answer:?}");
    assert!(!kept(&host, "box"));
    marks.still_runs(&host, "box");
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    stop(&host, "box");
    start(&host, "box");
    marks.went_on(&host, "box");
}

#[test]
fn other_ways_to_stop_and_start() {
    let host = host("reflink");
    let _runner = host.runner();
    let mut marks = marked(&host, "box");
    for body in [r#"{"mode":"shutdown"}"#, r#"{"mode":"kill"}"#, r#"{"force":true}"#] {
        post(&host, "/sandboxes/box/stop", body);
        assert!(!kept(&host, "box"), "{body}");
        assert!(leftovers::vmms(&host.path("sock")).is_empty(), "{body}");
        start(&host, "box");
        let shown = marks.booted_again(&host, "box");
        assert!(shown["begin"].get("note").is_none(), "there was no memory: {shown}");
        marks = Marks::put(&host, "box");
    }
    // A cold start leaves the memory alone, for good.
    post(&host, "/sandboxes/box/stop", r#"{"mode":"checkpoint"}"#);
    assert!(kept(&host, "box"));
    post(&host, "/sandboxes/box/start", r#"{"cold":true}"#);
    marks.booted_again(&host, "box");
    assert!(!kept(&host, "box"));
    kill_vmm(&host, "box");
    start(&host, "box");
    marks.booted_again(&host, "box");
    for body in [r#"{"mode":"softly"}"#, r#"{"mode":7}"#, r#"{"force":true,"mode":"kill"}"#] {
        refused(&host, "/sandboxes/box/stop", body, 400);
    }
    refused(&host, "/sandboxes/box/start", r#"{"cold":"yes"}"#, 400);
    assert_eq!(shown(&host, "box")["state"], "started");
}

#[test]
fn the_operator_chooses_the_usual_way_to_stop() {
    let mut host = Host::new();
    host.set("RUNNER_STOP_MODE", "shutdown");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    stop(&host, "box");
    assert!(!kept(&host, "box"));
    start(&host, "box");
    marks.booted_again(&host, "box");
}

fn a_paused_sandbox_is_stopped_with_its_memory(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    let marks = marked(&host, "box");
    post(&host, "/sandboxes/box/pause", "");
    stop(&host, "box");
    assert!(kept(&host, "box"));
    start(&host, "box");
    marks.went_on(&host, "box");
    // A guest that stands still cannot shut down by itself: it is resumed for that.
    post(&host, "/sandboxes/box/pause", "");
    post(&host, "/sandboxes/box/stop", r#"{"mode":"shutdown"}"#);
    assert!(!kept(&host, "box"));
    assert!(!host.log().contains("did not power off"), "{}", host.log());
    // A failed stop leaves it paused.
    start(&host, "box");
    post(&host, "/sandboxes/box/pause", "");
    host.faults(json!([{ "when": "vm.snapshot", "action": "error" }]));
    assert_eq!(host.http().post("/sandboxes/box/stop", "").status, 500);
    assert_eq!(shown(&host, "box")["state"], "paused");
    no_faults(&host);
    post(&host, "/sandboxes/box/resume", "");
    assert_eq!(host.in_guest("box", "echo up"), "up");
}

#[test]
fn a_paused_sandbox_is_stopped_with_its_memory_on_reflink() {
    a_paused_sandbox_is_stopped_with_its_memory("reflink");
}

#[test]
fn a_paused_sandbox_is_stopped_with_its_memory_on_overlays() {
    a_paused_sandbox_is_stopped_with_its_memory("overlay");
}

#[test]
fn destroying_a_stopped_sandbox_takes_its_memory_along() {
    let host = host("overlay");
    let _runner = host.runner();
    marked(&host, "box");
    stop(&host, "box");
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
    // And one that dies while it is stopped has nothing to go on from.
    marked(&host, "box");
    host.faults(json!([{ "when": "vm.snapshot", "action": "crash" }]));
    assert!(host.http().post("/sandboxes/box/stop", "").status >= 400);
    rests(&host, "box", "stopped");
    assert!(!kept(&host, "box"));
    no_faults(&host);
    start(&host, "box");
    assert_eq!(shown(&host, "box")["begin"]["from"], "boot");
}
