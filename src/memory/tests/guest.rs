//! A process that maps a memory file as a VMM does and writes to it when it is told.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::hypervisor::ProcessIdentity;

/// How far mappings are moved down.
const SHIFT: u64 = 1 << 40;
/// Address space between two mappings.
const GAP: u64 = 64 << 20;

#[derive(Clone, Copy)]
#[repr(u64)]
pub enum Order {
    Fill,
    Read,
    /// Every page of the range gets one byte.
    Touch,
    /// Back to the file's content.
    Forget,
    Move,
}

pub struct Guest {
    pub identity: ProcessIdentity,
    base: u64,
    pieces: Vec<(u64, u64)>,
    orders: File,
    answers: File,
}

impl Guest {
    /// Maps `pieces` (offset and length in the file) with holes between their addresses.
    pub fn start(file: &Path, pieces: &[(u64, u64)], flags: libc::c_int) -> Self {
        let file = File::options().read(true).write(flags == libc::MAP_SHARED).open(file).unwrap();
        let (orders_in, orders) = std::io::pipe().unwrap();
        let (answers, answers_out) = std::io::pipe().unwrap();
        let _alone = crate::forks::one();
        // SAFETY: the child makes system calls only, and never returns.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            serve([file.as_raw_fd(), orders_in.as_raw_fd(), answers_out.as_raw_fd()], pieces, flags);
        }
        // SAFETY: the descriptor was given up by its owner just now.
        let own = |fd: RawFd| unsafe { File::from_raw_fd(fd) };
        let (orders, mut answers) = (own(orders.into_raw_fd()), own(answers.into_raw_fd()));
        drop(answers_out);
        let mut base = [0; 8];
        answers.read_exact(&mut base).unwrap();
        let base = u64::from_ne_bytes(base);
        Self { identity: ProcessIdentity::of(pid).unwrap(), base, pieces: pieces.to_vec(), orders, answers }
    }

    /// The usual VM: everything in one private mapping.
    pub fn plain(file: &Path, size: u64) -> Self {
        Self::start(file, &[(0, size)], libc::MAP_PRIVATE)
    }

    fn address(&self, offset: u64) -> u64 {
        let index = self.pieces.iter().position(|&(start, len)| (start..start + len).contains(&offset)).unwrap();
        self.base + offset + index as u64 * GAP
    }

    pub fn order(&mut self, order: Order, offset: u64, len: u64, value: u8) {
        let words = [order as u64, self.address(offset), len, value.into()];
        self.orders.write_all(&words.map(u64::to_ne_bytes).concat()).unwrap();
        self.answers.read_exact(&mut [0; 8]).unwrap();
    }

    pub fn fill(&mut self, offset: u64, len: u64, value: u8) {
        self.order(Order::Fill, offset, len, value);
    }

    /// Moves the only mapping to other addresses.
    pub fn shift(&mut self) {
        let (offset, len) = self.pieces[0];
        self.order(Order::Move, offset, len, 0);
        self.base -= SHIFT;
    }

    /// As `fill`; nothing for no bytes.
    pub fn fill_some(&mut self, offset: u64, len: u64, value: u8) {
        if len > 0 {
            self.fill(offset, len, value);
        }
    }

    /// What the process itself sees.
    pub fn view(&self) -> Vec<u8> {
        let memory = File::open(format!("/proc/{}/mem", self.identity.pid)).unwrap();
        let mut all = Vec::new();
        for &(offset, len) in &self.pieces {
            let start = all.len();
            all.resize(start + len as usize, 0);
            memory.read_exact_at(&mut all[start..], self.address(offset)).unwrap();
        }
        all
    }

    pub fn kill(&self) {
        // SAFETY: plain system calls; the pid is that of a child which is not reaped elsewhere.
        unsafe {
            libc::kill(self.identity.pid, libc::SIGKILL);
            libc::waitpid(self.identity.pid, std::ptr::null_mut(), 0);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if matches!(self.identity.check(), Ok(crate::hypervisor::identity::Presence::Alive(_))) {
            self.kill();
        }
    }
}

/// The child. It must not allocate: it may be the copy of a process with other threads.
fn serve([file, orders, answers]: [RawFd; 3], pieces: &[(u64, u64)], flags: libc::c_int) -> ! {
    // SAFETY: the mappings are made in a range that was reserved for them, and orders name only addresses
    // within them.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        for fd in 3..1024 {
            if ![file, orders, answers].contains(&fd) {
                libc::close(fd);
            }
        }
        let size = pieces.iter().map(|&(offset, len)| offset + len).max().unwrap_or(0) + pieces.len() as u64 * GAP;
        let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let base = libc::mmap(std::ptr::null_mut(), size as usize, libc::PROT_NONE, nothing, -1, 0);
        for (index, &(offset, len)) in pieces.iter().enumerate() {
            let at = base.byte_add((offset + index as u64 * GAP) as usize);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let mapped = libc::mmap(at, len as usize, protection, flags | libc::MAP_FIXED, file, offset as i64);
            if mapped != at {
                libc::_exit(1);
            }
        }
        libc::write(answers, (&raw const base).cast(), 8);
        loop {
            let mut words = [0u64; 4];
            if libc::read(orders, words.as_mut_ptr().cast(), 32) != 32 {
                libc::_exit(0);
            }
            obey(words);
            libc::write(answers, words.as_ptr().cast(), 8);
        }
    }
}

/// # Safety
/// The order must name a range that is mapped.
unsafe fn obey([order, address, len, value]: [u64; 4]) {
    let start = address as *mut u8;
    let len = len as usize;
    // SAFETY: by the caller.
    unsafe {
        match order {
            order if order == Order::Fill as u64 => start.write_bytes(value as u8, len),
            order if order == Order::Read as u64 => {
                (0..len).step_by(4096).for_each(|at| _ = start.add(at).read_volatile());
            }
            order if order == Order::Touch as u64 => {
                (0..len).step_by(4096).for_each(|at| start.add(at).write_volatile(value as u8));
            }
            order if order == Order::Forget as u64 => _ = libc::madvise(start.cast(), len, libc::MADV_DONTNEED),
            _ => _ = libc::mremap(start.cast(), len, len, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, address - SHIFT),
        }
    }
}
