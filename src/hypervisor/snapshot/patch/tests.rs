use super::*;
use crate::hypervisor::wire::ImageType;

const GIB: u64 = 1 << 30;

fn adaptation(mode: RestoreMode, memory_bytes: u64) -> Adaptation {
    Adaptation {
        root: ("/child/root.qcow2".into(), ImageType::Qcow2),
        backed: true,
        seed: "/child/seed.img".into(),
        tap: "tap7".into(),
        serial: "/child/serial.log".into(),
        memory: "/child/memory".into(),
        memory_bytes,
        mode,
    }
}

fn parent_config() -> Value {
    json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 4, "from_the_future": {"deep": [1, -2, u64::MAX]}},
        "memory": {"size": GIB, "shared": true, "thp": true, "hotplug_method": "Acpi"},
        "disks": [
            {"id": "root", "path": "/parent/root.raw", "image_type": "Raw", "backing_files": false, "num_queues": 1},
            {"id": "seed", "path": "/parent/seed.img", "image_type": "Raw", "readonly": true}
        ],
        "net": [{"id": "net0", "tap": "tap0", "mac": "02:00:00:00:00:01", "host_mac": "02:00:00:00:00:02"}],
        "serial": {"mode": "File", "file": "/parent/serial.log"},
        "console": {"mode": "Off", "file": null}
    })
}

fn parent_state(mappings: &Value, ranges: &Value) -> Value {
    let manager = json!({
        "memory_ranges": {"data": ranges, "also": "kept"},
        "guest_ram_mappings": mappings,
        "arch_mem_regions": [{"base": 4 * GIB, "size": u64::MAX, "r_type": "Ram"}],
    });
    json!({
        "snapshots": {
            "cpu-manager": {"snapshots": {}, "snapshot_data": {"state": "{\"tsc\": 18446744073709551615 }"}},
            "memory-manager": {"snapshots": {}, "snapshot_data": {"state": manager.to_string()}}
        },
        "snapshot_data": {"state": "{}"}
    })
}

fn mapping(slot: u32, gpa: u64, size: u64) -> Value {
    json!({"slot": slot, "gpa": gpa, "size": size, "zone_id": "mem0", "virtio_mem": false, "file_offset": 0})
}

