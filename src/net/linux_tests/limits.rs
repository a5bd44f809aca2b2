//! More sandboxes than a bridge has ports: the first are bridged, the others routed.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::Scope;
use std::time::Instant;

use futures::StreamExt;

use super::guest::Guest;
use super::support::{TestHost, alone, eventually, inside, ip, link_exists, name_exists};
use super::world::{PATIENCE, Pings, SHORT, World, ask, blocked, boot, listen, ping};
use crate::net::netlink::Netlink;
use crate::net::nft::Transaction;
use crate::net::survey::Maker;
use crate::net::sysctl::Sysctl;
use crate::net::{Namespace, Network, Plan, guest};

/// What the kernel gives a bridge.
const PORTS: usize = 1023;
/// Routed ones among all.
const ROUTED: usize = 7;

/// A sandbox with a guest that answers on a port.
struct Member {
    what: &'static str,
    plan: Plan,
    namespace: Namespace,
    guest: Guest,
    port: u16,
}

impl Member {
    fn new(what: &'static str, plan: &Plan, namespace: Namespace) -> Self {
        let guest = boot(&namespace, plan);
        let port = guest.run(|| listen("0.0.0.0"));
        Self { what, plan: plan.clone(), namespace, guest, port }
    }
}

fn is_bridged(plan: &Plan) -> bool {
    Netlink::open().unwrap().link(plan.host_link.as_str()).unwrap().unwrap().master.is_some()
}

fn routes(plan: &Plan) -> String {
    ip(&format!("route show {}/32", plan.address))
}

/// One test for all of it, since so many sandboxes take seconds to make.
#[test]
fn a_thousand_and_thirty_sandboxes() {
    alone(async || {
        // As strict as hosts come.
        for setting in ["arp_ignore", "arp_filter", "rp_filter"] {
            Sysctl::open().unwrap().set(&format!("ipv4/conf/all/{setting}"), 1).unwrap();
        }
        let host = TestHost::alone("10.231.0.0/16".parse().unwrap()).await;
        let world = World::new(&host);
        let (bridged, mut routed) = create_all(&host).await;
        assert_eq!((bridged.len(), routed.len()), (PORTS, ROUTED));

        let mut pick = |what| {
            let (plan, namespace) = routed.pop().unwrap();
            Member::new(what, &plan, namespace)
        };
        let (one, other) = (pick("a routed sandbox"), pick("another routed sandbox"));
        let (plan, namespace) = &bridged[0];
        let all = [Member::new("a bridged sandbox", plan, namespace.clone()), one, other];
        assert_alike(&all, &world).await;

        let (plan, namespace) = routed.pop().unwrap();
        drop(namespace);
        assert_found_again_and_removed(&host, &plan, &bridged[1].0).await;
        let (plan, namespace) = routed.pop().unwrap();
        assert_held_by_the_host(&host, &world, &plan, &namespace);
    });
}

type Made = Vec<(Plan, Namespace)>;

/// Makes all sandboxes, eight at a time; returns the bridged and the routed ones.
async fn create_all(host: &TestHost) -> (Made, Made) {
    let plans: Vec<Plan> = (1..).take(PORTS + ROUTED).map(|n| host.plan(n)).collect();
    let began = Instant::now();
    let create = |plan: Plan| async move { host.network.create(&plan).await.map(|namespace| (plan, namespace)) };
    let made: Vec<_> = futures::stream::iter(plans).map(create).buffer_unordered(8).collect().await;
    println!("{} sandboxes in {:?}", made.len(), began.elapsed());
    let made: Made = made.into_iter().collect::<Result<_, _>>().unwrap();
    let links = Netlink::open().unwrap().links().unwrap();
    let ports: HashSet<_> = links.iter().filter(|link| link.master.is_some()).map(|link| link.name.as_str()).collect();
    made.into_iter().partition(|(plan, _)| ports.contains(plan.host_link.as_str()))
}

/// The same holds for all of them, whichever form their host link has.
async fn assert_alike(all: &[Member], world: &World) {
    for Member { what, namespace, guest: machine, port, .. } in all {
        let seen = machine.run(|| ask(world.open, world.port, PATIENCE)).unwrap();
        assert_eq!(seen, IpAddr::from(world.host), "{what}");
        assert!(machine.pings(world.open), "{what}");
        assert!(namespace.connect(guest(*port), PATIENCE).await.is_ok(), "{what} is reached by the runner");
    }
    let port = listen("0.0.0.0");
    assert!(ask(world.host, port, PATIENCE).is_ok(), "the host listens");
    assert!(ask(world.denied, world.port, PATIENCE).is_ok(), "the host itself reaches the denied network");
    // What does not come takes its time, so all of it is awaited at once.
    std::thread::scope(|scope| all.iter().for_each(|member| assert_cut_off(scope, member, all, world, port)));
}

/// The member reaches neither the host nor the others nor what is denied, and nobody reaches it.
fn assert_cut_off<'a>(
    scope: &'a Scope<'a, '_>,
    member: &'a Member,
    all: &'a [Member],
    world: &'a World,
    host_port: u16,
) {
    let Member { what, plan, namespace, guest: machine, port } = member;
    let mut targets = vec![
        ("the bridge's address", plan.gateway, host_port),
        ("the host's address", world.host, host_port),
        ("a denied network", world.denied, world.port),
    ];
    let others = all.iter().filter(|other| other.plan.slot != plan.slot);
    targets.extend(others.map(|other| (other.what, other.plan.address, other.port)));
    for (name, address, port) in targets {
        scope.spawn(move || assert!(blocked(machine.run(|| ask(address, port, SHORT))), "{what} to {name}"));
        scope.spawn(move || {
            assert!(blocked(inside(namespace, || ask(address, port, SHORT))), "namespace of {what} to {name}");
        });
        scope.spawn(move || assert!(!machine.pings(address), "ping from {what} to {name}"));
    }
    scope.spawn(move || assert!(blocked(ask(plan.address, *port, SHORT)), "the host to {what}"));
    scope.spawn(move || assert!(blocked(inside(&world.fd, || ask(plan.address, *port, SHORT))), "the world to {what}"));
}

