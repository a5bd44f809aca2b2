//! The sandbox's state machine: total, synchronous, without I/O.
//!
//! An operation is a fixed row of stages. The actor performs one stage at a time and tells the
//! machine how it went; the machine answers with actions, in order. Requests of the same kind join
//! the operation under way; a stop or a destroy overtakes one that is being built up; what was begun
//! and cannot be finished is undone, and then everybody who asked is answered exactly once.

use super::op::{Ask, Make, Op, Rest, Stage, StopMode};
use crate::error::{ErrorCode, Failure};

/// A caller who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller(pub u64);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody asks.
    Asked(Caller, Ask),
    /// The stage under way is done.
    StageDone(Stage),
    /// The stage under way failed or was interrupted.
    StageFailed(Stage, Failure),
    /// The VMM's process has ended, or its guest is as good as ended.
    VmmExited,
    /// A start is owed, and the pause before it is over.
    Restart,
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
    /// Where it rested before: what failed without changing anything rests there again.
    home: Rest,
    callers: Vec<Caller>,
    fault: Option<Failure>,
    next: Option<Next>,
    /// What is begun by itself when this is done, unless somebody has asked for the end meanwhile.
    then: Option<Ask>,
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
    /// A checkpoint exists that was not used: what the next start goes on from.
    checkpoint: bool,
    /// A capture of the VM has to end its VMM, and a new one goes on from the same point.
    replaces: bool,
    /// The start that it is owed leaves it paused.
    recalls: bool,
    /// It rests as "stopped" for the time being only: a stop has something to end even there.
    unsettled: bool,
}

impl Machine {
    /// A machine at rest; `disk` tells whether a complete root disk exists.
    pub fn resting(rest: Rest, disk: bool) -> Self {
        Self { state: State::Idle(rest), disk, checkpoint: false, replaces: false, recalls: false, unsettled: false }
    }

    /// The same with a checkpoint that was not used yet.
    #[must_use]
    pub fn with_checkpoint(self, checkpoint: bool) -> Self {
        Self { checkpoint, ..self }
    }

    /// Says whether a capture that begins from now on has to replace the VMM: that of a VM may change with each start.
    pub fn set_replaces(&mut self, replaces: bool) {
        self.replaces = replaces;
    }

    /// Says whether the start that it is owed leaves it paused.
    pub fn set_recalls(&mut self, recalls: bool) {
        self.recalls = recalls;
    }

