//! A store out of a backup: read to its end first, then built beside the old one, then put in its place in one step.

use std::fs::{DirBuilder, File};
use std::io::{self, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

use super::backup::{self, Header};
use super::engine::{Change, Engine, Hold, hold, write_error};
use crate::pressure::Pressure;

/// Records between two flushes.
const CHUNK: usize = 64;

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backup cannot be opened.
    #[error("cannot read the backup {file}")]
    Open {
        /// The backup.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The backup is not whole.
    #[error("cannot restore from {file}, {fault}")]
    Fault {
        /// The backup.
        file: PathBuf,
        /// Line and reason.
        fault: backup::Fault,
    },
    /// A runner has the store open.
    #[error("the store {state} is in use; stop the runner first (sandboxes keep running), then restore")]
    InUse {
        /// The store.
        state: PathBuf,
    },
    /// There is something already.
    #[error("there is a store in {state} already; --replace puts it aside and takes the backup instead")]
    NotEmpty {
        /// The store.
        state: PathBuf,
    },
    /// A step on files failed; the old store is where it was.
    #[error("cannot {what}; the store is as it was")]
    Io {
        /// What was tried, on what.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Directories cannot be exchanged there.
    #[error(
        "cannot put the restored store in the place of {state}: {source}; where this is a mount point, set RUNNER_STATE_PATH to a directory on it instead, and restore there"
    )]
    Exchange {
        /// The store.
        state: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The new store could not be written; the old one is where it was.
    #[error("cannot build the restored store; the store is as it was")]
    Build(#[source] super::Error),
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// The backup's header.
    pub header: Header,
    /// Where the old store was put, if there was one.
    pub aside: Option<PathBuf>,
}

/// Restores the backup `file` as the store `state`. `stamp` is a text of this time, for the names of directories.
///
/// # Errors
/// Whatever it is, the store in `state` is as it was.
pub fn restore(file: &Path, state: &Path, replace: bool, stamp: &str) -> Result<Restored, Error> {
    // First of all, and once more while it is built: a file that changes in between is noticed.
    let header = read(file, |_| Ok(()))?;
    let failed = |what: String| move |source| Error::Io { what, source };
    let there = !is_empty(state).map_err(failed(format!("look into {}", state.display())))?;
    let held = hold(state).map_err(failed(format!("lock the store {}", state.display())))?;
    if matches!(held, Hold::Others) {
        return Err(Error::InUse { state: state.to_owned() });
    }
    if there && !replace {
        return Err(Error::NotEmpty { state: state.to_owned() });
    }
    let parent = state.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent).map_err(failed(format!("make {}", parent.display())))?;
    let new = beside(state, "new", stamp);
    DirBuilder::new().mode(0o700).create(&new).map_err(failed(format!("make {}", new.display())))?;
    let done = build(file, &new, &header).and_then(|()| {
        sync(&new).map_err(failed(format!("write {}", new.display())))?;
        put(&new, state, there, stamp)
    });
    match done {
        Ok(aside) => {
            File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed(format!("write {}", parent.display())))?;
            Ok(Restored { header, aside })
        }
        Err(error) => {
            // What is left of it only takes space; its name tells what it was.
            let _ = std::fs::remove_dir_all(&new);
            Err(error)
        }
    }
}

fn read(file: &Path, mut take: impl FnMut(backup::Saved) -> Result<(), String>) -> Result<Header, Error> {
    let opened = File::open(file).map_err(|source| Error::Open { file: file.to_owned(), source })?;
    backup::read(BufReader::new(opened), &mut take).map_err(|fault| Error::Fault { file: file.to_owned(), fault })
}

fn build(file: &Path, new: &Path, header: &Header) -> Result<(), Error> {
    let mut engine = Engine::open(new, 0, Pressure::default()).map_err(Error::Build)?;
    let mut failure = None;
    let mut changes = Vec::new();
    let mut commit = |changes: &mut Vec<Change>| {
        let done = engine.commit(changes);
        changes.clear();
        done
    };
    let again = read(file, |saved| {
        changes.push(Change::Put(saved.kind, saved.key, saved.value));
        if changes.len() < CHUNK {
            return Ok(());
        }
        commit(&mut changes).map_err(|error| {
            let words = error.to_string();
            failure = Some(error);
            words
        })
    });
    if let Some(source) = failure {
        return Err(Error::Build(write_error("a record of the backup", source)));
    }
    let again = again?;
    commit(&mut changes).map_err(|source| Error::Build(write_error("a record of the backup", source)))?;
    if again != *header {
        let fault = backup::Fault { line: 1, reason: "the file was changed while it was read".to_owned() };
        return Err(Error::Fault { file: file.to_owned(), fault });
    }
    // The next start brings an older one forward.
    engine.set_format(header.store_format).map_err(Error::Build)
}

/// Puts the new store in its place. The old one is first exchanged with it, so that at no instant there is none, and
/// then gets its own name.
fn put(new: &Path, state: &Path, there: bool, stamp: &str) -> Result<Option<PathBuf>, Error> {
    let exchange = |source: io::Error| Error::Exchange { state: state.to_owned(), source };
    if !there {
        // Over an empty directory, which a runner that starts meanwhile would make not empty.
        return std::fs::rename(new, state).map(|()| None).map_err(exchange);
    }
    rustix::fs::renameat_with(CWD, new, CWD, state, RenameFlags::EXCHANGE).map_err(|error| exchange(error.into()))?;
    let aside = beside(state, "before-restore", stamp);
    // From here on the restore is done; a name that cannot be given is only less telling.
    let kept = if std::fs::rename(new, &aside).is_ok() { aside } else { new.to_owned() };
    Ok(Some(kept))
}

fn beside(state: &Path, what: &str, stamp: &str) -> PathBuf {
    let mut name = state.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{what}-{stamp}"));
    state.with_file_name(name)
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// The database's flush survives a kill; a store that replaces another has to survive a power cut as well.
fn sync(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { sync(&path)? } else { File::open(&path)?.sync_all()? }
    }
    File::open(dir)?.sync_all()
}
