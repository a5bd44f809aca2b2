//! Who can talk to whom.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};

use super::support::{TestHost, inside, ip};
use super::world::{PATIENCE, SHORT, World, ask, blocked, listen, ping, sandbox};
use crate::net::{Error, GUEST_GATEWAY, Network, guest};

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
