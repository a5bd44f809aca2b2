//! Starting VMMs and finding them again.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::api::{Api, Call, Deadlines};
use super::bundle::{self, Bundle};
use super::identity::Presence;
use super::snapshot::{Adaptation, files as saved};
use super::vmm::cause::{Asked, Evidence, Status};
use super::vmm::guest::{Notices, Watch};
use super::vmm::process::{self, Process};
use super::vmm::{CloudVmm, blocking, cause, oom, or_ended};
use super::wire::Ping;
use super::{Error, Exit, Hypervisor, Known, Launch, ProcessIdentity, ProcessSeen, Version, Vmm, VmmSurvey};
use crate::crash;
use crate::net::Namespace;
pub use files::Files;
use peer::{Finding, Peer};
use spawn::{Plan, Spawned};

pub mod files;
pub mod peer;
mod spawn;

/// First and longest pause between two attempts to reach a VMM that is starting; it opens its socket
/// after 3 to 13 ms (cloud-hypervisor.md 3).
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// How VMMs are started and ended.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The hypervisor (CH_BINARY): an absolute path, or a name that is looked up in PATH.
    pub binary: PathBuf,
    /// Arguments besides those that every VMM gets, such as `-v`.
    pub extra_arguments: Vec<String>,
    /// How long a VMM may take until its socket answers.
    pub start: Duration,
    /// How long it may take to end after SIGTERM.
    pub term: Duration,
    /// How long it may take to be gone after SIGKILL.
    pub kill: Duration,
    /// Deadlines of the API's calls.
    pub deadlines: Deadlines,
}

impl Settings {
    /// The defaults for a binary.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            extra_arguments: Vec::new(),
            start: Duration::from_secs(10),
            term: Duration::from_secs(5),
            kill: Duration::from_secs(10),
            deadlines: Deadlines::default(),
        }
    }
}

/// Cloud Hypervisor as a program of the host.
#[derive(Debug)]
pub struct CloudHypervisor {
    settings: Settings,
    notices: OnceCell<Option<Arc<Notices>>>,
}

impl CloudHypervisor {
    /// Nothing is looked at before the first launch. A relative path with directories is taken from
    /// the present working directory, once.
    pub fn new(mut settings: Settings) -> Self {
        if settings.binary.components().count() > 1
            && let Ok(absolute) = std::path::absolute(&settings.binary)
        {
            settings.binary = absolute;
        }
        Self { settings, notices: OnceCell::new() }
    }

    /// A watch of a VMM's events. Without it everything works but the notice that a guest has panicked.
    fn events(&self, files: &Files) -> Option<Watch> {
        let notices = self.notices.get_or_init(|| {
            let notices = Notices::new();
            let warn = |error| tracing::warn!(%error, "no inotify (fs.inotify.max_user_instances): panics of guests are not noticed");
            notices.map_err(warn).ok()
        });
        let path = files.events();
        let warn = |error| tracing::warn!(%error, path = %path.display(), "cannot watch a VMM's events (fs.inotify.max_user_watches): a panic of its guest is not noticed");
        notices.as_ref()?.watch(&path).map_err(warn).ok()
    }

    fn vmm(&self, launch: &Launch, process: Process, version: Version, api: Api) -> Rc<dyn Vmm> {
        let vmm = CloudVmm::new(process, api, version, launch.dir.clone(), &self.settings);
        Rc::new(vmm.with_events(self.events(&Files::new(&launch.dir))))
    }

