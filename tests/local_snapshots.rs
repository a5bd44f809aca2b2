//! Local snapshots: warm and cold, of sandboxes in every state, what is made from them, and what they are on disk.

use daytona_sim::{CreateSpec, Dialect, SandboxState};
use serde_json::{Value, json};

mod common;
#[path = "local_snapshots/files.rs"]
mod files;
mod life;

use common::{Host, SOON, leftovers};
use life::{failed, host, marked, post, refused, result, shown, start, stop};

const ORG: &str = "sim-organization";

/// Takes a snapshot over HTTP; returns the answer.
#[track_caller]
fn take(host: &Host, id: &str, name: &str, live: bool) -> Value {
    let body = json!({ "sandboxId": id, "name": name, "organizationId": "org", "live": live });
    let made = post(host, "/snapshots/create", &body.to_string());
    assert_eq!((&made["name"], &made["liveMode"]), (&json!(name), &json!(live)), "{made}");
    made
}

#[track_caller]
fn make(host: &Host, spec: &CreateSpec) -> Value {
    host.completed(&host.api.create_sandbox(spec).unwrap());
    shown(host, &spec.id)
}

fn from(host: &Host, id: &str, snapshot: &str) -> CreateSpec {
    CreateSpec { snapshot: snapshot.to_owned(), ..host.spec(id) }
}

fn warm_and_cold(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    let marks = marked(&host, "box");
    assert_eq!(take(&host, "box", "warm", true)["snapshotPath"], "org/warm");
    marks.still_runs(&host, "box");
    take(&host, "box", "cold", false);
    marks.still_runs(&host, "box");
    let random = host.in_guest("box", "random");
    // What is written later is in none of them.
    host.in_guest("box", "echo later > /tmp/later; write-block 9 later; sync");
    host.completed(&host.api.destroy_sandbox("box").unwrap());

    // From memory: the guest goes on where its source was, as somebody else. The source is gone.
    for id in ["one", "two"] {
        let shown = make(&host, &from(&host, id, "org/warm"));
        assert_eq!((&shown["begin"]["from"], &shown["begin"]["identity"]), (&json!("memory"), &json!("confirmed")));
        marks.went_on(&host, id);
        assert_eq!(host.in_guest(id, "hostname"), id);
        assert_eq!(host.in_guest(id, "read-block 9; cat /tmp/later || echo none").lines().last(), Some("none"));
    }
    let made = ["one", "two"].map(|id| host.in_guest(id, "random"));
    assert!(made[0] != made[1] && made[0] != random, "{made:?} {random}");

    // Other resources than those of the memory: booted from the same disk, and told so.
    for spec in [
        CreateSpec { cpu: 2, ..from(&host, "cpus", "org/warm") },
        CreateSpec { memory: 2, ..from(&host, "mib", "org/warm") },
    ] {
        let shown = make(&host, &spec);
        marks.booted_again(&host, &spec.id);
        let note = shown["begin"]["note"].as_str().unwrap_or_default();
        assert!(note.contains("org/warm") && note.contains("1024 MiB"), "{shown}");
        assert_eq!(host.in_guest(&spec.id, "nproc"), spec.cpu.to_string());
        assert_eq!(shown["memoryMiB"], spec.memory * 1024);
    }
    // A larger disk is no obstacle, and what the request leaves open is as in the snapshot.
    let open = json!({ "id": "open", "snapshot": "org/warm", "storageQuota": 2 });
    post(&host, "/sandboxes", &open.to_string());
    marks.went_on(&host, "open");
    assert_eq!((&shown(&host, "open")["memoryMiB"], &shown(&host, "open")["diskGiB"]), (&json!(1024), &json!(2)));

    let shown = make(&host, &from(&host, "cold", "org/cold"));
    assert!(shown["begin"].get("note").is_none(), "{shown}");
    marks.booted_again(&host, "cold");
    // Each has a disk of its own.
    host.in_guest("one", "write-block 9 ones");
    assert_eq!(host.in_guest("two", "read-block 9"), "");
    for id in ["one", "two", "cpus", "mib", "open", "cold"] {
        post(&host, &format!("/sandboxes/{id}/destroy"), "");
    }
    for name in ["org/warm", "org/cold"] {
        assert_eq!(post(&host, &format!("/snapshots/remove?snapshot={name}"), ""), "Snapshot removed");
    }
    assert_eq!(life::tree(&host.path("snap")), ["ubuntu-base.1", "ubuntu-base.1/disk.raw"]);
    leftovers::none(&host);
}

