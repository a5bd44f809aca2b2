//! Boots, creates and restores that fail, and what they leave behind (cloud-hypervisor.md 1, 6).

use std::process::Command;

use super::{CONFIG, assert_failure, for_each, in_state, vmm};
use crate::common::{Vmm, copy, disk};

const BOOT: &str = "The VM could not boot";
const MANAGER: &str = "Error from device manager";

fn config_of(vmm: &Vmm) -> serde_json::Value {
    let info = vmm.request("GET", "vm.info", None);
    let info: serde_json::Value = serde_json::from_str(&info.body).unwrap();
    info["config"].clone()
}

#[test]
fn a_kernel_that_does_not_load_leaves_a_half_booted_vm() {
    for_each(|binary| {
        for kernel in ["missing", "text"] {
            let vmm = vmm(binary);
            std::fs::write(vmm.path("text"), "this is no kernel\n").unwrap();
            let config = CONFIG.replace("$DIR/kernel", &format!("$DIR/{kernel}"));
            vmm.put("vm.create", Some(&config));
            let reply = vmm.request("PUT", "vm.boot", None);
            match kernel {
                "missing" => assert_failure(
                    &reply,
                    500,
                    &[BOOT, "Cannot open kernel file", "No such file or directory (os error 2)"],
                ),
                _ => assert!(reply.body.contains("Cannot load the kernel into memory"), "{reply:?}"),
            }
            assert_eq!(vmm.state(), "Created");
            let again = vmm.request("PUT", "vm.boot", None);
            assert_failure(&again, 500, &[BOOT, "VM is already created"]);
            assert_eq!(vmm.request("GET", "vm.counters", None).status, 200);
            vmm.put("vm.pause", None);
            vmm.put("vm.resume", None);
            assert_eq!(vmm.state(), "Running");
            vmm.put("vm.shutdown", None);
            assert_eq!(vmm.state(), "Created");
            copy(&vmm.path("kernel"), &vmm.path(kernel));
            vmm.put("vm.boot", None);
            assert_eq!(vmm.state(), "Running");
        }
    });
}

#[test]
fn a_text_file_is_named_as_the_kernel_loader_does() {
    for_each(|binary| {
        let vmm = vmm(binary);
        std::fs::write(vmm.path("kernel"), "x".repeat(4096)).unwrap();
        vmm.put("vm.create", Some(CONFIG));
        let reply = vmm.request("PUT", "vm.boot", None);
        let texts = [
            BOOT,
            "Cannot load the kernel into memory",
            "Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage",
            "Kernel Loader: Invalid bzImage",
        ];
        assert_failure(&reply, 500, &texts);
    });
}

