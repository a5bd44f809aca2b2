//! Servers of the test's own in the place of a guest. They live in a network namespace that is hung
//! into the sandbox's by a veth pair, with a route to the guest's address that is closer than the one
//! to the TAP: what the runner connects to from inside the sandbox's namespace is then the test's
//! server, over a network, and what listens there does not keep the sandbox's namespace alive.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::sockopt::Linger;

use super::{Host, eventually, ip};

/// The guest's address in every sandbox.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
/// The port of the guest's toolbox, which every proxied request goes to.
pub const TOOLBOX: u16 = 2280;
/// Bytes of a connection that are remembered; more are only counted.
const REMEMBERED: usize = 4 << 20;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// The network of a guest that the test plays. Lasts until the sandbox's run ends: a new run needs
/// a new one.
#[derive(Clone)]
pub struct StandIn {
    netns: Arc<OwnedFd>,
    logs: PathBuf,
}

impl StandIn {
    /// Takes the guest's place in a sandbox that runs. Connections to the guest itself die.
    #[track_caller]
    pub fn of(host: &Host, id: &str) -> Self {
        let shown = host.http().get(&format!("/sandboxes/{id}")).json();
        let sandbox = shown["netns"].as_str().unwrap_or_else(|| panic!("{id} has no namespace: {shown}")).to_owned();
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").expect("a network namespace"))
        };
        let netns = std::thread::spawn(make).join().expect("a network namespace");
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
        let stand_in = Self { netns: Arc::new(netns), logs: host.dir.path().to_owned() };
        let (near, far) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
        let peer = ["peer", "name", "eth0", "address", far, "netns", &path];
        ip(&[&["-n", &sandbox, "link", "add", "standin", "address", near, "type", "veth"][..], &peer].concat());
        ip(&["-n", &sandbox, "link", "set", "standin", "up"]);
        stand_in.inside(|| {
            ip(&["link", "set", "lo", "up"]);
            ip(&["addr", "add", &format!("{GUEST}/24"), "dev", "eth0"]);
            ip(&["link", "set", "eth0", "up"]);
            ip(&["neigh", "add", "192.168.0.1", "lladdr", near, "dev", "eth0", "nud", "permanent"]);
            ip(&["route", "add", "default", "via", "192.168.0.1"]);
        });
        // A host route wins over the network route to the TAP. The sandbox's namespace answers nobody who
        // asks by ARP on a second link, so neither side has to ask.
        let guest = GUEST.to_string();
        ip(&["-n", &sandbox, "neigh", "add", &guest, "lladdr", far, "dev", "standin", "nud", "permanent"]);
        ip(&["-n", &sandbox, "route", "add", &guest, "dev", "standin", "src", "192.168.0.1"]);
        stand_in
    }

    /// Runs on another thread inside; sockets that it makes and processes that it starts stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let enter = || {
                setns(self.netns.as_fd(), CloneFlags::CLONE_NEWNET).expect("the way into the namespace");
                work()
            };
            scope.spawn(enter).join().expect("the work inside")
        })
    }

    /// A server at a port of the guest; `each` has a thread of its own for every connection.
    pub fn serve(&self, port: u16, each: impl Fn(Conn) + Send + Sync + 'static) -> Backend {
        let listener = self.inside(|| {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a free port");
            // Longer than the standard library's.
            nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(BACKLOG).expect("a backlog"))
                .expect("a listener");
            listener
        });
        let connections = Arc::new(Connections::default());
        let (own, known) = (listener.try_clone().expect("a listener"), connections.clone());
        let each = Arc::new(each);
        let accepting = std::thread::spawn(move || {
            for stream in own.incoming().map_while(Result::ok) {
                let (conn, each) = (Conn::new(stream, &known), each.clone());
                std::thread::spawn(move || each(conn));
            }
        });
        Backend { stand_in: self.clone(), listener, connections, accepting: Some(accepting) }
    }

    /// A program inside, with the test's environment and these variables. What it says goes to files
    /// beside the runner's log.
    #[track_caller]
    pub fn spawn(&self, program: &str, arguments: &[&str], env: &[(&str, &str)]) -> Program {
        let name = program.rsplit('/').next().unwrap_or(program).to_owned();
        let log = tempfile::Builder::new().prefix(&format!("{name}.")).suffix(".log").tempfile_in(&self.logs);
        let (file, log) = log.expect("a log").keep().expect("a log");
        let child = self.inside(|| {
            let mut command = Command::new(program);
            command.args(arguments).envs(env.iter().copied());
            command.stdin(Stdio::null()).stdout(file.try_clone().expect("a log")).stderr(file);
            command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"))
        });
        Program { stand_in: self.clone(), child, log }
    }

    /// Whether the kernel has taken the sandbox's namespace apart: then the link to it is gone as well.
    /// A socket there that still tries to send something would keep it.
    pub fn is_cut_off(&self) -> bool {
        let shown = self.inside(|| Command::new("ip").args(["link", "show", "eth0"]).output());
        !shown.expect("the package iproute2 is installed").status.success()
    }

    /// A connection from inside to one of its ports; `None` when nobody listens.
    pub fn connect(&self, port: u16) -> Option<TcpStream> {
        self.inside(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())
    }
}

