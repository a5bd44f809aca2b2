//! Owner of the routes into the guests. Requests read the table; only this actor writes it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use actix::{Actor, Context, Handler};
use tokio::sync::watch;

use super::{Deaths, ended};
use crate::ids::SandboxId;
use crate::messages::proxy::{CloseRoute, OpenRoute};
use crate::net::Namespace;

/// A way into one running sandbox.
#[derive(Debug, Clone)]
pub struct Route {
    /// The sandbox's run.
    pub run: u64,
    /// Its namespace.
    pub netns: Namespace,
    /// The sender is dropped when the route is closed.
    open: watch::Receiver<()>,
}

impl Route {
    /// Resolves when the route is closed: connections made by it must end then.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut open = self.open.clone();
        async move { while open.changed().await.is_ok() {} }
    }
}

/// All routes; cheap to clone, shared with the HTTP workers.
#[derive(Debug, Clone, Default)]
pub struct Routes(Arc<RwLock<HashMap<SandboxId, Route>>>);

impl Routes {
    /// The route to a sandbox, while it runs. Do not keep it longer than one connection needs: an open
    /// handle on the namespace keeps its links alive.
    pub fn get(&self, id: &SandboxId) -> Option<Route> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Sandboxes that there is a route to.
    pub fn ids(&self) -> BTreeSet<SandboxId> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

/// The actor.
#[derive(Debug)]
pub struct ProxyActor {
    routes: Routes,
    open: HashMap<SandboxId, watch::Sender<()>>,
    deaths: Deaths,
}

impl ProxyActor {
    /// An actor that writes this table.
    pub fn new(routes: Routes, deaths: Deaths) -> Self {
        Self { routes, open: HashMap::new(), deaths }
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
        if self.routes.get(&open.id).is_some_and(|route| route.run == open.run) {
            return;
        }
        let sender = watch::Sender::new(());
        let route = Route { run: open.run, netns: open.netns, open: sender.subscribe() };
        self.open.insert(open.id.clone(), sender);
        self.routes.0.write().unwrap_or_else(PoisonError::into_inner).insert(open.id, route);
    }
}

impl Handler<CloseRoute> for ProxyActor {
    type Result = ();

    fn handle(&mut self, close: CloseRoute, _: &mut Self::Context) {
        self.routes.0.write().unwrap_or_else(PoisonError::into_inner).remove(&close.id);
        self.open.remove(&close.id);
    }
}
