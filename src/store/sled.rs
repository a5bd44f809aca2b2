//! The store on sled 0.34: two trees of JSON values with a format byte in front.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, Loaded, Store, Unreadable};
use crate::ids::{JobId, SandboxId};
use crate::jobs::journal::Entry;
use crate::net::Slot;
use crate::sandbox::Record;

/// Format of the values: first byte of each, and of the store as a whole.
const FORMAT: u8 = 1;
/// What a record is about, in errors.
const SANDBOX: &str = "sandbox";
const FORMAT_KEY: &[u8] = b"format";
/// sled reserves this much for its cache; its default is 1 GiB.
const CACHE_BYTES: u64 = 16 << 20;
/// An ending runner lets go of the lock a moment after its successor starts.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// The store in a directory, locked against a second runner.
#[derive(Debug, Clone)]
pub struct SledStore {
    db: ::sled::Db,
    sandboxes: ::sled::Tree,
    jobs: ::sled::Tree,
}

impl SledStore {
    /// Opens or makes the store. Blocks: call it before the arbiter has work.
    pub fn open(path: &Path) -> Result<Self, Error> {
        private_directory(path).map_err(|source| Error::Directory { path: path.to_owned(), source })?;
        let db = open_patiently(path)?;
        let open = |name: &str| db.open_tree(name).map_err(|source| Error::Open { path: path.to_owned(), source });
        check_format(&db, path)?;
        Ok(Self { sandboxes: open("sandboxes")?, jobs: open("jobs")?, db })
    }

    async fn put<T: Serialize>(&self, tree: &::sled::Tree, key: &str, what: &str, value: &T) -> Result<(), Error> {
        let mut bytes = vec![FORMAT];
        serde_json::to_writer(&mut bytes, value)
            .map_err(|source| Error::Corrupt { what: format!("{what} {key}"), source })?;
        let written = tree.insert(key, bytes).map(drop);
        self.durable(written, || format!("{what} {key}")).await
    }

    async fn durable(&self, written: ::sled::Result<()>, what: impl Fn() -> String) -> Result<(), Error> {
        written.map_err(|source| Error::Write { what: what(), source })?;
        let db = self.db.clone();
        // Not `flush_async`: a few dozen of them at once never end (measured with 0.34.7).
        let flushed = tokio::task::spawn_blocking(move || db.flush()).await;
        let flushed = flushed.unwrap_or_else(|error| Err(std::io::Error::other(error).into()));
        flushed.map(drop).map_err(|source| Error::Write { what: what(), source })
    }
}

