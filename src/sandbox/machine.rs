//! The sandbox's state machine: total, synchronous, without I/O.
//!
//! An operation is a fixed row of stages. The actor performs one stage at a time and tells the
//! machine how it went; the machine answers with actions, in order. Requests of the same kind join
//! the operation under way; a stop or a destroy overtakes one that is being built up; what was begun
//! and cannot be finished is undone, and then everybody who asked is answered exactly once.

use crate::error::{ErrorCode, Failure};

/// A caller who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller(pub u64);

/// What can be asked of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Make it, and start it unless told otherwise. On an existing sandbox the same as
    /// [`Ask::Start`], as in the original (PROTOCOL.md 5, CREATE_SANDBOX).
    Create {
        /// False for the job's `skipStart`.
        start: bool,
    },
    /// Start it; already running is success.
    Start,
    /// Stop it; already stopped is success.
    Stop {
        /// Do not ask the guest, end the VMM at once.
        force: bool,
    },
    /// Remove it with its disk; not there is success.
    Destroy,
}

/// Where a sandbox rests when nothing is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing of it exists.
    Absent,
    /// Disk and record exist, no VMM, no network.
    Stopped,
    /// The VMM runs.
    Started,
    /// A tear-down failed: something may be left on the host. Stop and destroy try again.
    Broken,
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Being made.
    Create {
        /// Whether it is started as well.
        start: bool,
    },
    /// Being started.
    Start,
    /// Being stopped on request.
    Stop {
        /// Without asking the guest.
        force: bool,
    },
    /// Being removed on request.
    Destroy,
    /// A creation that failed is being removed.
    UndoCreate,
    /// A start that failed is being taken back.
    UndoStart,
    /// The VMM died by itself; its network is being removed.
    Clear,
}

/// One step on the host. The order inside an operation is fixed by [`Op::stages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Wait for a place among the few that may start at once.
    Gate,
    /// Root disk and seed.
    Disk,
    /// Namespace, links, addresses, rules.
    Network,
    /// Disk and network side by side.
    Provide,
    /// The VMM process.
    Launch,
    /// `vm.create`.
    Configure,
    /// `vm.boot`.
    Boot,
    /// The guest's toolbox answers.
    Ready,
    /// Store the result; only then is it true.
    Commit,
    /// Ask the guest to power off and wait for it.
    PowerOff,
    /// End the VMM process.
    End,
    /// Remove the network.
    Unplug,
    /// Remove disk and directory.
    Erase,
}

impl Stage {
    /// Name in logs, timings and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Gate => "gate",
            Stage::Disk => "disk",
            Stage::Network => "network",
            Stage::Provide => "provide",
            Stage::Launch => "launch",
            Stage::Configure => "vm.create",
            Stage::Boot => "vm.boot",
            Stage::Ready => "ready",
            Stage::Commit => "commit",
            Stage::PowerOff => "power-off",
            Stage::End => "end",
            Stage::Unplug => "unplug",
            Stage::Erase => "erase",
        }
    }
}

impl Op {
    /// The stages of this operation, in order.
    pub fn stages(self) -> &'static [Stage] {
        use Stage::{
            Boot, Commit, Configure, Disk, End, Erase, Gate, Launch, Network, PowerOff, Provide, Ready, Unplug,
        };
        match self {
            Op::Create { start: true } => &[Gate, Provide, Launch, Configure, Boot, Ready, Commit],
            Op::Create { start: false } => &[Gate, Disk, Commit],
            Op::Start => &[Gate, Network, Launch, Configure, Boot, Ready, Commit],
            Op::Stop { force: false } => &[PowerOff, End, Unplug],
            Op::Stop { force: true } | Op::UndoStart | Op::Clear => &[End, Unplug],
            Op::Destroy | Op::UndoCreate => &[End, Unplug, Erase],
        }
    }

    /// Whether this operation makes things (and must be undone when it fails).
    pub fn builds(self) -> bool {
        matches!(self, Op::Create { .. } | Op::Start)
    }

    fn rests_at(self) -> Rest {
        match self {
            Op::Create { start: true } | Op::Start => Rest::Started,
            Op::Create { start: false } | Op::Stop { .. } | Op::UndoStart | Op::Clear => Rest::Stopped,
            Op::Destroy | Op::UndoCreate => Rest::Absent,
        }
    }

    fn undone_by(self) -> Op {
        if matches!(self, Op::Create { .. }) { Op::UndoCreate } else { Op::UndoStart }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody asks.
    Asked(Caller, Ask),
    /// The stage under way is done.
    StageDone(Stage),
    /// The stage under way failed or was interrupted.
    StageFailed(Stage, Failure),
    /// The VMM's process has ended.
    VmmExited,
}

