//! What a sandbox's actor is asked.

use std::sync::Arc;

use actix::Message;
use tokio::sync::oneshot;

use crate::error::Failure;
use crate::jobs::payload::Secret;
use crate::sandbox::{Ask, View};

/// Where the answer goes. Dropped unanswered when the actor dies: the supervisor then asks the
/// rebuilt one again.
pub type Reply = oneshot::Sender<Result<Option<Arc<View>>, Failure>>;

/// A request for this sandbox.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Command {
    /// What is asked.
    pub ask: Ask,
    /// For a start: the token for the guest's daemon.
    pub auth_token: Option<Secret>,
    /// The caller.
    pub reply: Reply,
}