/// Open retries for a moment while another process holds the lock, then says so.
fn open_patiently(path: &Path) -> Result<::sled::Db, Error> {
    let config = ::sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(500));
    let started = Instant::now();
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            Err(source) if !is_locked(&source) => return Err(Error::Open { path: path.to_owned(), source }),
            Err(source) if started.elapsed() >= LOCK_PATIENCE => {
                return Err(Error::InUse { path: path.to_owned(), source });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
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

fn check_format(db: &::sled::Db, path: &Path) -> Result<(), Error> {
    let io = |source| Error::Open { path: path.to_owned(), source };
    match db.get(FORMAT_KEY).map_err(io)? {
        Some(value) => match value.first() {
            Some(&found) if found > FORMAT => Err(Error::Newer { path: path.to_owned(), found, known: FORMAT }),
            _ => Ok(()),
        },
        None => {
            db.insert(FORMAT_KEY, &[FORMAT]).map_err(io)?;
            db.flush().map(drop).map_err(io)
        }
    }
}

fn decode<T: DeserializeOwned>(what: &str, key: &[u8], value: &[u8]) -> Result<T, Error> {
    let what = || format!("{what} {}", String::from_utf8_lossy(key));
    match value.split_first() {
        Some((&FORMAT, json)) => serde_json::from_slice(json).map_err(|source| Error::Corrupt { what: what(), source }),
        Some((&found, _)) if found > FORMAT => Err(Error::Newer { path: PathBuf::from(what()), found, known: FORMAT }),
        _ => Err(Error::Corrupt { what: what(), source: serde::de::Error::custom("empty or unknown format") }),
    }
}

/// The slot of a record that cannot be read as a whole: it must not be given to somebody else.
fn slot(value: &[u8]) -> Option<Slot> {
    let json: serde_json::Value = serde_json::from_slice(value.get(1..)?).ok()?;
    serde_json::from_value(json.get("slot")?.clone()).ok()
}

fn read_all<T: DeserializeOwned>(
    tree: &::sled::Tree,
    what: &str,
    unreadable: &mut Vec<Unreadable>,
) -> Result<Vec<T>, Error> {
    let mut found = Vec::new();
    for entry in tree.iter() {
        let (key, value) = entry.map_err(|source| Error::Read { what: what.to_owned(), source })?;
        match decode(what, &key, &value) {
            Ok(record) => found.push(record),
            Err(error) => {
                let name = String::from_utf8_lossy(&key);
                let sandbox = (what == SANDBOX).then(|| name.parse().ok()).flatten();
                unreadable.push(Unreadable { sandbox, slot: slot(&value), reason: crate::error::chain(&error) });
            }
        }
    }
    Ok(found)
}

impl Store for SledStore {
    fn load(&self) -> LocalBoxFuture<'_, Result<Loaded, Error>> {
        async move {
            let mut loaded = Loaded::default();
            loaded.sandboxes = read_all(&self.sandboxes, SANDBOX, &mut loaded.unreadable)?;
            loaded.jobs = read_all(&self.jobs, "job", &mut loaded.unreadable)?;
            Ok(loaded)
        }
        .boxed_local()
    }

    fn sandbox<'a>(&'a self, id: &'a SandboxId) -> LocalBoxFuture<'a, Result<Option<Record>, Error>> {
        async move {
            let found = self
                .sandboxes
                .get(id.as_str())
                .map_err(|source| Error::Read { what: format!("sandbox {id}"), source })?;
            found.map(|value| decode("sandbox", id.as_str().as_bytes(), &value)).transpose()
        }
        .boxed_local()
    }

    fn put_sandbox<'a>(&'a self, record: &'a Record) -> LocalBoxFuture<'a, Result<(), Error>> {
        self.put(&self.sandboxes, record.id.as_str(), "sandbox", record).boxed_local()
    }

    fn remove_sandbox<'a>(&'a self, id: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>> {
        let removed = self.sandboxes.remove(id.as_str()).map(drop);
        self.durable(removed, move || format!("the removal of sandbox {id}")).boxed_local()
    }

    fn put_job<'a>(&'a self, entry: &'a Entry) -> LocalBoxFuture<'a, Result<(), Error>> {
        self.put(&self.jobs, entry.job.id.as_str(), "job", entry).boxed_local()
    }

    fn remove_jobs<'a>(&'a self, ids: &'a [JobId]) -> LocalBoxFuture<'a, Result<(), Error>> {
        let mut batch = ::sled::Batch::default();
        for id in ids {
            batch.remove(id.as_str());
        }
        let removed = self.jobs.apply_batch(batch);
        self.durable(removed, || "the removal of old jobs".to_owned()).boxed_local()
    }

    fn flush(&self) -> LocalBoxFuture<'_, Result<(), Error>> {
        self.durable(Ok(()), || "the last changes".to_owned()).boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix::test]
    async fn many_writers_at_once_all_come_to_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        for round in 0..50 {
            let entries: Vec<Entry> = (0..24).map(|n| Entry::for_tests(&format!("job-{round}-{n}"))).collect();
            let written = futures::future::join_all(entries.iter().map(|entry| store.put_job(entry)));
            let written = tokio::time::timeout(Duration::from_secs(20), written).await.expect("no writer hangs");
            assert!(written.iter().all(Result::is_ok));
        }
        assert_eq!(store.load().await.unwrap().jobs.len(), 50 * 24);
    }

    #[actix::test]
    async fn a_second_runner_is_told_who_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let _first = SledStore::open(dir.path()).unwrap();
        let error = SledStore::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error:?}");
        assert!(error.to_string().contains("RUNNER_STATE_PATH"));
    }

    #[actix::test]
    async fn a_newer_store_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = SledStore::open(dir.path()).unwrap();
            store.db.insert(FORMAT_KEY, &[FORMAT + 1]).unwrap();
            store.db.flush().unwrap();
        }
        assert!(matches!(SledStore::open(dir.path()), Err(Error::Newer { .. })));
    }

    #[actix::test]
    async fn a_corrupt_record_is_named_and_the_rest_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let entry = Entry::for_tests("good");
        store.put_job(&entry).await.unwrap();
        store.jobs.insert("bad", b"\x01{").unwrap();
        let loaded = store.load().await.unwrap();
        assert_eq!(loaded.jobs, [entry]);
        assert_eq!(loaded.unreadable.len(), 1);
        assert!(loaded.unreadable[0].reason.contains("bad"), "{:?}", loaded.unreadable);
    }

    #[actix::test]
    async fn what_was_put_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let entry = Entry::for_tests("one");
        SledStore::open(dir.path()).unwrap().put_job(&entry).await.unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        assert_eq!(store.load().await.unwrap().jobs, std::slice::from_ref(&entry));
        store.remove_jobs(&[entry.job.id]).await.unwrap();
        assert!(store.load().await.unwrap().jobs.is_empty());
    }
}
