//! What an operator asks of the store: how it stands, a backup, what is in quarantine.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use super::{Change, Engine, write_error};
use crate::error::chain;
use crate::store::Error;
use crate::store::backup::{self, Header};
use crate::store::format::{self, Kind};
use crate::store::quarantine::{self, Quarantined};
use crate::store::reserve::SpaceReport;

/// Number of records per tree.
pub type Counts = BTreeMap<String, u64>;

/// What is in quarantine, by its key there; an entry may be broken itself.
pub type Entries = Vec<(String, Result<Quarantined, Error>)>;

/// A record that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SetAside {
    /// Its key in the quarantine, tree and key of the record.
    #[schema(example = "sandboxes/box-1")]
    pub key: String,
    /// Why it cannot be read.
    pub reason: String,
    /// When it was put into quarantine, in milliseconds since 1970; absent for a record that stays where it is, because
    /// a newer version wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// Its length in bytes.
    pub bytes: usize,
}

/// The store as `GET /store` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Its directory (RUNNER_STATE_PATH).
    pub path: String,
    /// Its format; absent in a store that nobody has used yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<u8>,
    /// Number of records per tree.
    #[schema(value_type = Object)]
    pub records: Counts,
    /// Bytes that its files take, without the reserve.
    pub bytes_on_disk: u64,
    /// Records that could not be read.
    pub set_aside: Vec<SetAside>,
    /// Its volume.
    pub space: SpaceReport,
}

impl Engine {
    /// How the store stands. Every record is looked at.
    pub fn summary(&mut self) -> Result<Summary, Error> {
        let mut records = Counts::new();
        let mut set_aside = Vec::new();
        for kind in [Kind::Sandbox, Kind::Job] {
            let mut count = 0;
            self.each(kind, |key, bytes| {
                count += 1;
                if let Err(error) = check(kind, key, bytes) {
                    let key = format!("{}/{}", kind.tree(), key.escape_ascii());
                    set_aside.push(SetAside { key, reason: chain(&error), at: None, bytes: bytes.len() });
                }
                Ok(())
            })?;
            records.insert(kind.tree().to_owned(), count);
        }
        let quarantined = self.quarantined()?;
        records.insert(Kind::Quarantine.tree().to_owned(), quarantined.len().try_into().unwrap_or(u64::MAX));
        set_aside.extend(quarantined.into_iter().map(|(key, entry)| match entry {
            Ok(entry) => SetAside { key, reason: entry.reason, at: Some(entry.at), bytes: entry.bytes.len() },
            Err(error) => SetAside { key, reason: chain(&error), at: None, bytes: 0 },
        }));
        Ok(Summary {
            path: self.path.display().to_string(),
            format: self.format()?,
            records,
            bytes_on_disk: self.bytes_on_disk(),
            set_aside,
            space: self.space.report(),
        })
    }

    /// Bytes that the store's files take, without the reserve.
    pub fn bytes_on_disk(&self) -> u64 {
        let reserve = if self.space.report().reserve_held { self.space.size() } else { 0 };
        let sum = disk_usage(&self.path).unwrap_or_else(|error| {
            warn!(path = %self.path.display(), %error, "cannot add up the size of the state store");
            0
        });
        sum.saturating_sub(reserve)
    }

    /// Everything in quarantine, by its key there.
    pub fn quarantined(&mut self) -> Result<Entries, Error> {
        let mut found = Vec::new();
        self.each(Kind::Quarantine, |name, bytes| {
            found.push((name.escape_ascii().to_string(), quarantine::parse(name, bytes)));
            Ok(())
        })?;
        Ok(found)
    }

    /// One record in quarantine.
    pub fn quarantined_one(&mut self, key: &str) -> Result<Quarantined, Error> {
        let found = self.get(Kind::Quarantine, key.as_bytes())?;
        let found = found.ok_or_else(|| Error::NotQuarantined { key: key.to_owned() })?;
        quarantine::parse(key.as_bytes(), &found)
    }

    /// Puts a record back where it was, if this version can read it and nobody has taken its place.
    pub fn restore_quarantined(&mut self, key: &str) -> Result<(), Error> {
        let record = self.quarantined_one(key)?;
        let stays = |reason: String| Error::StaysQuarantined { key: key.to_owned(), reason };
        let Some(kind) = record.kind() else { return Err(stays(format!("there is no tree {}", record.tree))) };
        check(kind, &record.key, &record.bytes)
            .map_err(|error| stays(format!("{}; try the version that wrote it, or discard it", chain(&error))))?;
        if self.get(kind, &record.key)?.is_some() {
            return Err(stays("there is another record under its key by now".to_owned()));
        }
        let changes = [Change::Put(kind, record.key, record.bytes)];
        self.commit(&changes).map_err(|source| write_error(key, source))?;
        self.discard_quarantined(key)
    }

    /// Removes a record from the quarantine for good.
    pub fn discard_quarantined(&mut self, key: &str) -> Result<(), Error> {
        if self.get(Kind::Quarantine, key.as_bytes())?.is_none() {
            return Err(Error::NotQuarantined { key: key.to_owned() });
        }
        let changes = [Change::Remove(Kind::Quarantine, vec![key.as_bytes().to_owned()])];
        self.commit(&changes).map_err(|source| write_error(key, source))
    }

    /// Writes a backup. Nothing is changed meanwhile, because whoever could is waiting: all records are of one instant.
    pub fn dump(&mut self, out: impl Write) -> Result<Counts, Error> {
        let mut counts = Counts::new();
        for kind in Kind::ALL {
            let mut count = 0;
            self.each(kind, |_, _| {
                count += 1;
                Ok(())
            })?;
            counts.insert(kind.tree().to_owned(), count);
        }
        let header = Header::new(self.format()?.unwrap_or(1), counts.clone());
        let mut writer = backup::Writer::begin(out, &header).map_err(Error::Backup)?;
        for kind in Kind::ALL {
            self.each(kind, |key, bytes| writer.record(kind, key, bytes).map_err(Error::Backup))?;
        }
        writer.end().map_err(Error::Backup)?;
        Ok(counts)
    }

    /// About what a backup takes, and what is free. JSON in JSON is a fifth to a half longer than it is; a record that is
    /// no text is twice as long.
    pub fn room_for_dump(&mut self) -> Result<(u64, Option<u64>), Error> {
        let mut bytes: u64 = 0;
        for kind in Kind::ALL {
            self.each(kind, |key, value| {
                bytes += (key.len() + value.len()) as u64 * 2 + 128;
                Ok(())
            })?;
        }
        Ok((bytes, self.space.free()))
    }
}

/// Whether this version can read the record.
pub(super) fn check(kind: Kind, key: &[u8], bytes: &[u8]) -> Result<(), Error> {
    match kind {
        Kind::Sandbox => format::decode::<crate::sandbox::Record>(kind, key, bytes).map(drop),
        Kind::Job => format::decode::<crate::jobs::journal::Entry>(kind, key, bytes).map(drop),
        Kind::Quarantine => quarantine::parse(key, bytes).map(drop),
    }
}

fn disk_usage(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let about = entry.and_then(|entry| Ok((entry.metadata()?, entry.path())));
        sum += match about {
            Ok((about, path)) if about.is_dir() => disk_usage(&path)?,
            Ok((about, _)) => about.blocks() * 512,
            // sled replaces its files while we look.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(sum)
}