    /// Says whether it would be started by itself from where it rests, or rests there as an error.
    pub fn set_unsettled(&mut self, unsettled: bool) {
        self.unsettled = unsettled;
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

    /// Who waits for the operation under way, the first one first.
    pub fn callers(&self) -> &[Caller] {
        match &self.state {
            State::Working(work) => &work.callers,
            State::Idle(_) => &[],
        }
    }

    /// Begins an operation that nobody waits for: what a restart finds unfinished. `then` is asked when it is done.
    pub fn begin(&mut self, op: Op, then: Option<Ask>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.start(op, Vec::new(), None, None, &mut actions);
        if let State::Working(work) = &mut self.state {
            work.then = then;
        }
        actions
    }

    /// Takes an event, changes state, and says what to do.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Asked(caller, ask) => self.asked(caller, ask, &mut actions),
            Event::StageDone(stage) => self.finished(stage, None, &mut actions),
            Event::StageFailed(stage, failure) => self.finished(stage, Some(failure), &mut actions),
            Event::Restart => {
                if self.rest() == Some(Rest::Stopped) {
                    let ask = if self.recalls { Ask::Recall } else { Ask::Start };
                    self.asked_at_rest(Rest::Stopped, Vec::new(), ask, &mut actions);
                }
            }
            Event::VmmExited => {
                if self.rest().is_some_and(Rest::lives) {
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
            (_, Ask::Destroy) if rest != Rest::Absent => Op::Destroy,
            // That it is not started again must be stored before the answer.
            (Rest::Stopped, Ask::Stop(_)) if self.unsettled => Op::Stop(StopMode::Kill),
            (Rest::Absent, Ask::Create(make)) => Op::Create(make),
            (Rest::Absent, Ask::Destroy)
            | (Rest::Stopped, Ask::Stop(_) | Ask::Create(Make::Idle))
            | (Rest::Started, Ask::Create(_) | Ask::Start | Ask::Boot)
            | (Rest::Paused, Ask::Pause)
            | (Rest::Started | Rest::Paused, Ask::Recall) => {
                return self.answer(callers, Ok(()), actions);
            }
            (Rest::Absent, _) => return self.answer(callers, Err(not_found()), actions),
            (Rest::Stopped, Ask::Recall) if self.checkpoint => Op::Recall,
            (Rest::Stopped, Ask::Create(_) | Ask::Start | Ask::Recall) => Op::Start { warm: self.checkpoint },
            (Rest::Stopped, Ask::Boot) => Op::Start { warm: false },
            (Rest::Stopped, Ask::Pause) => return self.answer(callers, Err(not_running()), actions),
            (Rest::Started, Ask::Pause) => Op::Pause,
            (Rest::Paused, Ask::Create(_) | Ask::Start | Ask::Boot) => Op::Resume,
            (Rest::Started | Rest::Paused, Ask::Stop(mode)) => Op::Stop(mode),
            (Rest::Started | Rest::Paused, Ask::Capture) if self.replaces => Op::Replace(rest),
            (Rest::Started | Rest::Paused | Rest::Stopped, Ask::Capture) => Op::Capture(rest),
            (Rest::Started | Rest::Paused | Rest::Stopped, Ask::Resize) => Op::Resize(rest),
            (Rest::Unknown, Ask::Stop(_)) => Op::Stop(StopMode::Kill),
            (Rest::Unknown, _) => return self.answer(callers, Err(unknown()), actions),
            (Rest::Broken, Ask::Stop(_)) if self.disk => Op::Stop(StopMode::Kill),
            // Without a disk there is nothing that could rest as "stopped".
            (Rest::Broken, Ask::Stop(_)) => Op::Destroy,
            (Rest::Broken, _) => return self.answer(callers, Err(broken()), actions),
            (_, Ask::Destroy) => Op::Destroy,
        };
        self.start(op, callers, None, None, actions);
    }

    fn answer(&self, callers: Vec<Caller>, result: Result<(), Failure>, actions: &mut Vec<Action>) {
        if !callers.is_empty() {
            actions.push(Action::Answer(callers, result));
        }
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
        let (home, then) = match &self.state {
            State::Idle(rest) => (*rest, None),
            State::Working(work) => (work.home, work.then),
        };
        self.state = State::Working(Work { op, stage, home, callers, fault, next, then });
        self.consume(stage);
        actions.push(Action::Perform { stage, must_save: op.must_save() });
    }

    fn finished(&mut self, stage: Stage, failure: Option<Failure>, actions: &mut Vec<Action>) {
        let State::Working(work) = &mut self.state else { return };
        if work.stage != stage {
            return;
        }
        if failure.is_none() {
            self.disk |= matches!(stage, Stage::Disk | Stage::Provide | Stage::Graft);
            self.checkpoint |= stage == Stage::Suspend;
        }
        if work.op.builds() && work.next.as_ref().is_some_and(|next| next.overtakes) {
            return self.give_way(actions);
        }
        match (work.op, failure) {
            (_, None) => self.advance(actions),
            // The reason stays with the sandbox, and its disk is as good as after a power failure.
            (Op::Start { warm: true }, Some(_)) if stage == Stage::Restore => {
                self.turn_into(Op::Rescue { create: false }, actions);
            }
            (Op::Create(Make::Warm), Some(_)) if stage == Stage::Restore => {
                self.turn_into(Op::Rescue { create: true }, actions);
            }
            (op, Some(failure)) if op.builds() => self.undo(failure, actions),
            // A guest that cannot be asked is ended without its consent.
            (_, Some(_)) if stage == Stage::PowerOff => self.advance(actions),
            // What these stages began they have taken back themselves.
            (_, Some(failure))
                if matches!(
                    stage,
                    Stage::Gate | Stage::Suspend | Stage::Pause | Stage::Capture | Stage::Resize | Stage::Wake
                ) && !matches!(work.op, Op::Replace(_) if stage == Stage::Wake) =>
            {
                let home = work.home;
                self.settle(home, Some(failure), actions);
            }
            // Its VMM has ended, its checkpoint is there: it is started from that, whatever becomes of the caller.
            (Op::Replace(rest), Some(failure)) if stage != Stage::End => {
                work.then = Some(if rest == Rest::Paused { Ask::Recall } else { Ask::Start });
                self.undo(failure, actions);
            }
            (_, Some(failure)) => self.settle(Rest::Broken, Some(failure), actions),
        }
    }

    /// What uses up the checkpoint does so from the moment it is begun.
    fn consume(&mut self, stage: Stage) {
        self.checkpoint &=
            !matches!(stage, Stage::Suspend | Stage::Wake | Stage::Configure | Stage::PowerOff | Stage::Erase);
        self.disk &= stage != Stage::Erase;
    }

    fn advance(&mut self, actions: &mut Vec<Action>) {
        let State::Working(work) = &mut self.state else { return };
        let stages = work.op.stages();
        let at = stages.iter().position(|&stage| stage == work.stage).unwrap_or(stages.len());
        match stages.get(at + 1) {
            Some(&stage) => {
                work.stage = stage;
                let must_save = work.op.must_save();
                self.consume(stage);
                actions.push(Action::Perform { stage, must_save });
            }
            None => {
                let rest = work.op.rests_at();
                self.settle(rest, None, actions);
            }
        }
    }

    /// The operation goes on as another one, for the same callers.
    fn turn_into(&mut self, op: Op, actions: &mut Vec<Action>) {
        let State::Working(work) = &mut self.state else { return };
        let (callers, next) = (std::mem::take(&mut work.callers), work.next.take());
        self.start(op, callers, None, next, actions);
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
        work.then = None;
        let callers = std::mem::take(&mut work.callers);
        actions.push(Action::Answer(callers, Err(interrupted(next.ask))));
        match next.ask {
            Ask::Destroy => self.start(Op::Destroy, next.callers, None, None, actions),
            _ if !self.disk => {
                self.start(Op::UndoCreate, Vec::new(), None, Some(Next { overtakes: false, ..next }), actions);
            }
            _ => self.start(Op::Stop(StopMode::Kill), next.callers, None, None, actions),
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
        self.answer(work.callers, result, actions);
        let next = match (work.then, work.next) {
            (Some(then), next) if !next.as_ref().is_some_and(|next| next.ask.tears_down()) => {
                self.asked_at_rest(rest, Vec::new(), then, actions);
                match &mut self.state {
                    State::Working(begun) => {
                        begun.next = next;
                        return;
                    }
                    State::Idle(_) => next,
                }
            }
            (_, next) => next,
        };
        if let Some(next) = next {
            self.asked_at_rest(rest, next.callers, next.ask, actions);
        }
    }
}

impl Work {
    fn asked(&mut self, caller: Caller, ask: Ask, actions: &mut Vec<Action>) {
        if self.next.is_none() && self.joins(ask) {
            self.callers.push(caller);
            if ask == Ask::Stop(StopMode::Kill) && self.stage == Stage::PowerOff {
                actions.push(Action::Interrupt);
            }
            return;
        }
        let overtakes = ask.tears_down() && self.op.builds();
        match &mut self.next {
            // Two captures are two points in time.
            Some(next) if next.ask == ask && !matches!(ask, Ask::Capture | Ask::Resize) => {
                next.callers.push(caller);
            }
            Some(next) if ask == Ask::Destroy => {
                let displaced = std::mem::replace(&mut next.callers, vec![caller]);
                next.ask = ask;
                next.overtakes |= overtakes;
                if !displaced.is_empty() {
                    actions.push(Action::Answer(displaced, Err(interrupted(ask))));
                }
            }
            Some(_) => actions.push(Action::Answer(vec![caller], Err(busy(self.op)))),
            None => self.next = Some(Next { ask, callers: vec![caller], overtakes }),
        }
        let waits_for_guest = self.stage == Stage::PowerOff && ask == Ask::Destroy;
        // Whoever waits for a place at the gate has begun nothing.
        let waits_for_place = self.stage == Stage::Gate && ask.tears_down();
        if overtakes || waits_for_guest || waits_for_place {
            actions.push(Action::Interrupt);
        }
    }

    fn joins(&self, ask: Ask) -> bool {
        matches!(
            (self.op, ask),
            (Op::Create(Make::Idle), Ask::Create(Make::Idle))
                | (Op::Create(Make::Boot | Make::Copy | Make::Revive | Make::Warm), Ask::Create(_) | Ask::Start)
                | (Op::Start { .. } | Op::Rescue { .. } | Op::Awake | Op::Resume, Ask::Create(_) | Ask::Start)
                | (Op::Stop(_), Ask::Stop(_))
                | (Op::Pause, Ask::Pause)
                | (Op::Destroy, Ask::Destroy)
        )
    }
}

fn not_found() -> Failure {
    Failure::new(ErrorCode::NotFound, "the sandbox does not exist on this host")
}

fn not_running() -> Failure {
    Failure::new(ErrorCode::Conflict, "the sandbox is not running; start it first")
}

fn unknown() -> Failure {
    Failure::new(
        ErrorCode::Conflict,
        "it cannot be found out whether the sandbox runs (GET /sandboxes/{id} says why), so nothing is done to it; it is \
         looked at again by itself; mend what is in the way, or stop or destroy it",
    )
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
    let doing = op.doing();
    Failure::new(
        ErrorCode::Conflict,
        format!("the sandbox is {doing} and another request already waits; try again when it has settled"),
    )
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
