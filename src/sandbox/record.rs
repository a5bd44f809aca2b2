//! What is stored of a sandbox: enough to find, judge and tear down everything of it after a restart.

use serde::{Deserialize, Serialize};

use utoipa::ToSchema;

use super::machine::Machine;
use super::op::{Make, Op, Rest, Stage, StopMode};
use super::restart::Restarts;
use crate::disk::{SandboxDisks, Stamp};
use crate::fork::Report;
use crate::hypervisor::snapshot::RestoreMode;
use crate::hypervisor::wire::MemoryLayout;
use crate::hypervisor::{Known, Version};
use crate::ids::{SandboxId, SnapshotRef};
use crate::jobs::payload::CreateSpec;
use crate::net::Slot;

/// Resources of a sandbox after defaults were applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Virtual size of the root disk in bytes.
    pub disk: u64,
}

/// The intent or state that was last stored. A phase is stored *before* the effects it announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Being made; whatever exists is to be removed.
    Creating,
    /// At rest with a disk, without VMM.
    Stopped,
    /// Being started; the VMM is to be ended.
    Starting,
    /// A restored VM is about to run: its checkpoint counts as used from here on.
    Waking,
    /// The VMM runs.
    Started,
    /// The VM is being paused on request.
    Pausing,
    /// The VM is paused on request.
    Paused,
    /// The VM is paused for a moment, to be copied; it is to run on.
    Capturing,
    /// The VMM is to be ended, and a new one is to go on from the checkpoint.
    Replacing,
    /// The VMM is to be ended, the disk kept.
    Stopping,
    /// Everything is to be removed.
    Destroying,
    /// A tear-down failed.
    Broken,
}

impl Phase {
    /// The phase to store before `stage` of `op`.
    pub fn during(op: Op, stage: Stage) -> Self {
        match op {
            Op::Create(Make::Idle) if stage == Stage::Commit => Phase::Stopped,
            Op::Create(_) | Op::Start { .. } | Op::Rescue { .. } | Op::Awake if stage == Stage::Commit => {
                Phase::Started
            }
            Op::Recall if stage == Stage::Commit => Phase::Paused,
            Op::Create(_) | Op::Rescue { create: true } => Phase::Creating,
            Op::Start { warm: true } | Op::Awake if matches!(stage, Stage::Wake | Stage::Ready) => Phase::Waking,
            Op::Start { .. } | Op::Recall | Op::Rescue { .. } | Op::Awake => Phase::Starting,
            Op::Pause => Phase::Pausing,
            Op::Resume => Phase::Waking,
            Op::Capture(Rest::Started) => Phase::Capturing,
            Op::Stop(StopMode::Checkpoint) | Op::Replace(_) if stage == Stage::Suspend => Phase::Capturing,
            Op::Replace(rest) if stage == Stage::Commit => Self::at(rest).unwrap_or(Phase::Started),
            Op::Replace(_) if stage == Stage::Wake => Phase::Waking,
            Op::Replace(_) => Phase::Replacing,
            Op::Capture(rest) | Op::Resize(rest) => Self::at(rest).unwrap_or(Phase::Stopped),
            Op::Stop(_) | Op::UndoStart | Op::Clear => Phase::Stopping,
            Op::Destroy | Op::UndoCreate => Phase::Destroying,
        }
    }

    /// The phase of a rest; `None` when there is nothing to store.
    pub fn at(rest: Rest) -> Option<Self> {
        match rest {
            Rest::Absent => None,
            Rest::Stopped => Some(Phase::Stopped),
            Rest::Started => Some(Phase::Started),
            Rest::Paused => Some(Phase::Paused),
            // Never stored: what cannot be looked at keeps the phase that it had.
            Rest::Broken | Rest::Unknown => Some(Phase::Broken),
        }
    }

    /// The phase that the machine is in now; `None` when nothing of the sandbox exists.
    pub fn of(machine: &Machine) -> Option<Self> {
        match (machine.work(), machine.rest()) {
            (Some((op, stage)), _) => Some(Self::during(op, stage)),
            (None, Some(rest)) => Self::at(rest),
            (None, None) => None,
        }
    }
}

