//! Guest memory: real mappings of the kind Cloud Hypervisor makes, of which only few pages are ever touched
//! (cloud-hypervisor.md 5).
//!
//! Private anonymous memory, shared memfds, and files mapped shared or private. So `/proc/PID/maps`, `pagemap`
//! and `mem` tell a reader the same story as for a real VM.

mod layout;
mod window;

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use serde::{Deserialize, Serialize};

use crate::config::{MemoryConfig, MemoryZoneConfig};
use crate::error::{Chain, Outcome};
use crate::sparse;

pub use layout::Mapping;
pub use window::Window;

/// Piece in which memory is copied.
const PIECE: u64 = 1 << 20;

/// A range of guest memory that is in `memory-ranges`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub gpa: u64,
    pub length: u64,
}

struct Region {
    mapping: Mapping,
    address: NonNull<c_void>,
    /// File behind a shared mapping.
    shared_file: Option<Backing>,
}

// SAFETY: the mapping belongs to the region alone and is only reached through it.
unsafe impl Send for Region {}
// SAFETY: shared are regions only with windows, which read and write atomically, and only while the VMM does not.
unsafe impl Sync for Region {}

/// A file that is mapped as memory.
struct Backing {
    file: File,
    /// Where the mapping starts in it.
    offset: u64,
    /// It has a name in a file system, so its content outlives the VM.
    named: bool,
}

/// All memory of one VM.
pub struct Ram {
    regions: Vec<Arc<Region>>,
    /// All pages count as touched (after an OnDemand restore).
    dense: bool,
}

impl Ram {
    /// Maps memory for a new VM.
    pub fn new(config: &MemoryConfig) -> Outcome<Self> {
        let zones = layout::zones(config)?;
        let mut mappings = Vec::new();
        let mut gpa = 0;
        for zone in &zones {
            layout::place(zone, &mut gpa, &mut mappings);
        }
        Self::map(&zones, mappings)
    }

    /// Maps memory the way a snapshot describes it.
    pub fn from_mappings(config: &MemoryConfig, mappings: Vec<Mapping>) -> Outcome<Self> {
        Self::map(&layout::zones(config)?, mappings)
    }

    fn map(zones: &[MemoryZoneConfig], mappings: Vec<Mapping>) -> Outcome<Self> {
        let regions = mappings.into_iter().map(|mapping| {
            let zone = zones.iter().find(|zone| zone.id == mapping.zone_id);
            let zone = zone.ok_or_else(|| Chain::new("Unknown memory zone"))?;
            Region::map(zone, mapping).map(Arc::new)
        });
        Ok(Self { regions: regions.collect::<Outcome<_>>()?, dense: false })
    }

