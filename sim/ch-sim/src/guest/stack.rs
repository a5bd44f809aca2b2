//! The guest's network stack: ARP, ICMP echo, TCP servers and outgoing connections on smoltcp.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::poll::PollFlags;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{icmp, tcp};
use smoltcp::time::{Duration as StackDuration, Instant as StackInstant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr, IpEndpoint};

use super::conn::Conn;
use super::device::Card;
use super::machine::{Dial, Machine, Network};
use super::ssh::{Pipe, SSH_PORT, Ssh};
use super::toolbox::{APP_PORT, TOOLBOX_PORT};

/// Buffer of a TCP socket in each direction; pages are only used when data fills them.
const BUFFER_BYTES: usize = 64 << 10;
/// Closing outgoing sockets that are kept.
const FINISHED_LIMIT: usize = 32;
/// First local port of outgoing connections.
const FIRST_LOCAL_PORT: u16 = 32_768;

/// Address of the guest on its network.
#[derive(Debug, Clone, Copy)]
pub struct Address {
    pub mac: [u8; 6],
    pub ip: (Ipv4Addr, u8),
    pub gateway: Ipv4Addr,
}

/// Servers and connections of the guest.
pub struct Stack {
    card: Card,
    iface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
    address: Address,
    conns: BTreeMap<SocketHandle, Conn>,
    outgoing: Outgoing,
    ssh: Ssh,
    /// Connections to the SSH server, those that are not established yet without a pipe.
    pipes: BTreeMap<SocketHandle, Option<Pipe>>,
}

#[derive(Default)]
struct Outgoing {
    next_id: usize,
    next_port: u16,
    dials: BTreeMap<usize, SocketHandle>,
    pings: BTreeMap<usize, (SocketHandle, u16)>,
    /// Sockets that are closing: their last frames still have to leave.
    finished: Vec<SocketHandle>,
}

impl Stack {
    /// Brings an interface up on a card.
    pub fn new(mut card: Card, address: Address) -> Self {
        let mac = HardwareAddress::Ethernet(EthernetAddress(address.mac));
        let mut config = Config::new(mac);
        config.random_seed = u64::from_ne_bytes(crate::random::bytes());
        let mut iface = Interface::new(config, &mut card, StackInstant::ZERO);
        let (ip, prefix) = address.ip;
        iface.update_ip_addrs(|addresses| {
            // The list is empty and has room for one address.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(ip), prefix));
        });
        // The route table is empty and has room for one route.
        let _ = iface.routes_mut().add_default_ipv4_route(address.gateway);
        Self {
            card,
            iface,
            sockets: SocketSet::new(Vec::new()),
            start: Instant::now(),
            address,
            conns: BTreeMap::new(),
            outgoing: Outgoing::default(),
            ssh: Ssh::default(),
            pipes: BTreeMap::new(),
        }
    }