/// A routed sandbox after the end of its runner; `bridged` is one whose port becomes free.
async fn assert_found_again_and_removed(host: &TestHost, plan: &Plan, bridged: &Plan) {
    let (network, link) = (&host.network, plan.host_link.as_str());
    assert!(routes(plan).contains(link), "{}", routes(plan));
    let veth = ip(&format!("-d link show {link}"));
    for words in [&format!("alias {}", plan.sandbox), "NOARP", ",UP", "addrgenmode none"] {
        assert!(veth.contains(words), "{words} in {veth}");
    }
    assert_eq!(Sysctl::open().unwrap().get(&format!("ipv4/conf/{link}/rp_filter")).unwrap(), 1);

    // The runner is started again: the routes are no foreign ones.
    network.prepare_host().await.unwrap();
    assert_eq!(network.open(plan).await.unwrap().name(), &plan.netns);
    let survey = network.survey().await.unwrap();
    assert!(
        survey.namespaces.iter().any(|seen| seen.maker == Maker::Us && seen.sandbox.as_ref() == Some(&plan.sandbox))
    );
    assert!(
        survey.links.iter().any(|seen| seen.maker == Maker::Us && seen.sandbox == plan.sandbox && seen.name == link)
    );

    // Made again over what is there.
    drop(network.create(plan).await.unwrap());
    assert!(!is_bridged(plan));
    let began = Instant::now();
    network.remove(plan).await.unwrap();
    println!("removed after {:?}", began.elapsed());
    assert!(!link_exists(link) && !name_exists(&plan.netns));
    assert_eq!(routes(plan), "", "the route goes with the link");

    // There is room again, so the same slot is bridged now.
    network.remove(bridged).await.unwrap();
    drop(network.create(plan).await.unwrap());
    assert!(is_bridged(plan));
    assert_eq!(routes(plan), "");
}

/// A routed namespace as after a breakout from the virtual machine: its own rules are gone. The host's
/// rules hold it, and nothing else would.
fn assert_held_by_the_host(host: &TestHost, world: &World, plan: &Plan, namespace: &Namespace) {
    let link = plan.host_link.as_str();
    let strange = Ipv4Addr::new(203, 0, 113, 9);
    let [a, b, c, d] = plan.address.octets();
    let hardware = |first: u8| format!("{first:02x}:63:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    inside(namespace, || {
        Transaction::delete("runner_ch").commit().unwrap();
        ip(&format!("addr add {strange}/32 dev eth0"));
        Sysctl::open().unwrap().set("ipv6/conf/eth0/disable_ipv6", 0).unwrap();
        ip("addr add fd00::2/64 dev eth0 nodad");
        ip(&format!("neigh add fd00::1 lladdr {} dev eth0", hardware(0xfe)));
    });
    // The reverse path filter lets the strange source pass, and the host has IPv6 on the link.
    ip(&format!("route add {strange}/32 dev {link}"));
    assert_eq!(ip(&format!("-6 addr show dev {link}")), "", "the host's end has no IPv6 address");
    ip(&format!("addr add fd00::1/64 dev {link} nodad"));
    ip(&format!("neigh add fd00::2 lladdr {} dev {link}", hardware(0x02)));
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let target = SocketAddr::from(("fd00::1".parse::<Ipv6Addr>().unwrap(), listener.local_addr().unwrap().port()));
    let connects = || inside(namespace, || TcpStream::connect_timeout(&target, SHORT)).map(drop);

    eventually("the way to the world", || inside(namespace, || ping(plan.address, world.open)));
    let pings = inside(&world.fd, Pings::new);
    let arrives = || {
        inside(namespace, || ping(strange, world.open));
        pings.saw(strange)
    };
    assert!(!arrives(), "a strange source");
    assert_eq!(connects().unwrap_err().kind(), io::ErrorKind::TimedOut, "IPv6 to the host");
    Transaction::delete(&host.table).commit().unwrap();
    assert!(arrives(), "a strange source without our rules");
    connects().unwrap();
}

#[test]
fn a_link_that_has_no_alias_yet_is_known_by_its_hardware_address() {
    alone(async || {
        let host = TestHost::alone("10.231.0.0/24".parse().unwrap()).await;
        let plan = host.plan(1);
        let link = plan.host_link.as_str();
        let ours = "fe:63:0a:e7:00:02";
        for (master, address) in [("", ours), (host.bridge.as_str(), ours)] {
            // As after a crash in the middle: a namespace of ours, and the pair without its alias.
            drop(host.network.create(&plan).await.unwrap());
            ip(&format!("link del {link}"));
            ip(&format!("link add {link} address {address} type veth peer name eth0 netns {}", plan.netns));
            if !master.is_empty() {
                ip(&format!("link set {link} master {master}"));
            }
            host.network.remove(&plan).await.unwrap();
            assert!(!link_exists(link), "{master:?}");
        }
        drop(host.network.create(&plan).await.unwrap());
        ip(&format!("link del {link}"));
        ip(&format!("link add {link} type veth peer name other"));
        host.network.remove(&plan).await.unwrap();
        assert!(link_exists(link) && !name_exists(&plan.netns), "somebody else's link");
    });
}
