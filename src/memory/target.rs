//! The memory file that a capture becomes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::content::{How, Pair, create, freeze};
use super::maps::FileId;
use super::{Error, names};

/// Zeroes are looked for in units of this many bytes.
const PAGE: usize = 4096;
static ZEROES: [u8; PAGE] = [0; PAGE];

/// A new file that goes away again unless it is kept.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    file: File,
    /// Nothing but a hole so far, so zeroes need not be written.
    blank: bool,
    /// Kept or removed: nothing is left to remove.
    settled: AtomicBool,
}

impl Target {
    /// Creates `path` as a copy of the base.
    ///
    /// # Errors
    /// Also when something has that name already.
    pub(super) fn new(path: &Path, base: (&Path, &File), size: u64, abandoned: &AtomicBool) -> Result<Self, Error> {
        let file = create(path)?;
        let mut target = Self { path: path.to_owned(), file, blank: false, settled: AtomicBool::new(false) };
        let how = Pair { source: base, target: (path, &target.file) }.fill(size, abandoned)?;
        tracing::debug!(base = ?base.0, target = ?path, ?how, "memory file copied");
        target.blank = how == How::Blank;
        Ok(target)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes pages to their place.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let written = if self.blank { self.write_some(bytes, offset) } else { self.file.write_all_at(bytes, offset) };
        written.map_err(Error::io("write guest memory to", &self.path))
    }

    /// Leaves out the pages of zeroes.
    fn write_some(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let zero = |page: &[u8]| page == &ZEROES[..page.len()];
        let (mut start, mut end) = (0, 0);
        for page in bytes.chunks(PAGE) {
            if zero(page) {
                self.file.write_all_at(&bytes[start..end], offset + start as u64)?;
                start = end + page.len();
            }
            end += page.len();
        }
        self.file.write_all_at(&bytes[start..end], offset + start as u64)
    }

    /// Makes it read-only.
    pub(super) fn freeze(&self) -> Result<(), Error> {
        freeze(&self.file, &self.path)
    }

    /// It stays when this value goes.
    pub(super) fn keep(&self) {
        self.settled.store(true, Ordering::Release);
    }

    /// Brings content and name to the disk.
    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io("bring to disk", &self.path))?;
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let synced = File::open(parent).and_then(|directory| directory.sync_all());
        synced.map_err(Error::io("bring to disk the directory", parent))
    }

    /// Removes the name, unless it is kept or somebody else's already.
    pub(super) fn discard(&self) {
        if self.settled.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = self.remove() {
            tracing::warn!(path = ?self.path, %error, "an unfinished memory file could not be removed");
        }
    }

    fn remove(&self) -> io::Result<()> {
        let own = FileId::new(&self.path, &self.file.metadata()?);
        match fs::symlink_metadata(&self.path) {
            Ok(found) if own.is(&found) => names::remove(&self.path),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.discard();
    }
}
