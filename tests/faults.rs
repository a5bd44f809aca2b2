//! What goes wrong, and what is left then: nothing, and a clear reason.

use daytona_sim::{Action, CreateSpec, Fault, JobStatus, Route, SandboxState};
use serde_json::json;

mod common;

use common::{Host, SOON, eventually, leftovers};

/// A creation that must fail with this in its reason, leaving nothing.
#[track_caller]
fn fails_with(host: &Host, spec: &CreateSpec, words: &[&str]) {
    let job = host.done(&host.api.create_sandbox(spec).unwrap());
    assert_eq!(job.status, JobStatus::Failed);
    let reason = job.error_message.unwrap();
    for word in words {
        assert!(reason.contains(word), "{word:?} is not in {reason:?}");
    }
    leftovers::none(host);
    assert_eq!(host.http().get(&format!("/sandboxes/{}", spec.id)).status, 404);
}

#[test]
fn a_boot_that_fails_carries_the_words_of_cloud_hypervisor() {
    let host = Host::new();
    let _runner = host.runner();
    std::fs::write(host.path("vmlinux"), "not a kernel").unwrap();
    fails_with(&host, &host.spec("box"), &["box", "vm.boot", "The VM could not boot"]);
    host.write_kernel();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
}

#[test]
fn a_toolbox_that_never_answers_is_a_failure_with_the_last_serial_output() {
    let mut host = Host::new();
    host.set("DAEMON_START_TIMEOUT_SEC", "2");
    host.faults(json!([{ "when": "toolbox", "action": "never" }]));
    let _runner = host.runner();
    let words = ["timeout while starting", "DAEMON_START_TIMEOUT_SEC", "last serial output"];
    fails_with(&host, &host.spec("box"), &words);
}

#[test]
fn a_vmm_that_crashes_or_exits_during_the_start() {
    let host = Host::new();
    let _runner = host.runner();
    for (when, action) in [("spawn", "exit"), ("vm.create", "crash"), ("vm.boot", "crash"), ("vm.boot", "error")] {
        host.faults(json!([{ "when": when, "action": action, "value": 1, "times": 1 }]));
        fails_with(&host, &host.spec("box"), &["cannot create sandbox box"]);
    }
}

#[test]
fn a_destroy_overtakes_a_start_that_hangs() {
    let host = Host::new();
    host.faults(json!([{ "when": "toolbox", "action": "never" }]));
    let _runner = host.runner();
    // Over HTTP, as the API allows only one unfinished job per sandbox.
    let body = json!({ "id": "box", "snapshot": "ubuntu-base.1", "memoryQuota": 1, "storageQuota": 1 }).to_string();
    let http = host.http();
    let creating = std::thread::spawn(move || http.post("/sandboxes", &body));
    eventually("the sandbox is being created and its VMM runs", || {
        let answer = host.http().get("/sandboxes/box");
        (answer.status == 200 && answer.json().get("pid").is_some()).then_some(())
    });
    assert_eq!(host.http().delete("/sandboxes/box").status, 200);
    let created = creating.join().unwrap();
    assert_eq!(created.status, 409, "{}", created.body);
    assert_eq!(created.json()["code"], "INTERRUPTED");
    leftovers::none(&host);
}

#[test]
fn a_guest_that_ignores_the_power_button_is_ended() {
    let mut host = Host::new();
    host.set("RUNNER_STOP_TIMEOUT_SEC", "1");
    host.faults(json!([{ "when": "power-button", "action": "ignore" }]));
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    host.completed(&host.api.stop_sandbox("box", None).unwrap());
    assert!(leftovers::vmms(&host.path("sock")).is_empty());
    host.completed(&host.api.start_sandbox("box").unwrap());
    host.completed(&host.api.stop_sandbox("box", Some(true)).unwrap());
    assert!(leftovers::vmms(&host.path("sock")).is_empty());
}

