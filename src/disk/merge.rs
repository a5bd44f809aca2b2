//! Merging layers: one new image with the content of all of them on the same base, made while the VM runs on the
//! old ones. Only what the layers hold is copied, not the base.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use futures::executor::block_on;
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, ShallowMapping, StorageOpenOptions};

use super::base::{Base, Image};
use super::captures::unmake;
use super::collect::UNFINISHED;
use super::copy::{CHUNK, Check};
use super::files::Inner;
use super::flight::locked;
use super::layers::{seal, sync_directory};
use super::lock::Merged;
use super::{Error, Format, RootDisk, flatten, overlay};

/// Fewer layers are not worth the work.
const FEWEST: usize = 3;

type Access = FormatAccess<ImagoFile>;

/// Where the content of a range is.
enum Content {
    /// In this layer.
    Layer(usize),
    /// Nowhere: zeroes, whatever the base has.
    Zeroes,
    /// In the base, or nowhere.
    Below,
}

impl Inner {
    /// As [`super::Disks::merge`]. The new layer is held for the disk until [`super::Disks::rebase`] puts the disk on
    /// it, [`super::Disks::release`] gives its path up, or the sandbox is removed. Until then the old ones are held
    /// by the disk itself.
    pub(super) fn merge(&self, root: &RootDisk, abandoned: &AtomicBool) -> Result<Option<PathBuf>, Error> {
        if root.format != Format::Qcow2 || root.layers.len() < FEWEST {
            return Ok(None);
        }
        let (chain, held) = {
            let _collecting = locked(&self.collecting);
            let chain = self.catalog.reopen(&root.layers[0])?;
            let held = self.holders.hold(chain.images())?;
            (chain, held)
        };
        let (replaces, _) = self.parts(&chain);
        if replaces.len() < FEWEST {
            return Ok(None);
        }
        let name = uuid::Uuid::new_v4();
        let unfinished = self.layers.join(format!("{name}.{UNFINISHED}"));
        let _under_way = self.under_way.guard(&unfinished);
        let check = || self.check("merging the layers of a disk", abandoned);
        let made = write(&chain, replaces.len(), &unfinished, &check).and_then(|()| seal(&unfinished));
        made.map_err(|error| unmake(&unfinished, error))?;
        let path = self.layers.join(format!("{name}.qcow2"));
        let merged = Merged { disk: root.path.clone(), replaces };
        self.publish(&unfinished, &path, merged).map_err(|error| unmake(&unfinished, error))?;
        drop(held);
        // A removal that was faster than the publishing could not take it along.
        let wanted = || match root.path.symlink_metadata() {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::io("find the disk that was merged", &root.path)(source)),
        };
        if let Err(error) = check().and_then(|()| wanted()).and_then(|()| sync_directory(&self.layers)) {
            self.release(&path)?;
            return Err(error);
        }
        Ok(Some(path))
    }

    /// Gives the image its name and holds it, in one step for those who look for layers to remove.
    fn publish(&self, unfinished: &Path, path: &Path, merged: Merged) -> Result<(), Error> {
        let _collecting = locked(&self.collecting);
        std::fs::rename(unfinished, path).map_err(Error::io("rename the merged layer to", path))?;
        let held = self.catalog.reopen(path).and_then(|chain| self.holders.hold(chain.images()));
        match held {
            Ok(held) => {
                self.holders.keep(path.to_owned(), held, Some(merged));
                Ok(())
            }
            Err(error) => Err(unmake(path, error)),
        }
    }
}

/// Writes the merged image `path` from the first `count` images of the chain.
fn write(chain: &Base, count: usize, path: &Path, check: Check<'_>) -> Result<(), Error> {
    let failed = || Error::io("write the merged layer", path);
    match chain.images().nth(count) {
        Some(base) => overlay::create_at(path, base, chain.top.size)?,
        None => overlay::create_alone(path, chain.top.size)?,
    }
    let file = File::options().read(true).write(true).open(path).map_err(failed())?;
    let base = chain.below.get(count - 1..).and_then(<[Image]>::split_first);
    let size_below = base.map_or(0, |(base, _)| base.size);
    let open = async {
        let backing = match base {
            None => None,
            Some((top, below)) => Some(flatten::open_chain(&Base { top: top.clone(), below: below.to_vec() }).await?),
        };
        let storage =
            ImagoFile::from_open_file(file.try_clone()?, StorageOpenOptions::new().filename(path).write(true))?;
        let image = Qcow2::<ImagoFile>::builder(storage).write(true).backing(backing).data_file(None);
        Ok(FormatAccess::new(image.open(DenyImplicitOpenGate::default()).await?))
    };
    let target: Access = block_on(open).map_err(failed())?;
    let mut layers = Vec::new();
    for image in chain.images().take(count) {
        // Without what is below: a range that it does not hold itself has to be told from one of zeroes.
        let layer = block_on(flatten::open_image(image, None)).map_err(Error::io("read the layer", &image.path))?;
        layers.push((layer, image));
    }
    copy(&layers, &target, path, chain.top.size, size_below, check)?;
    block_on(target.flush()).and_then(|()| file.sync_all()).map_err(failed())
}

fn copy(
    layers: &[(Access, &Image)],
    target: &Access,
    path: &Path,
    size: u64,
    size_below: u64,
    check: Check<'_>,
) -> Result<(), Error> {
    let failed = || Error::io("write the merged layer", path);
    let mut buffer = Vec::new();
    let mut offset = 0;
    while offset < size {
        check()?;
        let (content, length) = look(layers, offset, size - offset)?;
        let length = match content {
            Content::Layer(at) => {
                let length = length.min(CHUNK);
                buffer.resize(length as usize, 0);
                let (layer, image) = &layers[at];
                block_on(layer.read(&mut buffer, offset)).map_err(Error::io("read the layer", &image.path))?;
                block_on(target.write(&buffer, offset)).map_err(failed())?;
                length
            }
            // Beyond the base an empty range reads as zeroes, too.
            Content::Zeroes if offset < size_below => {
                block_on(target.write_zeroes(offset, length)).map_err(failed())?;
                length
            }
            Content::Zeroes | Content::Below => length,
        };
        offset += length;
    }
    Ok(())
}

/// Who has the content at `offset`, the nearest layer first, and for how many bytes at least.
fn look(layers: &[(Access, &Image)], offset: u64, most: u64) -> Result<(Content, u64), Error> {
    let mut length = most;
    for (at, (layer, image)) in layers.iter().enumerate() {
        // What is beyond the end of an image hides what is below it.
        if offset >= layer.size() {
            return Ok((Content::Zeroes, length));
        }
        let wanted = length.min(layer.size() - offset);
        let failed = || Error::io("read the layer", &image.path);
        let (mapping, found) = block_on(layer.get_shallow_mapping(offset, wanted)).map_err(failed())?;
        if found == 0 {
            return Err(failed()(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
        }
        length = length.min(found);
        match mapping {
            ShallowMapping::Zero { explicit: true, .. } => return Ok((Content::Zeroes, length)),
            ShallowMapping::Zero { explicit: false, .. } => {}
            _ => return Ok((Content::Layer(at), length)),
        }
    }
    Ok((Content::Below, length))
}
