//! Who can talk to whom.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, getsockopt, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::guest::{Guest, nameless};
use super::support::{TestHost, denied, eventually, inside, ip};
use crate::net::netlink::Netlink;
use crate::net::{Error, GUEST_GATEWAY, Namespace, Network, Plan, guest};

const PATIENCE: Duration = Duration::from_secs(5);
/// Long enough for an answer on one machine, which is what is not to come.
const SHORT: Duration = Duration::from_millis(400);

/// True when an echo request from `source` is answered within a second. The socket is raw, so it also
/// sees other packets.
pub fn ping(source: Ipv4Addr, address: Ipv4Addr) -> bool {
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0))).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
    // Type 8, code 0, checksum over identifier 1 and sequence 1.
    let request = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
    if sendto(socket.as_raw_fd(), &request, &SockaddrIn::from(SocketAddrV4::new(address, 0)), MsgFlags::empty())
        .is_err()
    {
        return false;
    }
    let began = Instant::now();
    let mut packet = [0; 128];
    while began.elapsed() < Duration::from_secs(1) {
        let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap_or(0);
        // An IPv4 header of twenty bytes, source at 12, then type 0 for the answer.
        if length >= 28 && packet[12..16] == address.octets() && packet[20] == 0 {
            return true;
        }
    }
    false
}

/// Answers every connection with the address that it comes from.
fn serve(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            let _ = stream.write_all(peer.as_bytes());
        }
    });
}

/// The address that a server sees.
fn ask(address: Ipv4Addr, port: u16, patience: Duration) -> io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.parse().map_err(|_| io::Error::new(ErrorKind::InvalidData, text))
}

fn blocked(result: io::Result<IpAddr>) -> bool {
    result.is_err_and(|error| matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock))
}

/// A machine beyond the host, with one address that sandboxes may reach and one that they may not.
struct World {
    fd: OwnedFd,
    link: String,
    host: Ipv4Addr,
    open: Ipv4Addr,
    denied: Ipv4Addr,
    port: u16,
}

