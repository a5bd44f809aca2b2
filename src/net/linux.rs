//! The network of sandboxes on a Linux host.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::sync::oneshot;

use super::addresses::Ipv4Net;
use super::error::Error;
use super::netlink::Netlink;
use super::{Namespace, Network, Plan, host, netns, sandbox, veth};
use crate::ids::{LinkName, NetnsName, SandboxId};

/// What the host's part depends on.
#[derive(Debug)]
pub(super) struct Settings {
    pub bridge: LinkName,
    pub pool: Ipv4Net,
    pub deny: Vec<Ipv4Net>,
    pub table: String,
}

/// The real thing. Every call works on a thread of its own, since the kernel makes links and
/// namespaces while the caller waits. When a future is dropped, work that has begun is brought to its
/// end; later calls for the same sandbox wait for that, so they see all of it or nothing.
#[derive(Debug, Clone)]
pub struct LinuxNetwork {
    settings: Arc<Settings>,
    busy: Arc<Busy>,
}

impl LinuxNetwork {
    /// `bridge` joins the sandboxes, whose addresses come from `pool`. They never reach the networks in
    /// `deny`. `table` is the name of the host's packet filter table of the `inet` family, which is
    /// replaced whatever it holds; the product's is `runner_ch`.
    pub fn new(bridge: LinkName, pool: Ipv4Net, deny: Vec<Ipv4Net>, table: &str) -> Self {
        let settings = Settings { bridge, pool, deny, table: table.to_owned() };
        Self { settings: Arc::new(settings), busy: Arc::default() }
    }

    /// Namespaces and links that carry our mark but belong to no sandbox in `known`, in words. Only
    /// looks.
    ///
    /// # Errors
    /// When they cannot be listed; one that vanishes meanwhile is no error.
    pub async fn leftovers(&self, known: &HashSet<SandboxId>) -> Result<Vec<String>, Error> {
        let known = known.clone();
        on_thread("look for leftovers of sandboxes", None, move || find_leftovers(&known)).await
    }

    fn for_sandbox<'a, T: Send + 'static>(
        &'a self,
        what: &str,
        plan: &'a Plan,
        work: impl FnOnce(&Settings, &Plan) -> Result<T, Error> + Send + 'static,
    ) -> LocalBoxFuture<'a, Result<T, Error>> {
        let what = format!("{what} the network of sandbox {}", plan.sandbox);
        let (settings, plan) = (self.settings.clone(), plan.clone());
        let turn = (self.busy.clone(), plan.netns.clone());
        async move { on_thread(&what, Some(turn), move || work(&settings, &plan)).await }.boxed_local()
    }
}

impl Network for LinuxNetwork {
    fn prepare_host(&self) -> LocalBoxFuture<'_, Result<(), Error>> {
        let settings = self.settings.clone();
        async move { on_thread("prepare the host's network", None, move || host::prepare(&settings)).await }
            .boxed_local()
    }

    fn create<'a>(&'a self, plan: &'a Plan) -> LocalBoxFuture<'a, Result<Namespace, Error>> {
        self.for_sandbox("make", plan, |settings, plan| sandbox::create(&settings.bridge, plan))
    }

    fn open<'a>(&'a self, plan: &'a Plan) -> LocalBoxFuture<'a, Result<Namespace, Error>> {
        self.for_sandbox("open", plan, |_, plan| sandbox::open(plan))
    }

    fn remove<'a>(&'a self, plan: &'a Plan) -> LocalBoxFuture<'a, Result<(), Error>> {
        self.for_sandbox("remove", plan, |_, plan| sandbox::remove(plan))
    }
}

fn find_leftovers(known: &HashSet<SandboxId>) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for name in netns::names()? {
        let namespace = match Namespace::open(&name) {
            Ok(namespace) => namespace,
            Err(Error::NoNamespace { .. }) => continue,
            Err(error) => return Err(error),
        };
        if let Some(owner) = sandbox::owner(&namespace)?.filter(|owner| !known.contains(owner)) {
            found.push(format!("network namespace {name} of sandbox {owner}"));
        }
    }
    for link in Netlink::open()?.links()? {
        if let Some(owner) = veth::owner(&link).filter(|owner| !known.contains(owner)) {
            found.push(format!("link {} of sandbox {owner}", link.name));
        }
    }
    Ok(found)
}

/// Runs blocking work on a new thread, which may leave its namespace for good. With a `turn`, after
/// earlier work for the same namespace; if the caller is gone by then, the work does not begin.
async fn on_thread<T: Send + 'static>(
    what: &str,
    turn: Option<(Arc<Busy>, NetnsName)>,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (answer, result) = oneshot::channel();
    let task = what.to_owned();
    let run = move || {
        let _turn = turn.map(|(busy, name)| Busy::wait(busy, name));
        if answer.is_closed() {
            tracing::debug!(task, "given up before it began");
            return;
        }
        // The only way for this to fail is that nobody waits any more.
        drop(answer.send(work()));
    };
    let thread = std::thread::Builder::new().name("sandbox-network".to_owned());
    thread.spawn(run).map_err(|error| Error::kernel(format!("start a thread to {what}"), error))?;
    result.await.map_err(|_| Error::Thread { what: what.to_owned() })?
}

/// The namespaces that some thread is working on.
#[derive(Debug, Default)]
struct Busy {
    names: Mutex<HashSet<NetnsName>>,
    freed: Condvar,
}

impl Busy {
    fn wait(busy: Arc<Self>, name: NetnsName) -> Turn {
        let mut names = busy.lock();
        while !names.insert(name.clone()) {
            names = busy.freed.wait(names).unwrap_or_else(PoisonError::into_inner);
        }
        drop(names);
        Turn { busy, name }
    }

    /// A set of names stays valid whatever panicked while it was locked.
    fn lock(&self) -> MutexGuard<'_, HashSet<NetnsName>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Exclusive work on one namespace, until dropped.
struct Turn {
    busy: Arc<Busy>,
    name: NetnsName,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.busy.lock().remove(&self.name);
        self.busy.freed.notify_all();
    }
}

#[cfg(test)]
#[path = "linux_tests/mod.rs"]
mod tests;
