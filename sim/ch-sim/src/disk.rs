//! Disk images: format check, advisory locks, block access for the guest (cloud-hypervisor.md 6).

mod qcow2;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{FormatDriverBuilder, PermissiveImplicitOpenGate, SyncFormatAccess};

use crate::config::{DiskConfig, ImageType, LockGranularityChoice};
use crate::error::{Chain, Outcome};
use crate::version::{DiskLocks, Version};

/// A block that the guest reads and writes, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// An opened disk of a VM.
pub struct Disk {
    pub id: String,
    path: PathBuf,
    file: File,
    image_type: ImageType,
    readonly: bool,
    lock: LockGranularityChoice,
    has_backing: bool,
    image: Arc<Mutex<Image>>,
}

/// The content of a disk, shared with the guest.
pub struct Image {
    path: PathBuf,
    raw: File,
    image_type: ImageType,
    readonly: bool,
    qcow2: Option<SyncFormatAccess<ImageFile>>,
}

impl Disk {
    /// Opens the image and fills in what detection finds. The error is the text below "Error from device manager".
    pub fn open(config: &mut DiskConfig, id: String, version: Version) -> Outcome<Self> {
        let path = config.path.clone();
        let path = path.ok_or_else(|| Chain::new("No disk path was specified when one was expected"))?;
        let path = PathBuf::from(path);
        if !version.has_image_type() {
            config.image_type = ImageType::Unknown;
            config.backing_files = true;
        }
        let (file, found) = open_image(&path, config).map_err(|c| c.under("Cannot open disk path"))?;
        let mut has_backing = false;
        if found == ImageType::Qcow2 {
            has_backing = qcow2::check(&path, config.backing_files).map_err(|c| c.under("Cannot open disk path"))?;
        }
        settle_type(config, found)?;
        let raw = file.try_clone().map_err(|error| Chain::io("Cannot create virtio-blk device", &error))?;
        Ok(Self {
            id,
            image: Arc::new(Mutex::new(Image {
                path: path.clone(),
                raw,
                image_type: found,
                readonly: config.readonly,
                qcow2: None,
            })),
            path,
            file,
            image_type: found,
            readonly: config.readonly,
            lock: config.lock_granularity,
            has_backing,
        })
    }

    /// Takes the advisory lock. The error is the text from "Failed to get ... lock" on.
    pub fn try_lock(&self, version: Version) -> Outcome<()> {
        let length = match (version.disk_locks(), self.lock) {
            (DiskLocks::None, _) => return Ok(()),
            (DiskLocks::WholeFile, _) | (_, LockGranularityChoice::Full) => 0,
            (DiskLocks::ByteRange, LockGranularityChoice::ByteRange) => self.locked_bytes(),
        };
        let (kind, name) = match self.readonly {
            true => (libc::F_RDLCK, "Read"),
            false => (libc::F_WRLCK, "Write"),
        };
        try_lock_file(&self.file, kind, length).map_err(|chain| {
            let path = self.path.display();
            chain.under(format!("Failed to get {name} lock for disk image: {path}"))
        })
    }

    /// Content, for the guest.
    pub fn image(&self) -> Arc<Mutex<Image>> {
        Arc::clone(&self.image)
    }

    /// Path of the image.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.logical_bytes() / 512
    }

    /// Whether the guest may write.
    pub fn is_writable(&self) -> bool {
        !self.readonly
    }

    /// Changes the size; raw files shrink without a question. The error is the text below "Disk resize error".
    pub fn resize(&self, bytes: u64, version: Version) -> Outcome<()> {
        if !bytes.is_multiple_of(512) {
            return Err(Chain::new("Disk image size is not a multiple of 512"));
        }
        let failed = |error: &io::Error| {
            Chain::io("Failed to resize", error).under("I/O error (op=resize)").under("Disk resize failed")
        };
        if self.image_type != ImageType::Qcow2 {
            return self.file.set_len(bytes).map_err(|error| failed(&error));
        }
        let refused =
            |text: &str| Chain::new(text).under("Unsupported feature (op=resize)").under("Disk resize failed");
        if !version.resizes_qcow2() {
            return Err(refused("resize is not supported for this image type"));
        }
        if self.has_backing {
            return Err(refused("resize not supported with backing files"));
        }
        let mut image = self.image.lock().map_err(|_| refused("image is unusable"))?;
        let grown = image.qcow2().and_then(|access| {
            if bytes < access.size() {
                return Err(io::Error::other("Shrinking QCOW images is not supported"));
            }
            access.resize(bytes, imago::format::PreallocateMode::Zero)
        });
        grown.map_err(|error| failed(&error))
    }

    /// [0, max(logical, physical)).
    fn locked_bytes(&self) -> u64 {
        let Ok(meta) = self.file.metadata() else { return 0 };
        let physical = match meta.file_type().is_block_device() {
            true => 0,
            false => meta.blocks() * 512,
        };
        self.logical_bytes().max(physical)
    }

    /// Size of the disk as the guest sees it.
    fn logical_bytes(&self) -> u64 {
        let length = self.file.metadata().map_or(0, |meta| meta.len());
        match self.image_type {
            ImageType::Qcow2 => qcow2::virtual_size(&self.path).unwrap_or(length),
            _ => length,
        }
    }
}