/// What to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Store the record if it changed, then perform the stage. When `must_save` is set, a failing
    /// store fails the stage; otherwise (tear-down, which frees space) it is only logged.
    Perform {
        /// The stage.
        stage: Stage,
        /// The intent must be on disk before the effect.
        must_save: bool,
    },
    /// Make the stage under way return early, if it is one that waits.
    Interrupt,
    /// Store that the sandbox rests (or forget it when it is absent).
    Settle(Rest),
    /// Answer these callers.
    Answer(Vec<Caller>, Result<(), Failure>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Next {
    ask: Ask,
    callers: Vec<Caller>,
    overtakes: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Work {
    op: Op,
    stage: Stage,
    callers: Vec<Caller>,
    fault: Option<Failure>,
    next: Option<Next>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Idle(Rest),
    Working(Work),
}

/// The machine of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    state: State,
    /// A complete root disk exists: what may rest as "stopped".
    disk: bool,
}

impl Machine {
    /// A machine at rest; `disk` tells whether a complete root disk exists.
    pub fn resting(rest: Rest, disk: bool) -> Self {
        Self { state: State::Idle(rest), disk }
    }

    /// Where it rests, or `None` while an operation is under way.
    pub fn rest(&self) -> Option<Rest> {
        match self.state {
            State::Idle(rest) => Some(rest),
            State::Working(_) => None,
        }
    }

    /// The operation and stage under way.
    pub fn work(&self) -> Option<(Op, Stage)> {
        match &self.state {
            State::Working(work) => Some((work.op, work.stage)),
            State::Idle(_) => None,
        }
    }

    /// Begins an operation that nobody waits for: what a restart finds unfinished.
    pub fn begin(&mut self, op: Op) -> Vec<Action> {
        let mut actions = Vec::new();
        self.start(op, Vec::new(), None, None, &mut actions);
        actions
    }

    /// Takes an event, changes state, and says what to do.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Asked(caller, ask) => self.asked(caller, ask, &mut actions),
            Event::StageDone(stage) => self.finished(stage, None, &mut actions),
            Event::StageFailed(stage, failure) => self.finished(stage, Some(failure), &mut actions),
            Event::VmmExited => {
                if self.rest() == Some(Rest::Started) {
                    self.start(Op::Clear, Vec::new(), None, None, &mut actions);
                }
            }
        }
        actions
    }

    fn asked(&mut self, caller: Caller, ask: Ask, actions: &mut Vec<Action>) {
        match &mut self.state {
            State::Idle(rest) => {
                let rest = *rest;
                self.asked_at_rest(rest, vec![caller], ask, actions);
            }
            State::Working(work) => work.asked(caller, ask, actions),
        }
    }

    fn asked_at_rest(&mut self, rest: Rest, callers: Vec<Caller>, ask: Ask, actions: &mut Vec<Action>) {
        let op = match (rest, ask) {
            (Rest::Absent, Ask::Create { start }) => Op::Create { start },
            (Rest::Absent, Ask::Start | Ask::Stop { .. }) => {
                return actions.push(Action::Answer(callers, Err(not_found())));
            }
            (Rest::Absent, Ask::Destroy)
            | (Rest::Stopped, Ask::Stop { .. } | Ask::Create { start: false })
            | (Rest::Started, Ask::Create { .. } | Ask::Start) => {
                return actions.push(Action::Answer(callers, Ok(())));
            }
            (Rest::Stopped, Ask::Create { start: true } | Ask::Start) => Op::Start,
            (Rest::Started, Ask::Stop { force }) => Op::Stop { force },
            (Rest::Broken, Ask::Stop { .. }) if self.disk => Op::Stop { force: true },
            // Without a disk there is nothing that could rest as "stopped".
            (Rest::Broken, Ask::Stop { .. }) => Op::Destroy,
            (_, Ask::Destroy) => Op::Destroy,
            (Rest::Broken, Ask::Create { .. } | Ask::Start) => {
                return actions.push(Action::Answer(callers, Err(broken())));
            }
        };
        self.start(op, callers, None, None, actions);
    }

    fn start(
        &mut self,
        op: Op,
        callers: Vec<Caller>,
        fault: Option<Failure>,
        next: Option<Next>,
        actions: &mut Vec<Action>,
    ) {
        let stage = op.stages()[0];
        self.state = State::Working(Work { op, stage, callers, fault, next });
        actions.push(Action::Perform { stage, must_save: op.builds() });
    }

    fn finished(&mut self, stage: Stage, failure: Option<Failure>, actions: &mut Vec<Action>) {
        let State::Working(work) = &mut self.state else { return };
        if work.stage != stage {
            return;
        }
        self.disk |= failure.is_none() && matches!(stage, Stage::Disk | Stage::Provide);
        if work.op.builds() && work.next.as_ref().is_some_and(|next| next.overtakes) {
            return self.give_way(actions);
        }
        match failure {
            Some(failure) if work.op.builds() => self.undo(failure, actions),
            // A guest that cannot be asked is ended without its consent.
            Some(_) if stage == Stage::PowerOff => self.advance(actions),
            Some(failure) => self.settle(Rest::Broken, Some(failure), actions),
            None => self.advance(actions),
        }
    }

    fn advance(&mut self, actions: &mut Vec<Action>) {
        let State::Working(work) = &mut self.state else { return };
        let stages = work.op.stages();
        let at = stages.iter().position(|&stage| stage == work.stage).unwrap_or(stages.len());
        match stages.get(at + 1) {
            Some(&stage) => {
                work.stage = stage;
                self.disk &= stage != Stage::Erase;
                actions.push(Action::Perform { stage, must_save: work.op.builds() });
            }
            None => {
                let rest = work.op.rests_at();
                self.settle(rest, None, actions);
            }
        }
    }

    fn undo(&mut self, failure: Failure, actions: &mut Vec<Action>) {
        let State::Working(work) = &mut self.state else { return };
        let (op, callers, next) = (work.op.undone_by(), std::mem::take(&mut work.callers), work.next.take());
        self.start(op, callers, Some(failure), next, actions);
    }

    /// A build-up that a stop or destroy has overtaken: its callers learn so, and the tear-down
    /// starts from wherever it was.
    fn give_way(&mut self, actions: &mut Vec<Action>) {
        let State::Working(work) = &mut self.state else { return };
        let Some(next) = work.next.take() else { return };
        let callers = std::mem::take(&mut work.callers);
        actions.push(Action::Answer(callers, Err(interrupted(next.ask))));
        match next.ask {
            Ask::Destroy => self.start(Op::Destroy, next.callers, None, None, actions),
            _ if !self.disk => {
                self.start(Op::UndoCreate, Vec::new(), None, Some(Next { overtakes: false, ..next }), actions);
            }
            _ => self.start(Op::Stop { force: true }, next.callers, None, None, actions),
        }
    }

    fn settle(&mut self, rest: Rest, failure: Option<Failure>, actions: &mut Vec<Action>) {
        let State::Working(work) = std::mem::replace(&mut self.state, State::Idle(rest)) else { return };
        actions.push(Action::Settle(rest));
        let result = match (work.fault, failure) {
            (Some(fault), Some(failure)) => {
                Err(Failure { message: format!("{fault}; and taking it back failed: {failure}"), ..fault })
            }
            (Some(failure), None) | (None, Some(failure)) => Err(failure),
            (None, None) => Ok(()),
        };
        if !work.callers.is_empty() {
            actions.push(Action::Answer(work.callers, result));
        }
        if let Some(next) = work.next {
            self.asked_at_rest(rest, next.callers, next.ask, actions);
        }
    }
}

