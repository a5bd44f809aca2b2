//! Sandbox and snapshot rows of the simulated API.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::Timestamp;

/// State of a sandbox, as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the names are the documentation: they are the API's own
pub enum SandboxState {
    Creating,
    Restoring,
    Destroyed,
    Destroying,
    Started,
    Stopped,
    Starting,
    Stopping,
    Error,
    BuildFailed,
    PendingBuild,
    BuildingSnapshot,
    Unknown,
    PullingSnapshot,
    Archived,
    Archiving,
    Resizing,
    Snapshotting,
    Forking,
    Pausing,
    Paused,
    Resuming,
}

impl SandboxState {
    /// Reads the text of the wire.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_value(Value::from(text)).ok()
    }

    /// The desired state that belongs to a state at rest (PROTOCOL.md 4).
    pub fn at_rest(self) -> Option<DesiredState> {
        match self {
            Self::Started => Some(DesiredState::Started),
            Self::Stopped => Some(DesiredState::Stopped),
            Self::Archived => Some(DesiredState::Archived),
            Self::Destroyed => Some(DesiredState::Destroyed),
            Self::Paused => Some(DesiredState::Paused),
            _ => None,
        }
    }

    /// How long the API waits for a sandbox in this state, and the error it then shows (PROTOCOL.md 2.5).
    pub(crate) fn patience(self) -> Option<(Duration, &'static str)> {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        match self {
            Self::Starting => Some((minutes(5), "Timeout while starting sandbox")),
            Self::Restoring => Some((minutes(30), "Timeout while starting sandbox")),
            Self::Creating => Some((minutes(15), "Timeout while creating sandbox")),
            Self::PullingSnapshot => Some((minutes(30), "Timeout while pulling snapshot")),
            _ => None,
        }
    }
}

/// State that the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the names are the documentation: they are the API's own
pub enum DesiredState {
    Destroyed,
    Started,
    Stopped,
    Resized,
    Archived,
    Paused,
}

impl DesiredState {
    /// The resting state that a started or stopped sandbox returns to after resize, snapshot or fork.
    pub(crate) fn resting_state(self) -> Option<SandboxState> {
        match self {
            Self::Started => Some(SandboxState::Started),
            Self::Stopped => Some(SandboxState::Stopped),
            _ => None,
        }
    }
}

/// State of a sandbox's backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the documentation: they are the API's own
pub enum BackupState {
    None,
    Pending,
    InProgress,
    Completed,
    Error,
}

/// A sandbox row.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Id.
    pub id: String,
    /// Name shown to users.
    pub name: String,
    /// Runner that holds it; `None` once destroyed or archived.
    pub runner_id: Option<String>,
    /// Present state.
    pub state: SandboxState,
    /// Wanted state.
    #[serde(rename = "desired")]
    pub desired: DesiredState,
    /// A change is under way.
    pub pending: bool,
    /// Why it is in error.
    pub error_reason: Option<String>,
    /// The error can be recovered from.
    pub recoverable: bool,
    /// State of the backup.
    pub backup_state: BackupState,
    /// Name of the current backup.
    pub backup_snapshot: Option<String>,
    /// Why the backup failed.
    pub backup_error_reason: Option<String>,
    /// Version reported by CREATE, START or FORK.
    pub daemon_version: Option<String>,
    /// Snapshot it was made from.
    pub snapshot: Option<String>,
    /// vCPUs.
    pub cpu: f64,
    /// GiB.
    pub memory: f64,
    /// GiB.
    pub disk: f64,
    /// Environment.
    pub env: Value,
    /// `linux-vm`, `container`, `android` or `windows`.
    pub sandbox_class: String,
    /// Network policy as last set: blockAll, allow list, domain list.
    pub network: Value,
    /// Date of creation.
    pub created_at: Timestamp,
    /// Date of the last change.
    pub updated_at: Timestamp,
    /// Simulated time of the last change of state.
    #[serde(skip)]
    pub(crate) state_since: Duration,
}