    /// The mappings, for the memory manager's state.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.regions.iter().map(|r| r.mapping.clone()).collect()
    }

    /// Bytes in all regions.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(|r| r.mapping.size).sum()
    }

    /// First address behind all regions.
    pub fn end(&self) -> u64 {
        let ends = self.regions.iter().map(|r| r.mapping.gpa + r.mapping.size);
        ends.max().unwrap_or(0)
    }

    /// From now on a snapshot writes every page.
    pub fn make_dense(&mut self) {
        self.dense = true;
    }

    /// Ranges a snapshot must carry: all but shared files that have a name.
    pub fn snapshot_ranges(&self) -> Vec<Range> {
        let unsaved = |r: &&Arc<Region>| r.shared_file.as_ref().is_none_or(|backing| !backing.named);
        let ranges = self.regions.iter().filter(unsaved).map(|r| Range { gpa: r.mapping.gpa, length: r.mapping.size });
        ranges.collect()
    }

    /// Copies bytes into guest memory; they must fit into one region.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) -> io::Result<()> {
        let target = self.locate(gpa, bytes.len())?;
        // SAFETY: `locate` checked that the bytes lie inside one mapping, which nobody else borrows.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies bytes out of guest memory; they must lie in one region.
    pub fn read(&self, gpa: u64, length: usize) -> io::Result<Vec<u8>> {
        let source = self.locate(gpa, length)?;
        let mut bytes = vec![0; length];
        // SAFETY: as in `write`; the destination was just made that long.
        unsafe { source.copy_to_nonoverlapping(bytes.as_mut_ptr(), length) };
        Ok(bytes)
    }

    fn locate(&self, gpa: u64, length: usize) -> io::Result<*mut u8> {
        let inside = |r: &&Arc<Region>| {
            let start = r.mapping.gpa;
            gpa >= start && gpa + length as u64 <= start + r.mapping.size
        };
        let region = self
            .regions
            .iter()
            .find(inside)
            .ok_or_else(|| io::Error::other(format!("guest address {gpa:#x}+{length:#x} is not RAM")))?;
        let offset = usize::try_from(gpa - region.mapping.gpa).map_err(io::Error::other)?;
        // SAFETY: the offset lies inside the mapping.
        Ok(unsafe { region.address.as_ptr().cast::<u8>().add(offset) })
    }

    /// Writes the content of `ranges` one after the other into a fresh file.
    pub fn save(&self, file: &File, ranges: &[Range], sparse_allowed: bool) -> io::Result<()> {
        file.set_len(ranges.iter().map(|range| range.length).sum())?;
        let mut cursor = 0;
        for range in ranges {
            let region = self.regions.iter().find(|r| r.mapping.gpa == range.gpa);
            match region.and_then(|r| r.shared_file.as_ref()) {
                Some(memory) if sparse_allowed && !self.dense => {
                    sparse::copy(&memory.file, memory.offset, file, cursor, range.length)?;
                }
                _ => self.save_dense(file, range, cursor)?,
            }
            cursor += range.length;
        }
        Ok(())
    }

    fn save_dense(&self, file: &File, range: &Range, cursor: u64) -> io::Result<()> {
        let mut done = 0;
        while done < range.length {
            let length = PIECE.min(range.length - done);
            let start = self.locate(range.gpa + done, usize_of(length)?)?;
            // SAFETY: `locate` checked the piece; the guest is paused, so nothing writes to it.
            let piece = unsafe { std::slice::from_raw_parts(start, usize_of(length)?) };
            file.write_all_at(piece, cursor + done)?;
            done += length;
        }
        Ok(())
    }

    /// Fills `ranges` from a `memory-ranges` file, leaving out what is zero anyway.
    pub fn load(&mut self, file: &File, ranges: &[Range]) -> io::Result<()> {
        let mut cursor = 0;
        for range in ranges {
            for extent in sparse::extents(file, cursor, cursor + range.length)? {
                self.load_extent(file, range.gpa + (extent.start - cursor), &extent)?;
            }
            cursor += range.length;
        }
        Ok(())
    }

    fn load_extent(&mut self, file: &File, gpa: u64, extent: &std::ops::Range<u64>) -> io::Result<()> {
        let mut piece = vec![0; usize_of(PIECE)?];
        let mut at = extent.start;
        while at < extent.end {
            let length = usize_of(PIECE.min(extent.end - at))?;
            file.read_exact_at(&mut piece[..length], at)?;
            for (index, page) in piece[..length].chunks(4096).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    self.write(gpa + (at - extent.start) + index as u64 * 4096, page)?;
                }
            }
            at += length as u64;
        }
        Ok(())
    }
}

