//! One sandbox's network: making it and taking it away. Everything here blocks and belongs on a
//! thread of its own.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::LinkAttribute;

use super::error::Error;
use super::netlink::{Link, Netlink};
use super::sysctl::Sysctl;
use super::{GUEST, GUEST_GATEWAY, GUEST_PREFIX, Namespace, Plan, TAP, netns, rules, tap, veth};
use crate::crash;
use crate::ids::{LinkName, SandboxId};

/// After this the host's end is deleted even though somebody still holds the namespace: a connection
/// that still waits for the dead guest's acknowledgement, for one. Leaving it to the kernel is cheaper
/// and takes 30 ms.
const GRACE: Duration = Duration::from_millis(300);
/// After this tear-down is given up.
const DEADLINE: Duration = Duration::from_secs(5);
/// The loopback link's alias says whose a namespace is; loopback is there from the beginning.
const MARKED: &str = "lo";
const MARK: &str = "runner-ch ";

/// Makes the network. The calling thread ends up inside the namespace and must end.
pub(super) fn create(bridge: &LinkName, owner: u32, plan: &Plan) -> Result<Namespace, Error> {
    let mut host = Netlink::open()?;
    let found = host.link(bridge.as_str())?.filter(|link| link.is_bridge);
    let found = found.ok_or_else(|| Error::NoBridge { bridge: bridge.clone() })?;
    if let Some(link) = tear_down(&mut host, plan)? {
        let whose = link.alias.map_or("it has no alias".to_owned(), |alias| format!("its alias is {alias:?}"));
        return Err(Error::Foreign {
            object: format!("link {}", link.name),
            why: format!("{whose}, not {:?}", plan.sandbox.as_str()),
        });
    }
    let mut builder = Builder { host, plan, owner, linked: false };
    builder.build(&found).map_err(|error| builder.undo(error))
}

/// Removes everything and waits until the slot's names are free. A link of somebody else under the
/// slot's name is left alone: then nothing of this sandbox is left.
pub(super) fn remove(plan: &Plan) -> Result<(), Error> {
    if let Some(link) = tear_down(&mut Netlink::open()?, plan)? {
        tracing::warn!(link = link.name, alias = link.alias, sandbox = %plan.sandbox, "the slot's link is not ours");
    }
    Ok(())
}

/// Opens the namespace, provided that it is the sandbox's.
pub(super) fn open(plan: &Plan) -> Result<Namespace, Error> {
    let namespace = Namespace::open(&plan.netns)?;
    check_mark(&namespace, &plan.sandbox)?;
    Ok(namespace)
}

/// The sandbox that a namespace belongs to; `None` when it is not one of ours.
pub(super) fn owner(namespace: &Namespace) -> Result<Option<SandboxId>, Error> {
    let enter = || format!("enter network namespace {}", namespace.name());
    let mut inside = namespace.inside(Netlink::open).map_err(|error| Error::kernel(enter(), error))??;
    Ok(inside.link(MARKED)?.and_then(|link| marked_for(&link)))
}

/// The sandbox whose mark a loopback link carries.
pub(super) fn marked_for(link: &Link) -> Option<SandboxId> {
    link.alias.as_ref().filter(|_| link.name == MARKED)?.strip_prefix(MARK)?.parse().ok()
}

fn check_mark(namespace: &Namespace, sandbox: &SandboxId) -> Result<(), Error> {
    let why = match owner(namespace)? {
        Some(owner) if owner == *sandbox => return Ok(()),
        Some(owner) => format!("it belongs to sandbox {owner}"),
        None => format!("its loopback link lacks the alias \"{MARK}{sandbox}\""),
    };
    Err(Error::Foreign { object: format!("network namespace {}", namespace.name()), why })
}

/// Removes what is the sandbox's. Returns the link that has the slot's name but is not the sandbox's.
fn tear_down(host: &mut Netlink, plan: &Plan) -> Result<Option<Link>, Error> {
    match Namespace::open(&plan.netns) {
        Ok(namespace) => check_mark(&namespace, &plan.sandbox)?,
        // The name may be there as the empty file of an interrupted creation.
        Err(Error::NoNamespace { .. }) => {}
        Err(error) => return Err(error),
    }
    let link = host.link(plan.host_link.as_str())?;
    let had_namespace = netns::remove_name(&plan.netns)?;
    crash::point("net.remove:unnamed");
    let Some(link) = link else { return Ok(None) };
    let ours = match &link.alias {
        Some(alias) => alias == plan.sandbox.as_str(),
        // The alias follows the link's creation, which may have been interrupted between the two.
        None => had_namespace && veth::is_host_end(&link, plan),
    };
    if !ours {
        return Ok(Some(link));
    }
    wait_until_gone(host, plan, link.index)?;
    Ok(None)
}

