//! Polling: claims, waiting, vanished clients (PROTOCOL.md 2.2).

mod common;

use std::time::{Duration, Instant};

use common::{Api, SOON, start, start_with};
use daytona_sim::{CreateSpec, DisconnectMode, Handle, JobStatus};
use serde_json::json;

fn create(sim: &Handle, id: &str) -> String {
    sim.create_sandbox(&CreateSpec::new(id)).unwrap()
}

/// Opens a poll and waits until `open` polls are being waited in.
fn open_poll(sim: &Handle, open: usize, query: &str) -> std::net::TcpStream {
    let path = format!("/api/jobs/poll?{query}");
    let stream = Api::new(sim).open("GET", &path, None).unwrap();
    assert!(sim.wait_open_polls(open, SOON));
    stream
}

#[test]
fn jobs_come_oldest_first_and_in_progress() {
    let sim = start();
    let api = Api::new(&sim);
    let made: Vec<String> = (0..3).map(|n| create(&sim, &format!("s{n}"))).collect();
    let reply = api.get("/api/jobs/poll?timeout=1&limit=2").json();
    assert_eq!(common::ids(&reply["jobs"]), made[..2]);
    assert_eq!(reply["jobs"][0]["status"], "IN_PROGRESS");
    assert!(sim.job(&made[0]).unwrap().started_at.is_some());
    assert_eq!(sim.job(&made[2]).unwrap().status, JobStatus::Pending);
    assert_eq!(api.poll("timeout=1"), made[2..]);
    assert_eq!(api.poll("timeout=0.02"), Vec::<String>::new());
}

#[test]
fn empty_poll_waits_for_its_timeout() {
    let sim = start();
    let api = Api::new(&sim);
    let begun = Instant::now();
    assert_eq!(api.get("/api/jobs/poll?timeout=0.3").json(), json!({"jobs": []}));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert_eq!(api.get("/api/jobs/poll?timeout=-1").json(), json!({"jobs": []}));
}

#[test]
fn zero_and_nonsense_mean_the_defaults() {
    let sim = start();
    let api = Api::new(&sim);
    for (n, query) in ["timeout=0", "timeout=abc", "limit=abc", ""].into_iter().enumerate() {
        let stream = open_poll(&sim, 1, query);
        let id = create(&sim, &format!("d{n}"));
        let reply = common::receive(stream).unwrap().json();
        assert_eq!(common::ids(&reply["jobs"]), [id], "{query}");
    }
    for n in 0..12 {
        create(&sim, &format!("n{n}"));
    }
    assert_eq!(api.poll("limit=0").len(), 10);
}

#[test]
fn a_waiting_poll_is_woken_within_five_milliseconds() {
    let sim = start();
    let mut best = Duration::MAX;
    // The machine may be busy, so the best of some tries counts.
    for n in 0..20 {
        let stream = open_poll(&sim, 1, "timeout=20");
        let id = create(&sim, &format!("w{n}"));
        let reply = common::receive(stream).unwrap().json();
        assert_eq!(common::ids(&reply["jobs"]), [id.as_str()]);
        let job = sim.job(&id).unwrap();
        assert!(job.timing.queued().unwrap() <= job.timing.claim_latency().unwrap());
        best = best.min(job.timing.claim_latency().unwrap());
    }
    assert!(best < Duration::from_millis(5), "{best:?}");
    let latencies = sim.claim_latencies();
    assert_eq!(latencies.len(), 20);
    assert!(latencies.iter().all(|record| record.claimed_us <= record.answered_us));
}

#[test]
fn two_polls_share_no_job() {
    let sim = start();
    let first = open_poll(&sim, 1, "timeout=20&limit=1");
    let second = open_poll(&sim, 2, "timeout=20&limit=1");
    let one = create(&sim, "a");
    sim.wait_claimed(&one, SOON).unwrap();
    let two = create(&sim, "b");
    let mut got = Vec::new();
    for stream in [first, second] {
        got.extend(common::ids(&common::receive(stream).unwrap().json()["jobs"]));
    }
    got.sort();
    let mut made = vec![one, two];
    made.sort();
    assert_eq!(got, made);
}

#[test]
fn a_dead_poll_claims_nothing_by_default() {
    let sim = start();
    let api = Api::new(&sim);
    drop(open_poll(&sim, 1, "timeout=20"));
    assert!(sim.wait_open_polls(0, SOON), "the server has seen the end");
    let id = create(&sim, "a");
    assert_eq!(api.poll("timeout=5"), [id]);
}

#[test]
fn a_lingering_dead_poll_swallows_jobs() {
    let sim = start_with(|options| options.on_disconnect = DisconnectMode::Linger);
    let api = Api::new(&sim);
    drop(open_poll(&sim, 1, "timeout=20"));
    let id = create(&sim, "a");
    let job = sim.wait_claimed(&id, SOON).unwrap();
    assert_eq!(job.status, JobStatus::InProgress);
    assert_eq!(api.poll("timeout=0.02"), Vec::<String>::new());
    let list = api.get("/api/jobs?status=IN_PROGRESS").json();
    assert_eq!(common::ids(&list["items"]), [id], "reconciling finds it");
}
