//! Executing one job: note that it is begun, do it, note the result. Reporting comes after that.

use std::time::Duration;

use actix::{Addr, Recipient};
use tokio::time::{sleep, timeout};
use tracing::{Instrument, info, info_span, warn};

use super::JobPollerActor;
use crate::actors::ForkActor;
use crate::control_plane::JobReport;
use crate::control_plane::wire::Job;
use crate::error::{ErrorCode, Failure, chain};
use crate::ids::{SandboxId, SnapshotRef};
use crate::jobs::journal::{Entry, Progress};
use crate::jobs::outcome::Outcome;
use crate::jobs::payload::{self, Command, SnapshotSpec};
use crate::messages::fork::{Fork, RemoveSnapshot, TakeSnapshot};
use crate::messages::jobs::JobFinished;
use crate::messages::supervisor::Order;
use crate::ports::{Ports, unix_millis};
use crate::sandbox::{Ask, StopMode, admission};

/// Longest time for an entry of the journal to be flushed.
const JOURNAL_DEADLINE: Duration = Duration::from_secs(60);

/// A job with what it needs.
pub(super) struct Run {
    pub ports: Ports,
    pub orders: Recipient<Order>,
    pub forks: Addr<ForkActor>,
    pub heartbeat: Duration,
    pub job: Job,
}

/// Runs a job in a task of its own, so that a panic in it becomes the job's result.
pub(super) async fn run_guarded(run: Run, poller: Addr<JobPollerActor>) {
    let job = run.job.clone();
    if actix::spawn(self::run(run, poller.clone())).await.is_err() {
        let message = "the runner failed while it carried out this job; see its log".to_owned();
        let outcome = Outcome::Failed { message, recoverable: false };
        let _ = poller.send(JobFinished { job, outcome }).await;
    }
}

async fn run(run: Run, poller: Addr<JobPollerActor>) {
    let span = info_span!("job", job = %run.job.id, kind = run.job.job_type, resource = run.job.resource_id);
    async move {
        let outcome = run.journalled().await;
        match &outcome {
            Outcome::Completed { .. } => info!("job completed"),
            Outcome::Failed { message, .. } => warn!(error = message, "job failed"),
        }
        run.note(Progress::Finished { outcome: outcome.clone() }).await;
        // A poller that is gone means that the runner is ending; the journal has the result.
        let _ = poller.send(JobFinished { job: run.job, outcome }).await;
    }
    .instrument(span)
    .await;
}

impl Run {
    async fn journalled(&self) -> Outcome {
        let entry = self.entry(Progress::Running);
        let noted = timeout(JOURNAL_DEADLINE, self.ports.store.put_job(&entry)).await;
        let noted = noted.map_err(|_| late()).and_then(|noted| noted.map_err(Failure::from));
        if let Err(failure) = noted {
            // Without the journal a second delivery could not be told from the first.
            return Outcome::failed(&failure.during("the job was not begun"));
        }
        tokio::select! {
            outcome = self.outcome() => outcome,
            never = self.beat() => match never {},
        }
    }

    async fn outcome(&self) -> Outcome {
        match payload::parse(&self.job) {
            Ok(command) => self.carry_out(command).await.unwrap_or_else(|failure| Outcome::failed(&failure)),
            Err(error) => Outcome::Failed {
                message: format!("{} job {}: {error}", self.job.job_type, self.job.id),
                recoverable: false,
            },
        }
    }

