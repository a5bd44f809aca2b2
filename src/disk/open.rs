//! Opening files that others have named: never blocking, never anything but a regular file, and for what users
//! can name never outside of one directory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Where images may lie.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trust<'a> {
    /// The operator, or the runner itself, named the file: it may be anywhere.
    Operator,
    /// A snapshot: it and its backing files stay below this directory.
    Beneath(&'a Path),
}

/// Opens a regular file read-only and tells where it really is; `None` when nothing has that name.
///
/// # Errors
/// `EXDEV` or `ELOOP` when the path leads out of the trusted directory.
pub(crate) fn open(path: &Path, trust: Trust<'_>) -> io::Result<Option<(File, PathBuf)>> {
    // A FIFO must not block the open; for regular files the flag has no meaning.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = match trust {
        Trust::Operator => rustix::fs::openat(CWD, path, flags, Mode::empty()),
        Trust::Beneath(root) => open_beneath(root, path, flags),
    };
    let file = match opened {
        Ok(descriptor) => File::from(descriptor),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok(Some((file, path)))
}

/// Opens what is below `root`; symbolic links are followed within it.
pub(crate) fn open_beneath(root: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let Ok(below) = path.strip_prefix(root) else {
        return Err(Errno::XDEV);
    };
    let directory = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: a rename somewhere went on at the same time and the kernel could not be sure.
    for _ in 0..32 {
        match rustix::fs::openat2(&directory, below, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}
