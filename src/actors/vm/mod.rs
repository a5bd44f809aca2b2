//! One sandbox: its machine, its record, and the handles on what it owns. Events go to the machine,
//! its actions are carried out in order, one at a time.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Recipient, WrapFuture};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{info, warn};

use super::ProxyActor;
use crate::error::{ErrorCode, Failure};
use crate::fork::Ticket;
use crate::fork::plan::MemorySetting;
use crate::hypervisor::{Exit, Vmm};
use crate::messages::supervisor::{ChildEnded, Order};
use crate::messages::vm::{Blueprint, Command, GetRecord, Reply, Resize, Source};
use crate::net::{Namespace, SlotPool};
use crate::ports::{Ports, unix_millis};
use crate::sandbox::record::Begin;
use crate::sandbox::restart::Restarts;
use crate::sandbox::view::StageTime;
use crate::sandbox::{Action, Ask, Caller, Event, Machine, Make, Op, Phase, Record, Rest, Stage, StopMode, Views};

pub mod adopt;
mod copy;
mod deadline;
mod keep;
mod merge;
mod perform;
mod resize;
mod restart;
mod revive;
mod seal;
mod stock;
mod view;

pub use adopt::Adopted;
use perform::Done;

/// Whether a copied guest must be given an identity of its own (`RUNNER_FORK_IDENTITY`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdentityPolicy {
    /// A copy whose guest does not confirm it fails.
    Require,
    /// It is asked; whether it has confirmed is shown.
    #[default]
    Request,
    /// It is not asked.
    Off,
}

/// What every sandbox's actor is told once.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of the API sockets.
    pub sockets: PathBuf,
    /// Kernel for direct boot.
    pub kernel: PathBuf,
    /// Initial RAM disk, if any.
    pub initramfs: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// How long the guest's toolbox may take; `None`: the guest has none.
    pub daemon_start_timeout: Option<Duration>,
    /// How long `vm.boot` may take.
    pub sandbox_start_timeout: Duration,
    /// How long a guest may take to power off.
    pub stop_timeout: Duration,
    /// How a sandbox is stopped when nobody says how.
    pub stop_mode: StopMode,
    /// What guest memory is made of.
    pub memory: MemorySetting,
    /// Identity of copied guests.
    pub identity: IdentityPolicy,
    /// Up to so many virtual CPUs can be added while a VM runs.
    pub max_vcpus: u32,
    /// Whether sandboxes that end unasked are started again.
    pub restart: crate::sandbox::restart::Settings,
}

/// What an actor of a sandbox works with; cheap to clone.
#[derive(Clone)]
pub struct Tools {
    /// Effects.
    pub ports: Ports,
    /// Settings.
    pub settings: Rc<Settings>,
    /// Where views are published.
    pub views: Views,
    /// Network slots of the host.
    pub slots: Rc<RefCell<SlotPool>>,
    /// Places for sandboxes that start at the same time.
    pub gate: Arc<Semaphore>,
    /// Owner of the routes.
    pub proxy: Addr<ProxyActor>,
    /// Who is told of the actor's end.
    pub supervisor: Recipient<ChildEnded>,
    /// Who admits the starts that sandboxes are owed.
    pub orders: Recipient<Order>,
}

