//! What lies below CH_SANDBOXES_PATH, and what of it is under way in this process. It only looks; removal proves each
//! thing again, under the locks that its makers take.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::base::path_key;
use super::collect::{UNFINISHED, entries};
use super::create::remove;
use super::files::{Inner, OVERLAY_DISK, RAW_DISK, SEED, real_bases};
use super::flight::locked;
use super::{Error, lock};
use crate::error::chain;
use crate::fork::capture::MEMORY;
use crate::ids::SandboxId;

/// Directory of a checkpoint, in a sandbox's directory.
const CHECKPOINT: &str = "checkpoint";
/// Directory with the snapshot that a VM was restored from, there too.
const RESTORE: &str = "restore";
/// Below the sandboxes: blank memory files.
const BLANKS: &str = ".memory";

/// Names that the runner and its VMMs give to files in a sandbox's directory.
const FILES: [&str; 10] = [
    RAW_DISK,
    OVERLAY_DISK,
    SEED,
    MEMORY,
    "vmm.out",
    "vmm.log",
    "vmm.log.1",
    "events.json",
    "events.json.1",
    "serial.log",
];

/// A directory with the name of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectorySeen {
    /// The sandbox that it has the name of.
    pub sandbox: SandboxId,
    /// Where it is.
    pub path: PathBuf,
    /// Only its owner, who is this process's user, may enter it, as it is made.
    pub private: bool,
    /// What is in it, in its checkpoint and in the device state there, as paths from here; directories end in `/`.
    pub files: BTreeSet<String>,
}

impl DirectorySeen {
    /// What tells that the directory is not, or not only, one that the runner made; none: it is.
    pub fn stranger(&self) -> Option<String> {
        if !self.private {
            return Some("its mode is not that of a directory which the runner makes (0700, its own user)".to_owned());
        }
        let top = self.files.iter().filter(|name| !name.trim_end_matches('/').contains('/'));
        let mut unknown = top.filter(|name| {
            let known_dir = [CHECKPOINT, RESTORE, crate::hypervisor::bundle::DIR]
                .iter()
                .any(|dir| name.strip_suffix('/') == Some(dir));
            !known_dir && !FILES.contains(&name.as_str()) && !is_unfinished(name)
        });
        unknown.next().map(|name| format!("it holds {name:?}, which the runner does not make"))
    }

    /// Files that an interrupted step has left, as paths from the directory.
    pub fn unfinished(&self) -> impl Iterator<Item = &String> {
        self.files.iter().filter(|name| is_unfinished(name))
    }

    /// It has a checkpoint, whole or not.
    pub fn has_checkpoint(&self) -> bool {
        self.files.contains("checkpoint/")
    }

    /// The first file that a checkpoint lacks.
    pub fn lacks_of_checkpoint(&self) -> Option<&'static str> {
        let needed = ["checkpoint/memory", "checkpoint/device/config.json", "checkpoint/device/state.json"];
        needed.into_iter().find(|name| !self.files.contains(*name))
    }
}

/// Ends of [`super::overlay::unfinished`] and of the names that memory files have until they are whole.
fn is_unfinished(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    last == "disk.qcow2.new" || (last.starts_with('.') && last.ends_with(".unfinished"))
}

/// A directory of a capture, with how long it has been under way in this process; none: it is not.
pub type CaptureSeen = (PathBuf, Option<Duration>);

/// A frozen image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSeen {
    /// Where it is.
    pub path: PathBuf,
    /// A disk stands on it, or work under way in this process holds it; none: that is not known.
    pub needed: Option<bool>,
}

/// A file that is kept to save work, and that nobody uses at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSeen {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes that it takes.
    pub bytes: u64,
    /// What it is.
    pub what: &'static str,
}

/// Everything that was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskSurvey {
    /// CH_SANDBOXES_PATH.
    pub root: PathBuf,
    /// Directories with names of sandboxes.
    pub directories: Vec<DirectorySeen>,
    /// Directories of captures.
    pub captures: Vec<CaptureSeen>,
    /// Frozen images, and those that a merge has begun.
    pub layers: Vec<LayerSeen>,
    /// What nobody uses and may stay.
    pub caches: Vec<CacheSeen>,
    /// What could not be looked at, and why.
    pub unread: Vec<String>,
}

