//! Noticing that a guest's kernel has panicked while its VMM lives on: the file of the VMM's events is watched by
//! inotify, so nothing polls. All VMMs share one inotify instance, because a user may only have 128 of them.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Room for the events of one read; each has 16 bytes, and those of watched files have no name.
const EVENTS: usize = 4096;

/// Who is told when a watched file grows, and how many watch it: one file has one number, however often it is watched.
type Watched = HashMap<i32, (watch::Sender<()>, usize)>;

/// The shared inotify instance.
#[derive(Debug)]
pub struct Notices {
    fd: Arc<OwnedFd>,
    watched: Arc<Mutex<Watched>>,
    task: tokio::task::JoinHandle<()>,
}

impl Notices {
    /// Begins to listen, on the current runtime.
    pub fn new() -> io::Result<Arc<Self>> {
        let fd = Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        let watched = Arc::new(Mutex::new(Watched::new()));
        // SAFETY: the descriptor is owned, stays open as long as the `Arc` inside lives, and is always the same one.
        let ready = unsafe { AsyncFd::register_with_interest(Arc::clone(&fd), Interest::READABLE) };
        let task = tokio::spawn(listen(ready.map_err(io::Error::from)?, Arc::clone(&watched)));
        Ok(Arc::new(Self { fd, watched, task }))
    }

    /// Watches a file that exists.
    pub fn watch(self: &Arc<Self>, file: &Path) -> io::Result<Watch> {
        let number = inotify::add_watch(&*self.fd, file, WatchFlags::MODIFY)?;
        let mut watched = lock(&self.watched);
        let (sender, count) = watched.entry(number).or_insert_with(|| (watch::channel(()).0, 0));
        *count += 1;
        Ok(Watch { grown: sender.subscribe(), number, notices: Arc::clone(self) })
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(fd: AsyncFd<Arc<OwnedFd>>, watched: Arc<Mutex<Watched>>) {
    loop {
        let Ok(mut guard) = fd.readable().await else { return };
        let mut buffer = [std::mem::MaybeUninit::uninit(); EVENTS];
        let mut reader = inotify::Reader::new(fd.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    // Something was missed: everybody looks.
                    lock(&watched).values().for_each(|(sender, _)| sender.send_replace(()));
                }
                Ok(event) => {
                    if let Some((sender, _)) = lock(&watched).get(&event.wd()) {
                        sender.send_replace(());
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => {
                    tracing::error!(%error, "cannot read from inotify; panics of guests are not noticed any more");
                    return;
                }
            }
        }
        guard.clear_ready();
    }
}

/// One watched file, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    grown: watch::Receiver<()>,
    number: i32,
    notices: Arc<Notices>,
}

impl Watch {
    /// A receiver that changes whenever the file has grown.
    pub fn grown(&self) -> watch::Receiver<()> {
        self.grown.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = lock(&self.notices.watched);
        let Some((_, count)) = watched.get_mut(&self.number) else { return };
        *count -= 1;
        if *count == 0 {
            watched.remove(&self.number);
            // The kernel has done so by itself when the file is gone.
            let _ = inotify::remove_watch(&*self.notices.fd, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    async fn told(grown: &mut watch::Receiver<()>) {
        tokio::time::timeout(std::time::Duration::from_secs(10), grown.changed())
            .await
            .expect("in time")
            .expect("told");
        grown.borrow_and_update();
    }

    #[test]
    fn whoever_watches_a_file_is_told_that_it_grew() {
        actix::System::new().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut files: Vec<_> = ["a", "b"].map(|name| std::fs::File::create(dir.path().join(name)).unwrap()).into();
            let notices = Notices::new().unwrap();
            let watches = [0, 0, 1].map(|n| notices.watch(&dir.path().join(["a", "b"][n])).unwrap());
            let [mut first, mut second, mut other] = [&watches[0], &watches[1], &watches[2]].map(Watch::grown);
            files[0].write_all(b"x").unwrap();
            told(&mut first).await;
            told(&mut second).await;
            assert!(!other.has_changed().unwrap());
            let [gone, kept, _b] = watches;
            drop(gone);
            files[0].write_all(b"y").unwrap();
            told(&mut second).await;
            drop(kept);
            files[1].write_all(b"z").unwrap();
            told(&mut other).await;
            assert_eq!(lock(&notices.watched).len(), 1);
        });
    }
}