#[test]
fn base_images_that_cannot_be_used() {
    let host = Host::new();
    let _runner = host.runner();
    let missing = CreateSpec { snapshot: "org/absent".into(), ..host.spec("box") };
    fails_with(&host, &missing, &["org/absent", "snap/org/absent"]);

    std::fs::create_dir_all(host.path("snap/corrupt")).unwrap();
    std::fs::write(host.path("snap/corrupt/disk.qcow2"), b"QFI\xfb\x00\x00\x00\x63garbage").unwrap();
    fails_with(&host, &CreateSpec { snapshot: "corrupt".into(), ..host.spec("box") }, &["corrupt"]);

    std::fs::create_dir_all(host.path("snap/large")).unwrap();
    std::fs::File::create(host.path("snap/large/disk.raw")).unwrap().set_len(2 << 30).unwrap();
    fails_with(&host, &CreateSpec { snapshot: "large".into(), ..host.spec("box") }, &["storageQuota"]);

    let outside = CreateSpec { snapshot: "../../etc/passwd".into(), ..host.spec("box") };
    fails_with(&host, &outside, &["snapshot"]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let host = Host::new();
    let _runner = host.runner();
    fails_with(&host, &CreateSpec { gpu: 1, ..host.spec("box") }, &["gpuQuota"]);
    let domains = CreateSpec { domain_allow_list: Some("example.com".into()), ..host.spec("box") };
    fails_with(&host, &domains, &["domainAllowList"]);
    fails_with(&host, &CreateSpec { memory: 4000, ..host.spec("box") }, &["memoryQuota", "this host has"]);
}

#[test]
fn jobs_that_cannot_be_read() {
    let host = Host::new();
    let _runner = host.runner();
    let submit = |kind: &str, id: &str, payload: daytona_sim::Payload| {
        host.api.submit(kind, daytona_sim::ResourceType::Sandbox, id, payload).unwrap()
    };
    use daytona_sim::Payload;
    let table = [
        ("NO_SUCH_JOB", "box", Payload::none(), "unknown job type: NO_SUCH_JOB"),
        ("CREATE_SANDBOX", "box", Payload::text("{broken"), "payload"),
        ("CREATE_SANDBOX", "box", Payload::text("[]"), "payload"),
        ("CREATE_SANDBOX", "box", Payload::none(), "id: expected a sandbox id"),
        ("CREATE_SANDBOX", "box", Payload::text(json!({"id": "other"}).to_string()), "id"),
        ("CREATE_SANDBOX", "box", Payload::text(json!({"id": "box", "cpuQuota": -1}).to_string()), "cpuQuota"),
        ("CREATE_SANDBOX", "../box", Payload::text(json!({"id": "../box"}).to_string()), "id"),
        ("START_SANDBOX", "no-such-box", Payload::none(), "does not exist"),
        ("STOP_SANDBOX", "no-such-box", Payload::none(), "does not exist"),
    ];
    for (kind, id, payload, words) in table {
        let job = host.done(&submit(kind, id, payload));
        assert_eq!(job.status, JobStatus::Failed, "{kind}");
        let reason = job.error_message.unwrap();
        assert!(reason.contains(words), "{kind}: {words:?} is not in {reason:?}");
    }
    // Not found is success for a destroy.
    host.completed(&submit("DESTROY_SANDBOX", "no-such-box", Payload::none()));
    leftovers::none(&host);
}

#[test]
fn a_job_delivered_twice_is_executed_once() {
    let host = Host::new();
    let _runner = host.runner();
    host.api.faults().double_delivery(1);
    let job = host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    assert!(job.deliveries >= 1);
    let boots = host.log().matches("stage=\"vm.boot\"").count();
    assert_eq!(boots, 1, "one boot for one job");
    assert_eq!(leftovers::vmms(&host.path("sock")).len(), 1);
}

#[test]
fn a_lost_report_is_repeated_until_it_is_taken() {
    let host = Host::new();
    let _runner = host.runner();
    for action in
        [Action::Status { code: 503, retry_after: None }, Action::CloseAfter, Action::CloseBefore, Action::Garbage]
    {
        host.api.faults().add(Fault::times(Route::Status, action, 2));
        host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
        host.completed(&host.api.destroy_sandbox("box").unwrap());
    }
    leftovers::none(&host);
}

#[test]
fn a_job_lost_in_a_broken_poll_is_found_by_reconciliation() {
    let host = Host::new();
    let _runner = host.runner();
    host.api.wait_open_polls(1, SOON);
    // The API hands the job out and the answer never arrives.
    host.api.faults().add(Fault::once(Route::Poll, Action::CloseAfter));
    let job = host.api.create_sandbox(&host.spec("box")).unwrap();
    host.completed(&job);
}

#[test]
fn an_api_that_is_away_answers_nonsense_or_refuses() {
    let host = Host::new();
    host.api.faults().down();
    let _runner = host.runner();
    assert_eq!(host.http().get("/").status, 200, "the runner serves its own API meanwhile");
    host.api.faults().up();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    for action in [Action::Html, Action::Garbage, Action::Status { code: 500, retry_after: None }, Action::Empty] {
        host.api.faults().add(Fault::times(Route::Poll, action, 1));
        host.completed(&host.api.stop_sandbox("box", None).unwrap());
        host.completed(&host.api.start_sandbox("box").unwrap());
    }
    assert_eq!(host.api.wait_sandbox("box", SandboxState::Started, SOON).unwrap().state, SandboxState::Started);
}

#[test]
fn a_job_interrupted_by_a_kill_is_finished_after_the_restart() {
    let host = Host::new();
    let runner = host.runner();
    host.faults(json!([{ "when": "vm.boot", "action": "delay_ms", "value": 20000, "times": 1 }]));
    let job = host.api.create_sandbox(&host.spec("box")).unwrap();
    // The boot is what hangs: the stage before it is done, and the fault is used up a moment later.
    eventually("the boot hangs", || host.path("faults.json.hits").exists().then_some(()));
    runner.murder();
    let _runner = host.runner();
    host.completed(&job);
    assert_eq!(host.in_guest("box", "echo once"), "once");
    assert_eq!(leftovers::vmms(&host.path("sock")).len(), 1, "the first VMM was ended");
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn a_result_that_could_not_be_reported_before_the_kill_is_reported_after_it() {
    let host = Host::new();
    let runner = host.runner();
    host.api.faults().add(Fault::always(Route::Status, Action::Status { code: 503, retry_after: None }));
    let job = host.api.create_sandbox(&host.spec("box")).unwrap();
    eventually("a report was tried", || (!host.api.reports().is_empty()).then_some(()));
    let pid = host.http().get("/sandboxes/box").json()["pid"].clone();
    runner.murder();
    host.api.faults().clear();
    let _runner = host.runner();
    host.completed(&job);
    assert_eq!(host.http().get("/sandboxes/box").json()["pid"], pid, "it was not executed again");
}

#[test]
fn a_full_disk_is_said_and_survived() {
    let mut host = Host::new();
    let small = host.path("small");
    std::fs::create_dir(&small).unwrap();
    nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=1m")).unwrap();
    host.set("CH_SANDBOXES_PATH", small.display().to_string());
    let _runner = host.runner();
    let filler = small.join("filler");
    eventually("the disk is full", || {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&filler).unwrap();
        file.write_all(&[1; 64 << 10]).is_err().then_some(())
    });
    let job = host.done(&host.api.create_sandbox(&host.spec("box")).unwrap());
    assert_eq!(job.status, JobStatus::Failed);
    let reason = job.error_message.unwrap().to_lowercase();
    assert!(reason.contains("no space left on device"), "{reason}");
    assert!(reason.contains("\"recoverable\":true"), "the API is told that freeing space helps: {reason}");
    std::fs::remove_file(&filler).unwrap();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
}
