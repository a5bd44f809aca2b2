//! Raw copies of bases, made once per version of a base: `{sandboxes}/.bases/{key}.raw`. They lie on
//! the sandboxes' own file system, because blocks are shared only within one.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::base::{Base, Image, path_key};
use super::copy::{CHUNK, Check, Named, clone_or_copy, write_sparsely};
use super::error::REMOVE;
use super::flight::Flights;
use super::{Error, Format};
use futures::executor::block_on;
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, StorageOpenOptions};

/// The flattened bases.
pub(super) struct Flattened {
    directory: PathBuf,
    flights: Flights<Arc<File>>,
    stopping: AtomicBool,
}

impl Flattened {
    /// Those below the sandboxes directory. Unfinished ones of an earlier life are removed.
    pub(super) fn open(sandboxes: &Path) -> Result<Self, Error> {
        let directory = sandboxes.join(".bases");
        let made = DirBuilder::new().mode(0o700).recursive(true).create(&directory);
        made.map_err(Error::io("create the directory", &directory))?;
        let flattened = Self { directory, flights: Flights::new(), stopping: AtomicBool::new(false) };
        flattened.remove_where(|name| name.ends_with(".tmp"))?;
        Ok(flattened)
    }

    /// Makes runs that are under way end soon.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// True once [`Self::stop`] was called.
    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Where the copies are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the copy with this key is being made now.
    pub(super) fn is_under_way(&self, key: &str) -> bool {
        self.flights.is_under_way(key)
    }

    /// The raw copy of a base, opened read-only; made now when there is none yet. Who asks while it is
    /// being made waits for that run.
    pub(super) fn get(&self, base: &Base) -> Result<Arc<File>, Error> {
        let key = base.key();
        let path = self.directory.join(format!("{key}.raw"));
        let file = self.flights.run(&key, || match File::open(&path) {
            Ok(file) => Ok(Arc::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make(base, &key, &path),
            Err(error) => Err(Error::io("open the raw copy", &path)(error)),
        });
        file.map_err(|source| Error::Flatten { base: base.top.path.clone(), source })
    }

    /// Removes the copies of all bases but these.
    pub(super) fn keep_only<'a>(&self, bases: impl Iterator<Item = &'a Path>) -> Result<(), Error> {
        let kept: Vec<String> = bases.map(path_key).collect();
        self.remove_where(|name| !kept.iter().any(|key| name.starts_with(key.as_str())))
    }

    fn make(&self, base: &Base, key: &str, path: &Path) -> Result<Arc<File>, Error> {
        let unfinished = self.directory.join(format!("{key}.tmp"));
        let written = self
            .write(base, &unfinished)
            .and_then(|()| std::fs::rename(&unfinished, path).map_err(Error::io("rename the raw copy to", path)));
        if let Err(error) = written {
            return Err(match std::fs::remove_file(&unfinished) {
                Err(second) if second.kind() != io::ErrorKind::NotFound => Error::Leftover {
                    source_error: crate::error::chain(&error),
                    source: Box::new(Error::io(REMOVE, &unfinished)(second)),
                    path: unfinished,
                },
                _ => error,
            });
        }
        let (ours, older) = (format!("{key}.raw"), path_key(&base.top.path));
        self.remove_where(|name| name.starts_with(&older) && name.ends_with(".raw") && name != ours)?;
        Ok(Arc::new(File::open(path).map_err(Error::io("open the raw copy", path))?))
    }

    fn write(&self, base: &Base, path: &Path) -> Result<(), Error> {
        let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let out = out.map_err(Error::io("create the raw copy", path))?;
        match base.top.format {
            Format::Raw => drop(clone_or_copy((&base.top.file, &base.top.path), (&out, path), &|| self.check())?),
            Format::Qcow2 => convert(base, (&out, path), &|| self.check())?,
        }
        let finish = out.set_permissions(Permissions::from_mode(0o400)).and_then(|()| out.sync_all());
        finish.map_err(Error::io("finish the raw copy", path))
    }

    fn check(&self) -> Result<(), Error> {
        if self.stopping() { Err(Error::Abandoned { what: "the raw copy of a base image" }) } else { Ok(()) }
    }

    fn remove_where(&self, unwanted: impl Fn(&str) -> bool) -> Result<(), Error> {
        let entries = std::fs::read_dir(&self.directory).map_err(Error::io("list", &self.directory))?;
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &self.directory))?;
            if entry.file_name().to_str().is_some_and(&unwanted) {
                std::fs::remove_file(entry.path()).map_err(Error::io(REMOVE, entry.path()))?;
            }
        }
        Ok(())
    }
}

/// Writes the content of a qcow2 chain into the empty file `out`, zeroes as holes.
pub(super) fn convert(base: &Base, (out, path): Named<'_>, check: Check<'_>) -> Result<(), Error> {
    if let Some(image) = base.images().find(|image| image.compression) {
        let why = "its compression is not deflate; convert it with qemu-img convert -O qcow2".to_owned();
        return Err(Error::BaseInvalid { path: image.path.clone(), why });
    }
    let size = base.top.size;
    out.set_len(size).map_err(Error::io("set the size of", path))?;
    let read = || Error::io("read the image", &base.top.path);
    let image = block_on(open_chain(base)).map_err(read())?;
    let mut buffer = Vec::new();
    let mut offset = 0;
    while offset < size {
        check()?;
        let (mapping, length) = block_on(image.get_mapping(offset, size - offset)).map_err(read())?;
        let length = match mapping {
            Mapping::Zero { .. } => length,
            _ => length.min(CHUNK),
        };
        if length == 0 {
            return Err(read()(io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        if !matches!(mapping, Mapping::Zero { .. }) {
            buffer.resize(length as usize, 0);
            block_on(image.read(&mut buffer, offset)).map_err(read())?;
            write_sparsely(out, &buffer, offset).map_err(Error::io("write", path))?;
        }
        offset += length;
    }
    Ok(())
}

/// Opens the chain for reading from the files that were checked: no path is looked up again.
pub(super) async fn open_chain(base: &Base) -> io::Result<FormatAccess<ImagoFile>> {
    let mut below = None;
    for image in base.below.iter().rev() {
        below = Some(open_image(image, below.take()).await?);
    }
    open_image(&base.top, below).await
}

pub(super) async fn open_image(
    image: &Image,
    backing: Option<FormatAccess<ImagoFile>>,
) -> io::Result<FormatAccess<ImagoFile>> {
    let options = StorageOpenOptions::new().filename(&image.path).write(false);
    let storage = ImagoFile::from_open_file(image.file.try_clone()?, options)?;
    let gate = DenyImplicitOpenGate::default();
    Ok(match image.format {
        Format::Raw => FormatAccess::new(Raw::builder(storage).open(gate).await?),
        Format::Qcow2 => {
            FormatAccess::new(Qcow2::<ImagoFile>::builder(storage).backing(backing).data_file(None).open(gate).await?)
        }
    })
}
