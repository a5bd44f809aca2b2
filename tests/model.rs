//! The supervisor and the sandboxes' actors against a small description of what must be true: random orders, alone and
//! two at a time, effects that fail, hang, panic or are slow, VMMs that end, and runners that are killed at rest and in
//! the middle of whatever is under way. Actors, in virtual time, on a host in memory with the real store.
//!
//! `PROPTEST_CASES` says how many cases are tried.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::test_runner::Config;
use proptest_state_machine::{StateMachineTest, prop_state_machine};
use runner_ch::hypervisor::Exit;
use runner_ch::sandbox::{Ask, WireState};

#[path = "world/mod.rs"]
mod fakes;
#[path = "model/generate.rs"]
mod generate;
#[path = "model/reference.rs"]
mod reference;

use fakes::deeds::{Answers, Deed};
use fakes::{Life, Machine, World};
use generate::{IDS, SNAPSHOTS, Step};
use reference::{Is, Kept, Sandbox, Seen, Told};

/// No order takes longer than all deadlines on its way together.
const LONGEST: Duration = Duration::from_secs(4 * 3600);

struct Runner {
    life: Option<Life>,
    machine: Machine,
    seen: Seen,
    trace: Vec<String>,
}

impl Runner {
    /// A new runner on the machine; one that is killed while it recovers is followed by another.
    fn revive(&mut self) {
        self.life = None;
        while self.life.is_none() {
            self.life = Life::begin(&self.machine);
        }
    }

    /// Tells a part of the story; none if the runner was killed in it.
    fn tell<T>(&self, story: impl AsyncFnOnce(&World) -> T) -> Option<T> {
        self.life.as_ref().expect("a runner lives").tell(story)
    }

    /// What is to be seen when nothing is under way any more; the runner may be killed before that.
    fn look(&mut self) -> Seen {
        loop {
            if let Some(seen) = self.tell(async |world| {
                world.settled().await;
                look(world).await
            }) {
                return seen;
            }
            self.revive();
        }
    }

    /// One step, and whether what is to be seen after it follows from what was before.
    fn step(&mut self, step: &Step) {
        let before = std::mem::take(&mut self.seen);
        let struck = self.machine.host.0.borrow().struck;
        let (mut told, mut killed) = (Vec::new(), false);
        let mut ended = None;
        match step {
            Step::Orders(deeds) => (told, killed) = self.carry_out(deeds),
            Step::Cut(cut, deeds) => {
                self.machine.host.0.borrow_mut().cut = Some(*cut);
                (told, killed) = self.carry_out(deeds);
            }
            Step::Twist(effect, twist) => self.machine.host.twist(effect, *twist, 1),
            Step::Kill => killed = true,
            Step::End(id, killed_first) => {
                ended = Some(*id);
                killed = *killed_first;
                self.life = self.life.take().filter(|_| !killed);
                let vmm = self.machine.host.0.borrow().vmms.get(*id).cloned();
                if let Some(vmm) = vmm {
                    vmm.exit(if killed { Exit::Signal { signal: 9 } } else { Exit::GuestPowerOff });
                }
            }
        }
        if killed {
            self.revive();
        }
        self.seen = self.look();
        // A cut that was not reached yet would meet the next step.
        self.machine.host.0.borrow_mut().cut = None;
        let faults = self.machine.host.0.borrow().struck - struck;
        self.trace.push(format!("{step:?} -> {told:?}\n    {:?}", self.seen));
        let violations = self.machine.host.0.borrow().violations.clone();
        let wrong = reference::judge(&before, &self.seen, &told, ended, faults);
        assert!(wrong.is_ok() && violations.is_empty(), "{wrong:?} {violations:?}\n{}", self.trace.join("\n"));
    }

    fn carry_out(&mut self, deeds: &[Deed]) -> (Vec<Told>, bool) {
        let answered = self.tell(async |world| {
            let orders = futures::future::join_all(deeds.iter().map(|deed| world.carry_out(deed, false)));
            tokio::time::timeout(LONGEST, orders).await.expect("everybody is answered")
        });
        let told = |deed: &Deed, answers: Option<Answers>| Told::new(deed, answers);
        match answered {
            Some(answers) => {
                (deeds.iter().zip(answers).map(|(deed, answers)| told(deed, Some(answers))).collect(), false)
            }
            None => (deeds.iter().map(|deed| told(deed, None)).collect(), true),
        }
    }
}

