//! The same story on a real Cloud Hypervisor, when there is one: `CH_BINARY`, or `cloud-hypervisor` on
//! PATH. The guest is a few instructions of our own, so there is no toolbox and no power button; what is
//! tested is that the real VMM takes what we tell it and ends as we believe, and that a guest that counts goes on
//! from the same number in each of its copies. Without one the tests say that they were skipped.

use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

mod common;
#[path = "real_vm/guest.rs"]
mod guest;

use common::{Host, eventually, leftovers};
use guest::{beyond, first, install, last, netns, open_files, real_vmm, steady};

/// A host whose VMM is the real one and whose guest prints a line and halts.
fn host(vmm: PathBuf) -> Host {
    let mut host = Host::new();
    install(&mut host, &vmm, "sim/ch-sim/tests/guest/hello.S");
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

/// A host whose guest counts.
fn counting(vmm: PathBuf, strategy: &str, memory: &str) -> Host {
    let mut host = if strategy == "reflink" { Host::on_xfs() } else { Host::new() };
    install(&mut host, &vmm, "tests/real_vm/counter.S");
    host.set("CH_KERNEL_CMDLINE", "console=ttyS0 touch=8");
    host.set("RUNNER_DISK_STRATEGY", strategy);
    host.set("RUNNER_MEMORY", memory);
    host
}

/// Copies `source`; each copy goes on from its number.
fn copied(host: &Host, source: &str, copies: &[&str]) {
    let before = last(host, source);
    let asked = Instant::now();
    let body = serde_json::json!({ "newSandboxIds": copies }).to_string();
    let answer = host.http().post(&format!("/sandboxes/{source}/fork"), &body);
    assert_eq!(answer.status, 201, "{}\n{}", answer.body, host.log());
    let answered = asked.elapsed();
    let made = answer.json();
    for copy in made["sandboxes"].as_array().expect("copies") {
        let begin = &copy["begin"];
        assert_eq!((&copy["state"], &begin["from"]), (&"started".into(), &"memory".into()), "{copy}");
        assert_eq!(begin["mappedBytes"], 1_u64 << 30, "{copy}");
        let identity = begin["identity"].as_str().expect("a word about its identity");
        assert!(identity.starts_with("not confirmed"), "nobody could have told the guest: {identity}");
    }
    let begin = &made["sandboxes"][0]["begin"]["copy"];
    eprintln!("{source} -> {copies:?} answered after {answered:?}: {begin}");
    for copy in copies {
        let number = first(host, copy);
        assert!(number >= before, "{copy} begins with {number}, and {source} was at {before}");
        // The source has or will come there, too: both go on from the same point.
        eventually(&format!("{source} reaches {number}"), || (last(host, source) >= number).then_some(()));
        beyond(host, copy, number);
        steady(host, copy);
    }
    steady(host, source);
}

/// Each has files, a disk and a network of its own.
fn apart(host: &Host, ids: &[&str]) {
    let pid = |id: &str| host.http().get(&format!("/sandboxes/{id}")).json()["pid"].as_i64().expect("a pid");
    let mut namespaces = Vec::new();
    for id in ids {
        let (files, own) =
            (open_files(pid(id)), std::fs::canonicalize(host.path(format!("boxes/{id}"))).expect("it is there"));
        let boxes = own.parent().expect("a directory").to_owned();
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let of = |wanted: &str| {
            files.iter().filter(|file| name(file).is_some_and(|name| name.starts_with(wanted))).collect::<Vec<_>>()
        };
        for wanted in ["disk.", "serial.log", "seed.img"] {
            let found = of(wanted);
            assert!(!found.is_empty(), "{id} has no {wanted} open: {files:?}");
            // Frozen images below an overlay are shared; what has a sandbox's name is its own.
            let others = ids.iter().filter(|other| *other != id).map(|other| boxes.join(other));
            for other in others {
                assert!(
                    !files.iter().any(|file| file.starts_with(&other)),
                    "{id} has a file of {other:?} open: {files:?}"
                );
            }
            assert!(found.iter().any(|file| file.starts_with(&own)), "{id}: {found:?}");
        }
        namespaces.push(netns(pid(id)));
    }
    namespaces.sort();
    namespaces.dedup();
    assert_eq!(namespaces.len(), ids.len(), "each has a namespace, and its TAP is in there");
}

fn a_count_goes_on_in_every_copy(strategy: &str, memory: &str) {
    let Some(vmm) = real_vmm() else { return };
    let host = counting(vmm, strategy, memory);
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("parent")).expect("a job"));
    copied(&host, "parent", &["a", "b", "c"]);
    apart(&host, &["parent", "a", "b", "c"]);
    for id in ["parent", "b"] {
        assert_eq!(host.http().post(&format!("/sandboxes/{id}/destroy"), "").status, 200);
    }

    // Copies of copies, one of them right after the other, of a source that is gone by now.
    copied(&host, "a", &["aa"]);
    copied(&host, "a", &["ab"]);
    copied(&host, "aa", &["aaa"]);
    apart(&host, &["a", "aa", "ab", "aaa", "c"]);
    for id in ["a", "c", "ab"] {
        assert_eq!(host.http().post(&format!("/sandboxes/{id}/destroy"), "").status, 200);
    }

    for _ in 0..3 {
        let before = last(&host, "aaa");
        let stopped = host.http().post("/sandboxes/aaa/stop", r#"{"mode":"checkpoint"}"#);
        assert_eq!(stopped.status, 200, "{}\n{}", stopped.body, host.log());
        let started = host.http().post("/sandboxes/aaa/start", "");
        assert_eq!(started.status, 200, "{}\n{}", started.body, host.log());
        let shown = host.http().get("/sandboxes/aaa").json();
        assert_eq!(shown["begin"]["from"], "memory", "{shown}");
        beyond(&host, "aaa", before);
        steady(&host, "aaa");
        assert!(first(&host, "aaa") >= before, "it goes on from its memory");
    }
    copied(&host, "aaa", &["last"]);
    for id in ["aa", "aaa", "last"] {
        assert_eq!(host.http().post(&format!("/sandboxes/{id}/destroy"), "").status, 200);
    }
    leftovers::none(&host);
    assert_eq!(leftovers::layers(&host), 0);
}

#[test]
fn a_count_goes_on_with_private_memory() {
    a_count_goes_on_in_every_copy("reflink", "private");
}

#[test]
fn a_count_goes_on_with_shared_memory() {
    a_count_goes_on_in_every_copy("reflink", "shared");
}

#[test]
fn a_count_goes_on_with_memory_in_a_file() {
    a_count_goes_on_in_every_copy("reflink", "file");
}

#[test]
fn a_count_goes_on_over_overlays() {
    a_count_goes_on_in_every_copy("overlay", "private");
}
