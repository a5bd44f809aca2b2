//! The qcow2 header, read before anything trusts an image: virtual size, backing file, and whether
//! all that the tables point to lies within the file. A download that broke off is found here and not
//! inside a guest. Field offsets are those of QEMU's format description (docs/interop/qcow2).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Format;

/// First four bytes of every qcow2 image.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

const BACKING_FORMAT: u32 = 0xe279_2aca;
const LONGEST_BACKING: u32 = 1023;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

/// Backing file as written in the header, with its format when that is written there too.
pub(super) type Backing = Option<(String, Option<Format>)>;

/// What we need to know of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Virtual size in bytes.
    pub(super) size: u64,
    /// Its backing file.
    pub(super) backing: Backing,
    /// True when clusters are compressed by something other than deflate.
    pub(super) compression: bool,
    cluster_bits: u32,
    l1_entries: u32,
    l1_offset: u64,
}

/// Why an image is not usable: a sentence for the operator, or a failed read.
#[derive(Debug)]
pub(super) enum Bad {
    /// The image is not as it should be.
    Content(String),
    /// It could not be read.
    Read(io::Error),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Content("the qcow2 file ends inside its own header".into()),
            _ => Self::Read(error),
        }
    }
}

fn bad<T>(why: impl Into<String>) -> Result<T, Bad> {
    Err(Bad::Content(why.into()))
}

struct Fields(Vec<u8>);

impl Fields {
    fn read(file: &File) -> Result<Self, Bad> {
        let mut fields = Self(vec![0; 72]);
        file.read_exact_at(&mut fields.0, 0)?;
        let version = fields.u32(4);
        if fields.0[..4] != MAGIC || !(2..=3).contains(&version) {
            return bad(format!("its qcow2 version is {version}; 2 and 3 are known"));
        }
        if version == 3 {
            fields.0.resize(104, 0);
            file.read_exact_at(&mut fields.0, 0)?;
        }
        Ok(fields)
    }

    /// Where the header extensions begin.
    fn extensions(&self) -> u64 {
        if self.u32(4) == 2 { 72 } else { u64::from(self.u32(100)).max(104) }
    }

    fn u32(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }
}

impl Header {
    /// Reads and checks the header of `file`, which has `length` bytes.
    pub(super) fn read(file: &File, length: u64) -> Result<Self, Bad> {
        let fields = Fields::read(file)?;
        let header = Self {
            size: fields.u64(24),
            backing: None,
            compression: features(&fields)?,
            cluster_bits: fields.u32(20),
            l1_entries: fields.u32(36),
            l1_offset: fields.u64(40),
        };
        header.check(&fields, length)?;
        let backing = read_backing(file, &fields)?;
        Ok(Self { backing, ..header })
    }

    fn check(&self, fields: &Fields, length: u64) -> Result<(), Bad> {
        let Self { size, cluster_bits, l1_entries, l1_offset, .. } = *self;
        if !(9..=21).contains(&cluster_bits) {
            return bad(format!("its qcow2 header has cluster_bits {cluster_bits}; 9 to 21 are possible"));
        }
        if size == 0 || size % 512 != 0 || size > 1 << 62 {
            return bad(format!("its virtual size of {size} bytes is not a positive multiple of 512"));
        }
        let per_entry = 1u64 << (2 * cluster_bits - 3);
        if u64::from(l1_entries) < size.div_ceil(per_entry) {
            return bad(format!("its L1 table of {l1_entries} entries is too short for {size} bytes"));
        }
        let tables = [
            ("L1", l1_offset, u64::from(l1_entries) * 8),
            ("refcount", fields.u64(48), u64::from(fields.u32(56)) << cluster_bits),
        ];
        for (name, offset, bytes) in tables {
            if offset % (1 << cluster_bits) != 0 || offset.checked_add(bytes).is_none_or(|end| end > length) {
                return bad(format!(
                    "its {name} table ({bytes} bytes at {offset}) is not within the file of {length} bytes; it is \
                     damaged or a copy that broke off: copy it again"
                ));
            }
        }
        Ok(())
    }

    /// Checks that every cluster the tables name begins within the file of `length` bytes.
    pub(super) fn check_tables(&self, file: &File, length: u64) -> Result<(), Bad> {
        let mut l1 = vec![0; self.l1_entries as usize * 8];
        file.read_exact_at(&mut l1, self.l1_offset)?;
        let cluster = 1u64 << self.cluster_bits;
        let mut l2 = vec![0; 1 << self.cluster_bits];
        for table in entries(&l1).map(|entry| entry & OFFSET_MASK).filter(|&table| table != 0) {
            if table % cluster != 0 || table + cluster > length {
                return bad(beyond("a table", table, length));
            }
            file.read_exact_at(&mut l2, table)?;
            if let Some(data) = entries(&l2).map(|entry| self.data_offset(entry)).find(|&data| data >= length) {
                return bad(beyond("data", data, length));
            }
        }
        Ok(())
    }

