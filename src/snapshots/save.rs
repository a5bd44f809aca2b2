//! Making a snapshot: everything is written and synced under a temporary name, and one rename makes it one.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, RenameFlags};
use rustix::io::Errno;

use super::digest::sha256;
use super::files::{DEVICE, DISK, Inner, MANIFEST, MEMORY, erase, parts};
use super::{Error, FORMAT, FileEntry, Manifest, MemoryEntry, Save, SaveMemory};
use crate::crash;
use crate::disk::copy::clone_or_copy;
use crate::disk::export::export;
use crate::ids::SnapshotRef;

/// One save, with what ends it early.
struct Work<'a> {
    save: &'a Save,
    stopped: &'a (dyn Fn() -> bool + Sync),
}

impl Inner {
    /// As [`super::Snapshots::save`].
    pub(super) fn save(&self, save: &Save, abandoned: &AtomicBool) -> Result<Manifest, Error> {
        // Said before the long work; the commit looks again.
        self.refuse_taken(&save.reference)?;
        let temporary = self.temporary();
        let directory = temporary.path().to_owned();
        let made = DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(Error::io("create the directory", &directory))?;
        let stopped = || self.stopping.load(Ordering::SeqCst) || abandoned.load(Ordering::SeqCst);
        let work = Work { save, stopped: &stopped };
        let written = work.write(&directory).and_then(|manifest| {
            work.check()?;
            crash::point("snapshots.save:written");
            self.commit(&directory, &save.reference)?;
            Ok(manifest)
        });
        written.map_err(|error| match erase(&directory) {
            Ok(()) => error,
            Err(source) => Error::Leftover { path: directory, source_error: crate::error::chain(&error), source },
        })
    }

    /// Refuses a name under which there is something, in any layout, or that lies in another snapshot.
    fn refuse_taken(&self, reference: &SnapshotRef) -> Result<(), Error> {
        let name = |why: String| Error::Name { reference: reference.clone(), why };
        let text = reference.as_str();
        if let Some(ending) = [".raw", ".qcow2"].into_iter().find(|ending| text.ends_with(ending)) {
            return Err(name(format!("names that end in {ending} are those of image files")));
        }
        for (at, _) in text.match_indices('/') {
            if let Some(path) = self.image_of(&text[..at]) {
                return Err(name(format!("{path:?} makes {} a snapshot, and none can lie in another", &text[..at])));
            }
        }
        let flat = [".raw", ".qcow2"].map(|ending| self.root.join(format!("{text}{ending}")));
        let taken = flat.into_iter().find(|path| path.symlink_metadata().is_ok()).or_else(|| self.image_of(text));
        taken.map_or(Ok(()), |path| Err(Error::Exists { reference: reference.clone(), path }))
    }

    /// What makes the directory a snapshot.
    fn image_of(&self, below: &str) -> Option<PathBuf> {
        let directory = self.root.join(below);
        let marks = [MANIFEST, DISK, "disk.qcow2"].map(|name| directory.join(name));
        marks.into_iter().find(|path| path.symlink_metadata().is_ok())
    }

    fn commit(&self, temporary: &Path, reference: &SnapshotRef) -> Result<(), Error> {
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        self.refuse_taken(reference)?;
        let (below, name) = parts(reference);
        let parents = self.make_parents(below, reference);
        let committed = parents.and_then(|()| self.rename_in(temporary, reference, below, name));
        if committed.is_err() {
            self.drop_empty(below, reference);
        }
        committed
    }

    fn rename_in(&self, temporary: &Path, reference: &SnapshotRef, below: &str, name: &str) -> Result<(), Error> {
        let path = self.root.join(reference.as_str());
        let Some(parent) = self.directory(below, reference)? else {
            let missing = io::Error::from(io::ErrorKind::NotFound);
            return Err(Error::io("open the directory", self.root.join(below))(missing));
        };
        // An empty directory is what a crash between making and renaming leaves; any other is in the way.
        let _ = rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR);
        match rustix::fs::renameat_with(rustix::fs::CWD, temporary, &parent, name, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Error::Exists { reference: reference.clone(), path }),
            Err(errno) => return Err(Error::io("rename the new snapshot to", path)(errno)),
        }
        crash::point("snapshots.save:renamed");
        let synced = rustix::fs::fsync(&parent).map_err(io::Error::from).and_then(|()| self.sync_parents(below));
        synced.map_err(|source| {
            // Not surely there after a power failure: then it is not there.
            match rustix::fs::renameat(&parent, name, rustix::fs::CWD, temporary) {
                Ok(()) => Error::io("flush the directory of", path)(source),
                Err(_) => Error::Leftover { source_error: "cannot flush its directory".into(), path, source },
            }
        })
    }

    /// Step by step, each on a way without symbolic links.
    fn make_parents(&self, below: &str, reference: &SnapshotRef) -> Result<(), Error> {
        for prefix in prefixes(below) {
            let (parent, name) = prefix.rsplit_once('/').unwrap_or(("", prefix));
            let path = || self.root.join(prefix);
            let Some(parent) = self.directory(parent, reference)? else {
                let missing = io::Error::from(io::ErrorKind::NotFound);
                return Err(Error::io("create the directory", path())(missing));
            };
            match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io("create the directory", path())(errno)),
            }
        }
        Ok(())
    }

    fn sync_parents(&self, below: &str) -> io::Result<()> {
        let mut path = self.root.join(below);
        while path != self.root && path.pop() {
            File::open(&path)?.sync_all()?;
        }
        Ok(())
    }

    /// Removes directories that hold nothing any more, from this one up to the root. One that cannot be removed now
    /// is in nobody's way.
    pub(super) fn drop_empty(&self, below: &str, reference: &SnapshotRef) {
        for prefix in prefixes(below).collect::<Vec<_>>().into_iter().rev() {
            let (parent, name) = prefix.rsplit_once('/').unwrap_or(("", prefix));
            let Ok(Some(parent)) = self.directory(parent, reference) else { return };
            if rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).is_err() {
                return;
            }
        }
    }
}

