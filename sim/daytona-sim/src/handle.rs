//! The handle of a running simulator: what tests call. Every method blocks at most for the time it is given.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::faults::{Down, DownMode, Fault, FaultPlan};
use crate::job::{Job, ResourceType, job_type};
use crate::options::Dialect;
use crate::payload::{self, CreateSpec, Payload};
use crate::runner::{Runner, RunnerState};
use crate::sandbox::{Sandbox, SandboxState, Snapshot};
use crate::server::{Control, Shared};
use crate::state::{ClaimLatency, Event, Healthcheck, Report, State, StatePut};
use crate::submit::{self, JobRequest};

/// A running simulator; dropping it stops the server.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>, thread: JoinHandle<()>) -> Self {
        Self { shared, thread: Mutex::new(Some(thread)) }
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.shared.core.lock())
    }

    /// Base URL for a runner, with `/api` and without a trailing slash.
    pub fn base_url(&self) -> String {
        format!("http://{}/api", self.shared.address)
    }

    /// Base URL of the admin interface's server, without `/sim`.
    pub fn sim_url(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// Address of the listener.
    pub fn address(&self) -> std::net::SocketAddr {
        self.shared.address
    }

    /// Dialect of the options.
    pub fn dialect(&self) -> Dialect {
        self.shared.core.options.dialect
    }

    /// Makes a job for the first runner; returns its id.
    pub fn submit(
        &self,
        job_type: &str,
        resource_type: ResourceType,
        resource_id: &str,
        payload: impl Into<Payload>,
    ) -> Result<String, submit::Error> {
        self.submit_request(JobRequest {
            job_type: job_type.to_owned(),
            resource_type,
            resource_id: resource_id.to_owned(),
            payload: payload.into(),
            trace_context: None,
            runner_id: None,
        })
    }

    /// Makes a job; returns its id.
    pub fn submit_request(&self, request: JobRequest) -> Result<String, submit::Error> {
        self.shared.core.submit(request)
    }

    /// Orders a sandbox.
    pub fn create_sandbox(&self, spec: &CreateSpec) -> Result<String, submit::Error> {
        let payload = spec.payload(self.dialect());
        let kind = job_type::CREATE_SANDBOX;
        self.submit(kind, ResourceType::Sandbox, &spec.id, payload)
    }

    /// Orders a start; of a paused sandbox, that it goes on.
    pub fn start_sandbox(&self, id: &str) -> Result<String, submit::Error> {
        let spec = CreateSpec::new(id);
        let payload = match self.sandbox(id).is_some_and(|row| row.state == SandboxState::Paused) {
            true => payload::resume(&spec.auth_token),
            false => payload::start(self.dialect(), &spec.organization_id, &spec.auth_token),
        };
        self.submit(job_type::START_SANDBOX, ResourceType::Sandbox, id, payload)
    }

    /// Orders a stop.
    pub fn stop_sandbox(&self, id: &str, force: Option<bool>) -> Result<String, submit::Error> {
        let payload = payload::stop(self.dialect(), force);
        self.submit(job_type::STOP_SANDBOX, ResourceType::Sandbox, id, payload)
    }

    /// Orders the end of a sandbox.
    pub fn destroy_sandbox(&self, id: &str) -> Result<String, submit::Error> {
        let kind = job_type::DESTROY_SANDBOX;
        self.submit(kind, ResourceType::Sandbox, id, payload::destroy())
    }

    /// A job.
    pub fn job(&self, id: &str) -> Option<Job> {
        self.read(|state| state.job(id).cloned())
    }

    /// All jobs, oldest first.
    pub fn jobs(&self) -> Vec<Job> {
        self.read(|state| state.jobs.clone())
    }

    /// Blocks until the job has a final status. `None` when it has none in time, or does not exist.
    pub fn wait_job(&self, id: &str, timeout: Duration) -> Option<Job> {
        self.wait(timeout, |sim| sim.job(id).filter(|job| job.status.is_terminal()).cloned())
    }

    /// Blocks until the job has been handed out.
    pub fn wait_claimed(&self, id: &str, timeout: Duration) -> Option<Job> {
        self.wait(timeout, |state| state.job(id).filter(|job| job.deliveries > 0).cloned())
    }

    /// All sandboxes, by id.
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        self.read(|state| state.sandboxes.values().cloned().collect())
    }

    /// A sandbox.
    pub fn sandbox(&self, id: &str) -> Option<Sandbox> {
        self.read(|state| state.sandboxes.get(id).cloned())
    }

    /// Blocks until the sandbox has this state.
    pub fn wait_sandbox(&self, id: &str, wanted: SandboxState, timeout: Duration) -> Option<Sandbox> {
        self.wait(timeout, |state| {
            let row = state.sandboxes.get(id)?;
            (row.state == wanted).then(|| row.clone())
        })
    }

    /// Changes a sandbox row by hand, e.g. to what a user wants next. Returns false when there is none.
    pub fn edit_sandbox(&self, id: &str, change: impl FnOnce(&mut Sandbox)) -> bool {
        let now = self.shared.core.clock.now();
        self.shared.core.change(|state| {
            state.update_sandbox(id, now, change);
            state.sandboxes.contains_key(id)
        })
    }

    /// All snapshots, by ref.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.read(|state| state.snapshots.values().cloned().collect())
    }

    /// The first runner.
    pub fn runner(&self) -> Option<Runner> {
        self.read(|state| state.runners.first().cloned())
    }

    /// Sets the state of the first runner, e.g. to decommissioned.
    pub fn set_runner_state(&self, wanted: RunnerState) {
        let now = self.shared.core.clock.now();
        self.shared.core.change(|state| {
            if let Some(runner) = state.runners.first_mut() {
                runner.check(wanted, now);
            }
        });
    }

    /// Blocks until the first runner has this state.
    pub fn wait_runner(&self, wanted: RunnerState, timeout: Duration) -> Option<Runner> {
        self.wait(timeout, |state| {
            let runner = state.runners.first()?;
            (runner.state == wanted).then(|| runner.clone())
        })
    }

    /// All received healthchecks, in order.
    pub fn healthchecks(&self) -> Vec<Healthcheck> {
        self.read(|state| state.healthchecks.clone())
    }

    /// Blocks until at least `count` healthchecks have come; returns all of them.
    pub fn wait_healthchecks(&self, count: usize, timeout: Duration) -> Option<Vec<Healthcheck>> {
        self.wait(timeout, |state| (state.healthchecks.len() >= count).then(|| state.healthchecks.clone()))
    }

    /// All received job reports, in order, refused ones too.
    pub fn reports(&self) -> Vec<Report> {
        self.read(|state| state.reports.clone())
    }

    /// Blocks until at least `count` reports have come; returns all of them.
    pub fn wait_reports(&self, count: usize, timeout: Duration) -> Option<Vec<Report>> {
        self.wait(timeout, |state| (state.reports.len() >= count).then(|| state.reports.clone()))
    }

    /// All received sandbox states, in order, refused ones too.
    pub fn state_puts(&self) -> Vec<StatePut> {
        self.read(|state| state.state_puts.clone())
    }

    /// Polls that the server is working on at present.
    pub fn open_polls(&self) -> usize {
        self.read(|state| state.open_polls)
    }

    /// The most polls that were ever open at the same time.
    pub fn most_open_polls(&self) -> usize {
        self.read(|state| state.most_open_polls)
    }

    /// Blocks until exactly `count` polls are open; false when that does not happen in time.
    pub fn wait_open_polls(&self, count: usize, timeout: Duration) -> bool {
        let reached = |state: &State| (state.open_polls == count).then_some(());
        self.wait(timeout, reached).is_some()
    }

    /// Latencies of all jobs that have been handed out.
    pub fn claim_latencies(&self) -> Vec<ClaimLatency> {
        self.read(|state| state.latencies.clone())
    }

    /// Readable lines about changes, the latest 10,000.
    pub fn events(&self) -> Vec<Event> {
        self.read(|state| state.events.iter().cloned().collect())
    }

    /// Orders failures.
    pub fn faults(&self) -> Faults<'_> {
        Faults { handle: self }
    }

    /// Pushes the simulated clock forward and does at once what has become due. Open polls keep their real timeout.
    pub fn advance(&self, by: Duration) {
        self.shared.core.clock.advance(by);
        self.shared.core.tick();
    }

    /// Forgets failed logins and blocks.
    pub fn forgive_logins(&self) {
        self.shared.core.change(|state| state.logins.clear());
    }

    /// Stops the server and waits for its thread. Jobs and records stay readable.
    pub fn stop(&self) {
        self.shared.control(Control::Stop);
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A panic of the server's thread has been printed by then; there is nothing to add.
            let _ = thread.join();
        }
    }

    fn wait<T>(&self, timeout: Duration, probe: impl FnMut(&State) -> Option<T>) -> Option<T> {
        self.shared.core.wait(timeout, probe)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Orders failures of a simulator.
#[derive(Debug)]
pub struct Faults<'a> {
    handle: &'a Handle,
}