    /// How VMMs are started and ended.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Asks the binary itself for its version, without starting a VMM: for start-up checks.
    pub async fn installed_version(&self) -> Result<Version, Error> {
        let path = self.settings.binary.clone();
        let mut command = tokio::process::Command::from(spawn::reduced(&path));
        command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
        let output = match timeout(self.settings.start, command.output()).await {
            Ok(output) => output.map_err(|source| spawn::refusal(path.clone(), source))?,
            Err(_) => {
                let how = format!("did not end within {:?}", self.settings.start);
                return Err(Error::VersionCommand { path, how, lines: Vec::new() });
            }
        };
        if !output.status.success() {
            let lines = String::from_utf8_lossy(&output.stderr).lines().take(5).map(str::to_owned).collect();
            return Err(Error::VersionCommand { path, how: format!("failed with {}", output.status), lines });
        }
        // "cloud-hypervisor v53.0.0", more lines may follow.
        let text = String::from_utf8_lossy(&output.stdout);
        let version = Version::parse(text.lines().next().and_then(|line| line.split(' ').next_back()).unwrap_or(""))?;
        version.check_supported()?;
        Ok(version)
    }

    async fn start(&self, launch: &Launch) -> Result<Rc<dyn Vmm>, Error> {
        files::check_socket_path(&launch.socket)?;
        files::check_path(&launch.dir)?;
        match peer::probe(&launch.socket).await? {
            Finding::Vacant => {}
            // Versions before v53 do not start on it.
            Finding::Stale => peer::remove_files(&launch.socket)?,
            Finding::Served(Peer { pid, .. }) => {
                return Err(Error::SocketInUse { socket: launch.socket.clone(), pid });
            }
        }
        let files = Files::new(&launch.dir);
        let netns = launch.netns.clone().ok_or_else(|| Error::NoNamespace { sandbox: launch.sandbox.clone() })?;
        let spawned = spawn::spawn(self.plan(launch, &files, netns)).await?;
        crash::point("vmm.launch:spawned");
        let process =
            Process::watch(spawned.identity.clone(), Arc::clone(&spawned.pidfd), files.clone(), launch.socket.clone())?;
        let answered = match self.until_served(launch, &process, &files).await {
            Ok(()) => self.greet(launch, &process).await,
            Err(error) => Err(error),
        };
        match answered {
            Ok((api, version)) => {
                spawned.keep();
                Ok(self.vmm(launch, process, version, api))
            }
            Err(error) => Err(self.abort(launch, spawned, &process, error).await),
        }
    }

    fn plan(&self, launch: &Launch, files: &Files, netns: Namespace) -> Plan {
        let mut event_monitor = OsString::from("path=");
        event_monitor.push(files.events());
        let mut arguments: Vec<OsString> = vec![
            "--api-socket".into(),
            launch.socket.clone().into(),
            "--event-monitor".into(),
            event_monitor,
            "--log-file".into(),
            files.log().into(),
        ];
        arguments.extend(self.settings.extra_arguments.iter().map(OsString::from));
        Plan { binary: self.settings.binary.clone(), arguments, files: files.clone(), netns }
    }

