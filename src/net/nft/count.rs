//! How many rules a table has: an emptied table is as bad as none.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recv, sendto};

use super::{Attributes, ERROR, HEADERS, NEW_RULE, REQUEST, SUBSYSTEM, open};
use crate::net::error::Error;

const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const DUMP: u16 = 0x300;
const DONE: u16 = 3;

/// Rules of a table of the `inet` family in the thread's network namespace; 0 when there is no such table. Blocks,
/// for some ten microseconds.
pub(in crate::net) fn count_rules(table: &str) -> Result<usize, Error> {
    let what = format!("count the rules of table inet {table}");
    let failed = |errno: Errno| Error::kernel(what.as_str(), errno);
    let attributes = Attributes::new().text(1, table);
    let length = (HEADERS + attributes.as_slice().len()) as u32;
    let mut request = Vec::new();
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&GET_RULE.to_ne_bytes());
    request.extend_from_slice(&(REQUEST | DUMP).to_ne_bytes());
    // Sequence number and port; then family, version and resource.
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[libc::NFPROTO_INET as u8, 0, 0, 0]);
    request.extend_from_slice(attributes.as_slice());
    let socket = open(request.len()).map_err(failed)?;
    sendto(socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map_err(failed)?;
    let (mut rules, mut buffer) = (0, vec![0; 64 * 1024]);
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(failed)?;
        for (kind, code) in messages(&buffer[..length]) {
            match kind {
                NEW_RULE => rules += 1,
                DONE => return Ok(rules),
                ERROR => return Err(Error::kernel(what.as_str(), Errno::from_raw(code.saturating_neg()))),
                _ => {}
            }
        }
    }
}

/// Kind of each message in a datagram, and the number that follows its header.
fn messages(mut bytes: &[u8]) -> Vec<(u16, i32)> {
    let mut found = Vec::new();
    while let [l0, l1, l2, l3, k0, k1, rest @ ..] = bytes {
        let length = u32::from_ne_bytes([*l0, *l1, *l2, *l3]) as usize;
        let code = rest.get(10..14).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
        found.push((u16::from_ne_bytes([*k0, *k1]), code));
        bytes = bytes.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
    }
    found
}
