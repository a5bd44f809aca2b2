//! Guest memory, seen from outside the VMM.
//!
//! A VM that can be forked cheaply maps a *memory file* privately, one that nobody writes to any more:
//! a blank one when it booted, a frozen one when it was restored. What its guest has written since is
//! anonymous memory of the VMM's process; the kernel tells which pages those are. So a point in time of
//! a paused VM is its memory file plus those pages (cloud-hypervisor.md 5.4), and the runner takes them
//! itself: outside the pause whatever can be done before or after it.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

use crate::hypervisor::ProcessIdentity;

mod blank;
mod buffer;
mod content;
mod copy;
mod delta;
pub mod error;
mod files;
mod maps;
mod names;
mod process;
mod room;
mod scan;
mod target;
#[cfg(test)]
mod tests;
mod work;

pub use error::Error;
pub use files::FileMemory;

/// A running VM whose memory is to be taken.
#[derive(Debug, Clone)]
pub struct Source {
    /// The VMM.
    pub process: ProcessIdentity,
    /// The memory file that it maps privately.
    pub base: PathBuf,
    /// Size of the guest's RAM in bytes.
    pub size: u64,
}

/// What was copied while the VM was paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Taken {
    /// Bytes of guest memory that differ from the memory file.
    pub bytes: u64,
    /// Runs of adjacent pages.
    pub runs: u64,
    /// Time to find them.
    pub scan: Duration,
    /// Time to copy them.
    pub copy: Duration,
}

/// What a VMM's own mappings prove about its guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Bytes of guest RAM that are private mappings of the expected file: all of it.
    pub mapped: u64,
    /// Bytes of guest RAM that the process holds by itself so far.
    pub anonymous: u64,
}

/// Effects on guest memory. Blocking work goes to blocking threads inside the implementation.
pub trait Memory {
    /// Makes `path` a blank memory file of `size` bytes. All blank files of one size are one file with many
    /// names, so that the host caches its zeroes once.
    fn blank<'a>(&'a self, path: &'a Path, size: u64) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Makes `path` an empty memory file of `size` bytes that one VM alone writes to. Replaces what has that name.
    fn own<'a>(&'a self, path: &'a Path, size: u64) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Waits until these files, and their names, are on disk.
    fn sync<'a>(&'a self, files: &'a [PathBuf]) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Gives a frozen memory file another name, which outlives the first. Replaces what has that name.
    fn share<'a>(&'a self, file: &'a Path, name: &'a Path) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Does all that can be done while the VM still runs: `target` becomes a copy of the memory file (a clone
    /// where the file system can), and room for what was written since is made ready. Dropping the result
    /// before [`Delta::keep`] removes `target`.
    fn prepare<'a>(&'a self, source: &'a Source, target: &'a Path) -> LocalBoxFuture<'a, Result<Rc<dyn Delta>, Error>>;

    /// Looks at the VMM's mappings: is all of its guest's RAM a private mapping of `file`?
    fn verify<'a>(
        &'a self,
        process: &'a ProcessIdentity,
        file: &'a Path,
        size: u64,
    ) -> LocalBoxFuture<'a, Result<Proof, Error>>;
}

/// One capture of a VM's memory.
pub trait Delta {
    /// Takes the pages that were written since the memory file was frozen. The VM must be paused.
    fn take(&self) -> LocalBoxFuture<'_, Result<Taken, Error>>;

    /// Completes the target and makes it read-only; the VM may run meanwhile. `durable`: also on disk when
    /// this returns, not only in the page cache. May be repeated: after a failure it tries again, after a
    /// success it only does what `durable` adds.
    fn keep(&self, durable: bool) -> LocalBoxFuture<'_, Result<(), Error>>;
}
