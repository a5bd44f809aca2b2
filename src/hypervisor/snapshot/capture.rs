//! Snapshots without memory. The hypervisor writes `config.json`, `state.json` and `memory-ranges`, in this order,
//! and none over a file that exists. So with a file of the last name in place it stops with an error after the
//! second (cloud-hypervisor.md 5.4).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::files::{MEMORY, check_complete, check_empty, failed};
use crate::error::Certainty;
use crate::hypervisor::Error;

/// An empty `memory-ranges` that keeps the hypervisor from writing one. Everything here blocks.
#[derive(Debug)]
pub struct Placeholder {
    dir: PathBuf,
}

impl Placeholder {
    /// Puts it into an empty directory.
    pub fn put(dir: &Path) -> Result<Self, Error> {
        check_empty(dir)?;
        let path = dir.join(MEMORY);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        made.map_err(failed("make placeholder", &path))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Weighs the answer of `vm.snapshot`. Success is the refusal that was provoked, or a success of a VM that has
    /// no memory to write, and both files written to their ends. Takes the placeholder away, except after an
    /// error that leaves open whether the hypervisor is still at work: without it that would write all RAM.
    pub fn settle(self, answer: Result<(), Error>) -> Result<(), Error> {
        let refused = answer.as_ref().err().is_some_and(is_provoked);
        let settled = match answer {
            Err(error) if error.certainty() == Certainty::Unknown => return Err(error),
            Err(error) if !refused => Err(error),
            _ => self.check_untouched().and_then(|()| check_complete(&self.dir)),
        };
        let path = self.dir.join(MEMORY);
        let removed = fs::remove_file(&path).map_err(failed("remove placeholder", &path));
        settled.and(removed)
    }

    fn check_untouched(&self) -> Result<(), Error> {
        let path = self.dir.join(MEMORY);
        let found = fs::metadata(&path).map_err(failed("look at placeholder", &path))?.len();
        if found == 0 {
            return Ok(());
        }
        let expected = "an empty placeholder that keeps the hypervisor from writing memory".into();
        Err(Error::SnapshotMismatch { path, expected, found: format!("{found} bytes") })
    }
}

/// The refusal to make `memory-ranges` because it exists. v53 names the file; before, the text is the same for
/// each of the three, but the directory was empty, so the other two cannot be meant once they are complete.
fn is_provoked(error: &Error) -> bool {
    let unnamed = || !error.says("snapshot file");
    matches!(error, Error::Api { status: 500, .. }) && error.says("File exists") && (error.says(MEMORY) || unnamed())
}

#[cfg(test)]
mod tests;
