//! Who can reach whom, seen from outside: guests of one runner, the host, a machine beyond it.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daytona_sim::CreateSpec;
use nix::sched::{CloneFlags, setns, unshare};

mod common;

use common::{Host, eventually, leftovers};

/// The host in the world's network, and the world.
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Another address of the world.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
/// Where clouds answer machines about themselves.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 220, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
const TOOLBOX: u16 = 2280;
/// Long enough for an answer on one machine, which is what is not to come.
const SHORT: Duration = Duration::from_millis(300);

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("the package iproute2 is installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A server on all addresses that remembers who came.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<IpAddr>>>,
}

impl Server {
    /// In the network namespace of the calling thread.
    fn start() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                all.lock().unwrap().extend(stream.peer_addr().map(|peer| peer.ip()));
            }
        });
        Self { port, seen }
    }

    /// Who came since the last call; waits for the first of them.
    fn visitors(&self) -> Vec<IpAddr> {
        eventually("somebody comes", || {
            let mut seen = self.seen.lock().unwrap();
            (!seen.is_empty()).then(|| std::mem::take(&mut *seen))
        })
    }

    fn nobody_came(&self) -> bool {
        self.seen.lock().unwrap().is_empty()
    }
}

/// A machine beyond the host, which knows the way to the sandboxes, so that only rules can bar it.
struct World {
    fd: OwnedFd,
    server: Server,
}

impl World {
    fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
        };
        let fd = std::thread::spawn(make).join().unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        ip(&format!("link add world type veth peer name w0 netns {path}"));
        ip(&format!("addr add {HOST}/24 dev world"));
        ip("link set world up");
        ip(&format!("route add default via {WORLD}"));
        let server = inside(&fd, || {
            ip("link set lo up");
            ip("link set w0 up");
            for address in [WORLD, ELSEWHERE, METADATA] {
                ip(&format!("addr add {address}/24 dev w0"));
            }
            ip(&format!("route add default via {HOST}"));
            Server::start()
        });
        Self { fd, server }
    }
}

/// Runs on another thread in a namespace.
fn inside<T: Send>(fd: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let enter = || {
            setns(fd.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(enter).join().unwrap()
    })
}

/// True when a connection comes about soon.
fn connects(address: Ipv4Addr, port: u16) -> bool {
    match TcpStream::connect_timeout(&SocketAddr::from((address, port)), SHORT) {
        Ok(_) => true,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::ConnectionRefused), "{error}");
            false
        }
    }
}

/// What the guest says about a connection that should come about.
#[track_caller]
fn assert_open(host: &Host, id: &str, address: Ipv4Addr, port: u16) {
    assert_eq!(host.in_guest(id, &format!("connect {address} {port} 10")), "connected", "{id} to {address}:{port}");
}

/// Neither a connection nor an answer to a ping.
#[track_caller]
fn assert_barred(host: &Host, id: &str, address: Ipv4Addr, port: u16) {
    let said = host.in_guest(id, &format!("connect {address} {port} 0.3; ping {address} 0.3"));
    let refusals = said.lines().filter(|line| ["timeout", "refused", "unreachable"].contains(line)).count();
    assert_eq!(refusals, 2, "{id} to {address}:{port}: {said}");
}

fn create(host: &Host, spec: &CreateSpec) {
    host.completed(&host.api.create_sandbox(spec).unwrap());
}

/// The sandbox's address of the pool.
fn pool_address(host: &Host, id: &str) -> Ipv4Addr {
    let shown = host.http().get(&format!("/sandboxes/{id}")).json();
    let netns = shown["netns"].as_str().unwrap_or_else(|| panic!("{shown}"));
    let addresses = ip(&format!("-n {netns} -o -4 addr show dev eth0"));
    let address = addresses.split_whitespace().skip_while(|word| *word != "inet").nth(1).unwrap();
    address.split('/').next().unwrap().parse().unwrap()
}