/// The actor of one sandbox.
pub struct VmActor {
    tools: Tools,
    incarnation: u64,
    machine: Machine,
    record: Record,
    saved: Option<Record>,
    vmm: Option<Rc<dyn Vmm>>,
    netns: Option<Namespace>,
    permit: Option<OwnedSemaphorePermit>,
    exit: Option<Exit>,
    /// What is being kept of an end.
    traces: Option<restart::Traces>,
    /// The wait for a start that is owed.
    restart: Option<actix::SpawnHandle>,
    /// What was owed before the commit under way.
    owed: Option<Restarts>,
    callers: HashMap<Caller, Reply>,
    last_caller: u64,
    /// What the next creation makes; the last request's wins.
    blueprint: Option<Box<Blueprint>>,
    /// What the present creation is copied from.
    source: Option<Source>,
    /// Who waits for the captures that were asked for.
    tickets: HashMap<Caller, Ticket>,
    /// Why the next stop does not keep the memory.
    note: Option<String>,
    /// What the resizes that were asked for shall change.
    resizes: HashMap<Caller, Resize>,
    /// The layers of its disk are being merged.
    merging: bool,
    /// A layer that its disk can be put on.
    merged: Option<merge::Merged>,
    /// Rises with every VMM that is launched or ended: the end of an old one is no news.
    launches: u64,
    /// Since when the source of a capture is paused.
    suspended: Option<tokio::time::Instant>,
    /// How long the last capture paused it, in microseconds.
    last_pause: Option<u64>,
    queue: VecDeque<Action>,
    performing: bool,
    interrupt: Option<oneshot::Sender<()>>,
    interrupt_next: bool,
    timings: Vec<StageTime>,
    first: Vec<Action>,
    begun: bool,
    settled: bool,
    /// What the proxy was told last: whether requests wait.
    held: Cell<bool>,
}

impl VmActor {
    /// The actor of a sandbox that does not exist yet.
    pub fn fresh(tools: Tools, incarnation: u64, record: Record) -> Self {
        Self::with(tools, incarnation, record, None, Machine::resting(Rest::Absent, false), Adopted::default())
    }

    /// The actor of a stored sandbox, given what the host shows of it.
    pub fn stored(tools: Tools, incarnation: u64, record: Record, mut adopted: Adopted) -> Self {
        let end = adopted.end.take();
        let saved = Some(record.clone());
        let (machine, first) = adopt::machine(&record, &adopted);
        let trouble = adopted.trouble.take();
        let mut actor = Self::with(tools, incarnation, record, saved, machine, adopted);
        actor.begun = true;
        actor.first = first;
        actor.judge(trouble, end);
        actor
    }

    /// A stored sandbox that could not be looked at before has been found, alive or not.
    fn found(&mut self, record: Record, mut adopted: Adopted, ctx: &mut Context<Self>) {
        let (machine, first) = adopt::machine(&record, &adopted);
        (self.record, self.machine) = (record, machine);
        (self.vmm, self.netns) = (adopted.vmm.take(), adopted.netns.take());
        self.judge(None, adopted.end.take());
        let (tools, record) = (self.tools.clone(), self.record.clone());
        let found = Adopted { vmm: self.vmm.clone(), netns: self.netns.clone(), ..Adopted::default() };
        ctx.spawn(async move { adopt::open_route(&tools, &record, &found).await }.into_actor(self));
        self.watch(ctx);
        self.apply(first, ctx);
        self.await_restart(ctx);
    }

    /// What follows from how a stored sandbox was found.
    fn judge(&mut self, trouble: Option<String>, end: Option<Exit>) {
        match trouble {
            Some(reason) => self.record.error = Some(reason),
            None if self.record.phase == Phase::Replacing => self.record.restarts.replace(unix_millis()),
            None => {}
        }
        if let Some(exit) = end {
            self.found_ended(&exit);
        }
        self.reconsider();
    }

    fn with(
        tools: Tools,
        incarnation: u64,
        record: Record,
        saved: Option<Record>,
        machine: Machine,
        adopted: Adopted,
    ) -> Self {
        Self {
            tools,
            incarnation,
            machine,
            record,
            saved,
            vmm: adopted.vmm,
            netns: adopted.netns,
            permit: None,
            exit: None,
            traces: None,
            restart: None,
            owed: None,
            callers: HashMap::new(),
            last_caller: 0,
            blueprint: None,
            source: None,
            tickets: HashMap::new(),
            note: None,
            resizes: HashMap::new(),
            merging: false,
            merged: None,
            launches: 0,
            suspended: None,
            last_pause: None,
            queue: VecDeque::new(),
            performing: false,
            interrupt: None,
            interrupt_next: false,
            timings: Vec::new(),
            first: Vec::new(),
            begun: false,
            settled: false,
            held: Cell::new(false),
        }
    }