/// `a`, `a/b`, `a/b/c` of `a/b/c`; nothing of nothing.
fn prefixes(below: &str) -> impl Iterator<Item = &str> {
    let ends = below.match_indices('/').map(|(at, _)| at).chain(std::iter::once(below.len()));
    ends.map(|end| &below[..end]).filter(|prefix| !prefix.is_empty())
}

impl Work<'_> {
    fn check(&self) -> Result<(), Error> {
        if (self.stopped)() { Err(Error::Abandoned { reference: self.save.reference.clone() }) } else { Ok(()) }
    }

    fn write(&self, directory: &Path) -> Result<Manifest, Error> {
        let Save { reference, name, source, parent, created_at, vcpus, memory, .. } = self.save.clone();
        let disk = self.disk(directory)?;
        let warm = self.save.warm.as_ref().map(|warm| Ok((warm, self.memory(warm, directory)?))).transpose()?;
        // The two large files at the same time: hashing is what takes long.
        let (disk, warm) = std::thread::scope(|scope| {
            let memory = warm.map(|(warm, file)| (warm, scope.spawn(move || self.entry(MEMORY, directory, &file))));
            let disk = self.entry(DISK, directory, &disk);
            let memory = memory.map(|(warm, entry)| (warm, entry.join().unwrap_or(Err(died()))));
            (disk, memory)
        });
        let warm = warm.map(|(warm, file)| self.warm(warm, directory, file?)).transpose()?;
        let (disk, format) = (disk?, FORMAT);
        let manifest = Manifest { format, reference, name, source, parent, created_at, vcpus, memory, disk, warm };
        let path = directory.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest).map_err(|error| Error::io("write", &path)(error))?;
        self.put(&path, &text)?;
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(Error::io("flush the directory", directory))?;
        Ok(manifest)
    }

    fn disk(&self, directory: &Path) -> Result<File, Error> {
        let reference = &self.save.reference;
        let check = || match self.check() {
            Ok(()) => Ok(()),
            Err(_) => Err(crate::disk::Error::Abandoned { what: "making the snapshot's disk" }),
        };
        let made = export(&self.save.disk, &directory.join(DISK), &check);
        made.map_err(|source| Error::Disk { reference: reference.clone(), source })
    }

    /// Another name for the frozen file, which nobody writes to; a copy where that cannot be.
    fn memory(&self, warm: &SaveMemory, directory: &Path) -> Result<File, Error> {
        let path = directory.join(MEMORY);
        let about = std::fs::symlink_metadata(&warm.file).map_err(Error::io("look at", &warm.file))?;
        if !about.is_file() {
            let odd = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
            return Err(Error::io("take the memory file", &warm.file)(odd));
        }
        match std::fs::hard_link(&warm.file, &path) {
            Ok(()) => return File::open(&path).map_err(Error::io("open", &path)),
            Err(error) if cannot_link(&error) => {}
            Err(error) => return Err(Error::io("link the memory file to", &path)(error)),
        }
        let source = File::open(&warm.file).map_err(Error::io("open", &warm.file))?;
        let target = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let target = target.map_err(Error::io("create", &path))?;
        let check = || match self.check() {
            Ok(()) => Ok(()),
            Err(_) => Err(crate::disk::Error::Abandoned { what: "copying the snapshot's memory" }),
        };
        let copied = clone_or_copy((&source, &warm.file), (&target, &path), &check);
        copied.map_err(|source| Error::Disk { reference: self.save.reference.clone(), source })?;
        Ok(target)
    }

    fn warm(&self, warm: &SaveMemory, directory: &Path, file: FileEntry) -> Result<MemoryEntry, Error> {
        let mut device = Vec::new();
        for name in DEVICE {
            let (from, to) = (warm.device.join(name), directory.join(name));
            let text = std::fs::read(&from).map_err(Error::io("read", &from))?;
            let file = self.put(&to, &text)?;
            device.push(self.entry(name, directory, &file)?);
        }
        Ok(MemoryEntry { file, device, version: warm.version.clone(), mac: warm.mac })
    }

    fn put(&self, path: &Path, text: &[u8]) -> Result<File, Error> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let written = file.and_then(|mut file| {
            file.write_all(text)?;
            file.sync_all()?;
            Ok(file)
        });
        written.map_err(Error::io("write", path))
    }

    /// Syncs a file and says what it is.
    fn entry(&self, name: &str, directory: &Path, file: &File) -> Result<FileEntry, Error> {
        let path = directory.join(name);
        file.sync_all().map_err(Error::io("flush", &path))?;
        let digest = sha256(file, &|| (self.stopped)()).map_err(Error::io("read", &path))?;
        let Some(sha256) = digest else {
            return Err(Error::Abandoned { reference: self.save.reference.clone() });
        };
        // After the sync: blocks are given out when data is written, not when it is accepted.
        let about = file.metadata().map_err(Error::io("look at", &path))?;
        Ok(FileEntry { name: name.to_owned(), length: about.len(), allocated: about.blocks() * 512, sha256 })
    }
}

fn died() -> Error {
    Error::Died { what: "reading the snapshot's memory" }
}

/// Another file system, one without links, or too many links.
fn cannot_link(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP))
}
