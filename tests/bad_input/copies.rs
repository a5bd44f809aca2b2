//! Hostile input to the routes and jobs of copies, resizes and snapshots.

use serde_json::{Value, json};

use super::common::{Host, leftovers};
use super::{hostile, job, percent};

/// A host with one running sandbox.
fn with_box() -> (Host, super::common::Runner) {
    let host = Host::new();
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    (host, runner)
}

#[track_caller]
fn bad(host: &Host, path: &str, body: &Value, words: &str) {
    let answer = host.http().post(path, &body.to_string());
    assert_eq!(answer.status, 400, "{path} {body:.200}: {answer:?}");
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains(words), "{path} {body:.200}: {words:?} is not in {message:?}");
    assert!(message.len() < 1000 && !message.contains(['\0', '\n', '\r']), "{message:?}");
}

/// Only the sandbox is there, and works.
#[track_caller]
fn goes_on(host: &Host) {
    let all = host.http().get("/sandboxes").json();
    assert_eq!((all.as_array().unwrap().len(), &all[0]["id"]), (1, &json!("box")), "{all}");
    assert_eq!(host.in_guest("box", "echo works"), "works");
    assert!(leftovers::of_copies(host).is_empty());
    let snapshots: Vec<_> =
        std::fs::read_dir(host.path("snap")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(snapshots, ["ubuntu-base.1"]);
    assert!(!host.log().contains("panicked"), "{}", host.log());
}

#[test]
fn ids_of_copies() {
    let (host, _runner) = with_box();
    for id in hostile().iter().map(String::as_str).chain([""]) {
        for route in ["fork", "clone"] {
            let path = format!("/sandboxes/box/{route}");
            bad(&host, &path, &json!({ "newSandboxId": id }), "newSandboxId: ");
            bad(&host, &path, &json!({ "newSandboxIds": ["fine", id] }), "newSandboxIds[1]: ");
        }
        let payload = json!({ "sourceSandboxId": id }).to_string();
        let outcome = job(&host, "FORK_SANDBOX", "copy", &payload);
        assert!(!outcome.ok && outcome.message.contains("sourceSandboxId: expected"), "{id:.50?}: {}", outcome.message);
        if !id.is_empty() {
            let outcome = job(&host, "CLONE_SANDBOX", id, r#"{"sourceSandboxId":"box"}"#);
            assert!(!outcome.ok && outcome.message.contains("resourceId: expected"), "{id:.50?}: {}", outcome.message);
        }
        for route in ["fork", "clone", "pause", "resume", "resize"] {
            let answer = host.http().post(&format!("/sandboxes/{}/{route}", percent(id)), "{}");
            assert!([400, 404, 405].contains(&answer.status), "{id:.50?} {route}: {answer:?}");
        }
    }
    goes_on(&host);
}

#[test]
fn how_many_copies() {
    let (host, _runner) = with_box();
    let fork = "/sandboxes/box/fork";
    for count in
        [json!(0), json!(-1), json!(101), json!(1e18), json!(1.5), json!("3"), json!(true), json!([]), json!({})]
    {
        bad(&host, fork, &json!({ "count": count }), "count: expected 1 to 100");
    }
    let many: Vec<String> = (0..101).map(|n| format!("copy-{n}")).collect();
    bad(&host, fork, &json!({ "newSandboxIds": many }), "1 to 100");
    bad(&host, fork, &json!({ "newSandboxIds": [] }), "1 to 100");
    bad(&host, fork, &json!({ "newSandboxIds": ["a", "b", "a"] }), "same id");
    bad(&host, fork, &json!({ "newSandboxIds": ["a", "box"] }), "itself");
    bad(&host, fork, &json!({ "newSandboxId": "box" }), "itself");
    for ids in [json!("a"), json!(1), json!({ "a": 1 })] {
        bad(&host, fork, &json!({ "newSandboxIds": ids }), "newSandboxIds (an array)");
    }
    for id in [json!(1), json!(true), json!(["a"]), json!({})] {
        bad(&host, fork, &json!({ "newSandboxId": id }), "newSandboxId: expected a sandbox id");
        bad(&host, fork, &json!({ "newSandboxIds": [id] }), "newSandboxIds[0]: expected a sandbox id");
    }
    for both in [json!({ "newSandboxId": "a", "count": 1 }), json!({ "newSandboxIds": ["a"], "newSandboxId": "b" })] {
        bad(&host, fork, &both, "expected one of them");
    }
    for nothing in [json!({}), json!(null), json!({ "newSandboxId": null, "fieldOfTomorrow": 1 })] {
        bad(&host, fork, &nothing, "newSandboxId: expected a sandbox id, got nothing");
    }
    bad(&host, fork, &json!([1]), "not an object");
    goes_on(&host);
}

#[test]
fn resources() {
    let (host, _runner) = with_box();
    let wrong = [json!(-1), json!(1e9), json!(1.5), json!("2"), json!(true), json!([2]), json!({ "n": 2 })];
    for field in ["cpu", "memory", "disk"] {
        for value in &wrong {
            let body = json!({ field: value });
            bad(&host, "/sandboxes/box/resize", &body, &format!("{field}: expected"));
            let outcome = job(&host, "RESIZE_SANDBOX", "box", &body.to_string());
            assert!(
                !outcome.ok && outcome.message.contains(&format!("{field}: expected")),
                "{body}: {}",
                outcome.message
            );
        }
    }
    bad(&host, "/sandboxes/box/resize", &json!([]), "not an object");
    for body in ["[]", "{broken", "7"] {
        assert!(!job(&host, "RESIZE_SANDBOX", "box", body).ok, "{body}");
    }
    let shown = host.http().get("/sandboxes/box").json();
    assert_eq!((&shown["cpu"], &shown["memoryMiB"], &shown["diskGiB"]), (&json!(1), &json!(1024), &json!(1)));
    goes_on(&host);
}

#[test]
fn snapshots() {
    let (host, _runner) = with_box();
    let create = "/snapshots/create";
    for id in hostile().iter().map(|id| json!(id)).chain([json!(1), json!(null), json!([]), json!({})]) {
        let body = json!({ "sandboxId": id, "name": "n" });
        let answer = host.http().post(create, &body.to_string());
        assert_eq!(answer.status, 400, "{body:.100}: {answer:?}");
    }
    for (field, values) in [
        ("name", [json!(1), json!(true), json!([]), json!({}), json!("")]),
        ("organizationId", [json!(1), json!(true), json!([]), json!({}), json!("o".repeat(300))]),
        ("live", [json!(1), json!("true"), json!([]), json!({}), json!(0)]),
    ] {
        for value in values {
            let mut body = json!({ "sandboxId": "box", "name": "n" });
            body[field] = value;
            bad(&host, create, &body, &format!("{field}: expected"));
            let payload = body.to_string();
            let outcome = job(&host, "CREATE_SANDBOX_SNAPSHOT", "box", &payload);
            assert!(!outcome.ok && outcome.message.contains(field), "{body:.100}: {}", outcome.message);
        }
    }
    bad(&host, create, &json!({ "sandboxId": "box" }), "name: expected");
    // References in queries and bodies: refused, or merely not there.
    for text in hostile() {
        for (method, path) in [("GET", "/snapshots/exists"), ("GET", "/snapshots/info"), ("POST", "/snapshots/remove")]
        {
            for name in ["snapshot", "ref"] {
                let answer = host.http().request(method, &format!("{path}?{name}={}", percent(&text)), "");
                let fine: &[u16] = if ["-rf", "%00"].contains(&text.as_str()) { &[200, 404] } else { &[400] };
                assert!(fine.contains(&answer.status), "{path} {name} {text:.50?}: {answer:?}");
            }
        }
        let answer = host.http().post("/snapshots/remove", &json!({ "ref": text }).to_string());
        assert!([200, 400].contains(&answer.status), "{text:.50?}: {answer:?}");
    }
    for value in [json!(1), json!([]), json!({ "a": 1 }), json!(null)] {
        bad(&host, "/snapshots/remove", &json!({ "ref": value }), "snapshot or ref");
    }
    goes_on(&host);
}
