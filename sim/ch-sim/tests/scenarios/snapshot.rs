//! Snapshots and restores (cloud-hypervisor.md 5).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{CONFIG, assert_failure, for_each, in_state, vmm};
use crate::common::{Binary, Vmm, disk, kernel, wait_for};

const SNAPSHOT: &str = r#"{"destination_url":"file://$DIR/snap"}"#;
const SENT: [&str; 3] =
    ["The VM could not be snapshotted", "Cannot send VM snapshot", "Failed to send migratable component snapshot"];

/// A paused VM with a snapshot in `snap`.
fn snapshotted(binary: &Binary) -> Vmm {
    let vmm = in_state(binary, "paused");
    std::fs::create_dir(vmm.path("snap")).unwrap();
    vmm.put("vm.snapshot", Some(SNAPSHOT));
    vmm
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A directory for a child: the parent's snapshot with paths of the child.
fn child_of(parent: &Vmm, binary: &Binary) -> Vmm {
    let child = Vmm::start(binary);
    kernel(child.dir.path());
    disk(&child.path("disk"), 1 << 20);
    std::fs::create_dir(child.path("snap")).unwrap();
    for name in ["state.json", "memory-ranges"] {
        std::fs::hard_link(parent.path("snap").join(name), child.path("snap").join(name)).unwrap();
    }
    let config = std::fs::read_to_string(parent.path("snap/config.json")).unwrap();
    let (from, to) = (parent.dir.path().to_str().unwrap(), child.dir.path().to_str().unwrap());
    std::fs::write(child.path("snap/config.json"), config.replace(from, to)).unwrap();
    child
}

#[test]
fn a_snapshot_is_three_files_and_its_memory_is_sparse() {
    for_each(|binary| {
        let vmm = snapshotted(binary);
        assert_eq!(vmm.state(), "Paused");
        let memory = std::fs::metadata(vmm.path("snap/memory-ranges")).unwrap();
        assert_eq!(memory.len(), 64 << 20);
        assert!(memory.blocks() * 512 < 16 << 20, "{}", memory.blocks());
        let config = json(&vmm.path("snap/config.json"));
        assert_eq!(config["disks"][0]["id"], "disk0");
        let state = json(&vmm.path("snap/state.json"));
        assert!(state["snapshot_data"]["state"].is_string());
        let manager = state["snapshots"]["memory-manager"]["snapshot_data"]["state"].as_str();
        let manager: serde_json::Value = serde_json::from_str(manager.unwrap()).unwrap();
        let range = serde_json::json!([{"gpa": 0, "length": 64 << 20}]);
        assert_eq!(manager["memory_ranges"]["data"], range);
        assert_eq!(manager["guest_ram_mappings"][0]["zone_id"], "mem0");
    });
}

#[test]
fn used_directories_are_refused() {
    for_each(|binary| {
        let vmm = snapshotted(binary);
        let again = vmm.request("PUT", "vm.snapshot", Some(SNAPSHOT));
        let exists = ["Error creating VM config snapshot file", "File exists (os error 17)"];
        assert_failure(&again, 500, &[&SENT[..], &exists].concat());
        assert_eq!(vmm.state(), "Paused");
        let url = r#"{"destination_url":"http://x"}"#;
        let text = "Could not extract path from URL: http://x";
        let reply = vmm.request("PUT", "vm.snapshot", Some(url));
        assert_failure(&reply, 500, &[&SENT[..], &[text]].concat());
    });
}

#[test]
fn a_prepared_memory_file_gives_state_without_memory() {
    for_each(|binary| {
        let vmm = in_state(binary, "paused");
        std::fs::create_dir(vmm.path("snap")).unwrap();
        std::fs::write(vmm.path("snap/memory-ranges"), "").unwrap();
        let reply = vmm.request("PUT", "vm.snapshot", Some(SNAPSHOT));
        let exists = ["Error creating memory snapshot file \"$DIR/snap/memory-ranges\"", "File exists (os error 17)"];
        assert_failure(&reply, 500, &[&SENT[..], &exists].concat());
        assert!(json(&vmm.path("snap/state.json")).is_object());
        assert!(json(&vmm.path("snap/config.json")).is_object());
        vmm.put("vm.resume", None);
    });
}

#[test]
fn a_shared_zone_file_needs_no_memory_file() {
    for_each(|binary| {
        let vmm = vmm(binary);
        disk(&vmm.path("ram"), 64 << 20);
        let zone = r#"{"size":0,"zones":[{"id":"mem0","size":67108864,"file":"$DIR/ram","shared":true}]}"#;
        let config = CONFIG.replace(r#"{"size":67108864,"shared":true}"#, zone);
        vmm.put("vm.create", Some(&config));
        vmm.put("vm.boot", None);
        wait_for("output", || (std::fs::metadata(vmm.path("serial")).unwrap().len() > 0).then_some(()));
        vmm.put("vm.pause", None);
        std::fs::create_dir(vmm.path("snap")).unwrap();
        vmm.put("vm.snapshot", Some(SNAPSHOT));
        assert!(!vmm.path("snap/memory-ranges").exists());
        assert!(std::fs::metadata(vmm.path("ram")).unwrap().blocks() > 0);
    });
}

#[test]
fn children_run_in_all_modes() {
    for_each(|binary| {
        let parent = snapshotted(binary);
        let url = r#""source_url":"file://$DIR/snap""#;
        for (body, state) in [
            (format!("{{{url}}}"), "Paused"),
            (format!(r#"{{{url},"resume":true}}"#), "Running"),
            (format!(r#"{{{url},"memory_restore_mode":"Copy","prefault":true}}"#), "Paused"),
            (format!(r#"{{{url},"memory_restore_mode":"OnDemand","resume":true}}"#), "Running"),
        ] {
            let child = child_of(&parent, binary);
            child.put("vm.restore", Some(&body));
            assert_eq!(child.state(), state, "{body}");
        }
    });
}

#[test]
fn a_child_on_a_private_map_loads_nothing() {
    for_each(|binary| {
        let parent = snapshotted(binary);
        let child = child_of(&parent, binary);
        let base = child.path("base");
        std::fs::rename(child.path("snap/memory-ranges"), &base).unwrap();
        let mut config = json(&child.path("snap/config.json"));
        config["memory"] = serde_json::json!({"size": 0, "zones": [
            {"id": "mem0", "size": 64 << 20, "file": base, "shared": false}]});
        std::fs::write(child.path("snap/config.json"), config.to_string()).unwrap();
        let mut state = json(&child.path("snap/state.json"));
        let inner = &mut state["snapshots"]["memory-manager"]["snapshot_data"]["state"];
        let mut manager: serde_json::Value = serde_json::from_str(inner.as_str().unwrap()).unwrap();
        manager["memory_ranges"]["data"] = serde_json::json!([]);
        *inner = manager.to_string().into();
        std::fs::remove_file(child.path("snap/state.json")).unwrap();
        std::fs::write(child.path("snap/state.json"), state.to_string()).unwrap();
        child.put("vm.restore", Some(r#"{"source_url":"file://$DIR/snap","resume":true}"#));
        assert_eq!(child.state(), "Running");
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.child.id())).unwrap();
        let mapped = maps.lines().filter(|line| line.ends_with(base.to_str().unwrap()));
        assert!(mapped.into_iter().all(|line| line.contains(" rw-p ")), "{maps}");
    });
}

#[test]
fn a_restore_on_the_parents_disk_fails_and_leaves_nothing() {
    for_each(|binary| {
        let parent = snapshotted(binary);
        let child = Vmm::start(binary);
        let body = format!(r#"{{"source_url":"file://{}"}}"#, parent.path("snap").display());
        let reply = child.request("PUT", "vm.restore", Some(&body));
        let lock = format!("Failed to get Write lock for disk image: {}", parent.path("disk").display());
        let texts = [
            "The VM could not be restored",
            "Error locking disk images: Another instance likely holds a lock",
            "Cannot lock images of all block devices",
            &lock,
            "The file is already locked",
        ];
        assert_failure(&reply, 500, &texts);
        // The unpatched serial path has emptied the parent's file all the same.
        assert_eq!(std::fs::metadata(parent.path("serial")).unwrap().len(), 0);
        assert_eq!(child.state(), "");
        parent.put("vm.delete", None);
        let again = child.request("PUT", "vm.restore", Some(&body));
        assert_eq!(again.status, 204, "{again:?}");
    });
}

#[test]
fn restores_that_cannot_work() {
    for_each(|binary| {
        let vmm = snapshotted(binary);
        vmm.put("vm.delete", None);
        let restored = "The VM could not be restored";
        let both = r#"{"source_url":"file://$DIR/snap","prefault":true,"memory_restore_mode":"OnDemand"}"#;
        let text = "'prefault' cannot be combined with 'memory_restore_mode=ondemand'";
        let reply = vmm.request("PUT", "vm.restore", Some(both));
        assert_failure(&reply, 500, &[restored, "Failed to validate config", text]);
        std::fs::create_dir(vmm.path("empty")).unwrap();
        let empty = r#"{"source_url":"file://$DIR/empty"}"#;
        let texts = [
            restored,
            "Cannot restore VM",
            "Failed to receive migratable component snapshot",
            "Error opening VM config snapshot file \"$DIR/empty/config.json\"",
            "No such file or directory (os error 2)",
        ];
        assert_failure(&vmm.request("PUT", "vm.restore", Some(empty)), 500, &texts);
        std::fs::remove_file(vmm.path("snap/memory-ranges")).unwrap();
        let body = r#"{"source_url":"file://$DIR/snap"}"#;
        let texts =
            [restored, "Memory manager error", "Error opening snapshot file", "No such file or directory (os error 2)"];
        assert_failure(&vmm.request("PUT", "vm.restore", Some(body)), 500, &texts);
        vmm.put("vm.create", Some(CONFIG));
    });
}

#[test]
fn a_loading_child_cannot_be_snapshotted_yet() {
    let binary = Binary::simulator();
    let parent = snapshotted(&binary);
    let child = child_of(&parent, &binary);
    let body = r#"{"source_url":"file://$DIR/snap","memory_restore_mode":"OnDemand"}"#;
    child.put("vm.restore", Some(body));
    std::fs::create_dir(child.path("again")).unwrap();
    let again = r#"{"destination_url":"file://$DIR/again"}"#;
    let reply = child.request("PUT", "vm.snapshot", Some(again));
    let text = "VM on-demand memory restore is still in progress";
    assert_failure(&reply, 500, &["The VM could not be snapshotted", text]);
    assert_eq!(std::fs::read_dir(child.path("again")).unwrap().count(), 0);
    wait_for("the end of loading", || (child.request("PUT", "vm.snapshot", Some(again)).status == 204).then_some(()));
    // Loading touched every page.
    let memory = std::fs::metadata(child.path("again/memory-ranges")).unwrap();
    assert!(memory.blocks() * 512 >= 64 << 20, "{}", memory.blocks());
}
