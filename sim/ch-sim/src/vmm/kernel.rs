//! The boot item: it must exist and look like something that can be loaded.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::config::PayloadConfig;
use crate::error::{Chain, Outcome};

/// ELF note that names the PVH entry point: owner "Xen", type 18.
const PVH_NOTE_TYPE: u32 = 18;
/// Largest kernel whose notes are searched, in bytes.
const NOTE_LIMIT: u64 = 1 << 20;

/// Checks kernel or firmware. Failures show when the VM boots, after the VM object was made.
pub fn check(payload: &PayloadConfig) -> Outcome<()> {
    let (path, failure) = match (&payload.firmware, &payload.kernel) {
        (Some(firmware), _) => (firmware, "Error manipulating firmware file"),
        (None, Some(kernel)) => (kernel, "Cannot open kernel file"),
        (None, None) => return Ok(()),
    };
    let file = File::open(path).map_err(|error| Chain::io(failure, &error))?;
    let mut head = [0; 64];
    if file.read_exact_at(&mut head, 0).is_ok() && head.starts_with(b"\x7fELF") {
        return match has_entry(&file) {
            true => Ok(()),
            false => Err(Chain::new("Kernel lacks PVH header")),
        };
    }
    let mut magic = [0; 4];
    let found = file.read_exact_at(&mut magic, 0x202);
    if found.is_ok() && &magic == b"HdrS" {
        return Ok(());
    }
    Err(Chain::new("Kernel Loader: Invalid bzImage")
        .under("Kernel Loader: failed to load bzImage kernel image: Kernel Loader: Invalid bzImage")
        .under("Cannot load the kernel into memory"))
}

/// An initramfs must be openable when the VM object is made.
pub fn check_initramfs(payload: &PayloadConfig) -> Outcome<()> {
    let Some(path) = &payload.initramfs else {
        return Ok(());
    };
    let opened = File::open(path);
    opened.map(drop).map_err(|error| Chain::io("Cannot open initramfs file", &error))
}

/// Whether a small ELF file has the PVH note; larger ones are taken for real kernels.
fn has_entry(file: &File) -> bool {
    let length = file.metadata().map_or(0, |meta| meta.len());
    if length > NOTE_LIMIT {
        return true;
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        return false;
    }
    let mut note = PVH_NOTE_TYPE.to_le_bytes().to_vec();
    note.extend_from_slice(b"Xen\0");
    bytes.windows(note.len()).any(|window| window == note)
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::config::PayloadConfig;

    fn kernel(path: &std::path::Path) -> PayloadConfig {
        let json = serde_json::json!({"kernel": path});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_kernels_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let missing = check(&kernel(&path)).unwrap_err();
        assert_eq!(missing.texts()[0], "Cannot open kernel file");
        std::fs::write(&path, "no kernel").unwrap();
        let bad = check(&kernel(&path)).unwrap_err();
        assert_eq!(bad.texts()[0], "Cannot load the kernel into memory");
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        std::fs::write(&path, image).unwrap();
        check(&kernel(&path)).unwrap();
        let mut elf = b"\x7fELF".to_vec();
        elf.resize(128, 0);
        std::fs::write(&path, &elf).unwrap();
        assert_eq!(check(&kernel(&path)).unwrap_err().texts(), ["Kernel lacks PVH header"]);
        elf.extend_from_slice(b"\x12\0\0\0Xen\0");
        std::fs::write(&path, &elf).unwrap();
        check(&kernel(&path)).unwrap();
    }
}
