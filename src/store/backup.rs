//! The form of a backup: one JSON document per line. A header, then the records, then a line with the checksum of all
//! lines before it, so that a file that was cut off or changed is never taken for a backup. Pure: bytes in, bytes out.
//!
//! A record stands as the text of its JSON (`json`), byte for byte, or in hexadecimal digits (`bytes`) if it is no text.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::engine::Counts;
use super::format::{Kind, STORE};
use super::hex;
use crate::ports::unix_millis;

/// Format of the backup itself.
const FORMAT: u8 = 1;
/// What the header calls itself.
const MARK: &str = "runner-ch store";
/// No line of ours is longer; a longer one is not read to its end.
const LONGEST: u64 = 256 << 20;

/// First line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    backup: String,
    format: u8,
    /// Format of the store that was saved.
    pub store_format: u8,
    /// The runner that wrote it.
    pub runner: String,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Number of records per tree.
    pub records: Counts,
}

impl Header {
    /// The header of a backup that is made now.
    pub fn new(store_format: u8, records: Counts) -> Self {
        let (backup, runner) = (MARK.to_owned(), crate::app::version());
        Self { backup, format: FORMAT, store_format, runner, at: unix_millis(), records }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    tree: String,
    #[serde(with = "hex", default, skip_serializing_if = "Vec::is_empty")]
    key_bytes: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    json: Option<String>,
    #[serde(with = "hex", default, skip_serializing_if = "Vec::is_empty")]
    bytes: Vec<u8>,
}

impl Line {
    fn new(kind: Kind, key: &[u8], value: &[u8]) -> Self {
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
        let (format, json) = match value.split_first() {
            Some((&format, json)) => (Some(format), text(json)),
            None => (None, None),
        };
        let key_text = text(key);
        Self {
            tree: kind.tree().to_owned(),
            key_bytes: if key_text.is_some() { Vec::new() } else { key.to_owned() },
            key: key_text,
            format: format.filter(|_| json.is_some()),
            bytes: if json.is_some() { Vec::new() } else { value.to_owned() },
            json,
        }
    }

