//! Sandboxes that are copied while a writer runs in them, and what must be true of source and copies afterwards.

use std::path::Path;

use serde_json::{Value, json};

use super::http::Answer;
use super::{Host, eventually, leftovers};

/// A host whose disks are made this way.
pub fn host(strategy: &str) -> Host {
    let mut host = if strategy == "reflink" { Host::on_xfs() } else { Host::new() };
    host.set("RUNNER_DISK_STRATEGY", strategy);
    host
}

/// The sandbox "parent", in whose guest the writer runs.
#[track_caller]
pub fn parent(host: &Host) {
    host.completed(&host.api.create_sandbox(&host.spec("parent")).unwrap());
    host.in_guest("parent", "echo from-parent > /tmp/mark; writer start");
}

pub fn fork(host: &Host, source: &str, copy: &str) -> Answer {
    host.http().post(&format!("/sandboxes/{source}/fork"), &json!({ "newSandboxId": copy }).to_string())
}

#[track_caller]
pub fn forked(host: &Host, source: &str, copy: &str) -> Value {
    let answer = fork(host, source, copy);
    assert_eq!(answer.status, 201, "{}\n{}", answer.body, host.log());
    answer.json()
}

#[track_caller]
pub fn destroy(host: &Host, id: &str) {
    let answer = host.http().delete(&format!("/sandboxes/{id}"));
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// The guest's clock of running time, and the boot that it counts from; none if nobody answers.
pub fn heartbeat(host: &Host, id: &str) -> Option<(u64, String)> {
    let answer = host.http().try_get(&format!("/sandboxes/{id}/toolbox/counter"))?;
    let body: Value = serde_json::from_str(&answer.body).ok().filter(|_| answer.status == 200)?;
    Some((body["counter"].as_u64()?, body["bootId"].as_str()?.to_owned()))
}

#[track_caller]
pub fn beats(host: &Host, id: &str) -> (u64, String) {
    eventually(&format!("an answer of the guest of {id}"), || heartbeat(host, id))
}

/// Memory and disk of the guest belong together, now and when it last woke up.
#[track_caller]
pub fn consistent(host: &Host, id: &str) {
    let check: Value = serde_json::from_str(&host.in_guest(id, "writer check")).expect("JSON");
    assert_eq!(check["consistent"], true, "{id}: {check}");
    assert_ne!(check["atResume"]["consistent"], false, "{id} woke up with {check}");
    assert!(check["error"].is_null(), "{id}: {check}");
}

#[track_caller]
pub fn describe(host: &Host, id: &str) -> Value {
    let answer = host.http().get(&format!("/sandboxes/{id}"));
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a directory").filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// What is not as it must be when these sandboxes run and these are stopped, and nothing else is on the host.
pub fn out_of_place(host: &Host, running: &[&str], stopped: &[&str]) -> Vec<String> {
    let mut found = leftovers::of_copies(host);
    let mut expect = |what: &str, wanted: Vec<String>, is: Vec<String>| {
        if wanted != is {
            found.push(format!("{what}: {is:?} instead of {wanted:?}"));
        }
    };
    let sorted = |ids: Vec<&str>, suffix: &str| {
        let mut names: Vec<_> = ids.into_iter().map(|id| format!("{id}{suffix}")).collect();
        names.sort();
        names
    };
    let all = sorted(running.iter().chain(stopped).copied().collect(), "");
    expect("directories", all.clone(), names(&host.path("boxes")));
    expect("sockets", sorted(running.to_vec(), ".sock"), sockets(host));
    let listed: Value = host.http().get("/sandboxes").json();
    let ids = listed.as_array().into_iter().flatten().filter_map(|view| view["id"].as_str().map(str::to_owned));
    expect("sandboxes", all, ids.collect());
    let count = running.len().to_string();
    expect("VMMs", vec![count.clone()], vec![leftovers::vmms(&host.path("sock")).len().to_string()]);
    expect("namespaces", vec![count], vec![names(Path::new("/run/netns")).len().to_string()]);
    found
}

fn sockets(host: &Host) -> Vec<String> {
    names(&host.path("sock")).into_iter().filter(|name| !name.ends_with(".lock")).collect()
}

/// These sandboxes run, these are stopped, and nothing else is on the host.
#[track_caller]
pub fn only(host: &Host, running: &[&str], stopped: &[&str]) {
    let mut last = Vec::new();
    let deadline = std::time::Instant::now() + super::SOON;
    while std::time::Instant::now() < deadline {
        last = out_of_place(host, running, stopped);
        if last.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("something is out of place: {last:#?}\n{}", host.log());
}

/// Orders faults, and forgets how often earlier ones were used.
pub fn faults(host: &Host, faults: Value) {
    host.faults(json!([]));
    let _ = std::fs::remove_file(host.path("faults.json.hits"));
    host.faults(faults);
}
