//! Which pages of a private file mapping the process holds by itself: those that were written.
//!
//! A page of such a mapping is either not there, or the file's own (the page cache's), or anonymous, in
//! memory or swapped out. Only the last kind can differ from the file. The kernel's zero page counts as
//! written, because merging equal pages (KSM) puts it in the place of written zeroes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::maps::Piece;

/// Categories of a page, and the request's number (linux/fs.h, since Linux 6.7).
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGEMAP_SCAN: u64 = request(b'f', 16, size_of::<ScanRequest>());

/// Bits of a 64-bit entry of the pagemap file (the kernel's admin-guide/mm/pagemap).
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_FILE: u64 = 1 << 61;

/// Ranges that one request returns at most.
const REGIONS: usize = 4096;
/// Pages that are looked at with one read of the pagemap file: 256 MiB of memory at 4 KiB a page.
const ENTRIES: usize = 64 << 10;
/// No run is longer, so that runs can be dealt out to threads evenly.
const LONGEST: u64 = 1 << 20;
/// From so many bytes on it costs less to make one more request than to look at the pages.
const WORTH_A_SKIP: u64 = 128 << 10;

/// `_IOWR(kind, number, size)` of the generic ABI.
const fn request(kind: u8, number: u64, size: usize) -> u64 {
    (3 << 30) | ((size as u64) << 16) | ((kind as u64) << 8) | number
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanRequest {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// Adjacent written pages, at most 1 MiB of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Address in the VMM.
    pub(super) address: u64,
    /// Offset in the memory file.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: u64,
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// By offset in the file.
    pub(super) runs: Vec<Run>,
    /// Bytes in all of them.
    pub(super) bytes: u64,
    /// How many there were before long ones were cut.
    pub(super) whole: u64,
}

impl Written {
    fn clear(&mut self) {
        self.runs.clear();
        (self.bytes, self.whole) = (0, 0);
    }

    fn push(&mut self, piece: &Piece, start: u64, end: u64) {
        self.bytes += end - start;
        let (mut address, offset) = (start, piece.offset + (start - piece.start));
        match self.runs.last_mut() {
            Some(last) if last.address + last.len == start && last.offset + last.len == offset => {
                let more = (LONGEST - last.len).min(end - start);
                last.len += more;
                address += more;
            }
            _ => self.whole += 1,
        }
        while address < end {
            let len = LONGEST.min(end - address);
            self.runs.push(Run { address, offset: offset + (address - start), len });
            address += len;
        }
    }
}

/// How the kernel is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// PAGEMAP_SCAN.
    Request,
    /// The entries of the pagemap file, for kernels before 6.7.
    Entries,
}

/// Asks the kernel, with buffers that are kept from one time to the next.
#[derive(Debug)]
pub(super) struct Scanner {
    pub(super) way: Way,
    page: u64,
    regions: Vec<Region>,
    entries: Vec<u8>,
    /// First address and the one behind it of long ranges that need not be looked at again, by address.
    known: Vec<(u64, u64)>,
    pub(super) written: Written,
}

impl Scanner {
    pub(super) fn new() -> Self {
        let (regions, page) = (vec![Region::default(); REGIONS], page_size());
        Self { way: Way::Request, page, regions, entries: Vec::new(), known: Vec::new(), written: Written::default() }
    }

    /// Finds the written pages of the mappings; the result is in `written`.
    pub(super) fn scan(&mut self, pagemap: &File, pieces: &[Piece]) -> io::Result<()> {
        self.known.clear();
        self.again(pagemap, pieces)
    }

    /// The next scan of the same mappings takes for written what is written now, and does not look there: a
    /// page stays anonymous. Should the guest give one back meanwhile, then it is the file's again, and is
    /// copied without need.
    pub(super) fn remember(&mut self) {
        self.known.clear();
        for run in &self.written.runs {
            match self.known.last_mut() {
                Some(last) if last.1 == run.address => last.1 += run.len,
                _ => self.known.push((run.address, run.address + run.len)),
            }
        }
        self.known.retain(|(start, end)| end - start >= WORTH_A_SKIP);
        // By address, as the mappings are walked; the runs are by offset in the file.
        self.known.sort_unstable();
        let more = self.written.runs.len() / 2 + REGIONS;
        self.written.runs.reserve(more);
    }

