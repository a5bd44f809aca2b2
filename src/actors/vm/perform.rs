//! Carrying out one stage: store the intent if there is one to store, then do it, and say what came
//! of it. Stages that can take long can be interrupted; the others are short and run to their end.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::Tools;
use super::deadline::{STAGE_DEADLINE, late, stored};
use super::merge::Merged;
use super::restart::Traces;
use crate::disk::{Format, Plan as DiskPlan, RootDisk, SandboxDisks, Seed, Stamp};
use crate::error::{Certainty, ErrorCode, Failure};
use crate::fork::capture::MEMORY;
use crate::fork::{Plan as CapturePlan, Report, Ticket};
use crate::hypervisor::launch::Files;
use crate::hypervisor::wire::{ImageType, MemoryLayout, VmSpec};
use crate::hypervisor::{Exit, Launch, VmConfig, Vmm, tail};
use crate::messages::proxy::{CloseRoute, OpenRoute};
use crate::messages::vm::{Resize, Source};
use crate::net::{self, Namespace};
use crate::sandbox::{Op, Record, Rest, Size, Stage};

/// How long an orderly end of the VMM may take before it is killed; it flushes disks meanwhile.
const END_GRACE: Duration = Duration::from_secs(10);
/// The same where the disk is removed next.
const DISCARD_GRACE: Duration = Duration::from_millis(500);
/// How long keeping what is left of an end may delay what destroys it: a few small files.
const TRACES: Duration = Duration::from_secs(2);
/// How much of the guest's last output goes into an error.
const LAST_WORDS: u64 = 400;

/// What a stage has made.
pub(super) enum Output {
    Nothing,
    Permit(OwnedSemaphorePermit),
    Provided(Option<SandboxDisks>, Option<Namespace>),
    Vmm(Rc<dyn Vmm>),
    Version(Option<String>),
    Configured(MemoryLayout),
    Grafted {
        disks: SandboxDisks,
        mac: Option<[u8; 6]>,
    },
    Restored {
        layout: MemoryLayout,
        mapped: Option<u64>,
        copy: Option<Report>,
        running: Size,
    },
    Identity(Option<Result<(), String>>),
    /// The record as it was stored with its checkpoint; paused since then.
    Suspended {
        record: Box<Record>,
        since: Instant,
        merged: Option<Merged>,
    },
    Layered {
        root: RootDisk,
        stamp: Stamp,
    },
    Captured {
        pause_micros: Option<u64>,
        disk: Option<(RootDisk, Stamp)>,
    },
    Stamped(Stamp),
    Resized(Box<Record>),
}

/// How a stage went.
pub(super) struct Done {
    pub stage: Stage,
    pub result: Result<Output, Failure>,
    /// The record, if it was stored on the way.
    pub saved: Option<Record>,
    pub micros: u64,
}

/// A stage with everything it needs, taken out of the actor so that it can run beside it.
pub(super) struct Job {
    pub tools: Tools,
    pub record: Record,
    /// Whether to store the record first, and whether that must succeed.
    pub save: Option<bool>,
    pub netns: Option<Namespace>,
    pub vmm: Option<Rc<dyn Vmm>>,
    pub stage: Stage,
    pub op: Op,
    /// What a creation is copied from.
    pub source: Option<Source>,
    /// Who waits for a capture.
    pub ticket: Option<Ticket>,
    pub resize: Option<Resize>,
    pub merged: Option<Merged>,
    /// How it is captured.
    pub plan: Option<CapturePlan>,
    /// The disk is removed next, so nothing needs to be flushed to it.
    pub discards: bool,
    /// What is being kept of an end, for stages that would destroy it.
    pub traces: Option<Traces>,
}

impl Job {
    pub(super) async fn run(self, interrupted: oneshot::Receiver<()>) -> Done {
        let stage = self.stage;
        let started = Instant::now();
        let (saved, result) = match self.save().await {
            Ok(saved) => (saved, self.in_time(interrupted).await),
            Err(failure) => (None, Err(failure)),
        };
        let micros = started.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        Done { stage, result, saved, micros }
    }

    async fn save(&self) -> Result<Option<Record>, Failure> {
        let Some(must) = self.save else { return Ok(None) };
        match stored(self.tools.ports.store.put_sandbox(&self.record)).await {
            Ok(()) => Ok(Some(self.record.clone())),
            Err(failure) if must => Err(failure),
            Err(failure) => {
                // A tear-down frees space and is repeated after a restart if its end is not stored.
                warn!(sandbox = %self.record.id, error = %failure, "tear-down goes on although its intent could not be stored");
                Ok(None)
            }
        }
    }

