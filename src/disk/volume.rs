//! What is on the data volume: its space, and the snapshots that are present.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::base::base_name;
use super::{Error, Space};

/// Snapshots lie at most this many segments below their directory.
const DEEPEST: usize = 4;

/// Space on the file system that holds `directory`.
pub(super) fn space(directory: &Path) -> Result<Space, Error> {
    let found = rustix::fs::statvfs(directory).map_err(Error::io("read the free space of", directory))?;
    Ok(Space {
        total: found.f_blocks.saturating_mul(found.f_frsize),
        available: found.f_bavail.saturating_mul(found.f_frsize),
    })
}

/// The images of all snapshots, and the number of snapshots: one that is there in both layouts, or
/// both raw and qcow2, counts once.
pub(crate) fn snapshots(directory: &Path) -> Result<(Vec<PathBuf>, u64), Error> {
    let mut images = Vec::new();
    walk(directory, 1, &mut images)?;
    let names: BTreeSet<_> =
        images.iter().filter_map(|path| Some((place(path)?.to_owned(), base_name(path)?))).collect();
    let count = names.len() as u64;
    Ok((images, count))
}

/// The directory that a snapshot's own name is relative to.
fn place(image: &Path) -> Option<&Path> {
    let parent = image.parent()?;
    if image.file_stem()? == "disk" { parent.parent() } else { Some(parent) }
}

/// Symbolic links are not followed, and hidden names are not snapshots.
fn walk(directory: &Path, depth: usize, images: &mut Vec<PathBuf>) -> Result<(), Error> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        // Removed since its parent was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("list", directory))?;
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let is_image = path.extension().is_some_and(|extension| extension == "qcow2" || extension == "raw");
        if kind.is_file() && is_image && !hidden {
            let own_file_of_directory = path.file_stem().is_some_and(|stem| stem == "disk");
            if own_file_of_directory || depth <= DEEPEST {
                images.push(path);
            }
        } else if kind.is_dir() && depth <= DEEPEST && !hidden {
            walk(&path, depth + 1, images)?;
        }
    }
    Ok(())
}
