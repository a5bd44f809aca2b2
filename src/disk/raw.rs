//! The reflink strategy: a root disk shares the blocks of a flattened base until either is written to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Error;
use super::copy::cannot_clone;

/// Tries a real clone in the directory: only the file system itself knows whether it can.
///
/// `Ok(Err(cause))` when it cannot. Other failures (read-only, no permission) are errors.
pub(super) fn probe(directory: &Path) -> Result<Result<(), io::Error>, Error> {
    let mut source = unnamed(directory, "source")?;
    match source.write_all(&[1; 4096]) {
        // On a full volume the clone of an empty file still tells: the runner has to start there, too.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => source.set_len(0),
        other => other,
    }
    .map_err(Error::io("write a trial file in", directory))?;
    let target = unnamed(directory, "target")?;
    match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(Ok(())),
        Err(errno) if cannot_clone(errno) => Ok(Err(errno.into())),
        Err(errno) => Err(Error::io("clone a trial file in", directory)(errno)),
    }
}

/// A file that has no name any more when this returns, so nothing can be left behind later.
fn unnamed(directory: &Path, role: &str) -> Result<File, Error> {
    let path = directory.join(format!(".probe-{}-{role}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path);
    let file = file.map_err(Error::io("create a trial file", &path))?;
    std::fs::remove_file(&path).map_err(Error::io("remove the trial file", &path))?;
    Ok(file)
}

/// Makes `{path}` a clone of the base, grown to `size` bytes by a hole.
pub(super) fn create(path: &Path, base: &File, size: u64) -> Result<(), Error> {
    let disk = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let disk = disk.map_err(Error::io("create the root disk", path))?;
    rustix::fs::ioctl_ficlone(&disk, base).map_err(Error::io("clone the base image to", path))?;
    disk.set_len(size).map_err(Error::io("set the size of", path))
}
