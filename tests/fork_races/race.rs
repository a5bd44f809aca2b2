//! One race, again and again with other distances in time.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::copies::{beats, consistent, destroy, fork, host, only, parent};
use crate::common::http::Answer;
use crate::common::{Host, Http, TOKEN, eventually, leftovers};

const ROUNDS: usize = 4;
const SLOW_ROUNDS: usize = 1;
/// A copy takes about this long.
const SPAN_MICROS: u64 = 150_000;

/// What happens at the same time as the fork.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// A request.
    Live,
    /// A request that takes seconds, so there are fewer rounds.
    Slow,
    /// The source's VMM is killed.
    Killed,
}

/// Numbers that a seed makes; the seed is printed, and `RUNNER_SEED` sets it.
struct Numbers(u64);

impl Numbers {
    fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        let seed = std::env::var("RUNNER_SEED").map_or(now.as_nanos() as u64, |text| text.parse().expect("a number"));
        println!("RUNNER_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % limit
    }
}

/// Kills the VMM that serves the source now, if there is one.
fn kill_parent(host: &Host) {
    let socket = host.path("sock").join("parent.sock").display().to_string();
    let of_parent = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&socket)
    };
    for pid in leftovers::vmms(&host.path("sock")).into_iter().filter(of_parent) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// All sandboxes with their states, as soon as none is on its way any more.
fn at_rest(host: &Host) -> BTreeMap<String, String> {
    eventually("every sandbox rests", || {
        let views = Http::new(3006, TOKEN).get("/sandboxes").json();
        let state = |view: &serde_json::Value| {
            let text = |name: &str| view[name].as_str().unwrap_or_default().to_owned();
            let rests = ["started", "paused", "stopped"].contains(&text("state").as_str());
            assert_ne!(text("state"), "error", "{view}\n{}", host.log());
            let answers = text("state") != "started" || crate::common::copies::heartbeat(host, &text("id")).is_some();
            (rests && answers).then(|| (text("id"), text("state")))
        };
        views.as_array().expect("a list").iter().map(state).collect()
    })
}

fn is_an_answer(answer: &Answer) {
    if answer.status >= 400 {
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(message.len() > 10, "{answer:?}");
        assert!(answer.status != 500 || message.contains("sandbox"), "{answer:?}");
    } else if answer.status == 207 {
        assert!(answer.json()["failed"].as_u64() > Some(0), "{answer:?}");
    }
}

/// The source as it was, whatever became of it.
fn restore(host: &Host, state: Option<&str>, anew: bool) {
    if let Some(state) = state {
        if !anew {
            let path = if state == "paused" { "resume" } else { "start" };
            let answer = host.http().post(&format!("/sandboxes/parent/{path}"), "");
            assert_eq!(answer.status, 200, "{}", answer.body);
            if beats(host, "parent").0 > 0 && host.in_guest("parent", "cat /tmp/mark") == "from-parent" {
                return consistent(host, "parent");
            }
        }
        destroy(host, "parent");
    }
    parent(host);
}

fn round(host: &Host, numbers: &mut Numbers, others: Others, other: impl FnOnce() -> Option<Answer> + Send) -> String {
    let (first, second) = (numbers.below(SPAN_MICROS / 3), numbers.below(SPAN_MICROS));
    let wait = |micros: u64| std::thread::sleep(Duration::from_micros(micros));
    let (forked, answered) = std::thread::scope(|scope| {
        let forking = scope.spawn(|| {
            wait(first);
            fork_child()
        });
        wait(second);
        let answered = if others == Others::Killed {
            kill_parent(host);
            None
        } else {
            other()
        };
        (forking.join().expect("an answer"), answered)
    });
    is_an_answer(&forked);
    answered.iter().for_each(is_an_answer);
    let words = |answer: &Answer| match answer.status {
        200..=299 => answer.status.to_string(),
        status => format!("{status} {}", answer.json()["message"]),
    };
    let told =
        format!("fork at {first} us: {}; other at {second} us: {:?}", words(&forked), answered.as_ref().map(words));
    println!("{told}");
    let states = at_rest(host);
    let child = states.get("child");
    assert!(
        forked.status < 300 || child.is_none() || answered.is_some_and(|other| other.status < 300),
        "{told}: {states:?}"
    );
    for (id, _) in states.iter().filter(|(id, state)| *id != "parent" && *state == "started") {
        // One that has booted from a disk has no writer.
        if crate::common::copies::describe(host, id)["begin"]["from"] == "memory" {
            consistent(host, id);
        }
    }
    let on: Vec<&str> = states.iter().filter(|(_, state)| *state != "stopped").map(|(id, _)| id.as_str()).collect();
    let off: Vec<&str> = states.iter().filter(|(_, state)| *state == "stopped").map(|(id, _)| id.as_str()).collect();
    only(host, &on, &off);
    for id in states.keys().filter(|id| *id != "parent") {
        destroy(host, id);
    }
    let anew = others == Others::Killed;
    if anew && states["parent"] == "stopped" {
        let view = crate::common::copies::describe(host, "parent");
        assert!(view["errorReason"].as_str().is_some_and(|reason| reason.contains("signal 9")), "{view}");
    }
    restore(host, states.get("parent").map(String::as_str), anew);
    only(host, &["parent"], &[]);
    told
}

fn fork_child() -> Answer {
    Http::new(3006, TOKEN).post("/sandboxes/parent/fork", r#"{"newSandboxId":"child"}"#)
}

pub fn races(strategy: &str, others: Others, other: fn(usize) -> Option<Answer>) {
    let host = host(strategy);
    let _runner = host.runner();
    parent(&host);
    let mut numbers = Numbers::new();
    for number in 0..if others == Others::Slow { SLOW_ROUNDS } else { ROUNDS } {
        round(&host, &mut numbers, others, || other(number));
    }
    // After all of it a copy is what it always is.
    assert_eq!(fork(&host, "parent", "last").status, 201);
    consistent(&host, "last");
    consistent(&host, "parent");
}
