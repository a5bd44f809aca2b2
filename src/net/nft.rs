//! Packet filter tables by nf_tables' own netlink messages: a whole table in one transaction, in a
//! tenth of a millisecond and without the `nft` binary.
//!
//! A transaction either happens as a whole or not at all. Replacing a table is "add, delete, add" in
//! one of them, so no packet meets half of the rules.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};

use super::error::Error;
use attributes::Attributes;
pub use rule::{Rule, Verdict};

mod attributes;
mod count;
mod rule;

pub(super) use count::count_rules;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// Length of the netlink header and of the nfnetlink header behind it.
const HEADERS: usize = 20;
const ERROR: u16 = 2;

/// Where a base chain sits on a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets for this host itself.
    Input,
    /// Packets passing through.
    Forward,
    /// Address translation of packets that leave; sees the first of each connection.
    SourceNat,
}

impl Hook {
    fn number(self) -> u32 {
        match self {
            Self::Input => 1,
            Self::Forward => 2,
            Self::SourceNat => 4,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Input | Self::Forward => "filter",
            Self::SourceNat => "nat",
        }
    }

    /// The usual places: `filter` and `srcnat` in the words of `nft`.
    fn priority(self) -> u32 {
        match self {
            Self::Input | Self::Forward => 0,
            Self::SourceNat => 100,
        }
    }
}

/// A transaction on one table of the `inet` family in the thread's network namespace.
#[derive(Debug)]
pub struct Transaction {
    table: String,
    bytes: Vec<u8>,
    /// What each message does, by sequence number less one; for errors.
    steps: Vec<String>,
    rules: usize,
}

impl Transaction {
    /// Makes the table; where it exists already, what follows is added to it.
    pub fn create(table: &str) -> Self {
        let mut transaction = Self { table: table.to_owned(), bytes: Vec::new(), steps: Vec::new(), rules: 0 };
        transaction.message(BATCH_BEGIN, 0, &Attributes::new(), "begin a transaction".to_owned());
        transaction.add_table();
        transaction
    }

    /// Makes the table anew: what was in it goes with this transaction.
    pub fn replace(table: &str) -> Self {
        let mut transaction = Self::delete(table);
        transaction.add_table();
        transaction
    }

    /// Deletes the table; one that is not there is no error.
    pub fn delete(table: &str) -> Self {
        let mut transaction = Self::create(table);
        let name = Attributes::new().text(1, table);
        transaction.message(DELETE_TABLE, 0, &name, format!("delete table inet {table}"));
        transaction
    }

    fn add_table(&mut self) {
        let name = Attributes::new().text(1, &self.table);
        self.message(NEW_TABLE, CREATE, &name, format!("add table inet {}", self.table));
    }

    /// Adds a base chain, whose policy is the verdict on packets that no rule decides.
    pub fn chain(&mut self, name: &str, hook: Hook, policy: Verdict) {
        let place = Attributes::new().number(1, hook.number()).number(2, hook.priority());
        let chain = Attributes::new()
            .text(1, &self.table)
            .text(3, name)
            .nest(4, &place)
            .number(5, policy.number())
            .text(7, hook.kind());
        let step = format!("add chain {name} to table inet {}", self.table);
        self.message(NEW_CHAIN, CREATE, &chain, step);
    }

    /// How many rules it adds.
    pub fn rules(&self) -> usize {
        self.rules
    }

    /// Adds a rule to the end of a chain.
    pub fn rule(&mut self, chain: &str, rule: &Rule) {
        let mut attributes = Attributes::new().text(1, &self.table).text(2, chain).nest(4, rule.expressions());
        if let Some(data) = rule.user_data() {
            attributes = attributes.bytes(7, &data);
        }
        self.rules += 1;
        let number = self.steps.len();
        let step = format!("add a rule to chain {chain} of table inet {} (message {number})", self.table);
        self.message(NEW_RULE, CREATE | APPEND, &attributes, step);
    }

    /// Hands it to the kernel, which has decided when this returns. Blocks: ten milliseconds and more
    /// when something was deleted, because closing the socket waits for the kernel's clean-up.
    ///
    /// # Errors
    /// The message that was refused; then nothing of the transaction has happened.
    pub fn commit(mut self) -> Result<(), Error> {
        let what = format!("change table inet {}", self.table);
        self.acknowledge_last();
        self.message(BATCH_END, 0, &Attributes::new(), "end the transaction".to_owned());
        let socket = open(self.bytes.len()).map_err(|errno| Error::kernel("open a netfilter socket", errno))?;
        let kernel = NetlinkAddr::new(0, 0);
        sendto(socket.as_raw_fd(), &self.bytes, &kernel, MsgFlags::empty())
            .map_err(|errno| Error::kernel(what.as_str(), errno))?;
        self.answers(&socket, &what)
    }

    /// Reads the answers, all of which are there: the kernel works through the batch while it is
    /// being sent.
    fn answers(&self, socket: &OwnedFd, what: &str) -> Result<(), Error> {
        let last = self.steps.len() as u32 - 1;
        let mut done = false;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(errno) => return Err(Error::kernel(what, errno)),
            };
            for (sequence, code) in results(&buffer[..length]) {
                if code != 0 {
                    let step = self.steps.get((sequence as usize).wrapping_sub(1));
                    let step = step.map_or(what, String::as_str);
                    return Err(Error::kernel(step, io::Error::from_raw_os_error(-code)));
                }
                done |= sequence == last;
            }
        }
        if done {
            return Ok(());
        }
        Err(Error::Answer { what: what.to_owned(), answer: "no acknowledgement".to_owned() })
    }

    fn message(&mut self, kind: u16, flags: u16, attributes: &Attributes, step: String) {
        self.steps.push(step);
        let batch_edge = kind == BATCH_BEGIN || kind == BATCH_END;
        let family = if batch_edge { libc::NFPROTO_UNSPEC } else { libc::NFPROTO_INET } as u8;
        let resource = if batch_edge { SUBSYSTEM } else { 0 };
        let length = (HEADERS + attributes.as_slice().len()) as u32;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&(self.steps.len() as u32).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        self.bytes.extend_from_slice(attributes.as_slice());
    }

    /// Asks for an answer to the message before the end, so that silence is not taken for success.
    fn acknowledge_last(&mut self) {
        let mut at = 0;
        while let Some(header) = self.bytes.get(at..at + HEADERS) {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            if at + length >= self.bytes.len() {
                self.bytes[at + 6] |= ACKNOWLEDGE as u8;
            }
            at += length;
        }
    }
}

fn open(batch: usize) -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    // A batch is one message to the socket; the default limit would refuse long lists.
    setsockopt(&socket, sockopt::SndBufForce, &(batch + 64 * 1024))?;
    Ok(socket)
}

/// Sequence numbers and results (0 or a negative error number) of the answers in a datagram.
fn results(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let mut found = Vec::new();
    while let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_ne_bytes([*l0, *l1, *l2, *l3]) as usize;
        if let (ERROR, [c0, c1, c2, c3, ..]) = (u16::from_ne_bytes([*k0, *k1]), rest) {
            found.push((u32::from_ne_bytes([*s0, *s1, *s2, *s3]), i32::from_ne_bytes([*c0, *c1, *c2, *c3])));
        }
        bytes = bytes.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests;
