//! Requests to the kernel's routing netlink, one at a time, on the calling thread.
//!
//! The kernel does the whole work of such a request inside `send`, for milliseconds when it waits for
//! its routing lock. An async socket would hide nothing of that, it would stop the runtime. So these
//! calls belong on a thread of their own, and messages come from the builders of `rtnetlink`.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::packet_route::{AddressFamily, route};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::addresses::Ipv4Net;
use super::error::Error;

const BUFFER: usize = 64 * 1024;

/// A link, as far as this module asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub alias: Option<String>,
    /// Hardware address.
    pub address: Vec<u8>,
    pub mtu: u32,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    pub is_bridge: bool,
    /// A TUN or TAP device.
    pub is_tun: bool,
    /// The group that it was put in; 0 for all that nobody has grouped.
    pub group: u32,
}

/// An IPv4 address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkAddress {
    pub link: u32,
    pub address: Ipv4Addr,
    pub prefix: u8,
}

/// An IPv4 route outside the local table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub net: Ipv4Net,
    pub link: Option<u32>,
}

/// A routing netlink socket. It stays in the namespace that its thread was in when it was opened.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket in the thread's present namespace.
    pub(super) fn open() -> Result<Self, Error> {
        let fault = |error| Error::kernel("open a routing netlink socket", error);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(fault)?;
        socket.bind_auto().map_err(fault)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(fault)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Makes an object that must not exist yet.
    pub(super) fn add(&mut self, what: &str, message: Message) -> Result<(), Error> {
        self.request(what, message, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK).map(drop)
    }

    /// Changes or deletes what exists.
    pub(super) fn change(&mut self, what: &str, message: Message) -> Result<(), Error> {
        self.request(what, message, NLM_F_ACK).map(drop)
    }

    /// The link of that name.
    pub(super) fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let query = without_statistics(LinkUnspec::new_with_name(name));
        match self.request(&format!("look up link {name}"), Message::GetLink(query.build()), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(as_link)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All links.
    pub(super) fn links(&mut self) -> Result<Vec<Link>, Error> {
        let query = without_statistics(LinkMessageBuilder::<LinkUnspec>::new());
        let answers = self.request("list the links", Message::GetLink(query.build()), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(as_link).collect())
    }

    /// All IPv4 addresses.
    pub(super) fn addresses(&mut self) -> Result<Vec<LinkAddress>, Error> {
        let mut query = AddressMessage::default();
        query.header.family = AddressFamily::Inet;
        let answers = self.request("list the addresses", Message::GetAddress(query), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(as_address).collect())
    }

    /// All IPv4 routes but those to the host's own addresses.
    pub(super) fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut query = RouteMessage::default();
        query.header.address_family = AddressFamily::Inet;
        let answers = self.request("list the routes", Message::GetRoute(query), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(as_route).collect())
    }

    /// Deletes the link if it is there.
    pub(super) fn delete_link(&mut self, name: &str) -> Result<(), Error> {
        let message = Message::DelLink(LinkUnspec::new_with_name(name).build());
        match self.change(&format!("delete link {name}"), message) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }

    /// Deletes the link of that index, whatever its name is by now; false when it is not there.
    pub(super) fn delete_link_at(&mut self, index: u32) -> Result<bool, Error> {
        let message = Message::DelLink(LinkUnspec::new_with_index(index).build());
        match self.change(&format!("delete link number {index}"), message) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// Brings the link up and returns its index.
    pub(super) fn bring_up(&mut self, name: &str) -> Result<u32, Error> {
        let up = LinkUnspec::new_with_name(name).up().build();
        let what = format!("set link {name} up");
        self.change(&what, Message::SetLink(up))?;
        let gone = || Error::kernel(what, io::Error::from_raw_os_error(libc::ENODEV));
        Ok(self.link(name)?.ok_or_else(gone)?.index)
    }

    /// Gives the link an IPv4 address.
    pub(super) fn add_address(&mut self, link: (&str, u32), address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
        let (name, index) = link;
        let message = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, prefix).build();
        self.add(&format!("add {address}/{prefix} to {name}"), Message::NewAddress(message))
    }

    /// Adds a route to one address that is directly at the link.
    pub(super) fn add_neighbour_route(&mut self, link: (&str, u32), address: Ipv4Addr) -> Result<(), Error> {
        let (name, index) = link;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();
        self.add(&format!("add a route to {address} by {name}"), Message::NewRoute(route))
    }

    /// Writes down the hardware address behind an address for good: no ARP asks for it or changes it.
    pub(super) fn add_neighbour(
        &mut self,
        link: (&str, u32),
        address: Ipv4Addr,
        hardware: [u8; 6],
    ) -> Result<(), Error> {
        let (name, index) = link;
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = route::RouteType::Unspec;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
            NeighbourAttribute::LinkLayerAddress(hardware.to_vec()),
        ];
        self.add(&format!("add neighbour {address} to {name}"), Message::NewNeighbour(message))
    }

    /// Sends a request and collects its answers up to the acknowledgement or the end of the list.
    fn request(&mut self, what: &str, message: Message, flags: u16) -> Result<Vec<Message>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(|error| Error::kernel(what, error))?;
        let mut answers = Vec::new();
        while !self.receive(what, &mut answers)? {}
        Ok(answers)
    }

    /// Reads one datagram; true when it held the end.
    fn receive(&mut self, what: &str, answers: &mut Vec<Message>) -> Result<bool, Error> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0).map_err(|error| Error::kernel(what, error))?;
        let unclear = |answer: String| Error::Answer { what: what.to_owned(), answer };
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<Message>::deserialize(rest).map_err(|error| unclear(error.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(length..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(Error::kernel(what, error.to_io()));
                }
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Overrun(_) => return Err(unclear("answers were lost".to_owned())),
                _ => {}
            }
        }
        Ok(false)
    }
}

/// Counters would be most of the answer.
fn without_statistics(query: LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec> {
    query.append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
}

fn as_link(message: Message) -> Option<Link> {
    let Message::NewLink(LinkMessage { header, attributes, .. }) = message else { return None };
    let mut link = Link { index: header.index, ..Link::default() };
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Address(address) => link.address = address,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                link.is_tun = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
            }
            _ => {}
        }
    }
    Some(link)
}

fn as_address(message: Message) -> Option<LinkAddress> {
    let Message::NewAddress(AddressMessage { header, attributes, .. }) = message else { return None };
    let local = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    });
    Some(LinkAddress { link: header.index, address: local?, prefix: header.prefix_len })
}

fn as_route(message: Message) -> Option<Route> {
    let Message::NewRoute(RouteMessage { header, attributes, .. }) = message else { return None };
    if header.kind == route::RouteType::Local || header.kind == route::RouteType::Broadcast {
        return None;
    }
    let mut found = Route { net: Ipv4Net::around(Ipv4Addr::UNSPECIFIED, header.destination_prefix_length), link: None };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                found.net = Ipv4Net::around(address, header.destination_prefix_length);
            }
            RouteAttribute::Oif(index) => found.link = Some(index),
            _ => {}
        }
    }
    Some(found)
}
