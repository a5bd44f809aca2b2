//! What the supervisor is asked and told.

use std::sync::Arc;

use actix::Message;

use crate::error::Failure;
use crate::fork::Ticket;
use crate::ids::SandboxId;
use crate::jobs::payload::{CreateSpec, Secret};
use crate::messages::vm::{Resize, Source};
use crate::sandbox::{Ask, Make, Record, Size, View};

/// A request for one sandbox; the answer is its view, or none when it exists no more.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Option<Arc<View>>, Failure>")]
pub struct Order {
    /// The sandbox.
    pub id: SandboxId,
    /// What is asked.
    pub ask: Ask,
    /// For [`Ask::Create`]: what to make.
    pub spec: Option<Box<CreateSpec>>,
    /// For a copy: what it is made from, and its resources.
    pub copy: Option<(Source, Size)>,
    /// For [`Ask::Capture`]: who waits for it.
    pub ticket: Option<Ticket>,
    /// For [`Ask::Resize`]: what to change.
    pub resize: Option<Resize>,
    /// For a start: the token for the guest's daemon.
    pub auth_token: Option<Secret>,
    /// It carries out a job of the control plane. Jobs that were begun before a drain are finished in it.
    pub by_job: bool,
    /// Nobody asks for it: the sandbox itself is owed this start.
    pub owed: bool,
}

impl Order {
    /// An order that needs nothing but the id.
    pub fn new(id: SandboxId, ask: Ask) -> Self {
        Self {
            id,
            ask,
            spec: None,
            copy: None,
            ticket: None,
            resize: None,
            auth_token: None,
            by_job: false,
            owed: false,
        }
    }

    /// An order to make a sandbox.
    pub fn create(spec: CreateSpec) -> Self {
        let ask = Ask::Create(if spec.skip_start { Make::Idle } else { Make::Boot });
        let auth_token = spec.auth_token.clone();
        Self { spec: Some(Box::new(spec.clone())), auth_token, ..Self::new(spec.id, ask) }
    }
}

/// Reads the store and brings every sandbox's actor to life.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Failure>")]
pub struct Recover;

/// Asks for a sandbox's record; none when it does not exist here.
#[derive(Debug, Message)]
#[rtype(result = "Result<Option<Box<Record>>, Failure>")]
pub struct Describe(pub SandboxId);

/// Start nothing new from now on; stops and destroys still work.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// A sandbox's actor has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ChildEnded {
    /// The sandbox.
    pub id: SandboxId,
    /// Which of its actors.
    pub incarnation: u64,
    /// True when the sandbox exists no more; false when the actor panicked.
    pub settled: bool,
}
