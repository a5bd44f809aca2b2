//! A VMM process: watched through its pidfd, reaped when it is a child of this life.

use std::future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::cause::{Asked, Evidence, Status};
use super::{exit_status, oom};
use crate::hypervisor::launch::files::Files;
use crate::hypervisor::{Error, Exit, ProcessIdentity};

/// How long the news of an end may wait for the process's parent to reap it, so that the news has its status.
const REAPED: Duration = Duration::from_millis(50);

/// A watched process.
#[derive(Debug)]
pub struct Process {
    identity: ProcessIdentity,
    pidfd: Arc<OwnedFd>,
    asked: Arc<AtomicU8>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Begins to watch: a task of the current runtime waits for the end, reaps the process if that is
    /// ours to do, and finds the cause while the files of this run are still in place.
    pub fn watch(identity: ProcessIdentity, pidfd: Arc<OwnedFd>, files: Files, socket: PathBuf) -> Result<Self, Error> {
        let (pid, who) = (identity.pid, identity.clone());
        let ready = register(Arc::clone(&pidfd), pid)?;
        let asked = Arc::new(AtomicU8::new(NOTHING));
        let (tell, exit) = watch::channel(None);
        let question = Arc::clone(&asked);
        tokio::spawn(async move {
            let status = end_of(&ready, pid).await;
            let asked = asked_of(question.load(Ordering::Relaxed));
            let evidence = crate::blocking::HOST.run(move || {
                // Whoever was killed by us was not killed by the kernel, and most ends are no kill at all.
                let killed = status == Status::Signal(libc::SIGKILL) && asked != Asked::Kill;
                let out_of_memory = killed && oom::killed(&who);
                Evidence::read(&files, &socket).with_out_of_memory(out_of_memory)
            });
            let evidence = evidence.await;
            let exit = evidence.unwrap_or_default().judge(status, asked);
            tracing::debug!(pid, ?status, %exit, "VMM process ended");
            // Nobody listens when the VMM object is gone already.
            let _ = tell.send(Some(exit));
        });
        Ok(Self { identity, pidfd, asked, exit })
    }

    /// Who it is.
    pub fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
            Ok(Some(exit)) => exit,
            // The watching task went away with its runtime. That says nothing about the process.
            _ => future::pending().await,
        }
    }

    /// [`Process::ended`], but at most that long.
    pub async fn ended_within(&self, limit: Duration) -> Option<Exit> {
        timeout(limit, self.ended()).await.ok()
    }

    /// Notes that the end was asked for by other means than a signal.
    pub fn asked_to_end(&self) {
        self.asked.fetch_max(END, Ordering::Relaxed);
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> Result<(), Error> {
        self.asked.fetch_max(END, Ordering::Relaxed);
        signal(&self.pidfd, self.identity.pid, Signal::TERM)
    }

    /// Sends SIGKILL.
    pub fn kill(&self) -> Result<(), Error> {
        self.asked.fetch_max(KILL, Ordering::Relaxed);
        signal(&self.pidfd, self.identity.pid, Signal::KILL)
    }
}

const NOTHING: u8 = 0;
const END: u8 = 1;
const KILL: u8 = 2;

fn asked_of(number: u8) -> Asked {
    match number {
        NOTHING => Asked::Nothing,
        END => Asked::End,
        _ => Asked::Kill,
    }
}

type Watched = AsyncFd<Arc<OwnedFd>>;

fn register(pidfd: Arc<OwnedFd>, pid: i32) -> Result<Watched, Error> {
    // SAFETY: the descriptor is owned, stays open as long as the `Arc` inside lives, and is always the
    // same one.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    watched.map_err(|error| Error::Process { what: "watch", pid, source: error.into() })
}

/// Waits until the process has ended and collects its status.
async fn end_of(ready: &Watched, pid: i32) -> Status {
    // A pidfd stays readable once the process has ended, so the readiness is never cleared.
    if let Err(error) = ready.readable().await {
        tracing::error!(pid, %error, "cannot watch a VMM process any more");
        // Only when the runtime shuts down; the process must not be taken for ended.
        return future::pending().await;
    }
    match waitid(WaitId::PidFd(ready.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Status::Code(code),
            (None, Some(signal)) => Status::Signal(signal),
            (None, None) => Status::Unseen,
        },
        // ECHILD: started by an earlier life of the runner, or reaped already.
        Ok(None) | Err(_) => told_to_others(ready, pid).await,
    }
}

/// How a process ended that is somebody else's to reap. It is told as long as nobody has reaped it, and again as soon
/// as somebody has (Linux 6.15); in between nothing is lost, only late.
async fn told_to_others(ready: &Watched, pid: i32) -> Status {
    let give_up = Instant::now() + REAPED;
    loop {
        let Ok(mut guard) = ready.readable().await else { return Status::Unseen };
        let pidfd = ready.get_ref();
        if let Some(status) = exit_status::of_reaped(pidfd).or_else(|| exit_status::of_zombie(pidfd, pid)) {
            return status;
        }
        guard.clear_ready();
        if timeout_at(give_up, ready.readable()).await.is_err() {
            return Status::Unseen;
        }
    }
}

/// Sends a signal; a process that has ended already is fine.
pub fn signal(pidfd: &impl AsFd, pid: i32, signal: Signal) -> Result<(), Error> {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(Error::Process { what: "signal", pid, source: io::Error::from(error) }),
    }
}

/// Ends a process that is no more than a descriptor: SIGTERM, after `term` SIGKILL, after another
/// `kill` an error.
pub async fn end(pidfd: OwnedFd, pid: i32, term: Duration, kill: Duration) -> Result<(), Error> {
    let ready = register(Arc::new(pidfd), pid)?;
    signal(ready.get_ref(), pid, Signal::TERM)?;
    if timeout(term, end_of(&ready, pid)).await.is_ok() {
        return Ok(());
    }
    signal(ready.get_ref(), pid, Signal::KILL)?;
    let ended = timeout(kill, end_of(&ready, pid)).await;
    ended.map(drop).map_err(|_| Error::StillAlive { pid, waited: kill })
}