    /// A stage that hangs in the kernel or on a dead disk must not hold its sandbox, nor its place at
    /// the gate, for ever. Stages that wait for a guest have settings of their own.
    async fn in_time(self, interrupted: oneshot::Receiver<()>) -> Result<Output, Failure> {
        let (stage, id) = (self.stage, self.record.id.clone());
        if matches!(stage, Stage::Gate | Stage::Graft | Stage::Boot | Stage::Ready | Stage::PowerOff) {
            return self.stage(interrupted).await;
        }
        timeout(STAGE_DEADLINE, self.stage(interrupted)).await.unwrap_or_else(|_| Err(late(stage, &id)))
    }

    async fn stage(mut self, interrupted: oneshot::Receiver<()>) -> Result<Output, Failure> {
        if let Some(traces) = self.traces.take()
            && timeout(TRACES, traces).await.is_err()
        {
            warn!(sandbox = %self.record.id, "what is left of an end is not kept in time; going on");
        }
        match self.stage {
            Stage::Gate => self.gate(interrupted).await,
            Stage::Disk | Stage::Network | Stage::Provide => self.provide(interrupted).await,
            Stage::Room => self.room().await,
            Stage::Launch => self.launch().await,
            Stage::Graft => self.graft(interrupted).await,
            Stage::Configure => self.configure().await,
            Stage::Boot => self.boot(interrupted).await,
            Stage::Restore => self.restore().await,
            Stage::Wake => self.wake().await,
            Stage::Ready => self.ready(interrupted).await,
            Stage::Identify => self.identify().await,
            Stage::Commit => self.commit().await,
            Stage::Suspend => self.suspend().await,
            Stage::Layer => self.layer().await,
            Stage::Pause => self.pause().await,
            Stage::Capture => self.capture().await,
            Stage::Resize => self.change_size().await,
            Stage::PowerOff => self.power_off(interrupted).await,
            Stage::End => self.end().await,
            Stage::Unplug => self.unplug().await,
            Stage::Erase => {
                self.tools.ports.disks.remove(&self.record.id).await?;
                Ok(Output::Nothing)
            }
        }
    }

    /// Disk and network side by side. The first use of a base may flatten it, which takes minutes, so this
    /// can be interrupted: the ports finish or take back by themselves what was begun.
    async fn provide(self, interrupted: oneshot::Receiver<()>) -> Result<Output, Failure> {
        let disk = async {
            match (self.stage, &self.record.disks) {
                (Stage::Network, Some(disks)) => {
                    let rebased = self.rebased(&disks.root).await?;
                    Ok(rebased.map(|root| SandboxDisks { root, seed: disks.seed.clone() }))
                }
                (Stage::Network, None) => Ok(None),
                _ => self.disk().await.map(Some),
            }
        };
        let network = async { if self.stage == Stage::Disk { Ok(None) } else { self.network().await.map(Some) } };
        tokio::select! {
            // Both run to their end even if one fails: what was made is then there to be undone.
            (disk, network) = futures::future::join(disk, network) => Ok(Output::Provided(disk?, network?)),
            _ = interrupted => Err(overtaken()),
        }
    }

    async fn gate(self, interrupted: oneshot::Receiver<()>) -> Result<Output, Failure> {
        tokio::select! {
            permit = self.tools.gate.clone().acquire_owned() => permit.map(Output::Permit).map_err(|_| overtaken()),
            _ = interrupted => Err(overtaken()),
        }
    }

    async fn disk(&self) -> Result<SandboxDisks, Failure> {
        let Record { id, spec, size, .. } = &self.record;
        let seed = self.seed(self.record.guest_mac());
        let plan = DiskPlan { sandbox: id.clone(), base: spec.snapshot.clone(), size: size.disk, seed };
        Ok(self.tools.ports.disks.create(&plan).await?)
    }

    pub(super) fn seed(&self, mac: [u8; 6]) -> Seed {
        let Record { id, spec, .. } = &self.record;
        Seed {
            sandbox: id.clone(),
            hostname: id.to_string(),
            mac,
            env: spec.env.clone(),
            os_user: spec.os_user.clone(),
        }
    }

    fn network_plan(&self) -> Option<net::Plan> {
        let slot = self.record.slot?;
        // A copied guest keeps the MAC that its memory holds.
        let guest_mac = match &self.source {
            Some(source) => source.mac.unwrap_or_else(|| self.record.guest_mac()),
            None => self.record.guest_mac(),
        };
        Some(net::Plan { guest_mac, ..self.tools.slots.borrow().plan(&self.record.id, slot) })
    }

