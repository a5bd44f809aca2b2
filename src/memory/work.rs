//! Blocking work for one future.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use super::Error;

/// Work on a blocking thread that nobody may wait for any more.
struct Job<T> {
    handle: JoinHandle<T>,
    abandoned: Arc<AtomicBool>,
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        // What has not begun never begins; what has begun looks at the flag where it takes long.
        self.abandoned.store(true, Ordering::Relaxed);
        self.handle.abort();
    }
}

/// Runs `work` on a blocking thread; it gets a flag that is set when the future is dropped.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce(&AtomicBool) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let abandoned = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&abandoned);
    let place = crate::blocking::DATA.place().await;
    let work = move || {
        let _place = place;
        work(&flag)
    };
    let mut job = Job { handle: tokio::task::spawn_blocking(work), abandoned };
    (&mut job.handle).await.unwrap_or(Err(Error::Died { what }))
}
