//! Who lives behind an API socket.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use crate::hypervisor::{Error, identity};

/// How long a peer that is just going away, or whose backlog is full, is asked again.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(2);

/// A process that serves a socket.
#[derive(Debug)]
pub struct Peer {
    /// Its pid.
    pub pid: i32,
    /// A descriptor of that very process.
    pub pidfd: OwnedFd,
}

/// What is found at a socket's path.
#[derive(Debug)]
pub enum Finding {
    /// Nothing.
    Vacant,
    /// A socket that nobody serves.
    Stale,
    /// A served socket.
    Served(Peer),
}

/// Finds out who serves `socket`, by connecting to it.
pub async fn probe(socket: &Path) -> Result<Finding, Error> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let error = match UnixStream::connect(socket).await {
            Ok(stream) => match of(&stream, socket).await? {
                Some(peer) => return Ok(Finding::Served(peer)),
                None => io::Error::new(io::ErrorKind::TimedOut, "its peer has no process id here"),
            },
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => return Ok(Finding::Vacant),
                io::ErrorKind::ConnectionRefused => return unserved(socket),
                _ => error,
            },
        };
        if Instant::now() >= give_up {
            return Err(Error::File { what: "find out who serves", path: socket.to_owned(), source: error });
        }
        sleep(PAUSE).await;
    }
}

/// The process behind a connection; `None` when it has ended already.
pub async fn of(stream: &UnixStream, socket: &Path) -> Result<Option<Peer>, Error> {
    let fail = |source| Error::File { what: "ask for the peer of", path: socket.to_owned(), source };
    let Some(pid) = pid_of(stream).map_err(fail)? else { return Ok(None) };
    match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(pidfd) => Ok((!identity::has_ended(&pidfd, pid)?).then_some(Peer { pid, pidfd })),
        // Kernels before 6.5: a descriptor by number, and then the same number must still answer.
        Err(nix::errno::Errno::ENOPROTOOPT) => {
            let Some(pidfd) = identity::open(pid)? else { return Ok(None) };
            let again = match UnixStream::connect(socket).await {
                Ok(stream) => pid_of(&stream).map_err(fail)?,
                Err(_) => None,
            };
            Ok((again == Some(pid)).then_some(Peer { pid, pidfd }))
        }
        // The peer was reaped meanwhile; which error that is differs between kernels.
        Err(nix::errno::Errno::ESRCH | nix::errno::Errno::EINVAL | nix::errno::Errno::ENODATA) => Ok(None),
        Err(error) => Err(fail(error.into())),
    }
}

fn pid_of(stream: &UnixStream) -> io::Result<Option<i32>> {
    Ok(stream.peer_cred()?.pid().filter(|&pid| pid > 0))
}

/// "Refused" is also the answer of a plain file, so the kind is looked at.
fn unserved(socket: &Path) -> Result<Finding, Error> {
    match std::fs::symlink_metadata(socket) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(Finding::Stale),
        Ok(_) => Err(Error::NotASocket { socket: socket.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Finding::Vacant),
        Err(source) => Err(Error::File { what: "look at", path: socket.to_owned(), source }),
    }
}

/// VMMs that were started for `socket` but need not serve it any more, such as one that hangs in its
/// own shutdown. A process counts when it leads a session, as every VMM that the runner starts does,
/// and its arguments contain `--api-socket` followed by exactly this path. Blocks.
pub fn started_for(socket: &Path) -> Result<Vec<Peer>, Error> {
    let proc = Path::new("/proc");
    let fail = |source| Error::File { what: "list", path: proc.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(proc).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A first look without a descriptor; most processes end the search here.
        if !is_for(pid, socket) {
            continue;
        }
        // The descriptor first, then the proof: what fits now is the process behind it.
        if let Some(pidfd) = identity::open(pid)?
            && is_for(pid, socket)
            && !identity::has_ended(&pidfd, pid)?
        {
            found.push(Peer { pid, pidfd });
        }
    }
    Ok(found)
}

/// Whether the process leads a session and was started for this socket. Blocks.
pub fn is_for(pid: i32, socket: &Path) -> bool {
    // A process that goes away meanwhile or has no arguments (a kernel thread, a zombie) is none of ours.
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let arguments: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
    let wanted = [b"--api-socket".as_slice(), socket.as_os_str().as_bytes()];
    let process = nix::unistd::Pid::from_raw(pid);
    arguments.windows(2).any(|pair| pair == wanted) && nix::unistd::getsid(Some(process)) == Ok(process)
}

/// Path of the lock file that the hypervisor keeps beside its socket since v53.
pub fn lock_of(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Removes socket and lock file. Only for a socket that is proven to be served by nobody.
pub fn remove_files(socket: &Path) -> Result<(), Error> {
    for path in [socket.to_owned(), lock_of(socket)] {
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::File { what: "remove", path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn vacant_served_stale_and_no_socket() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("a.sock");
        assert!(matches!(probe(&socket).await.unwrap(), Finding::Vacant));
        let listener = UnixListener::bind(&socket).unwrap();
        let Finding::Served(peer) = probe(&socket).await.unwrap() else { panic!("this process serves it") };
        assert_eq!(peer.pid, std::process::id() as i32);
        drop(listener);
        assert!(matches!(probe(&socket).await.unwrap(), Finding::Stale));
        std::fs::write(lock_of(&socket), "").unwrap();
        remove_files(&socket).unwrap();
        remove_files(&socket).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::write(&socket, "text").unwrap();
        assert!(matches!(probe(&socket).await.unwrap_err(), Error::NotASocket { .. }));
    }

    #[test]
    fn a_session_leader_is_found_by_its_argument() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("a.sock");
        let start = |program: &str, before: &[&str]| {
            std::process::Command::new(program)
                .args(before)
                .args(["-c", "echo; read line", "name", "--api-socket"])
                .arg(&socket)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        };
        let (mut leader, mut follower) = (start("setsid", &["sh"]), start("sh", &[]));
        for child in [&mut leader, &mut follower] {
            // Its first byte shows that it runs with its final arguments.
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        }
        let pids = |found: Vec<Peer>| found.into_iter().map(|peer| peer.pid).collect::<Vec<_>>();
        assert_eq!(pids(started_for(&socket).unwrap()), [leader.id().cast_signed()]);
        assert!(started_for(&dir.path().join("b.sock")).unwrap().is_empty());
        for child in [&mut leader, &mut follower] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(started_for(&socket).unwrap().is_empty());
    }
}
