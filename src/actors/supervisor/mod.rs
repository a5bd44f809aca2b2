//! The supervisor: registry of the sandboxes' actors, admission, and their rebuilding after a panic.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Recipient, ResponseFuture, WrapFuture};
use tokio::sync::{Notify, Semaphore};
use tracing::{error, info};

use super::vm::{self, Settings, Tools, VmActor};
use super::work::{Rank, Underway};
use super::{Deaths, ProxyActor, Work, ended};
use crate::error::Failure;
use crate::host::FreeMemory;
use crate::ids::SandboxId;
use crate::messages::supervisor::{ChildEnded, Describe, Drain, Order, Recover};
use crate::net::SlotPool;
use crate::ports::Ports;
use crate::pressure::Pressure;
use crate::sandbox::admission::{Defaults, Situation};
use crate::sandbox::capacity::Limits;
use crate::sandbox::{Ask, Record, View, Views};

mod order;
mod recover;
mod room;
mod stock;
mod trim;

/// What the supervisor is built from.
#[derive(Clone)]
pub struct Plan {
    /// Effects.
    pub ports: Ports,
    /// What every sandbox's actor is told.
    pub settings: Settings,
    /// Values for what a request leaves open.
    pub defaults: Defaults,
    /// Network slots.
    pub slots: SlotPool,
    /// How many sandboxes may start at the same time.
    pub max_starting: usize,
    /// CPUs of this host.
    pub host_cpus: u32,
    /// Memory of this host in bytes.
    pub host_memory: u64,
    /// What of it can still be given.
    pub free_memory: Rc<dyn FreeMemory>,
    /// How much may be promised.
    pub limits: Limits,
    /// Whether the volumes have room.
    pub pressure: Pressure,
    /// What is under way.
    pub work: Work,
}

enum Child {
    Live {
        addr: Addr<VmActor>,
        incarnation: u64,
    },
    /// It panicked and is being rebuilt from the store.
    Rebuilding,
    /// It panicked and cannot be rebuilt, for this reason. Nothing of it is touched.
    Lost(String),
    /// There is no such sandbox, and while something that is left of one is removed none is made.
    Held,
}

/// What the supervisor's futures share. All of it lives on one arbiter, and no borrow is held
/// across an await.
struct Core {
    tools: Tools,
    defaults: Defaults,
    host: (u32, u64),
    room: room::Room,
    work: Work,
    children: RefCell<HashMap<SandboxId, Child>>,
    /// Told whenever a child is there again.
    rebuilt: Notify,
    incarnations: Cell<u64>,
    /// How often each sandbox's actor has panicked.
    panics: RefCell<HashMap<SandboxId, u32>>,
    draining: Cell<bool>,
    recovering: Cell<bool>,
}

impl Core {
    fn situation(&self, order: &Order) -> Situation {
        Situation {
            draining: self.draining.get() && !order.by_job,
            recovering: self.recovering.get(),
            known: self.knows(&order.id),
        }
    }

    /// Counts an order as under way, if not too many are.
    fn begin(&self, order: &Order) -> Result<Underway, Failure> {
        let rank = match order.ask {
            _ if order.by_job => Rank::LetIn,
            Ask::Capture => Rank::LetIn,
            ask if ask.tears_down() => Rank::TearDown,
            _ => Rank::Usual,
        };
        self.work.begin(order.ask.verb(), order.id.as_str(), rank)
    }

    /// Whether there is such a sandbox.
    fn knows(&self, id: &SandboxId) -> bool {
        self.children.borrow().get(id).is_some_and(|child| !matches!(child, Child::Held))
    }

    fn next_incarnation(&self) -> u64 {
        self.incarnations.set(self.incarnations.get() + 1);
        self.incarnations.get()
    }

    fn start_fresh(&self, record: Record) -> Addr<VmActor> {
        let (id, incarnation) = (record.id.clone(), self.next_incarnation());
        let addr = VmActor::fresh(self.tools.clone(), incarnation, record).start();
        self.children.borrow_mut().insert(id, Child::Live { addr: addr.clone(), incarnation });
        addr
    }