impl Sandbox {
    /// A row in the given state that nothing is known of.
    pub(crate) fn new(id: &str, runner_id: &str, state: SandboxState, now: Duration) -> Self {
        let date = Timestamp::now();
        Self {
            id: id.to_owned(),
            name: id.to_owned(),
            runner_id: Some(runner_id.to_owned()),
            state,
            desired: state.at_rest().unwrap_or(DesiredState::Started),
            pending: false,
            error_reason: None,
            recoverable: false,
            backup_state: BackupState::None,
            backup_snapshot: None,
            backup_error_reason: None,
            daemon_version: None,
            snapshot: None,
            cpu: 1.0,
            memory: 1.0,
            disk: 3.0,
            env: json!({}),
            sandbox_class: "linux-vm".to_owned(),
            network: json!({"networkBlockAll": false}),
            created_at: date,
            updated_at: date,
            state_since: now,
        }
    }

    /// Applies the rules that hold after every change of a row: `pending` follows from the states, a sandbox that is gone
    /// has no runner, and some errors are recoverable once a backup exists (PROTOCOL.md 2.6).
    pub(crate) fn settle(&mut self) {
        let at_goal = self.state.at_rest() == Some(self.desired);
        let given_up = matches!(self.state, SandboxState::Error | SandboxState::BuildFailed)
            || self.desired == DesiredState::Archived;
        self.pending = !at_goal && !given_up;
        if matches!(self.state, SandboxState::Destroyed | SandboxState::Archived) {
            self.runner_id = None;
        }
        if self.state == SandboxState::Destroyed {
            self.backup_state = BackupState::None;
        }
        let backed_up = self.backup_state == BackupState::Completed && self.backup_snapshot.is_some();
        if self.state == SandboxState::Error && backed_up && self.restorable_reason() {
            self.recoverable = true;
        }
        self.updated_at = Timestamp::now();
    }

    fn restorable_reason(&self) -> bool {
        let reason = self.error_reason.as_deref().unwrap_or("").to_lowercase();
        ["timeout while creating", "timeout while starting", "timeout while pulling", "job timed out"]
            .iter()
            .any(|text| reason.contains(text))
    }

    /// The state shown by the API, which names the direction of a pending change.
    fn shown_state(&self) -> SandboxState {
        use DesiredState as D;
        use SandboxState as S;
        match (self.state, self.desired) {
            (S::Started, D::Stopped) => S::Stopping,
            (S::Started | S::Stopped, D::Destroyed) => S::Destroying,
            (S::Stopped, D::Started) => S::Starting,
            (S::Stopped, D::Archived) => S::Archiving,
            (S::Unknown, D::Started) => S::Creating,
            (state, _) => state,
        }
    }

    /// The sandbox as `GET /sandbox/for-runner` returns it.
    pub(crate) fn api_json(&self) -> Value {
        let mut json = json!({
            "id": self.id, "organizationId": "sim-organization", "name": self.name, "target": "sim",
            "user": "daytona", "env": self.env, "cpu": self.cpu, "gpu": 0, "memory": self.memory,
            "disk": self.disk, "public": false, "labels": {}, "volumes": [], "state": self.shown_state(),
            "desiredState": self.desired, "recoverable": self.recoverable, "backupState": self.backup_state,
            "autoStopInterval": 15, "autoArchiveInterval": 10080, "autoDeleteInterval": -1,
            "sandboxClass": self.sandbox_class, "createdAt": self.created_at, "updatedAt": self.updated_at,
            "lastActivityAt": self.updated_at, "toolboxProxyUrl": "http://127.0.0.1/toolbox",
        });
        let optional = [
            ("snapshot", &self.snapshot),
            ("errorReason", &self.error_reason),
            ("daemonVersion", &self.daemon_version),
            ("runnerId", &self.runner_id),
        ];
        for (name, value) in optional {
            if let Some(text) = value {
                json[name] = Value::from(text.as_str());
            }
        }
        for name in ["networkBlockAll", "networkAllowList", "domainAllowList"] {
            if let Some(value) = self.network.get(name) {
                json[name] = value.clone();
            }
        }
        json
    }
}

/// A snapshot with its row for one runner, merged into one record.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Ref.
    pub reference: String,
    /// Name, which is the ref unless a sandbox was snapshotted.
    pub name: String,
    /// `pulling`, `building`, `active` or `error`.
    pub state: &'static str,
    /// `pulling_snapshot`, `building_snapshot`, `ready`, `removing` or `error`; `None` when the runner's row is deleted.
    pub runner_state: Option<&'static str>,
    /// Why it is in error.
    pub error_reason: Option<String>,
    /// Reported size in GiB.
    pub size_gb: Option<f64>,
    /// Reported hash.
    pub hash: Option<String>,
}
