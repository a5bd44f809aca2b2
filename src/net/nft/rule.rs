//! One nf_tables rule as a chain of matches and a verdict. Every match loads a value into register 1
//! and compares it there, just as the `nft` tool compiles them, so that the tool lists the rules in
//! its own words.
//!
//! Numbers are those of the kernel's `linux/netfilter/nf_tables.h`.

use std::net::Ipv4Addr;

use super::attributes::Attributes;
use crate::net::addresses::Ipv4Net;

/// Attribute numbers of expressions. Most of them begin with the destination register as 1.
mod attribute {
    pub const LIST_ELEMENT: u16 = 1;
    pub const EXPRESSION_NAME: u16 = 1;
    pub const EXPRESSION_DATA: u16 = 2;
    pub const DATA_VALUE: u16 = 1;
    pub const DATA_VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
}

const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATE_INVALID: u32 = 1;
const CT_DIRECTION_REPLY: u8 = 1;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

const IFNAMSIZ: usize = 16;
const ICMP_ECHO_REQUEST: u8 = 8;
const TCP_FLAGS: u32 = 13;
const TCP_SYN: u8 = 2;
const TCP_SYN_RST: u8 = 6;
const TCP_OPTION_MSS: u8 = 2;

/// What becomes of a packet that reaches the end of a rule, or of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes no further.
    Drop,
    /// This chain is done with it.
    Accept,
}

impl Verdict {
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
        }
    }
}

/// A rule under construction; matches are tested in the order in which they are added.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    expressions: Attributes,
    comment: Option<&'static str>,
}

impl Rule {
    /// A rule that matches everything and does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A remark for operators that `nft list ruleset` shows; at most 127 bytes are kept by the tool.
    pub fn comment(mut self, text: &'static str) -> Self {
        self.comment = Some(text);
        self
    }

    /// Came in by this link.
    pub fn from_link(self, name: &str) -> Self {
        self.meta(META_IIFNAME).compare(EQUAL, &link_name(name))
    }

    /// Came in by a link whose name begins so.
    pub fn from_links(self, prefix: &str) -> Self {
        // Shorter than a name, and without the zero byte behind it: only the first bytes are compared.
        self.meta(META_IIFNAME).compare(EQUAL, prefix.as_bytes())
    }

    /// Goes out by this link.
    pub fn to_link(self, name: &str) -> Self {
        self.meta(META_OIFNAME).compare(EQUAL, &link_name(name))
    }

    /// Goes out by any other link.
    pub fn to_other_link(self, name: &str) -> Self {
        self.meta(META_OIFNAME).compare(NOT_EQUAL, &link_name(name))
    }

    /// Has its IPv4 source in the network.
    pub fn source(self, net: Ipv4Net) -> Self {
        self.address(IPV4_SOURCE, net, EQUAL)
    }

    /// Is IPv4 and has its source elsewhere.
    pub fn source_outside(self, net: Ipv4Net) -> Self {
        self.address(IPV4_SOURCE, net, NOT_EQUAL)
    }

    /// Has its IPv4 destination in the network.
    pub fn destination(self, net: Ipv4Net) -> Self {
        self.address(IPV4_DESTINATION, net, EQUAL)
    }

    /// Is IPv6.
    pub fn ipv6(self) -> Self {
        self.meta(META_NFPROTO).compare(EQUAL, &[libc::NFPROTO_IPV6 as u8])
    }

    /// Answers a connection that was begun from the other side, or is an ICMP error about one.
    pub fn reply(self) -> Self {
        self.conntrack(CT_DIRECTION).compare(EQUAL, &[CT_DIRECTION_REPLY])
    }

    /// Belongs to no connection and begins none. Such packets pass NAT untranslated.
    pub fn invalid(self) -> Self {
        self.conntrack(CT_STATE).mask(&CT_STATE_INVALID.to_ne_bytes()).compare(NOT_EQUAL, &0u32.to_ne_bytes())
    }

    /// Is an ICMP echo request.
    pub fn ping(self) -> Self {
        self.protocol(libc::IPPROTO_ICMP).payload(TRANSPORT_HEADER, 0, 1).compare(EQUAL, &[ICMP_ECHO_REQUEST])
    }

    /// Begins a TCP connection, in either direction.
    pub fn tcp_syn(self) -> Self {
        self.protocol(libc::IPPROTO_TCP)
            .payload(TRANSPORT_HEADER, TCP_FLAGS, 1)
            .mask(&[TCP_SYN_RST])
            .compare(EQUAL, &[TCP_SYN])
    }