    /// Waits until the new process serves its socket, or has ended, whichever comes first.
    async fn until_served(&self, launch: &Launch, process: &Process, files: &Files) -> Result<(), Error> {
        let limit = self.settings.start;
        let give_up = Instant::now() + limit;
        let mut pause = FIRST_PAUSE;
        let (binary, socket) = (self.settings.binary.clone(), launch.socket.clone());
        loop {
            if let Ok(stream) = UnixStream::connect(&socket).await
                && let Some(peer) = peer::of(&stream, &socket).await?
            {
                return self.same(process.identity().pid, peer, &socket).await;
            }
            tokio::select! {
                exit = process.ended() => {
                    let lines = last_words(files).await;
                    return Err(Error::DiedAtStart { binary, socket, exit, lines });
                }
                () = sleep(pause) => {}
            }
            if Instant::now() >= give_up {
                return Err(Error::StartDeadline { binary, socket, limit, lines: last_words(files).await });
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Checks that the VMM itself is behind the socket. A process that the binary started in its
    /// stead is ended; it is known by its session, which the VMM's pid names.
    async fn same(&self, expected: i32, peer: Peer, socket: &Path) -> Result<(), Error> {
        let found = peer.pid;
        if found == expected {
            return Ok(());
        }
        let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(found)));
        if session.is_ok_and(|session| session.as_raw() == expected) {
            self.end_peer(peer, socket).await?;
        }
        Err(Error::Impostor { socket: socket.to_owned(), expected, found })
    }

    /// First call on a served socket.
    async fn greet(&self, launch: &Launch, process: &Process) -> Result<(Api, Version), Error> {
        let api = Api::new(launch.socket.clone(), self.settings.deadlines.clone());
        let ping: Ping = or_ended(process, api.get(Call::Ping).await).await?;
        // The build's version tells more, but a private build may have any text there.
        let build = ping.build_version.as_deref().map(Version::parse);
        let version = match (build, ping.version.as_deref()) {
            (Some(Ok(version)), _) => version,
            (_, Some(text)) => Version::parse(text)?,
            (Some(Err(error)), None) => return Err(error),
            (None, None) => Version::parse("")?,
        };
        version.check_supported()?;
        Ok((api, version))
    }

    /// Ends a process whose start failed and removes its socket; answers with the error to report.
    async fn abort(&self, launch: &Launch, spawned: Spawned, process: &Process, error: Error) -> Error {
        // Dropping it kills the process; what matters here is to see it gone.
        drop(spawned);
        if process.ended_within(self.settings.kill).await.is_none() {
            return Error::StillAlive { pid: process.identity().pid, waited: self.settings.kill };
        }
        let removed = match peer::probe(&launch.socket).await {
            Ok(Finding::Served(_)) => Ok(()),
            Ok(_) => peer::remove_files(&launch.socket),
            Err(other) => Err(other),
        };
        if let Err(other) = removed {
            tracing::warn!(error = %other, socket = %launch.socket.display(), "a failed start left its socket behind");
        }
        error
    }

    async fn find(&self, launch: &Launch, known: &Known) -> Result<Option<Rc<dyn Vmm>>, Error> {
        let identity = &known.process;
        let Some(pidfd) = alive(identity).await? else { return Ok(None) };
        let process =
            Process::watch(identity.clone(), Arc::new(pidfd), Files::new(&launch.dir), launch.socket.clone())?;
        match self.same_again(launch, identity).await {
            Ok(()) => {
                let api = Api::new(launch.socket.clone(), self.settings.deadlines.clone());
                Ok(Some(self.vmm(launch, process, known.version.clone(), api)))
            }
            Err(error) => match process.exit() {
                // It ended while it was being looked for.
                Some(_) => Ok(None),
                None => Err(error),
            },
        }
    }

    async fn same_again(&self, launch: &Launch, identity: &ProcessIdentity) -> Result<(), Error> {
        let (expected, socket) = (identity.pid, launch.socket.clone());
        match peer::probe(&socket).await? {
            Finding::Served(peer) if peer.pid == expected => Ok(()),
            Finding::Served(peer) => Err(Error::Impostor { socket, expected, found: peer.pid }),
            Finding::Vacant | Finding::Stale => Err(Error::Unreachable { pid: expected, socket }),
        }
    }

    async fn sweep(&self, launch: &Launch) -> Result<(), Error> {
        let socket = &launch.socket;
        if let Finding::Served(peer) = peer::probe(socket).await? {
            self.end_peer(peer, socket).await?;
        }
        let path = socket.clone();
        let search = crate::blocking::HOST.run(move || peer::started_for(&path));
        for peer in search.await.map_err(|_| Error::Thread { what: "look for VMMs" })?? {
            self.end_peer(peer, socket).await?;
        }
        match peer::probe(socket).await? {
            Finding::Served(Peer { pid, .. }) => Err(Error::SocketInUse { socket: socket.clone(), pid }),
            Finding::Vacant | Finding::Stale => peer::remove_files(socket),
        }
    }

    async fn end_peer(&self, peer: Peer, socket: &Path) -> Result<(), Error> {
        let pid = peer.pid;
        if pid == std::process::id().cast_signed() {
            return Err(Error::SocketInUse { socket: socket.to_owned(), pid });
        }
        tracing::warn!(pid, socket = %socket.display(), "ending a VMM that nobody remembers");
        process::end(peer.pidfd, pid, self.settings.term, self.settings.kill).await
    }
}

async fn alive(identity: &ProcessIdentity) -> Result<Option<OwnedFd>, Error> {
    let who = identity.clone();
    let check = crate::blocking::HOST.run(move || who.check());
    match check.await.map_err(|_| Error::Thread { what: "check a process" })?? {
        Presence::Alive(pidfd) => Ok(Some(pidfd)),
        Presence::Gone => Ok(None),
    }
}

async fn last_words(files: &Files) -> Vec<String> {
    let files = files.clone();
    crate::blocking::HOST.run(move || cause::last_words(&files)).await.unwrap_or_default()
}

impl Hypervisor for CloudHypervisor {
    fn launch<'a>(&'a self, launch: &'a Launch) -> LocalBoxFuture<'a, Result<Rc<dyn Vmm>, Error>> {
        Box::pin(self.start(launch))
    }

