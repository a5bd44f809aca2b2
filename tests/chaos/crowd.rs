//! Many who share some sandboxes and ask for anything at any time, also for opposites at once: what becomes of a single
//! request is not foretold, but all that must be true of any host is looked at meanwhile (`watch.rs`), and everything
//! can be destroyed at the end.

use std::time::Duration;

use daytona_sim::Resize;
use serde_json::json;

use super::Run;
use super::harm::{Fault, murder};
use super::load::{Chance, request};

const SHARED: u64 = 3;

/// Asks until the end.
pub fn asks(run: &Run, who: u64, mut chance: Chance) {
    let mut copies = 0;
    while !run.is_over() {
        let id = format!("shared-{}", chance.below(SHARED));
        let copy = format!("{id}-{who}-{}", copies % 2);
        let _fault = chance.percent(5).then(|| Fault::new(run, &id, &mut chance));
        match chance.below(16) {
            0..=3 => post(run, "/sandboxes", &json!({ "id": id, "storageQuota": 1, "memoryQuota": 1 }).to_string()),
            4 => post(run, &format!("/sandboxes/{id}/start"), ""),
            5 => post(run, &format!("/sandboxes/{id}/stop"), ""),
            6 => post(run, &format!("/sandboxes/{id}/pause"), ""),
            7 => post(run, &format!("/sandboxes/{id}/resume"), ""),
            8 => post(run, &format!("/sandboxes/{id}/destroy"), ""),
            9 | 10 => {
                copies += 1;
                post(run, &format!("/sandboxes/{id}/fork"), &json!({ "newSandboxId": copy }).to_string());
            }
            11 => post(run, &format!("/sandboxes/{copy}/destroy"), ""),
            // The API has one job of a sandbox at a time, and refuses the others.
            12 => drop(run.host.api.start_sandbox(&id)),
            13 => drop(run.host.api.stop_sandbox(&id, chance.percent(50).then_some(true))),
            14 => drop(run.host.api.resize_sandbox(&id, Resize { cpu: Some(1), memory: None, disk: Some(1) })),
            _ => drop(murder(run, &id, Duration::ZERO)),
        }
        std::thread::sleep(chance.millis(1, 200));
    }
}

fn post(run: &Run, path: &str, body: &str) {
    run.note(&format!("POST {path} {body}"));
    // The runner may be away.
    let Ok(answer) = request("POST", path, body) else { return };
    run.count(format!("crowd: HTTP {}", answer.status));
    let known = [200, 201, 400, 404, 409, 422, 500, 502, 503, 504, 507];
    assert!(known.contains(&answer.status), "POST {path}: {answer:?}");
    assert!(answer.status < 400 || answer.body.contains("\"message\""), "POST {path}: no reason in {answer:?}");
}
