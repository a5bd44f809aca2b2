//! The end of a file that a VMM is still writing, and a bound on how much disk such a file takes.
//!
//! A guest decides how much it prints on its serial line. Cloud Hypervisor writes at its own file
//! offset, so truncating the file would not move that offset; the old part is given back to the file
//! system as a hole instead and the length stays.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::Error;

/// Most bytes of a serial log that are handed to a caller.
pub const SERVED: u64 = 64 * 1024;
/// Bytes at the end of a log that stay on disk when it is bounded.
pub const KEPT: u64 = 256 * 1024;

/// The last `max` bytes of `path`, without the NULs that a hole reads as. Blocks.
pub fn tail(path: &Path, max: u64) -> Result<Vec<u8>, Error> {
    let fail = |source| Error::File { what: "read the end of", path: path.to_owned(), source };
    let mut bytes = read_end(path, max).map_err(fail)?;
    let start = bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len());
    bytes.drain(..start);
    Ok(bytes)
}

fn read_end(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(max)))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// [`tail`] on a thread that may block.
pub async fn tail_of(path: PathBuf, max: u64) -> Result<Vec<u8>, Error> {
    let task = crate::blocking::DATA.run(move || tail(&path, max));
    task.await.map_err(|_| Error::Thread { what: "read the end of a log" })?
}

/// Gives back everything of `path` but its last `keep` bytes (rounded up to whole blocks) as a
/// hole. The file's length and the writer's offset stay. A file that takes no more than that is left
/// alone; so is one that does not exist. Returns the bytes given back. Blocks.
pub fn bound(path: &Path, keep: u64) -> Result<u64, Error> {
    let fail = |source| Error::File { what: "punch a hole into the old part of", path: path.to_owned(), source };
    match punch(path, keep) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        other => other.map_err(fail),
    }
}

fn punch(path: &Path, keep: u64) -> io::Result<u64> {
    let file = OpenOptions::new().write(true).open(path)?;
    let before = file.metadata()?;
    let block = before.blksize().max(1);
    let end = before.len().saturating_sub(keep) / block * block;
    if end == 0 || allocated(&before) <= keep + block {
        return Ok(0);
    }
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, end)?;
    Ok(allocated(&before).saturating_sub(allocated(&file.metadata()?)))
}

fn allocated(metadata: &std::fs::Metadata) -> u64 {
    // st_blocks counts units of 512 bytes whatever the file system's block size is.
    metadata.blocks() * 512
}

/// [`bound`] on a thread that may block.
pub async fn bound_of(path: PathBuf, keep: u64) -> Result<u64, Error> {
    let task = crate::blocking::DATA.run(move || bound(&path, keep));
    task.await.map_err(|_| Error::Thread { what: "bound a log" })?
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_bytes_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "0123456789").unwrap();
        assert_eq!(tail(&path, 4).unwrap(), b"6789");
        assert_eq!(tail(&path, 100).unwrap(), b"0123456789");
        assert_eq!(tail(&path, 0).unwrap(), b"");
        let error = tail(&dir.path().join("none"), 4).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }

    #[test]
    fn the_writer_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.log");
        let mut writer = File::create(&path).unwrap();
        let line = [b'x'; 1023];
        for _ in 0..1024 {
            writer.write_all(&line).unwrap();
            writer.write_all(b"\n").unwrap();
        }
        let freed = bound(&path, 64 * 1024).unwrap();
        assert!(freed >= 900 * 1024, "{freed}");
        assert_eq!(bound(&path, 64 * 1024).unwrap(), 0, "nothing is left to give back");
        writer.write_all(b"after").unwrap();

        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 1024 * 1024 + 5);
        assert!(allocated(&metadata) <= 80 * 1024, "{}", allocated(&metadata));
        assert!(tail(&path, 10).unwrap().ends_with(b"\nafter"));
        let all = tail(&path, u64::MAX).unwrap();
        assert!(all.len() >= 64 * 1024 && all[0] == b'x', "leading NULs are skipped");
    }

    #[test]
    fn a_small_or_missing_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(bound(&path, 1024).unwrap(), 0);
        std::fs::write(&path, "short").unwrap();
        assert_eq!(bound(&path, 1024).unwrap(), 0);
        assert_eq!(tail(&path, 1024).unwrap(), b"short");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn from_the_runtime() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(tail_of(path.clone(), SERVED).await.unwrap(), b"text");
        assert_eq!(bound_of(path, KEPT).await.unwrap(), 0);
    }
}
