//! Scenarios of the contract and what they share.

mod failures;
mod hotplug;
mod lifecycle;
mod process;
mod snapshot;
mod wire;

use super::common::{Binary, Reply, Vmm, disk, kernel};

/// A small VM with everything that tests look at.
pub const CONFIG: &str = r#"{"cpus":{"boot_vcpus":1,"max_vcpus":1},
    "memory":{"size":67108864,"shared":true},"payload":{"kernel":"$DIR/kernel"},
    "serial":{"mode":"File","file":"$DIR/serial"},"console":{"mode":"Off"},
    "disks":[{"id":"disk0","path":"$DIR/disk","image_type":"Raw"}]}"#;

/// Runs a scenario against every available program.
pub fn for_each(scenario: impl Fn(&Binary)) {
    for binary in Binary::all() {
        println!("program under test: {}", binary.path.display());
        scenario(&binary);
    }
}

/// A VMM whose directory holds a kernel and a disk.
pub fn vmm(binary: &Binary) -> Vmm {
    let vmm = Vmm::start(binary);
    kernel(vmm.dir.path());
    disk(&vmm.path("disk"), 1 << 20);
    vmm
}

/// A VMM in a state: "none", "created", "running" or "paused".
pub fn in_state(binary: &Binary, state: &str) -> Vmm {
    let vmm = vmm(binary);
    if state != "none" {
        vmm.put("vm.create", Some(CONFIG));
    }
    if state == "running" || state == "paused" {
        vmm.put("vm.boot", None);
    }
    if state == "paused" {
        vmm.put("vm.pause", None);
    }
    vmm
}

/// Checks that an answer is this failure: status and texts below "Error from API".
pub fn assert_failure(reply: &Reply, status: u16, texts: &[&str]) {
    let mut wanted = vec!["Error from API"];
    wanted.extend(texts);
    let body: Vec<String> = serde_json::from_str(&reply.body).unwrap_or_default();
    assert_eq!(body, wanted, "{reply:?}");
    assert_eq!(reply.status, status, "{reply:?}");
}
