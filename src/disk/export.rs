//! A frozen disk as one raw file that stands alone, for snapshots.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::base::Catalog;
use super::copy::{Check, clone_or_copy};
use super::open::{Trust, open};
use super::{Error, Format, RootDisk, flatten};

/// Makes the new file `target` (mode 0600) with the content of `disk` and of all that it stands on. Nobody writes to
/// the disk meanwhile. A raw one is cloned where the file system can. Returns the open file; on failure a part of it
/// may be left.
///
/// # Errors
/// An image that is missing or damaged, a full volume, or what `check` says.
pub(crate) fn export(disk: &RootDisk, target: &Path, check: Check<'_>) -> Result<File, Error> {
    let out = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(target);
    let out = out.map_err(Error::io("create", target))?;
    match disk.format {
        Format::Raw => {
            let opened = open(&disk.path, Trust::Operator).map_err(Error::io("open", &disk.path))?;
            let missing = || Error::io("open", &disk.path)(io::Error::from(io::ErrorKind::NotFound));
            let (source, _) = opened.ok_or_else(missing)?;
            clone_or_copy((&source, &disk.path), (&out, target), check)?;
        }
        Format::Qcow2 => {
            let chain = Catalog::new(PathBuf::new(), PathBuf::new()).open_own(&disk.path)?;
            flatten::convert(&chain, (&out, target), check)?;
        }
    }
    Ok(out)
}
