//! The store on sled 0.34, for actors: calls are queued in the order in which they are made, and a blocking thread
//! carries them out. Writes that wait at the same time share one flush.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde::Serialize;
use tokio::sync::oneshot;

use super::engine::{Change, Engine, Summary, write_error};
use super::format::{self, Keyed, Kind};
use super::reserve::NEEDED;
use super::{Error, Loaded, Store};
use crate::ids::{JobId, SandboxId};
use crate::jobs::journal::Entry;
use crate::pressure::Pressure;
use crate::sandbox::Record;

/// Writes that share one flush at most; what they take together is below [`NEEDED`].
const BATCH: usize = 64;
/// Time between two looks at the volume.
const LOOK: Duration = Duration::from_secs(1);

/// How the store is opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Bytes of the reserve against a full volume; 0 for none.
    pub reserve: u64,
    /// Where it is told that space is low.
    pub pressure: Pressure,
}

type Call = Box<dyn FnOnce(&mut Engine) + Send>;

enum Task {
    Write(Change, oneshot::Sender<::sled::Result<()>>),
    Call(Call),
}

/// The store in a directory, locked against a second runner. Cheap to clone; HTTP workers have one, too.
#[derive(Clone)]
pub struct SledStore {
    engine: Arc<Mutex<Engine>>,
    queue: Arc<Mutex<VecDeque<Task>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SledStore {
    /// [`SledStore::open_with`] without a reserve.
    ///
    /// # Errors
    /// As [`SledStore::open_with`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, Options::default())
    }

    /// Opens or makes the store, and brings it to the newest format. Blocks: call it before the arbiter has work.
    ///
    /// # Errors
    /// Another process holds it, a newer version has written it, or it cannot be read or written.
    pub fn open_with(path: &Path, options: Options) -> Result<Self, Error> {
        let mut engine = Engine::open(path, options.reserve, options.pressure)?;
        engine.upgrade()?;
        Ok(Self { engine: Arc::new(Mutex::new(engine)), queue: Arc::default() })
    }

    /// How the store stands.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn summary(&self) -> Result<Summary, Error> {
        self.call("the state store", Engine::summary).await
    }

    /// A backup of this instant, in a file without a name that goes away with its last handle. Writes wait meanwhile:
    /// as long as it takes to copy the records to that file, not as long as somebody takes to read it.
    ///
    /// # Errors
    /// There is no room for it, or the store cannot be read.
    pub async fn backup(&self) -> Result<File, Error> {
        self.call("the state store", |engine| {
            let (wanted, free) = engine.room_for_dump()?;
            if let Some(free) = free
                && free < wanted + NEEDED
            {
                return Err(Error::NoRoom { path: engine.path().to_owned(), wanted: wanted + NEEDED, free });
            }
            let flags = rustix::fs::OFlags::TMPFILE.bits() as i32;
            let file = File::options().read(true).write(true).mode(0o600).custom_flags(flags).open(engine.path());
            let mut out = BufWriter::new(file.map_err(Error::Backup)?);
            engine.dump(&mut out)?;
            let mut file = out.into_inner().map_err(|error| Error::Backup(error.into_error()))?;
            file.flush().and_then(|()| file.rewind()).map_err(Error::Backup)?;
            Ok(file)
        })
        .await
    }

    /// Compares the volume with what the store needs.
    pub async fn look(&self) {
        let looked = self.call("the volume of the state store", |engine| {
            engine.space.look();
            Ok(())
        });
        // What it sees is told by the flag and the log.
        let _ = looked.await;
    }

    /// Queued at once; carried out also when nobody waits any more.
    fn put<T: Serialize + Keyed>(&self, kind: Kind, record: &T) -> LocalBoxFuture<'static, Result<(), Error>> {
        let key = record.key();
        match format::encode(kind, key, record) {
            Ok(bytes) => self.write(kind.name(key.as_bytes()), Change::Put(kind, key.as_bytes().to_owned(), bytes)),
            Err(error) => futures::future::err(error).boxed_local(),
        }
    }

    fn write(&self, what: String, change: Change) -> LocalBoxFuture<'static, Result<(), Error>> {
        let (reply, answer) = oneshot::channel();
        lock(&self.queue).push_back(Task::Write(change, reply));
        let work = self.work();
        async move {
            work.await;
            let done = answer.await.unwrap_or_else(|_| Err(std::io::Error::other("the store has failed").into()));
            done.map_err(|source| write_error(&what, source))
        }
        .boxed_local()
    }

    fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&mut Engine) -> Result<T, Error> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + 'static {
        let (reply, answer) = oneshot::channel();
        let call = move |engine: &mut Engine| {
            // Whoever asked may have gone.
            let _ = reply.send(call(engine));
        };
        lock(&self.queue).push_back(Task::Call(Box::new(call)));
        let work = self.work();
        async move {
            work.await;
            let failed = || std::io::Error::other("the store has failed").into();
            answer.await.unwrap_or_else(|_| Err(Error::Read { what: what.to_owned(), source: failed() }))
        }
    }

    /// Carries out what is queued. Whoever gets the engine works for all: the others find their answers there.
    fn work(&self) -> impl Future<Output = ()> + 'static {
        let (engine, queue) = (self.engine.clone(), self.queue.clone());
        // Its panic shows in the answers that are missing.
        tokio::task::spawn_blocking(move || work_off(&mut lock(&engine), &queue)).map(drop)
    }
}

