//! Resize: at once what the hypervisor can change while it runs, from the next boot on the rest.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use daytona_sim::{Resize, SandboxState};
use serde_json::{Value, json};

use super::common::Host;
use super::life::{failed, host, kill_vmm, marked, post, refused, shown, start, stop};
use super::row;

/// What the VMM itself says of its VM.
fn vm_info(host: &Host, id: &str) -> Value {
    let mut stream = UnixStream::connect(host.path(format!("sock/{id}.sock"))).unwrap();
    stream.set_read_timeout(Some(super::SOON)).unwrap();
    stream.write_all(b"GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut piece).unwrap();
        text.extend(&piece[..length]);
        let all = String::from_utf8_lossy(&text);
        let body = all.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
        if let Some(info) = body {
            return info;
        }
        assert_ne!(length, 0, "{all}");
    }
}

#[track_caller]
fn resize(host: &Host, id: &str, to: Resize) {
    host.completed(&host.api.resize_sandbox(id, to).unwrap());
}

#[track_caller]
fn sizes(shown: &Value) -> [u64; 3] {
    ["cpu", "memoryMiB", "diskGiB"].map(|name| shown[name].as_u64().unwrap())
}

#[test]
fn more_cpus_at_once_and_more_memory_from_the_next_boot_on() {
    let host = host("overlay");
    let runner = host.runner();
    let marks = marked(&host, "box");
    assert_eq!(host.in_guest("box", "nproc"), "1");
    resize(&host, "box", Resize { cpu: Some(2), memory: Some(2), disk: None });
    let now = shown(&host, "box");
    assert_eq!(sizes(&now), [2, 2048, 1], "{now}");
    assert_eq!((now.get("runningCpu"), now["runningMemoryMiB"].as_u64()), (None, Some(1024)), "{now}");
    assert_eq!(host.in_guest("box", "nproc"), "2", "the guest has them without a boot");
    marks.still_runs(&host, "box");
    row(&host, "box", SandboxState::Started);
    let api = host.api.sandbox("box").unwrap();
    assert_eq!((api.cpu, api.memory, api.disk), (2.0, 2.0, 1.0));

    // Known after a restart of the runner, too.
    runner.murder();
    let _runner = host.runner();
    let again = shown(&host, "box");
    assert_eq!((sizes(&again), &again["runningMemoryMiB"]), ([2, 2048, 1], &json!(1024)));
    host.in_guest("box", "sync");
    stop(&host, "box");
    start(&host, "box");
    let booted = marks.booted_again(&host, "box");
    let note = booted["begin"]["note"].as_str().unwrap_or_default();
    assert!(note.contains("resized") && note.contains("1024 MiB") && note.contains("2048 MiB"), "{booted}");
    assert!(booted.get("runningMemoryMiB").is_none(), "{booted}");
    let vm = vm_info(&host, "box");
    assert_eq!((&vm["config"]["memory"]["size"], &vm["config"]["cpus"]["boot_vcpus"]), (&json!(0), &json!(2)), "{vm}");
    assert_eq!(vm["memory_actual_size"], 2_u64 << 30, "{vm}");
}

