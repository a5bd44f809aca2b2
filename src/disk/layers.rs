//! Layers: frozen qcow2 images in `{sandboxes}/.layers`, which disks of several sandboxes may stand on. One comes
//! to be when a sandbox's image is split, or when layers are merged. Nobody writes to a layer.

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::warn;

use super::base::{Base, Image, LONGEST_CHAIN};
use super::collect::follow;
use super::create::remove;
use super::files::{Inner, OVERLAY_DISK};
use super::flight::locked;
use super::header::{Bad, set_backing};
use super::lock::{self, Held};
use super::{Error, Format, RootDisk, Stamp, captures, overlay};
use crate::crash;
use crate::ids::SandboxId;

/// A disk stands on at most this many layers: with its own image and a base's chain it stays below the ten levels
/// that the hypervisor follows (cloud-hypervisor.md 6).
pub const MOST_LAYERS: usize = 6;

/// A chain, and the locks on it.
type Locked = (Base, Vec<Arc<Held>>);

/// What a chain is made of, from the top down: layers, then the base.
type Parts = (Vec<PathBuf>, Option<PathBuf>);

impl Inner {
    /// The layers among a chain's images, and the first image that is none.
    pub(super) fn parts(&self, chain: &Base) -> Parts {
        let is_layer = |image: &&Image| image.path.parent() == Some(&self.layers);
        let layers: Vec<_> = chain.images().take_while(is_layer).map(|image| image.path.clone()).collect();
        let base = chain.images().nth(layers.len()).map(|image| image.path.clone());
        (layers, base)
    }

    /// Opens what is below a sandbox's own image, and holds all of it. The headers say what that is: a record may be
    /// older than the last split.
    fn below(&self, disk: &Path) -> Result<Option<Locked>, Error> {
        let _collecting = locked(&self.collecting);
        let Some((backing, _)) = follow(disk)? else { return Ok(None) };
        let chain = self.catalog.reopen(&backing)?;
        let held = self.holders.hold(chain.images())?;
        Ok(Some((chain, held)))
    }

    /// As [`super::Disks::hold`]. A disk that stands alone needs nothing.
    pub(super) fn hold(&self, sandbox: &SandboxId, root: &RootDisk) -> Result<(), Error> {
        if root.format != Format::Qcow2 {
            return Ok(());
        }
        let _turn = self.gate.enter(sandbox);
        if let Some((_, held)) = self.below(&root.path)? {
            self.holders.assign(sandbox, held);
        }
        Ok(())
    }

    /// As [`super::Disks::split`]. The image gets a second name among the layers; a new one on top of it is made
    /// beside it and renamed over the first name. So the sandbox's path always names a whole disk, and what a crash
    /// leaves is a name too many, which [`Inner::sweep`] removes.
    pub(super) fn split(&self, sandbox: &SandboxId, root: &RootDisk) -> Result<(RootDisk, RootDisk), Error> {
        let path = self.own_image(sandbox, root)?;
        let _turn = self.gate.enter(sandbox);
        lock::refuse_locked(&path)?;
        let chain = self.catalog.open_own(&path)?;
        let below = chain.below.split_first().map(|(top, below)| Base { top: top.clone(), below: below.to_vec() });
        let (older, base) = below.as_ref().map(|below| self.parts(below)).unwrap_or_default();
        refuse_depth(&path, older.len(), chain.below.len())?;
        let layer = self.layers.join(format!("{}.qcow2", uuid::Uuid::new_v4()));
        let image = Image { path: layer.clone(), ..chain.top };
        // Held before it has that name: it cannot be taken for one that nobody needs.
        let held = self.holders.hold(std::iter::once(&image).chain(&chain.below))?;
        if let Err(error) = put_on_top(&path, &image) {
            unlink_layer(&path, &layer);
            return Err(error);
        }
        crash::point("disk.split:renamed");
        self.holders.assign(sandbox, held.clone());
        let sealed = seal(&layer).and_then(|()| sync_directory(&self.dir(sandbox)));
        sealed?;
        self.holders.keep(layer.clone(), held, None);
        let base = base.unwrap_or_else(|| root.base.clone());
        let frozen = RootDisk {
            path: layer.clone(),
            format: Format::Qcow2,
            backed: !chain.below.is_empty(),
            size: image.size,
            base: base.clone(),
            layers: older.clone(),
        };
        let layers = std::iter::once(layer).chain(older).collect();
        Ok((RootDisk { path, format: Format::Qcow2, backed: true, size: image.size, base, layers }, frozen))
    }

