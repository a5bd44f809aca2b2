//! One running VMM: its calls, its end, and why it ended.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::api::{Api, Call};
use super::launch::{Settings, files, peer};
use super::snapshot::capture::Placeholder;
use super::snapshot::{SnapshotMemory, files as saved};
use super::wire::{Resize, RestoreFrom, SnapshotTo, VmInfo};
use super::{Error, Exit, ProcessIdentity, Version, VmConfig, VmState, Vmm};
use crate::crash;
use cause::Evidence;
use guest::Watch;
use process::Process;

pub mod cause;
pub mod exit_status;
pub mod guest;
pub mod oom;
pub mod process;

/// How long a broken call waits for the news that the process has ended, to say so instead.
const OBITUARY: Duration = Duration::from_millis(500);

/// Part of the hypervisor's words when a call meets it on its way out: the thread that serves HTTP
/// outlives the one that executes.
const ON_ITS_WAY_OUT: &str = "on a closed channel";

/// The hypervisor's words for a state that was reached before (cloud-hypervisor.md 2.3), in an array or in a line.
const PAUSED_ALREADY: &str = "InvalidStateTransition(Paused, Paused)";
const RUNNING_ALREADY: &str = "InvalidStateTransition(Running, Running)";

/// A Cloud Hypervisor process whose API has answered.
#[derive(Debug)]
pub struct CloudVmm {
    process: Process,
    api: Api,
    version: Version,
    /// The directory of its sandbox.
    dir: PathBuf,
    /// Tells that it has written events; none where that cannot be watched.
    events: Option<Watch>,
    term: Duration,
    kill: Duration,
}

impl CloudVmm {
    pub(super) fn new(process: Process, api: Api, version: Version, dir: PathBuf, settings: &Settings) -> Self {
        Self { process, api, version, dir, events: None, term: settings.term, kill: settings.kill }
    }

    pub(super) fn with_events(self, events: Option<Watch>) -> Self {
        Self { events, ..self }
    }

