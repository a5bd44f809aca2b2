//! Load by h2load and wrk: not how fast it is, but that nothing goes wrong at any number of connections.

use std::process::Command;

use super::common::TOKEN;
use super::common::backend::TOOLBOX;
use super::guest;
use super::setup::{Need, PORT_URL, Stage, in_full, run, skipped, tail};

/// Seconds of each smoke run.
fn seconds() -> &'static str {
    if in_full() { "30" } else { "1" }
}

#[test]
fn h2load_sees_no_error() {
    if skipped(&[Need::Program("h2load")]) {
        return;
    }
    let stage = Stage::new();
    let guest = stage.stand_in.serve(TOOLBOX, guest::serve);
    for connections in ["1", "32", "256"] {
        let mut command = Command::new("h2load");
        command.args(["--h1", "--clients", connections, "--threads", "1", "--duration", seconds()]);
        command.args(["--header", &format!("X-Daytona-Authorization: Bearer {TOKEN}")]);
        let said = run(&stage.host, command.arg(format!("{PORT_URL}/small")));
        let line = |start: &str| said.out.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        println!("h2load, {connections} connections: {}; {}", line("finished in"), line("requests:"));
        assert_eq!(said.code, Some(0), "{said:?}");
        // "requests: T total, S started, D done, N succeeded, F failed, E errored, O timeout"
        let requests = line("requests:");
        for wrong in [" 0 failed", " 0 errored", " 0 timeout"] {
            assert!(requests.contains(wrong), "{requests}\n{}\nrunner: {}", said.err, tail(&stage.host.log()));
        }
        let codes = line("status codes:");
        assert!(codes.contains(" 0 3xx, 0 4xx, 0 5xx") && !codes.contains(": 0 2xx"), "{codes}");
    }
    println!("guest connections in all: {}", guest.accepted());
}

#[test]
fn wrk_sees_no_error() {
    if skipped(&[Need::Program("wrk")]) {
        return;
    }
    let stage = Stage::new();
    let guest = stage.stand_in.serve(TOOLBOX, guest::serve);
    for connections in ["1", "32", "256"] {
        let mut command = Command::new("wrk");
        command.args(["--threads", "1", "--connections", connections, "--latency", "--timeout", "20s", "--duration"]);
        command.args([&format!("{}s", seconds()), "--header", &format!("X-Daytona-Authorization: Bearer {TOKEN}")]);
        let said = run(&stage.host, command.arg(format!("{PORT_URL}/small")));
        let line = |start: &str| {
            said.out.lines().map(str::trim).find(|line| line.starts_with(start)).unwrap_or_default().to_owned()
        };
        println!("wrk, {connections} connections: {}; {}", line("Requests/sec"), line("99%"));
        assert_eq!(said.code, Some(0), "{said:?}");
        // wrk tells of errors only when there are some.
        for wrong in ["Socket errors", "Non-2xx"] {
            assert!(!said.out.contains(wrong), "{}\nrunner: {}", said.out, tail(&stage.host.log()));
        }
        assert!(!line("Requests/sec").is_empty() && !line("Requests/sec").ends_with(" 0.00"), "{said:?}");
    }
    println!("guest connections in all: {}", guest.accepted());
}
