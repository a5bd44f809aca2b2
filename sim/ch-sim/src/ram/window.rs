//! A few words of guest memory that the guest itself writes while it runs, as a real one does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Ram, Region};

/// Bytes of a word.
const WORD: u64 = 8;

/// A range of guest memory as words. The mapping lives as long as a window on it.
pub struct Window {
    region: Arc<Region>,
    /// Where the window starts in the region's mapping, in bytes.
    start: usize,
    words: usize,
}

impl Ram {
    /// A window of `length` bytes from an address on, both multiples of eight; it must lie in one region.
    pub fn window(&self, gpa: u64, length: u64) -> io::Result<Window> {
        let outside = || io::Error::other(format!("guest address {gpa:#x}+{length:#x} is not RAM"));
        let inside = |r: &&Arc<Region>| {
            let start = r.mapping.gpa;
            gpa >= start && gpa + length <= start + r.mapping.size
        };
        if !gpa.is_multiple_of(WORD) || !length.is_multiple_of(WORD) {
            return Err(outside());
        }
        let region = self.regions.iter().find(inside).ok_or_else(outside)?;
        let start = super::usize_of(gpa - region.mapping.gpa)?;
        Ok(Window { region: Arc::clone(region), start, words: super::usize_of(length / WORD)? })
    }
}

impl Window {
    /// Reads the word at an offset in bytes; outside of the window there are zeros.
    pub fn load(&self, offset: usize) -> u64 {
        self.word(offset).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Writes the word at an offset in bytes; outside of the window nothing happens.
    pub fn store(&self, offset: usize, value: u64) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn word(&self, offset: usize) -> Option<&AtomicU64> {
        let index = offset / 8;
        if index >= self.words {
            return None;
        }
        // SAFETY: `Ram::window` checked that all words lie inside the mapping, which starts at a page and stays as long
        // as the region. The VMM reads and writes these bytes only while the guest, who owns the window, stands still.
        Some(unsafe { &*self.region.address.as_ptr().cast::<u8>().add(self.start + index * 8).cast::<AtomicU64>() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ram;

    #[test]
    fn what_goes_through_a_window_is_in_memory() {
        let ram = Ram::new(&serde_json::from_str(r#"{"size":4194304}"#).unwrap()).unwrap();
        let window = ram.window(8192, 16).unwrap();
        window.store(8, 0x0102_0304);
        window.store(16, 7);
        assert_eq!((window.load(8), window.load(16)), (0x0102_0304, 0));
        assert_eq!(ram.read(8200, 4).unwrap(), [4, 3, 2, 1]);
        assert_eq!(ram.read(8208, 1).unwrap(), [0]);
        drop(ram);
        assert_eq!(window.load(8), 0x0102_0304, "a window keeps its memory");
    }

    #[test]
    fn windows_outside_of_memory_are_refused() {
        let ram = Ram::new(&serde_json::from_str(r#"{"size":4194304}"#).unwrap()).unwrap();
        for (gpa, length) in [(4194304, 8), (4194296, 16), (4, 8), (8, 4)] {
            assert!(ram.window(gpa, length).is_err(), "{gpa} {length}");
        }
    }
}
