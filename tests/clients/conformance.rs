//! Conformance of WebSockets from end to end, by the cases of the Autobahn test suite. They break the protocol in
//! every way, and what the guest's server makes of that must come back as it would without a proxy. Two servers
//! share the cases: each has limits of its own in the others', as shown by a run without a proxy.

use super::common::backend::TOOLBOX;
use super::setup::{Front, Need, Stage, dir, in_full, run_script, script, skipped};

const URL: &str = "ws://127.0.0.1:8000/sandboxes/box/proxy/8080/ws";

/// Framing, pings, opcodes, fragments, UTF-8, closes, limits: ws of Node.
#[test]
fn autobahn_cases_pass_with_a_server_of_node() {
    if skipped(&[Need::Node("ws"), Need::Python("kosoku")]) {
        return;
    }
    let stage = Stage::new();
    let _server = stage.node_server("app.mjs");
    let _front = Front::new(&stage.host);
    let mut arguments = vec![URL, "4", "1.*", "2.*", "3.*", "4.*", "5.*", "7.*", "10.*"];
    if in_full() {
        arguments.extend(["6.*", "9.*"]);
    }
    run_script(&stage.host, "python/conformance.py", &arguments);
}

/// Compression: websockets of Python.
#[test]
fn autobahn_cases_of_compression_pass_with_a_server_of_python() {
    if skipped(&[Need::Program("node"), Need::Python("websockets"), Need::Python("kosoku")]) {
        return;
    }
    let stage = Stage::new();
    let python = dir().join("python/bin/python").display().to_string();
    let port = TOOLBOX.to_string();
    let mut server = stage.stand_in.spawn(&python, &[&script("python/echo.py")], &[("PORT", &port)]);
    server.listens(TOOLBOX);
    let _front = Front::new(&stage.host);
    let cases = if in_full() { ["12.*", "13.*"] } else { ["12.1.1", "13.3.1"] };
    run_script(&stage.host, "python/conformance.py", &[URL, "4", cases[0], cases[1]]);
}
