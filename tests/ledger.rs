//! The leak ledger on a real host: what is planted is seen, what is ours and nobody's is removed, everything else
//! stays; and work under way is never taken for a leak.

use std::collections::BTreeSet;

use serde_json::{Value, json};

mod common;
#[path = "ledger/leaks.rs"]
mod leaks;
#[path = "ledger/missing.rs"]
mod missing;
#[path = "ledger/plant.rs"]
mod plant;
#[path = "ledger/quiet.rs"]
mod quiet;

use common::Host;

/// All kinds, by their names.
const KINDS: [&str; 18] = [
    "vmm",
    "state",
    "socket",
    "lock",
    "namespace",
    "mount",
    "link",
    "tap",
    "rules",
    "route",
    "directory",
    "disk",
    "memory",
    "checkpoint",
    "unfinished",
    "capture",
    "layer",
    "snapshot",
];

/// What a fresh run of the ledger finds.
#[track_caller]
fn ledger(host: &Host) -> Value {
    let answer = host.http().get("/ledger?refresh=true");
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, host.log());
    answer.json()
}

/// Kind, direction and object of each difference.
fn differences(report: &Value) -> BTreeSet<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = report["differences"].as_array().expect("a list").iter();
    found.map(|found| (text(&found["kind"]), text(&found["what"]), text(&found["object"]))).collect()
}

/// The host is exactly as it should be, and all of it could be looked at.
#[track_caller]
fn empty(host: &Host) {
    let report = ledger(host);
    assert!(differences(&report).is_empty(), "{:#}\n{}", report["differences"], host.log());
    assert_eq!(report["blind"], json!([]));
    assert_eq!(report["total"], 0);
    let counts = report["counts"].as_object().expect("counts");
    assert_eq!(counts.keys().map(String::as_str).collect::<BTreeSet<_>>(), KINDS.into());
    assert!(counts.values().all(|count| *count == json!({ "leaked": 0, "missing": 0, "wrong": 0 })), "{counts:?}");
}

#[track_caller]
fn repair(host: &Host, body: &Value) -> Value {
    let answer = host.http().post("/ledger/repair", &body.to_string());
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, host.log());
    answer.json()
}

/// Kinds of the items with this outcome.
fn outcome(report: &Value, wanted: &str) -> BTreeSet<String> {
    let items = report["items"].as_array().expect("a list").iter().filter(|item| item["outcome"] == wanted);
    items.map(|item| item["kind"].as_str().expect("a kind").to_owned()).collect()
}
