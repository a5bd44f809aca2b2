//! A guest without a virtual machine: a namespace with a kernel's network stack, whose only link is
//! joined to the sandbox's TAP frame by frame, as a hypervisor would.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::support::{inside, ip};
use crate::net::{GUEST, Namespace, Plan, TAP, tap};

pub struct Guest {
    fd: OwnedFd,
    stop: Arc<AtomicBool>,
    wire: Option<JoinHandle<()>>,
}

/// A namespace without a name, set up by `work`.
pub fn nameless<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> (OwnedFd, T) {
    let make = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let fd = File::open("/proc/thread-self/ns/net").unwrap();
        (OwnedFd::from(fd), work())
    };
    std::thread::spawn(make).join().unwrap()
}

impl Guest {
    pub fn boot(namespace: &Namespace, plan: &Plan) -> Self {
        let mac = plan.guest_mac.map(|byte| format!("{byte:02x}")).join(":");
        let (fd, card) = nameless(move || {
            let card = tap::attach("g0").unwrap();
            ip(&format!("link set g0 address {mac}"));
            ip("link set lo up");
            ip("link set g0 up");
            ip("addr add 192.168.0.2/24 dev g0");
            ip("route add default via 192.168.0.1");
            card
        });
        let socket = namespace.inside(|| tap::attach(TAP)).unwrap().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let wire = std::thread::spawn(move || carry(&card, &socket, &seen));
        Self { fd, stop, wire: Some(wire) }
    }

    /// Runs something in the guest.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.fd, work)
    }

    /// True when an echo request is answered within a second.
    pub fn pings(&self, address: Ipv4Addr) -> bool {
        self.run(|| super::world::ping(GUEST, address))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.wire.take().map(JoinHandle::join);
    }
}

fn carry(mut one: &File, mut other: &File, stop: &AtomicBool) {
    let mut frame = vec![0; 70_000];
    let pause = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(&one, PollFlags::IN), PollFd::new(&other, PollFlags::IN)];
        poll(&mut ready, Some(&pause)).unwrap();
        let readable = ready.map(|fd| fd.revents().contains(PollFlags::IN));
        // A frame that the other side does not take is lost, as on a wire.
        if readable[0]
            && let Ok(length) = one.read(&mut frame)
        {
            let _ = other.write(&frame[..length]);
        }
        if readable[1]
            && let Ok(length) = other.read(&mut frame)
        {
            let _ = one.write(&frame[..length]);
        }
    }
}