    fn record(self) -> Result<Saved, String> {
        let kind = Kind::of_tree(&self.tree).ok_or_else(|| format!("there is no tree {:?}", self.tree))?;
        let value = match (self.format, self.json) {
            (Some(format), Some(json)) => [vec![format], json.into_bytes()].concat(),
            (None, None) => self.bytes,
            _ => return Err("format and json belong together".to_owned()),
        };
        Ok(Saved { kind, key: self.key.map_or(self.key_bytes, String::into_bytes), value })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct End {
    end: bool,
    records: u64,
    sha256: String,
}

/// A record out of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: Vec<u8>,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// Writes a backup.
pub struct Writer<W> {
    out: W,
    sha256: Sha256,
    records: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// As the writer's.
    pub fn begin(out: W, header: &Header) -> io::Result<Self> {
        let mut writer = Self { out, sha256: Sha256::new(), records: 0 };
        writer.line(header)?;
        Ok(writer)
    }

    /// Writes a record.
    ///
    /// # Errors
    /// As the writer's.
    pub fn record(&mut self, kind: Kind, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.records += 1;
        self.line(&Line::new(kind, key, value))
    }

    /// Writes the last line.
    ///
    /// # Errors
    /// As the writer's.
    pub fn end(mut self) -> io::Result<()> {
        let sha256 = hex::encode(&self.sha256.clone().finalize());
        self.line(&End { end: true, records: self.records, sha256 })?;
        self.out.flush()
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.sha256.update(&text);
        self.out.write_all(&text)
    }
}

/// What is wrong with a backup, and in which line.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Fault {
    /// The line, from 1.
    pub line: u64,
    /// What is wrong.
    pub reason: String,
}

/// Reads a whole backup and gives each record to `take`. Only when this has returned without an error the backup was
/// whole: what was taken before that is to be thrown away otherwise.
///
/// # Errors
/// The first fault: of the file, its form, its checksum, its counts, its formats, or of `take`.
pub fn read(mut from: impl BufRead, mut take: impl FnMut(Saved) -> Result<(), String>) -> Result<Header, Fault> {
    let mut sha256 = Sha256::new();
    let mut counts = Counts::new();
    let mut header: Option<Header> = None;
    let mut number = 0;
    let mut text = Vec::new();
    loop {
        number += 1;
        let fault = |reason: String| Fault { line: number, reason };
        text.clear();
        io::Read::take(&mut from, LONGEST).read_until(b'\n', &mut text).map_err(|error| fault(error.to_string()))?;
        if text.last() != Some(&b'\n') {
            let reason = "the file ends here, without the line that closes a backup: it was cut off; take another one";
            return Err(fault(reason.to_owned()));
        }
        let Some(known) = &header else {
            header = Some(head(&text).map_err(fault)?);
            sha256.update(&text);
            continue;
        };
        if text.starts_with(b"{\"end\":true,") {
            end(&text, sha256, &counts, known).map_err(fault)?;
            let rest = from.fill_buf().map_err(|error| fault(error.to_string()))?;
            if !rest.is_empty() {
                return Err(Fault { line: number + 1, reason: "there is more behind the end of the backup".into() });
            }
            return header.ok_or_else(|| fault("there is no header".to_owned()));
        }
        sha256.update(&text);
        let line: Line = serde_json::from_slice(&text).map_err(|error| fault(format!("it is no record: {error}")))?;
        let saved = line.record().map_err(fault)?;
        *counts.entry(saved.kind.tree().to_owned()).or_default() += 1;
        take(saved).map_err(fault)?;
    }
}

fn head(text: &[u8]) -> Result<Header, String> {
    let header: Header = serde_json::from_slice(text)
        .map_err(|error| format!("this is no backup of a store: {error}; expected a file of runner-ch store backup"))?;
    if header.backup != MARK {
        return Err(format!("this is a backup of {:?}, not of a runner's store", header.backup));
    }
    let newer = |what: &str, found: u8, known: u8| {
        format!("{what} has format {found}, this version reads up to {known}; use runner-ch {} or newer", header.runner)
    };
    if header.format > FORMAT {
        return Err(newer("the backup", header.format, FORMAT));
    }
    if header.store_format > STORE {
        return Err(newer("the store in it", header.store_format, STORE));
    }
    Ok(header)
}

fn end(text: &[u8], sha256: Sha256, counts: &Counts, header: &Header) -> Result<(), String> {
    let end: End = serde_json::from_slice(text).map_err(|error| format!("the closing line is broken: {error}"))?;
    let found = hex::encode(&sha256.finalize());
    if end.sha256 != found {
        return Err(format!(
            "the checksum of the lines above is {found}, not {}: the file was changed; take another one",
            end.sha256
        ));
    }
    let all = counts.values().sum::<u64>();
    let fits = header.records.iter().all(|(tree, count)| counts.get(tree).copied().unwrap_or(0) == *count);
    if all == end.records && fits {
        Ok(())
    } else {
        Err(format!("{all} records are there, {} and {:?} were promised", end.records, header.records))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backup(records: &[Saved]) -> Vec<u8> {
        let mut counts = Counts::new();
        for record in records {
            *counts.entry(record.kind.tree().to_owned()).or_default() += 1;
        }
        let mut bytes = Vec::new();
        let mut writer = Writer::begin(&mut bytes, &Header::new(STORE, counts)).unwrap();
        for record in records {
            writer.record(record.kind, &record.key, &record.value).unwrap();
        }
        writer.end().unwrap();
        bytes
    }

    fn restored(bytes: &[u8]) -> Result<Vec<Saved>, Fault> {
        let mut found = Vec::new();
        read(bytes, |saved| {
            found.push(saved);
            Ok(())
        })?;
        Ok(found)
    }

    fn saved() -> impl Strategy<Value = Saved> {
        let kind = prop::sample::select(Kind::ALL.to_vec());
        let bytes = || proptest::collection::vec(any::<u8>(), 0..24);
        let value = prop_oneof![bytes(), any::<String>().prop_map(|text| format!("\u{1}{text}").into_bytes())];
        (kind, bytes(), value).prop_map(|(kind, key, value)| Saved { kind, key, value })
    }

    proptest! {
        #[test]
        fn every_byte_comes_back(records in proptest::collection::vec(saved(), 0..9)) {
            prop_assert_eq!(restored(&backup(&records)).unwrap(), records);
        }

        #[test]
        fn no_change_goes_unnoticed(at in any::<prop::sample::Index>(), change in 1_u8..=255) {
            let record = Saved { kind: Kind::Job, key: b"a".to_vec(), value: b"\x01{\"x\":1}".to_vec() };
            let mut bytes = backup(&[record]);
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            prop_assert!(restored(&bytes).is_err());
        }

        #[test]
        fn no_cut_goes_unnoticed(at in any::<prop::sample::Index>()) {
            let record = Saved { kind: Kind::Job, key: b"a".to_vec(), value: b"\x01{}".to_vec() };
            let bytes = backup(&[record]);
            prop_assert!(restored(&bytes[..at.index(bytes.len())]).is_err());
        }
    }

    #[test]
    fn what_is_newer_or_no_backup_is_told() {
        let words = |bytes: &[u8]| restored(bytes).unwrap_err().to_string();
        assert!(words(b"hello\n").starts_with("line 1: this is no backup"), "{}", words(b"hello\n"));
        assert!(words(b"").contains("cut off"));
        let mut header = Header::new(STORE + 1, Counts::new());
        let text = |header: &Header| [serde_json::to_vec(header).unwrap(), b"\n".to_vec()].concat();
        assert!(words(&text(&header)).contains("the store in it has format"), "{}", words(&text(&header)));
        (header.store_format, header.format) = (STORE, FORMAT + 1);
        assert!(words(&text(&header)).contains("the backup has format"), "{}", words(&text(&header)));
    }
}
