//! The volume of the store is full: states are written from the reserve, and all goes on when there is space again.

use std::fs::File;
use std::path::PathBuf;

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use super::common::{Host, Runner, eventually, leftovers};

/// A host whose store lies on a volume of its own.
fn host() -> Host {
    let mut host = Host::new();
    let volume = host.path("volume");
    std::fs::create_dir(&volume).unwrap();
    mount(Some("tmpfs"), &volume, Some("tmpfs"), MsFlags::empty(), Some("size=48m")).unwrap();
    host.set("RUNNER_STATE_PATH", state(&host).display().to_string());
    host.set("RUNNER_STATE_RESERVE", "8");
    host
}

fn state(host: &Host) -> PathBuf {
    host.path("volume/state")
}

/// Takes all there is, also what the runner gives back while this runs; true at the end.
fn fill(host: &Host) {
    let filler = File::options().append(true).create(true).open(host.path("volume/filler")).unwrap();
    let mut piece = 4 << 20;
    while piece >= 4096 {
        let len = filler.metadata().unwrap().len();
        if rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), len, piece).is_err() {
            piece /= 2;
        }
    }
}

fn space(host: &Host) -> Value {
    host.http().get("/store").json()["space"].clone()
}

#[track_caller]
fn low(host: &Host) -> String {
    eventually("space is low", || space(host)["low"].as_str().map(str::to_owned))
}

#[track_caller]
fn post(host: &Host, path: &str) {
    let answer = host.http().post(path, "");
    assert_eq!(answer.status, 200, "{path}: {}\n{}", answer.body, host.log());
}

fn states(host: &Host) -> Vec<String> {
    let listed: Value = host.http().get("/sandboxes").json();
    let one = |view: &Value| format!("{} {}", view["id"].as_str().unwrap(), view["state"].as_str().unwrap());
    listed.as_array().unwrap().iter().map(one).collect()
}

fn murdered(host: &Host, runner: Runner) -> Runner {
    runner.murder();
    host.runner()
}

#[test]
fn states_are_kept_while_the_volume_is_full() {
    let host = host();
    let runner = host.runner();
    for id in ["a", "b", "c"] {
        host.completed(&host.api.create_sandbox(&host.spec(id)).unwrap());
    }
    assert_eq!(space(&host)["reserveHeld"], true);
    fill(&host);
    let reason = low(&host);
    assert!(reason.contains("bytes free") && reason.contains("volume/state"), "{reason}");
    assert_eq!(space(&host)["reserveHeld"], false);

    let refused = host.http().post("/sandboxes", r#"{"id":"new"}"#);
    assert_eq!((refused.status, refused.json()["code"].as_str()), (507, Some("NO_SPACE")), "{}", refused.body);
    post(&host, "/sandboxes/a/stop");
    let runner = murdered(&host, runner);
    assert_eq!(states(&host), ["a stopped", "b started", "c started"]);
    assert!(!low(&host).is_empty(), "a new runner sees it, too");
    host.completed(&host.api.destroy_sandbox("b").unwrap());
    post(&host, "/sandboxes/a/start");
    let runner = murdered(&host, runner);
    assert_eq!(states(&host), ["a started", "c started"]);
    // Many writes: the reserve lasts.
    for _ in 0..10 {
        post(&host, "/sandboxes/c/stop");
        post(&host, "/sandboxes/c/start");
    }

    std::fs::remove_file(host.path("volume/filler")).unwrap();
    eventually("there is space again", || space(&host)["low"].is_null().then_some(()));
    assert_eq!(space(&host)["reserveHeld"], true);
    let log = host.log();
    assert!(
        log.contains("space for the state store is low") && log.contains("there is space for the state store again")
    );
    let _runner = murdered(&host, runner);
    assert_eq!(states(&host), ["a started", "c started"]);
    host.completed(&host.api.create_sandbox(&host.spec("d")).unwrap());
    for id in ["a", "c", "d"] {
        host.completed(&host.api.destroy_sandbox(id).unwrap());
    }
    leftovers::none(&host);
}

/// Even the reserve is taken by somebody else: writes fail, and say so; nothing that was said to be done is lost, and
/// the same runner goes on when there is space, without a restart.
#[test]
fn without_any_space_nothing_is_promised_and_nothing_lost() {
    let host = host();
    let runner = host.runner();
    for id in ["a", "b"] {
        host.completed(&host.api.create_sandbox(&host.spec(id)).unwrap());
    }
    fill(&host);
    low(&host);
    fill(&host);
    // Until a write really fails: the database has some pages of its own left.
    let failed = eventually("a write fails", || {
        let path = ["/sandboxes/a/stop", "/sandboxes/a/start"];
        path.iter().map(|path| host.http().post(path, "")).find(|answer| answer.status != 200)
    });
    assert_eq!(failed.status, 507, "{}", failed.body);
    assert!(failed.body.to_lowercase().contains("no space left on device"), "{}", failed.body);

    std::fs::remove_file(host.path("volume/filler")).unwrap();
    eventually("there is space again", || space(&host)["low"].is_null().then_some(()));
    eventually("it works again", || (host.http().post("/sandboxes/a/stop", "").status == 200).then_some(()));
    let log = host.log();
    assert!(log.contains("the state store can be written again"), "{log}");
    let _runner = murdered(&host, runner);
    assert_eq!(states(&host), ["a stopped", "b started"]);
    post(&host, "/sandboxes/a/start");
    assert_eq!(host.in_guest("b", "echo unharmed"), "unharmed");
}
