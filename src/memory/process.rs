//! The VMM's process, opened so that its pid cannot come to mean another process.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::Error;
use super::scan::Run;
use crate::hypervisor::ProcessIdentity;
use crate::hypervisor::identity::{Presence, has_ended};

/// As many pieces as one process_vm_readv takes (IOV_MAX).
const PIECES: usize = 1024;

/// A running VMM. The descriptors belong to its address space and to no later one; calls by pid are
/// followed by [`Vmm::check`]: a process that still runs had its pid all the time.
#[derive(Debug)]
pub(super) struct Vmm {
    pub(super) pid: i32,
    pidfd: OwnedFd,
    maps: File,
    pub(super) pagemap: File,
}

impl Vmm {
    /// Opens the process, if it is the one that is meant.
    pub(super) fn open(process: &ProcessIdentity) -> Result<Self, Error> {
        let pid = process.pid;
        let presence = process.check().map_err(|source| Error::Identity { pid, source: Box::new(source) })?;
        let Presence::Alive(pidfd) = presence else { return Err(Error::Gone { pid }) };
        let opened = open_in(pid, "maps").and_then(|maps| Ok((maps, open_in(pid, "pagemap")?)));
        // Only after this the files are known to be of the process behind the descriptor.
        if has_ended(&pidfd, pid).map_err(|source| Error::Identity { pid, source: Box::new(source) })? {
            return Err(Error::Gone { pid });
        }
        let (maps, pagemap) = opened?;
        Ok(Self { pid, pidfd, maps, pagemap })
    }

    /// Its mappings, in the kernel's words (proc_pid_maps(5)).
    pub(super) fn maps(&self) -> Result<String, Error> {
        let mut text = String::with_capacity(64 << 10);
        let mut file = &self.maps;
        let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
        read.map_err(Error::io("read", format!("/proc/{}/maps", self.pid)))?;
        Ok(text)
    }

    /// An error when it has ended meanwhile.
    pub(super) fn check(&self) -> Result<(), Error> {
        let pid = self.pid;
        match has_ended(&self.pidfd, pid) {
            Ok(false) => Ok(()),
            Ok(true) => Err(Error::Gone { pid }),
            Err(source) => Err(Error::Identity { pid, source: Box::new(source) }),
        }
    }

    /// The result, unless the process has ended: then whatever was read means nothing, and whatever went
    /// wrong went wrong because of that.
    pub(super) fn sure<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        self.check().and(result)
    }

    /// Reads the runs one after another into `out`, which is exactly as long as they are together.
    pub(super) fn read(&self, runs: &[Run], out: &mut [u8]) -> Result<(), Error> {
        let mut remote = Vec::with_capacity(runs.len().min(PIECES));
        let (mut next, mut skip, mut done) = (0, 0, 0);
        while next < runs.len() {
            pieces(&runs[next..], skip, &mut remote);
            let count = self.read_some(&remote, &mut out[done..])?;
            done += count;
            // The kernel may stop anywhere, also within a run.
            let mut left = skip + count as u64;
            while next < runs.len() && left >= runs[next].len {
                left -= runs[next].len;
                next += 1;
            }
            skip = left;
        }
        Ok(())
    }

    fn read_some(&self, remote: &[libc::iovec], out: &mut [u8]) -> Result<usize, Error> {
        let local = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
        // SAFETY: the kernel writes at most `iov_len` bytes to the one local piece, which is `out`; the
        // remote pieces are addresses in the other process and not looked at here.
        let count =
            unsafe { libc::process_vm_readv(self.pid, &raw const local, 1, remote.as_ptr(), remote.len() as _, 0) };
        match usize::try_from(count) {
            Ok(count) if count > 0 => Ok(count),
            failed => {
                let source =
                    if failed.is_ok() { io::ErrorKind::UnexpectedEof.into() } else { io::Error::last_os_error() };
                let first = remote.first().map_or((0, 0), |piece| (piece.iov_base as u64, piece.iov_len as u64));
                Err(Error::Read { pid: self.pid, address: first.0, len: first.1, source })
            }
        }
    }
}

/// The first runs as the kernel wants them, without the `skip` bytes of the first that are done.
fn pieces(runs: &[Run], skip: u64, pieces: &mut Vec<libc::iovec>) {
    pieces.clear();
    pieces.extend(runs.iter().take(PIECES).enumerate().map(|(index, run)| {
        let skip = if index == 0 { skip } else { 0 };
        libc::iovec { iov_base: (run.address + skip) as *mut libc::c_void, iov_len: (run.len - skip) as usize }
    }));
}

fn open_in(pid: i32, name: &str) -> Result<File, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    File::open(&path).map_err(Error::io("open", path))
}
