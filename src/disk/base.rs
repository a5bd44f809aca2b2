//! Finding the base of a sandbox's disk and checking it: where it may lie, what it is, and the whole
//! chain of backing files below it. No silent change to another image: what is missing or broken is an
//! error that says so.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::flight::locked;
use super::header::{Backing, Bad, Header, MAGIC};
use super::lock::lock_shared;
use super::open::{Trust, open};
use super::{Error, Format};
use crate::ids::SnapshotRef;

/// Longest chain of images: the hypervisor stops at ten levels, and the overlay is one of them.
pub(super) const LONGEST_CHAIN: usize = 8;
/// How many images' tables are remembered as checked.
const REMEMBERED: usize = 4096;

/// One version of one file: changes when the file is replaced or written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Identity {
    /// Device and inode, which stay the same when the file is written to.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

/// An image of a chain, opened read-only.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// Where it really is, symbolic links followed.
    pub(super) path: PathBuf,
    /// The open file: what was checked is what is read. It carries a read lock (see [`super::lock`]).
    pub(super) file: Arc<File>,
    /// Its format.
    pub(super) format: Format,
    /// Its virtual size in bytes.
    pub(super) size: u64,
    /// Which version of the file this is.
    pub(super) identity: Identity,
    /// True when only the hypervisor can decompress it.
    pub(super) compression: bool,
}

/// A base: the image itself, then its backing files from top to bottom.
#[derive(Debug, Clone)]
pub(super) struct Base {
    /// The image itself.
    pub(super) top: Image,
    /// What it is backed by.
    pub(super) below: Vec<Image>,
}

impl Base {
    /// The chain from the top down.
    pub(super) fn images(&self) -> impl DoubleEndedIterator<Item = &Image> {
        std::iter::once(&self.top).chain(&self.below)
    }

    /// Name of this version's flattened copy: `{path}-{versions of the chain}`, both hashed.
    pub(super) fn key(&self) -> String {
        let mut versions = Sha256::new();
        for image in self.images() {
            let Identity { inode, length, modified: (seconds, nanos), .. } = image.identity;
            versions.update(image.path.as_os_str().as_encoded_bytes());
            versions.update(format!("\0{inode} {length} {seconds} {nanos}\0"));
        }
        format!("{}-{}", path_key(&self.top.path), hex(&versions.finalize()))
    }

    /// Refuses a disk that is smaller than its base.
    pub(super) fn fits(&self, wanted: u64) -> Result<(), Error> {
        let (path, base) = (self.top.path.clone(), self.top.size);
        if base > wanted { Err(Error::TooSmall { path, base, wanted }) } else { Ok(()) }
    }
}

