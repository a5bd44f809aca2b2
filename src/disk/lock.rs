//! Locks on bases. The hypervisor locks the top image of a chain only (cloud-hypervisor.md 6), so a
//! base in use could be booted read-write by somebody else. We hold read locks on every image of the
//! chain, shared by all sandboxes that stand on it.
//!
//! The locks are OFD locks, like the hypervisor's, which covers the whole file; qemu's tools lock single
//! bytes instead: 100 + n for what they do, 200 + n for what they forbid others, n being 0 read, 1 write,
//! 3 resize. Our ranges leave out the bytes that a reader of theirs tests, and take those that forbid
//! writing and resizing: `qemu-img info` works on a base in use, `qemu-img commit` does not.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::Error;
use super::base::{Identity, Image};
use super::flight::locked;
use crate::ids::SandboxId;

/// Start and length of our ranges; length 0 is "to the end, wherever that is".
const RANGES: [(i64, i64); 4] = [(0, 101), (201, 1), (203, 1), (300, 0)];
/// The bytes on which a writing qemu process holds a read lock.
const QEMU_WRITES: [i64; 2] = [101, 103];

/// A locked base image. Dropping the last owner closes the file, which ends the lock.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    identity: Identity,
    /// Keeps the lock: it belongs to this open file and ends with it.
    _file: Arc<File>,
}

/// What a merge has made, as long as it waits to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Merged {
    /// The disk that it is for.
    pub(super) disk: PathBuf,
    /// The layers that it replaces, the nearest first.
    pub(super) replaces: Vec<PathBuf>,
}

/// All bases and layers that are in use.
#[derive(Debug, Default)]
pub(super) struct Holders {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<(u64, u64), Weak<Held>>,
    users: HashMap<SandboxId, Vec<Arc<Held>>>,
    /// By the path of a layer that no sandbox may stand on yet.
    kept: HashMap<PathBuf, (Vec<Arc<Held>>, Option<Merged>)>,
}

impl Holders {
    /// Shares the locks of the images that are held already, and takes over those that came with the images for
    /// the others.
    pub(super) fn hold<'a>(&self, images: impl Iterator<Item = &'a Image>) -> Result<Vec<Arc<Held>>, Error> {
        let mut state = locked(&self.state);
        images.map(|image| state.hold(image)).collect()
    }

    /// Keeps the locks for as long as the sandbox exists.
    pub(super) fn assign(&self, sandbox: &SandboxId, held: Vec<Arc<Held>>) {
        locked(&self.state).users.insert(sandbox.clone(), held);
    }

    /// Ends this sandbox's part in its locks; those of others stay.
    pub(super) fn release(&self, sandbox: &SandboxId) {
        let mut state = locked(&self.state);
        state.users.remove(sandbox);
        state.tidy();
    }

    /// Keeps the locks of the chain from this layer down until [`Self::forget`].
    pub(super) fn keep(&self, layer: PathBuf, held: Vec<Arc<Held>>, merged: Option<Merged>) {
        locked(&self.state).kept.insert(layer, (held, merged));
    }

    /// Ends what [`Self::keep`] began.
    pub(super) fn forget(&self, layer: &Path) {
        let mut state = locked(&self.state);
        state.kept.remove(layer);
        state.tidy();
    }

    /// Ends it for all merges that were made for a disk which is gone.
    pub(super) fn forget_merges_for(&self, disk: &Path) {
        let mut state = locked(&self.state);
        state.kept.retain(|_, (_, merged)| merged.as_ref().is_none_or(|merged| merged.disk != disk));
        state.tidy();
    }

    /// What this layer was merged for.
    pub(super) fn merged(&self, layer: &Path) -> Option<Merged> {
        locked(&self.state).kept.get(layer).and_then(|(_, merged)| merged.clone())
    }

    /// Everything that anybody holds.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let state = locked(&self.state);
        state.held.values().filter_map(Weak::upgrade).map(|held| held.path.clone()).collect()
    }

    /// Sandboxes that hold a file below `directory`.
    pub(super) fn users_of(&self, directory: &Path) -> Vec<SandboxId> {
        let state = locked(&self.state);
        let uses = |held: &[Arc<Held>]| held.iter().any(|held| held.path.starts_with(directory));
        state.users.iter().filter(|(_, held)| uses(held)).map(|(sandbox, _)| sandbox.clone()).collect()
    }
}

