//! What readers see. Views are published by each sandbox's actor and read without asking it: a read
//! never queues behind a command.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;
use utoipa::ToSchema;

use super::record::{Phase, Size};
use crate::ids::SandboxId;

/// The state's name on the wire (PROTOCOL.md 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WireState {
    /// Being made.
    Creating,
    /// Being started.
    Starting,
    /// Running.
    Started,
    /// Being stopped.
    Stopping,
    /// At rest.
    Stopped,
    /// Being removed.
    Destroying,
    /// Not there.
    Destroyed,
    /// A tear-down failed.
    Error,
    /// The host could not be asked.
    Unknown,
}

impl From<Phase> for WireState {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Creating => Self::Creating,
            Phase::Starting => Self::Starting,
            Phase::Started => Self::Started,
            Phase::Stopping => Self::Stopping,
            Phase::Stopped => Self::Stopped,
            Phase::Destroying => Self::Destroying,
            Phase::Broken => Self::Error,
        }
    }
}

/// How long one stage of the last create or start took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct StageTime {
    /// Name of the stage, in lower case.
    pub stage: String,
    /// Microseconds.
    pub micros: u64,
}

/// One sandbox as readers see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct View {
    /// The sandbox.
    pub id: SandboxId,
    /// Its state.
    pub state: WireState,
    /// False while an operation is under way: state sync leaves such a sandbox alone.
    pub settled: bool,
    /// Its resources.
    pub size: Size,
    /// Version of the guest's toolbox at the last start.
    pub daemon_version: Option<String>,
    /// Why it stands as it does, when nobody asked for it.
    pub error: Option<String>,
    /// Its address on the bridge, while it has a network.
    pub address: Option<Ipv4Addr>,
    /// Its namespace, while it has a network.
    pub netns: Option<String>,
    /// The VMM's pid, while it runs.
    pub pid: Option<i32>,
    /// Milliseconds since 1970.
    pub created_at: u64,
    /// Milliseconds since 1970.
    pub since: u64,
    /// Stages of the last create or start.
    pub timings: Vec<StageTime>,
}

impl View {
    /// A sandbox of which nothing is known but that there is a record.
    pub fn unreadable(id: SandboxId, reason: String) -> Self {
        Self {
            id,
            state: WireState::Unknown,
            settled: true,
            size: Size { vcpus: 0, memory: 0, disk: 0 },
            daemon_version: None,
            error: Some(reason),
            address: None,
            netns: None,
            pid: None,
            created_at: 0,
            since: 0,
            timings: Vec::new(),
        }
    }
}

/// All views; cheap to clone, shared with the HTTP workers.
#[derive(Debug, Clone, Default)]
pub struct Views(Arc<RwLock<BTreeMap<SandboxId, Arc<View>>>>);

impl Views {
    /// Publishes or replaces a view.
    pub fn publish(&self, view: View) {
        let mut views = self.0.write().unwrap_or_else(PoisonError::into_inner);
        views.insert(view.id.clone(), Arc::new(view));
    }

    /// Removes the view of a sandbox that exists no more.
    pub fn forget(&self, id: &SandboxId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// One view.
    pub fn get(&self, id: &SandboxId) -> Option<Arc<View>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// All views, ordered by id.
    pub fn list(&self) -> Vec<Arc<View>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Sums for the healthcheck (PROTOCOL.md 3): CPU and memory count running sandboxes, disk all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// vCPUs of running sandboxes.
    pub vcpus: u64,
    /// Memory of running sandboxes in bytes.
    pub memory: u64,
    /// Disk of all sandboxes in bytes.
    pub disk: u64,
    /// Running sandboxes.
    pub started: u64,
}

impl Views {
    /// Sums over all sandboxes.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for view in self.list() {
            totals.disk += view.size.disk;
            if view.state == WireState::Started {
                totals.started += 1;
                totals.vcpus += u64::from(view.size.vcpus);
                totals.memory += view.size.memory;
            }
        }
        totals
    }
}