    /// As [`super::Disks::after_split`]. A split changes neither inode nor length nor time of what becomes a layer, so
    /// the stamp from before tells that layer; and an image to which nobody wrote equals one that is made anew.
    pub(super) fn after_split(
        &self,
        sandbox: &SandboxId,
        root: &RootDisk,
        stamp: Stamp,
    ) -> Result<Option<(RootDisk, Stamp)>, Error> {
        if root.format != Format::Qcow2 {
            return Ok(None);
        }
        let path = self.own_image(sandbox, root)?;
        let _turn = self.gate.enter(sandbox);
        let Some((chain, _)) = self.below(&path)? else { return Ok(None) };
        let (layers, base) = self.parts(&chain);
        let split = match layers.first() {
            Some(layer) => captures::stamp(layer)? == stamp && is_new(&path, &chain.top)?,
            None => false,
        };
        if !split {
            return Ok(None);
        }
        let base = base.unwrap_or_else(|| root.base.clone());
        let root = RootDisk { path: path.clone(), backed: true, size: chain.top.size, base, layers, ..root.clone() };
        Ok(Some((root, captures::stamp(&path)?)))
    }

    /// The sandbox's own qcow2 image; any other is refused, because it would be replaced.
    fn own_image(&self, sandbox: &SandboxId, root: &RootDisk) -> Result<PathBuf, Error> {
        let path = self.dir(sandbox).join(OVERLAY_DISK);
        match root.format {
            Format::Raw => Err(Error::NotLayered { path: root.path.clone() }),
            Format::Qcow2 if root.path != path => Err(Error::Foreign {
                what: "the sandbox's own image",
                path: root.path.clone(),
                root: self.dir(sandbox),
            }),
            Format::Qcow2 => Ok(path),
        }
    }

    /// As [`super::Disks::release`]; also for a merged layer that shall not be used.
    pub(super) fn release(&self, frozen: &Path) -> Result<(), Error> {
        self.holders.forget(frozen);
        self.collect().map(drop)
    }

    /// As [`super::Disks::rebase`]. The image keeps the time of its last write: what the guest sees is the same, so a
    /// memory image that belongs to it still does.
    pub(super) fn rebase(&self, sandbox: &SandboxId, root: &RootDisk, merged: &Path) -> Result<RootDisk, Error> {
        let path = self.own_image(sandbox, root)?;
        let turn = self.gate.enter(sandbox);
        lock::refuse_locked(&path)?;
        let outdated = || Error::Outdated { path: path.clone(), merged: merged.to_owned() };
        let made_for = self.holders.merged(merged).ok_or_else(outdated)?;
        let Some((chain, _)) = self.below(&path)? else { return Err(outdated()) };
        if made_for.disk != path || made_for.replaces != self.parts(&chain).0 {
            return Err(outdated());
        }
        let chain = self.catalog.reopen(merged)?;
        let held = self.holders.hold(chain.images())?;
        point_to(&path, merged)?;
        self.holders.assign(sandbox, held);
        self.holders.forget(merged);
        drop(turn);
        self.tidy();
        let (layers, base) = self.parts(&chain);
        Ok(RootDisk { base: base.unwrap_or_else(|| root.base.clone()), layers, ..root.clone() })
    }
}

fn refuse_depth(path: &Path, layers: usize, below: usize) -> Result<(), Error> {
    if layers >= MOST_LAYERS || (layers > 2 && below >= LONGEST_CHAIN) {
        return Err(Error::TooDeep { path: path.to_owned(), layers });
    }
    if below >= LONGEST_CHAIN {
        let why = format!("it stands on {below} images, and one more is too many; flatten its base image");
        return Err(Error::BaseInvalid { path: path.to_owned(), why });
    }
    Ok(())
}