impl State {
    fn tidy(&mut self) {
        self.held.retain(|_, held| held.strong_count() > 0);
    }

    fn hold(&mut self, image: &Image) -> Result<Arc<Held>, Error> {
        let place = image.identity.place();
        match self.held.get(&place).and_then(Weak::upgrade) {
            Some(held) if held.identity == image.identity => Ok(held),
            Some(_) => Err(Error::BaseChanged { path: image.path.clone() }),
            None => {
                let held = Arc::new(Held {
                    path: image.path.clone(),
                    identity: image.identity,
                    _file: Arc::clone(&image.file),
                });
                self.held.insert(place, Arc::downgrade(&held));
                Ok(held)
            }
        }
    }
}

fn range(kind: i32, (start, length): (i64, i64)) -> libc::flock {
    libc::flock {
        // Both constants are 0 to 2 on every Linux target.
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// Takes the read locks on one image, without waiting.
pub(super) fn lock_shared(file: &File, path: &Path) -> Result<(), Error> {
    for wanted in RANGES {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, wanted))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(taken(path)),
            Err(errno) => return Err(Error::io("lock the base image", path)(errno)),
        }
    }
    for byte in QEMU_WRITES {
        // A lock of exactly this byte is qemu's; a longer one is somebody's who only reads, like us.
        if foreign_lock(file, path, (byte, 1))?.is_some_and(|found| (found.l_start, found.l_len) == (byte, 1)) {
            return Err(taken(path));
        }
    }
    Ok(())
}

/// Refuses an image that anybody holds any lock on: a running hypervisor does, for its disk.
pub(super) fn refuse_locked(path: &Path) -> Result<(), Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    if foreign_lock(&file, path, (0, 0))?.is_some() { Err(taken(path)) } else { Ok(()) }
}

/// A lock of another open file that a write lock on `wanted` would meet.
fn foreign_lock(file: &File, path: &Path, wanted: (i64, i64)) -> Result<Option<libc::flock>, Error> {
    let mut probe = range(libc::F_WRLCK, wanted);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)).map_err(Error::io("look at the locks of", path))?;
    Ok((i32::from(probe.l_type) != libc::F_UNLCK).then_some(probe))
}

fn taken(path: &Path) -> Error {
    Error::Locked { path: path.to_owned(), holder: holders(path) }
}

/// Names the processes that have a lock on the file. OFD locks carry no process id, but every open
/// file's locks are listed in its owner's `/proc/{pid}/fdinfo`.
fn holders(path: &Path) -> String {
    let mut found: Vec<String> = processes().filter_map(|(pid, directory)| locker(&pid, &directory, path)).collect();
    found.sort();
    if found.is_empty() { "a process that is not visible from here".into() } else { found.join(", ") }
}

fn processes() -> impl Iterator<Item = (String, PathBuf)> {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid = entry.file_name().into_string().ok()?;
        pid.bytes().all(|byte| byte.is_ascii_digit()).then(|| (pid, entry.path()))
    })
}

fn locker(pid: &str, directory: &Path, path: &Path) -> Option<String> {
    let holds = std::fs::read_dir(directory.join("fd")).ok()?.flatten().any(|open| {
        std::fs::read_link(open.path()).is_ok_and(|target| target == path)
            && std::fs::read_to_string(directory.join("fdinfo").join(open.file_name()))
                .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
    });
    let name = std::fs::read_to_string(directory.join("comm")).unwrap_or_default();
    (holds && pid != std::process::id().to_string()).then(|| format!("process {pid} ({})", name.trim_end()))
}
