//! What the job poller is told.

use actix::Message;

use crate::control_plane::wire::{Job, Jobs};
use crate::ids::JobId;
use crate::jobs::outcome::Outcome;

/// Jobs that a poll has handed out.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct JobsPolled(pub Jobs);

/// All jobs that the control plane holds IN_PROGRESS for this runner.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct JobsListed(pub Jobs);

/// A job has been executed and its result is stored.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct JobFinished {
    /// The job.
    pub job: Job,
    /// Its result.
    pub outcome: Outcome,
}

/// The control plane has taken a job's result, or refused it for good.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct JobReported {
    /// The job.
    pub id: JobId,
    /// What was reported.
    pub outcome: Outcome,
}

/// Take no more jobs; resolves when those under way are finished and reported.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StopPolling;
