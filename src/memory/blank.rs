//! Blank memory files: sparse, read-only, one inode per size.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::content::freeze;
use super::names::{self, UNFINISHED};
use super::scan::page_size;
use super::{Error, content};

const DIRECTORY: &str = ".memory";
const PREFIX: &str = "blank-";

/// The directory of blank files.
#[derive(Debug)]
pub(super) struct Blanks {
    dir: PathBuf,
    /// One thread at a time makes a blank file, so that there is one of each size.
    making: Mutex<()>,
}

impl Blanks {
    /// Makes the directory and removes the blank files that no sandbox uses.
    pub(super) fn open(sandboxes: &Path) -> Result<Self, Error> {
        let dir = sandboxes.join(DIRECTORY);
        let made = DirBuilder::new().mode(0o700).recursive(true).create(&dir);
        made.map_err(Error::io("create the directory", &dir))?;
        let closed = fs::set_permissions(&dir, Permissions::from_mode(0o700));
        closed.map_err(Error::io("set the mode of", &dir))?;
        let blanks = Self { dir, making: Mutex::new(()) };
        blanks.sweep()?;
        Ok(blanks)
    }

    /// Unfinished files go first: they may be second names of blank ones.
    fn sweep(&self) -> Result<(), Error> {
        self.remove_if(|name, _| name.ends_with(UNFINISHED))?;
        self.remove_if(|name, links| name.starts_with(PREFIX) && links == 1)
    }

    fn remove_if(&self, wanted: impl Fn(&str, u64) -> bool) -> Result<(), Error> {
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let entry = entry.map_err(Error::io("list", &self.dir))?;
            let (name, path) = (entry.file_name(), entry.path());
            let metadata = entry.metadata().map_err(Error::io("look at", &path))?;
            if metadata.is_file() && name.to_str().is_some_and(|name| wanted(name, metadata.nlink())) {
                names::remove(&path).map_err(Error::io("remove the unused memory file", &path))?;
            }
        }
        Ok(())
    }

    /// Makes `path` a name of the blank file of that size, in place of what is there.
    pub(super) fn give(&self, path: &Path, size: u64) -> Result<(), Error> {
        let page = page_size();
        if size == 0 || !size.is_multiple_of(page) {
            return Err(Error::Size { size, page });
        }
        // It guards no data that a panic could have left half done.
        let _alone = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let blank = self.dir.join(format!("{PREFIX}{size}"));
        if !is_blank(&blank, size)? {
            make(&blank, size)?;
        }
        match names::link(&blank, path) {
            // As many names as the file system allows: the next sandboxes get another file.
            Err(error) if error.raw_os_error() == Some(libc::EMLINK) => {
                make(&blank, size)?;
                names::link(&blank, path).map_err(Error::io("link a blank memory file to", path))
            }
            Err(error) if names::cannot_link(&error) => {
                tracing::debug!(?path, %error, "a blank memory file cannot be linked here: it becomes a file of its own");
                make(path, size)
            }
            other => other.map_err(Error::io("link a blank memory file to", path)),
        }
    }
}

/// Whether it can be used; something else under that name is replaced.
fn is_blank(path: &Path, size: u64) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_file() && metadata.len() == size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

fn make(path: &Path, size: u64) -> Result<(), Error> {
    let new = names::beside(path);
    let made = content::create(&new).and_then(|file| {
        file.set_len(size).map_err(Error::io("set the size of", &new))?;
        freeze(&file, &new)?;
        names::finish(&new, path).map_err(Error::io("rename the memory file to", path))
    });
    if made.is_err() {
        // What went wrong first is what counts; the next start of the runner removes the rest.
        let _ = names::remove(&new);
    }
    made
}
