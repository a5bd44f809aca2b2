//! The database behind the store. All of this blocks; [`super::SledStore`] calls it from blocking threads, the command
//! line directly.
//!
//! sled remembers the first I/O error for ever: after ENOSPC each later write fails with it, also when space is back
//! (measured with 0.34.7). So a write that fails closes the database, opens it anew and is tried once more; nothing that
//! was flushed is lost by that.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::format::{self, Keyed, Kind, STORE};
use super::quarantine::{self, Quarantined};
use super::reserve::Space;
use super::{Error, Loaded};
use crate::error::chain;
use crate::ports::unix_millis;
use crate::pressure::Pressure;

mod admin;
pub use admin::{Counts, Summary};

/// sled's file with the records, which it also locks.
const FILE: &str = "db";
const FORMAT_KEY: &[u8] = b"format";
/// sled reserves this much for its cache; its default is 1 GiB.
const CACHE_BYTES: u64 = 16 << 20;
/// An ending runner lets go of the lock a moment after its successor starts.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// Records that an upgrade writes between two flushes.
const CHUNK: usize = 64;

/// A change of one tree.
#[derive(Debug)]
pub(super) enum Change {
    /// Writes a record.
    Put(Kind, Vec<u8>, Vec<u8>),
    /// Removes records.
    Remove(Kind, Vec<Vec<u8>>),
}

/// Keys and values.
type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// The database, open and locked against everybody else.
#[derive(Debug)]
pub struct Engine {
    path: PathBuf,
    /// None after a failure from which it could not be opened again; the next use tries.
    open: Option<Open>,
    /// The last write failed: said once.
    failing: bool,
    pub(super) space: Space,
}

#[derive(Debug)]
struct Open {
    db: ::sled::Db,
    trees: [::sled::Tree; 3],
}

impl Open {
    fn tree(&self, kind: Kind) -> &::sled::Tree {
        &self.trees[kind as usize]
    }

    fn apply(&self, changes: &[Change]) -> ::sled::Result<()> {
        for change in changes {
            match change {
                Change::Put(kind, key, value) => drop(self.tree(*kind).insert(key, value.as_slice())?),
                Change::Remove(kind, keys) => {
                    let mut batch = ::sled::Batch::default();
                    keys.iter().for_each(|key| batch.remove(key.as_slice()));
                    self.tree(*kind).apply_batch(batch)?;
                }
            }
        }
        self.db.flush().map(drop)
    }
}