    /// As [`Scanner::scan`], with what [`Scanner::remember`] has kept.
    pub(super) fn again(&mut self, pagemap: &File, pieces: &[Piece]) -> io::Result<()> {
        self.written.clear();
        for piece in pieces {
            let mut start = piece.start;
            let first = self.known.partition_point(|known| known.1 <= start);
            let last = self.known.partition_point(|known| known.0 < piece.end);
            for index in first..last {
                let (from, to) = (self.known[index].0.max(start), self.known[index].1.min(piece.end));
                self.part(pagemap, piece, start, from)?;
                self.written.push(piece, from, to);
                start = to;
            }
            self.part(pagemap, piece, start, piece.end)?;
        }
        Ok(())
    }

    /// Where the kernel has no such request, the pagemap file is read, now and from now on.
    fn part(&mut self, pagemap: &File, piece: &Piece, start: u64, end: u64) -> io::Result<()> {
        if self.way == Way::Request {
            match self.by_request(pagemap, piece, start, end) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                    tracing::debug!(%error, "the kernel has no PAGEMAP_SCAN: every entry of the pagemap is read");
                    self.way = Way::Entries;
                }
                other => return other,
            }
        }
        self.by_entries(pagemap, piece, start, end)
    }

    fn by_request(&mut self, pagemap: &File, piece: &Piece, mut start: u64, end: u64) -> io::Result<()> {
        while start < end {
            let (count, next) = request_scan(pagemap, start, end, &mut self.regions)?;
            for region in &self.regions[..count] {
                self.written.push(piece, region.start, region.end);
            }
            start = next;
        }
        Ok(())
    }

    fn by_entries(&mut self, pagemap: &File, piece: &Piece, start: u64, end: u64) -> io::Result<()> {
        self.entries.resize(ENTRIES * 8, 0);
        let mut address = start;
        while address < end {
            let count = ENTRIES.min(((end - address) / self.page) as usize);
            let block = &mut self.entries[..count * 8];
            pagemap.read_exact_at(block, address / self.page * 8)?;
            for entry in block.chunks_exact(8) {
                // A chunk of exactly 8 bytes always is an array of 8.
                let bits = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                if bits & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 && bits & ENTRY_FILE == 0 {
                    self.written.push(piece, address, address + self.page);
                }
                address += self.page;
            }
        }
        Ok(())
    }
}

/// One request: how many ranges it returned, and the address from which to go on.
fn request_scan(pagemap: &File, start: u64, end: u64, regions: &mut [Region]) -> io::Result<(usize, u64)> {
    let mut scan = ScanRequest {
        size: size_of::<ScanRequest>() as u64,
        start,
        end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_mask: PAGE_IS_FILE,
        category_inverted: PAGE_IS_FILE,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        // Something must be returned; runs with different values are joined afterwards.
        return_mask: PAGE_IS_PRESENT,
        ..ScanRequest::default()
    };
    // SAFETY: the request is as the kernel defines it, and it writes at most `vec_len` ranges to `vec`.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut scan) };
    match usize::try_from(count) {
        // The kernel tells an end only when it had to stop, and one that is too low when it stopped for its own
        // small buffer and came to the end afterwards. Room left means that it came to the end.
        Ok(count) if count < regions.len() => Ok((count, end)),
        Ok(count) => Ok((count, regions.last().map_or(end, |last| last.end.max(scan.walk_end)))),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Bytes in a page of this host.
pub(super) fn page_size() -> u64 {
    // SAFETY: reads a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It cannot fail for this name; 4 KiB is what every supported host has.
    u64::try_from(size).unwrap_or(4096)
}
