//! What of sandboxes' networks is on this host: named namespaces, host links, rules. It only looks, at what was
//! made by whomever, and says of each thing whether this runner made it.
//!
//! The mark of a namespace is the alias of its loopback link, which names the sandbox, and that link's group, which
//! names the runner. A namespace of before runners had numbers is this runner's when its uplink is the other end of a
//! host link of this runner. A host link is this runner's when it has a sandbox's alias and its hardware address
//! stands for an address of the pool: no other runner in the same network can have that pool.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::addresses::Ipv4Net;
use super::error::Error;
use super::linux::Settings;
use super::netlink::{Link, Netlink};
use super::{Namespace, TAP, host, netns, nft, rules, sandbox, veth};
use crate::error::chain;
use crate::ids::{NetnsName, SandboxId};

/// Where the kernel lists the mounts of this process.
const MOUNTS: &str = "/proc/self/mountinfo";

/// The number of the runner that has its VMMs' API sockets in this directory; never 0, which is no runner's. 31 bits,
/// because `ip link` takes no higher group.
pub fn owner_number(sockets: &Path) -> u32 {
    let hash = Sha256::digest(sockets.as_os_str().as_encoded_bytes());
    (u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]) >> 1).max(1)
}

/// Who made a thing, as far as it can be proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// This runner.
    Us,
    /// Another runner.
    Another,
    /// A runner, and nothing says which.
    Unproven,
    /// No runner.
    Stranger,
}

/// How a name below /run/netns stands for a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// As it should.
    Mounted,
    /// Mounted so many times, one over the other.
    Stacked(usize),
    /// It is a plain file.
    Plain,
}

/// A name below /run/netns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceSeen {
    /// The name.
    pub name: NetnsName,
    /// Whether it is a namespace at all.
    pub naming: Naming,
    /// Who made it; of a plain file nothing is known.
    pub maker: Maker,
    /// The sandbox in its mark.
    pub sandbox: Option<SandboxId>,
    /// It has the sandboxes' TAP.
    pub tap: bool,
    /// It has an uplink.
    pub uplink: bool,
    /// Other TAPs in it.
    pub other_taps: Vec<String>,
    /// Rules of our table in it.
    pub rules: usize,
}

/// A link of the host that carries a sandbox's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSeen {
    /// Its name.
    pub name: String,
    /// The sandbox in its alias.
    pub sandbox: SandboxId,
    /// Who made it.
    pub maker: Maker,
}

/// Everything that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSurvey {
    /// Names below /run/netns; those that no runner made are left out, but for plain files.
    pub namespaces: Vec<NamespaceSeen>,
    /// Host links with a sandbox's alias.
    pub links: Vec<LinkSeen>,
    /// The bridge, and whether it is there.
    pub bridge: (String, bool),
    /// Rules of the host's table.
    pub host_rules: usize,
    /// Rules that the host's table is made with.
    pub host_rules_made: usize,
    /// What could not be looked at, and why.
    pub unread: Vec<String>,
}

/// Something of a sandbox that has no network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaked {
    /// A named namespace, or the plain file of one that has `ns-{id}` as its name.
    Namespace {
        /// Its name.
        name: NetnsName,
        /// The sandbox in its mark.
        sandbox: SandboxId,
    },
    /// The host's end of a veth.
    Link {
        /// Its name.
        name: String,
        /// The sandbox in its alias.
        sandbox: SandboxId,
    },
}

impl Leaked {
    /// Whose it was.
    pub fn sandbox(&self) -> &SandboxId {
        match self {
            Self::Namespace { sandbox, .. } | Self::Link { sandbox, .. } => sandbox,
        }
    }
}

impl fmt::Display for Leaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace { name, sandbox } => write!(f, "network namespace {name} of sandbox {sandbox}"),
            Self::Link { name, sandbox } => write!(f, "link {name} of sandbox {sandbox}"),
        }
    }
}

