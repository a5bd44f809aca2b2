//! Several copies of one pause: each is its own guest, and each succeeds or fails alone.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::common::Host;
use crate::common::copies::{consistent, destroy, faults, host, only, parent};

fn ids(answer: &Value) -> Vec<String> {
    let made = answer["sandboxes"].as_array().expect("a list").iter();
    made.map(|copy| copy["id"].as_str().expect("an id").to_owned()).collect()
}

/// No two guests say the same.
fn distinct(host: &Host, ids: &[String], command: &str) {
    let said: HashSet<String> = ids.iter().map(|id| host.in_guest(id, command)).collect();
    assert_eq!(said.len(), ids.len(), "{command}: {said:?}");
}

fn all_of_one_pause(host: &Host) {
    let answer = host.http().post("/sandboxes/parent/fork", r#"{"count":10}"#);
    assert_eq!(answer.status, 201, "{}\n{}", answer.body, host.log());
    let answer = answer.json();
    let reports: HashSet<String> = answer["sandboxes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|copy| {
            assert_eq!(copy["begin"]["identity"], "confirmed", "{copy}");
            assert!(copy["begin"]["copy"]["pauseMicros"].is_u64(), "{copy}");
            copy["begin"]["copy"].to_string()
        })
        .collect();
    assert_eq!(reports.len(), 1, "one pause for all: {reports:?}");
    let copies = ids(&answer);
    let mut guests = copies.clone();
    guests.push("parent".to_owned());
    for command in ["hostname", "random", "cat /etc/machine-id", "cat /etc/ssh/ssh_host_ed25519_key"] {
        distinct(host, &guests, command);
    }
    for copy in &copies {
        consistent(host, copy);
        host.in_guest(copy, &format!("write-block 9 {copy}"));
    }
    for copy in &copies {
        assert!(host.in_guest(copy, "read-block 9").contains(copy.as_str()));
        destroy(host, copy);
    }
    consistent(host, "parent");
    only(host, &["parent"], &[]);
}

fn one_fails_alone(host: &Host) {
    let names: Vec<String> = (0..10).map(|number| format!("n{number}")).collect();
    for when in ["spawn", "vm.restore", "vm.resume"] {
        let action = if when == "spawn" { "exit" } else { "crash" };
        faults(host, json!([{ "when": when, "sandbox": "n3", "action": action, "times": 1 }]));
        let answer = host.http().post("/sandboxes/parent/fork", &json!({ "newSandboxIds": names }).to_string());
        assert_eq!(answer.status, 207, "{when}: {}\n{}", answer.body, host.log());
        let answer = answer.json();
        assert_eq!(answer["failed"], 1, "{when}: {answer}");
        assert_eq!(ids(&answer), names, "{when}: in the order of the request");
        for copy in answer["sandboxes"].as_array().unwrap() {
            let id = copy["id"].as_str().unwrap();
            if id == "n3" {
                assert_eq!(copy["state"], "error", "{when}: {copy}");
                let reason = copy["error"]["message"].as_str().unwrap();
                assert!(reason.contains("n3"), "{when}: {reason}");
                assert_eq!(host.http().get("/sandboxes/n3").status, 404);
            } else {
                consistent(host, id);
                destroy(host, id);
            }
        }
        faults(host, json!([]));
        consistent(host, "parent");
        only(host, &["parent"], &[]);
    }
}

fn one_pause(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    parent(&host);
    all_of_one_pause(&host);
    one_fails_alone(&host);
}

#[test]
fn ten_copies_of_one_pause_on_reflink() {
    one_pause("reflink");
}

#[test]
fn ten_copies_of_one_pause_on_overlays() {
    one_pause("overlay");
}