/// Names the image `layer.path` as well, and puts an empty image on top of it under the name of before.
fn put_on_top(path: &Path, layer: &Image) -> Result<(), Error> {
    let unfinished = overlay::unfinished(path);
    remove(&unfinished)?;
    layer.file.sync_data().map_err(Error::io("flush", path))?;
    std::fs::hard_link(path, &layer.path).map_err(Error::io("link the disk as layer", &layer.path))?;
    crash::point("disk.split:linked");
    let directory = layer.path.parent().unwrap_or(Path::new("/"));
    let made = sync_directory(directory).and_then(|()| {
        overlay::create_at(&unfinished, layer, layer.size)?;
        let synced = File::open(&unfinished).and_then(|file| file.sync_all());
        synced.map_err(Error::io("flush", &unfinished))?;
        crash::point("disk.split:made");
        std::fs::rename(&unfinished, path).map_err(Error::io("rename the new root disk to", path))
    });
    made.map_err(|error| match remove(&unfinished) {
        Ok(()) => error,
        Err(second) => {
            Error::Leftover { path: unfinished, source_error: crate::error::chain(&error), source: Box::new(second) }
        }
    })
}

/// Whether the image is as [`put_on_top`] makes it on this layer.
fn is_new(path: &Path, layer: &Image) -> Result<bool, Error> {
    let (other, read) = (overlay::unfinished(path), |path: &Path| std::fs::read(path).map_err(Error::io("read", path)));
    remove(&other)?;
    let length =
        |path: &Path| std::fs::symlink_metadata(path).map_err(Error::io("look at", path)).map(|about| about.len());
    let same = overlay::create_at(&other, layer, layer.size).and_then(|()| {
        // A few clusters; what a guest has written to is longer, and not read.
        Ok(length(path)? == length(&other)? && same_tables(&read(path)?, &read(&other)?))
    });
    remove(&other)?;
    same
}

/// Equal but for the extensions behind the header, whose order is chance.
fn same_tables(one: &[u8], other: &[u8]) -> bool {
    const HEADER: usize = 104;
    const CLUSTER: usize = 64 << 10;
    one.get(..HEADER) == other.get(..HEADER) && one.get(CLUSTER..) == other.get(CLUSTER..)
}

/// Takes the second name away again after a failed split; never the last one.
fn unlink_layer(path: &Path, layer: &Path) {
    let place = |path: &Path| std::fs::symlink_metadata(path).map(|about| (about.dev(), about.ino()));
    let removed = match (place(path), place(layer)) {
        (Ok(disk), Ok(layered)) if disk == layered => std::fs::remove_file(layer),
        _ => return,
    };
    if let Err(error) = removed {
        warn!(?layer, %error, "a layer that is not needed cannot be removed; the next start tries again");
    }
}

/// Nobody writes to a layer, and its mode says so.
pub(super) fn seal(layer: &Path) -> Result<(), Error> {
    std::fs::set_permissions(layer, Permissions::from_mode(0o400)).map_err(Error::io("make read-only", layer))
}

/// Makes what was linked or renamed in a directory outlast a power failure.
pub(super) fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(Error::io("flush the directory", directory))
}

fn point_to(disk: &Path, layer: &Path) -> Result<(), Error> {
    let failed = || Error::io("change the backing file of", disk);
    let name = layer.to_str().ok_or_else(|| Error::Chain {
        path: layer.to_owned(),
        why: "its path is not UTF-8; move the sandboxes directory".into(),
    })?;
    let file = File::options().read(true).write(true).open(disk).map_err(failed())?;
    let before = file.metadata().map_err(failed())?;
    set_backing(&file, name).map_err(|bad| match bad {
        Bad::Content(why) => Error::Chain { path: disk.to_owned(), why },
        Bad::Read(source) => failed()(source),
    })?;
    captures::keep_times(&file, &before).map_err(failed())
}
