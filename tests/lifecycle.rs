//! The main job, end to end: a job of the API becomes a microVM that answers through the runner, is
//! stopped, started and destroyed, and leaves nothing behind. Real kernel, real files, real HTTP.

use daytona_sim::{JobStatus, SandboxState};
use nix::sys::signal::Signal;

mod common;

use common::{Host, SOON, eventually, leftovers};

#[test]
fn a_sandbox_from_job_to_nothing() {
    let host = Host::new();
    let runner = host.runner();

    let created = host.completed(&host.api.create_sandbox(&host.spec("box-1")).unwrap());
    let metadata: serde_json::Value = serde_json::from_str(created.result_metadata.as_deref().unwrap()).unwrap();
    let shown = host.http().get("/sandboxes/box-1").json();
    assert_eq!(shown["state"], "started");
    let version = host.http().get("/sandboxes/box-1/toolbox/version").json();
    assert_eq!(metadata["daemonVersion"], version["version"], "the version is the guest's, not the runner's");
    assert_eq!(host.in_guest("box-1", "echo hello"), "hello");
    assert_eq!(host.in_guest("box-1", "write-block 7 kept"), host.in_guest("box-1", "write-block 7 kept"));
    assert!(host.http().get("/sandboxes/box-1/serial").body.contains("kernel"), "the guest's console is served");

    host.completed(&host.api.stop_sandbox("box-1", None).unwrap());
    let shown = host.http().get("/sandboxes/box-1").json();
    assert_eq!(shown["state"], "stopped");
    assert!(shown.get("pid").is_none() && shown.get("netns").is_none(), "a stopped sandbox keeps no VMM and no slot");
    assert!(leftovers::vmms(&host.path("sock")).is_empty());
    assert_eq!(host.http().get("/sandboxes/box-1/toolbox/version").status, 400);

    host.completed(&host.api.start_sandbox("box-1").unwrap());
    assert!(host.in_guest("box-1", "read-block 7").contains("kept"), "the disk outlives a stop");

    host.completed(&host.api.destroy_sandbox("box-1").unwrap());
    assert_eq!(host.http().get("/sandboxes/box-1").status, 404);
    leftovers::none(&host);
    assert_eq!(host.api.sandbox("box-1").unwrap().state, SandboxState::Destroyed);
    assert_eq!(host.api.most_open_polls(), 1, "never more than one poll in flight");
    assert!(runner.stop().success());
}

#[test]
fn the_disk_works_on_qcow2_overlays_too() {
    let mut host = Host::new();
    host.set("RUNNER_DISK_STRATEGY", "overlay");
    let _runner = host.runner();
    let base = std::fs::read(host.path("snap/ubuntu-base.1/disk.raw")).unwrap();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    host.in_guest("box", "write-block 3 overlay");
    host.completed(&host.api.stop_sandbox("box", None).unwrap());
    host.completed(&host.api.start_sandbox("box").unwrap());
    assert!(host.in_guest("box", "read-block 3").contains("overlay"));
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
    assert!(std::fs::read(host.path("snap/ubuntu-base.1/disk.raw")).unwrap() == base, "the base is never modified");
}

