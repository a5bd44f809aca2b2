//! Room for guest pages, made before the pause.

use std::io;

use super::Error;

/// Anonymous memory of this process, all of it present: no page has to be found while a VM waits.
#[derive(Debug)]
pub(super) struct Buffer {
    start: *mut u8,
    len: usize,
}

// SAFETY: it owns its mapping as a Vec owns its elements; access follows the borrow of the Buffer.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Maps `len` bytes (a multiple of the page size, greater than 0) and makes them present.
    pub(super) fn new(len: usize) -> Result<Self, Error> {
        let fail = |source| Error::Room { bytes: len as u64, source };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping where the kernel likes it touches nothing that is there.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(fail(io::Error::last_os_error()));
        }
        let buffer = Self { start: start.cast(), len };
        // Without huge pages it works as well, so what the kernel says does not matter.
        let _ = buffer.advise(libc::MADV_HUGEPAGE);
        // A fork of this process must not copy the page tables of a guest's memory.
        let _ = buffer.advise(libc::MADV_DONTFORK);
        match buffer.advise(libc::MADV_POPULATE_WRITE) {
            // Kernels before 5.14: the pages come when they are written to.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(buffer),
            done => done.map(|()| buffer).map_err(fail),
        }
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is this mapping, and none of the advices used here changes its content.
        let failed = unsafe { libc::madvise(self.start.cast(), self.len, advice) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(super) fn len(&self) -> u64 {
        self.len as u64
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has `len` initialised bytes and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: nobody else has the mapping. It can only fail for a range that is none.
        let _ = unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}
