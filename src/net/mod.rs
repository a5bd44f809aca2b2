//! The sandbox's network: a named namespace with the TAP of its guest, a veth to the host's bridge,
//! NAT on the way out, and nothing on the way in but sockets that the runner itself opens inside.
//!
//! ```text
//!   guest 192.168.0.2 -- tap0 [ ns-{id}: 192.168.0.1, NAT ] eth0 -- chv{slot} -- bridge -- host NAT -- world
//! ```
//!
//! The host's end of the veth, `chv{slot}`, is a port of the bridge as long as the bridge has room. Linux
//! gives a bridge at most 1023 ports, a quarter of the sandboxes that a host is to carry. The sandboxes
//! beyond get the same pair of links without a bridge, and the host routes between the pool's address and
//! the link. Which of the two a sandbox has is nobody's business but that of the module `veth` and of the
//! packet filter, which treats both alike; nothing is stored about it, and tear-down is the same.
//!
//! Every guest has the same address, so each namespace translates to its slot's address of the
//! pool. Slots are numbers; [`addresses`] turns them into addresses and back without any I/O.

use std::net::{Ipv4Addr, SocketAddrV4};

use futures::future::LocalBoxFuture;

use crate::ids::{LinkName, NetnsName, SandboxId};

pub mod addresses;
pub mod error;
pub mod linux;
pub mod netns;
pub mod nft;
pub mod survey;

mod host;
mod netlink;
mod rules;
mod sandbox;
mod sysctl;
mod tap;
mod veth;

pub use addresses::{Ipv4Net, Slot, SlotPool};
pub use error::Error;
pub use linux::LinuxNetwork;
pub use netns::Namespace;
pub use survey::{Leaked, NetworkSurvey};

/// The guest's address inside every namespace (PROTOCOL.md 9).
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
/// The guest's gateway: the TAP's address inside the namespace (PROTOCOL.md 9).
pub const GUEST_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
/// Prefix length of the network between TAP and guest.
pub const GUEST_PREFIX: u8 = 24;
/// Name of the TAP inside every namespace.
pub const TAP: &str = "tap0";

/// Everything that names one sandbox's network; made without I/O from its id and slot, so that
/// tear-down works from the stored record alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The sandbox; its id is the alias of the host link.
    pub sandbox: SandboxId,
    /// The slot that address and link name are derived from.
    pub slot: Slot,
    /// Namespace name, `ns-{id}`.
    pub netns: NetnsName,
    /// Host end of the veth, `chv{slot}`.
    pub host_link: LinkName,
    /// The namespace's address on the bridge.
    pub address: Ipv4Addr,
    /// The bridge's address in the pool: the namespace's next hop.
    pub gateway: Ipv4Addr,
    /// The guest's MAC: `02` and the first five bytes of sha256(id) (PROTOCOL.md 9).
    pub guest_mac: [u8; 6],
    /// Where the guest may go.
    pub egress: Egress,
}

/// Where a guest may go, beside what no sandbox may (PROTOCOL.md 10).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Egress {
    /// Anywhere.
    #[default]
    Open,
    /// Nowhere.
    Blocked,
    /// Only to these networks.
    Only(Vec<Ipv4Net>),
}

impl Egress {
    /// Blocking wins; an empty or absent list means everything.
    pub fn new(block_all: bool, allow: Option<&[Ipv4Net]>) -> Self {
        match allow {
            _ if block_all => Self::Blocked,
            Some(list) if !list.is_empty() => Self::Only(list.to_vec()),
            _ => Self::Open,
        }
    }
}

/// Host-side network effects. The futures stay on their thread; blocking work goes to a thread of
/// its own inside the implementation.
pub trait Network {
    /// Makes what all sandboxes share: bridge with the gateway address, forwarding, our nftables
    /// table. Idempotent.
    fn prepare_host(&self) -> LocalBoxFuture<'_, Result<(), Error>>;

    /// Makes the namespace with TAP, veth, addresses, routes and rules. What an earlier, interrupted
    /// attempt left under the same names is removed first. On failure nothing is left.
    fn create<'a>(&'a self, plan: &'a Plan) -> LocalBoxFuture<'a, Result<Namespace, Error>>;

    /// Opens the namespace of a sandbox that is already there.
    fn open<'a>(&'a self, plan: &'a Plan) -> LocalBoxFuture<'a, Result<Namespace, Error>>;

    /// Removes everything that [`Network::create`] makes; "not there" is success. Returns when the
    /// kernel has let go of the links, so that the slot may be used again.
    fn remove<'a>(&'a self, plan: &'a Plan) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// What of sandboxes' networks is there; only looks.
    fn survey(&self) -> LocalBoxFuture<'_, Result<NetworkSurvey, Error>>;

    /// Removes one thing of a sandbox that has no network, once it is proven again that this runner made it; false
    /// when it is not there. The caller sees to it that no network is made for that sandbox meanwhile.
    fn remove_leaked<'a>(&'a self, leaked: &'a Leaked) -> LocalBoxFuture<'a, Result<bool, Error>>;
}

/// How many packet filter rules a sandbox's namespace has.
pub fn rule_count(egress: &Egress) -> usize {
    rules::sandbox(egress).rules()
}

/// Where a sandbox's guest listens.
pub fn guest(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(GUEST, port)
}