    pub(super) async fn network(&self) -> Result<Namespace, Failure> {
        let plan = self.network_plan().ok_or_else(|| {
            Failure::new(
                ErrorCode::Busy,
                "all network slots of this host are taken; destroy or stop sandboxes, or widen RUNNER_NETWORK_POOL",
            )
        })?;
        let spec = &self.record.spec;
        let egress = net::Egress::new(spec.network_block_all, spec.network_allow_list.as_deref());
        Ok(self.tools.ports.network.create(&net::Plan { egress, ..plan }).await?)
    }

    fn socket(&self) -> PathBuf {
        socket_path(&self.tools, &self.record)
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.tools.ports.disks.dir(&self.record.id)
    }

    async fn launch(self) -> Result<Output, Failure> {
        let netns = self.netns.clone().ok_or_else(|| lost("namespace"))?;
        let launch =
            Launch { sandbox: self.record.id.clone(), socket: self.socket(), dir: self.dir(), netns: Some(netns) };
        Ok(Output::Vmm(self.tools.ports.hypervisor.launch(&launch).await?))
    }

    async fn configure(self) -> Result<Output, Failure> {
        let vmm = self.vmm.clone().ok_or_else(|| lost("VMM"))?;
        let disks = self.record.disks.clone().ok_or_else(|| lost("disk"))?;
        let settings = &self.tools.settings;
        let file = self.dir().join(MEMORY);
        let layout = settings.memory.layout(vmm.version(), file.clone());
        match &layout {
            MemoryLayout::Private { .. } => self.tools.ports.memory.blank(&file, self.record.size.memory).await?,
            MemoryLayout::File { .. } => self.tools.ports.memory.own(&file, self.record.size.memory).await?,
            MemoryLayout::Shared | MemoryLayout::Anonymous => {}
        }
        let spec = VmSpec {
            vcpus: self.record.size.vcpus,
            memory_bytes: self.record.size.memory,
            layout: layout.clone(),
            max_vcpus: settings.max_vcpus.max(self.record.size.vcpus),
            kernel: settings.kernel.clone(),
            initramfs: settings.initramfs.clone(),
            cmdline: settings.cmdline.clone(),
            root: (disks.root.path, image_type(disks.root.format)),
            backed: disks.root.backed,
            seed: disks.seed,
            tap: net::TAP.to_owned(),
            mac: self.record.guest_mac().map(|byte| format!("{byte:02x}")).join(":"),
            serial: Files::new(self.dir()).serial(),
        };
        vmm.create(&VmConfig::for_sandbox(spec, vmm.version())).await?;
        Ok(Output::Configured(layout))
    }

    async fn boot(self, interrupted: oneshot::Receiver<()>) -> Result<Output, Failure> {
        let vmm = self.vmm.clone().ok_or_else(|| lost("VMM"))?;
        let patience = self.tools.settings.sandbox_start_timeout;
        tokio::select! {
            booted = timeout(patience, vmm.boot()) => match booted {
                Ok(booted) => booted.map(|()| Output::Nothing).map_err(Failure::from),
                Err(_) => Err(Failure {
                    code: ErrorCode::Timeout,
                    message: format!(
                        "timeout while starting: vm.boot did not answer within {} s (SANDBOX_START_TIMEOUT_SEC)",
                        patience.as_secs()
                    ),
                    certainty: Certainty::Unknown,
                }),
            },
            _ = interrupted => Err(overtaken()),
        }
    }

    async fn ready(self, interrupted: oneshot::Receiver<()>) -> Result<Output, Failure> {
        let vmm = self.vmm.clone().ok_or_else(|| lost("VMM"))?;
        let Some(patience) = self.tools.settings.daemon_start_timeout else { return Ok(Output::Version(None)) };
        let netns = self.netns.clone().ok_or_else(|| lost("namespace"))?;
        let failure = tokio::select! {
            ready = self.tools.ports.toolbox.wait_ready(&netns, patience) => match ready {
                Ok(version) => {
                    introduce(&self.tools, &self.record, netns);
                    return Ok(Output::Version(Some(version)));
                }
                Err(failure) => failure,
            },
            exit = vmm.exited() => Failure::new(
                ErrorCode::Internal,
                format!("the guest did not come up: {exit}"),
            ),
            line = vmm.panicked() => Failure::new(
                ErrorCode::Internal,
                format!("the guest did not come up: {}", Exit::GuestPanic { line }),
            ),
            _ = interrupted => return Err(overtaken()),
        };
        Err(self.with_last_words(failure).await)
    }

    async fn with_last_words(&self, mut failure: Failure) -> Failure {
        let words = tail::tail_of(Files::new(self.dir()).serial(), LAST_WORDS).await.unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        let words: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        match words.split_last() {
            Some((last, before)) => {
                let before = before.last().map(|line| format!("{line} | ")).unwrap_or_default();
                failure.message.push_str(&format!("; last serial output: {before}{last}"));
            }
            None => failure.message.push_str("; the guest wrote nothing to its serial console"),
        }
        failure
    }

