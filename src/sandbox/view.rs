//! What readers see. Views are published by each sandbox's actor and read without asking it: a read
//! never queues behind a command.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde::Serialize;
use utoipa::ToSchema;

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::record::{Begin, LastExit, Origin, Phase, Size};
use crate::fork::Report;
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
    /// Paused: in memory, and not running.
    Paused,
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
            Phase::Starting | Phase::Waking => Self::Starting,
            // To be copied is no state of its own: the guest runs on.
            Phase::Started | Phase::Pausing | Phase::Capturing | Phase::Replacing => Self::Started,
            Phase::Paused => Self::Paused,
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

/// How the present run of a sandbox began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Begun {
    /// `memory`: the guest went on from a memory that was frozen; `boot` otherwise.
    pub from: &'static str,
    /// Why it booted although there was a memory to go on from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// For a copied guest: `confirmed`, or why it has not confirmed an identity of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Bytes of guest memory that were seen to be mapped from the frozen file right after the restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapped_bytes: Option<u64>,
    /// What the copy cost its source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy: Option<Report>,
}

impl From<&View> for Begun {
    fn from(view: &View) -> Self {
        let begin = view.begin.clone();
        Self {
            from: if begin.warm { "memory" } else { "boot" },
            note: begin.note,
            identity: begin.identity.map(|identity| match identity {
                Ok(()) => "confirmed".to_owned(),
                Err(why) => format!("not confirmed: {why}"),
            }),
            mapped_bytes: begin.mapped,
            copy: begin.copy,
        }
    }
}

/// A start that is owed after an unasked end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Restart {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// So many unasked ends lie behind it.
    pub ends: usize,
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
    /// Resources of the running VM; they differ from [`View::size`] where a resize waits for the next boot.
    pub running: Option<Size>,
    /// Where it came from, if not from a base.
    pub origin: Option<Origin>,
    /// How its present run began.
    pub begin: Begin,
    /// Its memory is on disk, and the next start goes on from it.
    pub checkpoint: bool,
    /// How long the last copy of it has paused it, in microseconds.
    pub last_pause: Option<u64>,
    /// Frozen images between its disk and the base.
    pub disk_layers: usize,
    /// How its last run ended, if nobody had asked for that.
    pub last_exit: Option<LastExit>,
    /// It is started by itself then.
    pub restart: Option<Restart>,
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
            running: None,
            origin: None,
            begin: Begin::default(),
            checkpoint: false,
            last_pause: None,
            disk_layers: 0,
            last_exit: None,
            restart: None,
        }
    }
}

/// All views; cheap to clone, shared with the HTTP workers.
#[derive(Debug, Clone, Default)]
pub struct Views {
    views: Arc<RwLock<BTreeMap<SandboxId, Arc<View>>>>,
    news: Arc<News>,
    published: Arc<Notify>,
}

/// Sandboxes that have changed unasked and of which the control plane has not been told.
#[derive(Debug, Default)]
struct News {
    /// The sandboxes, each with the number of its change.
    changes: Mutex<(BTreeMap<SandboxId, u64>, u64)>,
    changed: Notify,
}

impl Views {
    /// Publishes or replaces a view.
    pub fn publish(&self, view: View) {
        let news = view.settled && self.news().0.contains_key(&view.id);
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        views.insert(view.id.clone(), Arc::new(view));
        drop(views);
        self.published.notify_waiters();
        if news {
            self.news.changed.notify_one();
        }
    }

    fn news(&self) -> MutexGuard<'_, (BTreeMap<SandboxId, u64>, u64)> {
        self.news.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the sandbox has changed, or is about to, and nobody had asked for it.
    pub fn tell(&self, id: &SandboxId) {
        let mut news = self.news();
        news.1 += 1;
        let number = news.1;
        news.0.insert(id.clone(), number);
        drop(news);
        self.news.changed.notify_one();
    }

    /// Somebody has asked for something: whoever asked will be told.
    pub fn keep_quiet(&self, id: &SandboxId) {
        self.news().0.remove(id);
    }

    /// What is to be told, with the number of the change.
    pub fn untold(&self) -> Vec<(SandboxId, u64)> {
        self.news().0.iter().map(|(id, number)| (id.clone(), *number)).collect()
    }

    /// That change was told, or cannot be.
    pub fn told(&self, id: &SandboxId, number: u64) {
        let mut news = self.news();
        if news.0.get(id) == Some(&number) {
            news.0.remove(id);
        }
    }

    /// Resolves when there may be something new to tell since it resolved last.
    pub async fn changed(&self) {
        self.news.changed.notified().await;
    }

    /// Removes the view of a sandbox that exists no more.
    pub fn forget(&self, id: &SandboxId) {
        self.views.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.published.notify_waiters();
    }

    /// Resolves when a view has been published or removed since this was called.
    pub fn change(&self) -> OwnedNotified {
        self.published.clone().notified_owned()
    }

    /// One view.
    pub fn get(&self, id: &SandboxId) -> Option<Arc<View>> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// All views, ordered by id.
    pub fn list(&self) -> Vec<Arc<View>> {
        self.views.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
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
            // A paused sandbox still has its memory.
            if matches!(view.state, WireState::Started | WireState::Paused) {
                totals.started += u64::from(view.state == WireState::Started);
                totals.vcpus += u64::from(view.size.vcpus);
                totals.memory += view.size.memory;
            }
        }
        totals
    }
}
