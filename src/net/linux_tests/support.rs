//! A host's share for one test: names and addresses that no other test uses, gone at its end.

use std::cell::RefCell;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::super::LinuxNetwork;
use crate::ids::{LinkName, NetnsName};
use crate::net::netlink::Netlink;
use crate::net::nft::Transaction;
use crate::net::{Ipv4Net, Network, Plan, Slot, SlotPool, netns};

/// Locked numbers, one per running test of any process on this machine.
const NUMBERS: std::ops::Range<u32> = 1..200;

pub struct TestHost {
    pub number: u32,
    pub bridge: LinkName,
    pub pool: SlotPool,
    pub table: String,
    pub network: LinuxNetwork,
    /// Namespaces and links to remove at the end.
    names: RefCell<Vec<(NetnsName, String)>>,
    /// Its namespaces are the test's own and take everything with them.
    alone: bool,
    _lock: Flock<File>,
}

impl TestHost {
    /// Names and addresses only.
    pub fn reserved() -> Self {
        Self::new(None)
    }

    /// With the host's side made, in [`alone`]; the pool may be of any size.
    pub async fn alone(pool: Ipv4Net) -> Self {
        let host = Self::new(Some(pool));
        host.network.prepare_host().await.unwrap();
        host
    }

    fn new(own: Option<Ipv4Net>) -> Self {
        let (number, lock) = NUMBERS.clone().find_map(lock).expect("a free test number");
        let net = own.unwrap_or(Ipv4Net::around(Ipv4Addr::new(10, 231, number as u8, 0), 24));
        let bridge: LinkName = format!("rct{number}").parse().unwrap();
        let table = format!("runner_ch_test_{number}");
        let deny = vec![denied(number)];
        let network = LinuxNetwork::new(bridge.clone(), net, deny, &table);
        let pool = SlotPool::new(net).unwrap();
        Self { number, bridge, pool, table, network, names: RefCell::default(), alone: own.is_some(), _lock: lock }
    }

    /// With the host's side made.
    pub async fn prepared() -> Self {
        let host = Self::reserved();
        host.network.prepare_host().await.unwrap();
        host
    }

    /// The plan of this test's n-th sandbox, counted from 1. Link names are unique on a machine, so
    /// they come from a slot that no pool of a product has.
    pub fn plan(&self, n: u32) -> Plan {
        let id = format!("rct-{}-{}-{n}", std::process::id(), self.number).parse().unwrap();
        let mut plan = self.pool.plan(&id, Slot(n));
        plan.slot = Slot(1_000_000 + self.number * 1000 + n);
        plan.host_link = format!("chv{}", plan.slot).parse().unwrap();
        self.names.borrow_mut().push((plan.netns.clone(), plan.host_link.to_string()));
        plan
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        if self.alone {
            return;
        }
        let mut netlink = Netlink::open().unwrap();
        for (netns, link) in self.names.borrow().iter() {
            let _ = netns::remove_name(netns);
            let _ = netlink.delete_link(link);
        }
        let _ = netlink.delete_link(self.bridge.as_str());
        let _ = Transaction::delete(&self.table).commit();
    }
}

/// A network that the test's sandboxes may not reach.
pub fn denied(number: u32) -> Ipv4Net {
    Ipv4Net::around(Ipv4Addr::new(198, 19, number as u8, 128), 25)
}

fn lock(number: u32) -> Option<(u32, Flock<File>)> {
    let file = File::create(std::env::temp_dir().join(format!("runner-ch-net-test-{number}.lock"))).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok().map(|lock| (number, lock))
}

/// Runs on a thread with a host's network of its own and no named namespaces but its own. The kernel takes
/// away what is left, whatever happens.
pub fn alone(work: impl AsyncFnOnce() + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        std::fs::create_dir_all("/run/netns").unwrap();
        mount(Some("tmpfs"), "/run/netns", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        ip("link set lo up");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work());
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs on another thread in a namespace.
pub fn inside<T: Send>(namespace: &(impl AsFd + Sync), work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let enter = || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(enter).join().unwrap()
    })
}

/// What a command prints; it must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// `ip` with words separated by spaces.
pub fn ip(arguments: &str) -> String {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

pub fn link_exists(name: &str) -> bool {
    Netlink::open().unwrap().link(name).unwrap().is_some()
}

pub fn name_exists(name: &NetnsName) -> bool {
    netns::names().unwrap().contains(name)
}

/// Waits for a condition. Patiently: after a thousand links have come or gone, the kernel takes its time to
/// bring others to life.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}
