//! Making a sandbox's disks from a base, and removing them.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::base::Base;
use super::error::REMOVE;
use super::files::{Inner, OVERLAY_DISK, RAW_DISK, SEED};
use super::flight::Turn;
use super::lock::{self, Held};
use super::{Error, Format, Plan, RootDisk, SandboxDisks, Strategy, overlay, raw, seed};
use crate::crash;
use crate::ids::SandboxId;

/// Where a root disk comes from, ready to use.
enum Source {
    Flattened(Arc<std::fs::File>),
    Held(Vec<Arc<Held>>),
}

impl Inner {
    /// As [`super::Disks::create`].
    pub(super) fn create(&self, plan: &Plan, abandoned: &AtomicBool) -> Result<SandboxDisks, Error> {
        drop(self.clear(&plan.sandbox, abandoned)?);
        if plan.size == 0 || !plan.size.is_multiple_of(512) {
            return Err(Error::Size { size: plan.size });
        }
        let seed = seed::image(&plan.seed, self.guest_mtu)?;
        let base = self.catalog.find(plan.base.as_ref())?;
        base.fits(plan.size)?;
        // Without the turn: flattening can take minutes, and a removal shall not wait for it.
        let source = self.source(&base)?;
        let _turn = self.clear(&plan.sandbox, abandoned)?;
        let directory = self.dir(&plan.sandbox);
        let made = build(&directory, plan.size, &base, &source, &seed);
        match (made, source) {
            (Ok(disks), Source::Held(held)) => {
                self.holders.assign(&plan.sandbox, held);
                Ok(disks)
            }
            (Ok(disks), Source::Flattened(_)) => Ok(disks),
            (Err(error), _) => Err(undo(&directory, error)),
        }
    }

    /// Takes the sandbox's turn and removes what an earlier attempt left, unless a hypervisor has it
    /// open.
    pub(super) fn clear<'a>(&'a self, sandbox: &'a SandboxId, abandoned: &AtomicBool) -> Result<Turn<'a>, Error> {
        let turn = self.gate.enter(sandbox);
        // Set before a removal that follows the abandoned creation can have its turn.
        if abandoned.load(Ordering::SeqCst) {
            return Err(Error::Abandoned { what: "making the sandbox's disks" });
        }
        let directory = self.dir(sandbox);
        for disk in [RAW_DISK, OVERLAY_DISK] {
            lock::refuse_locked(&directory.join(disk))?;
        }
        remove(&directory)?;
        self.holders.release(sandbox);
        Ok(turn)
    }

    /// An overlay needs the base's locks for as long as it exists; a clone needs them only until the
    /// raw copy is made, and those that came with the base last that long.
    fn source(&self, base: &Base) -> Result<Source, Error> {
        match self.strategy {
            Strategy::Overlay => self.holders.hold(base.images()).map(Source::Held),
            Strategy::Reflink => self.flattened.get(base).map(Source::Flattened),
        }
    }

    /// As [`super::Disks::remove`]; layers that nobody else stands on go with it.
    pub(super) fn remove(&self, sandbox: &SandboxId) -> Result<(), Error> {
        let turn = self.gate.enter(sandbox);
        remove(&self.dir(sandbox))?;
        self.holders.release(sandbox);
        self.holders.forget_merges_for(&self.dir(sandbox).join(OVERLAY_DISK));
        drop(turn);
        self.tidy();
        Ok(())
    }
}

fn build(directory: &Path, size: u64, base: &Base, source: &Source, image: &[u8]) -> Result<SandboxDisks, Error> {
    let made = DirBuilder::new().mode(0o700).create(directory);
    made.map_err(Error::io("create the directory", directory))?;
    crash::point("disk.create:directory");
    let (name, format) = match source {
        Source::Flattened(_) => (RAW_DISK, Format::Raw),
        Source::Held(_) => (OVERLAY_DISK, Format::Qcow2),
    };
    let path = directory.join(name);
    match source {
        Source::Flattened(copy) => raw::create(&path, copy, size)?,
        Source::Held(_) => overlay::create(&path, &base.top, size)?,
    }
    crash::point("disk.create:root");
    let seed = directory.join(SEED);
    seed::write(&seed, image)?;
    let backed = matches!(source, Source::Held(_));
    Ok(SandboxDisks {
        root: RootDisk { path, format, backed, size, base: base.top.path.clone(), layers: Vec::new() },
        seed,
    })
}

/// Removes what a failed creation made; the error to answer with.
fn undo(directory: &Path, error: Error) -> Error {
    match remove(directory) {
        Ok(()) => error,
        Err(second) => Error::Leftover {
            path: directory.to_owned(),
            source_error: crate::error::chain(&error),
            source: Box::new(second),
        },
    }
}

/// Removes a directory with all in it; a symbolic link of that name goes, and not what it leads to.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let removed = match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => std::fs::remove_file(path),
        other => other,
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io(REMOVE, path)),
    }
}
