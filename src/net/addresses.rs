//! Addresses without I/O: IPv4 networks, the numbers (slots) that sandboxes get, and the plan of one
//! sandbox's network (PROTOCOL.md 9).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::Error;
use super::{Egress, Plan};
use crate::ids::{LinkName, SandboxId};

/// An IPv4 network in CIDR form; the host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Net {
    base: u32,
    prefix: u8,
}

impl Ipv4Net {
    /// The network of `prefix` bits that `address` is in; host bits of the address are cleared and a
    /// prefix above 32 counts as 32.
    pub const fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = if prefix > 32 { 32 } else { prefix };
        Self { base: address.to_bits() & mask(prefix), prefix }
    }

    /// The first address, which is the network's own.
    pub fn base(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base)
    }

    /// Length of the prefix, 0 to 32.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The netmask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    /// How many addresses it has, the first and the last one included.
    pub fn size(&self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The first address after the network's own: the gateway when the network is a pool.
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.wrapping_add(1))
    }

    /// True when the address is in the network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.base
    }

    /// True when some address is in both networks.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.base()) || other.contains(self.base())
    }
}

const fn mask(prefix: u8) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) }
}

impl FromStr for Ipv4Net {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Network { text: text.chars().take(64).collect(), reason };
        let (address, prefix) = text
            .split_once('/')
            .ok_or_else(|| refuse("expected an address and a prefix length, such as 10.220.0.0/16".to_owned()))?;
        let address: Ipv4Addr = address
            .parse()
            .map_err(|_| refuse("the part before '/' must be four numbers of 0 to 255 joined by '.'".to_owned()))?;
        let length_fault = || refuse("the part after '/' must be a number of 0 to 32".to_owned());
        if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(length_fault());
        }
        let prefix = prefix.parse::<u8>().ok().filter(|bits| *bits <= 32).ok_or_else(length_fault)?;
        let net = Self::around(address, prefix);
        if net.base() != address {
            return Err(refuse(format!("bits behind the prefix are set; the network of that address is {net}")));
        }
        Ok(net)
    }
}

impl TryFrom<String> for Ipv4Net {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Ipv4Net> for String {
    fn from(net: Ipv4Net) -> String {
        net.to_string()
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

/// The number of a sandbox's place in the pool: 1 to [`SlotPool::capacity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Hands out slots. A slot that was never used comes first, then the one whose release is longest
/// ago: neighbours' caches and lingering connections of the last user have died away by then.
#[derive(Debug, Clone)]
pub struct SlotPool {
    net: Ipv4Net,
    /// All slots below it have been handed out or claimed at least once.
    fresh: u32,
    used: HashSet<Slot>,
    /// Released slots by the number of their release.
    released: BTreeMap<u64, Slot>,
    released_at: HashMap<Slot, u64>,
    releases: u64,
}

impl SlotPool {
    /// A pool over the network. Its own address, the gateway and the broadcast address are no slots.
    ///
    /// # Errors
    /// [`Error::PoolTooSmall`] below eight addresses.
    pub fn new(net: Ipv4Net) -> Result<Self, Error> {
        if net.prefix() > 29 || net.prefix() == 0 {
            return Err(Error::PoolTooSmall { pool: net });
        }
        Ok(Self {
            net,
            fresh: 1,
            used: HashSet::new(),
            released: BTreeMap::new(),
            released_at: HashMap::new(),
            releases: 0,
        })
    }

    /// The network that the addresses come from.
    pub fn net(&self) -> Ipv4Net {
        self.net
    }

    /// How many sandboxes have room.
    pub fn capacity(&self) -> u32 {
        // Fits: `new` refuses the prefix 0, so there are at most 2^31 addresses.
        (self.net.size() - 3) as u32
    }

    /// How many slots are taken.
    pub fn in_use(&self) -> u32 {
        self.used.len() as u32
    }

    /// Takes a slot, or `None` when all are taken.
    pub fn take(&mut self) -> Option<Slot> {
        while self.fresh <= self.capacity() {
            let slot = Slot(self.fresh);
            self.fresh += 1;
            if !self.released_at.contains_key(&slot) && self.used.insert(slot) {
                return Some(slot);
            }
        }
        let (_, slot) = self.released.pop_first()?;
        self.released_at.remove(&slot);
        self.used.insert(slot);
        Some(slot)
    }

    /// Takes a certain slot, that of a stored record. False when it is taken already or not part of
    /// the pool (which may have been set smaller since).
    pub fn claim(&mut self, slot: Slot) -> bool {
        if slot.0 == 0 || slot.0 > self.capacity() || !self.used.insert(slot) {
            return false;
        }
        if let Some(release) = self.released_at.remove(&slot) {
            self.released.remove(&release);
        }
        true
    }

    /// Gives a slot back; one that is not taken is left alone.
    pub fn release(&mut self, slot: Slot) {
        if self.used.remove(&slot) {
            self.releases += 1;
            self.released.insert(self.releases, slot);
            self.released_at.insert(slot, self.releases);
        }
    }

    /// Names and addresses of a sandbox in a slot. Asks for no state, so it also serves tear-down
    /// from a record alone.
    pub fn plan(&self, sandbox: &SandboxId, slot: Slot) -> Plan {
        Plan {
            sandbox: sandbox.clone(),
            slot,
            netns: sandbox.netns(),
            host_link: host_link(slot),
            address: Ipv4Addr::from_bits(self.net.first().to_bits().wrapping_add(slot.0)),
            gateway: self.net.first(),
            guest_mac: guest_mac(sandbox),
            egress: Egress::Open,
        }
    }
}

/// What the names of all host links begin with.
pub(super) const HOST_LINKS: &str = "chv";

fn host_link(slot: Slot) -> LinkName {
    // Cannot fail: three letters and at most ten digits are a link name.
    format!("{HOST_LINKS}{slot}").parse().expect("a prefix and a number are a link name")
}

/// True for the names that [`SlotPool::plan`] gives to host links.
pub(super) fn is_host_link(name: &str) -> bool {
    name.strip_prefix(HOST_LINKS).is_some_and(|rest| rest.parse::<u32>().is_ok())
}

/// The guest's MAC: `02` and the first five bytes of sha256(id) (PROTOCOL.md 9).
pub fn guest_mac(sandbox: &SandboxId) -> [u8; 6] {
    let hash = Sha256::digest(sandbox.as_str().as_bytes());
    [0x02, hash[0], hash[1], hash[2], hash[3], hash[4]]
}

#[cfg(test)]
#[path = "addresses_tests.rs"]
mod tests;
