//! The runner is killed while it copies a sandbox. The next one brings the source back to life by itself, sweeps away
//! what was begun, and carries the job out.

use serde_json::{Value, json};

use crate::common::copies::{beats, consistent, destroy, faults, host, only, parent};
use crate::common::{Host, Runner, eventually};

/// Long enough for the kill, and shorter than what the next runner has patience for.
const DELAY: u64 = 2000;

/// Has a copy made, and kills the runner while the sandbox is at this step.
fn killed_at(host: &Host, runner: Runner, who: &str, when: &str, then: Value) -> String {
    faults(host, json!([{ "when": when, "sandbox": who, "action": "delay_ms", "value": DELAY, "times": 1 }]));
    let job = host.api.fork_sandbox("parent", "child").unwrap();
    eventually(&format!("{who} is at {when}"), || host.path("faults.json.hits").exists().then_some(()));
    runner.murder();
    faults(host, then);
    job
}

fn killed(strategy: &str, steps: &[(&str, &str)]) {
    let host = host(strategy);
    let mut runner = host.runner();
    parent(&host);
    for (who, when) in steps {
        let before = beats(&host, "parent");
        let job = killed_at(&host, runner, who, when, json!([]));
        runner = host.runner();
        host.completed(&job);
        let after = beats(&host, "parent");
        println!("{strategy}: killed with {who} at {when}: counter {} -> {}", before.0, after.0);
        assert_eq!(after.1, before.1, "{who} {when}: the parent lost its memory\n{}", host.log());
        assert!(after.0 >= before.0, "{who} {when}");
        assert_eq!(beats(&host, "child").1, before.1, "{who} {when}: the child has its parent's memory");
        consistent(&host, "parent");
        consistent(&host, "child");
        only(&host, &["child", "parent"], &[]);
        destroy(&host, "child");
        only(&host, &["parent"], &[]);
    }
}

#[test]
fn a_kill_of_the_runner_on_reflink() {
    let source = ["vm.pause", "vm.snapshot", "vm.resume"].map(|when| ("parent", when));
    let child = ["vmm.ping", "vm.restore", "vm.resume", "identity"].map(|when| ("child", when));
    killed("reflink", &[&source[..], &child[..]].concat());
}

#[test]
fn a_kill_of_the_runner_on_overlays() {
    let source = ["vm.pause", "vm.snapshot", "vmm.shutdown", "vmm.ping", "vm.restore", "vm.resume"];
    let child = ["vm.restore", "vm.resume"].map(|when| ("child", when));
    killed("overlay", &[&source.map(|when| ("parent", when))[..], &child[..]].concat());
}

/// The new runner finds a paused VM, and its first try to let it run on fails: it must not stay paused.
#[test]
fn a_source_that_does_not_take_its_resume_after_the_restart() {
    let host = host("reflink");
    let runner = host.runner();
    parent(&host);
    let before = beats(&host, "parent");
    let then = json!([{ "when": "vm.resume", "sandbox": "parent", "action": "error", "value": "not now", "times": 1 }]);
    let job = killed_at(&host, runner, "parent", "vm.snapshot", then);
    let _runner = host.runner();
    let after = beats(&host, "parent");
    assert!(after.1 == before.1 && after.0 >= before.0, "{before:?} {after:?}");
    host.completed(&job);
    consistent(&host, "parent");
    consistent(&host, "child");
}
