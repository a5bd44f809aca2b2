//! Jobs of the control plane: exactly one poll in flight, every job executed once, every result
//! reported until it is taken.

use std::collections::HashMap;
use std::time::Duration;

use actix::{Actor, Addr, AsyncContext, Context, Handler, Recipient, ResponseFuture};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::work::JobInHand;
use super::{Deaths, ForkActor, Work, ended};
use crate::control_plane::wire::{Job, JobStatus, Jobs};
use crate::error::chain;
use crate::ids::JobId;
use crate::jobs::decide::{Decision, Standing, decide};
use crate::jobs::journal::{Entry, Progress};
use crate::jobs::outcome::Outcome;
use crate::messages::jobs::{JobFinished, JobReported, JobsListed, JobsPolled, StopPolling};
use crate::messages::supervisor::Order;
use crate::ports::{Ports, unix_millis};

mod execute;
mod loops;
mod report;

/// Reported jobs are remembered this long: longer than the API keeps any job open (PROTOCOL.md 2.5).
const REMEMBER: Duration = Duration::from_secs(3 * 3600);

/// Well below the shortest staleness of the API, 10 minutes (PROTOCOL.md 2.5).
pub const HEARTBEAT: Duration = Duration::from_secs(60);

/// How the control plane is asked for jobs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a poll waits on the server.
    pub poll_timeout: Duration,
    /// Most jobs per poll.
    pub poll_limit: u32,
    /// How often the list of IN_PROGRESS jobs is compared with the journal.
    pub reconcile_interval: Duration,
    /// How often a long job says that it is alive.
    pub heartbeat: Duration,
}

#[derive(Debug)]
enum Known {
    /// Begun before a restart.
    Suspended,
    Active,
    Reported {
        outcome: Outcome,
        at: Instant,
        since: u64,
    },
}

/// The actor.
pub struct JobPollerActor {
    ports: Ports,
    orders: Recipient<Order>,
    forks: Addr<ForkActor>,
    settings: Settings,
    known: HashMap<JobId, Known>,
    work: Work,
    /// Number of jobs being executed or reported; watched by the shutdown.
    active: watch::Sender<usize>,
    stopping: watch::Sender<bool>,
    deaths: Deaths,
}

impl JobPollerActor {
    /// An actor that goes on from this journal.
    pub fn start_with(
        ports: Ports,
        orders: Recipient<Order>,
        forks: Addr<ForkActor>,
        settings: Settings,
        journal: Vec<Entry>,
        work: Work,
        deaths: Deaths,
    ) -> Addr<Self> {
        let actor = Self {
            ports,
            orders,
            forks,
            settings,
            known: HashMap::new(),
            work,
            active: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
            deaths,
        };
        Self::create(|ctx: &mut Context<Self>| {
            let mut actor = actor;
            for entry in journal {
                actor.resume(entry, ctx);
            }
            actor
        })
    }

    /// A finished job is reported at once; one that was begun waits until the control plane lists it
    /// as still wanted.
    fn resume(&mut self, entry: Entry, ctx: &mut Context<Self>) {
        let known = match entry.progress {
            Progress::Running => Known::Suspended,
            Progress::Finished { outcome } => {
                self.begin_report(entry.job, outcome, ctx.address());
                return;
            }
            Progress::Reported { outcome } => Known::Reported { outcome, at: Instant::now(), since: entry.at },
        };
        self.known.insert(entry.job.id, known);
    }

    fn arrived(&mut self, job: Job, addr: Addr<Self>) {
        let standing = self.known.get(&job.id).map(|known| match known {
            Known::Suspended => Standing::Suspended,
            Known::Active => Standing::Active,
            Known::Reported { at, .. } => Standing::Reported(at.elapsed()),
        });
        match decide(standing) {
            Decision::Ignore => debug!(job = %job.id, "job is already in hand"),
            // The next start finds it in the control plane's list.
            Decision::Run if *self.stopping.borrow() => info!(job = %job.id, "job is left to the next start"),
            // Listed, and so claimed: it is listed again.
            Decision::Run if self.work.room_for_jobs() == 0 => {
                info!(job = %job.id, "too many jobs are in hand; job is left to the next look at the list");
            }
            Decision::ReportAgain => {
                if let Some(Known::Reported { outcome, .. }) = self.known.remove(&job.id) {
                    info!(job = %job.id, "the API still holds a reported job open; reporting it again");
                    self.begin_report(job, outcome, addr);
                }
            }
            Decision::Run => {
                info!(job = %job.id, kind = job.job_type, resource = job.resource_id, "job begins");
                self.begin(&job, false);
                let run = execute::Run {
                    ports: self.ports.clone(),
                    orders: self.orders.clone(),
                    forks: self.forks.clone(),
                    heartbeat: self.settings.heartbeat,
                    job,
                };
                actix::spawn(execute::run_guarded(run, addr));
            }
        }
    }

    fn begin(&mut self, job: &Job, reporting: bool) {
        self.known.insert(job.id.clone(), Known::Active);
        self.in_hand(job, reporting);
        self.active.send_modify(|active| *active += 1);
    }

