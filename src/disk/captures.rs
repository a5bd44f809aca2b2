//! Points in time of disks: directories for captures, frozen clones of raw disks, and what tells one version of a
//! disk from another. Growing is here, too.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use futures::executor::block_on;
use imago::file::File as ImagoFile;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};
use rustix::fs::{Timespec, Timestamps};
use tracing::warn;

use super::base::Base;
use super::copy::{Check, Copied, Named, clone_or_copy};
use super::create::remove;
use super::files::{Inner, RAW_DISK};
use super::{Error, Format, RootDisk, Stamp, flatten, lock};

impl Inner {
    /// As [`super::Disks::begin_capture`].
    pub(super) fn begin_capture(&self) -> Result<PathBuf, Error> {
        let path = self.captures.join(uuid::Uuid::new_v4().to_string());
        // Before it can be seen.
        self.under_way.begin(&path);
        if let Err(error) = DirBuilder::new().mode(0o700).create(&path) {
            self.under_way.end(&path);
            return Err(Error::io("create the directory", &path)(error));
        }
        Ok(path)
    }

    /// As [`super::Disks::end_capture`].
    pub(super) fn end_capture(&self, dir: &Path) -> Result<(), Error> {
        self.expect_capture(dir)?;
        let removed = remove(dir);
        // Also when it could not be removed: then nobody cares for it any more.
        self.under_way.end(dir);
        removed
    }

    pub(super) fn expect_capture(&self, dir: &Path) -> Result<(), Error> {
        // `file_name` is none for `..`, so nothing above can be meant.
        if dir.parent() == Some(&self.captures) && dir.file_name().is_some() {
            return Ok(());
        }
        Err(Error::Foreign { what: "a capture's directory", path: dir.to_owned(), root: self.captures.clone() })
    }

    /// As [`super::Disks::freeze`]. Without reflink all data is copied while the VM is paused, which is correct, and
    /// told in the log because it is slow.
    pub(super) fn freeze(&self, root: &RootDisk, capture: &Path, abandoned: &AtomicBool) -> Result<RootDisk, Error> {
        if root.format != Format::Raw {
            return Err(Error::NotRaw { path: root.path.clone() });
        }
        self.expect_capture(capture)?;
        let path = capture.join(RAW_DISK);
        let source = File::open(&root.path).map_err(Error::io("open", &root.path))?;
        let check = || self.check("freezing a disk", abandoned);
        // A capture that begins anew may have a frozen disk of its first attempt.
        remove(&path)?;
        let size = copy_to((&source, &root.path), &path, 0o400, &check)?;
        Ok(RootDisk { path, format: Format::Raw, backed: false, size, base: root.base.clone(), layers: Vec::new() })
    }

    /// As [`super::Disks::grow`].
    pub(super) fn grow(&self, root: &RootDisk, size: u64) -> Result<RootDisk, Error> {
        if size == 0 || !size.is_multiple_of(512) {
            return Err(Error::Size { size });
        }
        lock::refuse_locked(&root.path)?;
        let before = std::fs::symlink_metadata(&root.path).map_err(Error::io("read the attributes of", &root.path))?;
        match root.format {
            Format::Raw => grow_raw(&root.path, size)?,
            Format::Qcow2 => grow_qcow2(&self.catalog.open_own(&root.path)?, size)?,
        }
        let file = OpenOptions::new().write(true).open(&root.path).map_err(Error::io("open", &root.path))?;
        keep_times(&file, &before).map_err(Error::io("set the times of", &root.path))?;
        Ok(RootDisk { size, ..root.clone() })
    }
}

/// As [`super::Disks::begin_checkpoint`].
pub(super) fn begin_checkpoint(dir: PathBuf) -> Result<PathBuf, Error> {
    remove(&dir)?;
    DirBuilder::new().mode(0o700).create(&dir).map_err(Error::io("create the directory", &dir))?;
    Ok(dir)
}

/// What the guest sees is the same as before, so a memory image that belongs to it still does.
pub(super) fn keep_times(file: &File, before: &Metadata) -> io::Result<()> {
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps {
        last_access: time(before.atime(), before.atime_nsec()),
        last_modification: time(before.mtime(), before.mtime_nsec()),
    };
    rustix::fs::futimens(file, &times).map_err(io::Error::from)
}