impl Engine {
    /// Opens or makes the database and refuses one of a newer format. Nothing in it is changed yet.
    ///
    /// # Errors
    /// Somebody else holds it, it is newer, or it cannot be opened.
    pub fn open(path: &Path, reserve: u64, pressure: Pressure) -> Result<Self, Error> {
        private_directory(path).map_err(|source| Error::Directory { path: path.to_owned(), source })?;
        let mut space = Space::new(path, reserve, pressure);
        // To open takes space, too. Whether the reserve is made is for whoever has the lock.
        space.make_room();
        let open = open_patiently(path).or_else(|error| match error {
            Error::Open { .. } => {
                space.give_back();
                open_patiently(path)
            }
            error => Err(error),
        })?;
        space.look();
        let engine = Self { path: path.to_owned(), open: Some(open), failing: false, space };
        match engine.format()? {
            Some(found) if found > STORE => Err(Error::Newer { path: path.to_owned(), found, known: STORE }),
            _ => Ok(engine),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings every record to its newest format, and only then raises the format of the store: an upgrade that is cut
    /// off is done again, and finds what is done already. Records that cannot be read stay for [`Engine::load`].
    pub fn upgrade(&mut self) -> Result<(), Error> {
        let found = self.format()?;
        if found == Some(STORE) {
            return Ok(());
        }
        let mut count = 0;
        for kind in Kind::ALL {
            let mut changes = Vec::new();
            for (key, value) in self.all(kind)? {
                if let Ok(Some(new)) = format::upgraded(kind, &key, &value) {
                    changes.push(Change::Put(kind, key, new));
                }
            }
            count += changes.len();
            for chunk in changes.chunks(CHUNK) {
                self.commit(chunk).map_err(|source| write_error("the upgrade of the records", source))?;
            }
        }
        self.set_format(STORE)?;
        if let Some(found) = found {
            info!(path = %self.path.display(), from = found, to = STORE, records = count, "upgraded the state store");
        }
        Ok(())
    }

    /// Reads everything. What cannot be read goes to the quarantine; what is newer stays.
    pub fn load(&mut self) -> Result<Loaded, Error> {
        let mut loaded = Loaded::default();
        let mut broken = Vec::new();
        loaded.sandboxes = self.read(Kind::Sandbox, &mut loaded, &mut broken)?;
        loaded.jobs = self.read(Kind::Job, &mut loaded, &mut broken)?;
        for record in broken {
            let reason = record.reason.clone();
            if let Err(error) = self.set_aside(&record) {
                // It cannot be moved now, and is as unreadable where it is.
                error!(reason, error = %chain(&error), "a record that cannot be read stays where it is");
                let Quarantined { key, bytes, .. } = &record;
                loaded.unreadable.extend(quarantine::unreadable(record.kind(), key, bytes, &reason));
            }
        }
        for (name, entry) in self.quarantined()? {
            loaded.unreadable.extend(match entry {
                Ok(entry) => entry.reserved(&name),
                Err(error) => quarantine::unreadable(None, &[], &[], &chain(&error)),
            });
        }
        // A record that can be read is the truth about its sandbox.
        let known: std::collections::HashSet<_> = loaded.sandboxes.iter().map(|record| record.id.clone()).collect();
        loaded.unreadable.retain(|one| one.sandbox.as_ref().is_none_or(|id| !known.contains(id)));
        Ok(loaded)
    }

    fn read<T: serde::de::DeserializeOwned + Keyed>(
        &mut self,
        kind: Kind,
        loaded: &mut Loaded,
        broken: &mut Vec<Quarantined>,
    ) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        for (key, bytes) in self.all(kind)? {
            match format::decode(kind, &key, &bytes) {
                Ok(record) => found.push(record),
                Err(error @ Error::NewerRecord { .. }) => {
                    loaded.unreadable.extend(quarantine::unreadable(Some(kind), &key, &bytes, &chain(&error)));
                }
                Err(error) => {
                    let (tree, reason) = (kind.tree().to_owned(), chain(&error));
                    broken.push(Quarantined { tree, key, bytes, reason, at: unix_millis() });
                }
            }
        }
        Ok(found)
    }

    /// Moves a record to the quarantine: there first, so that a crash in between leaves it in both places, which the
    /// next time is seen and finished.
    fn set_aside(&mut self, record: &Quarantined) -> Result<(), Error> {
        let what = format!("{} in quarantine", record.name(0));
        let Some(kind) = record.kind() else { return Ok(()) };
        let mut name = record.name(0);
        for nth in 1_u32.. {
            let there = self.get(Kind::Quarantine, name.as_bytes())?;
            let Some(there) = there else {
                let bytes = format::encode(Kind::Quarantine, &name, record)?;
                self.commit(&[Change::Put(Kind::Quarantine, name.clone().into_bytes(), bytes)])
                    .map_err(|source| write_error(&what, source))?;
                break;
            };
            if quarantine::parse(name.as_bytes(), &there).is_ok_and(|there| there.is_same(record)) {
                break;
            }
            name = record.name(nth);
        }
        self.commit(&[Change::Remove(kind, vec![record.key.clone()])]).map_err(|source| write_error(&what, source))?;
        error!(
            quarantined = name,
            reason = record.reason,
            "a stored record cannot be read; it was put into quarantine"
        );
        Ok(())
    }

    /// The bytes of one record.
    pub(super) fn get(&mut self, kind: Kind, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let read = |source| Error::Read { what: kind.name(key), source };
        let found = self.db().and_then(|open| open.tree(kind).get(key)).map_err(read)?;
        Ok(found.map(|bytes| bytes.to_vec()))
    }

    /// All records of a kind.
    pub(super) fn all(&mut self, kind: Kind) -> Result<Records, Error> {
        let mut found = Vec::new();
        self.each(kind, |key, bytes| {
            found.push((key.to_owned(), bytes.to_owned()));
            Ok(())
        })?;
        Ok(found)
    }

    /// Each record of a kind, one after the other.
    pub(super) fn each(
        &mut self,
        kind: Kind,
        mut look: impl FnMut(&[u8], &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let read = |source| Error::Read { what: format!("the {}", kind.tree()), source };
        for entry in self.db().map_err(read)?.tree(kind).iter() {
            let (key, value) = entry.map_err(read)?;
            look(&key, &value)?;
        }
        Ok(())
    }

    /// Makes these changes, in this order, and brings them to disk.
    pub(super) fn commit(&mut self, changes: &[Change]) -> ::sled::Result<()> {
        self.space.look();
        let first = self.db().and_then(|open| open.apply(changes));
        let done = first.or_else(|error| {
            if !self.failing {
                warn!(path = %self.path.display(), %error, "the state store could not be written; opening it anew");
            }
            self.space.give_back();
            // All of it must be gone before the lock is.
            self.open = None;
            let again = self.db().and_then(|open| open.apply(changes));
            self.space.look();
            again
        });
        match (&done, self.failing) {
            (Ok(()), true) => info!(path = %self.path.display(), "the state store can be written again"),
            (Err(error), false) => error!(path = %self.path.display(), %error, "the state store cannot be written"),
            _ => {}
        }
        self.failing = done.is_err();
        done
    }

    /// Brings to disk whatever is not there yet.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        self.commit(&[]).map_err(|source| write_error("the last changes", source))
    }

    fn db(&mut self) -> ::sled::Result<&Open> {
        if self.open.is_none() {
            let open = open_patiently(&self.path).map_err(|error| match error {
                Error::Open { source, .. } | Error::InUse { source, .. } => source,
                error => std::io::Error::other(error).into(),
            })?;
            self.open = Some(open);
        }
        self.open.as_ref().ok_or_else(|| std::io::Error::other("the store is closed").into())
    }

    /// Sets the format of the store as a whole.
    pub(super) fn set_format(&mut self, format: u8) -> Result<(), Error> {
        let raised = self.db().and_then(|open| {
            open.db.insert(FORMAT_KEY, &[format])?;
            open.db.flush().map(drop)
        });
        raised.map_err(|source| write_error("the format", source))
    }

    pub(super) fn format(&self) -> Result<Option<u8>, Error> {
        let Some(open) = &self.open else { return Ok(None) };
        let found = open.db.get(FORMAT_KEY);
        let found = found.map_err(|source| Error::Read { what: "the format".to_owned(), source })?;
        Ok(found.map(|value| value.first().copied().unwrap_or_default()))
    }
}

pub(super) fn write_error(what: &str, source: ::sled::Error) -> Error {
    Error::Write { what: what.to_owned(), source }
}

/// Whether somebody holds the store in this directory; looked at without opening it.
///
/// # Errors
/// Its file is there and cannot be opened.
pub fn is_in_use(path: &Path) -> std::io::Result<bool> {
    hold(path).map(|held| matches!(held, Hold::Others))
}

/// What came of trying to hold a store against everybody else.
#[derive(Debug)]
pub(super) enum Hold {
    /// There is none.
    Nothing,
    /// Somebody else does.
    Others,
    /// Ours until this is dropped.
    Ours(#[expect(dead_code, reason = "its lock goes with it")] File),
}

/// Takes the lock that sled takes (flock on its file `db`), without opening the database.
pub(super) fn hold(path: &Path) -> std::io::Result<Hold> {
    let file = match File::options().read(true).write(true).open(path.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Hold::Nothing),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Hold::Ours(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Hold::Others),
        Err(error) => Err(error.into()),
    }
}

/// Open retries for a moment while another process holds the lock, then says so.
fn open_patiently(path: &Path) -> Result<Open, Error> {
    let config = ::sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(500));
    let started = Instant::now();
    let fail = |source| Error::Open { path: path.to_owned(), source };
    let db = loop {
        match config.open() {
            Ok(db) => break db,
            Err(source) if !is_locked(&source) => return Err(fail(source)),
            Err(source) if started.elapsed() >= LOCK_PATIENCE => {
                return Err(Error::InUse { path: path.to_owned(), source });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let [sandboxes, jobs, quarantine] = Kind::ALL.map(|kind| db.open_tree(kind.tree()));
    Ok(Open { trees: [sandboxes.map_err(fail)?, jobs.map_err(fail)?, quarantine.map_err(fail)?], db })
}

fn is_locked(error: &::sled::Error) -> bool {
    // sled wraps the lock's WouldBlock into an `Other` error with this text.
    matches!(error, ::sled::Error::Io(io) if io.kind() == std::io::ErrorKind::WouldBlock
        || io.to_string().contains("could not acquire lock"))
}

fn private_directory(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // The journal holds job payloads, and those hold tokens.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests;
