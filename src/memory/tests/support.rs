//! Places to work in, and captures in one call.

use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::guest::Guest;
use crate::memory::content::freeze;
use crate::memory::{Delta, Error, FileMemory, Memory, Source, Taken};

pub const PAGE: u64 = 4096;
pub const MIB: u64 = 1 << 20;

/// Runs one future on a runtime of the calling thread.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub struct Room {
    pub root: PathBuf,
    mounted: bool,
    _directory: TempDir,
}

impl Room {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        Self { root: directory.path().canonicalize().unwrap(), mounted: false, _directory: directory }
    }

    /// A file system of its own, in a mount namespace of this thread: nothing outlives the process.
    fn mounted(mount_it: impl FnOnce(&Path)) -> Self {
        let directory = TempDir::new().unwrap();
        let root = directory.path().canonicalize().unwrap().join("volume");
        std::fs::create_dir(&root).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount_it(&root);
        Self { root, mounted: true, _directory: directory }
    }

    pub fn tmpfs(bytes: u64) -> Self {
        Self::mounted(|at| {
            let options = format!("size={bytes}");
            mount(Some("runner-ch-test"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        })
    }

    /// One that can clone files.
    pub fn xfs() -> Self {
        let images = TempDir::new().unwrap();
        let image = images.path().join("volume.img");
        std::fs::File::create(&image).unwrap().set_len(400 * MIB).unwrap();
        run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image));
        // The loop device holds the image, also when it has no name any more.
        Self::mounted(|at| run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(at)))
    }

    pub fn memory(&self) -> FileMemory {
        FileMemory::open(&self.root).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn blank(&self, size: u64) -> PathBuf {
        let path = self.path("memory");
        wait(self.memory().blank(&path, size)).unwrap();
        path
    }

    /// A frozen file with the given bytes at their offsets.
    pub fn base(&self, size: u64, content: &[(u64, Vec<u8>)]) -> PathBuf {
        let path = self.path("base");
        let file = crate::memory::content::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in content {
            file.write_all_at(bytes, *offset).unwrap();
        }
        freeze(&file, &path).unwrap();
        path
    }

    pub fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(&self.root).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).filter(|n| n != ".memory").collect();
        names.sort();
        names
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.mounted {
            umount2(&self.root, MntFlags::MNT_DETACH).unwrap();
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn source(guest: &Guest, base: &Path, size: u64) -> Source {
    Source { process: guest.identity.clone(), base: base.to_owned(), size }
}

/// All steps of a capture.
pub fn capture(memory: &FileMemory, source: &Source, target: &Path) -> Result<Taken, Error> {
    wait(async {
        let delta: Rc<dyn Delta> = memory.prepare(source, target).await?;
        let taken = delta.take().await?;
        delta.keep(false).await?;
        Ok(taken)
    })
}

/// The error's words with all causes.
pub fn words(error: Error) -> String {
    crate::error::Failure::from(error).message
}
