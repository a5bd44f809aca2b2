//! What VMMs there are: processes that were started with an API socket in our directory, and what lies in that
//! directory. Whatever has its socket elsewhere belongs to somebody else and is not even listed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use futures::{StreamExt, stream};
use nix::fcntl::{Flock, FlockArg};

use super::launch::peer::{self, Finding};
use super::vmm::{blocking, process};
use super::{CloudHypervisor, Error, ProcessIdentity, identity};
use crate::error::chain;
use crate::ids::SandboxId;

/// Sockets that are connected to side by side.
const PARALLEL: usize = 16;

/// A process that leads a session and was started with this API socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSeen {
    /// Who it is.
    pub process: ProcessIdentity,
    /// Its `--api-socket`.
    pub socket: PathBuf,
}

/// What is found at a socket's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketSeen {
    /// This process serves it.
    Served(i32),
    /// Nobody serves it.
    Stale,
}

/// Everything that was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmmSurvey {
    /// Processes with a socket in the directory, by no order.
    pub processes: Vec<ProcessSeen>,
    /// Sockets with the names of ours, `{id}.sock`.
    pub sockets: BTreeMap<SandboxId, (PathBuf, SocketSeen)>,
    /// Lock files with the names of ours, `{id}.sock.lock`.
    pub locks: BTreeMap<SandboxId, PathBuf>,
    /// What could not be looked at, and why.
    pub unread: Vec<String>,
}

/// The sandbox that a socket's path is for.
pub fn sandbox_of(socket: &Path) -> Option<SandboxId> {
    socket.file_name()?.to_str()?.strip_suffix(".sock")?.parse().ok()
}

impl CloudHypervisor {
    /// As [`super::Hypervisor::survey`].
    pub(super) async fn look(&self, dir: &Path) -> Result<VmmSurvey, Error> {
        let dir = dir.to_owned();
        let (mut survey, sockets) = blocking("survey the VMMs", move || files_and_processes(&dir)).await?;
        let probed = stream::iter(sockets).map(async |(id, path)| {
            let found = peer::probe(&path).await;
            (id, path, found)
        });
        let mut probed = probed.buffer_unordered(PARALLEL);
        while let Some((id, path, found)) = probed.next().await {
            let seen = match found {
                Ok(Finding::Served(peer)) => SocketSeen::Served(peer.pid),
                Ok(Finding::Stale) => SocketSeen::Stale,
                Ok(Finding::Vacant) => continue,
                Err(error) => {
                    survey.unread.push(format!("socket {}: {}", path.display(), chain(&error)));
                    continue;
                }
            };
            survey.sockets.insert(id, (path, seen));
        }
        Ok(survey)
    }

    /// As [`super::Hypervisor::end_stray`].
    pub(super) async fn end(&self, stray: &ProcessSeen) -> Result<bool, Error> {
        let (identity, socket) = (stray.process.clone(), stray.socket.clone());
        let proof = move || {
            let identity::Presence::Alive(pidfd) = identity.check()? else { return Ok(None) };
            // The descriptor first, then the proof: what fits now is the process behind it.
            Ok(peer::is_for(identity.pid, &socket).then_some(pidfd))
        };
        let Some(pidfd) = blocking("look at a stray VMM", proof).await? else { return Ok(false) };
        let pid = stray.process.pid;
        tracing::warn!(pid, socket = %stray.socket.display(), "ending a VMM that belongs to no sandbox");
        process::end(pidfd, pid, self.settings().term, self.settings().kill).await?;
        Ok(true)
    }

    /// As [`super::Hypervisor::remove_stale`].
    pub(super) async fn remove(&self, socket: &Path) -> Result<bool, Error> {
        let (path, lock) = (socket.to_owned(), peer::lock_of(socket));
        let search = move || {
            if let Some(found) = peer::started_for(&path)?.first() {
                return Err(Error::SocketInUse { socket: path, pid: found.pid });
            }
            Ok(())
        };
        blocking("look for VMMs of a socket", search).await?;
        match peer::probe(socket).await? {
            Finding::Served(peer) => Err(Error::SocketInUse { socket: socket.to_owned(), pid: peer.pid }),
            Finding::Vacant | Finding::Stale => {
                let path = socket.to_owned();
                let remove = move || {
                    let there = [&path, &lock].into_iter().any(|path| path.symlink_metadata().is_ok());
                    refuse_held(&lock)?;
                    peer::remove_files(&path).map(|()| there)
                };
                blocking("remove a stale socket", remove).await
            }
        }
    }
}

