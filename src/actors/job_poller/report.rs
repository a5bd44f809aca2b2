//! Reporting a result until the control plane has taken it, or has said that it never will.

use std::time::Duration;

use actix::Addr;
use tokio::time::sleep;
use tracing::{info, warn};

use super::JobPollerActor;
use crate::backoff::Backoff;
use crate::control_plane::Retry;
use crate::control_plane::wire::Job;
use crate::error::chain;
use crate::jobs::journal::{Entry, Progress};
use crate::jobs::outcome::Outcome;
use crate::messages::jobs::JobReported;
use crate::ports::{Ports, unix_millis};

const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

pub(super) async fn until_taken(ports: Ports, job: Job, outcome: Outcome, poller: Addr<JobPollerActor>) {
    let report = outcome.report().traced(&job);
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    while let Err(error) = ports.control_plane.report(&job.id, &report).await {
        match error.retry() {
            Retry::Never => {
                // 404: not ours any more; 409: the API has ended it otherwise (PROTOCOL.md 2.4).
                warn!(job = %job.id, error = %chain(&error), "the API will not take the result of this job");
                break;
            }
            retry => {
                let pause = backoff.pause(retry);
                warn!(job = %job.id, error = %chain(&error), pause_ms = pause.as_millis(), "cannot report a job");
                sleep(pause).await;
            }
        }
    }
    info!(job = %job.id, "job reported");
    let id = job.id.clone();
    let entry = Entry { job, progress: Progress::Reported { outcome: outcome.clone() }, at: unix_millis() };
    if let Err(error) = ports.store.put_job(&entry).await {
        // It would be reported once more after a restart, which the API accepts.
        warn!(job = %id, error = %chain(&error), "the end of the job could not be stored");
    }
    let _ = poller.send(JobReported { id, outcome }).await;
}