/// A server of the test. It ends when dropped, with all its connections.
pub struct Backend {
    pub stand_in: StandIn,
    listener: TcpListener,
    connections: Arc<Connections>,
    accepting: Option<JoinHandle<()>>,
}

impl Backend {
    /// Takes the guest's place and serves one port of it.
    #[track_caller]
    pub fn serve(host: &Host, id: &str, port: u16, each: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        StandIn::of(host, id).serve(port, each)
    }

    /// Takes the guest's place and runs a program there.
    #[track_caller]
    pub fn spawn(host: &Host, id: &str, program: &str, arguments: &[&str], env: &[(&str, &str)]) -> Program {
        StandIn::of(host, id).spawn(program, arguments, env)
    }

    /// What came by each connection so far, in the order in which they were accepted.
    pub fn seen(&self) -> Vec<Seen> {
        self.connections.seen.lock().expect("no panic").clone()
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> usize {
        self.seen().len()
    }

    /// Connections whose server has not ended them. To notice that the runner has ended one, the
    /// server must read.
    pub fn open(&self) -> usize {
        self.connections.open.lock().expect("no panic").len()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // This is what wakes a thread that accepts.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for stream in self.connections.open.lock().expect("no panic").values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// What came by one connection.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The first 4 MiB.
    pub bytes: Vec<u8>,
    /// How many came.
    pub total: u64,
}

#[derive(Default)]
struct Connections {
    seen: Mutex<Vec<Seen>>,
    /// A second handle on each, to end them; the number is the place in `seen`.
    open: Mutex<HashMap<usize, TcpStream>>,
}

/// A connection that the server has accepted; what is read is remembered. Ends when dropped.
pub struct Conn {
    /// There until it is dropped.
    stream: Option<TcpStream>,
    number: usize,
    all: Arc<Connections>,
}

impl Conn {
    fn new(stream: TcpStream, all: &Arc<Connections>) -> Self {
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let number = {
            let mut seen = all.seen.lock().expect("no panic");
            seen.push(Seen::default());
            seen.len() - 1
        };
        let second = stream.try_clone().expect("a handle");
        all.open.lock().expect("no panic").insert(number, second);
        Self { stream: Some(stream), number, all: all.clone() }
    }

    /// Its number in the order of acceptance, from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The socket. What is read from it directly is not remembered.
    pub fn stream(&self) -> &TcpStream {
        self.stream.as_ref().expect("a connection")
    }

    /// Ends the connection by a reset instead of an orderly end.
    pub fn reset(self) {
        let now = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(self.stream(), Linger, &now).expect("SO_LINGER");
    }

    /// Reads until the other side ends or breaks the connection.
    pub fn read_to_its_end(&mut self) {
        let mut piece = vec![0; 64 << 10];
        while self.read(&mut piece).is_ok_and(|length| length > 0) {}
    }
}

impl Read for Conn {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let length = self.stream().read(into)?;
        let mut all = self.all.seen.lock().expect("no panic");
        let seen = &mut all[self.number];
        let room = REMEMBERED.saturating_sub(seen.bytes.len()).min(length);
        seen.bytes.extend_from_slice(&into[..room]);
        seen.total += length as u64;
        Ok(length)
    }
}

impl Write for Conn {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream().flush()
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // The second handle would keep the connection open; and once it is not counted, it is closed.
        let mut open = self.all.open.lock().expect("no panic");
        open.remove(&self.number);
        self.stream = None;
    }
}

/// A program in the guest's place; killed when dropped.
pub struct Program {
    pub stand_in: StandIn,
    pub child: Child,
    log: PathBuf,
}

impl Program {
    /// Waits until it takes connections at a port.
    #[track_caller]
    pub fn listens(&mut self, port: u16) {
        eventually(&format!("the program listens at port {port}"), || {
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("the program ended with {status}: {}", self.said());
            }
            self.stand_in.connect(port)
        });
    }

    /// What it has said, both ways.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