#[test]
fn less_is_not_for_a_running_sandbox() {
    let host = host("overlay");
    let _runner = host.runner();
    let body = json!({ "id": "box", "snapshot": "ubuntu-base.1", "cpuQuota": 2, "memoryQuota": 2, "storageQuota": 2 });
    post(&host, "/sandboxes", &body.to_string());
    let table = [
        (r#"{"cpu":1}"#, "fewer vCPUs"),
        (r#"{"memory":1}"#, "less memory"),
        (r#"{"cpu":1,"memory":4}"#, "fewer vCPUs"),
        (r#"{"disk":3}"#, "stop it first"),
        (r#"{"disk":1}"#, "never gets smaller"),
    ];
    for state in ["resume", "pause"] {
        post(&host, &format!("/sandboxes/box/{state}"), "");
        for (body, words) in table {
            let message = refused(&host, "/sandboxes/box/resize", body, 422);
            assert!(message.contains("cannot resize sandbox box") && message.contains(words), "{body}: {message}");
            assert_eq!(sizes(&shown(&host, "box")), [2, 2048, 2], "{body}");
        }
    }
    post(&host, "/sandboxes/box/resume", "");
    assert_eq!(host.in_guest("box", "nproc"), "2");
    let job = host.api.resize_sandbox("box", Resize { cpu: Some(1), ..Resize::default() }).unwrap();
    assert!(failed(&host, &job).contains("fewer vCPUs"));
    row(&host, "box", SandboxState::Started);

    // Nothing, null and zero leave it as it is.
    for body in ["", "{}", r#"{"cpu":0,"memory":0,"disk":0}"#, r#"{"cpu":null}"#, r#"{"cpu":2,"memory":2,"disk":2}"#] {
        assert_eq!(post(&host, "/sandboxes/box/resize", body), "Sandbox resized");
        assert_eq!(sizes(&shown(&host, "box")), [2, 2048, 2], "{body}");
    }
    // A stopped one may get less of everything but the disk.
    post(&host, "/sandboxes/box/stop", r#"{"mode":"shutdown"}"#);
    refused(&host, "/sandboxes/box/resize", r#"{"disk":1}"#, 422);
    post(&host, "/sandboxes/box/resize", r#"{"cpu":1,"memory":1}"#);
    start(&host, "box");
    assert_eq!(host.in_guest("box", "nproc"), "1");
    assert_eq!(vm_info(&host, "box")["memory_actual_size"], 1_u64 << 30);
}

fn virtual_size(host: &Host, id: &str) -> u64 {
    let raw = host.path(format!("boxes/{id}/disk.raw"));
    if raw.exists() {
        return std::fs::metadata(raw).unwrap().len();
    }
    let head = std::fs::read(host.path(format!("boxes/{id}/disk.qcow2"))).unwrap();
    u64::from_be_bytes(head[24..32].try_into().unwrap())
}

/// A block behind the first GiB.
const FAR: u64 = (1 << 18) + 1000;

fn a_disk_grows_when_it_is_stopped(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    let marks = marked(&host, "box");
    stop(&host, "box");
    resize(&host, "box", Resize { disk: Some(2), ..Resize::default() });
    assert_eq!((sizes(&shown(&host, "box")), virtual_size(&host, "box")), ([1, 1024, 2], 2 << 30));
    row(&host, "box", SandboxState::Stopped);
    assert_eq!(host.api.sandbox("box").unwrap().disk, 2.0);
    // The content is the same, so the memory is not given up for it.
    start(&host, "box");
    marks.went_on(&host, "box");
    host.in_guest("box", "sync");
    kill_vmm(&host, "box");
    start(&host, "box");
    marks.booted_again(&host, "box");
    host.in_guest("box", &format!("write-block {FAR} far"));
    assert_eq!(host.in_guest("box", &format!("read-block {FAR}")), "far", "the guest has the room");

    // With memory and disk at once, the memory is of no use any more.
    post(&host, "/sandboxes/box/stop", "");
    post(&host, "/sandboxes/box/resize", r#"{"cpu":2,"disk":3}"#);
    assert_eq!(virtual_size(&host, "box"), 3 << 30);
    start(&host, "box");
    let booted = shown(&host, "box");
    assert_eq!(booted["begin"]["from"], "boot", "{booted}");
    assert!(booted["begin"]["note"].as_str().unwrap_or_default().contains("1 vCPUs"), "{booted}");
    assert_eq!(host.in_guest("box", &format!("read-block {FAR}; nproc")), "far\n2");
    // A copy has the size of its source.
    post(&host, "/sandboxes/box/fork", r#"{"newSandboxId":"child"}"#);
    assert_eq!(sizes(&shown(&host, "child")), [2, 1024, 3]);
    assert_eq!(host.in_guest("child", &format!("read-block {FAR}")), "far");
}

#[test]
fn a_raw_disk_grows_when_it_is_stopped() {
    a_disk_grows_when_it_is_stopped("reflink");
}

#[test]
fn an_overlay_grows_when_it_is_stopped() {
    a_disk_grows_when_it_is_stopped("overlay");
}

#[test]
fn a_host_does_not_promise_what_it_has_not() {
    let host = host("overlay");
    let _runner = host.runner();
    marked(&host, "box");
    for body in [r#"{"memory":4096}"#, r#"{"cpu":255}"#] {
        for state in ["resume", "stop"] {
            post(&host, &format!("/sandboxes/box/{state}"), "");
            let message = refused(&host, "/sandboxes/box/resize", body, 422);
            assert!(message.contains("this host has"), "{body}: {message}");
            assert_eq!(sizes(&shown(&host, "box")), [1, 1024, 1]);
        }
    }
    start(&host, "box");
}

#[test]
fn a_resize_that_the_hypervisor_refuses_changes_nothing() {
    let host = host("overlay");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    host.faults(json!([{ "when": "vm.resize", "action": "error", "value": "Injected by the test" }]));
    let answer = host.http().post("/sandboxes/box/resize", r#"{"cpu":2}"#);
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(answer.body.contains("Injected by the test"), "{answer:?}");
    let now = shown(&host, "box");
    assert_eq!((sizes(&now), now.get("runningCpu")), ([1, 1024, 1], None), "{now}");
    marks.still_runs(&host, "box");
}
