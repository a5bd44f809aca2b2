//! Copies of files that keep their holes: a clone that shares all blocks where the file system can, the data
//! alone elsewhere. `std::fs::copy` would write the holes out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::Error;

/// Read and written at a time.
pub(super) const CHUNK: u64 = 1 << 20;
/// Zeroes of this length and alignment stay holes.
const BLOCK: usize = 4096;

/// Asked between two chunks of long work: an error ends it.
pub(crate) type Check<'a> = &'a dyn Fn() -> Result<(), Error>;

/// How a copy came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    /// By one call; no data was moved.
    Cloned,
    /// Byte by byte: this many, holes left out.
    Written(u64),
}

/// A file and its name, for error texts.
pub(crate) type Named<'a> = (&'a File, &'a Path);

/// Makes the empty file `to` a copy of `from`, to which nobody writes meanwhile.
///
/// # Errors
/// A read or write that failed, named; or what `check` says. The target is of no use then.
pub(crate) fn clone_or_copy(from: Named<'_>, to: Named<'_>, check: Check<'_>) -> Result<Copied, Error> {
    match rustix::fs::ioctl_ficlone(to.0, from.0) {
        Ok(()) => Ok(Copied::Cloned),
        Err(errno) if cannot_clone(errno) => copy_sparsely(from, to, check).map(Copied::Written),
        Err(errno) => Err(Error::io("clone a disk to", to.1)(errno)),
    }
}

/// What file systems answer that cannot clone at all, or not between these two files.
pub(super) fn cannot_clone(errno: Errno) -> bool {
    matches!(errno, Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS)
}

/// Copies data, keeps holes, and makes holes of long zeroes; the number of bytes written.
pub(super) fn copy_sparsely(from: Named<'_>, to: Named<'_>, check: Check<'_>) -> Result<u64, Error> {
    let read = || Error::io("read", from.1);
    let length = from.0.metadata().map_err(read())?.len();
    to.0.set_len(length).map_err(Error::io("set the size of", to.1))?;
    let mut buffer = Vec::new();
    let (mut offset, mut written) = (0, 0);
    while let Some((start, end)) = extent(from.0, offset).map_err(|errno| read()(errno.into()))? {
        let end = end.min(length);
        for start in (start..end).step_by(CHUNK as usize) {
            check()?;
            buffer.resize(CHUNK.min(end - start) as usize, 0);
            from.0.read_exact_at(&mut buffer, start).map_err(read())?;
            written += write_sparsely(to.0, &buffer, start).map_err(Error::io("write", to.1))?;
        }
        offset = end;
        if offset == length {
            break;
        }
    }
    Ok(written)
}

/// The next range of `file` at or after `offset` that is not a hole.
pub(crate) fn extent(file: &File, offset: u64) -> Result<Option<(u64, u64)>, Errno> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => Ok(Some((start, rustix::fs::seek(file, SeekFrom::Hole(start))?))),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Writes the blocks that are not all zero, the rest stay holes; the number of bytes written.
pub(super) fn write_sparsely(out: &File, bytes: &[u8], offset: u64) -> io::Result<u64> {
    let is_zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
    let (mut at, mut written) = (0, 0);
    for run in bytes.chunks(BLOCK).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let length = run.iter().map(|block| block.len()).sum::<usize>();
        if !is_zero(run[0]) {
            out.write_all_at(&bytes[at..at + length], offset + at as u64)?;
            written += length as u64;
        }
        at += length;
    }
    Ok(written)
}
