//! What a runner is asked to do, as data.

use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use runner_ch::error::Failure;
use runner_ch::jobs::payload::CreateSpec;
use runner_ch::messages::fork::{Fork, RemoveSnapshot, TakeSnapshot};
use runner_ch::messages::supervisor::{Describe, Order};
use runner_ch::messages::vm::Resize;
use runner_ch::sandbox::{Ask, Record, StopMode, WireState};

use super::World;

/// Names of sandboxes and snapshots.
pub type Id = &'static str;

/// How a sandbox is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Boot,
    Idle,
    /// From a snapshot.
    Snapshot(Id),
}

/// One order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    Create(Id, Base),
    Start(Id),
    Stop(Id, StopMode),
    Pause(Id),
    /// Virtual CPUs.
    Resize(Id, u32),
    Fork(Id, Vec<Id>),
    /// Source, name, with its memory.
    Snapshot(Id, Id, bool),
    RemoveSnapshot(Id),
    Destroy(Id),
}

/// Who was answered what: one for a sandbox or snapshot, one for each copy.
pub type Answers = Vec<(Id, Result<(), Failure>)>;

pub fn reference(name: Id) -> String {
    format!("org/{name}")
}

impl World {
    /// Gives the order; `by_job`: as the control plane would.
    pub fn carry_out(&self, deed: &Deed, by_job: bool) -> LocalBoxFuture<'static, Answers> {
        let ask = |id: Id, ask| (id, Order::new(id.parse().expect("an id"), ask));
        let (id, order) = match *deed {
            Deed::Create(id, base) => {
                let mut body = serde_json::json!({ "id": id });
                match base {
                    Base::Boot => {}
                    Base::Idle => body["skipStart"] = true.into(),
                    Base::Snapshot(name) => body["snapshot"] = reference(name).into(),
                }
                (id, Order::create(CreateSpec::from_json(&body).expect("a spec")))
            }
            Deed::Start(id) => ask(id, Ask::Start),
            Deed::Stop(id, mode) => ask(id, Ask::Stop(mode)),
            Deed::Pause(id) => ask(id, Ask::Pause),
            Deed::Destroy(id) => ask(id, Ask::Destroy),
            Deed::Resize(id, vcpus) => {
                let resize = Resize { vcpus: Some(vcpus), ..Resize::default() };
                (id, Order { resize: Some(resize), ..ask(id, Ask::Resize).1 })
            }
            Deed::Fork(source, ref copies) => return self.copy(source, copies.clone(), by_job),
            Deed::Snapshot(source, name, memory) => return self.save(source, name, memory, by_job),
            Deed::RemoveSnapshot(name) => {
                let removed = self.forks.send(RemoveSnapshot(reference(name).parse().expect("a reference")));
                return async move { vec![(name, removed.await.expect("the ForkActor lives").map(drop))] }
                    .boxed_local();
            }
        };
        let done = self.order(Order { by_job, ..order });
        async move { vec![(id, done.await)] }.boxed_local()
    }

    fn copy(&self, source: Id, copies: Vec<Id>, by_job: bool) -> LocalBoxFuture<'static, Answers> {
        let ids = copies.iter().map(|copy| copy.parse().expect("an id")).collect();
        let made = self.forks.send(Fork { source: source.parse().expect("an id"), copies: ids, by_job });
        async move {
            match made.await.expect("the ForkActor lives") {
                Err(failure) => copies.into_iter().map(|copy| (copy, Err(failure.clone()))).collect(),
                Ok(made) => {
                    let of = |copy: Id| made.iter().filter(|(id, _)| id.as_str() == copy).collect::<Vec<_>>();
                    let one = |copy| match &of(copy)[..] {
                        [(_, made)] => (copy, made.clone().map(drop)),
                        other => panic!("{} answers for copy {copy}", other.len()),
                    };
                    copies.into_iter().map(one).collect()
                }
            }
        }
        .boxed_local()
    }

    fn save(&self, source: Id, name: Id, memory: bool, by_job: bool) -> LocalBoxFuture<'static, Answers> {
        let reference = reference(name).parse().expect("a reference");
        let source = source.parse().expect("an id");
        let taken = self.forks.send(TakeSnapshot { source, reference, name: name.to_owned(), memory, by_job });
        async move { vec![(name, taken.await.expect("the ForkActor lives").map(drop))] }.boxed_local()
    }

    /// The record as the sandbox's actor has it.
    pub async fn record(&self, id: &str) -> Option<Record> {
        let described = self.supervisor.send(Describe(id.parse().expect("an id"))).await.expect("the supervisor lives");
        described.expect("it can be asked").map(|record| *record)
    }

    /// Waits until nothing is under way: every sandbox rests where it stays, and nothing is left of copies.
    pub async fn settled(&self) {
        let rests = || {
            let host = self.host.0.borrow();
            // What a fault has left of copies is removed by the next start.
            let copied = host.struck > 0 || (host.captures.is_empty() && host.held == 0);
            copied && self.views.list().iter().all(|view| view.settled && view.state != WireState::Unknown)
        };
        for _ in 0..5_000 {
            // What was answered a moment ago may still have its last words to store.
            tokio::time::sleep(Duration::from_secs(1)).await;
            if rests() {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if rests() {
                    return;
                }
            }
        }
        panic!("it does not come to rest: {:?}", self.views.list());
    }
}
