//! Nothing is said where nothing is wrong, whatever is done to sandboxes, and whatever is repaired meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{KINDS, differences, empty, ledger};
use crate::common::copies::{destroy, forked, host};
use crate::common::{Host, Http, TOKEN, eventually};

fn lives(strategy: &str) {
    let mut host = host(strategy);
    // A run at any time must be right, too.
    host.set("RUNNER_LEDGER_INTERVAL_SEC", "1");
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("parent")).unwrap());
    empty(&host);
    forked(&host, "parent", "child");
    forked(&host, "child", "grandchild");
    empty(&host);
    host.completed(&host.api.stop_sandbox("child", None).unwrap());
    let snapshot = json!({ "sandboxId": "parent", "name": "kept", "live": true }).to_string();
    assert_eq!(host.http().post("/snapshots/create", &snapshot).status, 200, "{}", host.log());
    assert_eq!(host.http().post("/sandboxes/grandchild/pause", "").status, 200, "{}", host.log());
    empty(&host);
    host.completed(&host.api.start_sandbox("child").unwrap());
    assert!(runner.stop().success());
    let runner = host.runner();
    empty(&host);
    runner.murder();
    let _runner = host.runner();
    for id in ["child", "parent", "grandchild"] {
        destroy(&host, id);
        empty(&host);
    }
    let told =
        host.log().lines().filter(|line| line.contains("the host differs")).map(str::to_owned).collect::<Vec<_>>();
    assert!(told.is_empty(), "{told:#?}");
}

#[test]
fn nothing_is_left_of_lives_on_overlays() {
    lives("overlay");
}

#[test]
fn nothing_is_left_of_lives_on_reflinks() {
    lives("reflink");
}

/// Repairs everything all the time while sandboxes come, go, are copied, stopped and started under the same names.
#[test]
fn a_repair_never_touches_what_is_under_way() {
    let host = host("overlay");
    let _runner = host.runner();
    let end = AtomicBool::new(false);
    let repairs = std::thread::scope(|scope| {
        let repairing = scope.spawn(|| {
            let (http, mut repairs) = (Http::new(3006, TOKEN), 0);
            let body = json!({ "dryRun": false, "kinds": KINDS }).to_string();
            while !end.load(Ordering::Relaxed) {
                let answer = http.post("/ledger/repair", &body);
                assert_eq!(answer.status, 200, "{}", answer.body);
                let report = answer.json();
                assert_eq!((&report["repaired"], &report["failed"]), (&json!(0), &json!(0)), "{report:#}");
                repairs += 1;
            }
            repairs
        });
        for _ in 0..4 {
            host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
            forked(&host, "box", "copy");
            host.completed(&host.api.stop_sandbox("box", None).unwrap());
            host.completed(&host.api.start_sandbox("box").unwrap());
            host.in_guest("box", "true");
            host.in_guest("copy", "true");
            for id in ["box", "copy"] {
                destroy(&host, id);
            }
        }
        end.store(true, Ordering::Relaxed);
        repairing.join().expect("repairs go well")
    });
    assert!(repairs > 4, "{repairs} repairs");
    empty(&host);
}

/// `RUNNER_LEDGER_SANDBOXES` changes how many; run by hand with `--run-ignored all --no-capture`.
#[test]
#[ignore = "a measurement of minutes"]
fn a_look_at_hundreds_of_sandboxes() {
    let count: usize = std::env::var("RUNNER_LEDGER_SANDBOXES").map_or(200, |text| text.parse().expect("a number"));
    let host = Host::new();
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box-0")).unwrap());
    let mut made = 1;
    while made < count {
        let batch = (count - made).min(20);
        let jobs: Vec<_> = (made..made + batch)
            .map(|number| host.api.create_sandbox(&host.spec(&format!("box-{number}"))).unwrap())
            .collect();
        jobs.iter().for_each(|job| drop(host.completed(job)));
        made += batch;
    }
    eventually("a quiet host", || differences(&ledger(&host)).is_empty().then_some(()));
    let slowest = |looks: bool| {
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let mut micros = Vec::new();
                while looks && !end.load(Ordering::Relaxed) {
                    micros.push(ledger(&host)["durationMicros"].as_u64().expect("a duration"));
                }
                micros
            });
            let mut answers: Vec<Duration> = Vec::new();
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(5) {
                let asked = Instant::now();
                host.in_guest("box-0", "true");
                answers.push(asked.elapsed());
            }
            end.store(true, Ordering::Relaxed);
            answers.sort();
            let mut micros = looking.join().expect("looks go well");
            micros.sort_unstable();
            (answers[answers.len() / 2], answers[answers.len() * 99 / 100], micros)
        })
    };
    let (quiet, looked_at) = (slowest(false), slowest(true));
    let micros = &looked_at.2;
    println!(
        "{count} sandboxes: {} looks, p50 {} us, longest {} us",
        micros.len(),
        micros[micros.len() / 2],
        micros[micros.len() - 1]
    );
    // What it costs on a machine that is busy with other things, too.
    let cpu = || {
        let stat = procfs::process::Process::new(runner.pid()).and_then(|process| process.stat()).expect("the runner");
        (stat.utime + stat.stime) * 1000 / procfs::ticks_per_second()
    };
    let (idle, before) = {
        let before = cpu();
        std::thread::sleep(Duration::from_secs(3));
        (cpu() - before, cpu())
    };
    (0..10).for_each(|_| drop(ledger(&host)));
    println!("CPU of the runner: {idle} ms in 3 idle seconds, {} ms for 10 looks", cpu() - before);
    println!("parts in us: {}", ledger(&host)["partMicros"]);
    println!(
        "a command in a guest: p50 {:?}, p99 {:?}; while it is looked at all the time p50 {:?}, p99 {:?}",
        quiet.0, quiet.1, looked_at.0, looked_at.1
    );
    assert!(differences(&ledger(&host)).is_empty());
}
