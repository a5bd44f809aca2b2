//! Lives of runners on one machine, and where they end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use actix::SystemRunner;
use runner_ch::ids::SandboxId;
use runner_ch::store::{SledStore, Store};
use tokio::sync::Notify;

use super::store::Mortal;
use super::{FakeVmm, Host, HostState, Twist, World};

/// Right before an effect, or right after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

/// A life ends at this effect from now, counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut(pub usize, pub Moment);

impl HostState {
    /// Whether the effect that is come to now is the last one.
    pub(super) fn count_down(&mut self) -> Option<Moment> {
        let Cut(left, moment) = self.cut.as_mut()?;
        *left -= 1;
        let moment = Some(*moment).filter(|_| *left == 0);
        if moment.is_some() {
            self.cut = None;
        }
        moment
    }

    pub(super) fn next_twist(&mut self, effect: &str) -> Option<Twist> {
        let (times, twist) = self.twists.get_mut(effect).filter(|(times, _)| *times > 0)?;
        *times -= 1;
        self.struck += usize::from(*twist != Twist::Slow);
        Some(*twist)
    }

    /// Nothing is twisted any more.
    pub fn untwist(&mut self) {
        self.twists.clear();
    }
}

impl Host {
    /// The runner is killed: nothing that it does reaches the host from here on.
    pub(super) fn die(&self) {
        let mut host = self.0.borrow_mut();
        host.dead = true;
        host.death.notify_one();
    }

    fn born(&self) -> Rc<Notify> {
        let mut host = self.0.borrow_mut();
        host.dead = false;
        host.death = Rc::default();
        host.death.clone()
    }

    fn copy(&self) -> Self {
        let copy = Self(Rc::new(RefCell::new(self.0.borrow().clone())));
        let moved: Vec<FakeVmm> = self.0.borrow().vmms.values().map(|vmm| vmm.moved(&copy)).collect();
        copy.0.borrow_mut().vmms = moved.into_iter().map(|vmm| (vmm.sandbox.clone(), vmm)).collect();
        copy
    }
}

/// Records as text.
pub(super) type Records = Rc<RefCell<BTreeMap<SandboxId, String>>>;

enum State {
    Sled(tempfile::TempDir),
    Memory(Records),
}

/// What outlives a runner: its host and its store.
pub struct Machine {
    pub host: Host,
    state: State,
}

impl Machine {
    /// With the real store.
    pub fn new() -> Self {
        // In memory a flush costs nothing; nothing here outlives the host.
        let place = Some(Path::new("/dev/shm")).filter(|place| place.is_dir());
        let dir = place.map_or_else(tempfile::tempdir, tempfile::tempdir_in);
        Self { host: Host::default(), state: State::Sled(dir.expect("a directory")) }
    }

    /// With a store that is a map: for tests of many thousand lives.
    pub fn light() -> Self {
        Self { host: Host::default(), state: State::Memory(Records::default()) }
    }

    /// The same machine as it is now, to go another way from here.
    pub fn copy(&self) -> Self {
        let State::Memory(records) = &self.state else { panic!("only a light machine is copied") };
        let records = Rc::new(RefCell::new(records.borrow().clone()));
        Self { host: self.host.copy(), state: State::Memory(records) }
    }

    /// What the store holds, as text.
    pub fn records(&self) -> Vec<String> {
        let State::Memory(records) = &self.state else { panic!("only a light machine is looked into") };
        records.borrow().values().cloned().collect()
    }

    fn store(&self) -> Rc<dyn Store> {
        let host = self.host.clone();
        match &self.state {
            State::Sled(dir) => Rc::new(Mortal { host, store: SledStore::open(dir.path()).expect("the store opens") }),
            State::Memory(records) => Rc::new(Mortal { host, store: records.clone() }),
        }
    }

    /// One life of a runner on this machine. It ends as by SIGKILL: whatever is under way is dropped
    /// where it is and never comes back.
    pub fn life<T>(&self, story: impl AsyncFnOnce(World) -> T) -> T {
        self.mortal(story).expect("nothing ends it")
    }

    /// The same; none if it has ended before its story, at [`HostState::cut`].
    pub fn mortal<T>(&self, story: impl AsyncFnOnce(World) -> T) -> Option<T> {
        let death = self.host.born();
        let told = actix::System::new().block_on(async {
            tokio::time::pause();
            tokio::select! {
                biased;
                () = death.notified() => None,
                told = async { story(World::on(self.host.clone(), self.store()).await).await } => Some(told),
            }
        });
        assert_eq!(self.host.0.borrow().violations, Vec::<String>::new());
        told
    }
}

/// A life whose story is told in parts.
pub struct Life {
    // Dropped first: the runner's handles do not outlive it.
    world: World,
    system: SystemRunner,
    death: Rc<Notify>,
}

impl Life {
    /// None if it ends while it recovers.
    pub fn begin(machine: &Machine) -> Option<Self> {
        let (system, death) = (actix::System::new(), machine.host.born());
        let world = system.block_on(async {
            tokio::time::pause();
            tokio::select! {
                biased;
                () = death.notified() => None,
                world = World::on(machine.host.clone(), machine.store()) => Some(world),
            }
        });
        world.map(|world| Self { world, system, death })
    }

    /// None if it ends meanwhile.
    pub fn tell<T>(&self, story: impl AsyncFnOnce(&World) -> T) -> Option<T> {
        self.system.block_on(async {
            tokio::select! {
                biased;
                () = self.death.notified() => None,
                told = story(&self.world) => Some(told),
            }
        })
    }
}
