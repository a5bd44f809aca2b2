//! The simulator's memory and the one lock around it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::auth::FailedLogins;
use crate::clock::{Clock, Timestamp};
use crate::faults::FaultPlan;
use crate::job::Job;
use crate::options::{Dialect, Options};
use crate::runner::Runner;
use crate::sandbox::{Sandbox, SandboxState, Snapshot};

/// A received healthcheck.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Healthcheck {
    /// When it came.
    pub at: Timestamp,
    /// Its body.
    pub body: Value,
    /// Status of the answer.
    pub http_status: u16,
    /// Kind of the fault that hit it.
    pub fault: Option<&'static str>,
}

/// A received `POST /jobs/{id}/status`, also when it was refused or hit by a fault.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// When it came.
    pub at: Timestamp,
    /// Job of the path.
    pub job_id: String,
    /// Its body; `null` when it was not JSON.
    pub body: Value,
    /// Status of the answer; 0 when there was none because the request was not processed.
    pub http_status: u16,
    /// Kind of the fault that hit it.
    pub fault: Option<&'static str>,
}

/// A received `PUT /sandbox/{id}/state`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatePut {
    /// When it came.
    pub at: Timestamp,
    /// Sandbox of the path.
    pub sandbox_id: String,
    /// Its body; `null` when it was not JSON.
    pub body: Value,
    /// Status of the answer; 0 when there was none.
    pub http_status: u16,
    /// Kind of the fault that hit it.
    pub fault: Option<&'static str>,
}

/// A readable line about a change.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Counts up from 1.
    pub seq: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub text: String,
}

/// Latency of a job's way into a poll answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimLatency {
    /// Job.
    pub job_id: String,
    /// Submission to claim, in microseconds.
    pub claimed_us: u64,
    /// Submission to the written poll answer, in microseconds.
    pub answered_us: u64,
}

const MAX_EVENTS: usize = 10_000;

/// Everything that changes. Jobs are never removed, so an index into `jobs` stays valid.
#[derive(Debug)]
pub(crate) struct State {
    pub dialect: Dialect,
    pub jobs: Vec<Job>,
    pub job_index: HashMap<String, usize>,
    pub pending: BTreeSet<usize>,
    pub unfinished: BTreeSet<usize>,
    pub redeliver: VecDeque<usize>,
    pub sandboxes: BTreeMap<String, Sandbox>,
    pub snapshots: BTreeMap<String, Snapshot>,
    pub runners: Vec<Runner>,
    pub healthchecks: Vec<Healthcheck>,
    pub reports: Vec<Report>,
    pub state_puts: Vec<StatePut>,
    pub latencies: Vec<ClaimLatency>,
    pub events: VecDeque<Event>,
    pub next_event: u64,
    pub open_polls: usize,
    pub most_open_polls: usize,
    pub faults: FaultPlan,
    pub logins: FailedLogins,
    pub service_start: Duration,
    pub next_sweep: Duration,
    pub next_check: Duration,
}

impl State {
    fn new(options: &Options) -> Self {
        Self {
            dialect: options.dialect,
            jobs: Vec::new(),
            job_index: HashMap::new(),
            pending: BTreeSet::new(),
            unfinished: BTreeSet::new(),
            redeliver: VecDeque::new(),
            sandboxes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            runners: options.runners.iter().map(Runner::new).collect(),
            healthchecks: Vec::new(),
            reports: Vec::new(),
            state_puts: Vec::new(),
            latencies: Vec::new(),
            events: VecDeque::new(),
            next_event: 1,
            open_polls: 0,
            most_open_polls: 0,
            faults: FaultPlan::default(),
            logins: FailedLogins::default(),
            service_start: Duration::ZERO,
            next_sweep: crate::sweep::SWEEP_EVERY,
            next_check: crate::sweep::CHECK_EVERY,
        }
    }

    /// Records a readable line.
    pub fn event(&mut self, text: String) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { seq: self.next_event, at: Timestamp::now(), text });
        self.next_event += 1;
    }

    /// The job with this id.
    pub fn job(&self, id: &str) -> Option<&Job> {
        self.job_index.get(id).map(|&index| &self.jobs[index])
    }

    /// Changes a sandbox row and applies the invariants; records the change of state. Unknown ids are ignored.
    pub fn update_sandbox(&mut self, id: &str, now: Duration, change: impl FnOnce(&mut Sandbox)) {
        let Some(sandbox) = self.sandboxes.get_mut(id) else {
            return;
        };
        let before = (sandbox.state, sandbox.desired);
        change(sandbox);
        sandbox.settle();
        if sandbox.state != before.0 {
            sandbox.state_since = now;
        }
        if (sandbox.state, sandbox.desired) != before {
            let text = describe(sandbox);
            self.event(text);
        }
    }
}

/// A line about a sandbox's state.
pub(crate) fn describe(sandbox: &Sandbox) -> String {
    let mut text = format!("sandbox {} is {} (wanted: {})", sandbox.id, word(&sandbox.state), word(&sandbox.desired));
    if let (SandboxState::Error, Some(reason)) = (sandbox.state, &sandbox.error_reason) {
        text.push_str(": ");
        text.push_str(reason);
    }
    text
}

/// The wire text of an enum value.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

/// The state with its lock, its clock and its two ways of telling about a change.
#[derive(Debug)]
pub(crate) struct Core {
    pub options: Options,
    pub clock: Clock,
    pub started_at: Timestamp,
    state: Mutex<State>,
    condvar: Condvar,
    changed: watch::Sender<u64>,
}

impl Core {
    pub fn new(mut options: Options) -> Self {
        if options.runners.is_empty() {
            options.runners = Options::default().runners;
        }
        Self {
            clock: Clock::new(options.clock_speed),
            started_at: Timestamp::now(),
            state: Mutex::new(State::new(&options)),
            condvar: Condvar::new(),
            changed: watch::channel(0).0,
            options,
        }
    }

    /// The state, without telling anybody about changes made to it.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes everybody who waits for a change.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.condvar.notify_all();
        self.changed.send_modify(|count| *count += 1);
        result
    }

    /// A receiver that is woken by every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Blocks until `probe` finds something, at most `timeout`.
    pub fn wait<T>(&self, timeout: Duration, mut probe: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(found) = probe(&state) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self.condvar.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
