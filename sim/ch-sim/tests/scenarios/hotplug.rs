//! Devices added to and removed from a booted VM (cloud-hypervisor.md 2.3).

use super::{assert_failure, for_each, in_state};
use crate::common::disk;

const DISK: &str = "The disk could not be added to the VM";
const MANAGER: &str = "Error from device manager";

#[test]
fn disks_can_be_added_once() {
    for_each(|binary| {
        let vmm = in_state(binary, "running");
        disk(&vmm.path("more"), 1 << 20);
        let more = r#"{"id":"more","path":"$DIR/more","image_type":"Raw"}"#;
        let reply = vmm.request("PUT", "vm.add-disk", Some(more));
        assert_eq!(reply.body, r#"{"id":"more","bdf":"0000:00:03.0"}"#);
        assert_eq!(reply.status, 200);
        let again = vmm.request("PUT", "vm.add-disk", Some(more));
        let texts = [DISK, "Failed to validate config", "Identifier more is not unique"];
        assert_failure(&again, 500, &texts);
        let other = r#"{"path":"$DIR/more","image_type":"Raw"}"#;
        let texts = [
            DISK,
            MANAGER,
            "Cannot lock images of all block devices",
            "Failed to get Write lock for disk image: $DIR/more",
            "The file is already locked",
        ];
        assert_failure(&vmm.request("PUT", "vm.add-disk", Some(other)), 500, &texts);
    });
}

#[test]
fn removed_devices_leave_the_configuration_but_keep_their_name_and_lock() {
    for_each(|binary| {
        let vmm = in_state(binary, "running");
        vmm.put("vm.remove-device", Some(r#"{"id":"disk0"}"#));
        let removed = "The device could not be removed from the VM";
        let unknown = "Failed to find device corresponding to the given identifier: disk0";
        let again = vmm.request("PUT", "vm.remove-device", Some(r#"{"id":"disk0"}"#));
        assert_failure(&again, 500, &[removed, MANAGER, unknown]);
        let same = r#"{"id":"disk0","path":"$DIR/disk","image_type":"Raw"}"#;
        let back = vmm.request("PUT", "vm.add-disk", Some(same));
        let texts = [DISK, MANAGER, "Invalid identifier as it is not unique: disk0"];
        assert_failure(&back, 500, &texts);
        let rng = vmm.request("PUT", "vm.remove-device", Some(r#"{"id":"__rng"}"#));
        let text = "Not allowed to remove this type of device from the VM: rng";
        assert_failure(&rng, 500, &[removed, MANAGER, text]);
    });
}

#[test]
fn memory_and_vcpus_do_not_grow_without_room() {
    let resized = "The VM could not be resized";
    for_each(|binary| {
        let vmm = in_state(binary, "running");
        let failure = |body: &str, texts: &[&str]| {
            let reply = vmm.request("PUT", "vm.resize", Some(body));
            assert_failure(&reply, 500, &[&[resized], texts].concat());
        };
        failure(r#"{"desired_vcpus":2}"#, &["Error from CPU manager", "Requested vCPUs exceed maximum"]);
        failure(
            r#"{"desired_ram":134217728}"#,
            &["Memory manager error", "The requested hotplug memory addition is not a valid size"],
        );
        failure(r#"{"desired_balloon":1}"#, &[MANAGER, "Missing virtio-balloon, can't proceed as expected"]);
    });
}

#[test]
fn disks_are_resized_in_place() {
    for_each(|binary| {
        let vmm = in_state(binary, "running");
        let resize = |id: &str, bytes: u64| {
            let body = format!(r#"{{"id":"{id}","desired_size":{bytes}}}"#);
            vmm.request("PUT", "vm.resize-disk", Some(&body))
        };
        assert_eq!(resize("disk0", 2 << 20).status, 204);
        assert_eq!(std::fs::metadata(vmm.path("disk")).unwrap().len(), 2 << 20);
        assert_eq!(resize("disk0", 512).status, 204);
        assert_eq!(std::fs::metadata(vmm.path("disk")).unwrap().len(), 512);
        let texts =
            ["The disk could not be resized", MANAGER, "Disk resize error", "Disk image size is not a multiple of 512"];
        assert_failure(&resize("disk0", 513), 500, &texts);
        let unknown = "Failed to find device corresponding to the given identifier: x";
        let texts = ["The disk could not be resized", MANAGER, unknown];
        assert_failure(&resize("x", 512), 500, &texts);
    });
}
