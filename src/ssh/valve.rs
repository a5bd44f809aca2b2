//! A connection whose reading can be held up, and that can be cut from outside.
//!
//! russh opens a channel's window again as soon as data arrives, not when somebody has taken it, and hands data on from
//! the one loop that serves all of a connection. Held up there, it would neither write nor see the other side's windows,
//! and two connections that wait for each other would wait for ever. So data is queued without waiting, its bytes are
//! counted here, and what is held up is only the reading from the socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Between two packets of a peer that is being slowed down.
const SLOWLY: Duration = Duration::from_millis(20);
/// So many times the usual bytes may wait while somebody waits for an answer that is behind them.
const URGENT: i64 = 8;

/// What holds up or cuts one connection.
#[derive(Debug)]
pub(super) struct Valve {
    /// Bytes that were received and not passed on yet.
    waiting: AtomicI64,
    /// Above this many nothing is read.
    most: i64,
    urgent: AtomicUsize,
    slow: AtomicBool,
    cut: AtomicBool,
    waker: AtomicWaker,
}

impl Valve {
    /// Reading stops while more than `most` bytes wait, and goes on when they are half of that.
    pub fn new(most: i64) -> Arc<Self> {
        Arc::new(Self {
            waiting: AtomicI64::new(0),
            most,
            urgent: AtomicUsize::new(0),
            slow: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        })
    }

    /// Bytes were received.
    pub fn received(&self, bytes: usize) {
        self.waiting.fetch_add(size(bytes), Ordering::AcqRel);
    }

    /// Bytes were passed on, or given up.
    pub fn delivered(&self, bytes: usize) {
        let before = self.waiting.fetch_sub(size(bytes), Ordering::AcqRel);
        let low = self.most / 2;
        if before > low && before - size(bytes) <= low {
            self.waker.wake();
        }
    }

    /// Counts these bytes as passed on when the result is dropped, however that comes about.
    pub fn delivering(&self, bytes: usize) -> Delivering<'_> {
        Delivering(self, bytes)
    }

    /// Bytes that were received and not passed on yet.
    pub fn waiting(&self) -> i64 {
        self.waiting.load(Ordering::Acquire)
    }

    /// While the result lives, more is read than usual: somebody waits for an answer that may be behind other data.
    pub fn urgently(&self) -> Urgent<'_> {
        self.urgent.fetch_add(1, Ordering::AcqRel);
        self.waker.wake();
        Urgent(self)
    }

    /// The next packet is not read at once.
    pub fn slow_down(&self) {
        self.slow.store(true, Ordering::Release);
    }

    /// Ends the connection: from now on reading and writing fail.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// True after [`Valve::cut`].
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    fn full(&self) -> bool {
        let most = if self.urgent.load(Ordering::Acquire) > 0 { self.most * URGENT } else { self.most };
        self.waiting() > most
    }
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// See [`Valve::delivering`].
pub(super) struct Delivering<'a>(&'a Valve, usize);

impl Drop for Delivering<'_> {
    fn drop(&mut self) {
        self.0.delivered(self.1);
    }
}

/// See [`Valve::urgently`].
pub(super) struct Urgent<'a>(&'a Valve);

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.urgent.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A stream behind a valve.
pub(super) struct Held<S> {
    stream: S,
    valve: Arc<Valve>,
    /// Allocated when it is first needed, which is hardly ever.
    pause: Option<Pin<Box<Sleep>>>,
    pausing: bool,
}

impl<S> Held<S> {
    /// Puts a stream behind a valve. Reading and writing must be polled by the same task.
    pub fn new(stream: S, valve: Arc<Valve>) -> Self {
        Self { stream, valve, pause: None, pausing: false }
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.valve.waker.register(cx.waker());
        if self.valve.is_cut() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was given up")));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.valve.slow.swap(false, Ordering::AcqRel) {
            let until = Instant::now() + SLOWLY;
            self.pause.get_or_insert_with(|| Box::pin(sleep(SLOWLY))).as_mut().reset(until);
            self.pausing = true;
        }
        if let Some(pause) = self.pause.as_mut().filter(|_| self.pausing) {
            ready!(pause.as_mut().poll(cx));
            self.pausing = false;
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?;
        if self.valve.full() {
            return Poll::Pending;
        }
        ready!(self.poll_pause(cx));
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn reading_stops_above_the_mark_and_goes_on_at_half_of_it() {
        let (mut far, near) = duplex(64);
        let valve = Valve::new(10);
        let mut held = Held::new(near, valve.clone());
        far.write_all(b"abc").await.unwrap();
        valve.received(11);
        assert!(timeout(NEVER, held.read_u8()).await.is_err(), "too much waits");
        valve.delivered(5);
        let reading = tokio::spawn(async move { (held.read_u8().await.unwrap(), held) });
        let (read, mut held) = reading.await.unwrap();
        assert_eq!(read, b'a');
        valve.received(20);
        let other = valve.clone();
        let reading = tokio::spawn(async move { held.read_u8().await.unwrap() });
        tokio::task::yield_now().await;
        other.delivered(21);
        assert_eq!(reading.await.unwrap(), b'b', "what waited is told");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_waited_for_is_read_all_the_same() {
        let (mut far, near) = duplex(64);
        let valve = Valve::new(10);
        let mut held = Held::new(near, valve.clone());
        far.write_all(b"ab").await.unwrap();
        valve.received(80);
        let urgent = valve.urgently();
        assert_eq!(held.read_u8().await.unwrap(), b'a');
        drop(urgent);
        assert!(timeout(NEVER, held.read_u8()).await.is_err());
        valve.received(1);
        let _urgent = valve.urgently();
        assert!(timeout(NEVER, held.read_u8()).await.is_err(), "but not without end");
    }

    #[tokio::test(start_paused = true)]
    async fn slowed_down_and_cut() {
        let (mut far, near) = duplex(64);
        let valve = Valve::new(10);
        let mut held = Held::new(near, valve.clone());
        far.write_all(b"ab").await.unwrap();
        let began = Instant::now();
        valve.slow_down();
        held.read_u8().await.unwrap();
        assert!(began.elapsed() >= SLOWLY, "{:?}", began.elapsed());
        held.read_u8().await.unwrap();
        assert!(began.elapsed() < 2 * SLOWLY, "once only");
        let cut = valve.clone();
        let reading = tokio::spawn(async move { (held.read_u8().await.map_err(|error| error.kind()), held) });
        tokio::task::yield_now().await;
        cut.cut();
        let (read, mut held) = reading.await.unwrap();
        assert_eq!(read, Err(io::ErrorKind::ConnectionAborted));
        assert!(held.write_all(b"x").await.is_err());
    }
}