impl Work {
    fn asked(&mut self, caller: Caller, ask: Ask, actions: &mut Vec<Action>) {
        if self.next.is_none() && self.joins(ask) {
            self.callers.push(caller);
            if ask == (Ask::Stop { force: true }) && self.stage == Stage::PowerOff {
                actions.push(Action::Interrupt);
            }
            return;
        }
        let tears_down = matches!(ask, Ask::Stop { .. } | Ask::Destroy);
        let overtakes = tears_down && self.op.builds();
        match &mut self.next {
            Some(next) if next.ask == ask => next.callers.push(caller),
            Some(next) if ask == Ask::Destroy => {
                let displaced = std::mem::replace(&mut next.callers, vec![caller]);
                next.ask = ask;
                next.overtakes |= overtakes;
                actions.push(Action::Answer(displaced, Err(interrupted(ask))));
            }
            Some(_) => actions.push(Action::Answer(vec![caller], Err(busy(self.op)))),
            None => self.next = Some(Next { ask, callers: vec![caller], overtakes }),
        }
        let waits_for_guest = self.stage == Stage::PowerOff && ask == Ask::Destroy;
        if overtakes || waits_for_guest {
            actions.push(Action::Interrupt);
        }
    }

    fn joins(&self, ask: Ask) -> bool {
        matches!(
            (self.op, ask),
            (Op::Create { start: true } | Op::Start, Ask::Create { .. } | Ask::Start)
                | (Op::Create { start: false }, Ask::Create { start: false })
                | (Op::Stop { .. }, Ask::Stop { .. })
                | (Op::Destroy, Ask::Destroy)
        )
    }
}

fn not_found() -> Failure {
    Failure::new(ErrorCode::NotFound, "the sandbox does not exist on this host")
}

fn broken() -> Failure {
    Failure::new(
        ErrorCode::Conflict,
        "an earlier tear-down of the sandbox failed and something may be left on the host; stop or destroy it first",
    )
}

fn interrupted(by: Ask) -> Failure {
    let by = if by == Ask::Destroy { "destroy" } else { "stop" };
    Failure::new(ErrorCode::Interrupted, format!("a {by} request overtook this one"))
}

fn busy(op: Op) -> Failure {
    let doing = match op {
        Op::Create { .. } => "being created",
        Op::Start => "being started",
        Op::Stop { .. } | Op::UndoStart | Op::Clear => "being stopped",
        Op::Destroy | Op::UndoCreate => "being removed",
    };
    Failure::new(
        ErrorCode::Conflict,
        format!("the sandbox is {doing} and another request already waits; try again when it has settled"),
    )
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