/// The hypervisor locks its lock file as long as it lives.
fn refuse_held(lock: &Path) -> Result<(), Error> {
    let failed = |source| Error::File { what: "look at the lock of", path: lock.to_owned(), source };
    match std::fs::symlink_metadata(lock) {
        Ok(about) if about.is_file() => {}
        Ok(_) => return Err(failed(io::Error::other("it is not a plain file"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    let file = File::open(lock).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(()),
        Err((_, errno)) => Err(failed(io::Error::from(errno))),
    }
}

type Sockets = Vec<(SandboxId, PathBuf)>;

fn files_and_processes(dir: &Path) -> Result<(VmmSurvey, Sockets), Error> {
    let list = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { what: "list", path, source }
    };
    let (mut survey, mut sockets) = (VmmSurvey::default(), Vec::new());
    for entry in std::fs::read_dir(dir).map_err(list(dir))? {
        let entry = entry.map_err(list(dir))?;
        let (path, kind) = (entry.path(), entry.file_type());
        let Ok(kind) = kind else { continue };
        if kind.is_socket() {
            sockets.extend(sandbox_of(&path).map(|id| (id, path)));
        } else if kind.is_file() && path.extension() == Some(OsStr::new("lock")) {
            survey.locks.extend(path.file_stem().and_then(|stem| sandbox_of(Path::new(stem))).map(|id| (id, path)));
        }
    }
    let proc = Path::new("/proc");
    for entry in std::fs::read_dir(proc).map_err(list(proc))? {
        let name = entry.map_err(list(proc))?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Some(socket) = socket_in(dir, pid) else { continue };
        match seen(pid, &socket) {
            Ok(found) => survey.processes.extend(found),
            Err(error) => survey.unread.push(format!("process {pid}: {}", chain(&error))),
        }
    }
    Ok((survey, sockets))
}

/// The socket in `dir` that the process was started with.
fn socket_in(dir: &Path, pid: i32) -> Option<PathBuf> {
    // One that goes away meanwhile or has no arguments is none of ours.
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
    let mut values = arguments.windows(2).filter(|pair| pair[0] == b"--api-socket").map(|pair| pair[1]);
    values.find_map(|value| {
        let path = Path::new(OsStr::from_bytes(value));
        (path.parent() == Some(dir)).then(|| path.to_owned())
    })
}

fn seen(pid: i32, socket: &Path) -> Result<Option<ProcessSeen>, Error> {
    let Some(pidfd) = identity::open(pid)? else { return Ok(None) };
    let process = match ProcessIdentity::of(pid) {
        Ok(process) => process,
        Err(_) if identity::has_ended(&pidfd, pid)? => return Ok(None),
        Err(error) => return Err(error),
    };
    let ours = peer::is_for(pid, socket) && !identity::has_ended(&pidfd, pid)?;
    Ok(ours.then(|| ProcessSeen { process, socket: socket.to_owned() }))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::hypervisor::Hypervisor;
    use crate::hypervisor::launch::Settings;

    fn start(leader: bool, socket: &Path) -> Child {
        let (program, before): (&str, &[&str]) = if leader { ("setsid", &["sh"]) } else { ("sh", &[]) };
        let mut child = Command::new(program)
            .args(before)
            .args(["-c", "echo; read line", "name", "--api-socket"])
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its first byte shows that it runs with its final arguments.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    #[tokio::test(flavor = "current_thread")]
    async fn strays_are_seen_and_ended_and_those_of_others_are_not() {
        let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let hypervisor = CloudHypervisor::new(Settings::new("/bin/true"));
        let socket = ours.path().join("box.sock");
        let mut stray = start(true, &socket);
        let mut bystanders = [start(false, &socket), start(true, &others.path().join("box.sock"))];
        let served = UnixListener::bind(ours.path().join("served.sock")).unwrap();
        for name in ["stale.sock", "not an id.sock"] {
            drop(UnixListener::bind(ours.path().join(name)).unwrap());
        }
        for name in ["stale.sock.lock", "operator.lock", "notes"] {
            std::fs::write(ours.path().join(name), "").unwrap();
        }

        let survey = hypervisor.survey(ours.path()).await.unwrap();
        let [found] = survey.processes.as_slice() else { panic!("{survey:?}") };
        assert_eq!((found.process.pid, &found.socket), (stray.id().cast_signed(), &socket));
        let id = |name: &str| name.parse::<SandboxId>().unwrap();
        assert_eq!(survey.sockets.len(), 2);
        assert_eq!(survey.sockets[&id("served")].1, SocketSeen::Served(std::process::id().cast_signed()));
        assert_eq!(survey.sockets[&id("stale")].1, SocketSeen::Stale);
        assert_eq!(survey.locks.keys().collect::<Vec<_>>(), [&id("stale")]);
        assert_eq!(survey.unread, Vec::<String>::new());

        let other = ProcessIdentity { start_ticks: found.process.start_ticks + 1, ..found.process.clone() };
        let mistaken = [
            ProcessSeen { process: other, ..found.clone() },
            ProcessSeen { socket: others.path().join("box.sock"), ..found.clone() },
        ];
        for seen in &mistaken {
            assert!(!hypervisor.end_stray(seen).await.unwrap(), "{seen:?}");
        }
        assert!(hypervisor.end_stray(found).await.unwrap());
        // The end has reaped it already, as its parent is this process.
        assert!(stray.wait().is_err());
        assert!(!hypervisor.end_stray(found).await.unwrap());

        let (served_path, stale) = (ours.path().join("served.sock"), ours.path().join("stale.sock"));
        assert!(hypervisor.remove_stale(&served_path).await.is_err(), "somebody serves it");
        let held = File::open(ours.path().join("stale.sock.lock")).unwrap();
        let held = Flock::lock(held, FlockArg::LockExclusive).unwrap();
        assert!(hypervisor.remove_stale(&stale).await.is_err(), "somebody holds its lock");
        drop(held);
        for there in [true, false] {
            assert_eq!(hypervisor.remove_stale(&stale).await.unwrap(), there);
        }
        drop(served);
        for child in &mut bystanders {
            assert!(child.try_wait().unwrap().is_none(), "a bystander was ended");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(ours.path().join("operator.lock").exists() && ours.path().join("not an id.sock").exists());
    }
}
