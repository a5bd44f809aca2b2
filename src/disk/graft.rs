//! Disks that continue frozen ones.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rustix::io::Errno;

use super::captures::{copy_to, unmake};
use super::copy::{Check, cannot_clone};
use super::create::remove;
use super::files::{Inner, OVERLAY_DISK, RAW_DISK, SEED};
use super::flight::locked;
use super::open::{Trust, open};
use super::{Error, Format, Graft, RootDisk, SandboxDisks, Strategy, lock, overlay, raw, seed};
use crate::crash;
use crate::ids::SandboxId;

impl Inner {
    /// As [`super::Disks::room`].
    pub(super) fn room(&self, sandbox: &SandboxId, abandoned: &AtomicBool) -> Result<(), Error> {
        let _turn = self.clear(sandbox, abandoned)?;
        let directory = self.dir(sandbox);
        let made = DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(Error::io("create the directory", &directory))
    }

    /// As [`super::Disks::graft`].
    pub(super) fn graft(&self, graft: &Graft, abandoned: &AtomicBool) -> Result<SandboxDisks, Error> {
        if graft.size == 0 || !graft.size.is_multiple_of(512) {
            return Err(Error::Size { size: graft.size });
        }
        let image = seed::image(&graft.seed, self.guest_mtu)?;
        let _turn = self.gate.enter(&graft.sandbox);
        let check = || self.check("making the sandbox's disks from frozen ones", abandoned);
        check()?;
        let directory = self.dir(&graft.sandbox);
        let made = enter(&directory)?;
        let result = self.clear_disks(&graft.sandbox, &directory).and_then(|()| {
            let root = self.root(graft, &directory, &check)?;
            crash::point("disk.graft:root");
            let path = directory.join(SEED);
            match seed::write(&path, &image) {
                Ok(()) => Ok(SandboxDisks { root, seed: path }),
                Err(error) => Err(unmake(&root.path, unmake(&path, error))),
            }
        });
        if result.is_err() {
            self.holders.release(&graft.sandbox);
            if made {
                // Empty unless somebody else has put something there, which is not ours to remove.
                let _ = std::fs::remove_dir(&directory);
            }
        }
        result
    }

    /// Removes the disks of an earlier attempt, and nothing else: a VMM may already have its files there.
    fn clear_disks(&self, sandbox: &SandboxId, directory: &Path) -> Result<(), Error> {
        for disk in [RAW_DISK, OVERLAY_DISK] {
            lock::refuse_locked(&directory.join(disk))?;
        }
        for file in [RAW_DISK, OVERLAY_DISK, SEED] {
            remove(&directory.join(file))?;
        }
        remove(&overlay::unfinished(&directory.join(OVERLAY_DISK)))?;
        self.holders.release(sandbox);
        Ok(())
    }

    fn root(&self, graft: &Graft, directory: &Path, check: Check<'_>) -> Result<RootDisk, Error> {
        let snapshot = graft.disk.path.starts_with(&self.snapshots);
        match (graft.disk.format, self.strategy) {
            (Format::Qcow2, _) => self.on_top(graft, directory),
            (Format::Raw, Strategy::Overlay) if snapshot => self.on_top(graft, directory),
            (Format::Raw, Strategy::Reflink) if snapshot => self.clone_snapshot(graft, directory, check),
            (Format::Raw, _) => self.clone_frozen(graft, directory, check),
        }
    }

    /// An overlay on a frozen image, which is held from before it is relied on.
    fn on_top(&self, graft: &Graft, directory: &Path) -> Result<RootDisk, Error> {
        let (frozen, path) = (&graft.disk, directory.join(OVERLAY_DISK));
        let (chain, held) = {
            let _collecting = locked(&self.collecting);
            let chain = self.catalog.reopen(&frozen.path)?;
            let held = self.holders.hold(chain.images())?;
            (chain, held)
        };
        fits(&frozen.path, chain.top.size, graft.size)?;
        overlay::create(&path, &chain.top, graft.size)
            .map_err(|error| unmake(&path, unmake(&overlay::unfinished(&path), error)))?;
        self.holders.assign(&graft.sandbox, held);
        let (layers, base) = self.parts(&chain);
        let base = base.unwrap_or_else(|| frozen.base.clone());
        Ok(RootDisk { path, format: Format::Qcow2, backed: true, size: graft.size, base, layers })
    }

    /// A clone, or where the file system cannot a copy, of a frozen raw disk.
    fn clone_frozen(&self, graft: &Graft, directory: &Path, check: Check<'_>) -> Result<RootDisk, Error> {
        let frozen = &graft.disk;
        let source = match open(&frozen.path, Trust::Operator).map_err(Error::io("open", &frozen.path))? {
            Some((file, _)) => file,
            None => return Err(Error::io("open", &frozen.path)(io::Error::from(io::ErrorKind::NotFound))),
        };
        let size = source.metadata().map_err(Error::io("read the attributes of", &frozen.path))?.len();
        fits(&frozen.path, size, graft.size)?;
        let path = directory.join(RAW_DISK);
        copy_to((&source, &frozen.path), &path, 0o600, check)?;
        let grown = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(graft.size));
        grown.map_err(|source| unmake(&path, Error::io("set the size of", &path)(source)))?;
        Ok(raw_disk(path, graft.size, frozen.base.clone()))
    }

    /// A clone of a snapshot's disk; from another file system by way of a raw copy on this one, which is made once.
    fn clone_snapshot(&self, graft: &Graft, directory: &Path, check: Check<'_>) -> Result<RootDisk, Error> {
        let (frozen, path) = (&graft.disk, directory.join(RAW_DISK));
        let base = self.catalog.reopen(&frozen.path)?;
        fits(&frozen.path, base.top.size, graft.size)?;
        let made = match raw::create(&path, &base.top.file, graft.size) {
            Err(Error::Io { source, .. }) if is_cannot_clone(&source) => {
                remove(&path)?;
                let copy = self.flattened.get(&base)?;
                check()?;
                raw::create(&path, &copy, graft.size)
            }
            made => made,
        };
        made.map_err(|error| unmake(&path, error))?;
        Ok(raw_disk(path, graft.size, frozen.path.clone()))
    }
}

fn raw_disk(path: PathBuf, size: u64, base: PathBuf) -> RootDisk {
    RootDisk { path, format: Format::Raw, backed: false, size, base, layers: Vec::new() }
}

fn is_cannot_clone(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| cannot_clone(Errno::from_raw_os_error(code)))
}

fn fits(frozen: &Path, size: u64, wanted: u64) -> Result<(), Error> {
    if wanted < size { Err(Error::Shrink { path: frozen.to_owned(), size, wanted }) } else { Ok(()) }
}

/// Makes the sandbox's directory unless it is there; true when it was made.
fn enter(directory: &Path) -> Result<bool, Error> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let about = std::fs::symlink_metadata(directory).map_err(Error::io("look at", directory))?;
            let odd = io::Error::from(io::ErrorKind::NotADirectory);
            if about.is_dir() { Ok(false) } else { Err(Error::io("use the directory", directory)(odd)) }
        }
        Err(error) => Err(Error::io("create the directory", directory)(error)),
    }
}
