//! Copies without end of a source whose guest writes all the time.

use serde_json::json;

use crate::common::Host;
use crate::common::copies::{beats, consistent, describe, destroy, forked, host, only, parent};

/// Copies of one pause, where there are several.
const BATCH: usize = 10;

/// `RUNNER_FORKS` changes how many.
fn copies() -> usize {
    std::env::var("RUNNER_FORKS").map_or(200, |text| text.parse().expect("RUNNER_FORKS: a number"))
}

/// Watches that the source only ever goes forward, and notes how long it stood still.
struct Source {
    last: (u64, String),
    pauses: Vec<u64>,
}

impl Source {
    fn look(&mut self, host: &Host) {
        let now = beats(host, "parent");
        assert!(now.1 == self.last.1 && now.0 >= self.last.0, "{:?} came after {:?}", now, self.last);
        self.last = now;
        self.pauses.push(describe(host, "parent")["lastPauseMicros"].as_u64().expect("a pause"));
    }

    fn percentile(&mut self, percent: usize) -> u64 {
        self.pauses.sort_unstable();
        self.pauses[(self.pauses.len() * percent).div_ceil(100).max(1) - 1]
    }
}

fn check(host: &Host, source: &Source, copy: &str) {
    consistent(host, copy);
    let (counter, boot) = beats(host, copy);
    assert!(
        boot == source.last.1 && counter >= source.last.0,
        "{copy} goes on from a time before its copy was asked for"
    );
    destroy(host, copy);
}

fn many(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    parent(&host);
    let mut source = Source { last: beats(&host, "parent"), pauses: Vec::new() };
    let started = std::time::Instant::now();
    let (single, batches) = (copies() / 2, copies() / 2 / BATCH);
    for number in 0..single {
        let copy = format!("copy-{number}");
        forked(&host, "parent", &copy);
        check(&host, &source, &copy);
        source.look(&host);
    }
    let one_by_one = started.elapsed();
    for _ in 0..batches {
        let answer = host.http().post("/sandboxes/parent/fork", &json!({ "count": BATCH }).to_string());
        assert_eq!(answer.status, 201, "{}\n{}", answer.body, host.log());
        let made = answer.json()["sandboxes"].as_array().expect("a list").clone();
        assert_eq!(made.len(), BATCH);
        for copy in made {
            check(&host, &source, copy["id"].as_str().expect("an id"));
        }
        source.look(&host);
    }
    consistent(&host, "parent");
    only(&host, &["parent"], &[]);
    let (pauses, p50, p99) = (source.pauses.len(), source.percentile(50), source.percentile(99));
    println!(
        "{strategy}: {single} copies one by one in {one_by_one:?}, {} in batches, all in {:?}; {pauses} pauses, p50 {p50} us, p99 {p99} us",
        batches * BATCH,
        started.elapsed()
    );
}

#[test]
fn hundreds_of_copies_on_reflink() {
    many("reflink");
}

#[test]
fn hundreds_of_copies_on_overlays() {
    many("overlay");
}
