//! A store in front of another one, whose writes are effects like all others.

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use runner_ch::ids::{JobId, SandboxId};
use runner_ch::jobs::journal::Entry;
use runner_ch::sandbox::Record;
use runner_ch::store::{Error, Loaded, SledStore, Store};

use super::Host;
use super::life::Records;

/// Where records are kept.
pub(super) trait Kept {
    fn load(&self) -> LocalBoxFuture<'_, Result<Loaded, Error>>;
    fn put<'a>(&'a self, record: &'a Record) -> LocalBoxFuture<'a, Result<(), Error>>;
    fn remove<'a>(&'a self, id: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>>;
}

pub(super) struct Mortal<S> {
    pub host: Host,
    pub store: S,
}

fn failed(what: &str) -> Error {
    Error::Write { what: what.to_owned(), source: std::io::Error::from_raw_os_error(5).into() }
}

impl Kept for SledStore {
    fn load(&self) -> LocalBoxFuture<'_, Result<Loaded, Error>> {
        Store::load(self)
    }

    fn put<'a>(&'a self, record: &'a Record) -> LocalBoxFuture<'a, Result<(), Error>> {
        self.put_sandbox(record)
    }

    fn remove<'a>(&'a self, id: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>> {
        self.remove_sandbox(id)
    }
}

impl Kept for Records {
    fn load(&self) -> LocalBoxFuture<'_, Result<Loaded, Error>> {
        let sandboxes = self.borrow().values().map(|text| serde_json::from_str(text).expect("a record")).collect();
        async { Ok(Loaded { sandboxes, ..Loaded::default() }) }.boxed_local()
    }

    fn put<'a>(&'a self, record: &'a Record) -> LocalBoxFuture<'a, Result<(), Error>> {
        let text = serde_json::to_string(record).expect("JSON");
        self.borrow_mut().insert(record.id.clone(), text);
        futures::future::ok(()).boxed_local()
    }

    fn remove<'a>(&'a self, id: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>> {
        self.borrow_mut().remove(id);
        futures::future::ok(()).boxed_local()
    }
}

impl<S: Kept> Store for Mortal<S> {
    fn load(&self) -> LocalBoxFuture<'_, Result<Loaded, Error>> {
        self.store.load()
    }

    fn sandbox<'a>(&'a self, id: &'a SandboxId) -> LocalBoxFuture<'a, Result<Option<Record>, Error>> {
        async move { Ok(self.store.load().await?.sandboxes.into_iter().find(|record| record.id == *id)) }.boxed_local()
    }

    fn put_sandbox<'a>(&'a self, record: &'a Record) -> LocalBoxFuture<'a, Result<(), Error>> {
        async move {
            let last = self.host.enter("put").await.map_err(|()| failed("a sandbox"))?;
            let done = self.store.put(record).await;
            self.host.leave(last);
            done
        }
        .boxed_local()
    }

    fn remove_sandbox<'a>(&'a self, id: &'a SandboxId) -> LocalBoxFuture<'a, Result<(), Error>> {
        async move {
            let last = self.host.enter("forget").await.map_err(|()| failed("a sandbox"))?;
            let done = self.store.remove(id).await;
            self.host.leave(last);
            done
        }
        .boxed_local()
    }

    fn put_job<'a>(&'a self, _: &'a Entry) -> LocalBoxFuture<'a, Result<(), Error>> {
        // The journal is looked at with the real runner.
        futures::future::ok(()).boxed_local()
    }

    fn remove_jobs<'a>(&'a self, _: &'a [JobId]) -> LocalBoxFuture<'a, Result<(), Error>> {
        futures::future::ok(()).boxed_local()
    }

    fn flush(&self) -> LocalBoxFuture<'_, Result<(), Error>> {
        futures::future::ok(()).boxed_local()
    }
}
