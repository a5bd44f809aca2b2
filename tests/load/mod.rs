//! What the runs under load share: chance from a seed, requests that may meet a dead runner, and what must be true at the
//! end of all of them.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::common::http::Answer;
use super::common::{Host, Http, TOKEN, eventually, leftovers};

/// The number in this environment variable.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// The seed of this run, printed: what was ordered, or the time.
pub fn seed(name: &str) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    let seed = number(name).unwrap_or(now.as_micros() as u64 % 1_000_000_000);
    println!("{name}={seed}");
    seed
}

/// Chance (splitmix64): the same numbers from the same seed, on every machine.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// Chance of its own for one of many who share a seed.
    pub fn new(seed: u64, who: u64) -> Self {
        let mut chance = Self(seed.wrapping_add(who.wrapping_mul(0xa076_1d64_78bd_642f)));
        chance.next();
        chance
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// True so often in a hundred.
    pub fn percent(&mut self, often: u64) -> bool {
        self.below(100) < often
    }

    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).expect("small")]
    }

    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// Which life of the runner this is, and whether it has recovered: even while nobody may find it away.
#[derive(Debug, Default)]
pub struct Lives(AtomicU64);

impl Lives {
    /// From here on a request may fail; before the runner is killed.
    pub fn ends(&self) {
        self.0.fetch_or(1, Ordering::SeqCst);
    }

    /// From here on none may.
    pub fn begins(&self) {
        let now = self.0.load(Ordering::SeqCst);
        self.0.store((now | 1) + 1, Ordering::SeqCst);
    }

    pub fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// The runner had recovered when this was asked, and it was not to be killed until now.
    pub fn unharmed_since(&self, then: u64) -> bool {
        then.is_multiple_of(2) && self.now() == then
    }
}

/// A request whose connection may be cut.
pub fn request(method: &str, path: &str, body: &str) -> std::io::Result<Answer> {
    let head = "host: runner\r\nconnection: close";
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\n{head}\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    Http::new(3006, TOKEN).raw(&text)
}

/// A command in a guest: its output and its exit code; none if nobody answers.
pub fn guest(id: &str, command: &str) -> Option<(String, i64)> {
    let body = json!({ "command": command }).to_string();
    let answer = request("POST", &format!("/sandboxes/{id}/toolbox/process/execute"), &body).ok()?;
    let told: Value = serde_json::from_str(&answer.body).ok().filter(|_| answer.status == 200)?;
    Some((told["result"].as_str()?.trim_end().to_owned(), told["exitCode"].as_i64()?))
}

/// A line between those of the runner's log.
pub fn note(host: &Host, line: &str) {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    let log = std::fs::OpenOptions::new().append(true).create(true).open(host.path("runner.log"));
    writeln!(log.expect("the log"), "==== {}.{:03} {line}", at.as_secs(), at.subsec_millis()).expect("the log");
}

/// Every job has a final status, and whatever was told of it at whatever time is one and the same result.
#[track_caller]
pub fn one_result_each(host: &Host) {
    // A report is noted after it was taken.
    let told = |job: &str| {
        host.api.reports().iter().any(|report| report.job_id == job && report.body["status"] != "IN_PROGRESS")
    };
    eventually("all results are noted", || host.api.jobs().iter().all(|job| told(&job.id)).then_some(()));
    let mut results = BTreeMap::<String, Value>::new();
    for report in host.api.reports().into_iter().filter(|report| report.body["status"] != "IN_PROGRESS") {
        let first = results.entry(report.job_id.clone()).or_insert_with(|| report.body.clone());
        assert_eq!(*first, report.body, "two results of job {}", report.job_id);
    }
    for job in host.api.jobs() {
        assert!(job.status.is_terminal(), "{job:?}");
        assert_eq!(results[&job.id]["status"], job.status.as_str(), "{job:?}");
    }
}

/// Nothing of any sandbox is on the host or in the store, and the ledger says so too.
#[track_caller]
pub fn nothing_left(host: &Host) {
    leftovers::none(host);
    assert_eq!(leftovers::layers(host), 0, "layers are left");
    assert_eq!(host.http().get("/sandboxes").json(), json!([]));
    let report = eventually("the ledger has looked", || {
        let answer = host.http().get("/ledger?refresh=true");
        (answer.status == 200).then(|| answer.json())
    });
    assert_eq!((&report["differences"], &report["blind"]), (&json!([]), &json!([])), "{report:#}\n{}", host.log());
    println!("ledger: {} differences, {} blind, {} us", report["total"], report["blind"], report["durationMicros"]);
}
