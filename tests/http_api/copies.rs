//! The routes of copies, pause, resize and snapshots: answers of what goes well, and statuses of what does not.

use serde_json::{Value, json};

use super::common::{Host, leftovers};
use super::{body, error};

#[test]
fn one_copy_and_many() {
    let host = Host::new();
    let _runner = host.runner();
    let http = host.http();
    assert_eq!(http.post("/sandboxes", &body("box").to_string()).status, 201);
    let version = http.get("/sandboxes/box/toolbox/version").json()["version"].clone();
    // `prefault` of the original is taken, and does nothing.
    for (route, parent) in [("fork", "parentId"), ("clone", "sourceSandboxId")] {
        let asked = json!({ "newSandboxId": route, "prefault": true }).to_string();
        let answer = http.post(&format!("/sandboxes/box/{route}"), &asked);
        let made = answer.json();
        assert_eq!((answer.status, &made["id"], &made["state"]), (201, &json!(route), &json!("started")), "{made}");
        assert_eq!((&made[parent], &made["daemonVersion"]), (&json!("box"), &version), "{made}");
    }
    let answer = http.post("/sandboxes/box/fork", r#"{"newSandboxIds":["a","b"]}"#);
    assert_eq!((answer.status, &answer.json()["failed"]), (201, &json!(0)), "{answer:?}");
    let answer = http.post("/sandboxes/box/fork", r#"{"count":3}"#);
    let made = answer.json();
    let made = made["sandboxes"].as_array().unwrap();
    assert_eq!((answer.status, made.len()), (201, 3), "{answer:?}");
    for one in made {
        let id = one["id"].as_str().unwrap();
        assert_eq!((id.len(), &one["parentId"]), (36, &json!("box")));
        assert_eq!(one["begin"]["copy"], made[0]["begin"]["copy"], "one pause for all");
        assert_eq!(http.get(&format!("/sandboxes/{id}")).json()["state"], "started");
    }
    assert_eq!(http.get("/sandboxes").json().as_array().unwrap().len(), 8);
}

#[test]
fn each_copy_succeeds_or_fails_alone() {
    let host = Host::new();
    host.faults(
        json!([{ "when": "vm.restore", "sandbox": "bad", "action": "error", "value": "Injected by the test" }]),
    );
    let _runner = host.runner();
    let http = host.http();
    assert_eq!(http.post("/sandboxes", &body("box").to_string()).status, 201);
    let answer = http.post("/sandboxes/box/fork", r#"{"newSandboxIds":["good","bad"]}"#);
    let made = answer.json();
    assert_eq!((answer.status, &made["failed"]), (207, &json!(1)), "{made}");
    let find = |id: &str| made["sandboxes"].as_array().unwrap().iter().find(|one| one["id"] == id).unwrap().clone();
    assert_eq!(find("good")["state"], "started");
    assert_eq!(find("bad")["state"], "error");
    assert!(find("bad")["error"]["message"].as_str().unwrap().contains("Injected by the test"), "{made}");
    assert_eq!(http.get("/sandboxes/bad").status, 404);
    let answer = http.post("/sandboxes/box/fork", r#"{"newSandboxId":"bad"}"#);
    let message = error(&answer, 500, "INTERNAL", "/sandboxes/box/fork", "POST");
    assert!(message.contains("bad") && message.contains("vm.restore"), "{message}");
    for id in ["box", "good"] {
        assert_eq!(http.delete(&format!("/sandboxes/{id}")).status, 200);
    }
    leftovers::none(&host);
}

#[test]
fn errors_of_the_routes() {
    let host = Host::new();
    let _runner = host.runner();
    let http = host.http();
    let snapshot = r#"{"sandboxId":"box","name":"n"}"#;
    let table = [
        ("POST", "/sandboxes/box/fork", r#"{"newSandboxId":"x"}"#, 404, "NOT_FOUND", "sandbox box"),
        ("POST", "/sandboxes/box/clone", r#"{"count":1}"#, 404, "NOT_FOUND", "sandbox box"),
        ("POST", "/sandboxes/box/pause", "", 404, "NOT_FOUND", "sandbox box"),
        ("POST", "/sandboxes/box/resume", "", 404, "NOT_FOUND", "sandbox box"),
        ("POST", "/sandboxes/box/resize", r#"{"cpu":2}"#, 404, "NOT_FOUND", "sandbox box"),
        ("POST", "/snapshots/create", snapshot, 404, "NOT_FOUND", "sandbox box"),
        ("GET", "/snapshots/info", "", 400, "BAD_REQUEST", "snapshot or ref"),
        ("GET", "/snapshots/exists", "", 400, "BAD_REQUEST", "snapshot or ref"),
        ("POST", "/snapshots/remove", "", 400, "BAD_REQUEST", "snapshot or ref"),
        ("POST", "/snapshots/remove", "{broken", 400, "BAD_REQUEST", "not valid JSON"),
        ("GET", "/sandboxes/box/fork", "", 405, "METHOD_NOT_ALLOWED", "method GET"),
        ("PUT", "/sandboxes/box/clone", "", 405, "METHOD_NOT_ALLOWED", "method PUT"),
        ("DELETE", "/sandboxes/box/pause", "", 405, "METHOD_NOT_ALLOWED", "method DELETE"),
        ("GET", "/sandboxes/box/resume", "", 405, "METHOD_NOT_ALLOWED", "method GET"),
        ("PATCH", "/sandboxes/box/resize", "", 405, "METHOD_NOT_ALLOWED", "method PATCH"),
        ("GET", "/snapshots/create", "", 405, "METHOD_NOT_ALLOWED", "method GET"),
        ("POST", "/snapshots/exists", "", 405, "METHOD_NOT_ALLOWED", "method POST"),
        ("POST", "/snapshots/info", "", 405, "METHOD_NOT_ALLOWED", "method POST"),
        ("GET", "/snapshots/remove", "", 405, "METHOD_NOT_ALLOWED", "method GET"),
    ];
    for (method, path, body, status, code, words) in table {
        let message = error(&http.request(method, path, body), status, code, path, method);
        assert!(message.contains(words), "{method} {path}: {words:?} is not in {message:?}");
    }
    assert_eq!(http.get("/snapshots/exists?snapshot=no/such").json(), json!({ "exists": false }));
    assert_eq!(http.get("/snapshots/exists?ref=no/such").json(), json!(false));
    error(&http.get("/snapshots/info?ref=no/such"), 404, "NOT_FOUND", "/snapshots/info", "GET");
    error(&http.get("/snapshots/info?ref=a&snapshot=a"), 400, "BAD_REQUEST", "/snapshots/info", "GET");
    // Not there is success.
    assert_eq!(http.post("/snapshots/remove?snapshot=no/such", "").json(), json!("Snapshot removed"));
    // The base was put there by hand: it has no manifest, and is found all the same.
    let info = http.get("/snapshots/info?ref=ubuntu-base.1").json();
    assert_eq!((&info["name"], info.get("manifest")), (&json!("ubuntu-base.1"), None::<&Value>), "{info}");
    assert!(info["created"].as_u64().is_some_and(|created| created > 1_600_000_000_000), "{info}");
    leftovers::none(&host);
}
