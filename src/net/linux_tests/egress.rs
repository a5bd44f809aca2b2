//! Where a sandbox may go when that was restricted.

use std::net::IpAddr;

use super::support::TestHost;
use super::world::{PATIENCE, SHORT, World, ask, blocked, listen, sandbox_with};
use crate::net::{Egress, Ipv4Net, guest};

#[tokio::test]
async fn a_blocked_sandbox_reaches_nothing_but_is_reached_by_the_runner() {
    let host = TestHost::prepared().await;
    let world = World::new(&host);
    let (_plan, namespace, machine) = sandbox_with(&host, 1, Egress::Blocked).await;
    for address in [world.open, world.other] {
        assert!(blocked(machine.run(|| ask(address, world.port, SHORT))), "{address}");
        assert!(!machine.pings(address), "ping of {address}");
    }
    let port = machine.run(|| listen("0.0.0.0"));
    assert!(namespace.connect(guest(port), PATIENCE).await.is_ok(), "the runner gets in");
    // It is the rule: another sandbox beside it is free to go.
    let (_plan, _namespace, free) = sandbox_with(&host, 2, Egress::Open).await;
    assert!(free.run(|| ask(world.open, world.port, PATIENCE)).is_ok());
}

#[tokio::test]
async fn a_list_opens_what_it_names_and_nothing_that_is_denied_to_all() {
    let host = TestHost::prepared().await;
    let world = World::new(&host);
    let nets = [world.open, world.denied].map(|address| Ipv4Net::around(address, 32));
    let (plan, _namespace, machine) = sandbox_with(&host, 1, Egress::Only(nets.to_vec())).await;
    assert_eq!(machine.run(|| ask(world.open, world.port, PATIENCE)).unwrap(), IpAddr::from(world.host));
    assert!(machine.pings(world.open));
    assert!(blocked(machine.run(|| ask(world.other, world.port, SHORT))), "not on the list");
    assert!(!machine.pings(world.other), "ping of what is not on the list");
    assert!(blocked(machine.run(|| ask(world.denied, world.port, SHORT))), "the operator's word counts more");

    // A list may be as wide as it likes; the host and other sandboxes are no part of the world.
    let everything = Egress::Only(vec!["0.0.0.0/0".parse().unwrap()]);
    let (other, _namespace, wide) = sandbox_with(&host, 2, everything).await;
    assert!(wide.run(|| ask(world.other, world.port, PATIENCE)).is_ok());
    let port = listen("0.0.0.0");
    assert!(ask(other.gateway, port, PATIENCE).is_ok(), "the host listens");
    for address in [other.gateway, world.host, world.denied, plan.address] {
        assert!(blocked(wide.run(|| ask(address, port, SHORT))), "{address}");
    }
}
