//! State x call table (cloud-hypervisor.md 2.3) and the order of events (4).

use super::{CONFIG, assert_failure, for_each, in_state, vmm};
use crate::common::{Vmm, wait_for};

const NOT_RUNNING: &str = "VM is not running";
const NOT_CREATED: &str = "VM is not created";
const ALREADY: &str = "VM is already created";

/// One cell: state, call, body, status, texts below "Error from API".
type Cell = (&'static str, &'static str, Option<&'static str>, u16, &'static [&'static str]);

const INFO: &str = "The VM info is not available";

const CELLS: &[Cell] = &[
    ("none", "vm.boot", None, 404, &["The VM could not boot", "VM config is missing"]),
    ("none", "vm.pause", None, 500, &["The VM could not be paused", NOT_RUNNING]),
    ("none", "vm.resume", None, 500, &["The VM could not resume", NOT_RUNNING]),
    ("none", "vm.shutdown", None, 500, &["The VM could not shutdown", NOT_RUNNING]),
    ("none", "vm.reboot", None, 404, &["The VM could not reboot", NOT_CREATED]),
    ("none", "vm.power-button", None, 500, &["Error triggering power button", NOT_RUNNING]),
    ("none", "vm.nmi", None, 500, &["Error triggering NMI", NOT_RUNNING]),
    ("none", "vm.delete", None, 204, &[]),
    (
        "none",
        "vm.snapshot",
        Some(r#"{"destination_url":"file://$DIR"}"#),
        500,
        &["The VM could not be snapshotted", NOT_RUNNING],
    ),
    ("none", "vm.resize", Some("{}"), 404, &["The VM could not be resized", NOT_CREATED]),
    ("none", "vm.add-disk", Some(r#"{"path":"/x"}"#), 404, &["The disk could not be added to the VM", NOT_CREATED]),
    ("none", "vm.add-net", Some("{}"), 404, &["The network device could not be added to the VM", NOT_CREATED]),
    (
        "none",
        "vm.add-vsock",
        Some(r#"{"cid":3,"socket":"$DIR/v"}"#),
        404,
        &["The vsock device could not be added to the VM", NOT_CREATED],
    ),
    (
        "none",
        "vm.remove-device",
        Some(r#"{"id":"x"}"#),
        404,
        &["The device could not be removed from the VM", NOT_CREATED],
    ),
    (
        "none",
        "vm.resize-disk",
        Some(r#"{"id":"x","desired_size":512}"#),
        404,
        &["The disk could not be resized", NOT_CREATED],
    ),
    ("created", "vm.create", Some("{}"), 500, &["The VM could not be created", ALREADY]),
    ("created", "vm.boot", None, 204, &[]),
    ("created", "vm.pause", None, 500, &["The VM could not be paused", NOT_RUNNING]),
    ("created", "vm.resume", None, 500, &["The VM could not resume", NOT_RUNNING]),
    ("created", "vm.shutdown", None, 500, &["The VM could not shutdown", NOT_RUNNING]),
    ("created", "vm.reboot", None, 404, &["The VM could not reboot", NOT_CREATED]),
    ("created", "vm.power-button", None, 500, &["Error triggering power button", NOT_RUNNING]),
    ("created", "vm.delete", None, 204, &[]),
    ("created", "vm.restore", Some(r#"{"source_url":"file://$DIR"}"#), 500, &["The VM could not be restored", ALREADY]),
    ("created", "vm.resize", Some("{}"), 204, &[]),
    ("created", "vm.resize", Some(r#"{"desired_vcpus":99,"desired_ram":1}"#), 204, &[]),
    ("created", "vm.add-disk", Some(r#"{"path":"/not/there"}"#), 204, &[]),
    (
        "created",
        "vm.add-disk",
        Some(r#"{"path":"/x","id":"disk0"}"#),
        500,
        &["The disk could not be added to the VM", "Failed to validate config", "Identifier disk0 is not unique"],
    ),
    ("created", "vm.add-net", Some(r#"{"tap":"nope"}"#), 204, &[]),
    ("created", "vm.add-vsock", Some(r#"{"cid":3,"socket":"/not/there/v"}"#), 204, &[]),
    ("created", "vm.remove-device", Some(r#"{"id":"disk0"}"#), 204, &[]),
    (
        "created",
        "vm.remove-device",
        Some(r#"{"id":"x"}"#),
        500,
        &["The device could not be removed from the VM", "No device with id \"x\" to remove"],
    ),
    (
        "created",
        "vm.resize-disk",
        Some(r#"{"id":"disk0","desired_size":512}"#),
        500,
        &["The disk could not be resized", "Failed resizing a disk image"],
    ),
    (
        "created",
        "vm.resize-zone",
        Some(r#"{"id":"z","desired_ram":512}"#),
        500,
        &["The memory zone could not be resized", "Failed resizing a memory zone"],
    ),
    ("running", "vm.create", Some("{}"), 500, &["The VM could not be created", ALREADY]),
    ("running", "vm.boot", None, 500, &["The VM could not boot", ALREADY]),
    (
        "running",
        "vm.resume",
        None,
        500,
        &[
            "The VM could not resume",
            "Cannot resume VM",
            "Failed to resume migratable component",
            "Invalid transition: InvalidStateTransition(Running, Running)",
        ],
    ),
    ("running", "vm.pause", None, 204, &[]),
    ("running", "vm.shutdown", None, 204, &[]),
    ("running", "vm.reboot", None, 204, &[]),
    ("running", "vm.power-button", None, 204, &[]),
    ("running", "vm.delete", None, 204, &[]),
    (
        "running",
        "vm.snapshot",
        Some(r#"{"destination_url":"file://$DIR"}"#),
        500,
        &[
            "The VM could not be snapshotted",
            "Cannot snapshot VM",
            "Failed to snapshot migratable component",
            "Trying to snapshot while VM is running",
        ],
    ),
    ("running", "vm.restore", Some(r#"{"source_url":"file://$DIR"}"#), 500, &["The VM could not be restored", ALREADY]),
    ("running", "vm.resize", Some("{}"), 204, &[]),
    ("running", "vm.resize-disk", Some(r#"{"id":"disk0","desired_size":2097152}"#), 204, &[]),
    ("paused", "vm.boot", None, 500, &["The VM could not boot", ALREADY]),
    (
        "paused",
        "vm.pause",
        None,
        500,
        &[
            "The VM could not be paused",
            "Cannot pause VM",
            "Failed to pause migratable component",
            "Invalid transition: InvalidStateTransition(Paused, Paused)",
        ],
    ),
    ("paused", "vm.resume", None, 204, &[]),
    ("paused", "vm.shutdown", None, 204, &[]),
    ("paused", "vm.reboot", None, 204, &[]),
    ("paused", "vm.power-button", None, 204, &[]),
    ("paused", "vm.delete", None, 204, &[]),
    (
        "paused",
        "vm.snapshot",
        Some(r#"{"destination_url":"file:///not/there"}"#),
        500,
        &[
            "The VM could not be snapshotted",
            "Cannot send VM snapshot",
            "Failed to send migratable component snapshot",
            "Destination is not a directory: \"/not/there\"",
        ],
    ),
    ("paused", "vm.resize", Some("{}"), 204, &[]),
];

#[test]
fn every_call_in_every_state() {
    for_each(|binary| {
        for (state, call, body, status, texts) in CELLS {
            println!("{call} when {state}");
            let vmm = in_state(binary, state);
            let reply = vmm.request("PUT", call, *body);
            match status {
                204 => assert_eq!((reply.status, reply.body.as_str()), (204, ""), "{call} when {state}"),
                status => assert_failure(&reply, *status, texts),
            }
        }
    });
}

#[test]
fn info_and_counters_follow_the_state() {
    for_each(|binary| {
        for (state, shown, counters) in
            [("none", "", 500), ("created", "Created", 500), ("running", "Running", 200), ("paused", "Paused", 200)]
        {
            let vmm = in_state(binary, state);
            assert_eq!(vmm.state(), shown);
            let reply = vmm.request("GET", "vm.counters", None);
            assert_eq!(reply.status, counters);
            if counters == 500 {
                assert_failure(&reply, 500, &[INFO, NOT_RUNNING]);
            }
            if state == "none" {
                assert_failure(&vmm.request("GET", "vm.info", None), 404, &[INFO, NOT_CREATED]);
            }
        }
    });
}

#[test]
fn a_shut_down_vm_is_created_again_and_boots_again() {
    for_each(|binary| {
        let vmm = in_state(binary, "running");
        vmm.put("vm.shutdown", None);
        assert_eq!(vmm.state(), "Created");
        vmm.put("vm.boot", None);
        vmm.put("vm.pause", None);
        vmm.put("vm.reboot", None);
        assert_eq!(vmm.state(), "Running");
    });
}

#[test]
fn events_come_in_the_documented_order() {
    for_each(|binary| {
        let mut vmm = in_state(binary, "paused");
        std::fs::create_dir(vmm.path("snap")).unwrap();
        vmm.put("vm.snapshot", Some(r#"{"destination_url":"file://$DIR/snap"}"#));
        vmm.put("vm.resume", None);
        vmm.put("vm.reboot", None);
        vmm.put("vm.resize", Some("{}"));
        vmm.put("vm.delete", None);
        vmm.put("vm.restore", Some(r#"{"source_url":"file://$DIR/snap","resume":true}"#));
        // The real program writes events from another thread and may end before the last ones are out.
        let written = |vmm: &Vmm| -> Vec<String> {
            vmm.events().into_iter().filter(|event| !event.starts_with("virtio-device")).collect()
        };
        wait_for("the restore's events", || (written(&vmm).len() >= 19).then_some(()));
        let reply = vmm.request("PUT", "vmm.shutdown", None);
        assert_eq!((reply.status, reply.head.last().unwrap().as_str()), (200, "Content-Length: 0"));
        assert_eq!(crate::common::code(vmm.wait()), 0);
        let events = written(&vmm);
        let wanted = [
            "vmm:starting",
            "vm:booting",
            "vm:booted",
            "vm:pausing",
            "vm:paused",
            "vm:snapshotting",
            "vm:snapshotted",
            "vm:resuming",
            "vm:resumed",
            "vm:rebooting",
            "vm:rebooted",
            "vm:resizing",
            "vm:resized",
            "vm:shutdown",
            "vm:deleted",
            "vm:restoring",
            "vm:restored",
            "vm:resuming",
            "vm:resumed",
            "vm:shutdown",
            "vm:deleted",
            "vmm:shutdown",
        ];
        let lost = if binary.simulated { 0 } else { 3 };
        assert!(events.len() + lost >= wanted.len(), "{events:?}");
        assert_eq!(events, wanted[..events.len()]);
    });
}

#[test]
fn vm_info_carries_the_configuration_with_defaults() {
    for_each(|binary| {
        let vmm = in_state(binary, "running");
        let info = vmm.request("GET", "vm.info", None).body;
        let wanted = r#"{"config":{"cpus":{"boot_vcpus":1,"max_vcpus":1,"kvm_hyperv":false,"max_phys_bits":46,"features":{"amx":false},"nested":true,"core_scheduling":"Vm","profile":"Host"},"memory":{"size":67108864,"mergeable":false,"hotplug_method":"Acpi","shared":true,"hugepages":false,"prefault":false,"reserve":false,"thp":true},"payload":{"kernel":"$DIR/kernel"},"disks":[{"id":"disk0","pci_segment":0,"path":"$DIR/disk","readonly":false,"direct":false,"num_queues":1,"queue_size":128,"vhost_user":false,"disable_io_uring":false,"disable_aio":false,"backing_files":false,"sparse":true,"image_type":"Raw","lock_granularity":"ByteRange"}],"rng":{"pci_segment":0,"src":"/dev/urandom"},"serial":{"file":"$DIR/serial","mode":"File"},"console":{"mode":"Off","pci_segment":0},"debug_console":{"mode":"Off","iobase":233},"pvpanic":false,"iommu":false,"watchdog":false,"landlock_enable":false},"state":"Running","memory_actual_size":67108864,"device_tree":{"#;
        assert!(info.starts_with(wanted), "{info}\n{wanted}");
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let tree = info["device_tree"].as_object().unwrap();
        let names: Vec<&str> = tree.keys().map(String::as_str).collect();
        let wanted = ["__ioapic", "__rng", "__serial", "_virtio-pci-__rng", "_virtio-pci-disk0", "disk0"];
        assert_eq!(names, wanted);
        assert_eq!(tree["_virtio-pci-disk0"]["pci_bdf"], "0000:00:01.0");
    });
}

#[test]
fn the_serial_file_shows_a_running_guest_and_is_emptied_by_a_new_boot() {
    for_each(|binary| {
        let vmm = vmm(binary);
        std::fs::write(vmm.path("serial"), "old").unwrap();
        vmm.put("vm.create", Some(CONFIG));
        assert_eq!(std::fs::read(vmm.path("serial")).unwrap(), b"");
        vmm.put("vm.boot", None);
        let has_output = || std::fs::metadata(vmm.path("serial")).unwrap().len() > 0;
        wait_for("serial output", || has_output().then_some(()));
        vmm.put("vm.shutdown", None);
        std::fs::write(vmm.path("serial"), "x".repeat(9999)).unwrap();
        vmm.put("vm.boot", None);
        assert!(std::fs::metadata(vmm.path("serial")).unwrap().len() < 9999);
    });
}
