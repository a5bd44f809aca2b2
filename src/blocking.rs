//! Work on blocking threads, in lanes: the runtime has one pool of them, and a data volume that hangs would take all
//! of it, so that not even the store could be flushed any more. Each kind of work gets a share; the rest is left to
//! the store.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinError;
use tokio::time::timeout;

use crate::error::{Certainty, ErrorCode, Failure};

/// Threads of the runtime's pool (the default of tokio, which actix keeps).
pub const POOL: usize = 512;

/// Files on the data volumes: disks, memory, snapshots, serial output. What waits for a place has not begun.
pub static DATA: Lane = Lane::new(DATA_PLACES);
const DATA_PLACES: usize = POOL / 2;

/// What is asked of the host itself: processes, their last words.
pub static HOST: Lane = Lane::new(HOST_PLACES);
const HOST_PLACES: usize = POOL / 4;

/// Longest time for a look at files that takes milliseconds on a disk that works.
pub const LOOK: Duration = Duration::from_secs(60);

/// Waits for work on the data volume, but not for ever. What is given up may still happen.
///
/// # Errors
/// [`ErrorCode::Timeout`] with what was tried, and the work's own.
pub async fn in_time<T, E: Into<Failure>>(
    what: &str,
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match timeout(limit, work).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(Failure {
            code: ErrorCode::Timeout,
            message: format!(
                "cannot {what}: it did not end within {} s; look for a hanging disk (dmesg)",
                limit.as_secs()
            ),
            certainty: Certainty::Unknown,
        }),
    }
}

/// A share of the pool.
#[derive(Debug)]
pub struct Lane {
    free: Semaphore,
}

/// One thread's worth of a lane; belongs to the work, not to who waits for it: a thread that hangs keeps its place.
#[derive(Debug)]
pub struct Place(#[allow(dead_code, reason = "held until dropped")] Option<SemaphorePermit<'static>>);

impl Lane {
    const fn new(places: usize) -> Self {
        Self { free: Semaphore::const_new(places) }
    }

    /// Waits for a place.
    pub async fn place(&'static self) -> Place {
        // The semaphore is never closed.
        Place(self.free.acquire().await.ok())
    }

    /// Runs `work` on a blocking thread as soon as there is a place. Dropped before that, it never begins.
    ///
    /// # Errors
    /// The work panicked, or the runtime ends.
    pub async fn run<T: Send + 'static>(
        &'static self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let place = self.place().await;
        tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::jobs::journal::Entry;
    use crate::store::{SledStore, Store};

    /// More disk calls than the pool has threads hang, as on a dead volume: the store goes on, and so do they.
    #[actix::test]
    async fn a_data_volume_that_hangs_leaves_the_store_its_threads() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let (hold, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let hanging: Vec<_> = (0..POOL + 88)
            .map(|_| {
                let held = held.clone();
                // The one thread that has the lock waits for the channel, the others for the lock.
                actix::spawn(DATA.run(move || drop(held.lock().map(|held| held.recv()))))
            })
            .collect();
        while DATA.free.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        for n in 0..20 {
            let written =
                timeout(Duration::from_secs(20), async { store.put_job(&Entry::for_tests(&format!("job-{n}"))).await });
            written.await.expect("the store is not held up").unwrap();
        }
        timeout(Duration::from_secs(20), HOST.run(|| ())).await.expect("nor is what is asked of the host").unwrap();
        drop(hold);
        for done in hanging {
            timeout(Duration::from_secs(20), done).await.expect("what waited is done").unwrap().unwrap();
        }
        assert_eq!(DATA.free.available_permits(), DATA_PLACES);
    }

    #[actix::test]
    async fn what_is_dropped_before_its_turn_never_begins_and_a_panic_gives_its_place_back() {
        let all: Vec<_> = {
            let mut all = Vec::new();
            for _ in 0..HOST_PLACES {
                all.push(HOST.place().await);
            }
            all
        };
        let (tell, told) = mpsc::channel();
        let waiting = HOST.run(move || tell.send(()));
        assert!(timeout(Duration::from_millis(10), waiting).await.is_err(), "there is no place");
        drop(all);
        HOST.run(|| panic!("as ordered")).await.unwrap_err();
        assert_eq!(HOST.free.available_permits(), HOST_PLACES);
        assert!(told.recv().is_err(), "it was dropped without having run");
    }
}
