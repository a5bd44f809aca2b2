//! What a sandbox's actor is asked.

use std::sync::Arc;

use actix::Message;
use tokio::sync::oneshot;

use crate::error::Failure;
use crate::fork::Ticket;
use crate::jobs::payload::{CreateSpec, Secret};
use crate::sandbox::record::Origin;
use crate::sandbox::{Ask, Record, Size, View};

/// What a sandbox is made from.
#[derive(Debug, Clone)]
pub struct Blueprint {
    /// What was asked for.
    pub spec: CreateSpec,
    /// Its resources, defaults applied.
    pub size: Size,
    /// Where its disk, and maybe its memory, come from, if not from a base.
    pub source: Option<Source>,
    /// Why it boots although its snapshot has a memory.
    pub note: Option<String>,
}

/// What a sandbox is copied from.
#[derive(Debug, Clone)]
pub struct Source {
    /// Sandbox or snapshot.
    pub origin: Origin,
    /// The frozen point in time, as soon as it is there.
    pub ticket: Ticket,
    /// The MAC of its guest, where the copy goes on with its memory.
    pub mac: Option<[u8; 6]>,
}

/// New resources; what is none stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resize {
    /// Virtual CPUs.
    pub vcpus: Option<u32>,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Virtual size of the root disk in bytes.
    pub disk: Option<u64>,
}

/// What belongs to a request beside its verb.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// For a creation: what to make, if nothing of the sandbox exists when its turn comes.
    pub blueprint: Option<Box<Blueprint>>,
    /// For a start: the token for the guest's daemon.
    pub auth_token: Option<Secret>,
    /// For [`Ask::Capture`]: who waits for it.
    pub ticket: Option<Ticket>,
    /// For [`Ask::Resize`].
    pub resize: Option<Resize>,
    /// The start that the sandbox itself is owed; nothing if it is owed none any more.
    pub owed: bool,
    /// For a stop: why the memory is not kept.
    pub note: Option<String>,
}

/// Asks for the record as the actor has it, which may be ahead of the store.
#[derive(Debug, Message)]
#[rtype(result = "Box<Record>")]
pub struct GetRecord;

/// Where the answer goes. Dropped unanswered when the actor dies: the supervisor then asks the
/// rebuilt one again.
pub type Reply = oneshot::Sender<Result<Option<Arc<View>>, Failure>>;

/// A request for this sandbox.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Command {
    /// What is asked.
    pub ask: Ask,
    /// What belongs to it.
    pub extras: Extras,
    /// The caller.
    pub reply: Reply,
}