    /// Descriptor to poll for frames.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.card.fd()
    }

    /// What else to wait for: the SSH server.
    pub fn waits_for(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let commands = self.ssh.fd().map(|fd| (fd, PollFlags::POLLIN));
        commands.into_iter().chain(self.pipes.values().flatten().map(Pipe::interest)).collect()
    }

    /// Tells the neighbours where the guest is (a gratuitous ARP request).
    pub fn announce(&mut self) {
        let (mac, ip) = (self.address.mac, self.address.ip.0.octets());
        let mut frame = vec![0xff; 6];
        frame.extend(mac);
        frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(mac);
        frame.extend(ip);
        frame.extend([0; 6]);
        frame.extend(ip);
        self.card.send(&frame);
    }

    /// Handles all waiting frames and everything that follows from them. `open` says whether the servers listen.
    pub fn run(&mut self, machine: &mut Machine, open: bool) {
        while self.card.fetch() {
            if open {
                self.prepare_listener();
            }
            let now = self.now();
            self.iface.poll_ingress_single(now, &mut self.card, &mut self.sockets);
        }
        // Answers make room for more output and the other way round; the bound only guards against a loop.
        for _ in 0..64 {
            let moved = self.serve(machine) | self.serve_ssh(machine);
            let now = self.now();
            self.iface.poll_maintenance(now);
            self.iface.poll_egress(now, &mut self.card, &mut self.sockets);
            self.drop_finished();
            if !moved {
                break;
            }
        }
    }

    /// Drops outgoing sockets that are closed, and old ones whose peer does not close.
    fn drop_finished(&mut self) {
        let surplus = self.outgoing.finished.len().saturating_sub(FINISHED_LIMIT);
        let sockets = &mut self.sockets;
        let mut index = 0;
        self.outgoing.finished.retain(|handle| {
            index += 1;
            let socket = sockets.get_mut::<tcp::Socket>(*handle);
            let closed = matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait);
            let dropped = closed || index <= surplus;
            if dropped {
                sockets.remove(*handle);
            }
            !dropped
        });
    }

    /// When something happens next without a frame: retransmissions, jobs, events.
    pub fn next_time(&mut self) -> Option<Instant> {
        let at = self.iface.poll_at(self.now(), &self.sockets);
        let stack = at.map(|at| {
            let micros = u64::try_from(at.total_micros()).unwrap_or(0);
            self.start + std::time::Duration::from_micros(micros)
        });
        let conns = self.conns.values().filter_map(Conn::next_time).min();
        stack.into_iter().chain(conns).chain(self.ssh.next_time()).min()
    }

    fn now(&self) -> StackInstant {
        let micros = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        StackInstant::from_micros(micros)
    }

    /// Makes sure that a connection attempt in the fetched frame finds a listening socket.
    fn prepare_listener(&mut self) {
        let port = self.card.fetched_syn();
        let Some(port) = port.filter(|port| [TOOLBOX_PORT, APP_PORT, SSH_PORT].contains(port)) else {
            return;
        };
        let mut socket = tcp_socket();
        // The port is not zero and the socket is fresh: listening cannot fail.
        let _ = socket.listen(port);
        let handle = self.sockets.add(socket);
        match port {
            SSH_PORT => drop(self.pipes.insert(handle, None)),
            port => drop(self.conns.insert(handle, Conn::new(port))),
        }
    }

    /// Moves bytes between sockets and the SSH server, and runs its programs.
    fn serve_ssh(&mut self, machine: &mut Machine) -> bool {
        let mut moved = false;
        let handles: Vec<SocketHandle> = self.pipes.keys().copied().collect();
        for handle in handles {
            let socket = self.sockets.get_mut::<tcp::Socket>(handle);
            if let Some(pipe) = self.pipes.get_mut(&handle) {
                match pipe {
                    Some(pipe) => moved |= pipe.work(socket),
                    None if socket.may_send() => match self.ssh.connect() {
                        Ok(made) => moved |= pipe.insert(made).work(socket),
                        Err(_) => socket.abort(),
                    },
                    None => {}
                }
            }
            if !self.keeps(handle) {
                self.pipes.remove(&handle);
                self.sockets.remove(handle);
            }
        }
        let mut egress = Egress {
            iface: &mut self.iface,
            sockets: &mut self.sockets,
            outgoing: &mut self.outgoing,
            own: self.address.ip.0,
        };
        self.ssh.work(Instant::now(), machine, &mut egress);
        moved
    }

    /// Moves bytes between sockets and protocol; true when something changed.
    fn serve(&mut self, machine: &mut Machine) -> bool {
        let now = Instant::now();
        let mut moved = false;
        let handles: Vec<SocketHandle> = self.conns.keys().copied().collect();
        for handle in handles {
            let Some(mut conn) = self.conns.remove(&handle) else {
                continue;
            };
            moved |= self.take_input(handle, &mut conn);
            let before = conn.output().len();
            let mut egress = Egress {
                iface: &mut self.iface,
                sockets: &mut self.sockets,
                outgoing: &mut self.outgoing,
                own: self.address.ip.0,
            };
            conn.work(now, machine, &mut egress);
            moved |= conn.output().len() != before;
            moved |= self.give_output(handle, &mut conn);
            if self.keeps(handle) {
                self.conns.insert(handle, conn);
            } else {
                self.sockets.remove(handle);
            }
        }
        moved
    }

    fn take_input(&mut self, handle: SocketHandle, conn: &mut Conn) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let mut moved = false;
        while conn.wants_input() && socket.can_recv() {
            let taken = socket.recv(|bytes| {
                conn.receive(bytes);
                (bytes.len(), bytes.len())
            });
            moved |= taken.is_ok_and(|count| count > 0);
        }
        moved
    }

    fn give_output(&mut self, handle: SocketHandle, conn: &mut Conn) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let mut moved = false;
        while socket.can_send() && !conn.output().is_empty() {
            let Ok(count) = socket.send_slice(conn.output()) else {
                break;
            };
            conn.sent(count);
            moved |= count > 0;
        }
        let client_done = !socket.may_recv() && socket.state() == tcp::State::CloseWait;
        if conn.output().is_empty() && (conn.is_closing() || client_done) {
            socket.close();
        }
        moved
    }

    /// Whether a connection goes on; closed sockets and ones whose port was only tried are dropped.
    fn keeps(&mut self, handle: SocketHandle) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        !matches!(socket.state(), tcp::State::Closed | tcp::State::Listen | tcp::State::TimeWait)
    }
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket.set_timeout(Some(StackDuration::from_secs(120)));
    socket
}

