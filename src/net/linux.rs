//! The network of sandboxes on a Linux host.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::sync::oneshot;

use super::addresses::Ipv4Net;
use super::error::Error;
use super::survey::{self, Leaked, NetworkSurvey};
use super::{Namespace, Network, Plan, host, sandbox};
use crate::ids::{LinkName, NetnsName};

/// What the host's part depends on.
#[derive(Debug)]
pub(super) struct Settings {
    pub bridge: LinkName,
    pub pool: Ipv4Net,
    pub deny: Vec<Ipv4Net>,
    pub table: String,
    /// Tells this runner's namespaces from those of others; 0: not told apart.
    pub owner: u32,
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
        let settings = Settings { bridge, pool, deny, table: table.to_owned(), owner: 0 };
        Self { settings: Arc::new(settings), busy: Arc::default() }
    }

    /// The same with this runner's number in the marks of new namespaces, [`super::survey::owner_number`].
    #[must_use]
    pub fn with_owner(self, owner: u32) -> Self {
        let Settings { bridge, pool, deny, table, .. } = &*self.settings;
        let (bridge, pool, deny, table) = (bridge.clone(), *pool, deny.clone(), table.clone());
        Self { settings: Arc::new(Settings { bridge, pool, deny, table, owner }), busy: self.busy }
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
        self.for_sandbox("make", plan, |settings, plan| sandbox::create(&settings.bridge, settings.owner, plan))
    }

    fn open<'a>(&'a self, plan: &'a Plan) -> LocalBoxFuture<'a, Result<Namespace, Error>> {
        self.for_sandbox("open", plan, |_, plan| sandbox::open(plan))
    }

    fn remove<'a>(&'a self, plan: &'a Plan) -> LocalBoxFuture<'a, Result<(), Error>> {
        self.for_sandbox("remove", plan, |_, plan| sandbox::remove(plan))
    }

    fn survey(&self) -> LocalBoxFuture<'_, Result<NetworkSurvey, Error>> {
        let settings = self.settings.clone();
        async move { on_thread("survey the sandboxes' networks", None, move || survey::look(&settings)).await }
            .boxed_local()
    }

    fn remove_leaked<'a>(&'a self, leaked: &'a Leaked) -> LocalBoxFuture<'a, Result<bool, Error>> {
        let (settings, leaked) = (self.settings.clone(), leaked.clone());
        // The turn of the namespace that belongs to the same sandbox: nothing is made under its names meanwhile.
        let turn = (self.busy.clone(), leaked.sandbox().netns());
        let what = format!("remove {leaked}");
        async move { on_thread(&what, Some(turn), move || survey::remove(&settings, &leaked)).await }.boxed_local()
    }
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
