//! The NoCloud seed as a disk: a FAT12 file system with the label CIDATA, made in memory and as small
//! as it can be. The same seed gives the same bytes.

use std::fs::OpenOptions;
use std::io::{self, Cursor, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use sha2::{Digest, Sha256};

use super::{Error, Seed, cloud_config};

const SECTOR: usize = 512;
/// Sectors that hold no file content: boot sector, root directory, and some to spare.
const OVERHEAD: usize = 4;
/// The image's length is a multiple of this, so that it can be read past the page cache, too.
const ALIGNMENT: usize = 4096;
/// Entries of the root directory: four sectors of long names would fit.
const ROOT_ENTRIES: u16 = 16;

/// The seed's image. `mtu` is the guest's, when it is not the default.
pub(super) fn image(seed: &Seed, mtu: Option<u16>) -> Result<Vec<u8>, Error> {
    let files = [
        ("meta-data", cloud_config::meta_data(seed)?),
        ("user-data", cloud_config::user_data(seed)?),
        ("network-config", cloud_config::network_config(seed.mac, mtu)),
    ];
    let digest = Sha256::digest(seed.sandbox.as_str());
    let volume = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    format(&files, volume).map_err(Error::io("make the seed image of", seed.sandbox.as_str()))
}

/// Writes the image, mode 0600.
pub(super) fn write(path: &Path, image: &[u8]) -> Result<(), Error> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(image));
    written.map_err(Error::io("write the seed", path))
}

fn format(files: &[(&str, String)], volume: u32) -> io::Result<Vec<u8>> {
    let data: usize = files.iter().map(|(_, text)| text.len().div_ceil(SECTOR)).sum();
    // Twelve bits per cluster of one sector.
    let table = ((data + 2) * 3).div_ceil(2 * SECTOR);
    let length = ((OVERHEAD + table + data).max(16) * SECTOR).next_multiple_of(ALIGNMENT);
    let mut disk = Cursor::new(vec![0; length]);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat12)
        .bytes_per_cluster(SECTOR as u32)
        .fats(1)
        .max_root_dir_entries(ROOT_ENTRIES)
        .volume_id(volume)
        .volume_label(*b"CIDATA     ");
    format_volume(&mut disk, options)?;
    let system = FileSystem::new(&mut disk, FsOptions::new())?;
    for (name, text) in files {
        let mut file = system.root_dir().create_file(name)?;
        file.truncate()?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
    }
    system.unmount()?;
    Ok(disk.into_inner())
}
