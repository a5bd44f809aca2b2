//! The overlay strategy: a qcow2 image that holds what differs from its backing file, the base.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use futures::executor::block_on;
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, StorageOpenOptions};

use super::base::Image;
use super::{Error, Format};

/// Longest name of a backing file that fits into a qcow2 header.
const LONGEST_BACKING: usize = 1023;

/// Makes the overlay `{path}` of `size` bytes. Blocking: call it on a blocking thread.
///
/// The backing path is absolute, so it means the same whoever reads it, and its format is written
/// down: nobody has to guess from bytes that a guest may have written.
pub(super) fn create(path: &Path, base: &Image, size: u64) -> Result<(), Error> {
    let backing = base.path.to_str().filter(|text| text.len() <= LONGEST_BACKING).ok_or_else(|| {
        let why = format!("its path is not UTF-8 or longer than {LONGEST_BACKING} bytes; move it");
        Error::BaseInvalid { path: base.path.clone(), why }
    })?;
    let format = match base.format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    };
    write(path, backing, format, size).map_err(Error::io("create the root disk", path))
}

fn write(path: &Path, backing: &str, format: &str, size: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let options = StorageOpenOptions::new().filename(path).write(true);
    let storage = ImagoFile::from_open_file(file, options)?;
    let overlay = Qcow2::<ImagoFile>::create_builder(storage).size(size);
    block_on(overlay.backing(backing.to_owned(), format.to_owned()).create())
}
