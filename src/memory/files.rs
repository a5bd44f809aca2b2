//! [`FileMemory`]: guest memory in files below the sandboxes directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::blank::Blanks;
use super::content::{Pair, create, freeze};
use super::delta::{Capture, FileDelta, open_base, scan};
use super::maps::guest_ram;
use super::process::Vmm;
use super::scan::Scanner;
use super::work::blocking;
use super::{Delta, Error, Memory, Proof, Source, names};
use crate::hypervisor::ProcessIdentity;

/// Pages of one VM that are held in memory at most during its capture.
const CAP: u64 = 1 << 30;
/// More threads than this only wait for the host's memory.
const THREADS: usize = 4;

/// Guest memory in files. Every operation runs on a blocking thread of the tokio runtime that it is
/// called in.
#[derive(Debug)]
pub struct FileMemory {
    blanks: Arc<Blanks>,
    cap: u64,
    threads: usize,
}

impl FileMemory {
    /// Makes the directory of blank memory files, `{sandboxes}/.memory`, and removes those that no
    /// sandbox uses any more. Blocking, short; meant for the start of the runner.
    ///
    /// # Errors
    /// A directory that cannot be made, listed or written to.
    pub fn open(sandboxes: &Path) -> Result<Self, Error> {
        Self::with_cap(sandboxes, CAP)
    }

    /// The same with a limit, in bytes, for the host memory that one capture takes; what does not fit is
    /// written to the file while the VM is paused.
    ///
    /// # Errors
    /// As for [`FileMemory::open`].
    pub fn with_cap(sandboxes: &Path, cap: u64) -> Result<Self, Error> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        Ok(Self { blanks: Arc::new(Blanks::open(sandboxes)?), cap, threads })
    }
}

impl Memory for FileMemory {
    fn blank<'a>(&'a self, path: &'a Path, size: u64) -> LocalBoxFuture<'a, Result<(), Error>> {
        let (blanks, path) = (Arc::clone(&self.blanks), path.to_owned());
        blocking("making a blank memory file", move |_| blanks.give(&path, size)).boxed_local()
    }

    fn own<'a>(&'a self, path: &'a Path, size: u64) -> LocalBoxFuture<'a, Result<(), Error>> {
        let path = path.to_owned();
        blocking("making a memory file", move |_| own(&path, size)).boxed_local()
    }

    fn sync<'a>(&'a self, files: &'a [PathBuf]) -> LocalBoxFuture<'a, Result<(), Error>> {
        let files = files.to_vec();
        blocking("bringing memory to disk", move |_| files.iter().try_for_each(|file| sync(file))).boxed_local()
    }

    fn share<'a>(&'a self, file: &'a Path, name: &'a Path) -> LocalBoxFuture<'a, Result<(), Error>> {
        let (file, name) = (file.to_owned(), name.to_owned());
        blocking("sharing a memory file", move |abandoned| share(&file, &name, abandoned)).boxed_local()
    }

    fn prepare<'a>(&'a self, source: &'a Source, target: &'a Path) -> LocalBoxFuture<'a, Result<Rc<dyn Delta>, Error>> {
        let (source, target): (Source, PathBuf) = (source.clone(), target.to_owned());
        let (cap, threads) = (self.cap, self.threads);
        let what = "preparing a capture of memory";
        let work = move |abandoned: &AtomicBool| Capture::prepare(&source, &target, cap, threads, abandoned);
        async move { Ok(Rc::new(FileDelta::new(blocking(what, work).await?)) as Rc<dyn Delta>) }.boxed_local()
    }

    fn verify<'a>(
        &'a self,
        process: &'a ProcessIdentity,
        file: &'a Path,
        size: u64,
    ) -> LocalBoxFuture<'a, Result<Proof, Error>> {
        let (process, file) = (process.clone(), file.to_owned());
        blocking("looking at a VMM's memory", move |_| verify(&process, &file, size)).boxed_local()
    }
}

/// Not blank in the sense of [`Memory::blank`]: its VM writes to it, so it is nobody else's.
fn own(path: &Path, size: u64) -> Result<(), Error> {
    names::remove(path).map_err(Error::io("remove the old memory file", path))?;
    create(path)?.set_len(size).map_err(Error::io("set the size of", path))
}

fn sync(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(path);
    for place in [path, parent] {
        let file = File::open(place).map_err(Error::io("open", place))?;
        file.sync_all().map_err(Error::io("bring to disk", place))?;
    }
    Ok(())
}

fn share(file: &Path, name: &Path, abandoned: &AtomicBool) -> Result<(), Error> {
    match names::link(file, name) {
        Err(error) if names::cannot_link(&error) => {
            tracing::debug!(?file, ?name, %error, "a memory file cannot be linked here: it is copied");
            let new = names::beside(name);
            let copied = copy(file, &new, abandoned)
                .and_then(|()| names::finish(&new, name).map_err(Error::io("rename the memory file to", name)));
            if copied.is_err() {
                // What went wrong first is what counts.
                let _ = names::remove(&new);
            }
            copied
        }
        other => other.map_err(Error::io("link the memory file to", name)),
    }
}

/// A copy that is on disk when this returns, as its original may be.
fn copy(file: &Path, new: &Path, abandoned: &AtomicBool) -> Result<(), Error> {
    let source = File::open(file).map_err(Error::io("open the memory file", file))?;
    let len = source.metadata().map_err(Error::io("look at the memory file", file))?.len();
    let target = create(new)?;
    Pair { source: (file, &source), target: (new, &target) }.fill(len, abandoned)?;
    freeze(&target, new)?;
    target.sync_all().map_err(Error::io("bring to disk", new))
}

fn verify(process: &ProcessIdentity, path: &Path, size: u64) -> Result<Proof, Error> {
    let (file, _open) = open_base(path, size)?;
    let vmm = Vmm::open(process)?;
    let pieces = vmm.sure(guest_ram(&vmm, &file, size))?;
    let mut scanner = Scanner::new();
    vmm.sure(scan(&vmm, &mut scanner, &pieces))?;
    Ok(Proof { mapped: size, anonymous: scanner.written.bytes })
}
