//! Records as bytes: a format number, then JSON. Older formats are brought forward when they are read; newer ones are
//! told apart from broken ones, because they belong to somebody.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Error, migrate};
use crate::jobs::journal::Entry;
use crate::sandbox::Record;

/// Format of the store as a whole; a runner refuses a store with a higher one. To be raised with every change that an
/// older runner would get wrong, so with every new format of a record.
///
/// 1: sandboxes and jobs. 2: sandbox records of format 2, and the quarantine.
pub const STORE: u8 = 2;

/// The kinds of records. Each has a tree of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One sandbox; the key is its id.
    Sandbox,
    /// A job's journal entry; the key is its id.
    Job,
    /// A record that could not be read.
    Quarantine,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sandbox, Self::Job, Self::Quarantine];

    /// Name of the tree.
    pub const fn tree(self) -> &'static str {
        match self {
            Self::Sandbox => "sandboxes",
            Self::Job => "jobs",
            Self::Quarantine => "quarantine",
        }
    }

    /// What a record is about, in errors.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Job => "job",
            Self::Quarantine => "quarantined record",
        }
    }

    /// The kind with this tree.
    pub fn of_tree(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.tree() == name)
    }

    /// A record of this kind in words, for errors. Keys come from outside: whatever is not plain is escaped.
    pub fn name(self, key: &[u8]) -> String {
        format!("{} {}", self.word(), key.escape_ascii())
    }
}

/// A record that says under which key it belongs.
pub trait Keyed {
    /// Its key.
    fn key(&self) -> &str;
}

impl Keyed for Record {
    fn key(&self) -> &str {
        self.id.as_str()
    }
}

impl Keyed for Entry {
    fn key(&self) -> &str {
        self.job.id.as_str()
    }
}

/// The bytes of a record in the newest format.
///
/// # Errors
/// [`Error::Corrupt`] for a value that has no JSON form.
pub fn encode<T: Serialize>(kind: Kind, key: &str, record: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![migrate::newest(kind)];
    serde_json::to_writer(&mut bytes, record)
        .map_err(|source| Error::Corrupt { what: kind.name(key.as_bytes()), source })?;
    Ok(bytes)
}

/// The record that these bytes are, whatever their format, as long as it is known.
///
/// # Errors
/// [`Error::NewerRecord`], [`Error::Corrupt`], [`Error::Unfit`], and [`Error::Misplaced`] when the record belongs under
/// another key.
pub fn decode<T: DeserializeOwned + Keyed>(kind: Kind, key: &[u8], bytes: &[u8]) -> Result<T, Error> {
    let record: T = parse(kind, key, &upgraded(kind, key, bytes)?.unwrap_or_else(|| bytes.to_owned()))?;
    if record.key().as_bytes() == key {
        Ok(record)
    } else {
        Err(Error::Misplaced { what: kind.name(key), inside: record.key().to_owned() })
    }
}

/// The bytes in the newest format; none if they have it already.
///
/// # Errors
/// As [`decode`], but for [`Error::Misplaced`].
pub fn upgraded(kind: Kind, key: &[u8], bytes: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let known = migrate::newest(kind);
    let what = || kind.name(key);
    let unfit = |reason: String| Error::Unfit { what: what(), reason };
    match bytes.split_first() {
        None => Err(unfit("it is empty".to_owned())),
        Some((&found, _)) if found > known => Err(Error::NewerRecord { what: what(), found, known }),
        Some((&found, _)) if found == known => Ok(None),
        Some((&found, json)) => {
            let old: Value = serde_json::from_slice(json).map_err(|source| Error::Corrupt { what: what(), source })?;
            let new = migrate::upgrade(kind, found, old).map_err(unfit)?;
            encode(kind, &String::from_utf8_lossy(key), &new).map(Some)
        }
    }
}

/// Bytes of the newest format as a value.
pub(super) fn parse<T: DeserializeOwned>(kind: Kind, key: &[u8], bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes.get(1..).unwrap_or_default())
        .map_err(|source| Error::Corrupt { what: kind.name(key), source })
}

#[cfg(test)]
mod tests;
