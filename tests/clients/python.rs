//! Clients for Python.

use super::setup::{Need, Stage, run_script, skipped};

#[test]
fn python_streams_both_ways_and_gives_up() {
    if skipped(&[Need::Node("ws"), Need::Python("requests"), Need::Python("httpx"), Need::Python("aiohttp")]) {
        return;
    }
    let stage = Stage::new();
    let _server = stage.node_server("app.mjs");
    run_script(&stage.host, "python/streams.py", &[]);
}

#[test]
fn python_speaks_websocket() {
    if skipped(&[Need::Node("ws"), Need::Python("websockets")]) {
        return;
    }
    let stage = Stage::new();
    let _server = stage.node_server("app.mjs");
    run_script(&stage.host, "python/ws_client.py", &[]);
}
