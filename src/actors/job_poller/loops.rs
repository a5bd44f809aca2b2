//! The two loops that ask the control plane: the long poll, and the comparison of its open jobs with
//! the journal.

use std::rc::Rc;
use std::time::Duration;

use actix::Addr;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::{JobPollerActor, Settings};
use crate::actors::Work;
use crate::backoff::Backoff;
use crate::control_plane::{ControlPlane, Error, Jobs, Retry};
use crate::error::chain;
use crate::messages::jobs::{JobsListed, JobsPolled};

/// Longest pause between polls while the API is away: a tunnel that comes back is used soon.
const POLL_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A poll that ends empty sooner than this did not wait.
const SOON: Duration = Duration::from_secs(1);
/// Pages of 200 rows; more than 10,000 open jobs on one host are not ours to believe.
const MOST_PAGES: u32 = 50;

/// When a poll may be opened: while there is room for jobs, and nobody drains this runner. What is not polled stays
/// PENDING at the API, and nothing is lost by waiting.
pub(super) struct Door {
    pub work: Work,
    /// Changes when a job is taken or done.
    pub active: watch::Receiver<usize>,
}

impl Door {
    /// Waits until jobs may be taken, and how many.
    async fn open(&mut self) -> u32 {
        let mut drain = self.work.watch_drain();
        loop {
            let drained = drain.wait_for(Option::is_none).await.is_err();
            let full = self.active.wait_for(|_| self.work.room_for_jobs() > 0).await.is_err();
            if drained || full {
                // The poller is gone, and with it the reason to poll.
                return std::future::pending().await;
            }
            // Only while both hold at the same moment.
            let room = self.work.room_for_jobs();
            if room > 0 && self.work.draining().is_none() {
                return u32::try_from(room).unwrap_or(u32::MAX);
            }
        }
    }
}

/// A poll is seen as open until what it brought is in hand.
struct Polling<'a>(&'a Work);

impl<'a> Polling<'a> {
    fn on(work: &'a Work) -> Self {
        work.set_polling(true);
        Self(work)
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.set_polling(false);
    }
}

/// Polls until told to stop. A poll that is cut off there may have claimed jobs: the list finds them
/// after the restart.
pub(super) async fn poll(
    api: Rc<dyn ControlPlane>,
    settings: Settings,
    actor: Addr<JobPollerActor>,
    mut door: Door,
    mut stopping: watch::Receiver<bool>,
) {
    let mut backoff = Backoff::new(POLL_PAUSES.0, POLL_PAUSES.1);
    loop {
        let room = tokio::select! {
            room = door.open() => room,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let open = Polling::on(&door.work);
        let began = Instant::now();
        let polled = tokio::select! {
            polled = api.poll(settings.poll_timeout, settings.poll_limit.min(room)) => polled,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let pause = match polled {
            // Somebody between us and the API does not let a poll wait: do not hammer.
            Ok(jobs) if jobs.is_empty() && began.elapsed() < SOON => backoff.pause(Retry::Backoff),
            Ok(jobs) => {
                backoff.reset();
                if !jobs.is_empty() && actor.send(JobsPolled(jobs)).await.is_err() {
                    return;
                }
                continue;
            }
            Err(error) => {
                let pause = backoff.pause(error.retry());
                warn!(error = %chain(&error), pause_ms = pause.as_millis(), "cannot poll for jobs");
                pause
            }
        };
        drop(open);
        tokio::select! {
            () = sleep(pause) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
    }
}

/// Lists open jobs at once and then at every interval; after a failure sooner.
pub(super) async fn reconcile(
    api: Rc<dyn ControlPlane>,
    settings: Settings,
    actor: Addr<JobPollerActor>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut backoff = Backoff::new(POLL_PAUSES.0, settings.reconcile_interval);
    loop {
        let pause = tokio::select! {
            listed = list(&*api) => match listed {
                Ok(jobs) => {
                    backoff.reset();
                    if actor.send(JobsListed(jobs)).await.is_err() {
                        return;
                    }
                    settings.reconcile_interval
                }
                Err(error) => {
                    debug!(error = %chain(&error), "cannot list open jobs");
                    backoff.pause(error.retry())
                }
            },
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        tokio::select! {
            () = sleep(pause) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
    }
}

async fn list(api: &dyn ControlPlane) -> Result<Jobs, Error> {
    let mut all = Jobs::default();
    for page in 1..=MOST_PAGES {
        let found = api.in_progress(page).await?;
        all.jobs.extend(found.jobs);
        all.unreadable.extend(found.unreadable);
        if page >= found.total_pages {
            break;
        }
    }
    Ok(all)
}
