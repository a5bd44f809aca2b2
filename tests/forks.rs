//! Copies of running sandboxes, end to end: memory and disk of one instant, on both kinds of disks and with every
//! way that memory can be taken.

mod common;

use common::{Host, eventually, leftovers};

/// The hosts that copies are tried on: how disks are made, and what memory is.
fn variants() -> [(&'static str, &'static str); 6] {
    [
        ("reflink", "private"),
        ("reflink", "shared"),
        ("reflink", "file"),
        ("overlay", "private"),
        ("overlay", "shared"),
        ("overlay", "file"),
    ]
}

fn host(strategy: &str, memory: &str) -> Host {
    let mut host = if strategy == "reflink" { Host::on_xfs() } else { Host::new() };
    host.set("RUNNER_DISK_STRATEGY", strategy);
    host.set("RUNNER_MEMORY", memory);
    host
}

fn counter(host: &Host, id: &str) -> u64 {
    let answer = host.http().get(&format!("/sandboxes/{id}/toolbox/counter"));
    answer.json()["counter"].as_u64().unwrap_or_else(|| panic!("{}", answer.body))
}

fn consistent(host: &Host, id: &str) {
    let check: serde_json::Value = serde_json::from_str(&host.in_guest(id, "writer check")).expect("JSON");
    assert_eq!(check["consistent"], true, "{id}: {check}");
    assert_eq!(check["atResume"]["consistent"], true, "{id} woke up with {check}");
}

/// Each variant needs namespaces of its own, so each is a test.
fn a_copy_is_of_one_instant(strategy: &str, memory: &str) {
    let host = host(strategy, memory);
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("parent")).unwrap());
    host.in_guest("parent", "touch-ram 8; echo from-parent > /tmp/mark; write-block 7 before; writer start");
    eventually("the writer has filled its ring", || {
        let check: serde_json::Value = serde_json::from_str(&host.in_guest("parent", "writer check")).ok()?;
        check["memory"].as_u64().filter(|written| *written > 100)
    });
    let before = counter(&host, "parent");

    let answer = host.http().post("/sandboxes/parent/fork", r#"{"newSandboxId":"child"}"#);
    assert_eq!(answer.status, 201, "{}\n{}", answer.body, host.log());
    let made = answer.json();
    assert_eq!((made["id"].as_str(), made["parentId"].as_str()), (Some("child"), Some("parent")), "{made}");
    assert_eq!(made["begin"]["from"], "memory", "{made}");
    assert_eq!(made["begin"]["mappedBytes"], 1_u64 << 30, "{made}");
    assert_eq!(made["begin"]["identity"], "confirmed", "{made}");

    assert!(counter(&host, "parent") >= before, "the parent never goes back");
    assert!(counter(&host, "child") >= before, "the child goes on");
    consistent(&host, "child");
    consistent(&host, "parent");
    assert_eq!(host.in_guest("child", "cat /tmp/mark"), "from-parent");
    assert!(host.in_guest("child", "read-block 7").contains("before"));
    assert_ne!(host.in_guest("child", "hostname"), host.in_guest("parent", "hostname"));
    assert_ne!(host.in_guest("child", "random"), host.in_guest("parent", "random"));

    // Neither sees what the other writes from now on.
    host.in_guest("parent", "write-block 8 parents");
    host.in_guest("child", "write-block 8 childs");
    assert!(host.in_guest("parent", "read-block 8").contains("parents"));
    assert!(host.in_guest("child", "read-block 8").contains("childs"));

    host.completed(&host.api.destroy_sandbox("parent").unwrap());
    assert!(host.in_guest("child", "read-block 7").contains("before"), "the child needs nothing of its parent");
    consistent(&host, "child");
    assert_eq!(host.http().post("/sandboxes/child/destroy", "").status, 200);
    leftovers::none(&host);
    assert_eq!(leftovers::layers(&host), 0);
}

#[test]
fn a_copy_on_reflink_with_private_memory() {
    let (strategy, memory) = variants()[0];
    a_copy_is_of_one_instant(strategy, memory);
}

#[test]
fn a_copy_on_reflink_with_shared_memory() {
    let (strategy, memory) = variants()[1];
    a_copy_is_of_one_instant(strategy, memory);
}

#[test]
fn a_copy_on_reflink_with_memory_in_a_file() {
    let (strategy, memory) = variants()[2];
    a_copy_is_of_one_instant(strategy, memory);
}

#[test]
fn a_copy_on_overlays_with_private_memory() {
    let (strategy, memory) = variants()[3];
    a_copy_is_of_one_instant(strategy, memory);
}

#[test]
fn a_copy_on_overlays_with_shared_memory() {
    let (strategy, memory) = variants()[4];
    a_copy_is_of_one_instant(strategy, memory);
}

#[test]
fn a_copy_on_overlays_with_memory_in_a_file() {
    let (strategy, memory) = variants()[5];
    a_copy_is_of_one_instant(strategy, memory);
}

/// The hypervisor decides how memory is taken and brought back; the copy says which way it was.
#[test]
fn a_copy_with_every_version_of_the_hypervisor() {
    let host = Host::on_xfs();
    for (version, recipe, mapped) in
        [("v44.0", "written", false), ("v50.0", "written", false), ("v51.0", "delta", true), ("v52.0", "delta", true)]
    {
        host.vmm_version(version);
        let runner = host.runner();
        // Of the default size: old versions write all memory, touched or not.
        assert_eq!(host.http().post("/sandboxes", r#"{"id":"parent"}"#).status, 201);
        host.in_guest("parent", "echo kept > /tmp/mark; write-block 7 before; writer start");
        let answer = host.http().post("/sandboxes/parent/fork", r#"{"newSandboxId":"child"}"#);
        assert_eq!(answer.status, 201, "{version}: {}\n{}", answer.body, host.log());
        let begin = &answer.json()["begin"];
        assert_eq!(begin["copy"]["recipe"], recipe, "{version}: {begin}");
        assert_eq!(begin["mappedBytes"].is_u64(), mapped, "{version}: {begin}");
        assert_eq!(host.in_guest("child", "cat /tmp/mark"), "kept", "{version}");
        consistent(&host, "child");
        // A copy of the copy: its memory may be of another kind.
        let answer = host.http().post("/sandboxes/child/fork", r#"{"newSandboxId":"grandchild"}"#);
        assert_eq!(answer.status, 201, "{version}: {}\n{}", answer.body, host.log());
        consistent(&host, "grandchild");
        for id in ["parent", "child", "grandchild"] {
            assert_eq!(host.http().post(&format!("/sandboxes/{id}/destroy"), "").status, 200);
        }
        leftovers::none(&host);
        assert!(runner.stop().success());
    }
}
