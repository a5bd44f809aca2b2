//! The content of memory files: clones where the file system can, otherwise copies that keep holes.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::Error;

/// Bytes that are copied between two looks at whether anybody still wants the copy.
const STEP: u64 = 16 << 20;
/// Bytes in one read where the kernel cannot copy between the files itself.
const BLOCK: usize = 1 << 20;

/// How a file got its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// The source has holes only.
    Blank,
    /// The file system shares the blocks.
    Cloned,
    /// That many bytes were copied.
    Copied(u64),
}

/// Creates a file that must not exist yet, for its owner alone.
pub(super) fn create(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map_err(Error::io("create the memory file", path))
}

/// From now on the file is one that nobody writes to.
pub(super) fn freeze(file: &File, path: &Path) -> Result<(), Error> {
    file.set_permissions(Permissions::from_mode(0o400)).map_err(Error::io("make read-only", path))
}

/// Two files of a copy with their names.
pub(super) struct Pair<'a> {
    pub(super) source: (&'a Path, &'a File),
    pub(super) target: (&'a Path, &'a File),
}

impl Pair<'_> {
    /// Gives the empty target the content of the source, `len` bytes.
    pub(super) fn fill(&self, len: u64, abandoned: &AtomicBool) -> Result<How, Error> {
        let (target, copy) = self.target;
        copy.set_len(len).map_err(Error::io("set the size of", target))?;
        let Some(first) = self.data(0)? else { return Ok(How::Blank) };
        match ioctl_ficlone(copy, self.source.1) {
            Ok(()) => return Ok(How::Cloned),
            Err(errno) if cannot_clone(errno) => {}
            Err(errno) => return Err(Error::io("clone the memory file to", target)(errno)),
        }
        self.copy_data(first, len, abandoned).map(How::Copied)
    }

    fn copy_data(&self, first: u64, len: u64, abandoned: &AtomicBool) -> Result<u64, Error> {
        let (mut copied, mut next) = (0, Some(first));
        while let Some(start) = next.filter(|&start| start < len) {
            let end = self.seek(SeekFrom::Hole(start)).map_err(Error::io("find the holes of", self.source.0))?.min(len);
            let mut at = start;
            while at < end {
                if abandoned.load(Ordering::Relaxed) {
                    return Err(Error::Abandoned { what: "copying the memory file" });
                }
                at += self.step(at, STEP.min(end - at)).map_err(Error::io("copy the memory file to", self.target.0))?;
            }
            copied += end - start;
            next = self.data(end)?;
        }
        Ok(copied)
    }

    /// Where the next data begins; none when only a hole follows.
    fn data(&self, from: u64) -> Result<Option<u64>, Error> {
        match self.seek(SeekFrom::Data(from)) {
            Ok(start) => Ok(Some(start)),
            Err(Errno::NXIO) => Ok(None),
            Err(errno) => Err(Error::io("find the data of", self.source.0)(errno)),
        }
    }

    fn seek(&self, to: SeekFrom) -> rustix::io::Result<u64> {
        seek(self.source.1, to)
    }

    /// Copies up to `len` bytes at `at`; how many it was, at least one.
    fn step(&self, at: u64, len: u64) -> io::Result<u64> {
        let (mut from, mut to) = (at, at);
        match copy_file_range(self.source.1, Some(&mut from), self.target.1, Some(&mut to), len as usize) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => Ok(count as u64),
            Err(errno) if cannot_clone(errno) => self.by_hand(at, len),
            Err(errno) => Err(errno.into()),
        }
    }

    fn by_hand(&self, at: u64, len: u64) -> io::Result<u64> {
        let mut block = vec![0; BLOCK.min(len as usize)];
        self.source.1.read_exact_at(&mut block, at)?;
        self.target.1.write_all_at(&block, at)?;
        Ok(block.len() as u64)
    }
}

/// What file systems answer that cannot share or copy blocks, or not between these two files.
fn cannot_clone(errno: Errno) -> bool {
    matches!(errno, Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS)
}
