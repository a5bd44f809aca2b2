//! What the ledger asks, and is asked.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use actix::Message;
use tokio::sync::oneshot;

use crate::error::Failure;
use crate::ids::SandboxId;
use crate::ledger::{Audit, Difference, Inventory, Kind, Stock};

/// Asks for all sandboxes as they stand now.
#[derive(Debug, Message)]
#[rtype(result = "Result<Inventory, Failure>")]
pub struct TakeStock {
    /// Ask the VMMs of those at rest for the state of their VMs, too.
    pub ask_vmms: bool,
}

/// Asks one sandbox's actor the same.
#[derive(Debug, Message)]
#[rtype(result = "Box<Stock>")]
pub struct GetStock {
    /// Ask the VMM for the state of the VM, too.
    pub ask_vmm: bool,
}

/// As long as it lives, nothing begins for a sandbox, and none of that id is made.
pub struct Hold {
    /// The sandbox as it is held; none: there is none of that id.
    pub stock: Option<Box<Stock>>,
    /// Dropped with this value, which ends the hold.
    pub(crate) _until: oneshot::Sender<()>,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("stock", &self.stock).finish_non_exhaustive()
    }
}

/// Asks the supervisor for a hold; none while the sandbox is busy or nothing is known about it.
#[derive(Debug, Message)]
#[rtype(result = "Result<Option<Hold>, Failure>")]
pub struct HoldSandbox(pub SandboxId);

/// Asks a sandbox's actor for a hold; none while it is busy.
#[derive(Debug, Message)]
#[rtype(result = "Option<Hold>")]
pub struct HoldStill;

/// Lets a sandbox's VM run on, if its VMM says that it is paused while the sandbox is at rest as started. False: it is
/// not so, or something is under way.
#[derive(Debug, Message)]
#[rtype(result = "Result<bool, Failure>")]
pub struct ResumeStray(pub SandboxId);

/// The same, to the sandbox's actor.
#[derive(Debug, Message)]
#[rtype(result = "Result<bool, Failure>")]
pub struct ResumeIfPaused;

/// Compares the host with what should be, now.
#[derive(Debug, Message)]
#[rtype(result = "Result<Arc<Audit>, Failure>")]
pub struct RunLedger;

/// Repairs what a run finds now.
#[derive(Debug, Message)]
#[rtype(result = "Result<Repairs, Failure>")]
pub struct Repair {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Kinds to repair; none: what is harmless, of all kinds.
    pub kinds: Option<BTreeSet<Kind>>,
}

/// What became of one difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It would be repaired.
    Would,
    /// It was repaired.
    Done,
    /// Nothing was done, for this reason.
    Skipped(String),
    /// It could not be repaired, for this reason.
    Failed(String),
}

/// What a repair has done, or would do.
#[derive(Debug)]
pub struct Repairs {
    /// The run that it began with.
    pub audit: Arc<Audit>,
    /// Each difference, in the order of the work.
    pub outcomes: Vec<(Difference, Outcome)>,
}
