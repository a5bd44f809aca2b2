use serde_json::{Value, json};

use super::*;

fn spec() -> VmSpec {
    VmSpec {
        vcpus: 2,
        memory_bytes: 1 << 30,
        layout: crate::hypervisor::wire::MemoryLayout::Shared,
        max_vcpus: 1,
        kernel: "/images/vmlinux".into(),
        initramfs: None,
        cmdline: "console=ttyS0 root=/dev/vda rw".into(),
        root: ("/sandboxes/a/root.raw".into(), ImageType::Raw),
        backed: false,
        seed: "/sandboxes/a/seed.img".into(),
        tap: "tap0".into(),
        mac: "02:00:00:00:00:01".into(),
        serial: "/sandboxes/a/serial.log".into(),
    }
}

fn written(spec: VmSpec, version: &str) -> Value {
    serde_json::to_value(VmConfig::for_sandbox(spec, &Version::parse(version).unwrap())).unwrap()
}

#[test]
fn a_raw_sandbox() {
    let expected = json!({
        "payload": {"kernel": "/images/vmlinux", "cmdline": "console=ttyS0 root=/dev/vda rw"},
        "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
        "memory": {"size": 1_073_741_824_u64, "shared": true},
        "disks": [
            {"id": "root", "path": "/sandboxes/a/root.raw", "image_type": "Raw"},
            {"id": "seed", "path": "/sandboxes/a/seed.img", "image_type": "Raw", "readonly": true}
        ],
        "net": [{"id": "net0", "tap": "tap0", "mac": "02:00:00:00:00:01", "num_queues": 2}],
        "pvpanic": true,
            "rng": {"src": "/dev/urandom"},
        "serial": {"mode": "File", "file": "/sandboxes/a/serial.log"},
        "console": {"mode": "Off"}
    });
    assert_eq!(written(spec(), "v53.0"), expected);
}

#[test]
fn a_qcow2_overlay_names_its_backing_file_only_where_that_is_known() {
    let overlay = VmSpec {
        root: ("/sandboxes/a/root.qcow2".into(), ImageType::Qcow2),
        backed: true,
        initramfs: Some("/images/initrd".into()),
        ..spec()
    };
    let new = written(overlay.clone(), "v51.0");
    assert_eq!(
        new["disks"][0],
        json!({"id": "root", "path": "/sandboxes/a/root.qcow2", "image_type": "Qcow2", "backing_files": true})
    );
    assert_eq!(new["payload"]["initramfs"], "/images/initrd");
    let old = written(overlay, "v50.0");
    assert_eq!(old["disks"][0], json!({"id": "root", "path": "/sandboxes/a/root.qcow2"}));
    assert_eq!(old["disks"][1], json!({"id": "seed", "path": "/sandboxes/a/seed.img", "readonly": true}));
}

#[test]
fn every_layout_of_memory() {
    let of = |layout| {
        let config = written(VmSpec { layout, ..spec() }, "v53.0");
        config["memory"].clone()
    };
    let zone = |shared: bool| {
        json!({"size": 0, "shared": false, "zones": [
            {"id": "mem0", "size": 1_073_741_824_u64, "file": "/sandboxes/a/memory", "shared": shared}
        ]})
    };
    let path = || "/sandboxes/a/memory".into();
    assert_eq!(of(MemoryLayout::Shared), json!({"size": 1_073_741_824_u64, "shared": true}));
    assert_eq!(of(MemoryLayout::Anonymous), json!({"size": 1_073_741_824_u64, "shared": false}));
    assert_eq!(of(MemoryLayout::File { path: path() }), zone(true));
    assert_eq!(of(MemoryLayout::Private { path: path() }), zone(false));
}

#[test]
fn there_are_never_fewer_possible_processors_than_present_ones() {
    for (vcpus, max_vcpus, expected) in [(2, 1, 2), (2, 2, 2), (2, 8, 8)] {
        let config = written(VmSpec { vcpus, max_vcpus, ..spec() }, "v53.0");
        assert_eq!(config["cpus"], json!({"boot_vcpus": vcpus, "max_vcpus": expected}));
    }
}

#[test]
fn states_keep_unknown_words() {
    let info: VmInfo = serde_json::from_str(r#"{"config": {}, "state": "Running", "device_tree": {}}"#).unwrap();
    assert_eq!(info.state, VmState::Running);
    let info: VmInfo = serde_json::from_str(r#"{"state": "Hibernated"}"#).unwrap();
    assert_eq!(info.state, VmState::Other("Hibernated".into()));
    assert_eq!(serde_json::to_string(&info.state).unwrap(), "\"Hibernated\"");
}