impl Region {
    fn map(zone: &MemoryZoneConfig, mapping: Mapping) -> Outcome<Self> {
        let failed = |error: io::Error| Chain::io("Error from region creation", &error);
        let length = usize_of(mapping.size).map_err(failed)?;
        let length = NonZeroUsize::new(length).ok_or_else(|| Chain::new("Memory configuration is not valid"))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let Some(backing) = backing(zone, &mapping)? else {
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
            // SAFETY: a new anonymous mapping at an address of the kernel's choice.
            let address = unsafe { mmap_anonymous(None, length, protection, flags) }.map_err(|e| failed(e.into()))?;
            return Ok(Self { mapping, address, shared_file: None });
        };
        let shared = zone.shared || zone.hugepages;
        let kind = if shared { MapFlags::MAP_SHARED } else { MapFlags::MAP_PRIVATE };
        let offset = libc::off_t::try_from(backing.offset);
        let offset = offset.map_err(|e| failed(io::Error::other(e)))?;
        let flags = kind | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping of a file this process opened, at an address of the kernel's choice.
        let address = unsafe { mmap(None, length, protection, flags, backing.file.as_fd(), offset) }
            .map_err(|e| failed(e.into()))?;
        Ok(Self { mapping, address, shared_file: shared.then_some(backing) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let length = usize::try_from(self.mapping.size).unwrap_or(0);
        // SAFETY: the mapping was made with this length and nothing points into it any more.
        let _ = unsafe { munmap(self.address, length) };
    }
}

/// File behind a mapping; `None` for anonymous memory.
fn backing(zone: &MemoryZoneConfig, mapping: &Mapping) -> Outcome<Option<Backing>> {
    let failed = |error: &io::Error| Chain::io("Failed to create shared file", error);
    if let Some(path) = &zone.file {
        if std::path::Path::new(path).is_dir() {
            return Err(Chain::new("Using a directory as a backing file for memory is not supported"));
        }
        let file = OpenOptions::new().read(true).write(zone.shared).open(path);
        let file = file.map_err(|e| failed(&e))?;
        let named = file.metadata().map_err(|e| failed(&e))?.nlink() > 0;
        let offset = mapping.file_offset;
        return Ok(Some(Backing { file, offset, named }));
    }
    if !zone.shared && !zone.hugepages {
        return Ok(None);
    }
    let fd = memfd_create("ch_ram", MFdFlags::MFD_CLOEXEC).map_err(|e| failed(&e.into()))?;
    let file = File::from(fd);
    file.set_len(mapping.size).map_err(|e| failed(&e))?;
    Ok(Some(Backing { file, offset: 0, named: false }))
}

fn usize_of(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::{Mapping, Ram};
    use crate::config::MemoryConfig;
    use std::os::unix::fs::MetadataExt;

    fn config(json: &str) -> MemoryConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn memory_above_three_gib_is_two_mappings() {
        let ram = Ram::new(&config(r#"{"size":5368709120,"shared":true}"#)).unwrap();
        let places: Vec<(u64, u64, u64)> =
            ram.mappings().iter().map(|m: &Mapping| (m.gpa, m.size, m.file_offset)).collect();
        assert_eq!(places, [(0, 3 << 30, 0), (4 << 30, 2 << 30, 3 << 30)]);
    }

    #[test]
    fn shared_memory_is_saved_sparsely_and_private_memory_densely() {
        for (shared, sparse) in [(true, true), (false, false)] {
            let json = format!(r#"{{"size":16777216,"shared":{shared}}}"#);
            let mut ram = Ram::new(&config(&json)).unwrap();
            ram.write(1 << 20, b"hello").unwrap();
            let file = tempfile::tempfile().unwrap();
            let ranges = ram.snapshot_ranges();
            ram.save(&file, &ranges, true).unwrap();
            let meta = file.metadata().unwrap();
            assert_eq!(meta.len(), 16 << 20);
            assert_eq!(meta.blocks() * 512 < 1 << 20, sparse, "{}", meta.blocks());
            let mut copy = Ram::new(&config(r#"{"size":16777216}"#)).unwrap();
            copy.load(&file, &ranges).unwrap();
            assert_eq!(copy.read(1 << 20, 5).unwrap(), b"hello");
        }
    }

    #[test]
    fn a_shared_zone_file_holds_the_memory_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        std::fs::File::create(&path).unwrap().set_len(1 << 22).unwrap();
        let zone = |shared| {
            let path = path.display();
            let json =
                format!(r#"{{"size":0,"zones":[{{"id":"mem0","size":4194304,"file":"{path}","shared":{shared}}}]}}"#);
            Ram::new(&config(&json)).unwrap()
        };
        let mut ram = zone(true);
        assert!(ram.snapshot_ranges().is_empty());
        ram.write(0, b"kept").unwrap();
        let mut private = zone(false);
        assert_eq!(private.read(0, 4).unwrap(), b"kept");
        private.write(0, b"gone").unwrap();
        assert_eq!(&std::fs::read(&path).unwrap()[..4], b"kept");
        assert_eq!(private.snapshot_ranges().len(), 1);
    }

    #[test]
    fn impossible_configurations_are_refused() {
        for (json, text) in [
            (r#"{"size":0}"#, "No memory zones found"),
            (r#"{"size":1,"zones":[]}"#, "Memory configuration is not valid"),
        ] {
            let error = Ram::new(&config(json)).err().unwrap();
            assert_eq!(error.texts(), [text]);
        }
    }
}
