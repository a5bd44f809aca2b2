//! A connection into a guest that does not outlive the sandbox's run. A guest that dies says nothing
//! on its connections, and an open one keeps the namespace: so they are broken off from here.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tracing::debug;

use crate::actors::proxy::Route;
use crate::net::{self, Error};
use crate::toolbox::PORT;

/// A guest that runs accepts at once or not at all.
const CONNECT: Duration = Duration::from_secs(5);

/// The connections of one run of a sandbox that this thread holds.
#[derive(Debug, Default)]
pub(super) struct Live {
    over: Cell<bool>,
    open: RefCell<BTreeSet<RawFd>>,
}

impl Live {
    /// Whether the run is over.
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// The run is over: whoever reads or writes on one of its connections is woken by an error, and their
    /// close will be a reset, which the namespace does not wait for.
    pub fn end(&self) {
        self.over.set(true);
        for &fd in &*self.open.borrow() {
            // SAFETY: a connection takes its descriptor out of this set before it closes it.
            let socket = unsafe { BorrowedFd::borrow_raw(fd) };
            let linger = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
            if let Err(error) = linger.and_then(|()| rustix::net::shutdown(socket, Shutdown::Both)) {
                debug!(%error, "a connection to a guest that has ended was already closed");
            }
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreached {
    /// The run has ended.
    #[error("the sandbox has stopped")]
    Over,
    /// The guest does not take it.
    #[error("the guest cannot be reached")]
    Connect(#[source] Error),
}

/// The connection.
#[derive(Debug)]
pub(super) struct GuestIo {
    stream: TcpStream,
    live: Rc<Live>,
}

impl GuestIo {
    /// Connects to the toolbox of a guest.
    pub async fn connect(route: &Route, live: &Rc<Live>) -> Result<Self, Unreached> {
        let stream = tokio::select! {
            stream = route.netns.connect(net::guest(PORT), CONNECT) => stream.map_err(Unreached::Connect)?,
            () = route.closed() => return Err(Unreached::Over),
        };
        if live.is_over() {
            return Err(Unreached::Over);
        }
        live.open.borrow_mut().insert(stream.as_raw_fd());
        Ok(Self { stream, live: live.clone() })
    }

    /// The close of this connection will be a reset: what is not delivered yet is given up.
    pub fn reset_on_close(&self) {
        if let Err(error) = self.stream.set_zero_linger() {
            debug!(%error, "a connection to a guest cannot be reset");
        }
    }

    fn verdict<T>(&self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match done {
            Poll::Ready(Err(_)) if self.live.is_over() => Poll::Ready(Err(stopped())),
            done => done,
        }
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the sandbox has stopped")
}

impl Drop for GuestIo {
    fn drop(&mut self) {
        self.live.open.borrow_mut().remove(&self.stream.as_raw_fd());
    }
}

impl AsyncRead for GuestIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match read {
            // Nobody said goodbye: it was cut from here.
            Poll::Ready(Ok(())) if buf.filled().len() == before && self.live.is_over() => Poll::Ready(Err(stopped())),
            read => self.verdict(read),
        }
    }
}

impl AsyncWrite for GuestIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.verdict(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.verdict(written)
    }
}
