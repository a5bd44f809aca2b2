//! A client's connection as hyper sees it: with a limit on the time that one head may take, and with
//! a way to send interim answers (1xx), for which hyper's server has none.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;

/// From the first byte of a head to its last, as in the original (PROTOCOL.md 6).
const HEAD: Duration = Duration::from_secs(10);

/// A client that ends its side after a request without a body may only have nothing more to say (`nc -N`), or
/// may have left: it is given so long after the last byte that it took.
const HALF_OPEN: Duration = Duration::from_secs(5);

/// Bytes to and from a client, in the clear or within TLS.
#[derive(Debug)]
pub enum Wire {
    /// In the clear.
    Plain(TcpStream),
    /// Within TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The close of this connection will be a reset: what is not delivered yet is given up.
    pub fn reset_on_close(&self) {
        let stream = match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        if let Err(error) = stream.set_zero_linger() {
            tracing::debug!(%error, "a client's connection cannot be reset");
        }
    }
}

macro_rules! both {
    ($wire:expr, $stream:ident => $call:expr) => {
        match $wire.get_mut() {
            Wire::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Wire::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        both!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        both!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        both!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        both!(self, stream => stream.poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        both!(self, stream => stream.poll_write_vectored(cx, bufs))
    }
}

/// What the one who answers tells the connection; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Interim(Rc<RefCell<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    /// Interim answers that wait for their turn.
    waiting: Vec<u8>,
    /// So many of them are on the wire; once it is begun, it must be ended.
    sent: usize,
    /// When the head under way must be complete.
    deadline: Option<Instant>,
    /// hyper has nothing in hand that it has begun to write: an interim answer can go out.
    flushed: bool,
    /// A request is being answered: what is read belongs to its body, or is a later one's.
    answering: bool,
    /// That request has no body.
    bodiless: bool,
}

impl Interim {
    /// Sends bytes before the answer, whole interim heads.
    pub fn send(&self, head: &[u8]) {
        self.0.borrow_mut().waiting.extend_from_slice(head);
    }

    /// The answer begins: what was not begun to be sent is too late.
    pub(super) fn answer_begins(&self) {
        let mut shared = self.0.borrow_mut();
        if shared.sent == 0 && !shared.flushed {
            shared.waiting.clear();
        }
    }

    /// A head is complete, and is being answered until what this returns is dropped.
    pub(super) fn request(&self, bodiless: bool) -> Answering {
        let mut shared = self.0.borrow_mut();
        (shared.deadline, shared.answering, shared.bodiless) = (None, true, bodiless);
        Answering(self.clone())
    }
}

/// As long as it lives a request is being answered.
#[derive(Debug)]
pub(super) struct Answering(Interim);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.borrow_mut().answering = false;
    }
}

/// The connection.
pub(super) struct ClientIo {
    wire: Wire,
    interim: Interim,
    timer: Option<Pin<Box<Sleep>>>,
    /// The client has ended its side, and this is when it has taken something last.
    half_open: Option<Instant>,
}

impl ClientIo {
    pub fn new(wire: Wire, interim: Interim) -> Self {
        Self { wire, interim, timer: None, half_open: None }
    }

    pub fn into_inner(self) -> Wire {
        self.wire
    }

    /// Goes on sending interim answers. A fresh one may be begun only `between` two writes of hyper.
    fn poll_interim(&mut self, cx: &mut Context<'_>, between: bool) -> Poll<io::Result<()>> {
        let mut shared = self.interim.0.borrow_mut();
        while (between || shared.sent > 0) && shared.sent < shared.waiting.len() {
            let sent = ready!(Pin::new(&mut self.wire).poll_write(cx, &shared.waiting[shared.sent..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            shared.sent += sent;
        }
        if shared.sent > 0 {
            shared.waiting.clear();
            shared.sent = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when this time has come.
    fn poll_timer(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }

    /// An error when the head under way takes too long.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(deadline) = self.interim.0.borrow().deadline else { return Poll::Pending };
        ready!(self.poll_timer(cx, deadline));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the head of a request took too long"))
    }

    /// Ready when the end of the client's side is to be taken for the end of the connection.
    fn poll_half_open(&mut self, cx: &mut Context<'_>, since: Instant) -> Poll<()> {
        let waits = {
            let shared = self.interim.0.borrow();
            shared.answering && shared.bodiless
        };
        if waits { self.poll_timer(cx, since + HALF_OPEN) } else { Poll::Ready(()) }
    }

    fn took(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Poll::Ready(Ok(1..)), Some(since)) = (&written, &mut self.half_open) {
            *since = Instant::now();
        }
        written
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(since) = self.half_open {
            return self.poll_half_open(cx, since).map(Ok);
        }
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut self.wire).poll_read(cx, buf) else {
            return self.poll_deadline(cx).map(Err);
        };
        if read.is_ok() && buf.filled().len() == before && buf.remaining() > 0 {
            let since = *self.half_open.insert(Instant::now());
            return self.poll_half_open(cx, since).map(Ok);
        }
        let mut shared = self.interim.0.borrow_mut();
        if buf.filled().len() > before && !shared.answering && shared.deadline.is_none() {
            shared.deadline = Some(Instant::now() + HEAD);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let between = self.interim.0.borrow().flushed;
        ready!(self.poll_interim(cx, between))?;
        self.interim.0.borrow_mut().flushed = false;
        let written = Pin::new(&mut self.wire).poll_write(cx, buf);
        self.took(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has nothing more to write: that is between two messages, or before one.
        ready!(self.poll_interim(cx, true))?;
        self.interim.0.borrow_mut().flushed = true;
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let between = self.interim.0.borrow().flushed;
        ready!(self.poll_interim(cx, between))?;
        self.interim.0.borrow_mut().flushed = false;
        let written = Pin::new(&mut self.wire).poll_write_vectored(cx, bufs);
        self.took(written)
    }
}
