//! After a 101: the client's connection and the guest's become one tunnel.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::access::Entry;
use super::guest::GuestIo;
use crate::actors::proxy::{Place, Route};
use crate::http::front::Wire;
use crate::http::tunnel;

/// The guest's side of a tunnel, and what the tunnel needs to know.
pub struct Upgrade {
    guest: Early<GuestIo>,
    over: LocalBoxFuture<'static, ()>,
    pings: Option<Duration>,
    /// It counts as long as the tunnel is there.
    _place: Place,
    entry: Entry,
}

impl Upgrade {
    pub(super) fn new(
        guest: GuestIo,
        early: Bytes,
        route: &Route,
        pings: Option<Duration>,
        place: Place,
        entry: Entry,
    ) -> Self {
        Self { guest: Early::new(guest, early), over: route.closed().boxed_local(), pings, _place: place, entry }
    }

    /// Carries bytes both ways until both sides have ended. `early` is what the client sent right behind
    /// its request.
    pub async fn run(self, client: Wire, early: Bytes) {
        let Self { mut guest, over, pings, entry, _place } = self;
        let mut client = Early::new(client, early);
        let ended = tunnel::run(&mut client, &mut guest, over, pings).await;
        if ended.aborted() {
            // One side is gone without a word; the other learns it in the same way.
            client.stream.reset_on_close();
            guest.stream.reset_on_close();
        }
        entry.tunnelled(&ended);
    }
}

/// A stream some bytes of which were read already.
pub(super) struct Early<S> {
    early: Bytes,
    stream: S,
}

impl<S> Early<S> {
    pub fn new(stream: S, early: Bytes) -> Self {
        Self { early, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Early<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let some = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early[..some]);
        self.early.advance(some);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Early<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