/// As [`super::Network::survey`]. Blocks: some hundred microseconds for each sandbox.
pub(super) fn look(settings: &Settings) -> Result<NetworkSurvey, Error> {
    let links = Netlink::open()?.links()?;
    let bridge = links.iter().find(|link| link.name == settings.bridge.as_str());
    let made = rules::host(&rules::HostRules {
        table: &settings.table,
        bridge: settings.bridge.as_str(),
        own_bridge: bridge.is_none_or(host::is_own),
        pool: settings.pool,
        deny: &settings.deny,
    });
    let ends = host_ends(&links, settings.pool);
    let mut survey = NetworkSurvey {
        namespaces: Vec::new(),
        links: links.iter().filter_map(|link| link_seen(link, settings.pool)).collect(),
        bridge: (settings.bridge.to_string(), bridge.is_some()),
        host_rules: nft::count_rules(&settings.table)?,
        host_rules_made: made.rules(),
        unread: Vec::new(),
    };
    let stacks = match std::fs::read_to_string(MOUNTS) {
        Ok(mounts) => stacked(&mounts),
        Err(error) => {
            survey.unread.push(format!("{MOUNTS}: {error}"));
            HashMap::new()
        }
    };
    for name in netns::names()? {
        let stack = stacks.get(name.as_str()).copied();
        match namespace_seen(&name, settings.owner, &ends, stack) {
            Ok(seen) => survey.namespaces.extend(seen),
            Err(error) => survey.unread.push(format!("network namespace {name}: {}", chain(&error))),
        }
    }
    Ok(survey)
}

/// As [`super::Network::remove_leaked`].
pub(super) fn remove(settings: &Settings, leaked: &Leaked) -> Result<bool, Error> {
    match leaked {
        Leaked::Namespace { name, sandbox } => {
            let ends = host_ends(&Netlink::open()?.links()?, settings.pool);
            match namespace_seen(name, settings.owner, &ends, None)? {
                None => return Ok(false),
                // Nothing but its name tells whose a plain file is.
                Some(seen) if seen.naming == Naming::Plain && *name == sandbox.netns() => {}
                Some(seen) if seen.maker == Maker::Us && seen.sandbox.as_ref() == Some(sandbox) => {}
                Some(_) => return Err(foreign(leaked)),
            }
            netns::remove_name(name)
        }
        Leaked::Link { name, sandbox } => {
            let mut netlink = Netlink::open()?;
            let Some(link) = netlink.link(name)? else { return Ok(false) };
            match link_seen(&link, settings.pool) {
                Some(seen) if seen.maker == Maker::Us && seen.sandbox == *sandbox => netlink.delete_link_at(link.index),
                _ => Err(foreign(leaked)),
            }
        }
    }
}

fn foreign(leaked: &Leaked) -> Error {
    Error::Foreign { object: leaked.to_string(), why: "nothing on it proves that this runner made it".to_owned() }
}

fn link_seen(link: &Link, pool: Ipv4Net) -> Option<LinkSeen> {
    let sandbox = veth::owner(link)?;
    let ours = veth::address_of(link).is_some_and(|address| pool.contains(address));
    Some(LinkSeen { name: link.name.clone(), sandbox, maker: if ours { Maker::Us } else { Maker::Another } })
}

/// Sandboxes of this runner's host links by the address that they stand for.
fn host_ends(links: &[Link], pool: Ipv4Net) -> BTreeMap<Ipv4Addr, SandboxId> {
    let ours = links.iter().filter(|link| link_seen(link, pool).is_some_and(|seen| seen.maker == Maker::Us));
    ours.filter_map(|link| Some((veth::address_of(link)?, veth::owner(link)?))).collect()
}

/// `None` for one that is gone, or that no runner made.
fn namespace_seen(
    name: &NetnsName,
    owner: u32,
    ends: &BTreeMap<Ipv4Addr, SandboxId>,
    stack: Option<usize>,
) -> Result<Option<NamespaceSeen>, Error> {
    let mut seen = NamespaceSeen {
        name: name.clone(),
        naming: stack.map_or(Naming::Mounted, Naming::Stacked),
        maker: Maker::Stranger,
        sandbox: None,
        tap: false,
        uplink: false,
        other_taps: Vec::new(),
        rules: 0,
    };
    let namespace = match Namespace::open(name) {
        Ok(namespace) => namespace,
        Err(Error::NoNamespace { .. }) => {
            let there = netns::path(name).symlink_metadata().is_ok_and(|about| about.is_file());
            seen.naming = Naming::Plain;
            return Ok(there.then_some(seen));
        }
        Err(error) => return Err(error),
    };
    let enter = |error| Error::kernel(format!("enter network namespace {name}"), error);
    let inside = || Ok::<_, Error>((Netlink::open()?.links()?, nft::count_rules(rules::SANDBOX_TABLE)?));
    let (links, rules) = namespace.inside(inside).map_err(enter)??;
    let Some((mark, sandbox)) = links.iter().find_map(|link| Some((link, sandbox::marked_for(link)?))) else {
        return Ok(None);
    };
    let uplink = links.iter().find(|link| link.name == rules::UPLINK);
    let joined = uplink.and_then(veth::address_of).is_some_and(|address| ends.get(&address) == Some(&sandbox));
    seen.maker = maker(mark.group, owner, joined);
    seen.sandbox = Some(sandbox);
    seen.uplink = uplink.is_some();
    seen.tap = links.iter().any(|link| link.is_tun && link.name == TAP);
    seen.other_taps = links.iter().filter(|link| link.is_tun && link.name != TAP).map(|l| l.name.clone()).collect();
    seen.rules = rules;
    Ok(Some(seen))
}