/// Something on disk that nobody needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskLeak {
    /// The whole directory of a sandbox that does not exist.
    Directory(SandboxId),
    /// The checkpoint of a sandbox that knows of none.
    Checkpoint(SandboxId),
    /// A file that an interrupted step has left in a sandbox's directory, as path from there.
    Unfinished(SandboxId, String),
    /// A capture.
    Capture(PathBuf),
    /// A layer, or one that a merge has begun.
    Layer(PathBuf),
}

/// Paths that are being made in this process.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<HashMap<PathBuf, Instant>>);

impl UnderWay {
    pub(super) fn begin(&self, path: &Path) {
        locked(&self.0).insert(path.to_owned(), Instant::now());
    }

    pub(super) fn end(&self, path: &Path) {
        locked(&self.0).remove(path);
    }

    /// Ends with the returned value, also by a panic.
    pub(super) fn guard<'a>(&'a self, path: &'a Path) -> impl Drop + 'a {
        struct Guard<'a>(&'a UnderWay, &'a Path);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                self.0.end(self.1);
            }
        }
        self.begin(path);
        Guard(self, path)
    }

    fn since(&self, path: &Path) -> Option<Duration> {
        locked(&self.0).get(path).map(Instant::elapsed)
    }
}

impl Inner {
    /// As [`super::Disks::survey`].
    pub(super) fn survey(&self) -> Result<DiskSurvey, Error> {
        let mut survey = DiskSurvey { root: self.sandboxes.clone(), ..DiskSurvey::default() };
        for entry in entries(&self.sandboxes)? {
            let Some(sandbox) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match self.directory_seen(sandbox) {
                Ok(seen) => survey.directories.extend(seen),
                Err(error) => survey.unread.push(chain(&error)),
            }
        }
        for capture in entries(&self.captures)?.into_iter().map(|entry| entry.path()).filter(|path| is_ours(path)) {
            let since = self.under_way.since(&capture);
            survey.captures.push((capture, since));
        }
        self.layers_seen(&mut survey)?;
        self.caches_seen(&mut survey)?;
        Ok(survey)
    }

    /// `None` for what is no directory, or is gone.
    fn directory_seen(&self, sandbox: SandboxId) -> Result<Option<DirectorySeen>, Error> {
        let path = self.dir(&sandbox);
        let Some(about) = look(&path)?.filter(Metadata::is_dir) else { return Ok(None) };
        let private = about.mode() & 0o077 == 0 && about.uid() == rustix::process::geteuid().as_raw();
        let mut files = BTreeSet::new();
        for below in ["", "checkpoint/", "checkpoint/device/"] {
            if below.is_empty() || files.contains(below) {
                let listed = match std::fs::read_dir(path.join(below)).and_then(Iterator::collect::<io::Result<Vec<_>>>)
                {
                    Ok(listed) => listed,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(Error::io("list", path.join(below))(error)),
                };
                for entry in listed {
                    let end = if entry.file_type().is_ok_and(|kind| kind.is_dir()) { "/" } else { "" };
                    files.insert(format!("{below}{}{end}", entry.file_name().to_string_lossy()));
                }
            }
        }
        Ok(Some(DirectorySeen { sandbox, path, private, files }))
    }

    fn layers_seen(&self, survey: &mut DiskSurvey) -> Result<(), Error> {
        let _collecting = locked(&self.collecting);
        let present = self.present()?;
        let needed = if present.is_empty() { Ok(HashSet::new()) } else { self.needed(&present) };
        for path in entries(&self.layers)?.into_iter().map(|entry| entry.path()).filter(|path| is_ours(path)) {
            let needed = match path.extension().and_then(|extension| extension.to_str()) {
                Some(UNFINISHED) => Some(self.under_way.since(&path).is_some()),
                Some("qcow2") => match (&needed, super::collect::place(&path)?) {
                    (_, None) => continue,
                    (Ok(needed), Some(place)) => Some(needed.contains(&place)),
                    (Err(_), Some(_)) => None,
                },
                _ => continue,
            };
            survey.layers.push(LayerSeen { path, needed });
        }
        if let Err(error) = needed {
            survey.unread.push(format!("which layers are needed: {}", chain(&error)));
        }
        Ok(())
    }

