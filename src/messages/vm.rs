//! What a sandbox's actor is asked.

use std::sync::Arc;

use actix::Message;
use tokio::sync::oneshot;

use crate::error::Failure;
use crate::jobs::payload::{CreateSpec, Secret};
use crate::sandbox::{Ask, Size, View};

/// What a sandbox is made from.
#[derive(Debug, Clone)]
pub struct Blueprint {
    /// What was asked for.
    pub spec: CreateSpec,
    /// Its resources, defaults applied.
    pub size: Size,
}

/// Where the answer goes. Dropped unanswered when the actor dies: the supervisor then asks the
/// rebuilt one again.
pub type Reply = oneshot::Sender<Result<Option<Arc<View>>, Failure>>;

/// A request for this sandbox.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Command {
    /// What is asked.
    pub ask: Ask,
    /// For [`Ask::Create`]: what to make, if nothing of the sandbox exists when its turn comes.
    pub blueprint: Option<Box<Blueprint>>,
    /// For a start: the token for the guest's daemon.
    pub auth_token: Option<Secret>,
    /// The caller.
    pub reply: Reply,
}
