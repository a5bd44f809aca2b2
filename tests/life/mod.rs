//! What the tests of a sandbox's later life share: a guest that leaves marks everywhere, and how it is told
//! whether one goes on from its memory, boots from its disk, or has lost something.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::common::http::Answer;
use super::common::{Host, Http, SOON, TOKEN, eventually, leftovers};

/// A host whose disks are made like this.
pub fn host(strategy: &str) -> Host {
    let mut host = if strategy == "reflink" { Host::on_xfs() } else { Host::new() };
    host.set("RUNNER_DISK_STRATEGY", strategy);
    host
}

/// A running sandbox with marks in its memory and on its disk, and a writer that binds the two together.
#[track_caller]
pub fn marked(host: &Host, id: &str) -> Marks {
    host.completed(&host.api.create_sandbox(&host.spec(id)).unwrap());
    Marks::put(host, id)
}

/// What was seen of a guest at some time.
#[derive(Debug, Clone)]
pub struct Marks {
    boot: String,
    counter: u64,
}

impl Marks {
    #[track_caller]
    pub fn put(host: &Host, id: &str) -> Self {
        host.in_guest(id, "touch-ram 4; echo kept > /tmp/mark; write-block 7 kept; writer start");
        eventually("the writer writes", || (writer(host, id)["memory"].as_u64()? > 20).then_some(()));
        Self { boot: host.in_guest(id, "boot-id"), counter: counter(host, id) }
    }

    /// The guest went on from its memory, of the same instant as its disk.
    #[track_caller]
    pub fn went_on(&self, host: &Host, id: &str) {
        let shown = shown(host, id);
        assert_eq!((&shown["state"], &shown["begin"]["from"]), (&"started".into(), &"memory".into()), "{shown}");
        self.still_runs(host, id);
    }

    /// The guest has never stopped to be itself, wherever it runs now.
    #[track_caller]
    pub fn still_runs(&self, host: &Host, id: &str) {
        assert_eq!(host.in_guest(id, "boot-id"), self.boot, "another boot\n{}", host.log());
        assert!(counter(host, id) >= self.counter, "the guest went back");
        assert_eq!(host.in_guest(id, "cat /tmp/mark"), "kept");
        assert_eq!(host.in_guest(id, "read-block 7"), "kept");
        consistent(host, id);
    }

    /// The guest booted from its disk, and nothing of its memory is left.
    #[track_caller]
    pub fn booted_again(&self, host: &Host, id: &str) -> Value {
        let shown = shown(host, id);
        assert_eq!((&shown["state"], &shown["begin"]["from"]), (&"started".into(), &"boot".into()), "{shown}");
        assert_ne!(host.in_guest(id, "boot-id"), self.boot);
        let mark = host.in_guest(id, "cat /tmp/mark || echo gone");
        assert!(mark.ends_with("gone"), "{mark}");
        assert_eq!(host.in_guest(id, "read-block 7"), "kept", "its disk is as it was");
        shown
    }
}

#[track_caller]
pub fn shown(host: &Host, id: &str) -> Value {
    let answer = host.http().get(&format!("/sandboxes/{id}"));
    assert_eq!(answer.status, 200, "{answer:?}\n{}", host.log());
    answer.json()
}

#[track_caller]
pub fn counter(host: &Host, id: &str) -> u64 {
    let answer = host.http().get(&format!("/sandboxes/{id}/toolbox/counter"));
    assert_eq!(answer.status, 200, "{answer:?}\n{}", host.log());
    answer.json()["counter"].as_u64().unwrap()
}

fn writer(host: &Host, id: &str) -> Value {
    serde_json::from_str(&host.in_guest(id, "writer check")).expect("JSON")
}

/// Memory and disk of the guest are of one instant, now and when it last woke up.
#[track_caller]
pub fn consistent(host: &Host, id: &str) {
    let check = writer(host, id);
    assert_eq!(check["consistent"], true, "{id}: {check}");
    if check["atResume"].is_object() {
        assert_eq!(check["atResume"]["consistent"], true, "{id} woke up with {check}");
    }
}