#[test]
fn both_dialects_are_spoken() {
    let host = Host::with(|options| options.dialect = daytona_sim::Dialect::Branch);
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    host.completed(&host.api.stop_sandbox("box", None).unwrap());
    host.completed(&host.api.start_sandbox("box").unwrap());
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn vms_outlive_the_runner_and_are_found_again() {
    let host = Host::new();
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    host.in_guest("box", "echo marked > /tmp/mark");
    let before = host.http().get("/sandboxes/box").json();

    assert!(runner.stop().success(), "SIGTERM ends the runner with exit code 0");
    let runner = host.runner();
    let after = host.http().get("/sandboxes/box").json();
    assert_eq!((&after["pid"], &after["state"]), (&before["pid"], &before["state"]));
    assert_eq!(host.in_guest("box", "cat /tmp/mark"), "marked");

    runner.murder();
    let _runner = host.runner();
    assert_eq!(host.http().get("/sandboxes/box").json()["pid"], before["pid"], "the same after SIGKILL");
    assert_eq!(host.in_guest("box", "cat /tmp/mark"), "marked");
    assert!(!host.http().get("/sandboxes/box/serial").body.is_empty());
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn a_vmm_that_dies_becomes_visible() {
    let host = Host::new();
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    let pid = host.http().get("/sandboxes/box").json()["pid"].as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    host.api.wait_sandbox("box", SandboxState::Stopped, SOON).expect("the API learns that it stopped");
    let shown = host.http().get("/sandboxes/box").json();
    assert_eq!(shown["state"], "stopped");
    assert!(shown["errorReason"].as_str().unwrap().contains("signal 9"), "{shown}");
    // And it can be started again.
    host.completed(&host.api.start_sandbox("box").unwrap());
    assert!(host.http().get("/sandboxes/box").json().get("errorReason").is_none());
}

#[test]
fn a_guest_that_powers_itself_off_becomes_visible() {
    let host = Host::new();
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    let body = serde_json::json!({ "command": "poweroff" }).to_string();
    host.http().post("/sandboxes/box/toolbox/process/execute", &body);
    let shown = eventually("the sandbox is stopped", || {
        let shown = host.http().get("/sandboxes/box").json();
        (shown["state"] == "stopped").then_some(shown)
    });
    assert!(shown["errorReason"].as_str().unwrap().contains("powered itself off"), "{shown}");
}

#[test]
fn a_guest_without_toolbox() {
    let mut host = Host::new();
    host.set("DAEMON_START_TIMEOUT_SEC", "0");
    host.faults(serde_json::json!([{ "when": "toolbox", "action": "never" }]));
    let _runner = host.runner();
    let job = host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    assert_eq!(job.result_metadata.as_deref(), Some("{}"), "no daemon, no version");
    assert_eq!(host.http().get("/sandboxes/box").json()["state"], "started");
}

#[test]
fn skip_start_makes_without_starting() {
    let host = Host::new();
    let _runner = host.runner();
    let spec = daytona_sim::CreateSpec { skip_start: true, ..host.spec("box") };
    host.completed(&host.api.create_sandbox(&spec).unwrap());
    assert_eq!(host.http().get("/sandboxes/box").json()["state"], "stopped");
    host.completed(&host.api.start_sandbox("box").unwrap());
    assert_eq!(host.in_guest("box", "echo up"), "up");
}

#[test]
fn the_environment_and_the_host_name_reach_the_guest() {
    let host = Host::new();
    let _runner = host.runner();
    let env = vec![("GREETING".to_owned(), "it's \"quoted\" $HOME".to_owned())];
    host.completed(&host.api.create_sandbox(&daytona_sim::CreateSpec { env, ..host.spec("box") }).unwrap());
    assert_eq!(host.in_guest("box", "hostname"), "box");
    let env = host.in_guest("box", "env");
    assert!(env.contains("GREETING=it's \"quoted\" $HOME"), "{env}");
    assert!(env.contains("DAYTONA_SANDBOX_ID=box"), "the daemon exits without it: {env}");
}

#[test]
fn many_at_once_with_ids_alike_in_their_first_characters() {
    let host = Host::new();
    let _runner = host.runner();
    let ids: Vec<String> = (0..24).map(|n| format!("a-long-common-prefix-{n}")).collect();
    let jobs: Vec<String> = ids.iter().map(|id| host.api.create_sandbox(&host.spec(id)).unwrap()).collect();
    for job in &jobs {
        host.completed(job);
    }
    for id in &ids {
        assert_eq!(host.in_guest(id, "hostname"), *id);
    }
    let jobs: Vec<String> = ids.iter().map(|id| host.api.destroy_sandbox(id).unwrap()).collect();
    for job in &jobs {
        assert_eq!(host.done(job).status, JobStatus::Completed);
    }
    leftovers::none(&host);
}
