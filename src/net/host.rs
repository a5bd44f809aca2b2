//! What all sandboxes share on the host: bridge, gateway address, forwarding, the packet filter.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::{AddressMessageBuilder, LinkBridge, LinkUnspec};
use sha2::{Digest, Sha256};

use super::addresses::Ipv4Net;
use super::error::Error;
use super::linux::Settings;
use super::netlink::{Link, Netlink};
use super::sysctl::Sysctl;
use super::{GUEST_GATEWAY, GUEST_PREFIX, rules, veth};

/// The alias that tells a bridge of ours from one that the operator made.
const MARK: &str = "runner-ch";
/// Ethernet's MTU: the most that a guest sends.
const MTU: u32 = 1500;
/// The least that IPv4 may be given (RFC 791).
const MIN_MTU: u32 = 576;

/// Makes or completes all of it. Safe to repeat; the packet filter is replaced in one step.
pub(super) fn prepare(settings: &Settings) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let bridge = links.iter().find(|link| link.name == settings.bridge.as_str());
    if let Some(link) = bridge.filter(|link| !link.is_bridge) {
        return Err(Error::Foreign { object: format!("link {}", link.name), why: "it is not a bridge".to_owned() });
    }
    check_overlap(&mut netlink, settings, &links, bridge)?;
    let bridge = match bridge {
        Some(link) => link.clone(),
        None => make_bridge(&mut netlink, settings, &links)?,
    };
    bring_up(&mut netlink, settings, &bridge)?;
    tune(settings.pool)?;
    let own_bridge = is_own(&bridge);
    rules::host(&rules::HostRules {
        table: &settings.table,
        bridge: &bridge.name,
        own_bridge,
        pool: settings.pool,
        deny: &settings.deny,
    })
    .commit()
}

pub(super) fn is_own(bridge: &Link) -> bool {
    bridge.alias.as_deref() == Some(MARK)
}

fn make_bridge(netlink: &mut Netlink, settings: &Settings, links: &[Link]) -> Result<Link, Error> {
    let name = settings.bridge.as_str();
    // Without an address of its own a bridge takes that of a port and changes it as ports come and
    // go, which leaves the sandboxes with a wrong neighbour entry for their gateway.
    let hash = Sha256::digest(name.as_bytes());
    let address = vec![0x02, hash[0], hash[1], hash[2], hash[3], hash[4]];
    let message =
        LinkBridge::new(name).down().address(address).mtu(uplink_mtu(netlink, links)?).mcast_snooping(false).build();
    netlink.add(&format!("add bridge {name}"), Message::NewLink(message))?;
    let mark = LinkUnspec::new_with_name(name).alias(MARK).build();
    netlink.change(&format!("mark bridge {name}"), Message::SetLink(mark))?;
    // The bridge is there for IPv4 alone.
    let no_ipv6 = format!("ipv6/conf/{name}/disable_ipv6");
    let sysctl = Sysctl::open()?;
    if sysctl.has(&no_ipv6) {
        sysctl.set(&no_ipv6, 1)?;
    }
    tracing::info!(bridge = name, "bridge made");
    netlink.link(name)?.ok_or_else(|| Error::NoBridge { bridge: settings.bridge.clone() })
}

/// The smallest MTU on the way out, so that a bridge never promises more than the host's uplink
/// keeps: the links of the default routes, at most Ethernet's.
fn uplink_mtu(netlink: &mut Netlink, links: &[Link]) -> Result<u32, Error> {
    let routes = netlink.routes()?;
    let default_links = routes.iter().filter(|route| route.net.prefix() == 0).filter_map(|route| route.link);
    let mtus = default_links.filter_map(|index| links.iter().find(|link| link.index == index)).map(|link| link.mtu);
    Ok(mtus.min().unwrap_or(MTU).clamp(MIN_MTU, MTU))
}

fn bring_up(netlink: &mut Netlink, settings: &Settings, bridge: &Link) -> Result<(), Error> {
    let up = LinkUnspec::new_with_index(bridge.index).up().build();
    netlink.change(&format!("set bridge {} up", bridge.name), Message::SetLink(up))?;
    let (gateway, prefix) = (settings.pool.first(), settings.pool.prefix());
    let message = AddressMessageBuilder::<Ipv4Addr>::new().index(bridge.index).address(gateway, prefix).build();
    match netlink.add(&format!("add {gateway}/{prefix} to bridge {}", bridge.name), Message::NewAddress(message)) {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        result => result,
    }
}

/// Forwarding, and room for all sandboxes' neighbour entries: the kernel's tables hold 1024 by
/// default, those of all namespaces together, and every sandbox takes one here and one inside.
fn tune(pool: Ipv4Net) -> Result<(), Error> {
    let sysctl = Sysctl::open()?;
    sysctl.raise("ipv4/ip_forward", 1)?;
    let (soft, hard) = ("ipv4/neigh/default/gc_thresh2", "ipv4/neigh/default/gc_thresh3");
    if !sysctl.has(hard) {
        // The tables are the whole machine's and only its first namespace can change them; a runner in a
        // container or in a test lives with what it finds.
        tracing::info!("the size of the neighbour tables cannot be changed from this network namespace");
        return Ok(());
    }
    let entries = pool.size() * 2 + 1024;
    sysctl.raise(hard, entries * 2)?;
    sysctl.raise(soft, entries)
}

/// Refuses a pool that would take addresses away from somebody: the host's, its routes', the guests'.
fn check_overlap(
    netlink: &mut Netlink,
    settings: &Settings,
    links: &[Link],
    bridge: Option<&Link>,
) -> Result<(), Error> {
    let pool = settings.pool;
    let overlap = |other: String| Err(Error::Overlap { pool, other });
    let guests = Ipv4Net::around(GUEST_GATEWAY, GUEST_PREFIX);
    if pool.overlaps(&guests) {
        return overlap(format!("{guests}, the network between each guest and its gateway"));
    }
    let name = |index: Option<u32>| {
        let link = links.iter().find(|link| Some(link.index) == index);
        link.map_or("no link", |link| link.name.as_str())
    };
    // On our own bridge everything is ours. On another one only what we put there ourselves is.
    let ours = |link: Option<u32>, same: bool| {
        bridge.is_some_and(|bridge| Some(bridge.index) == link && (same || is_own(bridge)))
    };
    for found in netlink.addresses()? {
        let net = Ipv4Net::around(found.address, found.prefix);
        let same = found.address == pool.first() && found.prefix == pool.prefix();
        if net.overlaps(&pool) && !ours(Some(found.link), same) {
            return overlap(format!(
                "this host's address {}/{} on {}",
                found.address,
                found.prefix,
                name(Some(found.link))
            ));
        }
    }
    // A host link keeps its route, and its sandbox, when the runner is started again.
    let sandboxes: HashSet<u32> = links.iter().filter(|l| veth::owner(l).is_some()).map(|link| link.index).collect();
    let routed =
        |net: &Ipv4Net, link: Option<u32>| net.prefix() == 32 && link.is_some_and(|index| sandboxes.contains(&index));
    for found in netlink.routes()? {
        if routed(&found.net, found.link) {
            continue;
        }
        if found.net.prefix() > 0 && found.net.overlaps(&pool) && !ours(found.link, found.net == pool) {
            return overlap(format!("this host's route to {} by {}", found.net, name(found.link)));
        }
    }
    Ok(())
}
