//! Which mappings of a VMM are its guest's RAM (cloud-hypervisor.md 5.4: two of them above 3 GiB).

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use super::Error;
use super::process::Vmm;

/// At most so many mappings are told in an error.
const TOLD: usize = 6;

/// A file, whatever its names are.
#[derive(Debug, Clone)]
pub(super) struct FileId {
    /// The name under which it was found; for messages.
    pub(super) path: PathBuf,
    dev: u64,
    ino: u64,
}

impl FileId {
    pub(super) fn new(path: &Path, metadata: &Metadata) -> Self {
        Self { path: path.to_owned(), dev: metadata.dev(), ino: metadata.ino() }
    }

    pub(super) fn is(&self, metadata: &Metadata) -> bool {
        (self.dev, self.ino) == (metadata.dev(), metadata.ino())
    }
}

/// A mapped part of the memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// First address in the VMM.
    pub(super) start: u64,
    /// First address behind it.
    pub(super) end: u64,
    /// Where `start` is in the file.
    pub(super) offset: u64,
}

impl Piece {
    fn file_end(&self) -> u64 {
        self.offset + (self.end - self.start)
    }
}

/// The mappings that are the guest's RAM, by offset in the file: all of 0 to `size`, each byte once,
/// private and writable.
///
/// # Errors
/// Anything else, with what was found.
pub(super) fn guest_ram(vmm: &Vmm, file: &FileId, size: u64) -> Result<Vec<Piece>, Error> {
    let text = vmm.maps()?;
    let lines: Vec<Line<'_>> = text.lines().filter_map(Line::parse).collect();
    let of_file: Vec<&Line<'_>> = lines.iter().filter(|line| line.is_of(vmm.pid, file)).collect();
    let mut pieces: Vec<Piece> = of_file.iter().map(|line| line.piece).collect();
    pieces.sort_by_key(|piece| piece.offset);
    let private = of_file.iter().all(|line| line.flags.starts_with("rw") && line.flags.ends_with('p'));
    if private && covers(&pieces, size) {
        return Ok(pieces);
    }
    let found = if of_file.is_empty() { others(&lines) } else { told("it maps of it ", of_file.into_iter()) };
    Err(Error::Mapping { pid: vmm.pid, path: file.path.clone(), size, found })
}

fn covers(pieces: &[Piece], size: u64) -> bool {
    let mut next = 0;
    for piece in pieces {
        if piece.offset != next {
            return false;
        }
        next = piece.file_end();
    }
    next == size
}

/// Guest RAM is the biggest that a VMM maps, so the biggest mappings tell what it is instead.
fn others(lines: &[Line<'_>]) -> String {
    let mut biggest: Vec<&Line<'_>> = lines.iter().filter(|line| line.flags.starts_with("rw")).collect();
    biggest.sort_by_key(|line| std::cmp::Reverse(line.piece.end - line.piece.start));
    told("nothing of it; its biggest mappings are ", biggest.into_iter().take(3))
}

fn told<'a>(intro: &str, lines: impl Iterator<Item = &'a Line<'a>>) -> String {
    let mut words: Vec<String> = lines.map(Line::words).collect();
    let more = words.len().saturating_sub(TOLD);
    words.truncate(TOLD);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{intro}{}{rest}", words.join(", "))
}

/// One line of /proc/pid/maps.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    piece: Piece,
    flags: &'a str,
    dev: &'a str,
    ino: u64,
    name: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let flags = fields.next()?;
        let offset = hex(fields.next()?)?;
        let (dev, ino) = (fields.next()?, fields.next()?.parse().ok()?);
        let name = fields.next().unwrap_or_default().trim_start();
        Some(Self { piece: Piece { start: hex(start)?, end: hex(end)?, offset }, flags, dev, ino, name })
    }

    /// Compares device and inode. Where a file system has several devices in one (btrfs), the line tells
    /// another device than stat(2); then the mapped file itself is asked.
    fn is_of(&self, pid: i32, file: &FileId) -> bool {
        if self.ino != file.ino {
            return false;
        }
        let same = self.dev == format!("{:02x}:{:02x}", major(file.dev), minor(file.dev));
        same || self.mapped_file(pid).is_ok_and(|metadata| file.is(&metadata))
    }

    fn mapped_file(&self, pid: i32) -> std::io::Result<Metadata> {
        std::fs::metadata(format!("/proc/{pid}/map_files/{:x}-{:x}", self.piece.start, self.piece.end))
    }

    fn words(&self) -> String {
        let name = if self.name.is_empty() { "anonymous memory" } else { self.name };
        let Piece { offset, .. } = self.piece;
        format!("{name} {} from {offset} to {}", self.flags, self.piece.file_end())
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_kinds() {
        let line = Line::parse("7f0000000000-7f0000200000 rw-p c0000000 fd:01 77    /d/a b (deleted)").unwrap();
        let piece = Piece { start: 0x7f00_0000_0000, end: 0x7f00_0020_0000, offset: 0xc000_0000 };
        assert_eq!(line, Line { piece, flags: "rw-p", dev: "fd:01", ino: 77, name: "/d/a b (deleted)" });
        let bare = Line::parse("00400000-00401000 rw-p 00000000 00:00 0").unwrap();
        assert_eq!((bare.ino, bare.name), (0, ""));
        assert_eq!(Line::parse("nonsense"), None);
    }

    #[test]
    fn every_byte_exactly_once() {
        let piece = |offset: u64, len: u64| Piece { start: 0x1000, end: 0x1000 + len, offset };
        assert!(covers(&[piece(0, 8192), piece(8192, 4096)], 12288));
        assert!(!covers(&[], 4096));
        assert!(!covers(&[piece(0, 8192), piece(8192, 4096)], 16384), "too short");
        assert!(!covers(&[piece(0, 8192), piece(8192, 4096)], 8192), "too long");
        assert!(!covers(&[piece(0, 4096), piece(8192, 4096)], 12288), "a gap");
        assert!(!covers(&[piece(0, 8192), piece(4096, 4096)], 8192), "twice");
    }

    #[test]
    fn an_error_does_not_grow_without_bound() {
        let line = Line::parse("1000-2000 rw-s 00000000 00:01 5 /memfd:ch_ram (deleted)").unwrap();
        let text = told("it maps ", std::iter::repeat_n(&line, 10));
        assert!(text.contains("/memfd:ch_ram (deleted) rw-s from 0 to 4096"), "{text}");
        assert!(text.ends_with("and 4 more"), "{text}");
    }
}