/// Waits until the sandbox rests in this state.
#[track_caller]
pub fn rests(host: &Host, id: &str, state: &str) -> Value {
    eventually(&format!("{id} is {state}"), || {
        let answer = host.http().try_get(&format!("/sandboxes/{id}"))?;
        (answer.status == 200).then(|| answer.json()).filter(|shown| shown["state"] == state)
    })
}

#[track_caller]
pub fn post(host: &Host, path: &str, body: &str) -> Value {
    let answer = host.http().post(path, body);
    assert!((200..300).contains(&answer.status), "{path}: {answer:?}\n{}", host.log());
    answer.json()
}

/// The answer, if there is one: the runner may die meanwhile.
pub fn try_post(http: &Http, path: &str) -> Option<Answer> {
    let head = "host: runner\r\nconnection: close\r\ncontent-length: 0\r\n";
    http.raw(&format!("POST {path} HTTP/1.1\r\n{head}authorization: Bearer {TOKEN}\r\n\r\n")).ok()
}

/// The request is refused; returns the message.
#[track_caller]
pub fn refused(host: &Host, path: &str, body: &str, status: u16) -> String {
    let answer = host.http().post(path, body);
    assert_eq!(answer.status, status, "{path}: {answer:?}\n{}", host.log());
    answer.json()["message"].as_str().unwrap().to_owned()
}

#[track_caller]
pub fn stop(host: &Host, id: &str) {
    host.completed(&host.api.stop_sandbox(id, None).unwrap());
    let shown = shown(host, id);
    assert_eq!(shown["state"], "stopped", "{shown}");
    assert!(shown.get("pid").is_none(), "{shown}");
    assert!(!leftovers::vmms(&host.path("sock")).iter().any(|&pid| is_of(pid, id)), "its memory is not freed");
}

fn is_of(pid: i32, id: &str) -> bool {
    let process = procfs::process::Process::new(pid).and_then(|process| process.cmdline());
    process.is_ok_and(|arguments| arguments.iter().any(|argument| argument.ends_with(&format!("{id}.sock"))))
}

#[track_caller]
pub fn start(host: &Host, id: &str) {
    host.completed(&host.api.start_sandbox(id).unwrap());
}

/// Ends the VMM as a crash would, and waits until that is seen.
#[track_caller]
pub fn kill_vmm(host: &Host, id: &str) {
    let pid = shown(host, id)["pid"].as_i64().expect("a VMM");
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    rests(host, id, "stopped");
}

/// Waits until a fault with `times` was met.
#[track_caller]
pub fn fault_met(host: &Host) {
    let hits = host.path("faults.json.hits");
    eventually("the fault is met", || std::fs::read_to_string(&hits).is_ok_and(|text| !text.is_empty()).then_some(()));
}

/// Forgets all faults and how often they were met.
pub fn no_faults(host: &Host) {
    host.faults(serde_json::json!([]));
    let _ = std::fs::remove_file(host.path("faults.json.hits"));
}

/// The files and directories below this one, as relative paths, sorted.
pub fn tree(root: &std::path::Path) -> Vec<String> {
    fn walk(dir: &std::path::Path, root: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            found.push(path.strip_prefix(root).unwrap_or(&path).display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&path, root, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}

/// A job that must fail; returns the reason.
#[track_caller]
pub fn failed(host: &Host, job: &str) -> String {
    let job = host.api.wait_job(job, SOON).unwrap_or_else(|| panic!("job {job} did not end:\n{}", host.log()));
    assert_eq!(job.status, daytona_sim::JobStatus::Failed, "{:?}", job.result_metadata);
    job.error_message.unwrap()
}

/// The result of a job.
#[track_caller]
pub fn result(host: &Host, job: &str) -> Value {
    let job = host.completed(job);
    serde_json::from_str(job.result_metadata.as_deref().unwrap_or("null")).unwrap()
}
