//! The same story on a real Cloud Hypervisor, when there is one: `CH_BINARY`, or `cloud-hypervisor` on
//! PATH. The guest is a few instructions of our own, so there is no toolbox and no power button; what is
//! tested is that the real VMM takes what we tell it and ends as we believe. Without one the tests say
//! that they were skipped.

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

mod common;

use common::{Host, eventually, leftovers};

fn real_vmm() -> Option<PathBuf> {
    let named = std::env::var_os("CH_BINARY").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = || std::env::split_paths(&path).map(|dir| dir.join("cloud-hypervisor")).find(|file| file.exists());
    let vmm = named.or_else(found).filter(|file| file.exists());
    if vmm.is_none() {
        eprintln!("skipped: no cloud-hypervisor on PATH and no CH_BINARY");
    }
    vmm
}

/// A host whose VMM is the real one and whose guest prints a line and halts.
fn host(vmm: PathBuf) -> Host {
    let mut host = Host::new();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/sim/ch-sim/tests/guest/hello.S");
    let linker =
        ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-Ttext=0x200000", "-Wl,-e,entry", "-o"];
    let built = Command::new("cc").args(linker).arg(host.path("vmlinux")).arg(source).output().expect("cc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    host.set("CH_BINARY", vmm.display().to_string());
    host.set("DAEMON_START_TIMEOUT_SEC", "0");
    host.set("RUNNER_STOP_TIMEOUT_SEC", "1");
    host
}

#[test]
fn a_real_vmm_from_job_to_nothing() {
    let Some(vmm) = real_vmm() else { return };
    let host = host(vmm);
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).expect("a job"));
    let shown = host.http().get("/sandboxes/box").json();
    assert_eq!(shown["state"], "started");
    eventually("the guest speaks", || host.http().get("/sandboxes/box/serial").body.contains("guest up").then_some(()));

    assert!(runner.stop().success());
    let _runner = host.runner();
    assert_eq!(host.http().get("/sandboxes/box").json()["pid"], shown["pid"], "it outlives the runner");

    host.completed(&host.api.stop_sandbox("box", None).expect("a job"));
    assert!(leftovers::vmms(&host.path("sock")).is_empty());
    host.completed(&host.api.start_sandbox("box").expect("a job"));
    host.completed(&host.api.destroy_sandbox("box").expect("a job"));
    leftovers::none(&host);
}

#[test]
fn a_real_vmm_that_is_killed_becomes_visible() {
    let Some(vmm) = real_vmm() else { return };
    let host = host(vmm);
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).expect("a job"));
    let pid = host.http().get("/sandboxes/box").json()["pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(pid.try_into().expect("a pid")), Signal::SIGKILL).expect("it is there");
    let shown = eventually("the sandbox is stopped", || {
        let shown = host.http().get("/sandboxes/box").json();
        (shown["state"] == "stopped").then_some(shown)
    });
    assert!(shown["errorReason"].as_str().expect("a reason").contains("signal 9"), "{shown}");
    host.completed(&host.api.destroy_sandbox("box").expect("a job"));
    leftovers::none(&host);
}

#[test]
fn a_real_vmm_that_cannot_boot_says_why() {
    let Some(vmm) = real_vmm() else { return };
    let host = host(vmm);
    std::fs::write(host.path("vmlinux"), "no kernel at all").expect("a file");
    let _runner = host.runner();
    let job = host.create("box");
    let reason = job.error_message.expect("it fails");
    assert!(reason.contains("The VM could not boot"), "{reason}");
    leftovers::none(&host);
}
