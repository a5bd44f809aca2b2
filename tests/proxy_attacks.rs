//! Requests that attack the proxy, clients that strain it, and guests that lie: raw bytes on one side,
//! a server of the test's own in the guest's place on the other.

mod common;
#[path = "proxy_attacks/stand_in.rs"]
mod stand_in;