fn manager(state: &Value) -> Value {
    let text = state["snapshots"]["memory-manager"]["snapshot_data"]["state"].as_str().unwrap();
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_configuration_for_a_private_map() {
    let mut found = parent_config();
    config(&mut found, &adaptation(RestoreMode::Map, GIB)).unwrap();
    let mut expected = parent_config();
    expected["memory"] = json!({"size": 0, "shared": false, "thp": true, "hotplug_method": "Acpi", "zones": [
        {"id": "mem0", "size": GIB, "file": "/child/memory", "shared": false}]});
    expected["disks"][0]["path"] = "/child/root.qcow2".into();
    expected["disks"][0]["image_type"] = "Qcow2".into();
    expected["disks"][0]["backing_files"] = true.into();
    expected["disks"][1]["path"] = "/child/seed.img".into();
    expected["net"] = json!([{"id": "net0", "tap": "tap7", "mac": "02:00:00:00:00:01"}]);
    expected["serial"]["file"] = "/child/serial.log".into();
    assert_eq!(found, expected);
}

#[test]
fn a_configuration_for_a_copy_loses_its_zones() {
    let mut found = parent_config();
    found["memory"] = json!({"size": 0, "thp": false, "shared": false, "zones": [
        {"id": "mem0", "size": GIB, "file": "/parent/memory", "shared": true}]});
    config(&mut found, &adaptation(RestoreMode::Copy, GIB)).unwrap();
    assert_eq!(found["memory"], json!({"size": GIB, "thp": false, "shared": false}));
}

#[test]
fn keys_that_a_version_does_not_have() {
    let mut found = parent_config();
    found["memory"]["zones"] = Value::Null;
    found["disks"][0] = json!({"id": "root", "path": "/parent/root.raw"});
    let raw = Adaptation {
        root: ("/child/root.raw".into(), ImageType::Raw),
        backed: false,
        ..adaptation(RestoreMode::Map, GIB)
    };
    config(&mut found, &raw).unwrap();
    assert_eq!(found["disks"][0], json!({"id": "root", "path": "/child/root.raw", "image_type": "Raw"}));
}

#[test]
fn a_state_for_a_private_map_of_more_than_3_gib() {
    // Not in the order of their addresses.
    let mappings = json!([mapping(1, 4 * GIB, 2 * GIB), mapping(0, 0, 3 * GIB)]);
    let ranges = json!([{"gpa": 0, "length": 3 * GIB}, {"gpa": 4 * GIB, "length": 2 * GIB}]);
    let before = parent_state(&mappings, &ranges);
    let mut after = before.clone();
    state(&mut after, &adaptation(RestoreMode::Map, 5 * GIB)).unwrap();
    let mut expected = manager(&before);
    expected["memory_ranges"]["data"] = json!([]);
    expected["guest_ram_mappings"][0]["file_offset"] = (3 * GIB).into();
    assert_eq!(manager(&after), expected);
    assert_eq!(after["snapshots"]["cpu-manager"], before["snapshots"]["cpu-manager"], "not even spaces change");
    assert!(after.to_string().contains(&u64::MAX.to_string()));
}

#[test]
fn a_state_for_a_copy_keeps_its_ranges_or_gets_them() {
    let mappings = json!([mapping(0, 0, 3 * GIB), mapping(1, 4 * GIB, GIB)]);
    let ranges = json!([{"gpa": 0, "length": 3 * GIB}, {"gpa": 4 * GIB, "length": GIB}]);
    for written in [&json!([]), &ranges] {
        let mut found = parent_state(&mappings, written);
        state(&mut found, &adaptation(RestoreMode::Copy, 4 * GIB)).unwrap();
        assert_eq!(manager(&found)["memory_ranges"], json!({"data": ranges, "also": "kept"}));
        assert_eq!(manager(&found)["guest_ram_mappings"], mappings);
    }
}

#[test]
fn states_that_do_not_fit() {
    let whole = || json!([mapping(0, 0, GIB)]);
    let other_zone = || {
        let mut mapping = mapping(0, 0, GIB);
        mapping["zone_id"] = "mem1".into();
        json!([mapping])
    };
    let plugged = || {
        let mut mapping = mapping(0, 0, GIB);
        mapping["virtio_mem"] = true.into();
        json!([mapping])
    };
    let range = |gpa: u64, length: u64| json!([{"gpa": gpa, "length": length}]);
    for (mappings, ranges, expected) in [
        (json!([mapping(0, 0, GIB / 2)]), json!([]), "mappings of 1073741824 bytes of RAM"),
        (json!([]), json!([]), "mappings of 1073741824 bytes of RAM"),
        (json!([mapping(0, 0, GIB / 2), mapping(1, 4096, GIB / 2)]), json!([]), "mappings one after the other"),
        (json!([mapping(0, 0, GIB), mapping(1, 4 * GIB, 0)]), json!([]), "mappings one after the other"),
        (json!([mapping(0, 0, u64::MAX), mapping(1, 1, 2)]), json!([]), "sizes that fit into 64 bits"),
        (json!([mapping(0, u64::MAX, GIB)]), json!([]), "sizes that fit into 64 bits"),
        (other_zone(), json!([]), "mappings of zone mem0 only"),
        (plugged(), json!([]), "no hot-plugged RAM"),
        (whole(), range(0, GIB / 2), "memory_ranges like the mappings"),
        (whole(), range(4096, GIB), "memory_ranges like the mappings"),
        (whole(), json!("none"), "data as an array"),
        (whole(), json!([{"gpa": "0", "length": 1}]), "gpa as a number of bytes"),
        (whole(), json!([{"gpa": -1, "length": 1}]), "gpa as a number of bytes"),
        (json!({}), json!([]), "guest_ram_mappings as an array"),
        (json!([3]), json!([]), "each range of RAM as an object"),
        (json!([{"gpa": 0, "size": GIB}]), json!([]), "a member \"zone_id\""),
    ] {
        for mode in [RestoreMode::Map, RestoreMode::Copy] {
            let mut found = parent_state(&mappings, &ranges);
            let error = state(&mut found, &adaptation(mode, GIB)).unwrap_err();
            assert!(error.expected.starts_with(expected), "{mappings} {ranges}: {error:?}");
        }
    }
}

#[test]
fn states_without_a_memory_manager() {
    let mut gone = parent_state(&json!([]), &json!([]));
    gone["snapshots"].as_object_mut().unwrap().remove("memory-manager");
    let with = |text: Value| {
        let mut found = parent_state(&json!([]), &json!([]));
        found["snapshots"]["memory-manager"]["snapshot_data"]["state"] = text;
        found
    };
    for (mut found, expected) in [
        (gone, "a member \"memory-manager\""),
        (Value::Null, "the parents of memory-manager's state as an object"),
        (with(json!([1, 2])), "memory-manager's state as a JSON document in a string"),
        (with(json!("{\"cut")), "memory-manager's state as a JSON document in a string"),
        (with(json!("{\"a\": 1e40}")), "whole numbers of at most 64 bits"),
        (with(json!("{\"a\": 18446744073709551616}")), "whole numbers of at most 64 bits"),
        (with(json!("[]")), "memory-manager's state as an object"),
        (with(json!("{}")), "a member \"guest_ram_mappings\""),
    ] {
        let error = state(&mut found, &adaptation(RestoreMode::Map, GIB)).unwrap_err();
        assert!(error.expected.starts_with(expected), "{error:?}");
    }
}

#[test]
fn configurations_that_do_not_fit() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut found = parent_config();
        change(&mut found);
        found
    };
    let disk = json!({"id": "volume", "path": "/parent/volume"});
    for (mut found, expected, said) in [
        (json!([]), "the configuration as an object", "an array"),
        (with(&|c| c["memory"]["size"] = (GIB / 2).into()), "1073741824 bytes of RAM", "536870912"),
        (with(&|c| c["memory"]["size"] = 1.5.into()), "whole numbers of at most 64 bits", "1.5"),
        (with(&|c| c["memory"] = "big".into()), "memory as an object", "the string \"big\""),
        (with(&|c| c["memory"]["zones"] = json!([7])), "each memory zone as an object", "7"),
        (with(&|c| c["disks"][0]["id"] = "disk0".into()), "exactly the disks root, seed", "[disk0, seed]"),
        (with(&|c| c["disks"][1]["id"] = "root".into()), "exactly the disks root, seed", "[root, root]"),
        (with(&|c| drop(c["disks"][0].as_object_mut().unwrap().remove("id"))), "a member \"id\"", "none"),
        (
            with(&|c| c["disks"].as_array_mut().unwrap().push(disk.clone())),
            "exactly the disks root, seed",
            "[root, seed, volume]",
        ),
        (with(&|c| c["disks"] = Value::Null), "disks as an array", "null"),
        (with(&|c| c["net"] = json!([])), "exactly the network devices net0", "[]"),
        (with(&|c| c["net"][0]["id"] = "_net1".into()), "exactly the network devices net0", "[_net1]"),
        (with(&|c| c["serial"]["mode"] = "Tty".into()), "serial.mode File", "Tty"),
        (with(&|c| drop(c.as_object_mut().unwrap().remove("serial"))), "a member \"serial\"", "none"),
    ] {
        let error = config(&mut found, &adaptation(RestoreMode::Map, GIB)).unwrap_err();
        assert_eq!((error.expected.as_str(), error.found.as_str()), (expected, said));
    }
}

proptest::proptest! {
    /// Whatever is in a file, it is an error or a result, never a crash.
    #[test]
    fn any_json_in_place_of_any_part(text in "[\\[\\]{}\":,0-9a-z.-]{0,40}", part in 0_usize..6, number: u64) {
        let junk: Value = serde_json::from_str(&text).unwrap_or_else(|_| json!([{"id": number, "size": number}]));
        let mut found = parent_config();
        let name = ["memory", "disks", "net", "serial", "cpus", "console"][part];
        found[name] = junk.clone();
        let _ = config(&mut found, &adaptation(RestoreMode::Map, GIB));
        let mut found = parent_state(&junk, &junk);
        let _ = state(&mut found, &adaptation(RestoreMode::Copy, number));
    }
}
