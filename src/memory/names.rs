//! Names of files: hard links that appear at once under their name, whatever had it before.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Ends the names of what is not complete yet.
pub(super) const UNFINISHED: &str = ".unfinished";

/// A name beside `path` that nothing has: for a file that shall become `path` when it is complete.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // The same pid and number can only be left of an earlier boot or another life of the runner.
    name.push(format!(".{}-{number}{UNFINISHED}", std::process::id()));
    path.with_file_name(name)
}

/// Gives `file` the additional name `name`, in place of what has it.
pub(super) fn link(file: &Path, name: &Path) -> io::Result<()> {
    let new = beside(name);
    remove(&new)?;
    fs::hard_link(file, &new)?;
    finish(&new, name)
}

/// Moves a complete file to its name. Nothing is left at `new`, also if it fails.
pub(super) fn finish(new: &Path, name: &Path) -> io::Result<()> {
    let renamed = fs::rename(new, name);
    // Renaming one name of a file to another of the same file does nothing and leaves both.
    let removed = remove(new);
    renamed.and(removed)
}

/// Removes a name; none there is fine.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// True for what hard links fail with where another copy of the file does as well: another file system,
/// too many names, or a file system without hard links.
pub(super) fn cannot_link(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EXDEV | libc::EMLINK | libc::EPERM | libc::EOPNOTSUPP))
}
