//! sha256 of files with holes: the digest of the whole content, of which only the data is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use crate::disk::copy::extent;

/// Read at a time.
const CHUNK: u64 = 1 << 20;

/// The digest in hex; `None` when `stop` said so before it was done.
pub(super) fn sha256(file: &File, stop: &dyn Fn() -> bool) -> io::Result<Option<String>> {
    let length = file.metadata()?.len();
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK as usize]);
    let zeroes = vec![0; CHUNK as usize];
    let mut offset = 0;
    while offset < length {
        let (start, end) = extent(file, offset)?.unwrap_or((length, length));
        let (start, end) = (start.min(length), end.min(length));
        while offset < end {
            if stop() {
                return Ok(None);
            }
            if offset < start {
                let part = CHUNK.min(start - offset) as usize;
                hash.update(&zeroes[..part]);
                offset += part as u64;
            } else {
                let part = CHUNK.min(end - offset) as usize;
                file.read_exact_at(&mut buffer[..part], offset)?;
                hash.update(&buffer[..part]);
                offset += part as u64;
            }
        }
    }
    Ok(Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}
