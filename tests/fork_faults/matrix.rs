//! Step × fault → outcome.

use serde_json::{Value, json};

use crate::common::copies::{
    beats, consistent, describe, destroy, faults, fork, forked, heartbeat, host, only, parent,
};
use crate::common::{Host, eventually};

/// What must come of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// The copy is made all the same.
    Made,
    /// There is no copy, and the source goes on with its memory.
    Refused,
    /// There is no copy, and the source goes on from its disk: its VMM died with its memory.
    Lost,
    /// The copy was complete before; the source goes on with its memory or from its disk, as its VMM died.
    Either,
}

struct Case {
    who: &'static str,
    when: &'static str,
    action: &'static str,
    value: Value,
    want: Want,
}

/// A fault of one call that is used up once it was met, so that whatever is tried again succeeds.
fn case(who: &'static str, when: &'static str, action: &'static str, want: Want) -> Case {
    let value = match action {
        "error" => json!(format!("injected at {when}")),
        "delay_ms" => json!(300),
        "exit" => json!(3),
        _ => Value::Null,
    };
    Case { who, when, action, value, want }
}

fn of_source(strategy: &str) -> Vec<Case> {
    use Want::{Lost, Made, Refused};
    let mut cases = vec![
        case("parent", "vm.pause", "error", Refused),
        case("parent", "vm.pause", "enospc", Refused),
        case("parent", "vm.pause", "delay_ms", Made),
        case("parent", "vm.pause", "crash", Lost),
        case("parent", "vm.pause:done", "error", Refused),
        case("parent", "vm.pause:done", "crash", Lost),
        case("parent", "vm.snapshot", "error", Refused),
        case("parent", "vm.snapshot", "enospc", Refused),
        case("parent", "vm.snapshot", "delay_ms", Made),
        case("parent", "vm.snapshot", "crash", Lost),
        case("parent", "vm.snapshot:done", "crash", Lost),
        case("parent", "vm.resume", "error", Made),
        case("parent", "vm.resume", "enospc", Made),
        case("parent", "vm.resume", "delay_ms", Made),
        case("parent", "vm.resume:done", "error", Made),
    ];
    if strategy == "reflink" {
        // Whether the VMM dies before or after the copy has been made is a race.
        cases.push(case("parent", "vm.resume", "crash", Want::Either));
        return cases;
    }
    cases.extend([
        case("parent", "vmm.shutdown", "error", Made),
        case("parent", "vmm.shutdown", "delay_ms", Made),
        case("parent", "vm.delete", "error", Made),
        case("parent", "vm.delete", "delay_ms", Made),
        case("parent", "vm.delete", "crash", Lost),
        case("parent", "vm.delete:done", "crash", Want::Either),
        // All of its disk is written by then.
        case("parent", "vmm.shutdown", "crash", Made),
        case("parent", "vmm.shutdown:done", "crash", Made),
        case("parent", "spawn", "exit", Made),
        case("parent", "spawn", "delay_ms", Made),
        case("parent", "vmm.ping", "error", Made),
        case("parent", "vmm.ping", "crash", Made),
        case("parent", "vm.restore", "error", Made),
        case("parent", "vm.restore", "enospc", Made),
        case("parent", "vm.restore", "delay_ms", Made),
        case("parent", "vm.restore", "crash", Made),
        case("parent", "vm.restore:done", "crash", Made),
        case("parent", "vm.resume", "crash", Want::Either),
    ]);
    cases
}

fn of_child() -> Vec<Case> {
    use Want::{Made, Refused};
    vec![
        case("child", "spawn", "exit", Refused),
        case("child", "spawn", "delay_ms", Made),
        case("child", "vmm.ping", "error", Refused),
        case("child", "vmm.ping", "crash", Refused),
        case("child", "vmm.ping", "delay_ms", Made),
        case("child", "vm.restore", "error", Refused),
        case("child", "vm.restore", "enospc", Refused),
        case("child", "vm.restore", "delay_ms", Made),
        case("child", "vm.restore", "crash", Refused),
        case("child", "vm.restore:done", "error", Refused),
        case("child", "vm.resume", "error", Made),
        case("child", "vm.resume", "crash", Refused),
        case("child", "vm.resume", "delay_ms", Made),
        case("child", "identity", "error", Made),
        case("child", "identity", "enospc", Made),
        case("child", "identity", "ignore", Made),
        case("child", "identity", "crash", Refused),
    ]
}

/// Of a copy that boots, as its source is stopped without memory: only there the simulated toolbox can be late.
fn of_booted_child() -> Vec<Case> {
    use Want::{Made, Refused};
    vec![
        case("child", "vm.create", "error", Refused),
        case("child", "vm.boot", "enospc", Refused),
        case("child", "vm.boot", "crash", Refused),
        case("child", "toolbox", "never", Refused),
        case("child", "toolbox", "crash", Refused),
        case("child", "toolbox", "delay_ms", Made),
    ]
}

/// Words that the error must have: the step as an operator knows it, and the cause.
fn words(case: &Case) -> Vec<String> {
    let mut words = vec![match case.who {
        "parent" => "cannot capture sandbox parent".to_owned(),
        _ => "cannot create sandbox child".to_owned(),
    }];
    match case.action {
        "error" => words.push(format!("injected at {}", case.when)),
        "enospc" => words.push("no space left on device".to_owned()),
        "crash" if case.when.starts_with("vm.delete") => {
            words.push("its VMM ended before it had written all of the disk".to_owned())
        }
        "crash" => words.push("signal 9".to_owned()),
        "exit" => words.push("code 3".to_owned()),
        "never" => words.push("DAEMON_START_TIMEOUT_SEC".to_owned()),
        _ => {}
    }
    words
}