/// `joined`: its uplink ends at a host link of this runner and of the same sandbox.
fn maker(group: u32, owner: u32, joined: bool) -> Maker {
    match group {
        0 if joined => Maker::Us,
        0 => Maker::Unproven,
        _ if group == owner => Maker::Us,
        _ => Maker::Another,
    }
}

/// Names below /run/netns on which namespaces are mounted one over the other, with how many. Where /run/netns is
/// bound to itself, as iproute2 does it, each mount is listed twice, with different parents.
fn stacked(mountinfo: &str) -> HashMap<String, usize> {
    let mut mounts: HashMap<&str, Vec<(&str, &str)>> = HashMap::new();
    for line in mountinfo.lines() {
        // proc_pid_mountinfo(5): id, parent, device, root, mount point.
        let mut fields = line.split(' ');
        let (Some(id), Some(parent), Some(point)) = (fields.next(), fields.next(), fields.nth(2)) else { continue };
        if let Some(name) = point.strip_prefix("/run/netns/") {
            mounts.entry(name).or_default().push((id, parent));
        }
    }
    let depth = |entries: &[(&str, &str)]| {
        1 + entries.iter().filter(|(_, parent)| entries.iter().any(|(id, _)| id == parent)).count()
    };
    let depths = mounts.into_iter().map(|(name, entries)| (name.to_owned(), depth(&entries)));
    depths.filter(|(_, depth)| *depth > 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_tells_runners_apart_and_a_link_proves_what_has_none() {
        let (ours, other) = (owner_number(Path::new("/run/a")), owner_number(Path::new("/run/b")));
        assert_ne!(ours, other);
        for joined in [false, true] {
            assert_eq!(maker(ours, ours, joined), Maker::Us);
            assert_eq!(maker(other, ours, joined), Maker::Another, "a number of another one always wins");
        }
        assert_eq!(maker(0, ours, true), Maker::Us);
        assert_eq!(maker(0, ours, false), Maker::Unproven);
    }

    #[test]
    fn a_link_of_another_pool_is_another_runners() {
        let pool: Ipv4Net = "10.220.0.0/16".parse().unwrap();
        let link = |address: [u8; 6], alias: Option<&str>| Link {
            name: "chv7".into(),
            alias: alias.map(str::to_owned),
            address: address.to_vec(),
            ..Link::default()
        };
        let maker = |link: &Link| link_seen(link, pool).map(|seen| seen.maker);
        assert_eq!(maker(&link([0xfe, 0x63, 10, 220, 0, 8], Some("box"))), Some(Maker::Us));
        assert_eq!(maker(&link([0xfe, 0x63, 10, 221, 0, 8], Some("box"))), Some(Maker::Another));
        assert_eq!(maker(&link([0x52, 0x54, 0, 1, 2, 3], Some("box"))), Some(Maker::Another));
        assert_eq!(maker(&link([0xfe, 0x63, 10, 220, 0, 8], None)), None);
    }

    #[test]
    fn mounts_over_each_other_are_counted_and_twins_are_not() {
        let twins = "40 30 0:4 net:[1] /run/netns/ns-a rw - nsfs nsfs rw\n41 31 0:4 net:[1] /run/netns/ns-a rw - nsfs nsfs rw\n";
        assert_eq!(stacked(twins), HashMap::new());
        let stack = "40 30 0:4 net:[1] /run/netns/ns-b rw - nsfs nsfs rw\n42 40 0:4 net:[2] /run/netns/ns-b rw - nsfs nsfs rw\n";
        assert_eq!(stacked(&format!("{twins}{stack}")), HashMap::from([("ns-b".to_owned(), 2)]));
    }
}