fn refuse_shrinking(path: &Path, size: u64, wanted: u64) -> Result<(), Error> {
    if wanted < size { Err(Error::Shrink { path: path.to_owned(), size, wanted }) } else { Ok(()) }
}

fn grow_raw(path: &Path, size: u64) -> Result<(), Error> {
    let file = OpenOptions::new().write(true).open(path).map_err(Error::io("open", path))?;
    let before = file.metadata().map_err(Error::io("read the attributes of", path))?.len();
    refuse_shrinking(path, before, size)?;
    let grown = if size > before { file.set_len(size).and_then(|()| file.sync_all()) } else { Ok(()) };
    grown.map_err(Error::io("grow", path))
}

/// The tables are made longer first and the size is written last, so a crash leaves the old size. What the backing
/// file has beyond the old size, if anything, is covered with zeroes.
fn grow_qcow2(chain: &Base, size: u64) -> Result<(), Error> {
    let (top, failed) = (&chain.top, || Error::io("grow", &chain.top.path));
    refuse_shrinking(&top.path, top.size, size)?;
    if size == top.size {
        return Ok(());
    }
    let file = OpenOptions::new().read(true).write(true).open(&top.path).map_err(failed())?;
    let hidden = chain.below.iter().any(|image| image.size > top.size);
    let mode = if hidden { PreallocateMode::Zero } else { PreallocateMode::None };
    let grown = async {
        let backing = match chain.below.split_first() {
            None => None,
            Some((first, rest)) => Some(flatten::open_chain(&Base { top: first.clone(), below: rest.to_vec() }).await?),
        };
        let options = StorageOpenOptions::new().filename(&top.path).write(true);
        let storage = ImagoFile::from_open_file(file.try_clone()?, options)?;
        let image = Qcow2::<ImagoFile>::builder(storage).write(true).backing(backing).data_file(None);
        let image = FormatAccess::new(image.open(DenyImplicitOpenGate::default()).await?);
        image.resize_grow(size, mode).await?;
        image.flush().await
    };
    block_on(grown).and_then(|()| file.sync_all()).map_err(failed())
}

/// As [`super::Disks::flush`].
pub(super) fn flush(path: &Path) -> Result<(), Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    file.sync_data().map_err(Error::io("flush", path))
}

/// As [`super::Disks::stamp`].
pub(super) fn stamp(path: &Path) -> Result<Stamp, Error> {
    let about = std::fs::symlink_metadata(path).map_err(Error::io("read the attributes of", path))?;
    let modified = i128::from(about.mtime()) * 1_000_000_000 + i128::from(about.mtime_nsec());
    Ok(Stamp { inode: about.ino(), length: about.len(), modified })
}

/// Makes the new file `path` a copy of a raw image to which nobody writes meanwhile; its size in bytes. On failure
/// there is no such file.
pub(super) fn copy_to(source: Named<'_>, path: &Path, mode: u32, check: Check<'_>) -> Result<u64, Error> {
    let begun = Instant::now();
    let target = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let target = target.map_err(Error::io("create", path))?;
    let copied = clone_or_copy(source, (&target, path), check).and_then(|how| {
        let size = target.metadata().map_err(Error::io("read the attributes of", path))?.len();
        Ok((how, size))
    });
    match copied {
        Ok((how, size)) => {
            if let Copied::Written(bytes) = how {
                let (from, milliseconds) = (source.1, begun.elapsed().as_millis() as u64);
                warn!(?from, to = ?path, bytes, milliseconds, "the file system cannot clone this disk: it was copied");
            }
            Ok(size)
        }
        Err(error) => Err(unmake(path, error)),
    }
}

/// Removes a file that a failed step has made; the error to answer with.
pub(super) fn unmake(path: &Path, error: Error) -> Error {
    match std::fs::remove_file(path) {
        Err(second) if second.kind() != io::ErrorKind::NotFound => Error::Leftover {
            path: path.to_owned(),
            source_error: crate::error::chain(&error),
            source: Box::new(Error::io(super::error::REMOVE, path)(second)),
        },
        _ => error,
    }
}
