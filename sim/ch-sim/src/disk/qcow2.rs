//! The part of the qcow2 header that decides whether an image opens (cloud-hypervisor.md 6).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Chain, Outcome};

/// First bytes of a qcow2 image.
pub const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Longest chain of backing files that is followed.
const NESTING_LIMIT: usize = 10;
/// Longest backing file name.
const NAME_LIMIT: u32 = 1023;

/// Size of the disk inside the image, in bytes.
pub fn virtual_size(path: &Path) -> io::Result<u64> {
    let mut size = [0; 8];
    File::open(path)?.read_exact_at(&mut size, 24)?;
    Ok(u64::from_be_bytes(size))
}

/// The last byte of the incompatible features; its lowest bit says that reference counts may be wrong.
const DIRTY_AT: u64 = 79;

/// Whether the last VMM that wrote to the image ended without closing it. Images of version 2 cannot say so.
pub fn is_dirty(file: &File) -> io::Result<bool> {
    let mut head = [0; 80];
    file.read_exact_at(&mut head, 0)?;
    Ok(head[4..8] == [0, 0, 0, 3] && head[79] & 1 == 1)
}

/// Sets or clears that.
pub fn set_dirty(file: &File, dirty: bool) -> io::Result<()> {
    let mut head = [0; 80];
    file.read_exact_at(&mut head, 0)?;
    if head[4..8] != [0, 0, 0, 3] {
        return Ok(());
    }
    file.write_all_at(&[(head[79] & !1) | u8::from(dirty)], DIRTY_AT)
}

/// Counts references anew, as Cloud Hypervisor does when it opens such an image.
pub fn repair(path: &Path, file: &File) -> io::Result<()> {
    let options = format!("driver=qcow2,file.driver=file,file.locking=off,file.filename={}", path.display());
    let checked = Command::new("qemu-img").args(["check", "-q", "-r", "all", "--image-opts", &options]).output();
    // Whether it worked is told by the image: this process ignores SIGCHLD, so there is no exit code to collect.
    if !is_dirty(file)? {
        return Ok(());
    }
    match checked {
        Err(error) => Err(error),
        Ok(output) => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

/// Checks the image and its backing chain; says whether there is a backing file.
pub fn check(path: &Path, backing_files: bool) -> Outcome<bool> {
    let depth = if backing_files { NESTING_LIMIT } else { 0 };
    let shown = path.display();
    let head = |kind: &str| format!("{kind} (path={shown} op=open)");
    let file = File::open(path).map_err(|error| Chain::io(head("I/O error"), &error))?;
    follow(&file, path, depth).map_err(|failure| {
        let kind = match (&failure, backing_files) {
            (Failure::TooDeep, false) => "Unsupported feature",
            (Failure::TooDeep, true) => "Overflow",
            (Failure::Other(_), _) => "I/O error",
        };
        failure.chain().under(head(kind))
    })
}

enum Failure {
    TooDeep,
    Other(Chain),
}

impl Failure {
    fn chain(self) -> Chain {
        match self {
            Self::TooDeep => Chain::new("Maximum disk nesting depth exceeded"),
            Self::Other(chain) => chain,
        }
    }
}

fn follow(file: &File, path: &Path, depth: usize) -> Result<bool, Failure> {
    let other = |text: &str, error: &io::Error| Failure::Other(Chain::io(text, error));
    let name = backing_name(file).map_err(|error| other("Failed to read header", &error))?;
    let Some(name) = name else { return Ok(false) };
    if depth == 0 {
        return Err(Failure::TooDeep);
    }
    let backing = match path.parent() {
        Some(parent) => parent.join(&name),
        None => PathBuf::from(&name),
    };
    let name = backing.display();
    let opened = File::open(&backing);
    let opened = opened.map_err(|e| other(&format!("Backing file I/O error: {name}"), &e))?;
    let mut magic = [0; 4];
    if opened.read_exact_at(&mut magic, 0).is_ok() && &magic == MAGIC {
        follow(&opened, &backing, depth - 1).map_err(|failure| {
            let chain = failure.chain();
            Failure::Other(chain.under(format!("Backing file open error: {name}")))
        })?;
    }
    Ok(true)
}

/// Name of the backing file in the header: offset in bytes 8..16, length in 16..20.
fn backing_name(file: &File) -> io::Result<Option<String>> {
    let (mut offset, mut length) = ([0; 8], [0; 4]);
    file.read_exact_at(&mut offset, 8)?;
    file.read_exact_at(&mut length, 16)?;
    let (offset, length) = (u64::from_be_bytes(offset), u32::from_be_bytes(length));
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    if length > NAME_LIMIT {
        return Err(io::Error::other("Backing file name is too long"));
    }
    let mut name = vec![0; length as usize];
    file.read_exact_at(&mut name, offset)?;
    String::from_utf8(name).map(Some).map_err(io::Error::other)
}
