//! The stream under an HTTP connection. It lets nothing be read before the request went out, because
//! a VMM with too many connections answers and closes before it has read anything
//! (cloud-hypervisor.md 2.1), and notes whether anything was sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Whether any byte of a request reached the socket. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Sent(Arc<AtomicBool>);

impl Sent {
    /// True once something was written.
    pub fn happened(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A unix stream for hyper's client.
#[derive(Debug)]
pub struct Io {
    stream: TokioIo<UnixStream>,
    sent: Sent,
    /// True once this connection's request began; `sent` also counts earlier attempts of the call.
    begun: bool,
    reader: Option<Waker>,
}

impl Io {
    /// Wraps a connected stream.
    pub fn new(stream: UnixStream, sent: Sent) -> Self {
        Self { stream: TokioIo::new(stream), sent, begun: false, reader: None }
    }

    fn begin(&mut self) {
        self.begun = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Read for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if !self.begun {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = match Pin::new(&mut self.stream).poll_write(cx, buf) {
            Poll::Ready(Ok(count)) => {
                self.sent.0.store(true, Ordering::Relaxed);
                Ok(count)
            }
            // The other side has closed. What it said before is still to be read, and if it said
            // nothing the read reports the end of the stream.
            Poll::Ready(Err(error)) if is_closed(&error) => Ok(buf.len()),
            other => return other,
        };
        self.begin();
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A half-closed connection makes the VMM drop its answer; dropping the stream closes it.
        Poll::Ready(Ok(()))
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
