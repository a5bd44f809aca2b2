//! Looking a snapshot up: one of ours by its manifest, or an image that was put there by hand in one of the layouts
//! that [`crate::disk`] finds.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Deserialize;

use super::files::{DISK, Inner, MANIFEST};
use super::{Error, FORMAT, FileEntry, Found, Manifest};
use crate::disk::open::{Trust, open};
use crate::ids::SnapshotRef;

/// No manifest is longer.
const LONGEST: u64 = 1 << 20;

/// What every format has.
#[derive(Deserialize)]
struct AnyFormat {
    format: u64,
}

impl Inner {
    /// As [`super::Snapshots::find`].
    pub(super) fn find(&self, reference: &SnapshotRef) -> Result<Option<Found>, Error> {
        let dir = self.root.join(reference.as_str());
        let path = dir.join(MANIFEST);
        let Some((file, real)) = self.open(&path, reference)? else {
            return self.find_by_hand(reference, &dir);
        };
        let manifest = read(&file, &path)?;
        if manifest.reference != *reference {
            let why = format!("it is that of the snapshot {}", manifest.reference);
            return Err(Error::Manifest { path, why });
        }
        let warm = manifest.warm.iter().flat_map(|warm| std::iter::once(&warm.file).chain(&warm.device));
        for entry in std::iter::once(&manifest.disk).chain(warm) {
            self.check(&dir, entry, reference)?;
        }
        let dir = real.parent().unwrap_or(&dir).to_owned();
        let (bytes, created_at) = (manifest.bytes(), manifest.created_at);
        Ok(Some(Found { dir, manifest: Some(manifest), bytes, created_at }))
    }

    fn open(&self, path: &Path, reference: &SnapshotRef) -> Result<Option<(File, PathBuf)>, Error> {
        open(path, Trust::Beneath(&self.root)).map_err(|source| {
            match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::XDEV | Errno::LOOP) => {
                    Error::Link { reference: reference.clone(), root: self.root.clone() }
                }
                _ => Error::io("open", path)(source),
            }
        })
    }

    /// The length tells a copy that broke off; the content is not read for a look.
    fn check(&self, dir: &Path, entry: &FileEntry, reference: &SnapshotRef) -> Result<(), Error> {
        let path = dir.join(&entry.name);
        if entry.name.is_empty() || entry.name.contains('/') || entry.name.starts_with('.') {
            let why = format!("it names the file {:?}", entry.name);
            return Err(Error::Manifest { path: dir.join(MANIFEST), why });
        }
        let Some((file, _)) = self.open(&path, reference)? else {
            return Err(Error::Damaged { path, why: "it is missing".into() });
        };
        let found = file.metadata().map_err(Error::io("look at", &path))?.len();
        if found != entry.length {
            let why = format!("it has {found} bytes, and its manifest says {}", entry.length);
            return Err(Error::Damaged { path, why });
        }
        Ok(())
    }

    fn find_by_hand(&self, reference: &SnapshotRef, dir: &Path) -> Result<Option<Found>, Error> {
        for name in [DISK, "disk.qcow2"] {
            if let Some((file, real)) = self.open(&dir.join(name), reference)? {
                let about = file.metadata().map_err(Error::io("look at", &real))?;
                let dir = real.parent().unwrap_or(dir).to_owned();
                let bytes = allocated(&dir)?;
                return Ok(Some(Found { dir, manifest: None, bytes, created_at: made_at(&about) }));
            }
        }
        for ending in ["qcow2", "raw"] {
            let path = self.root.join(format!("{reference}.{ending}"));
            if let Some((file, real)) = self.open(&path, reference)? {
                let about = file.metadata().map_err(Error::io("look at", &real))?;
                let bytes = about.blocks() * 512;
                return Ok(Some(Found { dir: real, manifest: None, bytes, created_at: made_at(&about) }));
            }
        }
        Ok(None)
    }
}

fn read(file: &File, path: &Path) -> Result<Manifest, Error> {
    let mut text = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut text).map_err(Error::io("read", path))?;
    let bad = |error: serde_json::Error| Error::Manifest { path: path.to_owned(), why: error.to_string() };
    if text.len() as u64 > LONGEST {
        return Err(Error::Manifest { path: path.to_owned(), why: format!("it is longer than {LONGEST} bytes") });
    }
    let AnyFormat { format } = serde_json::from_slice(&text).map_err(bad)?;
    if format > u64::from(FORMAT) {
        return Err(Error::Newer { path: path.to_owned(), found: format, known: FORMAT });
    }
    serde_json::from_slice(&text).map_err(bad)
}

fn made_at(about: &Metadata) -> u64 {
    let (seconds, nanos) = (about.mtime(), about.mtime_nsec());
    u64::try_from(seconds * 1000 + nanos / 1_000_000).unwrap_or(0)
}

/// Bytes on disk of the files in a directory.
fn allocated(directory: &Path) -> Result<u64, Error> {
    let list = || Error::io("list", directory);
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).map_err(list())? {
        let entry = entry.map_err(list())?;
        match entry.metadata() {
            Ok(about) if about.is_file() => bytes += about.blocks() * 512,
            Ok(_) => {}
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("look at", entry.path())(error)),
        }
    }
    Ok(bytes)
}
