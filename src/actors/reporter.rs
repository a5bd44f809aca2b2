//! What the runner tells the control plane unasked: that it is healthy, and which started sandboxes
//! are not started any more. An unasked change of a sandbox is told at once; the comparison at every interval finds
//! what was missed.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, WrapFuture};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{Deaths, ended};
use crate::app::service_health;
use crate::backoff::Backoff;
use crate::blocking::in_time;
use crate::control_plane::{ControlPlane, Error as ApiError, Retry, ServiceHealth, StateUpdate};
use crate::disk::Space;
use crate::error::{ErrorCode, Failure, chain};
use crate::host::{self, HostMetrics, HostSnapshot, Identity, LinuxHost, SAMPLE_INTERVAL, Totals};
use crate::ports::{Ports, unix_millis};
use crate::sandbox::{View, Views, WireState};

/// Between a healthcheck that was lost and the next.
const AFTER_LOSS: Duration = Duration::from_secs(5);
/// How long a healthcheck waits for the data volume.
const VOLUME_DEADLINE: Duration = Duration::from_secs(10);

/// Pauses between tries to tell, or to compare, while the API is away.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How often the control plane is told what.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Between healthchecks.
    pub healthcheck: Duration,
    /// Between comparisons of started sandboxes.
    pub sync: Duration,
    /// How this runner is reached.
    pub identity: Identity,
    /// What `serviceHealth` is about.
    pub ch_binary: PathBuf,
}

/// The host and the control plane as last seen; read by `GET /info`.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<RwLock<Now>>);

#[derive(Debug, Clone, Default)]
struct Now {
    host: Option<(HostSnapshot, Space, u64)>,
    api: Option<ApiContact>,
}

/// How the last healthcheck went.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiContact {
    /// Whether the API took it.
    pub reachable: bool,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Seen {
    fn update(&self, change: impl FnOnce(&mut Now)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Host, space and number of snapshots at the last healthcheck.
    pub fn host(&self) -> Option<(HostSnapshot, Space, u64)> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).host
    }

    /// The last contact with the API.
    pub fn api(&self) -> Option<ApiContact> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).api.clone()
    }
}

/// The actor.
pub struct ReporterActor {
    ports: Ports,
    views: Views,
    seen: Seen,
    settings: Rc<Settings>,
    host: LinuxHost,
    deaths: Deaths,
    comparing: Backoff,
}

impl ReporterActor {
    /// An actor that reports these views.
    pub fn new(ports: Ports, views: Views, seen: Seen, settings: Settings, host: LinuxHost, deaths: Deaths) -> Self {
        let comparing = Backoff::new(PAUSES.0, PAUSES.1.min(settings.sync));
        Self { ports, views, seen, settings: Rc::new(settings), host, deaths, comparing }
    }

    fn sample(&mut self, ctx: &mut Context<Self>) {
        if let Err(error) = self.host.sample() {
            warn!(error = %chain(&error), "cannot sample the CPU counters");
        }
        ctx.run_later(SAMPLE_INTERVAL, Self::sample);
    }

    /// Tells the API, and again when that is done and the interval has passed: calls never pile up.
    fn healthcheck(&mut self, ctx: &mut Context<Self>) {
        let snapshot = self.host.snapshot();
        let (ports, views, seen) = (self.ports.clone(), self.views.clone(), self.seen.clone());
        let settings = self.settings.clone();
        let told = async move {
            let told = match snapshot {
                Ok(snapshot) => tell(&ports, &views, &seen, &settings, snapshot).await,
                Err(error) => Err(error.into()),
            };
            let error = told.err().map(|failure| failure.message);
            if let Some(error) = &error {
                warn!(error, "the healthcheck did not reach the API");
            }
            seen.update(|now| now.api = Some(ApiContact { reachable: error.is_none(), at: unix_millis(), error }));
        };
        ctx.spawn(told.into_actor(self).map(|(), act, ctx| {
            // The API gives a runner up after 60 s: one lost healthcheck must not cost a whole interval.
            let lost = act.seen.api().is_some_and(|contact| !contact.reachable);
            let pause = act.settings.healthcheck;
            ctx.run_later(if lost { pause.min(AFTER_LOSS) } else { pause }, Self::healthcheck);
        }));
    }

    fn sync(&mut self, ctx: &mut Context<Self>) {
        let (api, views) = (self.ports.control_plane.clone(), self.views.clone());
        let synced = async move {
            let synced = sync(&*api, &views).await;
            if let Err(error) = &synced {
                debug!(error = %chain(error), "cannot compare started sandboxes with the API");
            }
            synced.err().map(|error| error.retry())
        };
        ctx.spawn(synced.into_actor(self).map(|failed, act, ctx| {
            let pause = match failed {
                None => {
                    act.comparing.reset();
                    act.settings.sync
                }
                Some(retry) => act.comparing.pause(retry).min(act.settings.sync),
            };
            ctx.run_later(pause, Self::sync);
        }));
    }
}

