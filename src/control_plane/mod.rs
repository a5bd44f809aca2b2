//! The Daytona API as this runner needs it (PROTOCOL.md 1 to 4): polling, listing and reporting jobs,
//! the healthcheck, and the state sync.

use std::time::Duration;

use futures::future::LocalBoxFuture;

use crate::ids::{JobId, SandboxId};

mod answer;
pub mod client;
pub mod error;
pub mod health;
pub mod report;
mod settings;
mod tls;
pub mod wire;

pub use client::{AwcControlPlane, Deadlines};
pub use error::{Error, Retry};
pub use health::{Healthcheck, Metrics, ServiceHealth};
pub use report::JobReport;
pub use wire::{Job, JobPage, JobStatus, Jobs, RemoteSandbox, ResourceType, StateUpdate, Unreadable};

/// Calls to the control plane. Each has its own deadline. Whether to retry is the caller's decision, by
/// [`Error::retry`]; the only thing repeated inside is a GET whose kept connection turned out closed.
pub trait ControlPlane {
    /// `GET /jobs/poll`: waits up to `timeout` on the server. 408 counts as "no jobs". Keep exactly one
    /// poll in flight, and expect to see a job twice (PROTOCOL.md 2.2).
    fn poll(&self, timeout: Duration, limit: u32) -> LocalBoxFuture<'_, Result<Jobs, Error>>;

    /// `GET /jobs?status=IN_PROGRESS`, one page (first is 1), 200 rows each.
    fn in_progress(&self, page: u32) -> LocalBoxFuture<'_, Result<JobPage, Error>>;

    /// `POST /jobs/{id}/status`.
    fn report<'a>(&'a self, job: &'a JobId, report: &'a JobReport) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// `POST /runners/healthcheck`.
    fn healthcheck<'a>(&'a self, body: &'a Healthcheck) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// `GET /sandbox/for-runner?states=started&skipReconcilingSandboxes=true`.
    fn started_sandboxes(&self) -> LocalBoxFuture<'_, Result<Vec<RemoteSandbox>, Error>>;

    /// `PUT /sandbox/{id}/state`.
    fn put_state<'a>(&'a self, id: &'a SandboxId, update: &'a StateUpdate) -> LocalBoxFuture<'a, Result<(), Error>>;
}