/// A VM's memory and device state on disk, with the disk that it belongs to. Used at most once: what is stored of it is
/// removed before the VM runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The VMM that wrote it; another version does not read it (cloud-hypervisor.md 10).
    pub version: Version,
    /// The disk as its VMM left it: memory never meets a newer one. None until that VMM has ended.
    pub stamp: Option<Stamp>,
    /// The boot id of the host that it was made on, if it was not brought to disk.
    #[serde(default)]
    pub boot: Option<String>,
    /// The resources of that VM.
    pub size: Size,
    /// How the memory is brought back.
    pub mode: RestoreMode,
    /// When it was taken, in milliseconds since 1970.
    pub taken_at: u64,
}

/// Where a sandbox came from, if not from a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Origin {
    /// A copy of another sandbox.
    Sandbox {
        /// That sandbox.
        id: SandboxId,
    },
    /// A snapshot with memory, or its disk.
    Snapshot {
        /// The snapshot.
        reference: SnapshotRef,
    },
}

/// How the present run of a sandbox began, and what was found out about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The guest went on from a memory that was frozen; false: it booted.
    pub warm: bool,
    /// Why it booted although there was a memory to go on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Whether a copied guest has confirmed its new identity; none where it needs none or was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Result<(), String>>,
    /// Bytes of guest memory that were seen to be shared with the frozen file right after the restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped: Option<u64>,
    /// What the copy cost its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<Report>,
}

/// How a run ended that nobody had asked to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastExit {
    /// In one word: `guest_power_off`, `guest_panic`, `out_of_memory`, `host_rebooted`, `orderly`, `signal`, `failed` or
    /// `unknown`.
    pub cause: String,
    /// When it was noticed, in milliseconds since 1970.
    pub at: u64,
    /// In a sentence.
    pub detail: String,
}

/// The stored record of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The sandbox.
    pub id: SandboxId,
    /// What was asked for.
    pub spec: CreateSpec,
    /// Its resources.
    pub size: Size,
    /// The stored intent or state.
    pub phase: Phase,
    /// The network slot, from before the network is made until it is surely gone.
    pub slot: Option<Slot>,
    /// The disks, once they are complete.
    pub disks: Option<SandboxDisks>,
    /// The VMM, once its process runs.
    pub vmm: Option<Known>,
    /// What the memory of the VMM's VM is made of; none before a VM was first made.
    pub layout: Option<MemoryLayout>,
    /// Virtual CPUs and memory of the running VM, where a resize waits for the next boot.
    pub running: Option<Size>,
    /// The guest's MAC, where it is not the sandbox's own: a copied guest has that of its source.
    pub mac: Option<[u8; 6]>,
    /// The memory that the next start goes on from.
    pub checkpoint: Option<Checkpoint>,
    /// Where it came from.
    pub origin: Option<Origin>,
    /// How the present run began.
    pub begin: Begin,
    /// Rises with every start: connections of an old run never meet a new one.
    pub run: u64,
    /// Version that the guest's toolbox told at the last start.
    pub daemon_version: Option<String>,
    /// Why it is not running although nobody stopped it, or why it is broken.
    pub error: Option<String>,
    /// How its last run ended, if nobody had asked for that.
    #[serde(default)]
    pub last_exit: Option<LastExit>,
    /// Its unasked ends, and what is owed after the last one.
    #[serde(default)]
    pub restarts: Restarts,
    /// When it was asked for, in milliseconds since 1970.
    pub created_at: u64,
    /// When the phase last changed, in milliseconds since 1970.
    pub since: u64,
}

impl Record {
    /// The record of a sandbox that is about to be made.
    pub fn new(spec: CreateSpec, size: Size, now: u64) -> Self {
        Self {
            id: spec.id.clone(),
            spec,
            size,
            phase: Phase::Creating,
            slot: None,
            disks: None,
            vmm: None,
            layout: None,
            running: None,
            mac: None,
            checkpoint: None,
            origin: None,
            begin: Begin::default(),
            run: 0,
            daemon_version: None,
            error: None,
            last_exit: None,
            restarts: Restarts::default(),
            created_at: now,
            since: now,
        }
    }

    /// The guest's MAC.
    pub fn guest_mac(&self) -> [u8; 6] {
        self.mac.unwrap_or_else(|| crate::net::addresses::guest_mac(&self.id))
    }
}