    fn data_offset(&self, entry: u64) -> u64 {
        if entry & COMPRESSED != 0 { entry & ((1 << (70 - self.cluster_bits)) - 1) } else { entry & OFFSET_MASK }
    }
}

/// The backing file of an image that a hypervisor may be writing to: nothing else is looked at, because all else
/// changes while it runs.
pub(super) fn backing_of(file: &File) -> Result<Backing, Bad> {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0)?;
    if magic != MAGIC {
        return bad("it does not begin like a qcow2 image (QFI\\xfb)");
    }
    read_backing(file, &Fields::read(file)?)
}

fn read_backing(file: &File, fields: &Fields) -> Result<Backing, Bad> {
    let (offset, length, cluster_bits) = (fields.u64(8), fields.u32(16), fields.u32(20));
    if offset == 0 {
        return Ok(None);
    }
    if length == 0 || length > LONGEST_BACKING || cluster_bits > 21 || offset > 1 << cluster_bits {
        return bad(format!("the name of its backing file has {length} bytes at {offset}"));
    }
    let mut name = vec![0; length as usize];
    file.read_exact_at(&mut name, offset)?;
    let Ok(name) = String::from_utf8(name) else {
        return bad("the name of its backing file is not UTF-8");
    };
    let format = match find_extension(file, fields.extensions(), offset, BACKING_FORMAT)?.0 {
        None => None,
        Some(text) => match text.as_slice() {
            b"qcow2" => Some(Format::Qcow2),
            b"raw" | b"file" => Some(Format::Raw),
            _ => {
                let text = String::from_utf8_lossy(&text);
                return bad(format!("its backing file has the format {text:?}; qcow2 and raw are supported"));
            }
        },
    };
    Ok(Some((name, format)))
}

/// Puts the image on another backing file of the same format. A crash at any instant leaves the old name or the
/// new one: the new one is written to an unused place of the first cluster, and then pointed to by one write
/// within one sector.
pub(super) fn set_backing(file: &File, name: &str) -> Result<(), Bad> {
    let fields = Fields::read(file)?;
    let (old, old_length, cluster_bits) = (fields.u64(8), u64::from(fields.u32(16)), fields.u32(20));
    let (_, end) = find_extension(file, fields.extensions(), old, 0)?;
    let length = name.len() as u64;
    let after = (old + old_length).next_multiple_of(8);
    let place = if end + length <= old { end } else { after };
    if old == 0 || name.len() > LONGEST_BACKING as usize || cluster_bits > 21 || place + length > 1 << cluster_bits {
        return bad("its first cluster has no room for the name of another backing file");
    }
    file.write_all_at(name.as_bytes(), place)?;
    file.sync_data()?;
    let mut pointer = [0; 12];
    pointer[..8].copy_from_slice(&place.to_be_bytes());
    pointer[8..].copy_from_slice(&(name.len() as u32).to_be_bytes());
    file.write_all_at(&pointer, 8)?;
    Ok(file.sync_data()?)
}

fn beyond(what: &str, offset: u64, length: u64) -> String {
    format!(
        "it has {what} at byte {offset}, but the file has only {length} bytes; it is damaged or a copy that broke \
         off: copy it again"
    )
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes))
}

/// Refuses what neither we nor the hypervisor can read; says whether the compression is a newer one.
fn features(fields: &Fields) -> Result<bool, Bad> {
    if fields.u32(32) != 0 {
        return bad("it is encrypted; use an image without encryption");
    }
    let incompatible = fields.u64(72);
    let problem = match incompatible {
        bits if bits & 1 << 1 != 0 => "it is marked corrupt; repair it with qemu-img check -r all",
        bits if bits & 1 != 0 => "it was not closed properly; repair it with qemu-img check -r all",
        bits if bits & 1 << 2 != 0 => "its data is in another file; flatten it with qemu-img convert -O qcow2",
        bits if bits & 1 << 4 != 0 => {
            "it has extended L2 entries; convert it with qemu-img convert -O qcow2 -o extended_l2=off"
        }
        bits if bits >> 5 != 0 => {
            return bad(format!("it needs qcow2 features that are not known here (bits {bits:#x})"));
        }
        bits => return Ok(bits & 1 << 3 != 0),
    };
    bad(problem)
}

/// Looks for the extension `wanted` among those between `start` and `limit`; its content, and where they end when
/// it is not there.
fn find_extension(file: &File, start: u64, limit: u64, wanted: u32) -> Result<(Option<Vec<u8>>, u64), Bad> {
    let mut at = start;
    while at + 8 <= limit {
        let mut head = vec![0; 8];
        file.read_exact_at(&mut head, at)?;
        let head = Fields(head);
        let (kind, length) = (head.u32(0), head.u32(4));
        if kind == 0 {
            return Ok((None, at + 8));
        }
        if kind == wanted {
            let mut text = vec![0; length.min(64) as usize];
            file.read_exact_at(&mut text, at + 8)?;
            return Ok((Some(text), at));
        }
        at += 8 + u64::from(length).next_multiple_of(8);
    }
    Ok((None, at))
}
