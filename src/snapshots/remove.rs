//! Removing a snapshot: it loses its name in one step, and its content after that.

use std::fs::{DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::PoisonError;

use nix::errno::Errno as NixErrno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use tracing::warn;

use super::Error;
use super::files::{DISK, Inner, MANIFEST, erase, parts};
use crate::crash;
use crate::disk::volume;
use crate::ids::{SandboxId, SnapshotRef};

/// What has the snapshot's name in its directory.
struct Named {
    parent: OwnedFd,
    /// Names there: the snapshot's directory, or images beside it.
    names: Vec<String>,
    /// Images among and in them.
    images: Vec<String>,
}

impl Inner {
    /// As [`super::Snapshots::remove`]. Its images are locked for the instant in which the name goes, so that no
    /// sandbox that is being made can be standing on them.
    pub(super) fn remove(&self, reference: &SnapshotRef, users: Vec<SandboxId>) -> Result<bool, Error> {
        if !users.is_empty() {
            return Err(Error::InUse { reference: reference.clone(), users });
        }
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(named) = self.named(reference)? else { return Ok(false) };
        self.refuse_nested(reference, &named)?;
        let locks = self.lock(reference, &named)?;
        let under_way = self.temporary();
        let temporary = under_way.path().to_owned();
        let made = DirBuilder::new().mode(0o700).create(&temporary);
        made.map_err(Error::io("create the directory", &temporary))?;
        let moved = self.move_away(&named, &temporary);
        crash::point("snapshots.remove:moved");
        drop(locks);
        let gone = erase(&temporary);
        moved?;
        if let Err(error) = gone {
            warn!(path = ?temporary, %error, "a snapshot lost its name but not its content; the next start tries again");
        }
        self.drop_empty(parts(reference).0, reference);
        Ok(true)
    }

    fn named(&self, reference: &SnapshotRef) -> Result<Option<Named>, Error> {
        let (below, name) = parts(reference);
        let Some(parent) = self.directory(below, reference)? else { return Ok(None) };
        let kind = |name: &str| self.kind(&parent, below, name);
        let (mut names, mut images) = (Vec::new(), Vec::new());
        match kind(name)? {
            Some(FileType::Directory) => {
                let mut is_snapshot = kind(&format!("{name}/{MANIFEST}"))?.is_some();
                for image in [DISK, "disk.qcow2"].map(|image| format!("{name}/{image}")) {
                    if let Some(kind) = kind(&image)? {
                        is_snapshot = true;
                        if kind == FileType::RegularFile {
                            images.push(image);
                        }
                    }
                }
                if is_snapshot {
                    names.push(name.to_owned());
                }
            }
            // A link is a name for another snapshot; it alone goes.
            Some(FileType::Symlink) => names.push(name.to_owned()),
            _ => {}
        }
        for image in ["qcow2", "raw"].map(|ending| format!("{name}.{ending}")) {
            match kind(&image)? {
                Some(FileType::RegularFile) => {
                    images.push(image.clone());
                    names.push(image);
                }
                Some(FileType::Symlink) => names.push(image),
                _ => {}
            }
        }
        Ok((!names.is_empty()).then_some(Named { parent, names, images }))
    }

    fn kind(&self, parent: &OwnedFd, below: &str, name: &str) -> Result<Option<FileType>, Error> {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => Ok(Some(FileType::from_raw_mode(about.st_mode))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(errno) => Err(Error::io("look at", self.root.join(below).join(name))(errno)),
        }
    }

    fn refuse_nested(&self, reference: &SnapshotRef, named: &Named) -> Result<(), Error> {
        let own = self.root.join(reference.as_str());
        if !named.names.iter().any(|name| name == parts(reference).1) || own.is_symlink() {
            return Ok(());
        }
        let walked = volume::snapshots(&own);
        let (images, _) = walked.map_err(|source| Error::Disk { reference: reference.clone(), source })?;
        match images.into_iter().find(|image| image.parent() != Some(&own)) {
            Some(path) => Err(Error::Holds { reference: reference.clone(), path }),
            None => Ok(()),
        }
    }

    /// A write lock meets the read lock of everybody who stands on the image, or is about to.
    fn lock(&self, reference: &SnapshotRef, named: &Named) -> Result<Vec<File>, Error> {
        let mut locks = Vec::new();
        for image in &named.images {
            let path = self.root.join(parts(reference).0).join(image);
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file = rustix::fs::openat(&named.parent, image, flags, Mode::empty());
            let file = File::from(file.map_err(Error::io("open", &path))?);
            // The constants are 0 to 2 on every Linux target.
            let all = libc::flock {
                l_type: libc::F_WRLCK as i16,
                l_whence: libc::SEEK_SET as i16,
                l_start: 0,
                l_len: 0,
                l_pid: 0,
            };
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&all)) {
                Ok(_) => locks.push(file),
                Err(NixErrno::EAGAIN | NixErrno::EACCES) => {
                    return Err(Error::Locked { reference: reference.clone(), path });
                }
                Err(errno) => return Err(Error::io("lock", path)(errno)),
            }
        }
        Ok(locks)
    }

    fn move_away(&self, named: &Named, temporary: &Path) -> Result<(), Error> {
        for (at, name) in named.names.iter().enumerate() {
            let target = temporary.join(at.to_string());
            let moved = rustix::fs::renameat(&named.parent, name.as_str(), rustix::fs::CWD, &target);
            moved.map_err(Error::io("take its name from", name))?;
        }
        rustix::fs::fsync(&named.parent).map_err(Error::io("flush the directory of", &self.root))
    }
}