    fn apply(&mut self, actions: Vec<Action>, ctx: &mut Context<Self>) {
        for action in actions {
            match action {
                Action::Interrupt => self.interrupt(),
                action => self.queue.push_back(action),
            }
        }
        if self.machine.work().is_none_or(|(op, _)| !op.holds_place()) {
            self.permit = None;
        }
        self.pump(ctx);
        self.publish();
    }

    /// Carries out queued actions until one of them takes time.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        while !self.performing {
            match self.queue.pop_front() {
                Some(Action::Answer(callers, result)) => self.answer(&callers, &result),
                Some(Action::Settle(rest)) => self.settle(rest, ctx),
                Some(Action::Perform { stage, must_save }) => self.perform(stage, must_save, ctx),
                Some(Action::Interrupt) => self.interrupt(),
                None => return self.end_if_absent(ctx),
            }
        }
    }

    /// The last thing of the sandbox is gone and everybody is answered: the actor is done. A fresh
    /// actor is absent too, until its first command arrives.
    fn end_if_absent(&mut self, ctx: &mut Context<Self>) {
        if self.machine.rest() == Some(Rest::Absent) && self.begun {
            self.settled = true;
            ctx.stop();
        }
    }

    /// Makes the stage under way return, or the next one if a result is just being stored.
    fn interrupt(&mut self) {
        self.interrupt_next = self.interrupt.take().is_none();
    }

    fn answer(&mut self, callers: &[Caller], result: &Result<(), Failure>) {
        let view = (self.machine.rest() != Some(Rest::Absent)).then(|| Arc::new(self.view()));
        for caller in callers {
            self.tickets.remove(caller);
            self.resizes.remove(caller);
            if let Some(reply) = self.callers.remove(caller) {
                // A caller that has gone away does not want the answer.
                let _ = reply.send(result.clone().map(|()| view.clone()));
            }
        }
    }

    fn perform(&mut self, stage: Stage, must_save: bool, ctx: &mut Context<Self>) {
        self.prepare(stage);
        let (interrupt, interrupted) = oneshot::channel();
        self.interrupt = Some(interrupt).filter(|_| !std::mem::take(&mut self.interrupt_next));
        self.performing = true;
        let job = perform::Job {
            tools: self.tools.clone(),
            record: self.record.clone(),
            save: self.needs_save(stage).then_some(must_save),
            // The namespace is only let go of by the kernel when no handle on it is left.
            netns: if stage == Stage::Unplug {
                drop(self.netns.take());
                None
            } else {
                self.netns.clone()
            },
            vmm: self.vmm.clone(),
            stage,
            op: self.machine.work().map_or(Op::Clear, |(op, _)| op),
            source: self.source.clone(),
            ticket: self.machine.callers().iter().find_map(|caller| self.tickets.get(caller).cloned()),
            resize: self.machine.callers().iter().find_map(|caller| self.resizes.get(caller).copied()),
            plan: self.capture_plan(),
            merged: self.merged.clone(),
            discards: self.machine.work().is_some_and(|(op, _)| op.stages().contains(&Stage::Erase)),
            traces: if matches!(stage, Stage::Launch | Stage::Erase) { self.traces.take() } else { None },
        };
        ctx.spawn(job.run(interrupted).into_actor(self).map(Self::performed));
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.machine.set_replaces(self.capture_plan().is_some_and(|plan| plan.replace));
        self.machine.step(event)
    }

    fn prepare(&mut self, stage: Stage) {
        let op = self.machine.work().map(|(op, _)| op);
        if op.is_some_and(|op| op.stages().first() == Some(&stage)) {
            self.begin();
        }
        match stage {
            Stage::Network | Stage::Provide | Stage::Room if self.record.slot.is_none() => {
                self.record.slot = self.tools.slots.borrow_mut().take();
            }
            Stage::Launch => {
                // The guest of a replaced VMM goes on, and so do the connections to it.
                if !matches!(op, Some(Op::Replace(_))) {
                    self.record.run += 1;
                }
                self.launches += 1;
                self.exit = None;
            }
            // From here on the memory on disk is older than the disk, or about to be replaced.
            Stage::Suspend | Stage::Wake | Stage::Configure => self.record.checkpoint = None,
            // So it is where a paused guest runs on to hear that it shall power off.
            Stage::PowerOff => (self.record.checkpoint, self.record.error) = (None, None),
            // What is stored from here on must not promise a disk.
            Stage::Erase => (self.record.disks, self.record.checkpoint) = (None, None),
            // The start that was owed is made.
            Stage::Commit => {
                self.owed = Some(self.record.restarts.clone());
                self.record.restarts.started();
            }
            // It ends because somebody asked for it.
            Stage::End if matches!(op, Some(Op::Stop(_))) => self.record.error = None,
            _ => {}
        }
        if let Some(phase) = Phase::of(&self.machine)
            && phase != self.record.phase
            && stage != Stage::Gate
            // What was paused on request stays so if this is cut off.
            && !(stage == Stage::Suspend && self.record.phase == Phase::Paused)
        {
            self.record.phase = phase;
            self.record.since = unix_millis();
        }
    }

    /// A new operation builds from the newest request: what this actor made before may be gone.
    fn begin(&mut self) {
        let Some((op, _)) = self.machine.work() else { return };
        match (op, self.note.take()) {
            (Op::Stop(_), Some(note)) => self.record.begin.note = Some(note),
            (op, note) => self.note = note.filter(|_| !op.builds()),
        }
        if op.builds() && !matches!(op, Op::Rescue { .. }) {
            self.timings.clear();
            self.record.error = None;
            self.record.begin = Begin::default();
        }
        if let (Op::Create(_), Some(blueprint)) = (op, self.blueprint.take()) {
            let Blueprint { spec, size, source, note } = *blueprint;
            let origin = source.as_ref().map(|source| source.origin.clone());
            let begin = Begin { note, ..Begin::default() };
            self.record = Record { run: self.record.run, origin, begin, ..Record::new(spec, size, unix_millis()) };
            self.source = source;
        }
    }

    /// Nothing has happened before the gate, and the process is found by its socket if the runner
    /// dies right after the launch; every other change is stored before the next effect.
    fn needs_save(&self, stage: Stage) -> bool {
        let nothing_yet = stage == Stage::Gate
            && !matches!(self.machine.work(), Some((Op::Create(Make::Copy | Make::Revive | Make::Warm), _)));
        // What came before the launch of a VMM that takes over is part of what it goes on from.
        let found_by_socket = stage == Stage::Launch && !matches!(self.machine.work(), Some((Op::Replace(_), _)));
        !nothing_yet && !found_by_socket && self.saved.as_ref() != Some(&self.record)
    }

    fn performed(done: Done, act: &mut Self, ctx: &mut Context<Self>) {
        act.performing = false;
        act.interrupt = None;
        if let Some(saved) = done.saved {
            act.saved = Some(saved);
        }
        act.timings.push(StageTime { stage: done.stage.name().to_owned(), micros: done.micros });
        let result = match (done.result, done.stage, act.exit.take()) {
            // It died after it was ready and before anybody was told: that is no success.
            (Ok(_), Stage::Wake | Stage::Ready | Stage::Identify | Stage::Commit, Some(exit)) => {
                let failure = Failure::new(ErrorCode::Internal, format!("the guest did not stay up: {exit}"));
                act.exit = Some(exit);
                Err(failure)
            }
            (result, _, exit) => {
                act.exit = exit;
                result
            }
        };
        let event = match result {
            Ok(output) => {
                act.keep(done.stage, output, ctx);
                info!(sandbox = %act.record.id, stage = done.stage.name(), micros = done.micros, "stage done");
                Event::StageDone(done.stage)
            }
            Err(failure) => {
                warn!(sandbox = %act.record.id, stage = done.stage.name(), micros = done.micros, error = %failure, "stage failed");
                // It was not made after all.
                if let (Stage::Commit, Some(owed)) = (done.stage, act.owed.take()) {
                    act.record.restarts = owed;
                }
                // A guest that had to be forced and a request that was overtaken are nobody's fault.
                act.note_failure(done.stage, &failure);
                act.note_failed_start(done.stage, &failure);
                Event::StageFailed(done.stage, failure)
            }
        };
        let replacing = matches!(act.machine.work(), Some((Op::Replace(_), _)));
        let actions = act.step(event);
        if replacing && matches!(act.machine.work(), Some((Op::UndoStart, _))) {
            // Stored with the first step of that, so that a crash does not leave it stopped.
            act.record.restarts.replace(unix_millis());
        }
        act.apply(actions, ctx);
    }

    fn watch(&self, ctx: &mut Context<Self>) {
        if let Some(vmm) = self.vmm.clone() {
            let launch = self.launches;
            // A guest whose kernel has panicked is as dead as its VMM, which is ended then.
            let exited = async move {
                tokio::select! {
                    biased;
                    exit = vmm.exited() => exit,
                    line = vmm.panicked() => Exit::GuestPanic { line },
                }
            };
            ctx.spawn(exited.into_actor(self).map(move |exit, act, ctx| {
                if act.launches == launch {
                    act.exit = Some(exit);
                    act.notice_exit(ctx);
                }
            }));
        }
    }

    /// A VMM that ends while nobody asked for it: seen at rest at once, otherwise when the operation
    /// under way has settled.
    fn notice_exit(&mut self, ctx: &mut Context<Self>) {
        if !self.machine.rest().is_some_and(Rest::lives) || self.performing {
            return;
        }
        if let Some(exit) = self.exit.take() {
            self.note_end(&exit);
            let actions = self.step(Event::VmmExited);
            self.apply(actions, ctx);
        }
    }

    fn settle(&mut self, rest: Rest, ctx: &mut Context<Self>) {
        match Phase::at(rest) {
            Some(phase) if phase != self.record.phase => {
                self.record.phase = phase;
                self.record.since = unix_millis();
            }
            _ => {}
        }
        if rest == Rest::Broken {
            self.restart_is_off();
        }
        self.performing = true;
        let job = perform::settle(self.tools.clone(), rest, self.record.clone(), self.saved.clone());
        ctx.spawn(job.into_actor(self).map(|saved, act, ctx| {
            act.performing = false;
            act.saved = saved;
            act.apply(Vec::new(), ctx);
            act.notice_exit(ctx);
            act.await_restart(ctx);
            act.merge(ctx);
        }));
    }
}