    fn in_hand(&self, job: &Job, reporting: bool) {
        let in_hand = JobInHand { kind: job.job_type.clone(), resource: job.resource_id.clone(), reporting };
        self.work.job(job.id.clone(), in_hand);
    }

    fn begin_report(&mut self, job: Job, outcome: Outcome, addr: Addr<Self>) {
        self.begin(&job, true);
        actix::spawn(report::until_taken(self.ports.clone(), job, outcome, addr));
    }

    fn all_arrived(&mut self, jobs: Jobs, addr: &Addr<Self>) {
        for unreadable in jobs.unreadable {
            warn!(job = ?unreadable.id, reason = unreadable.reason, "the API sent a job that cannot be read");
            if let Some(id) = unreadable.job_id()
                && !self.known.contains_key(&id)
            {
                let outcome = Outcome::Failed {
                    message: format!("the runner cannot read this job: {}", unreadable.reason),
                    recoverable: false,
                };
                self.begin_report(unreadable_job(id), outcome, addr.clone());
            }
        }
        for job in jobs.jobs {
            self.arrived(job, addr.clone());
        }
    }

    /// Suspended jobs that the control plane does not list any more are not wanted any more: it has
    /// given them up, and the sandboxes' own recovery has taken their effects back.
    fn drop_unlisted(&mut self, listed: &Jobs) {
        let unlisted: Vec<JobId> = self
            .known
            .iter()
            .filter(|(id, known)| matches!(known, Known::Suspended) && !listed.jobs.iter().any(|job| job.id == **id))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &unlisted {
            info!(job = %id, "a job from before the restart is no longer open at the API; it is given up");
            self.known.remove(id);
        }
        self.forget_stored(unlisted);
    }

    fn forget_old(&mut self) {
        let now = unix_millis();
        let keep = u64::try_from(REMEMBER.as_millis()).unwrap_or(u64::MAX);
        let old: Vec<JobId> = self
            .known
            .iter()
            .filter(|(_, known)| matches!(known, Known::Reported { since, .. } if now.saturating_sub(*since) > keep))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &old {
            self.known.remove(id);
        }
        self.forget_stored(old);
    }

    fn forget_stored(&self, ids: Vec<JobId>) {
        if ids.is_empty() {
            return;
        }
        let store = self.ports.store.clone();
        actix::spawn(async move {
            if let Err(error) = store.remove_jobs(&ids).await {
                warn!(error = %chain(&error), "old jobs stay in the store and are removed later");
            }
        });
    }
}

/// Stands in the journal for a job of which only the id could be read.
fn unreadable_job(id: JobId) -> Job {
    Job {
        id,
        job_type: "unreadable".to_owned(),
        status: JobStatus::InProgress,
        resource_type: String::new().into(),
        resource_id: String::new(),
        payload: None,
        trace_context: None,
        error_message: None,
        created_at: None,
        updated_at: None,
    }
}

impl Actor for JobPollerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let control_plane = self.ports.control_plane.clone();
        let stopping = self.stopping.subscribe();
        let door = loops::Door { work: self.work.clone(), active: self.active.subscribe() };
        actix::spawn(loops::poll(control_plane.clone(), self.settings.clone(), ctx.address(), door, stopping.clone()));
        actix::spawn(loops::reconcile(control_plane, self.settings.clone(), ctx.address(), stopping));
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        ended(&self.deaths, "JobPollerActor");
    }
}

impl Handler<JobsPolled> for JobPollerActor {
    type Result = ();

    fn handle(&mut self, polled: JobsPolled, ctx: &mut Self::Context) {
        self.all_arrived(polled.0, &ctx.address());
    }
}

impl Handler<JobsListed> for JobPollerActor {
    type Result = ();

    fn handle(&mut self, listed: JobsListed, ctx: &mut Self::Context) {
        self.drop_unlisted(&listed.0);
        self.forget_old();
        self.all_arrived(listed.0, &ctx.address());
    }
}

impl Handler<JobFinished> for JobPollerActor {
    type Result = ();

    fn handle(&mut self, finished: JobFinished, ctx: &mut Self::Context) {
        self.in_hand(&finished.job, true);
        actix::spawn(report::until_taken(self.ports.clone(), finished.job, finished.outcome, ctx.address()));
    }
}

impl Handler<JobReported> for JobPollerActor {
    type Result = ();

    fn handle(&mut self, reported: JobReported, _: &mut Self::Context) {
        self.work.job_done(&reported.id);
        let known = Known::Reported { outcome: reported.outcome, at: Instant::now(), since: unix_millis() };
        self.known.insert(reported.id, known);
        self.active.send_modify(|active| *active = active.saturating_sub(1));
    }
}

impl Handler<StopPolling> for JobPollerActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: StopPolling, _: &mut Self::Context) -> Self::Result {
        self.stopping.send_replace(true);
        let mut active = self.active.subscribe();
        Box::pin(async move {
            // An error means that the actor is gone, and with it all that could be waited for.
            let _ = active.wait_for(|active| *active == 0).await;
        })
    }
}
