//! Node's own clients.

use super::setup::{Need, Stage, run_script, skipped};

#[test]
fn node_streams_both_ways_and_gives_up() {
    if skipped(&[Need::Node("ws"), Need::Node("undici")]) {
        return;
    }
    let stage = Stage::new();
    let _server = stage.node_server("app.mjs");
    run_script(&stage.host, "node/streams.mjs", &[]);
}

#[test]
fn node_speaks_websocket() {
    if skipped(&[Need::Node("ws"), Need::Node("undici")]) {
        return;
    }
    let stage = Stage::new();
    let _server = stage.node_server("app.mjs");
    run_script(&stage.host, "node/ws_client.mjs", &[]);
}
