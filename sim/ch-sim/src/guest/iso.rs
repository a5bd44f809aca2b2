//! Reads files from the root directory of an ISO 9660 image: Joliet names, Rock Ridge names, or plain ones.

/// Bytes of one logical block.
const BLOCK: usize = 2048;
/// Block of the first volume descriptor.
const FIRST_DESCRIPTOR: usize = 16;

/// Whether the bytes start like an ISO 9660 volume.
pub fn is_iso(image: &[u8]) -> bool {
    image.get(FIRST_DESCRIPTOR * BLOCK + 1..).is_some_and(|rest| rest.starts_with(b"CD001"))
}

/// Content of a file in the root directory.
pub fn file(image: &[u8], name: &str) -> Option<Vec<u8>> {
    let (root, joliet) = root_directory(image)?;
    let mut directory = root;
    while let Some(length) = directory.first().copied().map(usize::from) {
        if length == 0 {
            // Records do not cross blocks; the rest of a block is zero.
            let rest = directory.len() % BLOCK;
            directory = directory.get(if rest == 0 { BLOCK } else { rest }..)?;
            continue;
        }
        let record = directory.get(..length)?;
        if matches(record, name, joliet) {
            return extent(image, record).map(<[u8]>::to_vec);
        }
        directory = &directory[length..];
    }
    None
}

/// The root directory of the Joliet volume if there is one, else of the primary volume.
fn root_directory(image: &[u8]) -> Option<(&[u8], bool)> {
    let mut found = None;
    for index in FIRST_DESCRIPTOR.. {
        let descriptor = image.get(index * BLOCK..(index + 1) * BLOCK)?;
        let joliet = descriptor[0] == 2 && descriptor[88..].starts_with(b"%/");
        match descriptor[0] {
            255 => break,
            1 | 2 if joliet || found.is_none() => {
                let root = extent(image, &descriptor[156..190])?;
                found = Some((root, joliet));
            }
            _ => {}
        }
    }
    found
}

/// Bytes that a directory record points to.
fn extent<'a>(image: &'a [u8], record: &[u8]) -> Option<&'a [u8]> {
    let number = |at: usize| {
        let bytes: [u8; 4] = record.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let start = number(2)? * BLOCK;
    image.get(start..start + number(10)?)
}

fn matches(record: &[u8], wanted: &str, joliet: bool) -> bool {
    let Some(length) = record.get(32).copied().map(usize::from) else {
        return false;
    };
    let Some(raw) = record.get(33..33 + length) else {
        return false;
    };
    if joliet {
        let units = raw.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        let name = String::from_utf16_lossy(&units.collect::<Vec<_>>());
        return name.trim_end_matches(";1").eq_ignore_ascii_case(wanted);
    }
    if let Some(name) = rock_ridge_name(&record[33 + length + (length + 1) % 2..]) {
        return name == wanted.as_bytes();
    }
    // Plain names have eight characters and no dash.
    let short = wanted.replace('-', "_").to_ascii_uppercase();
    let short: String = short.chars().take(8).collect();
    raw.starts_with(short.as_bytes())
}

/// Content of the NM entry in the system use area.
fn rock_ridge_name(mut area: &[u8]) -> Option<&[u8]> {
    while let [a, b, length, ..] = *area {
        let length = usize::from(length);
        if length < 4 {
            return None;
        }
        if [a, b] == *b"NM" {
            return area.get(5..length);
        }
        area = area.get(length..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, file, is_iso};

    /// A volume with one file in the root directory, under a plain or a Joliet name.
    fn volume(joliet: bool, name: &[u8], content: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 22 * BLOCK];
        let mut record = vec![0; 33];
        record[2..6].copy_from_slice(&21u32.to_le_bytes());
        record[10..14].copy_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
        record[32] = u8::try_from(name.len()).unwrap();
        record.extend_from_slice(name);
        record.resize(record.len().next_multiple_of(2), 0);
        record[0] = u8::try_from(record.len()).unwrap();
        image[20 * BLOCK..20 * BLOCK + record.len()].copy_from_slice(&record);
        image[21 * BLOCK..21 * BLOCK + content.len()].copy_from_slice(content);
        for (index, kind) in [(16, 1), (17, if joliet { 2 } else { 255 }), (18, 255)] {
            let descriptor = &mut image[index * BLOCK..];
            descriptor[0] = kind;
            descriptor[1..6].copy_from_slice(b"CD001");
            descriptor[88..90].copy_from_slice(b"%/");
            descriptor[156 + 2..156 + 6].copy_from_slice(&20u32.to_le_bytes());
            descriptor[156 + 10..156 + 14].copy_from_slice(&2048u32.to_le_bytes());
        }
        image
    }

    #[test]
    fn plain_and_joliet_names_are_found() {
        let plain = volume(false, b"META_DAT.;1", b"local-hostname: a\n");
        assert!(is_iso(&plain));
        assert_eq!(file(&plain, "meta-data").unwrap(), b"local-hostname: a\n");
        let name: Vec<u8> = "user-data".encode_utf16().flat_map(u16::to_be_bytes).collect();
        let joliet = volume(true, &name, b"#cloud-config\n");
        assert_eq!(file(&joliet, "user-data").unwrap(), b"#cloud-config\n");
        assert_eq!(file(&joliet, "meta-data"), None);
    }
}