    /// Lowers the segment size that TCP announces to what the route's MTU allows.
    pub fn clamp_segment_size(self) -> Self {
        const ROUTE_TCP_MSS: u32 = 3;
        const TO_NETWORK_ORDER: u32 = 1;
        const TCP_OPTION: u32 = 1;
        let load = Attributes::new().number(1, REGISTER_1).number(2, ROUTE_TCP_MSS);
        let swap = Attributes::new()
            .number(1, REGISTER_1)
            .number(2, REGISTER_1)
            .number(3, TO_NETWORK_ORDER)
            .number(4, 2)
            .number(5, 2);
        let write = Attributes::new()
            .bytes(2, &[TCP_OPTION_MSS])
            .number(3, 2)
            .number(4, 2)
            .number(6, TCP_OPTION)
            .number(7, REGISTER_1);
        self.expression("rt", &load).expression("byteorder", &swap).expression("exthdr", &write)
    }

    /// Gives the packets the address of the link that they leave by.
    pub fn masquerade(self) -> Self {
        self.expression("masq", &Attributes::new())
    }

    /// Ends the chain for the packet.
    pub fn verdict(self, verdict: Verdict) -> Self {
        let code = Attributes::new().number(attribute::VERDICT_CODE, verdict.number());
        let data = Attributes::new().nest(attribute::DATA_VERDICT, &code);
        self.expression("immediate", &Attributes::new().number(1, REGISTER_VERDICT).nest(2, &data))
    }

    pub(super) fn expressions(&self) -> &Attributes {
        &self.expressions
    }

    /// The comment in the form in which the `nft` tool keeps it: type 0, length, text, zero byte.
    pub(super) fn user_data(&self) -> Option<Vec<u8>> {
        let text = self.comment?;
        let mut data = vec![0, text.len() as u8 + 1];
        data.extend_from_slice(text.as_bytes());
        data.push(0);
        Some(data)
    }

    fn address(self, offset: u32, net: Ipv4Net, operator: u32) -> Self {
        let rule =
            self.meta(META_NFPROTO).compare(EQUAL, &[libc::NFPROTO_IPV4 as u8]).payload(NETWORK_HEADER, offset, 4);
        let rule = if net.prefix() == 32 { rule } else { rule.mask(&octets(net.mask())) };
        rule.compare(operator, &octets(net.base()))
    }

    fn protocol(self, number: i32) -> Self {
        self.meta(META_L4PROTO).compare(EQUAL, &[number as u8])
    }

    fn meta(self, key: u32) -> Self {
        self.expression("meta", &Attributes::new().number(1, REGISTER_1).number(2, key))
    }

    fn conntrack(self, key: u32) -> Self {
        self.expression("ct", &Attributes::new().number(1, REGISTER_1).number(2, key))
    }

    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        let load = Attributes::new().number(1, REGISTER_1).number(2, base).number(3, offset).number(4, length);
        self.expression("payload", &load)
    }

    fn mask(self, mask: &[u8]) -> Self {
        let value = |bytes: &[u8]| Attributes::new().bytes(attribute::DATA_VALUE, bytes);
        let and = Attributes::new()
            .number(1, REGISTER_1)
            .number(2, REGISTER_1)
            .number(3, mask.len() as u32)
            .nest(4, &value(mask))
            .nest(5, &value(&vec![0; mask.len()]));
        self.expression("bitwise", &and)
    }

    fn compare(self, operator: u32, value: &[u8]) -> Self {
        let data = Attributes::new().bytes(attribute::DATA_VALUE, value);
        self.expression("cmp", &Attributes::new().number(1, REGISTER_1).number(2, operator).nest(3, &data))
    }

    fn expression(mut self, name: &str, data: &Attributes) -> Self {
        let whole = Attributes::new().text(attribute::EXPRESSION_NAME, name).nest(attribute::EXPRESSION_DATA, data);
        self.expressions = self.expressions.nest(attribute::LIST_ELEMENT, &whole);
        self
    }
}

fn octets(address: Ipv4Addr) -> [u8; 4] {
    address.octets()
}

/// A link name as the kernel compares it: with zero bytes up to its full length.
fn link_name(name: &str) -> [u8; IFNAMSIZ] {
    let mut padded = [0; IFNAMSIZ];
    for (to, from) in padded.iter_mut().zip(name.bytes().take(IFNAMSIZ - 1)) {
        *to = from;
    }
    padded
}