async fn tell(
    ports: &Ports,
    views: &Views,
    seen: &Seen,
    settings: &Settings,
    snapshot: HostSnapshot,
) -> Result<(), Failure> {
    let mut services = vec![service_health(&settings.ch_binary)];
    let volume = async { Ok::<_, Failure>((ports.disks.space().await?, ports.disks.snapshot_count().await?)) };
    let (space, snapshots) = match (in_time("look at the data volume", VOLUME_DEADLINE, volume).await, seen.host()) {
        (Ok(found), _) => found,
        // The scheduler should know, and what was seen last is as good as it gets.
        (Err(failure), Some((_, space, snapshots))) if failure.code == ErrorCode::Timeout => {
            services.push(ServiceHealth::unhealthy("data-volume", failure.message));
            (space, snapshots)
        }
        (Err(failure), _) => return Err(failure),
    };
    seen.update(|now| now.host = Some((snapshot, space, snapshots)));
    let totals = totals(views, snapshots);
    let body = host::healthcheck(&snapshot, &space, &totals, &settings.identity, services);
    Ok(ports.control_plane.healthcheck(&body).await?)
}

/// Sums for the healthcheck.
pub fn totals(views: &Views, snapshots: u64) -> Totals {
    let sums = views.totals();
    Totals {
        running_vcpus: sums.vcpus,
        running_memory_bytes: sums.memory,
        disk_bytes: sums.disk,
        running: sums.started,
        snapshots,
    }
}

/// Tells every unasked change as soon as its sandbox has settled. Looked at anew for each try, so a later state wins;
/// what is under way is waited for, and what somebody has asked for is not told at all.
async fn tell_changes(api: Rc<dyn ControlPlane>, views: Views) {
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    loop {
        match tell_once(&*api, &views).await {
            None => {
                backoff.reset();
                views.changed().await;
            }
            Some(retry) => sleep(backoff.pause(retry)).await,
        }
    }
}

/// One round; what to do if something could not be told.
async fn tell_once(api: &dyn ControlPlane, views: &Views) -> Option<Retry> {
    let mut again = None;
    for (id, number) in views.untold() {
        let Some(view) = views.get(&id).filter(|view| view.settled) else {
            if views.get(&id).is_none() {
                views.told(&id, number);
            }
            continue;
        };
        let Some(update) = difference(Some(&view)) else {
            views.told(&id, number);
            continue;
        };
        match api.put_state(&id, &update).await {
            Ok(()) => {
                info!(sandbox = %id, state = update.state, reason = update.error_reason, "told the API of an unasked change");
                views.told(&id, number);
            }
            Err(error) if error.retry() == Retry::Never => {
                // An operation of the API is under way, or the row is not ours: the comparison comes back to it.
                info!(sandbox = %id, error = %chain(&error), "the API does not take an unasked change now");
                views.told(&id, number);
            }
            Err(error) => {
                warn!(sandbox = %id, error = %chain(&error), "cannot tell the API of an unasked change");
                again = Some(error.retry());
                if !matches!(error, ApiError::Server { .. }) {
                    break;
                }
            }
        }
    }
    again
}

/// One comparison (PROTOCOL.md 4). Fails if something is worth another try before the next.
async fn sync(api: &dyn ControlPlane, views: &Views) -> Result<(), ApiError> {
    let mut failed = Ok(());
    for remote in api.started_sandboxes().await? {
        if let Some(update) = difference(views.get(&remote.id).as_deref()) {
            info!(sandbox = %remote.id, state = update.state, "the API believes that this sandbox runs; correcting it");
            if let Err(error) = api.put_state(&remote.id, &update).await {
                warn!(sandbox = %remote.id, error = %chain(&error), "the API did not take the sandbox's state");
                if error.retry() != Retry::Never {
                    failed = Err(error);
                }
            }
        }
    }
    failed
}

/// What to tell the API about a sandbox that it holds for started; nothing while an operation is
/// under way, because its job will tell.
fn difference(local: Option<&View>) -> Option<StateUpdate> {
    let Some(local) = local else {
        // Not "destroyed", as the original says: a wrong data volume must not delete the API's row.
        return Some(StateUpdate::error("the sandbox does not exist on its runner's host", false));
    };
    match local.state {
        _ if !local.settled => None,
        WireState::Started | WireState::Paused | WireState::Unknown => None,
        WireState::Error => {
            Some(StateUpdate::error(local.error.clone().unwrap_or_else(|| "its tear-down failed".to_owned()), false))
        }
        _ => Some(StateUpdate { error_reason: local.error.clone(), ..StateUpdate::stopped() }),
    }
}

impl Actor for ReporterActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.sample(ctx);
        self.healthcheck(ctx);
        self.sync(ctx);
        let telling = tell_changes(self.ports.control_plane.clone(), self.views.clone());
        ctx.spawn(telling.into_actor(self));
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        ended(&self.deaths, "ReporterActor");
    }
}
