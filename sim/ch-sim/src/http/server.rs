//! The server loop: at most ten connections, requests executed one after the other.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::connection::Connection;
use super::parser::Request;
use super::response::Response;

/// Connections served at the same time.
const MAX_CONNECTIONS: usize = 10;
/// Whole answer to the eleventh connection.
const FULL: &[u8] = b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\n\
    Content-Length: 40\r\n\r\n{ \"error\": \"Too many open connections\" }";

/// The HTTP server of the API socket.
pub struct Server {
    listener: UnixListener,
    stop: Arc<EventFd>,
    connections: Vec<Connection>,
}

/// Ends a running [`Server`] after it has written all answers.
#[derive(Clone)]
pub struct StopHandle(Arc<EventFd>);

impl StopHandle {
    /// Asks the server to end.
    pub fn stop(&self) {
        // Writing 1 to a fresh counter cannot overflow it.
        let _ = self.0.write(1);
    }
}

impl Server {
    /// Serves an already listening socket.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        Ok(Self { listener, stop: Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?), connections: Vec::new() })
    }

    /// Handle that ends [`Server::run`].
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(Arc::clone(&self.stop))
    }

    /// Serves until stopped; `execute` blocks the whole server while it runs (cloud-hypervisor.md 1).
    pub fn run(mut self, mut execute: impl FnMut(Request) -> Response) -> io::Result<()> {
        while self.turn(&mut execute)? {}
        for connection in &mut self.connections {
            connection.flush();
        }
        Ok(())
    }

    /// One round of poll, read, execute and answer; false when the server shall end.
    fn turn(&mut self, execute: &mut impl FnMut(Request) -> Response) -> io::Result<bool> {
        let ready = self.wait()?;
        if ready[0] != 0 {
            return Ok(false);
        }
        let mut requests = Vec::new();
        for (index, (connection, ready)) in self.connections.iter_mut().zip(&ready[2..]).enumerate() {
            let complete = connection.on_ready(*ready);
            requests.extend(complete.into_iter().map(|request| (index, request)));
        }
        for (index, request) in requests {
            let response = execute(request);
            self.connections[index].answer(response);
        }
        self.connections.retain(|connection| !connection.is_closed());
        if ready[1] != 0 {
            self.accept()?;
        }
        Ok(true)
    }

    /// Waits for the stop handle, the listener and the connections, in this order; what poll(2) reported of each.
    fn wait(&self) -> io::Result<Vec<i16>> {
        let entry = |fd: BorrowedFd<'_>, events| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        let mut fds = vec![entry(self.stop.as_fd(), libc::POLLIN), entry(self.listener.as_fd(), libc::POLLIN)];
        fds.extend(self.connections.iter().map(|c| entry(c.fd(), c.interest())));
        loop {
            // SAFETY: the pointer and length describe the vector; its descriptors are open.
            let count = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
            if count >= 0 {
                return Ok(fds.iter().map(|fd| fd.revents).collect());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let (mut stream, _) = self.listener.accept()?;
        if self.connections.len() < MAX_CONNECTIONS {
            self.connections.push(Connection::new(stream)?);
        } else {
            // The client may be gone already; it gets no second answer either way.
            let _ = stream.write(FULL);
        }
        Ok(())
    }
}
