//! A connection into a guest that does not outlive the sandbox's run. A guest that dies says nothing
//! on its connections, and an open one keeps the namespace: so they are broken off from here.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::actors::Routes;
use crate::ids::SandboxId;
use crate::net::{self, Error};
use crate::toolbox::PORT;

/// A guest that runs accepts at once or not at all.
const CONNECT: Duration = Duration::from_secs(5);
/// The connection.
pub(super) struct GuestStream {
    stream: TcpStream,
    /// Ready when the run is over; `None` after that.
    over: Option<BoxFuture<'static, ()>>,
}

/// Ready when the run is over; cheap to clone.
pub(super) type Over = Shared<BoxFuture<'static, ()>>;

impl GuestStream {
    /// Connects to the toolbox of a sandbox that runs; `None` when it does not, or not any more. Beside
    /// the stream, what tells whoever waits on something else that the run is over.
    pub async fn connect(routes: &Routes, id: &SandboxId) -> Result<Option<(Self, Over)>, Error> {
        let Some(route) = routes.get(id) else { return Ok(None) };
        let mut over = route.closed().boxed();
        tokio::select! {
            stream = route.netns.connect(net::guest(PORT), CONNECT) => {
                let told = route.closed().boxed().shared();
                Ok(Some((Self { stream: stream?, over: Some(over) }, told)))
            }
            () = &mut over => Ok(None),
        }
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Data first: what the guest has said before its end still arrives.
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            return Poll::Ready(read);
        }
        if self.over.as_mut().is_some_and(|over| over.poll_unpin(cx).is_pending()) {
            return Poll::Pending;
        }
        self.over = None;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the sandbox has stopped")))
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
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
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