    fn start_stored(&self, record: Record, adopted: vm::Adopted) {
        let (id, incarnation) = (record.id.clone(), self.next_incarnation());
        let addr = VmActor::stored(self.tools.clone(), incarnation, record, adopted).start();
        self.children.borrow_mut().insert(id, Child::Live { addr, incarnation });
        self.rebuilt.notify_waiters();
    }

    fn forget(&self, id: &SandboxId) {
        self.children.borrow_mut().remove(id);
        self.panics.borrow_mut().remove(id);
        self.tools.views.forget(id);
        self.rebuilt.notify_waiters();
    }
}

/// The actor.
pub struct SupervisorActor {
    core: Rc<Core>,
    deaths: Deaths,
}

impl SupervisorActor {
    /// Starts the supervisor. It refuses everything as busy until it has handled [`Recover`].
    pub fn start_with(plan: Plan, views: Views, proxy: Addr<ProxyActor>, deaths: Deaths) -> Addr<Self> {
        Self::create(|ctx: &mut Context<Self>| {
            let tools = Tools {
                ports: plan.ports,
                settings: Rc::new(plan.settings),
                views,
                gate: Arc::new(Semaphore::new(plan.max_starting)),
                proxy,
                supervisor: Recipient::from(ctx.address()),
                orders: Recipient::from(ctx.address()),
                slots: Rc::new(RefCell::new(plan.slots)),
            };
            let core = Core {
                tools,
                defaults: plan.defaults,
                host: (plan.host_cpus, plan.host_memory),
                room: room::Room::new(plan.free_memory, plan.limits, plan.pressure),
                work: plan.work,
                children: RefCell::default(),
                rebuilt: Notify::new(),
                incarnations: Cell::new(0),
                panics: RefCell::default(),
                draining: Cell::new(false),
                recovering: Cell::new(true),
            };
            Self { core: Rc::new(core), deaths }
        })
    }
}

impl SupervisorActor {
    fn trim(&mut self, ctx: &mut Context<Self>) {
        let disks = &self.core.tools.ports.disks;
        let dirs = self.core.children.borrow().keys().map(|id| disks.dir(id)).collect();
        ctx.spawn(trim::trim(dirs).into_actor(self).map(|(), _, ctx| {
            ctx.run_later(trim::INTERVAL, Self::trim);
        }));
    }
}

impl Actor for SupervisorActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_later(trim::INTERVAL, Self::trim);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        ended(&self.deaths, "SupervisorActor");
    }
}

impl Handler<Order> for SupervisorActor {
    type Result = ResponseFuture<Result<Option<Arc<View>>, Failure>>;

    fn handle(&mut self, order: Order, _: &mut Self::Context) -> Self::Result {
        let (core, begun) = (self.core.clone(), self.core.begin(&order));
        Box::pin(async move {
            let _underway = begun.map_err(|failure| order::named(failure, &order))?;
            order::carry_out(core, order).await
        })
    }
}

impl Handler<Describe> for SupervisorActor {
    type Result = ResponseFuture<Result<Option<Box<Record>>, Failure>>;

    fn handle(&mut self, describe: Describe, _: &mut Self::Context) -> Self::Result {
        Box::pin(order::describe(self.core.clone(), describe.0))
    }
}

impl Handler<Recover> for SupervisorActor {
    type Result = ResponseFuture<Result<(), Failure>>;

    fn handle(&mut self, _: Recover, _: &mut Self::Context) -> Self::Result {
        Box::pin(recover::all(self.core.clone()))
    }
}

impl Handler<Drain> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.core.draining.set(true);
    }
}

impl Handler<ChildEnded> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, ended: ChildEnded, _: &mut Self::Context) {
        let current = match self.core.children.borrow().get(&ended.id) {
            Some(Child::Live { incarnation, .. }) => *incarnation == ended.incarnation,
            _ => false,
        };
        if !current {
            return;
        }
        if ended.settled {
            info!(sandbox = %ended.id, "sandbox is gone");
            return self.core.forget(&ended.id);
        }
        error!(sandbox = %ended.id, "the sandbox's actor panicked; it is rebuilt from the store");
        self.core.children.borrow_mut().insert(ended.id.clone(), Child::Rebuilding);
        actix::spawn(recover::one(self.core.clone(), ended.id));
    }
}