#[test]
fn warm_and_cold_on_reflink() {
    warm_and_cold("reflink");
}

#[test]
fn warm_and_cold_on_overlays() {
    warm_and_cold("overlay");
}

#[test]
fn jobs_of_the_current_api() {
    let host = host("reflink");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    for (name, memory) in [("warm one", true), ("cold one", false)] {
        let made = result(&host, &host.api.snapshot_sandbox("box", name, memory).unwrap());
        let reference = made["ref"].as_str().unwrap().to_owned();
        assert_eq!(reference, format!("{ORG}/{}", name.replace(' ', "%20")));
        assert!(host.api.wait_sandbox("box", SandboxState::Started, SOON).is_some());
        let row = host.api.snapshots().into_iter().find(|row| row.reference == reference).expect("a row");
        assert_eq!((row.state, row.name.as_str(), row.hash.as_deref()), ("active", name, made["hash"].as_str()));
        let info = host.http().get(&format!("/snapshots/info?snapshot={}", reference.replace('%', "%25"))).json();
        assert_eq!((&info["hash"], info["sizeGB"].as_f64()), (&made["hash"], row.size_gb), "{info}");
        assert_eq!(info["manifest"]["warm"].is_object(), memory);
        marks.still_runs(&host, "box");
        let id = &name[..4];
        make(&host, &from(&host, id, &reference));
        if memory {
            marks.went_on(&host, id)
        } else {
            drop(marks.booted_again(&host, id))
        }
        // Removed by a job without payload; once more is success.
        for _ in 0..2 {
            host.completed(&host.api.remove_snapshot(&reference).unwrap());
        }
        assert_eq!(
            host.http().get(&format!("/snapshots/exists?ref={ORG}/{}", name.replace(' ', "%2520"))).json(),
            false
        );
        // What was made of it lives on.
        assert_eq!(host.in_guest(id, "read-block 7"), "kept");
    }
    let reason = failed(&host, &host.api.snapshot_sandbox("no-box", "n", false).unwrap());
    assert!(reason.contains("no-box") && reason.contains("does not exist"), "{reason}");
}

#[test]
fn jobs_of_the_branch() {
    let host = Host::with(|options| options.dialect = Dialect::Branch);
    let _runner = host.runner();
    let marks = marked(&host, "box");
    let made = result(&host, &host.api.snapshot_sandbox("box", "n", true).unwrap());
    assert_eq!((&made["name"], &made["snapshotPath"]), (&json!("n"), &json!(format!("{ORG}/n"))), "{made}");
    assert_eq!(made["liveMode"], true);
    assert!(made["sizeBytes"].as_u64().is_some_and(|bytes| bytes > 4 << 20), "{made}");
    assert!(host.api.snapshots().iter().any(|row| row.reference == format!("{ORG}/n") && row.state == "active"));
    make(&host, &from(&host, "child", &format!("{ORG}/n")));
    marks.went_on(&host, "child");
}

