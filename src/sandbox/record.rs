//! What is stored of a sandbox: enough to find, judge and tear down everything of it after a restart.

use serde::{Deserialize, Serialize};

use super::machine::{Machine, Op, Rest, Stage};
use crate::disk::SandboxDisks;
use crate::hypervisor::Known;
use crate::ids::SandboxId;
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
    /// The VMM runs.
    Started,
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
            Op::Create { start: true } | Op::Start if stage == Stage::Commit => Phase::Started,
            Op::Create { start: false } if stage == Stage::Commit => Phase::Stopped,
            Op::Create { .. } => Phase::Creating,
            Op::Start => Phase::Starting,
            Op::Stop { .. } | Op::UndoStart | Op::Clear => Phase::Stopping,
            Op::Destroy | Op::UndoCreate => Phase::Destroying,
        }
    }

    /// The phase of a rest; `None` when there is nothing to store.
    pub fn at(rest: Rest) -> Option<Self> {
        match rest {
            Rest::Absent => None,
            Rest::Stopped => Some(Phase::Stopped),
            Rest::Started => Some(Phase::Started),
            Rest::Broken => Some(Phase::Broken),
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
    /// Rises with every start: connections of an old run never meet a new one.
    pub run: u64,
    /// Version that the guest's toolbox told at the last start.
    pub daemon_version: Option<String>,
    /// Why it is not running although nobody stopped it, or why it is broken.
    pub error: Option<String>,
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
            run: 0,
            daemon_version: None,
            error: None,
            created_at: now,
            since: now,
        }
    }
}