/// What is to be seen of all sandboxes and snapshots; what cannot be true of a host at rest is an error.
async fn look(world: &World) -> Seen {
    let mut sandboxes = BTreeMap::new();
    for id in IDS {
        let (host, view) = (&world.host, world.views.get(&id.parse().expect("an id")));
        let Some(view) = view else {
            let host = host.0.borrow();
            let nothing = !host.vmms.contains_key(id) && !host.networks.contains_key(id) && !host.disks.contains(id);
            assert!(nothing && !host.checkpoints.contains(id), "something is left of {id}");
            continue;
        };
        let record = world.record(id).await.expect("a view has a record");
        let alive = host.0.borrow().vmms.get(id).map(|vmm| vmm.known.process.pid);
        let is = match view.state {
            WireState::Started => Is::Started,
            WireState::Paused => Is::Paused,
            WireState::Stopped => Is::Stopped,
            WireState::Error => Is::Broken,
            other => panic!("{id} does not rest: {other:?}"),
        };
        let lives = matches!(is, Is::Started | Is::Paused);
        if is != Is::Broken {
            assert_eq!(lives, alive.is_some(), "the VMM of {id}, which is {is:?}");
            assert_eq!(view.pid, alive, "the pid of {id}");
            assert_eq!(host.runs(id), is == Is::Started, "the guest of {id}, which is {is:?}");
            assert_eq!(lives, host.0.borrow().networks.contains_key(id), "the network of {id}");
            assert_eq!(lives, world.routes.get(&view.id).is_some(), "the route of {id}");
            assert!(host.0.borrow().disks.contains(id), "the disk of {id}");
        }
        let usable = |checkpoint: &&runner_ch::sandbox::record::Checkpoint| {
            checkpoint.stamp.is_some_and(|stamp| stamp != runner_ch::disk::Stamp::NEVER)
        };
        let kept = record.checkpoint.as_ref().filter(usable).filter(|_| is == Is::Stopped);
        let kept = kept.map(|checkpoint| Kept {
            memory: host.frozen(id).expect("a checkpoint that is promised is there"),
            vcpus: checkpoint.size.vcpus,
        });
        let memory = if lives { host.memory(id) } else { kept.map(|kept| kept.memory) };
        sandboxes
            .insert(id, Sandbox { is, vcpus: view.size.vcpus, kept, memory, pid: alive, disk: record.disks.is_some() });
    }
    let host = world.host.0.borrow();
    let snapshots = SNAPSHOTS.into_iter().filter_map(|name| {
        let manifest = host.snapshots.get(&fakes::deeds::reference(name))?;
        let dir = std::path::Path::new("/nowhere/snapshots").join(manifest.reference.as_str());
        let memory = manifest.warm.as_ref().map(|_| host.images[&dir].memory);
        Some((name, (memory, manifest.vcpus)))
    });
    Seen { sandboxes, snapshots: snapshots.collect(), memories: host.memories() }
}

impl StateMachineTest for Runner {
    type SystemUnderTest = Self;
    type Reference = generate::Outline;

    fn init_test(outline: &generate::Outline) -> Self {
        let machine = Machine::new();
        machine.host.0.borrow_mut().raw = outline.raw;
        let mut runner = Self { life: None, machine, seen: Seen::default(), trace: Vec::new() };
        runner.revive();
        runner
    }

    fn apply(mut runner: Self, _: &generate::Outline, step: Step) -> Self {
        runner.step(&step);
        runner
    }

    fn teardown(mut runner: Self, _: generate::Outline) {
        runner.machine.host.0.borrow_mut().untwist();
        // What a fault has left of copies is removed by a start.
        runner.revive();
        runner.tell(async |world| {
            world.settled().await;
            for id in IDS {
                world.ask(id, Ask::Destroy).await.expect("a destroy");
            }
            for name in SNAPSHOTS {
                world.carry_out(&Deed::RemoveSnapshot(name), false).await[0].1.as_ref().expect("a removal");
            }
            world.settled().await;
            world.host.assert_nothing_left();
            assert!(world.views.list().is_empty() && world.host.0.borrow().images.is_empty());
            assert!(world.ports.store.load().await.expect("the store").sandboxes.is_empty(), "records are left");
        });
    }
}

fn config() -> Config {
    // Few enough for a debug build; more by the variable.
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { 48 };
    Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() }
}

prop_state_machine! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_the_sandboxes_are_as_was_answered(sequential 1..20 => Runner);
}
