//! Where those who wait for a frozen point in time meet the one who makes it.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::Capture;
use crate::error::{ErrorCode, Failure};
use crate::ids::SandboxId;

/// What is wanted of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Memory and disk; refused when it has no memory.
    Memory,
    /// The disk alone.
    Disk,
    /// The disk, and the memory if there is one.
    Any,
}

type Outcome = Option<Result<Arc<Capture>, Failure>>;

/// One capture that others wait for.
#[derive(Clone)]
pub struct Ticket {
    want: Want,
    outcome: Arc<watch::Sender<Outcome>>,
    armed: mpsc::UnboundedSender<SandboxId>,
}

impl Ticket {
    /// A ticket, and the news of those who are ready for it.
    pub fn new(want: Want) -> (Self, mpsc::UnboundedReceiver<SandboxId>) {
        let (armed, ready) = mpsc::unbounded_channel();
        (Self { want, outcome: Arc::new(watch::Sender::new(None)), armed }, ready)
    }

    /// A ticket for what is there already.
    pub fn of(capture: Capture) -> Self {
        let (ticket, _) = Self::new(Want::Any);
        ticket.settle(Ok(Arc::new(capture)));
        ticket
    }

    /// What is wanted.
    pub fn want(&self) -> Want {
        self.want
    }

    /// Says that this sandbox has made all that can be ready before.
    pub fn arm(&self, sandbox: &SandboxId) {
        // Nobody listens where the capture was there before.
        let _ = self.armed.send(sandbox.clone());
    }

    /// Tells everybody how it went; the first word counts.
    pub fn settle(&self, outcome: Result<Arc<Capture>, Failure>) {
        self.outcome.send_if_modified(|present| {
            let first = present.is_none();
            if first {
                *present = Some(outcome);
            }
            first
        });
    }

    /// The capture, if it is there.
    pub fn capture(&self) -> Option<Arc<Capture>> {
        self.outcome.borrow().clone().and_then(Result::ok)
    }

    /// Waits for it.
    pub async fn captured(&self) -> Result<Arc<Capture>, Failure> {
        let mut outcome = self.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            Ok(Some(outcome)) => outcome,
            // Cannot be: this ticket holds the sender.
            _ => Err(Failure::new(ErrorCode::Interrupted, "the copy of the source was given up")),
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("want", &self.want).field("settled", &self.outcome.borrow().is_some()).finish()
    }
}
