//! One direction of a tunnel: read, judge, write, with a buffer only while there is something in it.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{Frames, Next};

/// Most that waits in one direction. Sockets hand out as much at once when data comes fast.
pub(super) const BUFFER: usize = 64 << 10;
/// Free buffers that a thread keeps.
const KEPT: usize = 8;
/// Reads of one turn; then others on this thread get theirs.
const READS: u32 = 16;

thread_local! {
    /// A buffer is only needed from a read until all of it is written, mostly within one turn.
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn take() -> Box<[u8]> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
}

fn give(buffer: Box<[u8]>) {
    FREE.with_borrow_mut(|free| {
        if free.len() < KEPT {
            free.push(buffer);
        }
    });
}

/// Why a direction does not go on for now.
#[derive(Debug)]
pub(super) enum Pause {
    /// Its source has nothing.
    Reading,
    /// Its target takes nothing.
    Writing,
    /// It has had its turn and is woken at once.
    Turn,
    /// Its source has ended, and its target knows.
    Ended,
}

/// Which side a direction broke on.
#[derive(Debug)]
pub(super) enum Broken {
    Source(io::Error),
    Target(io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// The source has ended; what is left is written, then the target is told.
    Ending,
    Ended,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Direction {
    /// `start..cleared` is to be written, `cleared..end` not judged yet.
    buffer: Option<Box<[u8]>>,
    start: usize,
    cleared: usize,
    end: usize,
    stage: Stage,
    unflushed: bool,
    /// Follows a WebSocket's frames.
    pub frames: Option<Frames>,
    received: u64,
    passed: u64,
}

/// How far a direction has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// Bytes that came from the source.
    pub received: u64,
    /// Bytes that went on to the target; pings of ours do not count.
    pub passed: u64,
    /// Whether the source has ended.
    pub ended: bool,
}

impl Direction {
    pub fn new(frames: Option<Frames>) -> Self {
        Self {
            buffer: None,
            start: 0,
            cleared: 0,
            end: 0,
            stage: Stage::Open,
            unflushed: false,
            frames,
            received: 0,
            passed: 0,
        }
    }

    /// How far it has come.
    pub fn seen(&self) -> Seen {
        Seen { received: self.received, passed: self.passed, ended: self.stage != Stage::Open }
    }

    /// Whether the target has not taken everything.
    pub fn waits(&self) -> bool {
        self.start < self.cleared
    }

    /// Whether a frame may be put in here: the last one is written to its end, and more may follow.
    pub fn between(&self) -> bool {
        self.buffer.is_none() && self.stage == Stage::Open && self.frames.is_some_and(|frames| frames.between())
    }

    /// Puts bytes in where [`between`](Self::between) allows it.
    pub fn insert(&mut self, bytes: &[u8]) {
        let mut buffer = take();
        buffer[..bytes.len()].copy_from_slice(bytes);
        (self.start, self.cleared, self.end) = (0, bytes.len(), bytes.len());
        self.buffer = Some(buffer);
    }

    /// Goes on as far as it can. The task is woken when it can go on.
    pub fn advance<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, target: &mut W) -> Result<Pause, Broken>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..READS {
            match self.empty(cx, target) {
                Poll::Pending => return Ok(Pause::Writing),
                Poll::Ready(written) => written.map_err(Broken::Target)?,
            }
            match self.stage {
                Stage::Ended => return Ok(Pause::Ended),
                Stage::Ending => match Pin::new(&mut *target).poll_shutdown(cx) {
                    Poll::Pending => return Ok(Pause::Writing),
                    Poll::Ready(told) => {
                        told.map_err(Broken::Target)?;
                        self.stage = Stage::Ended;
                        return Ok(Pause::Ended);
                    }
                },
                Stage::Open => {}
            }
            match self.fill(cx, source) {
                Poll::Ready(read) => read.map_err(Broken::Source)?,
                Poll::Pending if !self.unflushed => return Ok(Pause::Reading),
                Poll::Pending => {
                    return match Pin::new(&mut *target).poll_flush(cx) {
                        Poll::Pending => Ok(Pause::Reading),
                        Poll::Ready(flushed) => {
                            flushed.map_err(Broken::Target)?;
                            self.unflushed = false;
                            Ok(Pause::Reading)
                        }
                    };
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(Pause::Turn)
    }

    /// Writes all that may be written; what is left then may be an answer to a ping of ours.
    fn empty(&mut self, cx: &mut Context<'_>, target: &mut (impl AsyncWrite + Unpin)) -> Poll<io::Result<()>> {
        let Some(buffer) = &self.buffer else { return Poll::Ready(Ok(())) };
        loop {
            while self.start < self.cleared {
                match ready!(Pin::new(&mut *target).poll_write(cx, &buffer[self.start..self.cleared]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.start += written,
                }
                self.unflushed = true;
            }
            if self.cleared == self.end {
                break;
            }
            let rest = &buffer[self.cleared..self.end];
            match self.frames.as_mut().map_or(Next::Pass(rest.len()), |frames| frames.next(rest)) {
                Next::Pass(length) => {
                    self.cleared += length;
                    self.passed += length as u64;
                }
                Next::Drop(length) => {
                    self.cleared += length;
                    self.start = self.cleared;
                }
                // Nothing more will come.
                Next::More if self.stage != Stage::Open => {
                    self.cleared = self.end;
                    self.passed += rest.len() as u64;
                }
                Next::More => return Poll::Ready(Ok(())),
            }
        }
        (self.start, self.cleared, self.end) = (0, 0, 0);
        if let Some(buffer) = self.buffer.take() {
            give(buffer);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, behind what may be left in the buffer.
    fn fill(&mut self, cx: &mut Context<'_>, source: &mut (impl AsyncRead + Unpin)) -> Poll<io::Result<()>> {
        let mut buffer = match self.buffer.take() {
            Some(mut buffer) => {
                buffer.copy_within(self.cleared..self.end, 0);
                self.end -= self.cleared;
                buffer
            }
            None => take(),
        };
        (self.start, self.cleared) = (0, 0);
        let mut free = ReadBuf::new(&mut buffer[self.end..]);
        let read = Pin::new(source).poll_read(cx, &mut free);
        let length = free.filled().len();
        if read.is_ready() && length == 0 {
            self.stage = Stage::Ending;
        }
        self.end += length;
        self.received += length as u64;
        if self.end > 0 {
            self.buffer = Some(buffer);
        } else {
            give(buffer);
        }
        read
    }
}
