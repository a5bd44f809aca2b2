//! Which layers are needed, by what the images themselves say: the headers of all sandboxes' images, of the layers
//! they lead to, and what is held in this process for work under way. Everything else among the layers goes. When
//! one header cannot be read nobody knows what it needs, and then all layers stay.

use std::collections::HashSet;
use std::fs::DirEntry;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tracing::{error, warn};

use super::base::LONGEST_CHAIN;
use super::create::remove;
use super::error::REMOVE;
use super::files::{Inner, OVERLAY_DISK};
use super::flight::locked;
use super::header::{Bad, backing_of};
use super::layers::seal;
use super::open::{Trust, open};
use super::{Error, Format, overlay};
use crate::error::chain;
use crate::ids::SandboxId;

/// Ending of what a merge has not finished.
pub(super) const UNFINISHED: &str = "tmp";

/// Device and inode: a layer is recognised by them, whatever path a header has for it.
pub(super) type Place = (u64, u64);

impl Inner {
    /// As [`super::Disks::sweep`].
    pub(super) fn sweep(&self) -> Result<u64, Error> {
        let mut count = 0;
        for capture in entries(&self.captures)? {
            remove(&capture.path())?;
            count += 1;
        }
        for directory in self.directories()? {
            let unfinished = overlay::unfinished(&directory.path().join(OVERLAY_DISK));
            if unfinished.symlink_metadata().is_ok() {
                remove(&unfinished)?;
                count += 1;
            }
        }
        for layer in entries(&self.layers)? {
            if layer.path().extension().is_some_and(|extension| extension == UNFINISHED) {
                remove(&layer.path())?;
                count += 1;
            }
        }
        count += self.collect()?;
        for layer in self.present()? {
            seal(&layer)?;
        }
        Ok(count)
    }

    /// Removes the layers that nobody needs; how many.
    ///
    /// # Errors
    /// A directory that cannot be listed, a layer that cannot be removed. That needs are unknown is no error but is
    /// told in the log.
    pub(super) fn collect(&self) -> Result<u64, Error> {
        let _collecting = locked(&self.collecting);
        let present = self.present()?;
        if present.is_empty() {
            return Ok(0);
        }
        let needed = match self.needed(&present) {
            Ok(needed) => needed,
            Err(cause) => {
                error!(error = %chain(&cause), "no layer is removed, because it is not known which are needed");
                return Ok(0);
            }
        };
        let mut count = 0;
        for layer in present {
            if place(&layer)?.is_some_and(|place| !needed.contains(&place)) {
                std::fs::remove_file(&layer).map_err(Error::io(REMOVE, &layer))?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// The same where something else has been done already that is not to fail for this.
    pub(super) fn tidy(&self) {
        if let Err(error) = self.collect() {
            warn!(error = %chain(&error), "unused layers are left until the next removal or start");
        }
    }

    pub(super) fn needed(&self, present: &[PathBuf]) -> Result<HashSet<Place>, Error> {
        let mut layers = HashSet::new();
        for layer in present {
            layers.extend(place(layer)?);
        }
        let mut needed = HashSet::new();
        // What is held has no name yet in the instant before a split links it.
        let held = self.holders.paths().into_iter().filter(|path| path.symlink_metadata().is_ok());
        let mut ahead: Vec<PathBuf> = held.collect();
        for directory in self.directories()? {
            ahead.extend(below(&directory.path().join(OVERLAY_DISK))?);
        }
        while let Some(path) = ahead.pop() {
            let Some(place) = place(&path)? else {
                return Err(Error::Chain { path, why: "it is missing".into() });
            };
            // A base never stands on a layer.
            if layers.contains(&place) && needed.insert(place) {
                ahead.extend(below(&path)?);
            }
        }
        Ok(needed)
    }

    pub(super) fn present(&self) -> Result<Vec<PathBuf>, Error> {
        let paths = entries(&self.layers)?.into_iter().map(|entry| entry.path());
        Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "qcow2")).collect())
    }

    fn directories(&self) -> Result<impl Iterator<Item = DirEntry>, Error> {
        let all = entries(&self.sandboxes)?.into_iter();
        Ok(all.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b".")))
    }

    /// As [`super::Disks::users_of`]; `dir` may be a file, too.
    pub(super) fn users_of(&self, dir: &Path) -> Result<Vec<SandboxId>, Error> {
        let real = match dir.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => dir.to_owned(),
            Err(error) => return Err(Error::io("resolve", dir)(error)),
        };
        let mut users: HashSet<_> = self.holders.users_of(&real).into_iter().collect();
        for directory in self.directories()? {
            let Some(sandbox) = directory.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if !users.contains(&sandbox) && leads_below(&directory.path().join(OVERLAY_DISK), &real)? {
                users.insert(sandbox);
            }
        }
        let mut users: Vec<_> = users.into_iter().collect();
        users.sort();
        Ok(users)
    }
}

/// Follows the chain of a disk; true when an image of it lies below `real`.
fn leads_below(disk: &Path, real: &Path) -> Result<bool, Error> {
    let mut image = (disk.to_owned(), Some(Format::Qcow2));
    for _ in 0..=LONGEST_CHAIN + 1 {
        if image.1 == Some(Format::Raw) {
            return Ok(false);
        }
        let Some((next, format)) = follow(&image.0)? else { return Ok(false) };
        let resolved = next.canonicalize().unwrap_or_else(|_| next.clone());
        if resolved.starts_with(real) || next.starts_with(real) {
            return Ok(true);
        }
        image = (next, format);
    }
    Err(Error::Chain { path: disk.to_owned(), why: "its chain does not end".into() })
}

/// The backing file of a sandbox's image or of a layer; `None` also when there is no such image.
pub(super) fn follow(image: &Path) -> Result<Option<(PathBuf, Option<Format>)>, Error> {
    let failed = |why: String| Error::Chain { path: image.to_owned(), why };
    let Some((file, _)) = open(image, Trust::Operator).map_err(|error| failed(error.to_string()))? else {
        return Ok(None);
    };
    match backing_of(&file) {
        Ok(backing) => {
            let directory = image.parent().unwrap_or(Path::new("/"));
            Ok(backing.map(|(name, format)| (directory.join(name), format)))
        }
        Err(Bad::Content(why)) => Err(failed(why)),
        Err(Bad::Read(error)) => Err(failed(error.to_string())),
    }
}

fn below(image: &Path) -> Result<Option<PathBuf>, Error> {
    follow(image).map(|found| found.map(|(path, _)| path))
}

pub(super) fn place(path: &Path) -> Result<Option<Place>, Error> {
    match std::fs::metadata(path) {
        Ok(about) => Ok(Some((about.dev(), about.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

pub(super) fn entries(directory: &Path) -> Result<Vec<DirEntry>, Error> {
    let listed = std::fs::read_dir(directory).and_then(Iterator::collect);
    listed.map_err(Error::io("list", directory))
}