#[test]
fn a_disk_that_does_not_open_makes_all_disks_forgotten() {
    for_each(|binary| {
        let vmm = vmm(binary);
        let disks = r#""disks":[{"id":"a","path":"$DIR/nope","image_type":"Raw"},"#;
        vmm.put("vm.create", Some(&CONFIG.replace(r#""disks":["#, disks)));
        let reply = vmm.request("PUT", "vm.boot", None);
        let texts = [
            BOOT,
            MANAGER,
            "Cannot open disk path",
            "I/O error (path=$DIR/nope op=open)",
            "No such file or directory (os error 2)",
        ];
        assert_failure(&reply, 500, &texts);
        assert_eq!(vmm.state(), "Created");
        assert!(config_of(&vmm)["disks"].is_null());
        vmm.put("vm.boot", None);
        assert_eq!(vmm.state(), "Running");
    });
}

#[test]
fn a_tap_that_does_not_open_makes_all_nets_forgotten() {
    for_each(|binary| {
        let vmm = vmm(binary);
        let net = r#"{"net":[{"tap":"a-name-that-is-too-long"}],"#;
        vmm.put("vm.create", Some(&CONFIG.replacen('{', net, 1)));
        let reply = vmm.request("PUT", "vm.boot", None);
        let texts = [
            BOOT,
            MANAGER,
            "Cannot create virtio-net device",
            "Failed to open taps",
            "Open tap device failed",
            "Interface name too long (max length is 15): a-name-that-is-too-long",
        ];
        assert_failure(&reply, 500, &texts);
        assert!(config_of(&vmm)["net"].is_null());
        assert!(!config_of(&vmm)["disks"].is_null());
        vmm.put("vm.boot", None);
    });
}

#[test]
fn validation_happens_at_boot_and_changes_nothing() {
    for_each(|binary| {
        let vmm = vmm(binary);
        vmm.put("vm.create", Some("{}"));
        let texts = [
            BOOT,
            "Failed to validate config",
            "Payload configuration is not bootable",
            "No bootitem provided: neither firmware nor kernel",
        ];
        for _ in 0..2 {
            assert_failure(&vmm.request("PUT", "vm.boot", None), 500, &texts);
            assert_eq!(vmm.state(), "Created");
        }
        let counters = vmm.request("GET", "vm.counters", None);
        assert_eq!(counters.status, 500);
    });
}

#[test]
fn a_failed_create_keeps_its_configuration() {
    for_each(|binary| {
        let vmm = vmm(binary);
        let config = CONFIG.replace("$DIR/serial", "/not/there/serial");
        let reply = vmm.request("PUT", "vm.create", Some(&config));
        let texts = [
            "The VM could not be created",
            "Error creating console devices",
            "Error creating console device",
            "No such file or directory (os error 2)",
        ];
        assert_failure(&reply, 500, &texts);
        let again = vmm.request("PUT", "vm.create", Some(CONFIG));
        assert_failure(&again, 500, &["The VM could not be created", "VM is already created"]);
        vmm.put("vm.delete", None);
        vmm.put("vm.create", Some(CONFIG));
    });
}

#[test]
fn a_disk_in_use_makes_a_half_booted_vm_until_it_is_free() {
    for_each(|binary| {
        let first = in_state(binary, "running");
        let second = vmm(binary);
        let path = first.path("disk");
        let config = CONFIG.replace("$DIR/disk", path.to_str().unwrap());
        second.put("vm.create", Some(&config));
        let locked = format!("Failed to get Write lock for disk image: {}", path.display());
        let texts = [
            BOOT,
            "Error locking disk images: Another instance likely holds a lock",
            "Cannot lock images of all block devices",
            &locked,
            "The file is already locked",
        ];
        assert_failure(&second.request("PUT", "vm.boot", None), 500, &texts);
        first.put("vm.pause", None);
        second.put("vm.shutdown", None);
        assert_eq!(second.request("PUT", "vm.boot", None).status, 500);
        first.put("vm.shutdown", None);
        second.put("vm.shutdown", None);
        second.put("vm.boot", None);
    });
}

#[test]
fn image_types_are_checked() {
    let make = |args: &[&str]| {
        let status = Command::new("qemu-img").args(["create", "-q"]).args(args).status();
        assert!(status.unwrap().success(), "qemu-img {args:?}");
    };
    for_each(|binary| {
        let vmm = vmm(binary);
        let at = |name: &str| vmm.path(name).to_str().unwrap().to_owned();
        make(&["-f", "qcow2", &at("plain"), "1M"]);
        make(&["-f", "qcow2", "-b", "disk", "-F", "raw", &at("over"), "1M"]);
        make(&["-f", "qcow2", "-u", "-b", "gone", "-F", "raw", &at("orphan"), "1M"]);
        disk(&vmm.path("raw"), 1 << 20);
        let open = "Unsupported feature (path=$DIR/over op=open)";
        let rows: &[(&str, &[&str])] = &[
            (r#""path":"$DIR/plain","image_type":"Qcow2""#, &[]),
            (
                r#""path":"$DIR/plain","image_type":"Raw""#,
                &["Disk image type does not match expected type: specified = raw, detected = qcow2"],
            ),
            (
                r#""path":"$DIR/raw","image_type":"Qcow2""#,
                &["Disk image type does not match expected type: specified = qcow2, detected = raw"],
            ),
            (
                r#""path":"$DIR/over","image_type":"Qcow2""#,
                &["Cannot open disk path", open, "Maximum disk nesting depth exceeded"],
            ),
            (r#""path":"$DIR/over","image_type":"Qcow2","backing_files":true"#, &[]),
            (
                r#""path":"$DIR/orphan","image_type":"Qcow2","backing_files":true"#,
                &[
                    "Cannot open disk path",
                    "I/O error (path=$DIR/orphan op=open)",
                    "Backing file I/O error: $DIR/gone",
                    "No such file or directory (os error 2)",
                ],
            ),
        ];
        for (disk, texts) in rows {
            println!("{disk}");
            let config = CONFIG.replace(r#""path":"$DIR/disk","image_type":"Raw""#, disk);
            vmm.put("vm.create", Some(&config));
            let reply = vmm.request("PUT", "vm.boot", None);
            if texts.is_empty() {
                assert_eq!(reply.status, 204, "{reply:?}");
            } else {
                assert_failure(&reply, 500, &[&[BOOT, MANAGER], *texts].concat());
            }
            vmm.put("vm.delete", None);
        }
    });
}