/// Outgoing traffic of one job step.
struct Egress<'a> {
    iface: &'a mut Interface,
    sockets: &'a mut SocketSet<'static>,
    outgoing: &'a mut Outgoing,
    own: Ipv4Addr,
}

impl Network for Egress<'_> {
    fn dial(&mut self, host: Ipv4Addr, port: u16) -> Option<usize> {
        let offset = self.outgoing.next_port;
        self.outgoing.next_port = (offset + 1) % 16_384;
        let mut socket = tcp_socket();
        let remote = IpEndpoint::new(IpAddress::Ipv4(host), port);
        let local = FIRST_LOCAL_PORT + offset;
        socket.connect(self.iface.context(), remote, local).ok()?;
        let handle = self.sockets.add(socket);
        let id = self.outgoing.id();
        self.outgoing.dials.insert(id, handle);
        Some(id)
    }

    fn dial_state(&mut self, id: usize) -> Dial {
        let Some(handle) = self.outgoing.dials.get(&id) else {
            return Dial::Refused;
        };
        let socket = self.sockets.get_mut::<tcp::Socket>(*handle);
        match socket.state() {
            tcp::State::SynSent | tcp::State::SynReceived => Dial::Pending,
            tcp::State::Closed => Dial::Refused,
            _ => Dial::Connected,
        }
    }

    fn ping(&mut self, host: Ipv4Addr) -> Option<usize> {
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 512]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        let ident = u16::from_ne_bytes(crate::random::bytes());
        socket.bind(icmp::Endpoint::Ident(ident)).ok()?;
        let request = Icmpv4Repr::EchoRequest { ident, seq_no: 1, data: b"ch-sim" };
        let payload = socket.send(request.buffer_len(), IpAddress::Ipv4(host)).ok()?;
        let mut packet = Icmpv4Packet::new_unchecked(payload);
        request.emit(&mut packet, &ChecksumCapabilities::default());
        let handle = self.sockets.add(socket);
        let id = self.outgoing.id();
        self.outgoing.pings.insert(id, (handle, ident));
        Some(id)
    }

    fn pong(&mut self, id: usize) -> bool {
        let Some((handle, ident)) = self.outgoing.pings.get(&id) else {
            return false;
        };
        let socket = self.sockets.get_mut::<icmp::Socket>(*handle);
        while let Ok((payload, from)) = socket.recv() {
            let reply = Icmpv4Packet::new_checked(payload).ok().and_then(|packet| {
                Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default())
                    .ok()
                    .map(|repr| matches!(repr, Icmpv4Repr::EchoReply { ident: got, .. } if got == *ident))
            });
            if reply == Some(true) && from != IpAddress::Ipv4(self.own) {
                return true;
            }
        }
        false
    }

    fn hang_up(&mut self, id: usize) {
        if let Some(handle) = self.outgoing.dials.remove(&id) {
            let socket = self.sockets.get_mut::<tcp::Socket>(handle);
            match socket.state() {
                // The peer must first see that it was connected.
                tcp::State::Established => socket.close(),
                _ => socket.abort(),
            }
            self.outgoing.finished.push(handle);
        }
        if let Some((handle, _)) = self.outgoing.pings.remove(&id) {
            self.sockets.remove(handle);
        }
    }
}

impl Outgoing {
    fn id(&mut self) -> usize {
        self.next_id += 1;
        self.next_id
    }
}
