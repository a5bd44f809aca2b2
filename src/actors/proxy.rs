//! Owner of the routes into the guests, and of how much may pass on each. Requests read the table;
//! only this actor writes it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use actix::{Actor, Context, Handler};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, watch};

use super::{Deaths, ended};
use crate::ids::SandboxId;
use crate::messages::proxy::{CloseRoute, HoldRoute, OpenRoute};
use crate::net::Namespace;

/// A way into one running sandbox.
#[derive(Debug, Clone)]
pub struct Route {
    /// The sandbox's run.
    pub run: u64,
    /// Its namespace.
    pub netns: Namespace,
    use_of: Arc<Use>,
    /// The sender is dropped when the route is closed.
    open: watch::Receiver<()>,
}

#[derive(Debug)]
struct Use {
    held: AtomicBool,
    /// So often a new VMM has taken this run over.
    vmms: AtomicU64,
    /// Requests and tunnels under way.
    active: AtomicUsize,
    limit: usize,
}

/// A request's or tunnel's place on a route; given back when it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Use>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Route {
    /// Resolves when the route is closed: connections made by it must end then.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut open = self.open.clone();
        async move { while open.changed().await.is_ok() {} }
    }

    /// So often a new VMM has taken this run over: what is open stays open, but what lies idle is not worth the
    /// question whether its guest still knows it.
    pub fn vmms(&self) -> u64 {
        self.use_of.vmms.load(Ordering::Acquire)
    }

    /// Whether the guest cannot answer now: it is paused, or its VMM is being exchanged.
    pub fn is_held(&self) -> bool {
        self.use_of.held.load(Ordering::Acquire)
    }

    /// A place for one more request or tunnel; none when as many as the limit allows are under way.
    pub fn enter(&self) -> Option<Place> {
        let before = self.use_of.active.fetch_add(1, Ordering::AcqRel);
        let place = Place(self.use_of.clone());
        (before < self.use_of.limit).then_some(place)
    }

    /// Requests and tunnels that may be under way at the same time.
    pub fn limit(&self) -> usize {
        self.use_of.limit
    }
}

/// All routes; cheap to clone, shared with the HTTP workers.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    table: Arc<RwLock<HashMap<SandboxId, Route>>>,
    changed: Arc<Notify>,
}

impl Routes {
    /// The route to a sandbox, while it runs. Do not keep it longer than one connection needs: an open
    /// handle on the namespace keeps its links alive.
    pub fn get(&self, id: &SandboxId) -> Option<Route> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Sandboxes that there is a route to.
    pub fn ids(&self) -> BTreeSet<SandboxId> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Resolves when a route has been opened, held or closed since this was called.
    pub fn change(&self) -> OwnedNotified {
        self.changed.clone().notified_owned()
    }

    fn write(&self, change: impl FnOnce(&mut HashMap<SandboxId, Route>)) {
        change(&mut self.table.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
    }
}

/// The actor.
#[derive(Debug)]
pub struct ProxyActor {
    routes: Routes,
    open: HashMap<SandboxId, watch::Sender<()>>,
    /// Those whose guests cannot answer now, whether there is a route to them or not yet.
    held: HashSet<SandboxId>,
    /// Requests and tunnels of one sandbox at the same time.
    limit: usize,
    deaths: Deaths,
}

impl ProxyActor {
    /// An actor that writes this table. At most `limit` requests and tunnels pass on one route at the
    /// same time.
    pub fn new(routes: Routes, limit: usize, deaths: Deaths) -> Self {
        Self { routes, open: HashMap::new(), held: HashSet::new(), limit, deaths }
    }
}

impl Actor for ProxyActor {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        ended(&self.deaths, "ProxyActor");
    }
}

impl Handler<OpenRoute> for ProxyActor {
    type Result = ();

    fn handle(&mut self, open: OpenRoute, _: &mut Self::Context) {
        // The same run goes on behind a new VMM: what is connected stays connected.
        if let Some(route) = self.routes.get(&open.id).filter(|route| route.run == open.run) {
            route.use_of.vmms.fetch_add(1, Ordering::AcqRel);
            return;
        }
        let sender = watch::Sender::new(());
        let held = AtomicBool::new(self.held.contains(&open.id));
        let use_of = Use { held, vmms: AtomicU64::new(0), active: AtomicUsize::new(0), limit: self.limit };
        let route = Route { run: open.run, netns: open.netns, use_of: Arc::new(use_of), open: sender.subscribe() };
        self.open.insert(open.id.clone(), sender);
        self.routes.write(|table| drop(table.insert(open.id, route)));
    }
}

impl Handler<HoldRoute> for ProxyActor {
    type Result = ();

    fn handle(&mut self, hold: HoldRoute, _: &mut Self::Context) {
        if let Some(route) = self.routes.get(&hold.id) {
            route.use_of.held.store(hold.held, Ordering::Release);
            self.routes.changed.notify_waiters();
        }
        match hold.held {
            true => self.held.insert(hold.id),
            false => self.held.remove(&hold.id),
        };
    }
}

impl Handler<CloseRoute> for ProxyActor {
    type Result = ();

    fn handle(&mut self, close: CloseRoute, _: &mut Self::Context) {
        self.routes.write(|table| drop(table.remove(&close.id)));
        self.open.remove(&close.id);
    }
}
