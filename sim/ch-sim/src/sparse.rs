//! Copies that keep holes (SEEK_DATA, SEEK_HOLE).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Piece in which data is copied, in bytes.
const PIECE: usize = 1 << 20;

/// Extents of data between two offsets; one extent for all where the file system knows no holes.
pub fn extents(file: &File, start: u64, end: u64) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut at = start;
    while at < end {
        let Some(data) = seek(file, at, libc::SEEK_DATA)?.filter(|data| *data < end) else {
            break;
        };
        let hole = seek(file, data, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        found.push(data..hole);
        at = hole;
    }
    Ok(found)
}

/// Copies `length` bytes from one file to another, data only.
pub fn copy(from: &File, from_at: u64, to: &File, to_at: u64, length: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    for extent in extents(from, from_at, from_at + length)? {
        let mut at = extent.start;
        while at < extent.end {
            let count = usize::try_from(extent.end - at).unwrap_or(PIECE).min(PIECE);
            from.read_exact_at(&mut piece[..count], at)?;
            to.write_all_at(&piece[..count], to_at + (at - from_at))?;
            at += count as u64;
        }
    }
    Ok(())
}

/// `None` when there is no data behind the offset.
fn seek(file: &File, at: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: plain system call on an open descriptor.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => {
            let error = io::Error::last_os_error();
            let nothing_more = error.raw_os_error() == Some(libc::ENXIO);
            if nothing_more { Ok(None) } else { Err(error) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn holes_stay_holes() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(8 << 20).unwrap();
        from.write_all_at(b"data", 4 << 20).unwrap();
        let to = tempfile::tempfile().unwrap();
        to.set_len(8 << 20).unwrap();
        super::copy(&from, 0, &to, 0, 8 << 20).unwrap();
        let mut read = [0; 4];
        to.read_exact_at(&mut read, 4 << 20).unwrap();
        assert_eq!(&read, b"data");
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