#[test]
fn sandboxes_reach_the_world_and_nobody_else() {
    let host = Host::new();
    let world = World::new();
    let _runner = host.runner();
    create(&host, &host.spec("one"));
    create(&host, &host.spec("two"));

    for id in ["one", "two"] {
        assert_open(&host, id, WORLD, world.server.port);
        assert_eq!(world.server.visitors(), [IpAddr::from(HOST)], "the world sees the host's address");
        assert!(host.in_guest(id, &format!("ping {WORLD} 10")).contains("reply"), "{id}");
    }

    // Each other: at the pool's addresses, and at the one that both of them have.
    let addresses = ["one", "two"].map(|id| pool_address(&host, id));
    assert_ne!(addresses[0], addresses[1]);
    for (id, other) in [("one", addresses[1]), ("two", addresses[0])] {
        assert_barred(&host, id, other, TOOLBOX);
        assert_barred(&host, id, GUEST, TOOLBOX);
    }

    // The host, at every address that it has for them.
    let server = Server::start();
    for address in [GATEWAY, HOST, Ipv4Addr::LOCALHOST] {
        assert!(connects(address, server.port), "the host listens at {address}");
        server.visitors();
        assert_barred(&host, "one", address, server.port);
    }
    assert!(host.in_guest("one", &format!("connect 192.168.0.1 {} 0.3", server.port)) != "connected");
    assert!(server.nobody_came());

    // The cloud's metadata, which the host itself gets.
    assert!(connects(METADATA, world.server.port), "the host reaches it");
    world.server.visitors();
    assert_barred(&host, "one", METADATA, world.server.port);
    assert!(world.server.nobody_came());

    leftovers_after_destroying(&host, &["one", "two"]);
}

#[test]
fn nobody_begins_a_connection_to_a_sandbox() {
    let host = Host::new();
    let world = World::new();
    let _runner = host.runner();
    create(&host, &host.spec("box"));
    let address = pool_address(&host, "box");
    let server = Server::start();
    assert!(inside(&world.fd, || connects(HOST, server.port)), "the world reaches the host");
    for port in [TOOLBOX, 8080, 22220] {
        for target in [address, GUEST] {
            assert!(!inside(&world.fd, || connects(target, port)), "the world to {target}:{port}");
            assert!(!connects(target, port), "a process of the host to {target}:{port}");
        }
    }
    // Through the runner the same guest answers.
    assert_eq!(host.in_guest("box", "echo here"), "here");
}

#[test]
fn blocked_means_blocked_and_stays_so() {
    let host = Host::new();
    let world = World::new();
    let _runner = host.runner();
    create(&host, &CreateSpec { network_block_all: true, ..host.spec("blocked") });
    create(&host, &host.spec("free"));
    for restarted in [false, true] {
        if restarted {
            // The API does not send the settings again with a start.
            restart(&host, "blocked");
        }
        assert_barred(&host, "blocked", WORLD, world.server.port);
        assert_barred(&host, "blocked", ELSEWHERE, world.server.port);
        assert!(world.server.nobody_came(), "restarted: {restarted}");
        assert_open(&host, "free", WORLD, world.server.port);
        world.server.visitors();
    }
}

#[test]
fn an_allow_list_opens_only_what_is_on_it() {
    let host = Host::new();
    let world = World::new();
    let _runner = host.runner();
    let list = format!("203.0.113.0/24, {WORLD}/32,{METADATA}/32");
    create(&host, &CreateSpec { network_allow_list: Some(list), ..host.spec("box") });
    for restarted in [false, true] {
        if restarted {
            restart(&host, "box");
        }
        assert_open(&host, "box", WORLD, world.server.port);
        assert_eq!(world.server.visitors(), [IpAddr::from(HOST)]);
        assert_barred(&host, "box", ELSEWHERE, world.server.port);
        // Nobody's list opens what is closed to all.
        assert_barred(&host, "box", METADATA, world.server.port);
        assert!(world.server.nobody_came(), "restarted: {restarted}");
    }
}

#[track_caller]
fn restart(host: &Host, id: &str) {
    host.completed(&host.api.stop_sandbox(id, None).unwrap());
    host.completed(&host.api.start_sandbox(id).unwrap());
}

#[track_caller]
fn leftovers_after_destroying(host: &Host, ids: &[&str]) {
    for id in ids {
        host.completed(&host.api.destroy_sandbox(id).unwrap());
    }
    // The way to the world is a link pair of this test.
    ip("link del world");
    leftovers::none(host);
}