impl Actor for VmActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let first = std::mem::take(&mut self.first);
        self.look_again_later(ctx);
        self.watch(ctx);
        self.apply(first, ctx);
        self.await_restart(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        // Runs after a panic as well: the supervisor then rebuilds this sandbox from the store.
        let ended = ChildEnded { id: self.record.id.clone(), incarnation: self.incarnation, settled: self.settled };
        self.tools.supervisor.do_send(ended);
    }
}

impl Handler<Command> for VmActor {
    type Result = ();

    fn handle(&mut self, command: Command, ctx: &mut Self::Context) {
        self.begun = true;
        self.last_caller += 1;
        let caller = Caller(self.last_caller);
        self.callers.insert(caller, command.reply);
        let extras = command.extras;
        self.blueprint = extras.blueprint.or(self.blueprint.take());
        self.tickets.extend(extras.ticket.map(|ticket| (caller, ticket)));
        self.resizes.extend(extras.resize.map(|resize| (caller, resize)));
        self.note = extras.note.or(self.note.take());
        if let Some(token) = extras.auth_token {
            self.record.spec.auth_token = Some(token);
            if self.machine.rest() == Some(Rest::Started)
                && let Some(netns) = self.netns.clone()
            {
                perform::introduce(&self.tools, &self.record, netns);
            }
        }
        let ask = match command.ask {
            Ask::Stop(StopMode::Usual) => Ask::Stop(self.tools.settings.stop_mode),
            ask => ask,
        };
        let actions = if extras.owed { self.start_owed(caller) } else { self.asked(caller, ask, ctx) };
        self.apply(actions, ctx);
    }
}

impl Handler<GetRecord> for VmActor {
    type Result = actix::MessageResult<GetRecord>;

    fn handle(&mut self, _: GetRecord, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(Box::new(self.record.clone()))
    }
}