fn work_off(engine: &mut Engine, queue: &Mutex<VecDeque<Task>>) {
    loop {
        let (mut changes, mut replies) = (Vec::new(), Vec::new());
        let mut next = None;
        {
            let mut queue = lock(queue);
            while changes.len() < BATCH {
                match queue.pop_front() {
                    Some(Task::Write(change, reply)) => {
                        changes.push(change);
                        replies.push(reply);
                    }
                    Some(Task::Call(call)) => {
                        next = Some(call);
                        break;
                    }
                    None => break,
                }
            }
        }
        if changes.is_empty() && next.is_none() {
            return;
        }
        if !changes.is_empty() {
            let done = engine.commit(&changes);
            for reply in replies {
                // Whoever asked may have gone.
                let _ = reply.send(done.clone());
            }
        }
        if let Some(call) = next {
            call(engine);
        }
    }
}

/// Looks at the volume again and again: a reserve that was given back is made again without anybody's doing.
pub async fn watch(store: SledStore) {
    loop {
        tokio::time::sleep(LOOK).await;
        store.look().await;
    }
}

impl Store for SledStore {
    fn load(&self) -> LocalBoxFuture<'_, Result<Loaded, Error>> {
        self.call("the state store", Engine::load).boxed_local()
    }

    fn sandbox<'a>(&'a self, id: &'a SandboxId) -> LocalBoxFuture<'a, Result<Option<Record>, Error>> {
        let key = id.as_str().as_bytes().to_owned();
        let read = self.call("a sandbox", move |engine| match engine.get(Kind::Sandbox, &key)? {
            Some(bytes) => format::decode(Kind::Sandbox, &key, &bytes).map(Some),
            None => Ok(None),
        });
        read.boxed_local()
    }

    fn put_sandbox<'a>(&'a self, record: &'a Record) -> LocalBoxFuture<'a, Result<(), Error>> {
        self.put(Kind::Sandbox, record)
    }

    fn remove_sandbox<'a>(&'a self, id: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>> {
        let keys = vec![id.as_str().as_bytes().to_owned()];
        self.write(format!("the removal of sandbox {id}"), Change::Remove(Kind::Sandbox, keys))
    }

    fn put_job<'a>(&'a self, entry: &'a Entry) -> LocalBoxFuture<'a, Result<(), Error>> {
        self.put(Kind::Job, entry)
    }

    fn remove_jobs<'a>(&'a self, ids: &'a [JobId]) -> LocalBoxFuture<'a, Result<(), Error>> {
        let keys = ids.iter().map(|id| id.as_str().as_bytes().to_owned()).collect();
        self.write("the removal of old jobs".to_owned(), Change::Remove(Kind::Job, keys))
    }

    fn flush(&self) -> LocalBoxFuture<'_, Result<(), Error>> {
        self.call("the state store", Engine::flush).boxed_local()
    }
}

#[cfg(test)]
mod tests;