/// The source answers again, if need be after a start; what it then is.
fn settled(host: &Host, before: &(u64, String)) -> String {
    let state = eventually("the source runs or rests", || match heartbeat(host, "parent") {
        Some(_) => Some("runs".to_owned()),
        None => Some(describe(host, "parent"))
            .filter(|view| view["state"] == "stopped")
            .map(|view| format!("stopped: {}", view["errorReason"].as_str().expect("a reason"))),
    });
    if state != "runs" {
        only(host, &[], &["parent"]);
        assert_eq!(host.http().post("/sandboxes/parent/start", "").status, 200, "{}", host.log());
    }
    let after = beats(host, "parent");
    let memory = if after.1 == before.1 {
        assert!(after.0 >= before.0, "the counter went back from {} to {}", before.0, after.0);
        "with its memory"
    } else {
        "from its disk"
    };
    format!("{state}, goes on {memory}")
}

fn judge(host: &Host, case: &Case, before: &(u64, String)) -> (String, String) {
    faults(
        host,
        json!([{ "when": case.when, "sandbox": case.who, "action": case.action, "value": case.value, "times": 1 }]),
    );
    let answer = fork(host, "parent", "child");
    let at = format!("{} {} {}", case.who, case.when, case.action);
    // The copy's answer does not wait for the source.
    eventually(&format!("{at}: the fault is met"), || host.path("faults.json.hits").exists().then_some(()));
    let child = match answer.status {
        201 => {
            consistent(host, "child");
            assert_eq!(host.in_guest("child", "cat /tmp/mark"), "from-parent");
            destroy(host, "child");
            format!("made, identity {}", answer.json()["begin"]["identity"].as_str().unwrap_or_default())
        }
        _ => answer.json()["message"].as_str().expect("a message").to_owned(),
    };
    let source = settled(host, before);
    let told = format!("{at}: {child}; {source}");
    println!("{told}");
    if case.want != Want::Either {
        assert_eq!(answer.status == 201, case.want == Want::Made, "{told}");
    }
    if answer.status != 201 {
        let full = if case.action == "enospc" { 507 } else { answer.status };
        assert_eq!(answer.status, full, "{told}");
        for word in words(case) {
            assert!(child.to_lowercase().contains(&word.to_lowercase()), "{word:?} is not in: {told}");
        }
    }
    match case.want {
        Want::Made | Want::Refused => assert!(source.ends_with("runs, goes on with its memory"), "{told}"),
        Want::Lost => assert!(source.contains("from its disk"), "{told}"),
        Want::Either => {}
    }
    (child, source)
}

fn matrix(strategy: &str, cases: Vec<Case>) {
    let mut host = host(strategy);
    host.set("DAEMON_START_TIMEOUT_SEC", "2");
    let _runner = host.runner();
    parent(&host);
    let mut rows = Vec::new();
    for case in &cases {
        let before = beats(&host, "parent");
        let (child, source) = judge(&host, case, &before);
        only(&host, &["parent"], &[]);
        if beats(&host, "parent").1 == before.1 {
            consistent(&host, "parent");
        } else {
            // What a killed VMM has not written is the matter of another test; here the next case begins anew.
            destroy(&host, "parent");
            parent(&host);
        }
        // What failed once has not spoilt the next one.
        faults(&host, json!([]));
        forked(&host, "parent", "again");
        consistent(&host, "again");
        destroy(&host, "again");
        only(&host, &["parent"], &[]);
        rows.push(format!("| {} | {} | {} | {child} | {source} |", case.who, case.when, case.action));
    }
    println!(
        "\n{strategy}\n| at | step | fault | copy | source |\n| --- | --- | --- | --- | --- |\n{}",
        rows.join("\n")
    );
}

/// The copy boots from the disk of a source that was shut down.
fn matrix_of_booted(strategy: &str) {
    let mut host = host(strategy);
    host.set("DAEMON_START_TIMEOUT_SEC", "1");
    let _runner = host.runner();
    parent(&host);
    assert_eq!(host.http().post("/sandboxes/parent/stop", r#"{"mode":"shutdown"}"#).status, 200);
    for case in of_booted_child() {
        let fault =
            json!([{ "when": case.when, "sandbox": "child", "action": case.action, "value": case.value, "times": 1 }]);
        faults(&host, fault);
        let answer = fork(&host, "parent", "child");
        println!("{strategy}, booted: {} {}: {} {}", case.when, case.action, answer.status, answer.body);
        assert!(host.path("faults.json.hits").exists(), "{} {}", case.when, case.action);
        assert_eq!(answer.status == 201, case.want == Want::Made, "{}", answer.body);
        if answer.status == 201 {
            destroy(&host, "child");
        } else {
            let message = answer.json()["message"].as_str().expect("a message").to_lowercase();
            for word in words(&case) {
                assert!(message.contains(&word.to_lowercase()), "{word:?} is not in {message}");
            }
        }
        only(&host, &[], &["parent"]);
        faults(&host, json!([]));
        forked(&host, "parent", "again");
        destroy(&host, "again");
        only(&host, &[], &["parent"]);
    }
}

#[test]
fn faults_of_a_copy_that_boots_on_reflink() {
    matrix_of_booted("reflink");
}

#[test]
fn faults_of_a_copy_that_boots_on_overlays() {
    matrix_of_booted("overlay");
}

#[test]
fn faults_of_the_source_on_reflink() {
    matrix("reflink", of_source("reflink"));
}

#[test]
fn faults_of_the_source_on_overlays() {
    matrix("overlay", of_source("overlay"));
}

#[test]
fn faults_of_the_copy_on_reflink() {
    matrix("reflink", of_child());
}

#[test]
fn faults_of_the_copy_on_overlays() {
    matrix("overlay", of_child());
}
