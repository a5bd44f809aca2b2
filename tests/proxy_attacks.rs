//! Requests that attack the proxy, clients that strain it, and guests that lie: raw bytes on one side,
//! a server of the test's own in the guest's place on the other.

#[path = "proxy_attacks/bounds.rs"]
mod bounds;
mod common;
#[path = "proxy_attacks/credentials.rs"]
mod credentials;
#[path = "proxy_attacks/framing.rs"]
mod framing;
#[path = "proxy_attacks/guests.rs"]
mod guests;
#[path = "proxy_attacks/heads.rs"]
mod heads;
#[path = "proxy_attacks/kept.rs"]
mod kept;
#[path = "proxy_attacks/limits.rs"]
mod limits;
#[path = "proxy_attacks/paths.rs"]
mod paths;
#[path = "proxy_attacks/patience.rs"]
mod patience;
#[path = "proxy_attacks/pipelines.rs"]
mod pipelines;
#[path = "proxy_attacks/stand_in.rs"]
mod stand_in;
#[path = "proxy_attacks/table.rs"]
mod table;

use common::origin::Origin;
use common::{Host, Runner};

/// What a request that is none gets.
const BAD: &[u16] = &[400];

/// A host with one running sandbox.
fn with_box() -> (Host, Runner) {
    let host = Host::new();
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    (host, runner)
}

/// The same, and a server that answers with the path in the guest's place.
fn with_origin() -> (Host, Runner, Origin) {
    let (host, runner) = with_box();
    let origin = Origin::plain(&host, "box");
    (host, runner, origin)
}
