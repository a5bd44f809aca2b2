//! A record that cannot be read.

use serde_json::Value;

use super::common::Host;
use super::{offline, online};

/// Changes the stored record of a sandbox while no runner runs.
fn spoil(host: &Host, id: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let db = sled::open(host.path("state")).expect("nobody holds the store");
    let tree = db.open_tree("sandboxes").unwrap();
    let bytes = tree.get(id).unwrap().expect("a record").to_vec();
    tree.insert(id, change(bytes)).unwrap();
    db.flush().unwrap();
}

fn state_of(host: &Host, id: &str) -> (String, String) {
    let view: Value = host.http().get(&format!("/sandboxes/{id}")).json();
    let text = |field: &str| view[field].as_str().unwrap_or_default().to_owned();
    (text("state"), view.to_string())
}

#[test]
fn a_broken_record_is_put_aside_for_good_and_can_be_let_go() {
    let host = Host::new();
    let runner = host.runner();
    for id in ["good", "broken"] {
        host.completed(&host.api.create_sandbox(&host.spec(id)).unwrap());
    }
    let netns = host.http().get("/sandboxes/broken").json()["netns"].clone();
    assert!(netns.is_string(), "{netns}");
    assert!(runner.stop().success());
    spoil(&host, "broken", |bytes| {
        String::from_utf8(bytes).unwrap().replacen("\"phase\":\"started\"", "\"phase\":\"moon\"", 1).into()
    });

    for round in 0..2 {
        let runner = host.runner();
        assert_eq!(host.in_guest("good", "echo unharmed"), "unharmed");
        let (state, view) = state_of(&host, "broken");
        assert_eq!(state, "unknown", "{view}");
        assert!(view.contains("moon") && view.contains("quarantine show sandboxes/broken"), "{view}");
        for (method, path) in [("POST", "/sandboxes/broken/stop"), ("DELETE", "/sandboxes/broken")] {
            let answer = host.http().request(method, path, "");
            assert_eq!(answer.status, 500, "{}", answer.body);
            assert!(answer.body.contains("moon"), "{}", answer.body);
        }
        // Its address is not given to anybody else.
        let id = format!("new-{round}");
        host.completed(&host.api.create_sandbox(&host.spec(&id)).unwrap());
        let address = |id: &str| host.http().get(&format!("/sandboxes/{id}")).json()["address"].to_string();
        assert_ne!(address(&id), "null");
        let store: Value = host.http().get("/store").json();
        assert_eq!(store["setAside"][0]["key"], "sandboxes/broken", "{store}");
        assert!(store["setAside"][0]["reason"].as_str().unwrap().contains("moon"), "{store}");
        assert_eq!(store["records"]["quarantine"], 1, "{store}");
        assert!(store["bytesOnDisk"].as_u64().unwrap() > 0 && store["space"]["reserveHeld"] == true, "{store}");
        assert!(host.log().contains("sandboxes/broken"), "named in the log");
        let said = online(&host).does(&["quarantine", "list"]);
        assert!(said.contains("sandboxes/broken") && said.contains("moon"), "{said}");
        online(&host).refuses(&["check"], &["1 records cannot be read"]);
        online(&host).refuses(&["quarantine", "discard", "sandboxes/broken"], &["in use", "stop the runner"]);
        assert!(runner.stop().success());
    }

    let said = offline(&host).does(&["quarantine", "show", "sandboxes/broken"]);
    assert!(said.contains("moon") && said.contains("slot"), "{said}");
    offline(&host).refuses(&["quarantine", "restore", "sandboxes/broken"], &["stays in quarantine", "moon"]);
    offline(&host).refuses(&["quarantine", "discard", "sandboxes/other"], &["no record sandboxes/other"]);
    offline(&host).does(&["quarantine", "discard", "sandboxes/broken"]);
    let said = offline(&host).does(&["check"]);
    assert!(said.contains("every record can be read"), "{said}");
    let _runner = host.runner();
    assert_eq!(host.http().get("/sandboxes/broken").status, 404);
    assert_eq!(host.in_guest("good", "echo unharmed"), "unharmed");
}

#[test]
fn a_record_of_a_newer_runner_waits_for_it() {
    let host = Host::new();
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    assert!(runner.stop().success());
    let mut format = 0;
    spoil(&host, "box", |mut bytes| {
        format = std::mem::replace(&mut bytes[0], 77);
        bytes
    });
    let runner = host.runner();
    let (state, view) = state_of(&host, "box");
    assert_eq!(state, "unknown", "{view}");
    assert!(view.contains("format 77") && view.contains("newer runner"), "{view}");
    assert!(runner.stop().success());
    // The newer runner, which knows it.
    spoil(&host, "box", |mut bytes| {
        assert_eq!(std::mem::replace(&mut bytes[0], format), 77, "it was left where it was");
        bytes
    });
    let _runner = host.runner();
    assert_eq!(host.in_guest("box", "echo unharmed"), "unharmed");
}
