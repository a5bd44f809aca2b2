//! [`FileSnapshots`]: snapshots as directories below CH_SNAPSHOTS_PATH.

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::survey::Temporary;
use super::{Error, Found, Manifest, Save, SnapshotSurvey, Snapshots};
use crate::ids::{SandboxId, SnapshotRef};

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const DISK: &str = "disk.raw";
pub(super) const MEMORY: &str = "memory";
/// What the VMM wrote of a warm snapshot.
pub(super) const DEVICE: [&str; 2] = ["config.json", "state.json"];
/// Names of what is being made or removed begin so: hidden, so no snapshot can have them.
pub(super) const TEMPORARY: &str = ".tmp-";

/// Snapshots as files. Every operation runs on a blocking thread of the tokio runtime that it is called in. Dropping
/// this value ends the saves that are under way.
pub struct FileSnapshots {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) root: PathBuf,
    pub(super) stopping: AtomicBool,
    /// Held while names appear or go, never during long work.
    pub(super) naming: Mutex<()>,
    /// Temporary names that are being used.
    pub(super) under_way: Mutex<HashSet<PathBuf>>,
}

impl Drop for FileSnapshots {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells the blocking thread that nobody waits for its answer any more.
struct Abandon(Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl FileSnapshots {
    /// Snapshots below `root`, which is made when missing. Blocking, short; for the start of the runner.
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let made = DirBuilder::new().mode(0o700).recursive(true).create(root);
        made.map_err(Error::io("create the directory", root))?;
        let root = root.canonicalize().map_err(Error::io("resolve", root))?;
        let inner =
            Inner { root, stopping: AtomicBool::new(false), naming: Mutex::default(), under_way: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes saves that are under way, or come later, end soon with an error; for the runner's shutdown.
    pub fn stop(&self) {
        self.inner.stopping.store(true, Ordering::SeqCst);
    }

    fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> LocalBoxFuture<'_, Result<T, Error>> {
        let inner = Arc::clone(&self.inner);
        async move {
            let done = crate::blocking::DATA.run(move || work(&inner)).await;
            done.unwrap_or(Err(Error::Died { what }))
        }
        .boxed_local()
    }
}

impl Snapshots for FileSnapshots {
    fn dir(&self, reference: &SnapshotRef) -> PathBuf {
        self.inner.root.join(reference.as_str())
    }

    fn save<'a>(&'a self, save: &'a Save) -> LocalBoxFuture<'a, Result<Manifest, Error>> {
        let (save, abandoned) = (save.clone(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&abandoned);
        async move {
            let _abandon = Abandon(abandoned);
            self.run("making a snapshot", move |inner| inner.save(&save, &seen)).await
        }
        .boxed_local()
    }

    fn find<'a>(&'a self, reference: &'a SnapshotRef) -> LocalBoxFuture<'a, Result<Option<Found>, Error>> {
        let reference = reference.clone();
        self.run("looking for a snapshot", move |inner| inner.find(&reference))
    }

    fn remove<'a>(
        &'a self,
        reference: &'a SnapshotRef,
        users: &'a [SandboxId],
    ) -> LocalBoxFuture<'a, Result<bool, Error>> {
        let (reference, users) = (reference.clone(), users.to_vec());
        self.run("removing a snapshot", move |inner| inner.remove(&reference, users))
    }

    fn survey(&self) -> LocalBoxFuture<'_, Result<SnapshotSurvey, Error>> {
        self.run("surveying the snapshots", Inner::survey)
    }

    fn remove_leaked<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, Result<bool, Error>> {
        let path = path.to_owned();
        self.run("removing an unfinished snapshot", move |inner| inner.remove_leaked(&path))
    }

    fn sweep(&self) -> LocalBoxFuture<'_, Result<u64, Error>> {
        self.run("sweeping the snapshots", Inner::sweep)
    }
}

impl Inner {
    /// A new temporary name, which is under way until the returned value is dropped.
    pub(super) fn temporary(&self) -> Temporary<'_> {
        let path = self.root.join(format!("{TEMPORARY}{}", uuid::Uuid::new_v4()));
        Temporary::begin(&self.under_way, path)
    }

    /// Opens a directory below the root, on a way without symbolic links; `None` when it is not there.
    pub(super) fn directory(&self, below: &str, reference: &SnapshotRef) -> Result<Option<OwnedFd>, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = || Error::io("open the directory", self.root.join(below));
        let root = rustix::fs::openat(CWD, &self.root, flags, Mode::empty()).map_err(failed())?;
        if below.is_empty() {
            return Ok(Some(root));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&root, below, flags, Mode::empty(), resolve) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(Errno::LOOP) => Err(Error::Link { reference: reference.clone(), root: self.root.clone() }),
            Err(errno) => Err(failed()(errno)),
        }
    }

    fn sweep(&self) -> Result<u64, Error> {
        let list = || Error::io("list", &self.root);
        let mut count = 0;
        for entry in std::fs::read_dir(&self.root).map_err(list())? {
            let entry = entry.map_err(list())?;
            if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
                erase(&entry.path()).map_err(Error::io("remove", entry.path()))?;
                count += 1;
            }
        }
        Ok(count)
    }
}

/// The directory that a reference lies in, and its own name there.
pub(super) fn parts(reference: &SnapshotRef) -> (&str, &str) {
    reference.as_str().rsplit_once('/').unwrap_or(("", reference.as_str()))
}

/// Removes a file, a link, or a directory with all in it; "not there" is success.
pub(super) fn erase(path: &Path) -> io::Result<()> {
    let removed = match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => std::fs::remove_file(path),
        other => other,
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
