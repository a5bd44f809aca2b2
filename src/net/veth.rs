//! The pair of links between the host and a sandbox's namespace.
//!
//! The host's end comes in two forms. While the bridge has room the end is a port of it, isolated from all
//! other ports. A Linux bridge has at most 1023 ports, though (the kernel counts them in ten bits), and a
//! host is to carry thousands of sandboxes. When the bridge is full the end stays without a controller and
//! the host gets a route to the sandbox's one address, which the kernel deletes together with the link.
//! A second bridge would need a gateway and a share of the pool of its own, and a place to remember them; a
//! route needs neither, so a slot means the same addresses in both forms. The bridge stays the usual form
//! because it is what CH_BRIDGE_NAME asks for.
//!
//! A routed end does without ARP: both ends get the other's hardware address from the beginning. The gateway's
//! address is on the bridge, and whether the kernel answers for it on other links depends on `arp_ignore` and
//! `arp_filter` of the whole host, of which a link can only make the stricter choice.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoData, InfoPortKind, InfoVeth, LinkAttribute,
};
use rtnetlink::{LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::addresses::is_host_link;
use super::error::Error;
use super::netlink::{Link, Netlink};
use super::rules::UPLINK;
use super::{Namespace, Plan};
use crate::ids::SandboxId;

/// The least MTU with which a link has IPv6 (RFC 8200).
const MIN_IPV6_MTU: u32 = 1280;

/// How the host reaches its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Port of the bridge.
    Bridged,
    /// On its own, with a route.
    Routed,
}

/// The sandbox that a link is the host's end of; `None` for all other links.
pub(super) fn owner(link: &Link) -> Option<SandboxId> {
    link.alias.as_ref().filter(|_| is_host_link(&link.name))?.parse().ok()
}

/// The address of the pool that an end's hardware address stands for; `None` for a link that no runner made.
pub(super) fn address_of(link: &Link) -> Option<Ipv4Addr> {
    match *link.address.as_slice() {
        [0xfe | 0x02, 0x63, a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d)),
        _ => None,
    }
}

/// True when the link was born as the host's end in this slot, which is known before it has its alias.
pub(super) fn is_host_end(link: &Link, plan: &Plan) -> bool {
    link.name == plan.host_link.as_str() && link.address == host_mac(plan)
}

/// Makes both ends where they belong; they are down, and the host's belongs to no bridge yet.
pub(super) fn create(host: &mut Netlink, plan: &Plan, namespace: &Namespace, mtu: u32) -> Result<(), Error> {
    let name = plan.host_link.as_str();
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(UPLINK)
        .address(inner_mac(plan).to_vec())
        .mtu(mtu)
        .setns_by_fd(namespace.as_fd().as_raw_fd())
        .build();
    let pair = LinkVeth::new(name, UPLINK)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .address(host_mac(plan).to_vec())
        .mtu(mtu)
        .build();
    host.add(&format!("add link {name}"), Message::NewLink(pair))
}

/// Joins the host's end to the bridge or, when that is full, makes it a routed one; then marks it as the
/// sandbox's and brings it up. `has_ipv6` is about the kernel.
pub(super) fn attach(host: &mut Netlink, plan: &Plan, bridge: &Link, has_ipv6: bool) -> Result<Form, Error> {
    let name = plan.host_link.as_str();
    // Alone in its request: the kernel would complain in its log about one that it carries out in part.
    let join = LinkUnspec::new_with_name(name).controller(bridge.index).build();
    match host.change(&format!("add link {name} to bridge {}", bridge.name), Message::SetLink(join)) {
        Ok(()) => set_port(host, plan).map(|()| Form::Bridged),
        Err(error) if error.errno() == Some(libc::EXFULL) => {
            tracing::debug!(link = name, bridge = bridge.name, "the bridge is full; the link is routed");
            set_routed(host, plan, has_ipv6 && bridge.mtu >= MIN_IPV6_MTU).map(|()| Form::Routed)
        }
        Err(error) => Err(error),
    }
}

/// The alias and, before the link comes up, the isolation from all other sandboxes' ports.
fn set_port(host: &mut Netlink, plan: &Plan) -> Result<(), Error> {
    let name = plan.host_link.as_str();
    let port = LinkMessageBuilder::<LinkBridgePort>::default()
        .set_port_kind(InfoPortKind::Bridge)
        .isolated(true)
        .name(name)
        .alias(plan.sandbox.as_str())
        .up()
        .build();
    host.change(&format!("set link {name} isolated and up"), Message::NewLink(port))
}

/// The alias, settings, and the way to the sandbox. The alias comes before the route, which counts as the
/// operator's own unless it is at a link of a sandbox.
fn set_routed(host: &mut Netlink, plan: &Plan, ipv6: bool) -> Result<(), Error> {
    let name = plan.host_link.as_str();
    // Settings go by netlink because the thread is in the sandbox's namespace, where /proc/sys is another.
    let mut strict = InetDevConf::default();
    // Whatever the host does elsewhere, a source that is not the sandbox's own address is refused here. (It
    // is the packet filter that can be relied upon: a host-wide 2, "loose", wins over this.)
    strict.rp_filter = 1;
    let mut settings = vec![AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(strict)])];
    if ipv6 {
        settings.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]));
    }
    let message = LinkUnspec::new_with_name(name)
        .alias(plan.sandbox.as_str())
        .arp(false)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(settings))
        .build();
    host.change(&format!("set link {name} up for routing"), Message::SetLink(message))?;
    let link = (name, host.bring_up(name)?);
    host.add_neighbour(link, plan.address, inner_mac(plan))?;
    host.add_neighbour_route(link, plan.address)
}

/// The end inside. Only the gateway is directly reachable; other sandboxes are not, although they may be on
/// the same bridge.
pub(super) fn inner_end(inside: &mut Netlink, plan: &Plan, form: Form) -> Result<(), Error> {
    let link = (UPLINK, inside.bring_up(UPLINK)?);
    inside.add_address(link, plan.address, 32)?;
    if form == Form::Routed {
        inside.add_neighbour(link, plan.gateway, host_mac(plan))?;
    }
    inside.add_neighbour_route(link, plan.gateway)?;
    let far = RouteMessageBuilder::<Ipv4Addr>::new().gateway(plan.gateway).output_interface(link.1).build();
    inside.add(&format!("add the default route by {}", plan.gateway), Message::NewRoute(far))
}

/// Hardware addresses follow from the slot's address: what a neighbour remembers about an address stays true
/// when the slot changes hands. `fe` is the highest, so no bridge takes it for its own.
fn host_mac(plan: &Plan) -> [u8; 6] {
    mac(0xfe, plan)
}

fn inner_mac(plan: &Plan) -> [u8; 6] {
    mac(0x02, plan)
}

fn mac(first: u8, plan: &Plan) -> [u8; 6] {
    let [a, b, c, d] = plan.address.octets();
    [first, 0x63, a, b, c, d]
}
