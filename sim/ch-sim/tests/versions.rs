//! What differs in older versions (cloud-hypervisor.md 10). Simulator only.

mod common;

use std::process::Command;

use common::{Binary, Vmm, code, disk, kernel};

fn start(version: &'static str) -> Vmm {
    let vmm = Vmm::start_with(&Binary::simulator(), &[], |command| {
        command.env("CH_SIM_VERSION", version);
    });
    kernel(vmm.dir.path());
    disk(&vmm.path("disk"), 1 << 20);
    vmm
}

#[test]
fn errors_were_plain_text_and_never_404() {
    for (version, status, body) in [
        ("v44.0", 500, "VM is not created"),
        ("v52.0", 500, r#"["Error from API","The VM info is not available","VM is not created"]"#),
        ("v53.0", 404, r#"["Error from API","The VM info is not available","VM is not created"]"#),
    ] {
        let vmm = start(version);
        let reply = vmm.request("GET", "vm.info", None);
        assert_eq!((reply.status, reply.body.as_str()), (status, body), "{version}");
        assert!(vmm.request("GET", "vmm.ping", None).body.contains(version));
    }
}

#[test]
fn a_stale_socket_was_fatal_and_there_was_no_lock_file() {
    let mut vmm = start("v52.0");
    assert!(!vmm.path("api.sock.lock").exists());
    vmm.signal(libc::SIGKILL);
    vmm.wait();
    let output = Command::new(&vmm.binary.path)
        .env("CH_SIM_VERSION", "v52.0")
        .arg("--api-socket")
        .arg(vmm.socket())
        .output()
        .unwrap();
    assert_eq!(code(output.status), 1);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("Address already in use (os error 98)"), "{text}");
    assert!(vmm.socket().exists());
}

#[test]
fn options_and_calls_that_did_not_exist() {
    let binary = Binary::simulator();
    let output =
        Command::new(&binary.path).env("CH_SIM_VERSION", "v51.0").args(["--no-shutdown", "--version"]).output();
    assert_eq!(code(output.unwrap().status), 2);
    let vmm = start("v48.0");
    let body = r#"{"id":"x","desired_size":512}"#;
    assert_eq!(vmm.request("PUT", "vm.resize-disk", Some(body)).status, 404);
    assert_eq!(code(Command::new(&binary.path).env("CH_SIM_VERSION", "v99").output().unwrap().status), 2);
}

#[test]
fn disks_were_not_locked_and_their_type_was_guessed() {
    let config = r#"{"memory":{"size":67108864},"payload":{"kernel":"$DIR/kernel"},"console":{"mode":"Off"},
        "disks":[{"path":"$DIR/disk","image_type":"Qcow2"}]}"#;
    let first = start("v44.0");
    let second = start("v44.0");
    std::fs::remove_file(second.path("disk")).unwrap();
    std::os::unix::fs::symlink(first.path("disk"), second.path("disk")).unwrap();
    for vmm in [&first, &second] {
        vmm.put("vm.create", Some(config));
        vmm.put("vm.boot", None);
    }
    assert!(second.request("GET", "vm.info", None).body.contains(r#""fs":null"#));
}
