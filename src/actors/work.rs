//! What is under way, and whether new work is taken: bounds the requests that wait inside the runner, and is what a
//! drain waits for. Shared by the actors and the HTTP workers; held for a moment only, never across an await.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::error::{ErrorCode, Failure};
use crate::ids::JobId;
use crate::ports::unix_millis;

/// Requests under way, jobs in hand, and the drain; cheap to clone.
#[derive(Debug, Clone)]
pub struct Work(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    requests: Mutex<Requests>,
    jobs: Mutex<BTreeMap<JobId, JobInHand>>,
    /// Since when the operator drains this runner, in milliseconds since 1970.
    drain: watch::Sender<Option<u64>>,
    /// A poll is open, and what it brings is carried out.
    polling: AtomicBool,
}

#[derive(Debug, Default)]
struct Requests {
    last: u64,
    present: BTreeMap<u64, Request>,
}

/// A request that was let in and is not answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is done.
    pub verb: &'static str,
    /// To which sandbox or snapshot.
    pub object: String,
    /// Since when, in milliseconds since 1970.
    pub since: u64,
}

/// A job of the control plane that is being executed or reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobInHand {
    /// Its type.
    pub kind: String,
    /// What it is about.
    pub resource: String,
    /// It is done, and its result waits for the API to take it.
    pub reporting: bool,
}

/// Which requests are refused when there are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// It belongs to something that was let in: a job, of which the poller takes no more than there is room for, or the
    /// pause of a source whose copies wait for it.
    LetIn,
    /// It ends something: a quarter more of these are let in, so that a host that is full of waiting work can be freed.
    TearDown,
    /// Anything else.
    Usual,
}

/// Counts a request as under way until it is dropped.
#[derive(Debug)]
pub struct Underway {
    work: Work,
    number: u64,
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.work.requests().present.remove(&self.number);
    }
}

impl Work {
    /// Nothing is under way; at most `most` requests may be, and as many jobs (`RUNNER_MAX_QUEUED`).
    pub fn new(most: usize) -> Self {
        let (requests, jobs) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { most, requests, jobs, drain: watch::Sender::new(None), polling: AtomicBool::default() }))
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.0.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<JobId, JobInHand>> {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// [`ErrorCode::Busy`] when too many are under way.
    pub fn begin(&self, verb: &'static str, object: impl Into<String>, rank: Rank) -> Result<Underway, Failure> {
        let mut requests = self.requests();
        let present = requests.present.len();
        if present >= self.bound(rank) {
            let message = format!(
                "{present} requests are under way, and no more than {} may wait (RUNNER_MAX_QUEUED); try again when some are done",
                self.0.most
            );
            return Err(Failure::new(ErrorCode::Busy, message));
        }
        requests.last += 1;
        let number = requests.last;
        requests.present.insert(number, Request { verb, object: object.into(), since: unix_millis() });
        Ok(Underway { work: self.clone(), number })
    }

    fn bound(&self, rank: Rank) -> usize {
        match rank {
            Rank::Usual => self.0.most,
            Rank::TearDown => self.0.most.saturating_add(self.0.most.div_ceil(4)),
            Rank::LetIn => usize::MAX,
        }
    }

    /// The requests under way, oldest first.
    pub fn underway(&self) -> Vec<Request> {
        self.requests().present.values().cloned().collect()
    }

    /// A job is in hand from now on, or has been executed and is being reported.
    pub fn job(&self, id: JobId, job: JobInHand) {
        self.jobs().insert(id, job);
    }

    /// The control plane has taken a job's result.
    pub fn job_done(&self, id: &JobId) {
        self.jobs().remove(id);
    }

    /// The jobs in hand.
    pub fn jobs_in_hand(&self) -> Vec<(JobId, JobInHand)> {
        self.jobs().iter().map(|(id, job)| (id.clone(), job.clone())).collect()
    }

    /// How many more jobs can be taken.
    pub fn room_for_jobs(&self) -> usize {
        self.0.most.saturating_sub(self.jobs().len())
    }

    /// Since when no new work is taken, in milliseconds since 1970.
    pub fn draining(&self) -> Option<u64> {
        *self.0.drain.borrow()
    }

    /// Takes no new work from now on, or takes it again. A drain that is begun twice began the first time.
    pub fn drain(&self, on: bool) {
        self.0.drain.send_if_modified(|since| {
            let before = *since;
            *since = if on { before.or_else(|| Some(unix_millis())) } else { None };
            *since != before
        });
    }

    /// Tells when a drain begins or ends.
    pub fn watch_drain(&self) -> watch::Receiver<Option<u64>> {
        self.0.drain.subscribe()
    }

    /// A poll for jobs is open, or has ended.
    pub fn set_polling(&self, open: bool) {
        self.0.polling.store(open, Ordering::Release);
    }

    /// Whether a poll for jobs is open.
    pub fn polling(&self) -> bool {
        self.0.polling.load(Ordering::Acquire)
    }

    /// Whether new work may begin.
    ///
    /// # Errors
    /// [`ErrorCode::Busy`] while the operator drains this runner.
    pub fn takes_work(&self) -> Result<(), Failure> {
        match self.draining() {
            None => Ok(()),
            Some(_) => Err(Failure::new(
                ErrorCode::Busy,
                "this runner is being drained by its operator and starts nothing new (GET /drain shows what is under way, DELETE /drain ends it)",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_bounded_and_places_come_back() {
        let work = Work::new(4);
        let mut held: Vec<_> = (0..4).map(|n| work.begin("create", format!("box-{n}"), Rank::Usual).unwrap()).collect();
        let failure = work.begin("create", "more", Rank::Usual).unwrap_err();
        assert_eq!(failure.code, ErrorCode::Busy);
        assert!(failure.message.contains("4 requests") && failure.message.contains("RUNNER_MAX_QUEUED"), "{failure}");
        held.push(work.begin("destroy", "box-9", Rank::TearDown).unwrap());
        work.begin("destroy", "box-8", Rank::TearDown).unwrap_err();
        held.push(work.begin("create", "box-7", Rank::LetIn).unwrap());
        assert_eq!(work.underway().len(), 6);
        assert_eq!(work.underway()[4].object, "box-9");
        held.clear();
        assert!(work.underway().is_empty());
        work.begin("create", "more", Rank::Usual).unwrap();
    }

    #[test]
    fn jobs_leave_less_room_for_more() {
        let work = Work::new(2);
        let id = |text: &str| text.parse::<JobId>().unwrap();
        let job = |reporting| JobInHand { kind: "CREATE_SANDBOX".into(), resource: "box".into(), reporting };
        work.job(id("a"), job(false));
        work.job(id("a"), job(true));
        assert_eq!((work.room_for_jobs(), work.jobs_in_hand().len()), (1, 1));
        work.job(id("b"), job(false));
        work.job(id("c"), job(false));
        assert_eq!(work.room_for_jobs(), 0);
        for name in ["a", "b", "c"] {
            work.job_done(&id(name));
        }
        assert_eq!(work.room_for_jobs(), 2);
    }

    #[test]
    fn a_drain_keeps_its_beginning() {
        let work = Work::new(1);
        let seen = work.watch_drain();
        assert!(work.takes_work().is_ok());
        work.drain(true);
        let since = work.draining();
        assert!(since.is_some() && seen.has_changed().unwrap());
        work.drain(true);
        assert_eq!(work.draining(), since);
        assert_eq!(work.takes_work().unwrap_err().code, ErrorCode::Busy);
        work.drain(false);
        assert!(work.takes_work().is_ok());
    }
}