impl Image {
    /// Writes one block at `index` blocks.
    pub fn write_block(&mut self, index: u64, block: &[u8; BLOCK_BYTES]) -> io::Result<()> {
        if self.readonly {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        let offset = index * BLOCK_BYTES as u64;
        if self.image_type == ImageType::Qcow2 {
            return self.qcow2()?.write(&block[..], offset);
        }
        if offset + BLOCK_BYTES as u64 > self.raw.metadata()?.len() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.raw.write_all_at(block, offset)
    }

    /// Reads one block at `index` blocks.
    pub fn read_block(&mut self, index: u64) -> io::Result<[u8; BLOCK_BYTES]> {
        let mut block = [0; BLOCK_BYTES];
        self.read_at(index * BLOCK_BYTES as u64, &mut block)?;
        Ok(block)
    }

    /// Fills `bytes` from an offset.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        match self.image_type {
            ImageType::Qcow2 => self.qcow2()?.read(bytes, offset),
            _ => self.raw.read_exact_at(bytes, offset),
        }
    }

    /// The file itself, when the guest sees it unchanged.
    pub fn raw_file(&self) -> Option<&File> {
        (self.image_type == ImageType::Raw).then_some(&self.raw)
    }

    /// Writes back what is cached: on a guest flush and on orderly ends, not on a pause (cloud-hypervisor.md 6).
    pub fn flush(&mut self) -> io::Result<()> {
        match &self.qcow2 {
            Some(access) => access.flush(),
            None => Ok(()),
        }
    }

    /// Writes back what is cached and says in the header that nothing is missing: an orderly end.
    pub fn close(&mut self) -> io::Result<()> {
        self.flush()?;
        match self.qcow2.take() {
            Some(access) if !self.readonly => {
                drop(access);
                qcow2::set_dirty(&self.raw, false)
            }
            _ => Ok(()),
        }
    }

    fn qcow2(&mut self) -> io::Result<&mut SyncFormatAccess<ImageFile>> {
        if self.qcow2.is_none() {
            if !self.readonly && qcow2::is_dirty(&self.raw)? {
                qcow2::repair(&self.path, &self.raw)?;
            }
            let builder = Qcow2::<ImageFile>::builder_path(&self.path).write(!self.readonly);
            let image = builder.open_sync(PermissiveImplicitOpenGate::default())?;
            self.qcow2 = Some(SyncFormatAccess::new(image)?);
            if !self.readonly {
                qcow2::set_dirty(&self.raw, true)?;
            }
        }
        self.qcow2.as_mut().ok_or_else(|| io::Error::other("qcow2 image is not open"))
    }
}

fn open_image(path: &Path, config: &DiskConfig) -> Outcome<(File, ImageType)> {
    let flags = if config.direct { libc::O_DIRECT } else { 0 };
    let opened = OpenOptions::new().read(true).write(!config.readonly).custom_flags(flags).open(path);
    let shown = path.display();
    let file = opened.map_err(|error| Chain::io(format!("I/O error (path={shown} op=open)"), &error))?;
    // Headers are read through a descriptor of their own: O_DIRECT would need aligned buffers.
    let found = File::open(path).and_then(|plain| detect(&plain));
    let found = found.map_err(|error| Chain::io("I/O error (op=detect_image_type)", &error))?;
    Ok((file, found))
}

fn detect(file: &File) -> io::Result<ImageType> {
    let mut head = [0; 512];
    file.read_exact_at(&mut head, 0)?;
    if head.starts_with(qcow2::MAGIC) {
        return Ok(ImageType::Qcow2);
    }
    if head.starts_with(b"vhdxfile") {
        return Ok(ImageType::Vhdx);
    }
    let length = file.metadata()?.len();
    let mut foot = [0; 8];
    if length >= 512 && length.is_multiple_of(512) {
        file.read_exact_at(&mut foot, length - 512)?;
    }
    Ok(if &foot == b"conectix" { ImageType::FixedVhd } else { ImageType::Raw })
}

/// Compares the type asked for with the one found; an unknown one is written back.
fn settle_type(config: &mut DiskConfig, found: ImageType) -> Outcome<()> {
    match config.image_type {
        ImageType::Unknown => {
            if found == ImageType::Qcow2 {
                config.backing_files = false;
            }
            config.image_type = found;
            Ok(())
        }
        specified if specified == found => Ok(()),
        specified => Err(Chain::new(format!(
            "Disk image type does not match expected type: specified = {specified}, detected = {found}"
        ))),
    }
}

/// Sets an OFD lock over `[0, length)`, 0 meaning all, on an open file.
pub fn try_lock_file(file: &File, kind: libc::c_int, length: u64) -> Outcome<()> {
    let failed = |error: &io::Error| Chain::io("The lock state could not be checked or set", error);
    // SAFETY: all bytes zero is a valid `flock`.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_len = libc::off_t::try_from(length).map_err(|e| failed(&io::Error::other(e)))?;
    // SAFETY: the argument is the address of a complete `flock` that outlives the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(Chain::new("The file is already locked")),
        _ => Err(failed(&error)),
    }
}