    async fn carry_out(&self, command: Command) -> Result<Outcome, Failure> {
        let order = match command {
            Command::Create(spec) => Order::create(*spec),
            Command::Start { auth_token, metadata } => {
                admission::supported_at_start(&metadata)?;
                Order { auth_token, ..self.order(Ask::Start)? }
            }
            Command::Stop { force } => self.order(Ask::Stop(if force { StopMode::Kill } else { StopMode::Usual }))?,
            Command::Destroy => self.order(Ask::Destroy)?,
            Command::Pause => self.order(Ask::Pause)?,
            Command::Resize(resize) => Order { resize: Some(resize), ..self.order(Ask::Resize)? },
            Command::Fork { source, copy, clone } => return self.fork(source, copy, clone).await,
            Command::Snapshot(spec) => return self.snapshot(spec).await,
            Command::RemoveSnapshot(reference) => return self.remove_snapshot(reference).await,
            Command::Unknown(kind) => {
                let message = format!("unknown job type: {kind}; this runner does {}", payload::KNOWN.join(", "));
                return Err(Failure::new(ErrorCode::BadRequest, message));
            }
        };
        let starts = matches!(order.ask, Ask::Create(_) | Ask::Start);
        let answered = self.orders.send(Order { by_job: true, ..order }).await;
        let view = answered.map_err(|_| shutting_down())??;
        Ok(if starts { Outcome::started(view.as_deref()) } else { Outcome::done() })
    }

    async fn fork(&self, source: SandboxId, copy: SandboxId, clone: bool) -> Result<Outcome, Failure> {
        let fork = Fork { source: source.clone(), copies: vec![copy], by_job: true };
        let copies = self.forks.send(fork).await.map_err(|_| shutting_down())??;
        let lost = || Failure::new(ErrorCode::Internal, "nothing was copied (a defect of the runner)");
        let (_, made) = copies.into_iter().next().ok_or_else(lost)?;
        Ok(Outcome::copied(&*made?, &source, clone))
    }

    async fn snapshot(&self, spec: SnapshotSpec) -> Result<Outcome, Failure> {
        let SnapshotSpec { source, reference, name, memory, branch } = spec;
        let take = TakeSnapshot { source, reference, name, memory, by_job: true };
        let manifest = self.forks.send(take).await.map_err(|_| shutting_down())??;
        Ok(Outcome::snapshot(&manifest, branch))
    }

    async fn remove_snapshot(&self, reference: SnapshotRef) -> Result<Outcome, Failure> {
        self.forks.send(RemoveSnapshot(reference)).await.map_err(|_| shutting_down())??;
        Ok(Outcome::done())
    }

    fn order(&self, ask: Ask) -> Result<Order, Failure> {
        let id: SandboxId = self.job.resource_id.parse().map_err(|error: crate::ids::Error| {
            Failure::new(ErrorCode::BadRequest, format!("resourceId of job {}: {}", self.job.id, chain(&error)))
        })?;
        Ok(Order::new(id, ask))
    }

    /// Tells the API that the job is alive. Each beat differs from the last, because a report that
    /// changes nothing does not move `updatedAt` (PROTOCOL.md 2.5).
    async fn beat(&self) -> std::convert::Infallible {
        let mut count = 0;
        loop {
            sleep(self.heartbeat).await;
            count += 1;
            if let Err(error) = self.ports.control_plane.report(&self.job.id, &JobReport::heartbeat(count)).await {
                warn!(error = %chain(&error), "the API did not take a heartbeat");
            }
        }
    }

    fn entry(&self, progress: Progress) -> Entry {
        Entry { job: self.job.clone(), progress, at: unix_millis() }
    }

    async fn note(&self, progress: Progress) {
        let noted = timeout(JOURNAL_DEADLINE, self.ports.store.put_job(&self.entry(progress))).await;
        if let Err(failure) = noted.map_err(|_| late()).and_then(|noted| noted.map_err(Failure::from)) {
            // The job would be executed again after a restart; all jobs are idempotent.
            warn!(error = %failure, "the result of the job could not be stored");
        }
    }
}

fn late() -> Failure {
    let message = format!(
        "the store did not write within {} s; look for a hanging disk (dmesg) below RUNNER_STATE_PATH",
        JOURNAL_DEADLINE.as_secs()
    );
    Failure::new(ErrorCode::Timeout, message)
}

fn shutting_down() -> Failure {
    Failure::new(ErrorCode::Interrupted, "the runner is shutting down")
}
