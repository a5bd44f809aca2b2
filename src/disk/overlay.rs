//! The overlay strategy: a qcow2 image that holds what differs from its backing file, the base.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use futures::executor::block_on;
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, StorageOpenOptions};

use super::base::Image;
use super::{Error, Format};

/// Longest name of a backing file that fits into a qcow2 header.
const LONGEST_BACKING: usize = 1023;

/// Makes the overlay `{path}` of `size` bytes, which is there as a whole or not at all. Blocking: call it on a
/// blocking thread.
pub(super) fn create(path: &Path, base: &Image, size: u64) -> Result<(), Error> {
    let unfinished = unfinished(path);
    create_at(&unfinished, base, size)?;
    std::fs::rename(&unfinished, path).map_err(Error::io("rename the new root disk to", path))
}

/// Where an overlay is until it is whole: the same name with `.new` behind it.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Makes an overlay right under its name.
///
/// The backing path is absolute, so it means the same whoever reads it, and its format is written
/// down: nobody has to guess from bytes that a guest may have written.
pub(super) fn create_at(path: &Path, base: &Image, size: u64) -> Result<(), Error> {
    let backing = base.path.to_str().filter(|text| text.len() <= LONGEST_BACKING).ok_or_else(|| {
        let why = format!("its path is not UTF-8 or longer than {LONGEST_BACKING} bytes; move it");
        Error::BaseInvalid { path: base.path.clone(), why }
    })?;
    let format = match base.format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    };
    write(path, Some((backing, format)), size).map_err(Error::io("create the root disk", path))
}

/// Makes an image that stands alone, right under its name.
pub(super) fn create_alone(path: &Path, size: u64) -> Result<(), Error> {
    write(path, None, size).map_err(Error::io("create the image", path))
}

fn write(path: &Path, backing: Option<(&str, &str)>, size: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let options = StorageOpenOptions::new().filename(path).write(true);
    let storage = ImagoFile::from_open_file(file, options)?;
    let image = Qcow2::<ImagoFile>::create_builder(storage).size(size);
    block_on(match backing {
        Some((name, format)) => image.backing(name.to_owned(), format.to_owned()).create(),
        None => image.create(),
    })
}
