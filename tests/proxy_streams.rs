//! Streams through the proxy, step by step: bodies, events, trailers, expectations, WebSockets, and
//! what becomes of each of them when the guest dies. A server of the test's own stands in for the
//! guest, so that both ends are in the test's hands.

#[path = "proxy_streams/bodies.rs"]
mod bodies;
mod common;
#[path = "proxy_streams/connections.rs"]
mod connections;
#[path = "proxy_streams/death.rs"]
mod death;
#[path = "proxy_streams/expect.rs"]
mod expect;
#[path = "proxy_streams/logs.rs"]
mod logs;
#[path = "proxy_streams/pings.rs"]
mod pings;
#[path = "proxy_streams/websocket.rs"]
mod websocket;

use common::{Host, Runner};

/// A host with one running sandbox.
fn with_box() -> (Host, Runner) {
    let host = Host::new();
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    (host, runner)
}