/// Waits for the kernel to take the link away with its namespace. Asked by ioctl, which does not wait
/// for the lock that the kernel's own clean-up needs.
fn wait_until_gone(host: &mut Netlink, plan: &Plan, index: u32) -> Result<(), Error> {
    let name = plan.host_link.as_str();
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    let mut forced = false;
    loop {
        match if_nametoindex(name) {
            Ok(now) if now == index => {}
            Ok(_) | Err(Errno::ENODEV) => return Ok(()),
            Err(errno) => return Err(Error::kernel(format!("look up link {name}"), errno)),
        }
        if began.elapsed() > DEADLINE {
            let (link, sandbox) = (plan.host_link.clone(), plan.sandbox.clone());
            return Err(Error::StillThere { link, sandbox, seconds: DEADLINE.as_secs() });
        }
        if !forced && began.elapsed() > GRACE {
            tracing::warn!(netns = %plan.netns, link = name, "the namespace is still held; deleting its link");
            host.delete_link(name)?;
            forced = true;
            continue;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(8));
    }
}

/// A network under construction.
struct Builder<'a> {
    /// In the host's namespace, wherever the thread is.
    host: Netlink,
    plan: &'a Plan,
    owner: u32,
    linked: bool,
}

impl Builder<'_> {
    fn build(&mut self, bridge: &Link) -> Result<Namespace, Error> {
        let plan = self.plan;
        let (namespace, mut inside) = netns::enter_new(&plan.netns, || mark(&plan.sandbox, self.owner))?;
        crash::point("net.create:named");
        let has_ipv6 = settings()?;
        // Before there is a link that anything could pass.
        rules::sandbox(&self.plan.egress).commit()?;
        tap::create(TAP)?;
        crash::point("net.create:tap");
        veth::create(&mut self.host, plan, &namespace, bridge.mtu)?;
        self.linked = true;
        crash::point("net.create:linked");
        let form = veth::attach(&mut self.host, plan, bridge, has_ipv6)?;
        guest_side(&mut inside, plan)?;
        veth::inner_end(&mut inside, plan, form)?;
        Ok(namespace)
    }

    /// Takes back what was made before the error; the rest goes with the thread, which is inside.
    fn undo(&mut self, error: Error) -> Error {
        let link = if self.linked { self.host.delete_link(self.plan.host_link.as_str()) } else { Ok(()) };
        let undone = link.and(netns::remove_name(&self.plan.netns).map(drop));
        match undone {
            Ok(()) => Error::Undone { sandbox: self.plan.sandbox.clone(), source: Box::new(error) },
            Err(fault) => {
                tracing::warn!(sandbox = %self.plan.sandbox, %fault, "a failed creation left something behind");
                error
            }
        }
    }
}

/// Writes down whose the new namespace is: the sandbox in the alias, the runner in the group, which is not asked for
/// when the sandbox is found again. The socket serves for the rest.
fn mark(sandbox: &SandboxId, owner: u32) -> Result<Netlink, Error> {
    let marked = LinkUnspec::new_with_name(MARKED).alias(format!("{MARK}{sandbox}")).up();
    let message = marked.append_extra_attribute(LinkAttribute::Group(owner)).build();
    let mut inside = Netlink::open()?;
    inside.change("mark the new network namespace", Message::SetLink(message))?;
    Ok(inside)
}

/// Kernel settings inside, before there are links to inherit them. True when the kernel has IPv6.
///
/// Two of them could be set for "all" links as well. But a write to `ip_forward` or `all/disable_ipv6` while
/// somebody else has the kernel's routing lock is tried again and again without a pause, and when many
/// sandboxes are made at once that takes up to half of the time. Those for new links take no lock.
fn settings() -> Result<bool, Error> {
    let sysctl = Sysctl::open()?;
    sysctl.set("ipv4/conf/default/forwarding", 1)?;
    for branch in ["all", "default"] {
        for (name, value) in [("rp_filter", 1), ("accept_redirects", 0), ("send_redirects", 0)] {
            sysctl.set(&format!("ipv4/conf/{branch}/{name}"), value)?;
        }
    }
    // Answer for an address only on the link that has it.
    sysctl.set("ipv4/conf/all/arp_ignore", 1)?;
    // A connection whose guest is gone holds the namespace until the kernel gives up: by default after
    // almost two minutes, with this after a second.
    sysctl.set("ipv4/tcp_orphan_retries", 2)?;
    let no_ipv6 = "ipv6/conf/default/disable_ipv6";
    let has_ipv6 = sysctl.has(no_ipv6);
    if has_ipv6 {
        sysctl.set(no_ipv6, 1)?;
    }
    Ok(has_ipv6)
}

/// The TAP with the guest's gateway address, and the guest as a fixed neighbour: no ARP while it
/// boots, and no game with ARP afterwards.
fn guest_side(inside: &mut Netlink, plan: &Plan) -> Result<(), Error> {
    let tap = (TAP, inside.bring_up(TAP)?);
    inside.add_address(tap, GUEST_GATEWAY, GUEST_PREFIX)?;
    inside.add_neighbour(tap, GUEST, plan.guest_mac)
}
