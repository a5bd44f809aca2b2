//! The leak ledger: what should be on this host is compared with what is. Decides without doing: surveys come from the
//! ports, the state of the sandboxes from their actors, and what to do about a difference is only said here.
//! [`crate::actors::ledger`] looks, and repairs when it is told to.
//!
//! Surveys and records are never of one instant, so three things keep work under way from being taken for a leak: a
//! sandbox that is busy, unknown, or not the same before and after the surveys is left out ([`Expected::between`]);
//! work that belongs to no sandbox is known to the port that does it; and only what two looks in a row have seen
//! counts ([`confirm`]).

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::hypervisor::ProcessIdentity;
use crate::ids::{NetnsName, SandboxId};

mod audit;
mod compare;
mod expected;
mod handle;

pub use audit::{Audit, Blind, Cache, Counts, Tally, confirm};
pub use compare::{Observed, compare};
pub use expected::{Alive, Expected, Inventory, Sandbox, Standing, Stock, VmAnswer};
pub use handle::Ledger;

/// What kind of thing a difference is about. Also the order of repairs: a namespace goes away only when no process is
/// left in it, and a directory when no process has its disk open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A VMM process.
    Vmm,
    /// The state of a VM.
    State,
    /// An API socket.
    Socket,
    /// The lock file beside an API socket.
    Lock,
    /// A named network namespace.
    Namespace,
    /// A name below /run/netns as a mount.
    Mount,
    /// A link of the host: its end of a veth, or the bridge.
    Link,
    /// A TAP inside a namespace.
    Tap,
    /// Packet filter rules, of the host or inside a namespace.
    Rules,
    /// The way of requests into a guest.
    Route,
    /// A sandbox's directory.
    Directory,
    /// A root disk or seed.
    Disk,
    /// The memory file of a running VM.
    Memory,
    /// A checkpoint.
    Checkpoint,
    /// A file that is not complete.
    Unfinished,
    /// A directory of a capture.
    Capture,
    /// A frozen disk image.
    Layer,
    /// A snapshot under its temporary name.
    Snapshot,
}

impl Kind {
    /// All kinds, in the order of repairs.
    pub const ALL: [Self; 18] = [
        Self::Vmm,
        Self::State,
        Self::Socket,
        Self::Lock,
        Self::Namespace,
        Self::Mount,
        Self::Link,
        Self::Tap,
        Self::Rules,
        Self::Route,
        Self::Directory,
        Self::Disk,
        Self::Memory,
        Self::Checkpoint,
        Self::Unfinished,
        Self::Capture,
        Self::Layer,
        Self::Snapshot,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::State => "state",
            Self::Socket => "socket",
            Self::Lock => "lock",
            Self::Namespace => "namespace",
            Self::Mount => "mount",
            Self::Link => "link",
            Self::Tap => "tap",
            Self::Rules => "rules",
            Self::Route => "route",
            Self::Directory => "directory",
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Checkpoint => "checkpoint",
            Self::Unfinished => "unfinished",
            Self::Capture => "capture",
            Self::Layer => "layer",
            Self::Snapshot => "snapshot",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which way the host differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// It is there, and should not be.
    Leaked,
    /// It should be there, and is not.
    Missing,
    /// It is there, and not as it should be.
    Wrong,
}

/// What repair would do about a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "camelCase")]
pub enum Remedy {
    /// End this process.
    EndProcess {
        /// Who it is.
        #[schema(value_type = Object)]
        process: ProcessIdentity,
        /// The socket that it was started for.
        #[schema(value_type = String)]
        socket: PathBuf,
    },
    /// Remove a socket that nobody serves, with its lock file.
    RemoveSocket {
        /// The socket.
        #[schema(value_type = String)]
        socket: PathBuf,
    },
    /// Remove a namespace.
    RemoveNamespace {
        /// Its name below /run/netns.
        #[schema(value_type = String)]
        name: NetnsName,
    },
    /// Remove a link of the host.
    RemoveLink {
        /// Its name.
        name: String,
    },
    /// Remove a file, or a directory with all in it.
    RemoveFiles {
        /// The file or directory.
        #[schema(value_type = String)]
        path: PathBuf,
    },
    /// Let a paused VM run on.
    Resume,
    /// Make the host's rules again.
    PrepareHost,
    /// Nothing: it is the operator's to decide.
    None {
        /// What to do.
        advice: String,
    },
}

impl Remedy {
    fn advice(advice: impl Into<String>) -> Self {
        Self::None { advice: advice.into() }
    }

    /// Whether repair does anything.
    pub fn is_some(&self) -> bool {
        !matches!(self, Self::None { .. })
    }
}

/// One thing in which the host is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// What kind of thing it is about.
    pub kind: Kind,
    /// Which way it differs.
    pub what: What,
    /// The thing: a name, a path, or a pid with its start time.
    pub object: String,
    /// The sandbox that it belongs to, or belonged to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub sandbox: Option<SandboxId>,
    /// How that is known.
    pub why: String,
    /// What repair would do.
    pub remedy: Remedy,
    /// Whether nobody can lose anything by the repair. Processes and files that may hold somebody's work are only
    /// touched when their kind was named.
    pub harmless: bool,
}

/// What makes two differences the same one.
pub type Key<'a> = (Kind, What, &'a str, Option<&'a SandboxId>);

impl Difference {
    /// What tells it from all others.
    pub fn key(&self) -> Key<'_> {
        (self.kind, self.what, &self.object, self.sandbox.as_ref())
    }
}

/// Whether the ledger repairs by itself (`RUNNER_LEDGER_REPAIR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RepairSetting {
    /// Only when it is told to.
    #[default]
    Off,
    /// What is harmless, after each look.
    Auto,
}

#[cfg(test)]
mod tests;