    fn caches_seen(&self, survey: &mut DiskSurvey) -> Result<(), Error> {
        let (images, unread) = match real_bases(&self.snapshots, self.catalog.configured()) {
            Ok(images) => (images, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let kept: Vec<String> = images.iter().map(|path| path_key(path)).collect();
        for (path, about) in files_in(self.flattened.directory())? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let in_use = match name.strip_suffix(".tmp") {
                Some(key) => self.flattened.is_under_way(key),
                None => kept.iter().any(|key| name.starts_with(key.as_str())),
            };
            if !in_use && unread.is_none() {
                survey.caches.push(CacheSeen { path, bytes: about.blocks() * 512, what: "flattened base" });
            }
        }
        survey.unread.extend(unread.map(|error| format!("which bases there are: {}", chain(&error))));
        for (path, about) in files_in(&self.sandboxes.join(BLANKS))? {
            if about.nlink() == 1 {
                survey.caches.push(CacheSeen { path, bytes: about.blocks() * 512, what: "blank memory" });
            }
        }
        Ok(())
    }

    /// As [`super::Disks::remove_leaked`].
    pub(super) fn remove_leaked(&self, leak: &DiskLeak) -> Result<bool, Error> {
        match leak {
            DiskLeak::Directory(sandbox) => self.remove_directory(sandbox),
            DiskLeak::Checkpoint(sandbox) => {
                let _turn = self.gate.enter(sandbox);
                remove_there(&self.dir(sandbox).join(CHECKPOINT))
            }
            DiskLeak::Unfinished(sandbox, name) => {
                let _turn = self.gate.enter(sandbox);
                let path = self.dir(sandbox).join(name);
                let seen = self.directory_seen(sandbox.clone())?;
                if !seen.is_some_and(|seen| seen.unfinished().any(|found| found == name)) {
                    return Ok(false);
                }
                remove_there(&path)
            }
            DiskLeak::Capture(path) => {
                self.expect_capture(path)?;
                if !is_ours(path) {
                    return Err(self.foreign("a capture's directory", path));
                }
                remove_there(path)
            }
            DiskLeak::Layer(path) => self.remove_layer(path),
        }
    }

    fn foreign(&self, what: &'static str, path: &Path) -> Error {
        Error::Foreign { what, path: path.to_owned(), root: self.sandboxes.clone() }
    }

    fn remove_directory(&self, sandbox: &SandboxId) -> Result<bool, Error> {
        let turn = self.gate.enter(sandbox);
        let Some(seen) = self.directory_seen(sandbox.clone())? else { return Ok(false) };
        if seen.stranger().is_some() {
            return Err(self.foreign("a sandbox's directory", &seen.path));
        }
        for disk in [RAW_DISK, OVERLAY_DISK] {
            lock::refuse_locked(&seen.path.join(disk))?;
        }
        remove(&seen.path)?;
        self.holders.release(sandbox);
        drop(turn);
        self.tidy();
        Ok(true)
    }

    /// Under the lock that is held by whoever comes to need a layer.
    fn remove_layer(&self, path: &Path) -> Result<bool, Error> {
        if path.parent() != Some(&self.layers) || !is_ours(path) {
            return Err(self.foreign("a layer", path));
        }
        let _collecting = locked(&self.collecting);
        let in_use = match path.extension().is_some_and(|extension| extension == UNFINISHED) {
            true => self.under_way.since(path).is_some(),
            false => {
                let needed = self.needed(&self.present()?)?;
                super::collect::place(path)?.is_some_and(|place| needed.contains(&place))
            }
        };
        if in_use { Ok(false) } else { remove_there(path) }
    }
}

/// Captures and layers have random names; anything else was put there by somebody else.
fn is_ours(path: &Path) -> bool {
    path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| Uuid::try_parse(stem).is_ok())
}

fn look(path: &Path) -> Result<Option<Metadata>, Error> {
    match std::fs::symlink_metadata(path) {
        Ok(about) => Ok(Some(about)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

fn remove_there(path: &Path) -> Result<bool, Error> {
    let there = look(path)?.is_some();
    remove(path).map(|()| there)
}

/// Plain files; a directory that is not there has none.
fn files_in(directory: &Path) -> Result<Vec<(PathBuf, Metadata)>, Error> {
    if look(directory)?.is_none() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in entries(directory)? {
        files.extend(look(&entry.path())?.filter(Metadata::is_file).map(|about| (entry.path(), about)));
    }
    Ok(files)
}
