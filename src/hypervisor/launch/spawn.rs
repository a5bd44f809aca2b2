//! Making a VMM process in a sandbox's network namespace.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::sync::oneshot;

use super::files::Files;
use crate::hypervisor::{Error, ProcessIdentity, identity};
use crate::net::Namespace;

/// Search path of the VMM where the runner itself has none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is to be started.
#[derive(Debug)]
pub struct Plan {
    /// The binary.
    pub binary: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where its output goes.
    pub files: Files,
    /// The namespace it runs in.
    pub netns: Namespace,
}

/// A process that was just started. Dropping it kills and reaps the process, unless
/// [`Spawned::keep`] was called.
#[derive(Debug)]
pub struct Spawned {
    /// Who it is.
    pub identity: ProcessIdentity,
    /// A descriptor of it.
    pub pidfd: Arc<OwnedFd>,
    kept: bool,
}

impl Spawned {
    fn of(child: &Child) -> Result<Self, Error> {
        let pid = child.id().cast_signed();
        // An unreaped child keeps its pid, so nothing read here can be about somebody else.
        let pidfd = identity::open(pid)?.ok_or_else(|| Error::Process {
            what: "open a descriptor of",
            pid,
            source: io::Error::from(io::ErrorKind::NotFound),
        })?;
        Ok(Self { identity: ProcessIdentity::of(pid)?, pidfd: Arc::new(pidfd), kept: false })
    }

    /// Lets the process live when this value is dropped.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Fails only when it has ended already; then it is still reaped below.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let (pid, pidfd) = (self.identity.pid, Arc::clone(&self.pidfd));
        let reaper = thread::Builder::new().name("vmm-reap".into()).spawn(move || {
            // ECHILD when the task that watches the process was faster.
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        });
        if let Err(error) = reaper {
            tracing::warn!(pid, %error, "cannot start a thread to reap a killed VMM");
        }
    }
}

/// Starts the process. It is made on a thread of its own, which changes into the namespace and then
/// ends, so that no thread of the runner ever has to find its way back. When the caller goes away
/// meanwhile, the process is killed.
pub async fn spawn(plan: Plan) -> Result<Spawned, Error> {
    let (done, started) = oneshot::channel();
    let worker = thread::Builder::new().name("vmm-spawn".into());
    let binary = plan.binary.clone();
    worker
        // A refused send hands the result back, and dropping it kills the process.
        .spawn(move || drop(done.send(start(plan))))
        .map_err(|source| Error::Spawn { path: binary, source })?;
    started.await.map_err(|_| Error::Thread { what: "start a VMM" })?
}

fn start(plan: Plan) -> Result<Spawned, Error> {
    let Plan { binary, arguments, files, netns } = plan;
    let output = files.begin_run()?;
    let mirror = output.try_clone().map_err(|source| Error::File {
        what: "duplicate the descriptor of",
        path: files.output(),
        source,
    })?;
    setns(&netns, CloneFlags::CLONE_NEWNET)
        .map_err(|error| Error::Namespace { name: netns.name().to_string(), source: error.into() })?;
    // The process is in the namespace by itself; a descriptor kept here would only delay tear-down.
    drop(netns);

    let mut command = reduced(&binary);
    command.args(arguments).current_dir("/").stdin(Stdio::null()).stdout(output).stderr(mirror);
    // SAFETY: `isolate` makes system calls only, does not allocate and takes no lock.
    unsafe { command.pre_exec(isolate) };
    // Returns when the program is executed.
    let spawned = {
        let _alone = crate::forks::one();
        command.spawn()
    };
    let mut child = spawned.map_err(|source| refusal(binary, source))?;
    Spawned::of(&child).inspect_err(|_| {
        // Without identity and descriptor the process cannot be handed on.
        let _ = child.kill();
        let _ = child.wait();
    })
}

/// A command whose environment holds the search path and nothing else: the runner's own environment
/// has its tokens.
pub fn reduced(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into()));
    command
}

/// Runs in the child between fork and exec.
fn isolate() -> io::Result<()> {
    // SAFETY: plain system calls without pointers; all three are async-signal-safe.
    unsafe {
        // Its own session: a SIGHUP of the runner's terminal would kill it without clean-up
        // (cloud-hypervisor.md 3).
        if libc::setsid() < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::umask(0o077);
        // Marked close-on-exec rather than closed: the standard library reports a failed exec
        // through a descriptor of its own.
        if libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The error for a binary that does not start; those that the operator cures by CH_BINARY say so.
pub fn refusal(binary: PathBuf, source: io::Error) -> Error {
    let cured_by_setting = matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
        || source.raw_os_error() == Some(libc::ENOEXEC);
    if cured_by_setting { Error::Binary { path: binary, source } } else { Error::Spawn { path: binary, source } }
}