/// The part of [`Base::key`] that is the same for all versions of a path.
pub(super) fn path_key(path: &Path) -> String {
    hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// The bases of this host.
#[derive(Debug)]
pub(super) struct Catalog {
    configured: PathBuf,
    snapshots: PathBuf,
    checked: Mutex<HashSet<Identity>>,
}

impl Catalog {
    /// A catalog over the configured base image and the snapshots directory.
    pub(super) fn new(configured: PathBuf, snapshots: PathBuf) -> Self {
        Self { configured, snapshots, checked: Mutex::default() }
    }

    /// The configured base image, as the operator wrote it.
    pub(super) fn configured(&self) -> &Path {
        &self.configured
    }

    /// Finds, opens, locks and checks a base; the locks last as long as the answer.
    pub(super) fn find(&self, wanted: Option<&SnapshotRef>) -> Result<Base, Error> {
        match wanted {
            Some(snapshot) if base_name(&self.configured).as_deref() != Some(snapshot.as_str()) => {
                self.find_snapshot(snapshot)
            }
            _ => self.find_configured(),
        }
    }

    /// Opens a base or a layer again by the path that was found before; a snapshot's image stays one.
    pub(super) fn reopen(&self, path: &Path) -> Result<Base, Error> {
        let beneath = path.starts_with(&self.snapshots);
        let trust = if beneath { Trust::Beneath(&self.snapshots) } else { Trust::Operator };
        self.open_chain(path, trust, LONGEST_CHAIN)
    }

    /// Opens an image that the runner itself has made, to which nobody writes any more, and its chain.
    pub(super) fn open_own(&self, path: &Path) -> Result<Base, Error> {
        self.open_chain(path, Trust::Operator, LONGEST_CHAIN + 1)
    }

    fn open_chain(&self, path: &Path, trust: Trust<'_>, longest: usize) -> Result<Base, Error> {
        match open(path, trust).map_err(|source| outside_or(source, path, &self.snapshots))? {
            Some((file, path)) => self.chain(file, path, trust, longest),
            None => Err(Error::BaseMissing {
                wanted: "an image that a known sandbox's disk stands on".into(),
                tried: vec![path.to_owned()],
                remedy: "put the file back: the sandbox's disk is unusable without it",
            }),
        }
    }

    fn find_configured(&self) -> Result<Base, Error> {
        let tried: Vec<_> = std::iter::once(self.configured.clone()).chain(other_layout(&self.configured)).collect();
        for path in &tried {
            if let Some((file, path)) = open(path, Trust::Operator).map_err(Error::io("open the base image", path))? {
                return self.chain(file, path, Trust::Operator, LONGEST_CHAIN);
            }
        }
        Err(Error::BaseMissing {
            wanted: "the base image (CH_BASE_IMAGE_PATH)".into(),
            tried,
            remedy: "put a qcow2 or raw image there, or set CH_BASE_IMAGE_PATH to where it is",
        })
    }

    fn find_snapshot(&self, snapshot: &SnapshotRef) -> Result<Base, Error> {
        let trust = Trust::Beneath(&self.snapshots);
        let tried: Vec<_> = ["/disk.raw", "/disk.qcow2", ".qcow2", ".raw"]
            .into_iter()
            .map(|end| self.snapshots.join(format!("{snapshot}{end}")))
            .collect();
        for path in &tried {
            match open(path, trust) {
                Ok(Some((file, path))) => return self.chain(file, path, trust, LONGEST_CHAIN),
                Ok(None) => {}
                Err(source) => return Err(outside_or(source, path, &self.snapshots)),
            }
        }
        Err(Error::BaseMissing {
            wanted: format!("the snapshot {snapshot}"),
            tried,
            remedy: "pull or build the snapshot on this runner first, or use the base image by giving no snapshot",
        })
    }

    /// Checks the image and follows its backing files.
    fn chain(&self, file: File, path: PathBuf, trust: Trust<'_>, longest: usize) -> Result<Base, Error> {
        let (top, mut next) = self.inspect(file, path, None)?;
        let mut below: Vec<Image> = Vec::new();
        while let Some((name, format)) = next {
            let above = below.last().unwrap_or(&top);
            if below.len() + 1 >= longest {
                return Err(invalid(&top.path, format!("it has more than {longest} images in its chain")));
            }
            let path = above.path.parent().unwrap_or(Path::new("/")).join(&name);
            let opened = match (open(&path, trust), trust) {
                (Ok(opened), _) => opened,
                (Err(source), Trust::Beneath(root)) => return Err(outside_or(source, &path, root)),
                (Err(source), Trust::Operator) => return Err(Error::io("open the backing file", path)(source)),
            };
            let Some((file, path)) = opened else {
                let why = format!("its backing file {path:?} is missing; put it back, or flatten the image");
                return Err(invalid(&above.path, why));
            };
            let (image, deeper) = self.inspect(file, path, format)?;
            below.push(image);
            next = deeper;
        }
        Ok(Base { top, below })
    }

    /// Locks first: an image that somebody writes to may look damaged for that alone.
    fn inspect(&self, file: File, path: PathBuf, format: Option<Format>) -> Result<(Image, Backing), Error> {
        lock_shared(&file, &path)?;
        let about = file.metadata().map_err(Error::io("read the attributes of", &path))?;
        let identity = Identity {
            device: about.dev(),
            inode: about.ino(),
            length: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
        };
        let format = match format {
            Some(format) => format,
            None => detect(&file, &path)?,
        };
        let (size, backing, compression) = match format {
            Format::Raw => (raw_size(&path, about.len())?, None, false),
            Format::Qcow2 => {
                let header = self.header(&file, identity).map_err(|bad| match bad {
                    Bad::Content(why) => invalid(&path, why),
                    Bad::Read(source) => Error::io("read the base image", &path)(source),
                })?;
                (header.size, header.backing, header.compression)
            }
        };
        Ok((Image { path, file: Arc::new(file), format, size, identity, compression }, backing))
    }

    /// The header; the tables are walked once per version of a file.
    fn header(&self, file: &File, identity: Identity) -> Result<Header, Bad> {
        let header = Header::read(file, identity.length)?;
        if !locked(&self.checked).contains(&identity) {
            header.check_tables(file, identity.length)?;
            let mut checked = locked(&self.checked);
            if checked.len() >= REMEMBERED {
                checked.clear();
            }
            checked.insert(identity);
        }
        Ok(header)
    }
}

fn invalid(path: &Path, why: impl Into<String>) -> Error {
    Error::BaseInvalid { path: path.to_owned(), why: why.into() }
}

fn outside_or(source: io::Error, path: &Path, root: &Path) -> Error {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::XDEV | Errno::LOOP) => Error::BaseOutside { path: path.to_owned(), root: root.to_owned() },
        _ => Error::io("open the base image", path)(source),
    }
}

/// A file named `.raw` is raw whatever it begins with: its first sector was a guest's to write, and a
/// qcow2 header there could name any file of the host as backing file.
fn detect(file: &File, path: &Path) -> Result<Format, Error> {
    let extension = path.extension().and_then(|text| text.to_str());
    if extension == Some("raw") {
        return Ok(Format::Raw);
    }
    let mut magic = [0; 4];
    let is_qcow2 = match file.read_exact_at(&mut magic, 0) {
        Ok(()) => magic == MAGIC,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(Error::io("read the base image", path)(error)),
    };
    match (is_qcow2, extension) {
        (true, _) => Ok(Format::Qcow2),
        (false, Some("qcow2")) => Err(invalid(
            path,
            "it is named .qcow2 but does not begin like one (QFI\\xfb); it is damaged, or it is a raw image and has to \
             be named .raw",
        )),
        (false, _) => Ok(Format::Raw),
    }
}

fn raw_size(path: &Path, length: u64) -> Result<u64, Error> {
    match length {
        0 => Err(invalid(path, "it is empty")),
        length if length % 512 != 0 => {
            Err(invalid(path, format!("its length of {length} bytes is not a multiple of 512; copy it again")))
        }
        length => Ok(length),
    }
}

/// `N` of `…/N/disk.{qcow2,raw}` and `…/N.{qcow2,raw}`.
pub(super) fn base_name(path: &Path) -> Option<String> {
    let named = if path.file_stem()? == "disk" { path.parent()?.file_name()? } else { path.file_stem()? };
    named.to_str().map(str::to_owned)
}

/// The same image in the other of the two layouts that the deployment guide uses.
pub(super) fn other_layout(path: &Path) -> Option<PathBuf> {
    let extension = path.extension()?.to_str()?;
    if path.file_stem()? == "disk" {
        let directory = path.parent()?;
        Some(directory.with_file_name(format!("{}.{extension}", directory.file_name()?.to_str()?)))
    } else {
        Some(path.with_file_name(path.file_stem()?).join(format!("disk.{extension}")))
    }
}