impl World {
    fn new(test: &TestHost) -> Self {
        let link = format!("rctw{}", test.number);
        let n = test.number;
        let (host, open) = (Ipv4Addr::new(198, 19, n as u8, 1), Ipv4Addr::new(198, 19, n as u8, 2));
        let denied = Ipv4Addr::from_bits(denied(n).base().to_bits() + 2);
        let (fd, ()) = nameless(|| {});
        let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        ip(&format!("link add {link} type veth peer name w0 netns {path}"));
        ip(&format!("addr add {host}/25 dev {link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("route add {} via {open} dev {link}", super::support::denied(n)));
        let pool = test.pool.net();
        let port = inside(&fd, || {
            ip("link set lo up");
            ip("link set w0 up");
            ip(&format!("addr add {open}/25 dev w0"));
            ip(&format!("addr add {denied}/32 dev w0"));
            // The way to the sandboxes is known, so that only rules can bar it.
            ip(&format!("route add {pool} via {host}"));
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            serve(listener);
            port
        });
        Self { fd, link, host, open, denied, port }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Netlink::open().and_then(|mut netlink| netlink.delete_link(&self.link));
    }
}

async fn sandbox(host: &TestHost, n: u32) -> (Plan, Namespace, Guest) {
    let plan = host.plan(n);
    let namespace = host.network.create(&plan).await.unwrap();
    let guest = Guest::boot(&namespace, &plan);
    // The kernel brings links to life with some delay when it is busy.
    eventually("the guest's way to its gateway", || guest.pings(GUEST_GATEWAY));
    (plan, namespace, guest)
}

fn listen(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    serve(listener);
    port
}

#[tokio::test]
async fn guests_reach_the_world_but_neither_denied_networks_nor_the_host_nor_each_other() {
    let host = TestHost::prepared().await;
    let world = World::new(&host);
    let (plan, namespace, one) = sandbox(&host, 1).await;
    let (other_plan, other_namespace, other) = sandbox(&host, 2).await;

    // The world sees the host's address.
    assert_eq!(one.run(|| ask(world.open, world.port, PATIENCE)).unwrap(), IpAddr::from(world.host));
    assert!(one.pings(world.open));
    assert!(ask(world.denied, world.port, PATIENCE).is_ok(), "the host itself reaches the denied network");
    assert!(blocked(one.run(|| ask(world.denied, world.port, SHORT))), "denied network");

    // The host, at any of its addresses.
    let port = listen("0.0.0.0");
    assert!(ask(plan.gateway, port, PATIENCE).is_ok(), "the host listens");
    for address in [plan.gateway, world.host] {
        assert!(blocked(one.run(|| ask(address, port, SHORT))), "host address {address}");
        assert!(blocked(inside(&namespace, || ask(address, port, SHORT))), "{address} from the namespace");
        assert!(!one.pings(address), "ping of {address}");
    }

    // Another sandbox: its namespace's address, and what its guest serves.
    let port = other.run(|| listen("0.0.0.0"));
    assert!(blocked(one.run(|| ask(other_plan.address, port, SHORT))), "another sandbox");
    assert!(
        blocked(inside(&namespace, || ask(other_plan.address, port, SHORT))),
        "another sandbox, from the namespace"
    );
    // Nobody gets in from outside.
    assert!(blocked(inside(&world.fd, || ask(other_plan.address, port, SHORT))), "from the world");
    assert!(blocked(ask(other_plan.address, port, SHORT)), "from the host");
    // But the runner's own sockets do.
    assert!(other_namespace.connect(guest(port), PATIENCE).await.is_ok());
}

#[tokio::test]
async fn the_namespace_itself_offers_nothing_to_its_guest() {
    let host = TestHost::prepared().await;
    let (plan, namespace, guest) = sandbox(&host, 1).await;
    let port = inside(&namespace, || listen("0.0.0.0"));
    assert!(inside(&namespace, || ask(GUEST_GATEWAY, port, SHORT)).is_err(), "loopback is closed as well");
    assert!(blocked(guest.run(|| ask(GUEST_GATEWAY, port, SHORT))));
    assert!(blocked(guest.run(|| ask(plan.address, port, SHORT))));
}

#[tokio::test]
async fn a_guest_cannot_use_another_address() {
    let host = TestHost::prepared().await;
    let world = World::new(&host);
    let (_plan, namespace, guest) = sandbox(&host, 1).await;
    guest.run(|| {
        ip("addr add 192.168.0.77/24 dev g0");
        ip("addr add 10.99.99.99/32 dev g0");
    });
    let from = |source: [u8; 4]| guest.run(|| ping(Ipv4Addr::from(source), world.open));
    assert!(from([192, 168, 0, 2]));
    assert!(!from([192, 168, 0, 77]) && !from([10, 99, 99, 99]));
    // The guest is a fixed neighbour: what it says about itself changes nothing.
    guest.run(|| ip("link set g0 address 02:aa:bb:cc:dd:ee"));
    from([192, 168, 0, 2]);
    let neighbours = inside(&namespace, || ip("neigh show 192.168.0.2"));
    assert!(neighbours.contains("PERMANENT") && !neighbours.contains("02:aa:bb:cc:dd:ee"), "{neighbours}");
}

#[tokio::test]
async fn segment_sizes_fit_the_narrowest_link() {
    let host = TestHost::prepared().await;
    let world = World::new(&host);
    ip(&format!("link set {} mtu 900", world.link));
    let (_plan, _namespace, guest) = sandbox(&host, 1).await;
    let mss = guest.run(|| {
        let stream = TcpStream::connect_timeout(&SocketAddr::from((world.open, world.port)), PATIENCE).unwrap();
        getsockopt(&stream.as_fd(), sockopt::TcpMaxSeg).unwrap()
    });
    assert!(mss <= 860, "announced segment size {mss}");
}

#[test]
fn connections_come_from_any_worker_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let host = runtime.block_on(TestHost::prepared());
    let (plan, namespace, machine) = runtime.block_on(sandbox(&host, 1));
    let port = machine.run(|| listen("0.0.0.0"));
    let home = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let here = home();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let connect = || namespace.connect(guest(port), PATIENCE);
                    for stream in futures::future::join_all((0..20).map(|_| connect())).await {
                        assert!(stream.unwrap().nodelay().unwrap());
                    }
                });
                assert_eq!(home(), here, "the worker is back home");
            });
        }
    });
    assert_eq!(home(), here);
    drop((machine, namespace));
    runtime.block_on(host.network.remove(&plan)).unwrap();
}

#[tokio::test]
async fn failed_connections_name_address_and_namespace() {
    let host = TestHost::prepared().await;
    let (plan, namespace, machine) = sandbox(&host, 1).await;
    let closed = guest(9);
    let error = namespace.connect(closed, PATIENCE).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    let text = crate::error::chain(&error);
    assert!(text.contains("192.168.0.2:9") && text.contains(plan.netns.as_str()) && text.contains("refused"), "{text}");

    drop(machine);
    let began = Instant::now();
    let error = namespace.connect(closed, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Error::ConnectTimeout { .. }), "{error}");
    assert!(error.to_string().contains("50 ms") && began.elapsed() < Duration::from_secs(2), "{error}");
}

#[tokio::test]
async fn connections_to_a_dead_guest_do_not_hold_the_namespace_for_long() {
    let host = TestHost::prepared().await;
    let (plan, namespace, machine) = sandbox(&host, 1).await;
    // The kernel completes the connection; nobody reads from it.
    let listener = machine.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    let stream = namespace.connect(guest(port), PATIENCE).await.unwrap();
    drop((machine, listener));
    stream.try_write(b"nobody will acknowledge this").unwrap();
    drop(stream);
    drop(namespace);
    let began = Instant::now();
    host.network.remove(&plan).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    println!("removed after {:?}", began.elapsed());
}
