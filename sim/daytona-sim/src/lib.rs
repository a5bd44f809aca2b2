//! A stand-in for the side of the Daytona API that a runner talks to.
//!
//! [`Sim::start`] serves the routes of a runner (jobs, healthcheck, state sync) on a free loopback port and returns a
//! [`Handle`] to submit jobs, look at what the runner sent, and order failures. Rules and texts follow PROTOCOL.md
//! sections 1 to 5; each module names the section it implements.
//!
//! ```no_run
//! use daytona_sim::{CreateSpec, Options, Sim};
//! use std::time::Duration;
//!
//! let sim = Sim::start(Options::with_token("secret"))?;
//! // … start a runner with SERVER_URL = sim.base_url() and API_TOKEN = "secret" …
//! let job = sim.create_sandbox(&CreateSpec::new("box-1"))?;
//! let done = sim.wait_job(&job, Duration::from_secs(30));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![warn(missing_docs)]

mod auth;
mod claim;
pub mod clock;
mod effects;
pub mod faults;
mod handle;
mod http;
pub mod job;
pub mod options;
mod orders;
pub mod payload;
mod report;
pub mod runner;
pub mod sandbox;
pub mod score;
mod server;
mod state;
mod submit;
mod sweep;
mod sync;

pub use faults::{Action, Down, DownMode, Fault, FaultPlan, Route};
pub use handle::{Faults, Handle};
pub use job::{Job, JobStatus, ResourceType, job_type};
pub use options::{Dialect, DisconnectMode, FailedAuthLimit, Options, RunnerKey};
pub use payload::{CreateSpec, Payload, Registry, Resize};
pub use runner::{Runner, RunnerState};
pub use sandbox::{BackupState, DesiredState, Sandbox, SandboxState, Snapshot};
pub use server::{Error as StartError, Sim};
pub use state::{ClaimLatency, Event, Healthcheck, Report, StatePut};
pub use submit::{Error as SubmitError, JobRequest};
