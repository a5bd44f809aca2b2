//! The guest's SSH server: the bytes of its connections go to a thread that is started by the first of them, its
//! commands come back to the built-in shell.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use smoltcp::socket::tcp;

use super::machine::{Machine, Network};
use super::shell::{Job, Progress};
use super::sshd::{self, Exec};

/// Port of the server (PROTOCOL.md 9).
pub const SSH_PORT: u16 = 22220;
/// Bytes that may wait in each direction of a connection.
const WAITING: usize = 64 << 10;
/// A program has no end of its own otherwise.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// The server, once somebody has connected.
#[derive(Default)]
pub struct Ssh {
    service: Option<Service>,
    jobs: Vec<Running>,
}

struct Service {
    connections: sshd::Connections,
    commands: Receiver<Exec>,
    wake: Arc<EventFd>,
}

struct Running {
    job: Job,
    next: Instant,
    exec: Exec,
}

impl Ssh {
    /// The other end of a new connection.
    pub fn connect(&mut self) -> io::Result<Pipe> {
        let service = match &mut self.service {
            Some(service) => service,
            none => none.insert(Service::start()?),
        };
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        service.connections.open(far)?;
        Ok(Pipe { stream: near, to_server: Vec::new(), to_client: Vec::new(), client_done: false, server_done: false })
    }

    /// Descriptor that tells of new commands.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.service.as_ref().map(|service| service.wake.as_fd())
    }

    /// Runs the programs as far as they get.
    pub fn work(&mut self, now: Instant, machine: &mut Machine, net: &mut dyn Network) {
        if let Some(service) = &self.service {
            // Only resets the counter.
            let _ = service.wake.read();
            while let Ok(exec) = service.commands.try_recv() {
                let job = Job::new(&exec.script, None, exec.env.clone(), PATIENCE, machine);
                self.jobs.push(Running { job, next: now, exec });
            }
        }
        self.jobs.retain_mut(|running| {
            if running.exec.is_abandoned() {
                return false;
            }
            match running.job.step(now, machine, net) {
                Progress::Waiting(next) => {
                    running.next = next;
                    true
                }
                Progress::Done { code, output } => {
                    running.exec.done(code, output);
                    false
                }
                Progress::TimedOut => {
                    running.exec.done(124, String::new());
                    false
                }
            }
        });
    }

    /// When a program goes on by itself.
    pub fn next_time(&self) -> Option<Instant> {
        self.jobs.iter().map(|running| running.next).min()
    }
}

impl Service {
    fn start() -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (sender, commands): (Sender<Exec>, _) = channel();
        let waker = Arc::clone(&wake);
        let connections = sshd::start(move |exec| {
            // A guest that is gone runs nothing.
            let _ = sender.send(exec);
            let _ = waker.write(1);
        })?;
        Ok(Self { connections, commands, wake })
    }
}

/// Bytes between a socket of the guest's stack and the server.
pub struct Pipe {
    stream: UnixStream,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    client_done: bool,
    server_done: bool,
}

impl Pipe {
    /// What to wait for, and on what.
    pub fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, !self.server_done && self.to_client.len() < WAITING);
        flags.set(PollFlags::POLLOUT, !self.to_server.is_empty());
        (self.stream.as_fd(), flags)
    }

    /// Moves what can be moved; true when something was.
    pub fn work(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let up = self.up(socket);
        let down = self.down(socket);
        up || down
    }

    fn up(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let mut moved = false;
        while self.to_server.len() < WAITING && socket.can_recv() {
            let buffer = &mut self.to_server;
            let taken = socket.recv(|bytes| {
                buffer.extend_from_slice(bytes);
                (bytes.len(), bytes.len())
            });
            moved |= taken.is_ok_and(|count| count > 0);
        }
        while !self.to_server.is_empty() {
            match self.stream.write(&self.to_server) {
                Ok(count) => drop(self.to_server.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The server has closed: nobody takes it.
                Err(_) => self.to_server.clear(),
            }
        }
        if !socket.may_recv() && !socket.can_recv() && self.to_server.is_empty() && !self.client_done {
            self.client_done = true;
            // The server may have closed already.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        moved
    }

    fn down(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let mut moved = false;
        let mut piece = [0; 16 << 10];
        while !self.server_done && self.to_client.len() < WAITING {
            match self.stream.read(&mut piece) {
                Ok(0) => self.server_done = true,
                Ok(count) => self.to_client.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.server_done = true,
            }
        }
        while socket.can_send() && !self.to_client.is_empty() {
            let Ok(count) = socket.send_slice(&self.to_client) else { break };
            self.to_client.drain(..count);
            moved |= count > 0;
        }
        if self.server_done && self.to_client.is_empty() {
            socket.close();
        }
        moved
    }
}

/// Variables that a client has set.
pub type Variables = BTreeMap<String, String>;
