//! What sandboxes talk to: a machine beyond the host, and the means to ask who is seen there.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::guest::{Guest, nameless};
use super::support::{TestHost, denied, eventually, inside, ip};
use crate::net::netlink::Netlink;
use crate::net::{Egress, GUEST_GATEWAY, Namespace, Network, Plan};

pub const PATIENCE: Duration = Duration::from_secs(5);
/// Long enough for an answer on one machine, which is what is not to come.
pub const SHORT: Duration = Duration::from_millis(400);

/// True when an echo request from `source` is answered within a second. The socket is raw, so it also
/// sees other packets.
pub fn ping(source: Ipv4Addr, address: Ipv4Addr) -> bool {
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0))).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
    // Type 8, code 0, checksum over identifier 1 and sequence 1.
    let request = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
    if sendto(socket.as_raw_fd(), &request, &SockaddrIn::from(SocketAddrV4::new(address, 0)), MsgFlags::empty())
        .is_err()
    {
        return false;
    }
    let began = Instant::now();
    let mut packet = [0; 128];
    while began.elapsed() < Duration::from_secs(1) {
        let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap_or(0);
        // An IPv4 header of twenty bytes, source at 12, then type 0 for the answer.
        if length >= 28 && packet[12..16] == address.octets() && packet[20] == 0 {
            return true;
        }
    }
    false
}

/// Echo requests that arrive in a namespace.
pub struct Pings(OwnedFd);

impl Pings {
    /// Collects them in the thread's namespace from now on.
    pub fn new() -> Self {
        let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
        Self(socket)
    }

    /// True when one from this address is among those that have arrived since the last call.
    pub fn saw(&self, source: Ipv4Addr) -> bool {
        let mut packet = [0; 128];
        let mut found = false;
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            found |= length >= 28 && packet[12..16] == source.octets() && packet[20] == 8;
        }
        found
    }
}

/// Answers every connection with the address that it comes from.
pub fn serve(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            let _ = stream.write_all(peer.as_bytes());
        }
    });
}

/// The address that a server sees.
pub fn ask(address: Ipv4Addr, port: u16, patience: Duration) -> io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.parse().map_err(|_| io::Error::new(ErrorKind::InvalidData, text))
}

pub fn blocked(result: io::Result<IpAddr>) -> bool {
    result.is_err_and(|error| matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock))
}

/// A machine beyond the host, with two addresses that sandboxes may reach and one that they may not.
pub struct World {
    pub fd: OwnedFd,
    pub link: String,
    pub host: Ipv4Addr,
    pub open: Ipv4Addr,
    pub other: Ipv4Addr,
    pub denied: Ipv4Addr,
    pub port: u16,
}

impl World {
    pub fn new(test: &TestHost) -> Self {
        let link = format!("rctw{}", test.number);
        let n = test.number;
        let (host, open) = (Ipv4Addr::new(198, 19, n as u8, 1), Ipv4Addr::new(198, 19, n as u8, 2));
        let other = Ipv4Addr::new(198, 19, n as u8, 3);
        let denied_address = Ipv4Addr::from_bits(denied(n).base().to_bits() + 2);
        let (fd, ()) = nameless(|| {});
        let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        ip(&format!("link add {link} type veth peer name w0 netns {path}"));
        ip(&format!("addr add {host}/25 dev {link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("route add {} via {open} dev {link}", denied(n)));
        let pool = test.pool.net();
        let port = inside(&fd, || {
            ip("link set lo up");
            ip("link set w0 up");
            ip(&format!("addr add {open}/25 dev w0"));
            ip(&format!("addr add {other}/25 dev w0"));
            ip(&format!("addr add {denied_address}/32 dev w0"));
            // The way to the sandboxes is known, so that only rules can bar it.
            ip(&format!("route add {pool} via {host}"));
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            serve(listener);
            port
        });
        Self { fd, link, host, open, other, denied: denied_address, port }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Netlink::open().and_then(|mut netlink| netlink.delete_link(&self.link));
    }
}

pub async fn sandbox(host: &TestHost, n: u32) -> (Plan, Namespace, Guest) {
    sandbox_with(host, n, Egress::Open).await
}

pub async fn sandbox_with(host: &TestHost, n: u32, egress: Egress) -> (Plan, Namespace, Guest) {
    let plan = Plan { egress, ..host.plan(n) };
    let namespace = host.network.create(&plan).await.unwrap();
    let guest = boot(&namespace, &plan);
    (plan, namespace, guest)
}

/// A guest that has come up. The kernel brings links to life with some delay when it is busy.
pub fn boot(namespace: &Namespace, plan: &Plan) -> Guest {
    let guest = Guest::boot(namespace, plan);
    eventually("the guest's way to its gateway", || guest.pings(GUEST_GATEWAY));
    guest
}

pub fn listen(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    serve(listener);
    port
}