    async fn commit(self) -> Result<Output, Failure> {
        if !matches!(self.op, Op::Replace(Rest::Paused) | Op::Recall) {
            self.tidy().await;
        }
        if let Some(netns) = self.netns.clone() {
            let open = OpenRoute { id: self.record.id.clone(), run: self.record.run, netns };
            self.tools.proxy.send(open).await.map_err(|_| lost("proxy"))?;
        }
        Ok(Output::Nothing)
    }

    async fn close_route(&self) {
        let close = CloseRoute { id: self.record.id.clone() };
        if self.tools.proxy.send(close).await.is_err() {
            warn!(sandbox = %self.record.id, "the proxy is gone; its routes went with it");
        }
    }

    async fn power_off(self, interrupted: oneshot::Receiver<()>) -> Result<Output, Failure> {
        self.close_route().await;
        let Some(vmm) = self.vmm.clone() else { return Ok(Output::Nothing) };
        // A paused guest hears nothing.
        vmm.resume().await?;
        vmm.power_button().await?;
        let patience = self.tools.settings.stop_timeout;
        tokio::select! {
            exit = timeout(patience, vmm.exited()) => match exit {
                Ok(_) => Ok(Output::Nothing),
                Err(_) => Err(Failure::new(
                    ErrorCode::Timeout,
                    format!("the guest did not power off within {} s (RUNNER_STOP_TIMEOUT_SEC)", patience.as_secs()),
                )),
            },
            _ = interrupted => Err(overtaken()),
        }
    }

    async fn end(self) -> Result<Output, Failure> {
        // The guest of a replaced VMM goes on under the same address.
        if !matches!(self.op, Op::Replace(_)) {
            self.close_route().await;
        }
        let sealed = self.seal().await;
        match &self.vmm {
            Some(vmm) => drop(vmm.end(if self.discards { DISCARD_GRACE } else { END_GRACE }).await?),
            None => {
                let launch =
                    Launch { sandbox: self.record.id.clone(), socket: self.socket(), dir: self.dir(), netns: None };
                self.tools.ports.hypervisor.clear(&launch).await?;
            }
        }
        Ok(sealed.map_or(Output::Nothing, Output::Stamped))
    }

    async fn unplug(self) -> Result<Output, Failure> {
        self.close_route().await;
        if let Some(plan) = self.network_plan() {
            self.tools.ports.network.remove(&plan).await?;
        }
        Ok(Output::Nothing)
    }
}

/// Gives the daemon its token; like the original nobody waits for it (PROTOCOL.md 9).
pub(super) fn introduce(tools: &Tools, record: &Record, netns: Namespace) {
    let Some(token) = record.spec.auth_token.clone() else { return };
    let (toolbox, id) = (tools.ports.toolbox.clone(), record.id.clone());
    actix::spawn(async move {
        if let Err(failure) = toolbox.init(&netns, &token).await {
            warn!(sandbox = %id, error = %failure, "the guest's daemon did not take its token");
        }
    });
}

pub(super) fn image_type(format: Format) -> ImageType {
    match format {
        Format::Raw => ImageType::Raw,
        Format::Qcow2 => ImageType::Qcow2,
    }
}

/// The API socket of a sandbox, `{CH_SOCKETS_PATH}/{id}.sock`.
pub(super) fn socket_path(tools: &Tools, record: &Record) -> PathBuf {
    tools.settings.sockets.join(format!("{}.sock", record.id))
}

/// Stores that the sandbox rests, or forgets it; returns what the store now holds. What cannot be
/// stored here is found again by the next start, which finishes the last intent that was stored.
pub(super) async fn settle(tools: Tools, rest: Rest, record: Record, saved: Option<Record>) -> Option<Record> {
    let store = &tools.ports.store;
    let result = match rest {
        Rest::Absent if saved.is_some() => stored(store.remove_sandbox(&record.id)).await.map(|()| None),
        Rest::Absent => Ok(None),
        _ if saved.as_ref() == Some(&record) => return saved,
        _ => stored(store.put_sandbox(&record)).await.map(|()| Some(record.clone())),
    };
    result.unwrap_or_else(|failure| {
        warn!(sandbox = %record.id, error = %failure, "the result could not be stored; a restart finishes it again");
        saved
    })
}

pub(super) fn overtaken() -> Failure {
    Failure::new(ErrorCode::Interrupted, "another request overtook this one")
}

/// A stage ran without what an earlier stage should have made: never by the table of stages.
pub(super) fn lost(what: &str) -> Failure {
    Failure {
        code: ErrorCode::Internal,
        message: format!("the sandbox has no {what} at this stage"),
        certainty: Certainty::NotDone,
    }
}
