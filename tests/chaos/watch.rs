//! What is looked at all the time: reads are answered, no sandbox has two VMMs, no two sandboxes have one address.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Run;
use super::harm::vmms;
use super::load::request;

/// A read queues behind nothing; this is for a machine with many more threads than CPUs.
const ANSWERED: Duration = Duration::from_secs(5);

/// Looks until the end; what it has seen, in words.
pub fn looks(run: &Run) -> String {
    let (mut reads, mut longest) = (0_u64, Duration::ZERO);
    while !run.is_over() {
        for path in ["/", "/sandboxes", "/info"] {
            let (life, asked) = (run.lives.now(), Instant::now());
            let answer = request("GET", path, "");
            let took = asked.elapsed();
            if run.lives.unharmed_since(life) {
                let answer = answer.unwrap_or_else(|error| panic!("GET {path} was not answered: {error}"));
                assert_eq!(answer.status, 200, "GET {path}: {answer:?}");
                assert!(took < ANSWERED, "GET {path} took {took:?}");
                (reads, longest) = (reads + 1, longest.max(took));
                if path == "/sandboxes" {
                    alone(&answer.json());
                }
            }
        }
        one_each(run);
        std::thread::sleep(Duration::from_millis(100));
    }
    format!("{reads} reads answered, the slowest in {longest:?}")
}

/// No two have the same process, namespace or address.
fn alone(listed: &Value) {
    for name in ["pid", "netns", "address"] {
        let mut owners = BTreeMap::new();
        for view in listed.as_array().expect("a list").iter().filter(|view| !view[name].is_null()) {
            let other = owners.insert(view[name].to_string(), view);
            assert!(other.is_none(), "two have the same {name}: {view} and {other:?}");
        }
    }
}

/// No socket is that of two processes. One may have ended while the list was made.
fn one_each(run: &Run) {
    let twice = || {
        let mut owners = BTreeMap::<String, Vec<i32>>::new();
        vmms(run).into_iter().for_each(|(pid, socket)| owners.entry(socket).or_default().push(pid));
        owners.retain(|_, pids| pids.len() > 1);
        owners
    };
    let (first, again) = (twice(), twice());
    for (socket, pids) in first {
        let still: Vec<_> =
            again.get(&socket).into_iter().flatten().filter(|pid| pids.contains(*pid)).copied().collect();
        assert!(still.len() < 2, "two VMMs at {socket}: {still:?}");
    }
}