#[test]
fn of_stopped_and_paused_sandboxes() {
    let host = host("overlay");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    stop(&host, "box");
    // Its memory lies in its checkpoint, which is still its own afterwards.
    take(&host, "box", "warm", true);
    take(&host, "box", "cold", false);
    let stopped = shown(&host, "box");
    assert_eq!((&stopped["state"], &stopped["checkpoint"]), (&json!("stopped"), &json!(true)));
    start(&host, "box");
    marks.went_on(&host, "box");
    make(&host, &from(&host, "child", "org/warm"));
    marks.went_on(&host, "child");

    post(&host, "/sandboxes/box/stop", r#"{"mode":"shutdown"}"#);
    let body = json!({ "sandboxId": "box", "name": "none", "organizationId": "org", "live": true }).to_string();
    let message = refused(&host, "/snapshots/create", &body, 409);
    assert!(message.contains("org/none") && message.contains("no memory") && message.contains("start it"), "{message}");
    take(&host, "box", "cold2", false);
    let reason = failed(&host, &host.api.snapshot_sandbox("box", "none", true).unwrap());
    assert!(reason.contains("no memory"), "{reason}");
    assert!(host.api.wait_sandbox("box", SandboxState::Stopped, SOON).is_some());
    make(&host, &from(&host, "cold", "org/cold2"));
    assert_eq!(host.in_guest("cold", "read-block 7"), "kept");
    assert!(leftovers::of_copies(&host).is_empty(), "{:?}", leftovers::of_copies(&host));
}

#[test]
fn a_base_is_not_pulled_from_under_a_sandbox() {
    let host = host("overlay");
    let _runner = host.runner();
    marked(&host, "box");
    take(&host, "box", "base", false);
    make(&host, &from(&host, "user", "org/base"));
    let message = refused(&host, "/snapshots/remove?snapshot=org/base", "", 409);
    assert!(message.contains("user") && message.contains("org/base") && !message.contains(" box"), "{message}");
    let reason = failed(&host, &host.api.remove_snapshot("org/base").unwrap());
    assert!(reason.contains("user"), "{reason}");
    // The base of all of them, and of a copy of a copy.
    post(&host, "/sandboxes/user/fork", r#"{"newSandboxId":"copy"}"#);
    post(&host, "/sandboxes/user/destroy", "");
    let message = refused(&host, "/snapshots/remove?snapshot=org/base", "", 409);
    assert!(message.contains("copy"), "{message}");
    assert_eq!(host.in_guest("copy", "read-block 7"), "kept");
    post(&host, "/sandboxes/copy/destroy", "");
    assert_eq!(post(&host, "/snapshots/remove?snapshot=org/base", ""), "Snapshot removed");
    assert!(refused(&host, "/snapshots/remove?snapshot=ubuntu-base.1", "", 409).contains("box"));
}

#[test]
fn on_reflink_nothing_stands_on_a_snapshot() {
    let host = host("reflink");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    take(&host, "box", "base", true);
    make(&host, &from(&host, "user", "org/base"));
    post(&host, "/snapshots/remove", r#"{"ref":"org/base"}"#);
    marks.went_on(&host, "user");
    // Its memory is mapped from a file that has lost one of its names; it can be copied and stopped all the same.
    post(&host, "/sandboxes/user/fork", r#"{"newSandboxId":"copy"}"#);
    stop(&host, "user");
    start(&host, "user");
    marks.went_on(&host, "user");
    marks.went_on(&host, "copy");
}

#[test]
fn two_at_once() {
    let host = host("reflink");
    let _runner = host.runner();
    let marks = marked(&host, "box");
    let both = |names: [&'static str; 2]| {
        let asked = names.map(|name| {
            let http = host.http();
            let body = json!({ "sandboxId": "box", "name": name, "organizationId": "org", "live": true }).to_string();
            std::thread::spawn(move || http.post("/snapshots/create", &body).status)
        });
        let mut statuses = asked.map(|asked| asked.join().unwrap());
        statuses.sort_unstable();
        statuses
    };
    assert_eq!(both(["a", "b"]), [200, 200], "{}", host.log());
    assert_eq!(both(["same", "same"]), [200, 409], "{}", host.log());
    for (id, name) in [("one", "org/a"), ("two", "org/b"), ("three", "org/same")] {
        make(&host, &from(&host, id, name));
        marks.went_on(&host, id);
    }
    marks.still_runs(&host, "box");
    assert!(leftovers::of_copies(&host).is_empty(), "{:?}", leftovers::of_copies(&host));
}