    async fn guest_panic(&self) -> Option<String> {
        let Some(mut grown) = self.events.as_ref().map(Watch::grown) else { return std::future::pending().await };
        loop {
            let (files, socket) = (files::Files::new(&self.dir), self.api.socket().to_owned());
            let look = tokio::task::spawn_blocking(move || Evidence::read(&files, &socket).guest_panic()).await;
            if let Ok(Some(line)) = look {
                return line;
            }
            if grown.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn put(&self, call: Call) -> Result<(), Error> {
        or_ended(&self.process, self.api.put(call).await).await
    }

    async fn put_json(&self, call: Call, body: &impl Serialize) -> Result<(), Error> {
        or_ended(&self.process, self.api.put_json(call, body).await).await
    }

    async fn info(&self) -> Result<Option<VmState>, Error> {
        match or_ended(&self.process, self.api.get::<VmInfo>(Call::Info).await).await {
            Ok(info) => Ok(Some(info.state)),
            // 404 since v53, 500 before: the texts decide (cloud-hypervisor.md 2.2).
            Err(error) if error.says("VM is not created") || error.says("VM config is missing") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// After a refused create or boot a half-made VM may be left, which no later boot would cure and
    /// which may have lost its disks (cloud-hypervisor.md 1). A VM that runs is another one and is
    /// left alone.
    async fn delete_after(&self, failed: Error) -> Error {
        let refused = matches!(failed, Error::Api { status, .. } if status != 503);
        if !refused {
            return failed;
        }
        let deleted = match self.info().await {
            Ok(None | Some(VmState::Running | VmState::Paused)) => return failed,
            Ok(Some(_)) => self.put(Call::Delete).await,
            Err(error) => Err(error),
        };
        match deleted {
            Ok(()) => failed,
            Err(source) => Error::HalfDone { failed: Box::new(failed), source: Box::new(source) },
        }
    }

    async fn save(&self, dir: &Path, memory: SnapshotMemory) -> Result<(), Error> {
        files::check_path(dir)?;
        let body = SnapshotTo { destination_url: url(dir) };
        let fresh = dir.to_owned();
        match memory {
            SnapshotMemory::Written => {
                blocking("prepare a snapshot", move || saved::make_empty(&fresh)).await?;
                self.put_json(Call::Snapshot, &body).await
            }
            SnapshotMemory::Left => {
                let prepare = move || saved::make_empty(&fresh).and_then(|()| Placeholder::put(&fresh));
                let placeholder = blocking("prepare a snapshot", prepare).await?;
                let answer = self.put_json(Call::Snapshot, &body).await;
                blocking("check a snapshot", move || placeholder.settle(answer)).await
            }
        }
    }

    async fn load(&self, dir: &Path) -> Result<(), Error> {
        files::check_path(dir)?;
        let (snapshot, own) = (dir.to_owned(), self.dir.clone());
        blocking("look at a snapshot", move || saved::check_serial(&snapshot, &own)).await?;
        match self.put_json(Call::Restore, &RestoreFrom { source_url: url(dir) }).await {
            // That is a VM which was there before.
            Err(error) if error.says("already created") => Err(error),
            Err(error) => Err(self.delete_after(error).await),
            Ok(()) => Ok(()),
        }
    }

    /// Asks through the API; `None` when that did not end the process within `grace`.
    async fn ask_to_end(&self, grace: Duration) -> Option<Exit> {
        let until = Instant::now() + grace;
        self.process.asked_to_end();
        match timeout_at(until, self.api.put(Call::Shutdown)).await {
            // A broken connection is how an obeyed request may look, too.
            Ok(Ok(()) | Err(Error::Exchange { .. })) => timeout_at(until, self.process.ended()).await.ok(),
            Ok(Err(error)) if error.says(ON_ITS_WAY_OUT) => timeout_at(until, self.process.ended()).await.ok(),
            Ok(Err(error)) => {
                tracing::info!(pid = self.process.identity().pid, %error, "a VMM does not take its shutdown request");
                self.process.exit()
            }
            Err(_) => None,
        }
    }

    async fn force_end(&self) -> Result<Exit, Error> {
        self.process.terminate()?;
        if let Some(exit) = self.process.ended_within(self.term).await {
            return Ok(exit);
        }
        let pid = self.process.identity().pid;
        tracing::warn!(pid, "VMM does not obey SIGTERM, it gets SIGKILL");
        self.process.kill()?;
        self.process.ended_within(self.kill).await.ok_or(Error::StillAlive { pid, waited: self.kill })
    }
}

fn unless_already(words: &str, answer: Result<(), Error>) -> Result<(), Error> {
    match answer {
        Err(error) if error.says(words) => Ok(()),
        other => other,
    }
}

/// The URL of a directory. The hypervisor takes what follows `file://` as it is, without decoding anything.
fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

/// Runs work on files on a blocking thread.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    crate::blocking::DATA.run(work).await.map_err(|_| Error::Thread { what })?
}

/// A call that broke because the process ended says so. Also used before there is a [`CloudVmm`].
pub(super) async fn or_ended<T>(process: &Process, result: Result<T, Error>) -> Result<T, Error> {
    let (call, socket, sent) = match &result {
        Err(Error::Connect { call, socket, .. }) => (*call, socket.clone(), false),
        Err(Error::Exchange { call, socket, .. }) => (*call, socket.clone(), true),
        Err(error @ Error::Api { call, socket, .. }) if error.says(ON_ITS_WAY_OUT) => (*call, socket.clone(), true),
        _ => return result,
    };
    match process.ended_within(OBITUARY).await {
        Some(exit) => Err(Error::Ended { call, socket, exit, sent }),
        None => result,
    }
}

impl Vmm for CloudVmm {
    fn identity(&self) -> &ProcessIdentity {
        self.process.identity()
    }

    fn version(&self) -> &Version {
        &self.version
    }

    fn create<'a>(&'a self, config: &'a VmConfig) -> LocalBoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            match self.put_json(Call::Create, config).await {
                // That is a VM which was there before.
                Err(error) if error.says("already created") => Err(error),
                Err(error) => Err(self.delete_after(error).await),
                Ok(()) => Ok(()),
            }
        })
    }

    fn boot(&self) -> LocalBoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            match self.put(Call::Boot).await {
                Err(error) => Err(self.delete_after(error).await),
                Ok(()) => Ok(()),
            }
        })
    }

    fn state(&self) -> LocalBoxFuture<'_, Result<Option<VmState>, Error>> {
        Box::pin(self.info())
    }

    fn power_button(&self) -> LocalBoxFuture<'_, Result<(), Error>> {
        Box::pin(self.put(Call::PowerButton))
    }

    fn pause(&self) -> LocalBoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { unless_already(PAUSED_ALREADY, self.put(Call::Pause).await) })
    }

    fn resume(&self) -> LocalBoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { unless_already(RUNNING_ALREADY, self.put(Call::Resume).await) })
    }

    fn snapshot<'a>(&'a self, dir: &'a Path, memory: SnapshotMemory) -> LocalBoxFuture<'a, Result<(), Error>> {
        Box::pin(self.save(dir, memory))
    }

    fn restore<'a>(&'a self, dir: &'a Path) -> LocalBoxFuture<'a, Result<(), Error>> {
        Box::pin(self.load(dir))
    }

    fn resize(&self, vcpus: u32) -> LocalBoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.put_json(Call::Resize, &Resize { desired_vcpus: vcpus }).await })
    }

    fn unload(&self) -> LocalBoxFuture<'_, Result<(), Error>> {
        Box::pin(self.put(Call::Delete))
    }

    fn panicked(&self) -> LocalBoxFuture<'_, Option<String>> {
        Box::pin(self.guest_panic())
    }

    fn exited(&self) -> LocalBoxFuture<'_, Exit> {
        Box::pin(self.process.ended())
    }

    fn end(&self, grace: Duration) -> LocalBoxFuture<'_, Result<Exit, Error>> {
        Box::pin(async move {
            let ended = match self.process.exit() {
                Some(exit) => Some(exit),
                None => self.ask_to_end(grace).await,
            };
            let exit = match ended {
                Some(exit) => exit,
                None => self.force_end().await?,
            };
            crash::point("vm.end:gone");
            peer::remove_files(self.api.socket())?;
            Ok(exit)
        })
    }
}