    fn adopt<'a>(
        &'a self,
        launch: &'a Launch,
        known: &'a Known,
    ) -> LocalBoxFuture<'a, Result<Option<Rc<dyn Vmm>>, Error>> {
        Box::pin(self.find(launch, known))
    }

    fn clear<'a>(&'a self, launch: &'a Launch) -> LocalBoxFuture<'a, Result<(), Error>> {
        Box::pin(self.sweep(launch))
    }

    fn post_mortem<'a>(&'a self, launch: &'a Launch, known: &'a Known) -> LocalBoxFuture<'a, Exit> {
        Box::pin(async move {
            let (files, socket, process) = (Files::new(&launch.dir), launch.socket.clone(), known.process.clone());
            let found = crate::blocking::HOST.run(move || {
                if process.of_this_boot().is_ok_and(|same| !same) {
                    return Exit::HostRebooted;
                }
                let evidence = Evidence::read(&files, &socket).with_out_of_memory(oom::killed(&process));
                evidence.judge(Status::Unseen, Asked::Nothing)
            });
            found.await.unwrap_or(Exit::Unknown)
        })
    }

    fn keep<'a>(&'a self, bundle: &'a Bundle) -> LocalBoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let what = bundle.clone();
            let kept = blocking("keep what a VMM left", move || bundle::write(&what)).await?;
            if !kept {
                tracing::warn!(dir = %bundle.dir.display(), "the disk is almost full: nothing is kept of the VMM's end");
            }
            Ok(())
        })
    }

    fn survey<'a>(&'a self, sockets: &'a Path) -> LocalBoxFuture<'a, Result<VmmSurvey, Error>> {
        Box::pin(self.look(sockets))
    }

    fn end_stray<'a>(&'a self, stray: &'a ProcessSeen) -> LocalBoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.end(stray))
    }

    fn remove_stale<'a>(&'a self, socket: &'a Path) -> LocalBoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.remove(socket))
    }

    fn adapt<'a>(
        &'a self,
        from: &'a Path,
        to: &'a Path,
        adaptation: &'a Adaptation,
    ) -> LocalBoxFuture<'a, Result<(), Error>> {
        let (from, to, adaptation) = (from.to_owned(), to.to_owned(), adaptation.clone());
        Box::pin(blocking("adapt a snapshot", move || saved::adapt(&from, &to, &adaptation)))
    }

    fn copy_snapshot<'a>(&'a self, from: &'a Path, to: &'a Path) -> LocalBoxFuture<'a, Result<(), Error>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        Box::pin(blocking("copy a snapshot", move || saved::copy(&from, &to)))
    }
}

#[cfg(test)]
mod e2e;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tests;
