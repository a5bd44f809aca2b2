//! Handing jobs out (PROTOCOL.md 2.2).

use std::time::{Duration, Instant};

use crate::clock::Timestamp;
use crate::job::{Job, JobStatus};
use crate::state::{ClaimLatency, Core, State};

impl Core {
    /// Claims up to `limit` jobs of a runner, oldest first, and sets them IN_PROGRESS. Wakes others only when something
    /// was claimed, so that waiting polls do not wake each other.
    pub fn claim(&self, runner_id: &str, limit: usize) -> Vec<Job> {
        let now = self.clock.now();
        let nothing = {
            let state = self.lock();
            state.pending.is_empty() && state.redeliver.is_empty()
        };
        if nothing {
            return Vec::new();
        }
        let jobs = self.lock().claim(runner_id, limit, now);
        if !jobs.is_empty() {
            self.change(|_| ());
        }
        jobs
    }

    /// Notes that an answer with these jobs has been handed to the socket.
    pub fn answered(&self, ids: &[String]) {
        let at = Instant::now();
        self.change(|state| {
            for id in ids {
                state.answered(id, at);
            }
        });
    }
}

impl State {
    fn claim(&mut self, runner_id: &str, limit: usize, now: Duration) -> Vec<Job> {
        let mut taken = self.take_redeliveries(runner_id, limit);
        let room = limit - taken.len();
        let fresh: Vec<usize> =
            self.pending.iter().copied().filter(|&index| self.jobs[index].runner_id == runner_id).take(room).collect();
        for &index in &fresh {
            self.start(index, now);
            if self.faults.double_delivery > 0 {
                self.faults.double_delivery -= 1;
                self.redeliver.push_back(index);
            }
        }
        taken.extend(fresh);
        for &index in &taken {
            self.jobs[index].deliveries += 1;
            let (id, kind) = (&self.jobs[index].id, &self.jobs[index].job_type);
            let line = format!("job {id} {kind} handed to runner {runner_id}");
            self.event(line);
        }
        taken.iter().map(|&index| self.jobs[index].clone()).collect()
    }

    fn take_redeliveries(&mut self, runner_id: &str, limit: usize) -> Vec<usize> {
        let (mine, others): (Vec<usize>, Vec<usize>) =
            self.redeliver.drain(..).partition(|&index| self.jobs[index].runner_id == runner_id);
        let (now, later) = mine.split_at(mine.len().min(limit));
        self.redeliver.extend(later.iter().chain(&others));
        now.to_vec()
    }

    fn start(&mut self, index: usize, now: Duration) {
        self.pending.remove(&index);
        let job = &mut self.jobs[index];
        let date = Timestamp::now();
        job.status = JobStatus::InProgress;
        job.started_at = Some(date);
        job.updated_at = date;
        job.updated_clock = now;
        job.timing.claimed.get_or_insert_with(Instant::now);
    }

    fn answered(&mut self, id: &str, at: Instant) {
        let Some(&index) = self.job_index.get(id) else {
            return;
        };
        let job = &mut self.jobs[index];
        if job.timing.answered.is_some() {
            return;
        }
        job.timing.answered = Some(at);
        let micros = |d: Option<Duration>| d.map_or(0, |d| d.as_micros() as u64);
        let record = ClaimLatency {
            job_id: job.id.clone(),
            claimed_us: micros(job.timing.queued()),
            answered_us: micros(job.timing.claim_latency()),
        };
        self.latencies.push(record);
    }
}