impl Faults<'_> {
    /// Adds a failure behind those already ordered.
    pub fn add(&self, fault: Fault) {
        let core = &self.handle.shared.core;
        core.change(|state| state.faults.faults.push(fault));
    }

    /// The next `jobs` jobs that are handed out are handed out a second time, by the next poll.
    pub fn double_delivery(&self, jobs: u32) {
        let core = &self.handle.shared.core;
        core.change(|state| state.faults.double_delivery = jobs);
    }

    /// Cuts every connection; new ones are accepted and closed, until [`Faults::up`].
    pub fn down(&self) {
        let mut plan = self.plan();
        plan.down = Some(Down { mode: DownMode::Close, for_ms: None });
        self.handle.shared.set_faults(plan);
    }

    /// Closes the listener and every connection, until [`Faults::up`]. Returns when nothing listens any more.
    pub fn refuse(&self) {
        let (done, wait) = std::sync::mpsc::channel();
        self.handle.shared.control(Control::Refuse { back_after: None, done: Some(done) });
        // An error means that the server has been stopped: then nothing listens either.
        let _ = wait.recv();
    }

    /// Ends an outage. Returns when the API can be reached.
    pub fn up(&self) {
        let mut plan = self.plan();
        plan.down = None;
        self.handle.shared.set_faults(plan);
        let (done, wait) = std::sync::mpsc::channel();
        self.handle.shared.control(Control::Accept { done: Some(done) });
        // An error means that the server has been stopped; a later request shows it.
        let _ = wait.recv();
    }

    /// Everything ordered that has not happened yet.
    pub fn plan(&self) -> FaultPlan {
        self.handle.read(|state| state.faults.clone())
    }

    /// Replaces everything ordered. An outage of kind [`DownMode::Refuse`] is started with [`Faults::refuse`] instead.
    pub fn set(&self, plan: FaultPlan) {
        self.handle.shared.set_faults(plan);
    }

    /// Takes back everything ordered and ends an outage.
    pub fn clear(&self) {
        self.handle.shared.set_faults(FaultPlan::default());
        self.up();
    }
}
