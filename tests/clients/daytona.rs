//! Daytona's own clients. They ask Daytona's API for a sandbox and send the rest to the address of a proxy that it
//! names, as `{toolboxProxyUrl}/{id}{path}`; both are played by a front, which forwards as Daytona's proxy does.

use super::common::Host;
use super::setup::{Front, Need, Stage, run_script, skipped};

fn python() -> bool {
    skipped(&[Need::Program("node"), Need::Python("daytona")])
}

fn node() -> bool {
    skipped(&[Need::Node("@daytona/sdk")])
}

/// With the guest of ch-sim: the calls that it knows.
fn with_the_simulated_guest(script: &str) {
    let host = Host::new();
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).expect("a job"));
    let _front = Front::new(&host);
    run_script(&host, script, &["simulated"]);
}

/// With a toolbox that has real files and processes.
fn with_a_real_toolbox(script: &str) {
    let stage = Stage::new();
    let _toolbox = stage.node_server("toolbox.mjs");
    let _front = Front::new(&stage.host);
    run_script(&stage.host, script, &["real"]);
}

#[test]
fn daytona_for_python_with_the_simulated_guest() {
    if !python() {
        with_the_simulated_guest("python/sdk.py");
    }
}

#[test]
fn daytona_for_python_with_files_and_processes() {
    if !python() && !skipped(&[Need::Node("ws")]) {
        with_a_real_toolbox("python/sdk.py");
    }
}

#[test]
fn daytona_for_node_with_the_simulated_guest() {
    if !node() {
        with_the_simulated_guest("node/sdk.mjs");
    }
}

#[test]
fn daytona_for_node_with_files_and_processes() {
    if !node() && !skipped(&[Need::Node("ws")]) {
        with_a_real_toolbox("node/sdk.mjs");
    }
}
