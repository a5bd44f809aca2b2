//! Requests for sandboxes that are not there yet, or not now.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::common::{Host, eventually};
use super::with_box;

const ECHO: &str = "/sandboxes/box/toolbox/version";

#[test]
fn a_paused_sandbox_is_waited_for() {
    let (host, _runner) = with_box();
    assert_eq!(host.http().get(ECHO).status, 200);
    assert_eq!(host.http().post("/sandboxes/box/pause", "").status, 200);
    let asked = {
        let http = host.http();
        thread::spawn(move || http.get(ECHO))
    };
    // It is in the runner's hands, and not answered: the guest cannot.
    let held = Instant::now();
    while held.elapsed() < Duration::from_millis(300) {
        assert!(!asked.is_finished(), "{:?}", asked.join());
        thread::yield_now();
    }
    assert_eq!(host.http().post("/sandboxes/box/resume", "").status, 200);
    assert_eq!(asked.join().unwrap().status, 200);
    // Once more, as what is told at a pause must be taken back each time.
    assert_eq!(host.http().post("/sandboxes/box/pause", "").status, 200);
    assert_eq!(host.http().post("/sandboxes/box/resume", "").status, 200);
    assert_eq!(host.http().get(ECHO).status, 200);
}

#[test]
fn nobody_waits_for_ever() {
    let mut host = Host::new();
    host.set("RUNNER_PROXY_WAIT_SEC", "1");
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    assert_eq!(host.http().post("/sandboxes/box/pause", "").status, 200);
    let refused = |host: &Host| {
        let began = Instant::now();
        let answer = host.http().get(ECHO);
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        assert!(answer.body.contains("it is paused") && answer.body.contains("/sandboxes/box/resume"), "{answer:?}");
        assert!((1..5).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    };
    refused(&host);
    // The next runner knows it, too.
    runner.murder();
    let _runner = host.runner();
    refused(&host);
    assert_eq!(host.http().post("/sandboxes/box/resume", "").status, 200);
    assert_eq!(host.http().get(ECHO).status, 200);
    // What rests is not waited for.
    host.completed(&host.api.stop_sandbox("box", None).unwrap());
    let began = Instant::now();
    let answer = host.http().get(ECHO);
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.body.contains("Is the Sandbox started?"), "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn a_runner_that_recovers_is_waited_for() {
    let (host, runner) = with_box();
    runner.murder();
    let runner = host.spawn();
    // As soon as the port is open, which is before the sandboxes are looked at.
    let answer = eventually("the port is open", || host.http().try_get(ECHO));
    assert_eq!(answer.status, 200, "{answer:?}\n{}", host.log());
    runner.signal(Signal::SIGTERM);
}

#[test]
fn requests_start_a_stopped_sandbox_if_they_may() {
    let mut host = Host::new();
    host.set("RUNNER_PROXY_AUTOSTART", "true");
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    host.completed(&host.api.stop_sandbox("box", None).unwrap());
    // Many at once are one start.
    let asked: Vec<_> = (0..8)
        .map(|_| {
            let http = host.http();
            thread::spawn(move || http.get(ECHO))
        })
        .collect();
    for asked in asked {
        let answer = asked.join().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}\n{}", host.log());
    }
    assert_eq!(host.http().get("/sandboxes/box").json()["state"], "started");
    // A drain refuses this start like any other.
    host.completed(&host.api.stop_sandbox("box", None).unwrap());
    assert_eq!(host.http().post("/drain", "").status, 200);
    let answer = host.http().get(ECHO);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(host.http().get("/sandboxes/box").json()["state"], "stopped");
    // Nor does a request make what is not there.
    assert_eq!(host.http().get("/sandboxes/none/toolbox/version").status, 404);
}
