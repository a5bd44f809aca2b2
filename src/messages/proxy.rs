//! What the proxy is told. Bytes never pass through a mailbox: requests read the table of routes.

use actix::Message;

use crate::ids::SandboxId;
use crate::net::Namespace;

/// The sandbox runs and may be reached.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct OpenRoute {
    /// The sandbox.
    pub id: SandboxId,
    /// Its run: a connection of an old run never serves a new one.
    pub run: u64,
    /// Where its guest is.
    pub netns: Namespace,
}

/// The guest cannot answer for a while, as it is paused or its VMM is being exchanged, or it can again. Meanwhile
/// requests wait for a bounded time; what is connected stays connected.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct HoldRoute {
    /// The sandbox.
    pub id: SandboxId,
    /// Whether requests wait.
    pub held: bool,
}

/// The sandbox is about to lose its network. Answered when no new connection can begin.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct CloseRoute {
    /// The sandbox.
    pub id: SandboxId,
}
