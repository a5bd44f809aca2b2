//! Compares the host with what should be on it: after recovery, periodically, and when it is asked to. Decisions are
//! those of [`crate::ledger`]; this actor looks, and repairs what it is told to.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, ResponseFuture, WrapFuture};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{Deaths, Routes, SupervisorActor, ended};
use crate::error::{ErrorCode, Failure};
use crate::ledger::{Audit, Expected, Inventory, Ledger, RepairSetting, confirm};
use crate::messages::ledger::{Outcome, Repair, Repairs, RunLedger, TakeStock};
use crate::ports::{Ports, unix_millis};

mod observe;
mod repair;

/// Between two looks. What one step of an operation leaves for a moment is not there any more in the second.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// When it looks, and whether it repairs by itself.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Between two runs.
    pub interval: Duration,
    /// Whether harmless leaks are removed after each run.
    pub repair: RepairSetting,
    /// Directory of the API sockets.
    pub sockets: PathBuf,
}

/// What the actor's futures share; all of it lives on one arbiter.
struct Core {
    ports: Ports,
    supervisor: Addr<SupervisorActor>,
    routes: Routes,
    ledger: Ledger,
    settings: Settings,
    /// Held by the one run or repair that is under way.
    turn: tokio::sync::Mutex<()>,
    /// When the last run began.
    began: Cell<Option<Instant>>,
    /// How long each part took the last time.
    micros: RefCell<BTreeMap<&'static str, u64>>,
    /// Parts of the host that are being looked at, also by a run that has given up on them.
    looking: Rc<RefCell<HashSet<&'static str>>>,
}

/// The actor.
pub struct LedgerActor {
    core: Rc<Core>,
    deaths: Deaths,
}

impl LedgerActor {
    /// Starts the ledger, which runs at once and shows its results in `ledger`. The supervisor must have recovered.
    pub fn start_with(
        ports: Ports,
        supervisor: Addr<SupervisorActor>,
        routes: Routes,
        ledger: Ledger,
        settings: Settings,
        deaths: Deaths,
    ) -> Addr<Self> {
        let core = Core {
            ports,
            supervisor,
            routes,
            ledger,
            settings,
            turn: tokio::sync::Mutex::default(),
            began: Cell::new(None),
            micros: RefCell::default(),
            looking: Rc::default(),
        };
        Self { core: Rc::new(core), deaths }.start()
    }

    /// The next run comes when this one has ended and the interval has passed: runs never pile up.
    fn run_and_again(&mut self, ctx: &mut Context<Self>) {
        let core = self.core.clone();
        let ran = async move {
            let ran = match core.settings.repair {
                RepairSetting::Off => run(&core).await.map(drop),
                RepairSetting::Auto => repair::repair(&core, &Repair { dry_run: false, kinds: None }).await.map(drop),
            };
            if let Err(failure) = ran {
                warn!(error = %failure, "the host could not be compared with what should be on it");
            }
        };
        ctx.spawn(ran.into_actor(self).map(|(), act, ctx| {
            ctx.run_later(act.core.settings.interval, Self::run_and_again);
        }));
    }
}

impl Actor for LedgerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.run_and_again(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        ended(&self.deaths, "LedgerActor");
    }
}

impl Handler<RunLedger> for LedgerActor {
    type Result = ResponseFuture<Result<Arc<Audit>, Failure>>;

    fn handle(&mut self, _: RunLedger, _: &mut Self::Context) -> Self::Result {
        let core = self.core.clone();
        Box::pin(async move { run(&core).await })
    }
}

impl Handler<Repair> for LedgerActor {
    type Result = ResponseFuture<Result<Repairs, Failure>>;

    fn handle(&mut self, asked: Repair, _: &mut Self::Context) -> Self::Result {
        let core = self.core.clone();
        Box::pin(async move { repair::repair(&core, &asked).await })
    }
}

/// A run that began after this was asked for is as good as one of its own.
async fn run(core: &Core) -> Result<Arc<Audit>, Failure> {
    let asked = Instant::now();
    let _turn = core.turn.lock().await;
    match core.ledger.last() {
        Some(audit) if core.began.get().is_some_and(|began| began > asked) => Ok(audit),
        _ => core.audit().await,
    }
}

impl Core {
    /// One run. The caller has the turn.
    async fn audit(&self) -> Result<Arc<Audit>, Failure> {
        let (at, began) = (unix_millis(), Instant::now());
        self.began.set(Some(began));
        let mut look = self.look().await?;
        let (mut looks, mut paused) = (1, Duration::ZERO);
        if !look.differences.is_empty() {
            let pause = Instant::now();
            sleep(SECOND_LOOK).await;
            paused = pause.elapsed();
            let first = std::mem::take(&mut look.differences);
            look = self.look().await?;
            look.differences = confirm(&first, look.differences);
            looks = 2;
        }
        let micros = began.elapsed().saturating_sub(paused).as_micros();
        let duration_micros = u64::try_from(micros).unwrap_or(u64::MAX);
        let audit = Arc::new(Audit { at, duration_micros, looks, ..look });
        let before = self.ledger.set(audit.clone());
        tell(&audit, before.as_deref());
        Ok(audit)
    }

    /// One look. What it cannot see is told in the result.
    async fn look(&self) -> Result<Audit, Failure> {
        let before = self.inventory(false).await?;
        let (observed, mut blind) = self.observe().await;
        let asked = Instant::now();
        let after = self.inventory(true).await?;
        self.took("VMs", asked);
        blind.extend(observe::silent(&after));
        let differences = crate::ledger::compare(&Expected::between(&before, &after), &observed);
        let part_micros = self.micros.borrow().clone();
        Ok(Audit { differences, part_micros, caches: observe::caches(&observed), blind, ..Audit::default() })
    }

    fn took(&self, part: &'static str, since: Instant) {
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.micros.borrow_mut().insert(part, micros);
    }

    async fn inventory(&self, ask_vmms: bool) -> Result<Inventory, Failure> {
        self.supervisor.send(TakeStock { ask_vmms }).await.map_err(|_| gone())?
    }
}

fn gone() -> Failure {
    Failure::new(ErrorCode::Busy, "the runner is shutting down")
}

/// Each difference is told once, when it is first seen.
fn tell(audit: &Audit, before: Option<&Audit>) {
    for new in audit.new_since(before) {
        let sandbox = new.sandbox.as_ref().map(tracing::field::display);
        warn!(kind = %new.kind, what = ?new.what, object = new.object, sandbox, why = new.why, "the host differs from what should be");
    }
    let gone = before.map_or(0, |before| before.new_since(Some(audit)).count());
    let differences = audit.differences.len();
    if gone > 0 {
        info!(gone, differences, "differences between the host and what should be have gone");
    }
    for blind in &audit.blind {
        warn!(part = blind.part, reason = blind.reason, "a part of the host could not be compared with what should be");
    }
}

/// What a repair has done, in the log.
fn tell_repair(repairs: &Repairs) {
    for (difference, outcome) in &repairs.outcomes {
        let (kind, object) = (difference.kind, &difference.object);
        match outcome {
            Outcome::Done => info!(%kind, object, "repaired: {}", difference.why),
            Outcome::Failed(reason) => warn!(%kind, object, reason, "could not be repaired"),
            Outcome::Would | Outcome::Skipped(_) => {}
        }
    }
}
