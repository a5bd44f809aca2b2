//! Named network namespaces, as `ip netns` knows them, and sockets inside them.

use std::fs::{DirBuilder, File};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};
use tokio::net::{TcpSocket, TcpStream};

use super::error::Error;
use crate::crash;
use crate::ids::NetnsName;

/// Where `ip netns` keeps its names.
const DIRECTORY: &str = "/run/netns";
/// File system type of an open namespace (linux/magic.h).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// An open namespace; cheap to clone, usable from any thread. As long as a clone lives the kernel
/// keeps the namespace, so drop all of them before tear-down is waited for.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: NetnsName,
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// Wraps an open descriptor of a namespace.
    pub fn from_fd(name: NetnsName, fd: OwnedFd) -> Self {
        Self { name, fd: Arc::new(fd) }
    }

    /// The name below /run/netns.
    pub fn name(&self) -> &NetnsName {
        &self.name
    }

    /// Opens a namespace by its name.
    ///
    /// # Errors
    /// [`Error::NoNamespace`] when there is none, or only the empty file that an interrupted
    /// creation leaves.
    pub fn open(name: &NetnsName) -> Result<Self, Error> {
        let fd = match File::open(path(name)) {
            Ok(file) => OwnedFd::from(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoNamespace { netns: name.clone() });
            }
            Err(error) => return Err(Error::kernel(format!("open network namespace {name}"), error)),
        };
        let kind = fstatfs(&fd).map_err(|errno| Error::kernel(format!("examine network namespace {name}"), errno))?;
        if kind.filesystem_type() != NSFS_MAGIC {
            return Err(Error::NoNamespace { netns: name.clone() });
        }
        Ok(Self::from_fd(name.clone(), fd))
    }

    /// Connects to an address inside, from any thread of a tokio runtime. The stream has TCP_NODELAY
    /// set. `timeout` covers the connection set-up.
    ///
    /// While the stream is open, and until what was written to it has been acknowledged, the
    /// namespace cannot go away: close streams before tear-down.
    ///
    /// # Errors
    /// [`Error::Connect`] and [`Error::ConnectTimeout`].
    pub async fn connect(&self, address: SocketAddrV4, timeout: Duration) -> Result<TcpStream, Error> {
        let fault = |source| Error::Connect { address, netns: self.name.clone(), source };
        let socket = self.inside(TcpSocket::new_v4).map_err(fault)?.map_err(fault)?;
        socket.set_nodelay(true).map_err(fault)?;
        match tokio::time::timeout(timeout, socket.connect(address.into())).await {
            Ok(result) => result.map_err(fault),
            Err(_) => Err(Error::ConnectTimeout { address, netns: self.name.clone(), millis: timeout.as_millis() }),
        }
    }

    /// Runs `work` with the thread inside the namespace and takes it back to where it was; some ten
    /// microseconds. A socket belongs to the namespace in which it was made, so making it is all that
    /// has to happen inside. `work` must not wait, since everything else on the thread would see the
    /// wrong network.
    ///
    /// The process is aborted if the thread cannot get back, because a worker that stays inside would
    /// hand the sandbox's network to other sandboxes.
    pub(super) fn inside<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let home = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
        setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
        let back = Return { home };
        let result = work();
        drop(back);
        Ok(result)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The way back, taken even if the work inside panics.
struct Return {
    home: OwnedFd,
}

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(errno) = setns(&self.home, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%errno, "a thread cannot leave a sandbox's network namespace; aborting");
            std::process::abort();
        }
    }
}

/// Puts the calling thread into a new namespace and gives that a name. `mark` runs inside before the
/// name exists, so that every named namespace of ours carries the mark; what it returns is handed on.
/// The thread stays inside: call it on a thread that ends afterwards.
pub(super) fn enter_new<T>(name: &NetnsName, mark: impl FnOnce() -> Result<T, Error>) -> Result<(Namespace, T), Error> {
    let fault = |step: &str| {
        let what = format!("{step} network namespace {name}");
        move |errno: Errno| Error::kernel(what, errno)
    };
    ensure_directory()?;
    let file = path(name);
    File::create_new(&file).map_err(|error| Error::kernel(format!("create {}", file.display()), error))?;
    crash::point("net.create:file");
    unshare(CloneFlags::CLONE_NEWNET).map_err(fault("make"))?;
    let marked = mark()?;
    let own = Path::new("/proc/thread-self/ns/net");
    let none: Option<&str> = None;
    mount(Some(own), &file, none, MsFlags::MS_BIND, none).map_err(fault("name"))?;
    Ok((Namespace::open(name)?, marked))
}

/// Takes the name away; the namespace itself goes when nobody holds it any more. True when there was
/// something to remove.
pub(super) fn remove_name(name: &NetnsName) -> Result<bool, Error> {
    let file = path(name);
    // As often as it was mounted; EINVAL says that it is no mount point (any more).
    loop {
        match umount2(&file, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(Error::kernel(format!("unmount {}", file.display()), errno)),
        }
    }
    match std::fs::remove_file(&file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::kernel(format!("remove {}", file.display()), error)),
    }
}

/// Names of all namespaces; entries that are no names of ours are left out.
pub(super) fn names() -> Result<Vec<NetnsName>, Error> {
    let fault = |error| Error::kernel(format!("list {DIRECTORY}"), error);
    let entries = match std::fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fault(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fault)?;
        names.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
    }
    names.sort();
    Ok(names)
}

pub(super) fn path(name: &NetnsName) -> PathBuf {
    Path::new(DIRECTORY).join(name.as_str())
}

/// Makes /run/netns a shared mount point, as iproute2 does. Otherwise a mount namespace that copied
/// it (a service with a private /tmp, say) would keep our namespaces alive after their removal. The
/// lock is iproute2's too: two at once would mount one upon the other.
fn ensure_directory() -> Result<(), Error> {
    let fault = |step: &str, error: io::Error| Error::kernel(format!("{step} {DIRECTORY}"), error);
    DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY).map_err(|error| fault("create", error))?;
    let open = File::open(DIRECTORY).map_err(|error| fault("open", error))?;
    let _lock = Flock::lock(open, FlockArg::LockExclusive).map_err(|(_, errno)| fault("lock", errno.into()))?;
    let none: Option<&str> = None;
    let share = || mount(none, DIRECTORY, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match share() {
        Err(Errno::EINVAL) => {}
        result => return result.map_err(|errno| fault("share", errno.into())),
    }
    mount(Some(DIRECTORY), DIRECTORY, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .map_err(|errno| fault("mount", errno.into()))?;
    share().map_err(|errno| fault("share", errno.into()))
}
