//! One accepted connection: reads requests with descriptors, writes answers one by one.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::parser::{LINE_LIMIT, Parser, Request, Step};
use super::response::Response;

/// Most descriptors one message may carry.
const FD_LIMIT: usize = 253;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Reading,
    Writing,
    Closed,
}

/// State of one client.
pub struct Connection {
    stream: UnixStream,
    parser: Parser,
    phase: Phase,
    answers: VecDeque<Response>,
    unsent: Vec<u8>,
}

impl Connection {
    /// Takes over an accepted stream.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            parser: Parser::default(),
            phase: Phase::Reading,
            answers: VecDeque::new(),
            unsent: Vec::new(),
        })
    }

    /// The descriptor to poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// What to poll for.
    pub fn interest(&self) -> i16 {
        match self.phase {
            Phase::Reading => libc::POLLIN | libc::POLLRDHUP,
            Phase::Writing => libc::POLLOUT | libc::POLLRDHUP,
            Phase::Closed => 0,
        }
    }

    /// Whether the connection is over and may be dropped.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Handles what poll reported; returns complete requests.
    pub fn on_ready(&mut self, ready: i16) -> Vec<Request> {
        if ready & (libc::POLLERR | libc::POLLHUP | libc::POLLRDHUP) != 0 {
            self.close();
            return Vec::new();
        }
        if ready & libc::POLLIN != 0 {
            return self.read();
        }
        if ready & libc::POLLOUT != 0 {
            self.write();
        }
        Vec::new()
    }

    /// Queues an answer; one for a client that left meanwhile is dropped.
    pub fn answer(&mut self, response: Response) {
        if self.phase != Phase::Closed {
            self.answers.push_back(response);
            self.phase = Phase::Writing;
        }
    }

    /// Writes all that is queued before the process ends.
    pub fn flush(&mut self) {
        let _ = self.stream.set_nonblocking(false);
        while self.phase == Phase::Writing {
            self.write();
        }
    }

    fn close(&mut self) {
        self.answers.clear();
        self.unsent.clear();
        self.phase = Phase::Closed;
    }

    fn read(&mut self) -> Vec<Request> {
        let mut buffer = [0u8; LINE_LIMIT];
        let room = self.parser.room();
        let (count, files) = match receive(&self.stream, &mut buffer[..room]) {
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Vec::new(),
            Err(error) => {
                self.answer(Response::from_library(500, error.to_string()));
                return Vec::new();
            }
        };
        self.parser.add_files(files);
        if count == 0 {
            self.close();
            return Vec::new();
        }
        let mut requests = Vec::new();
        match self.parser.feed(&buffer[..count]) {
            Ok(steps) => {
                for step in steps {
                    match step {
                        Step::Ready(request) => requests.push(request),
                        Step::Continue => self.answer(Response::from_library(100, "")),
                    }
                }
            }
            Err(text) => self.answer(Response::from_library(
                400,
                format!("{{ \"error\": \"{text}\nAll previous unanswered requests will be dropped.\" }}"),
            )),
        }
        requests
    }

    fn write(&mut self) {
        if self.unsent.is_empty() {
            match self.answers.pop_front() {
                Some(response) => self.unsent = response.to_bytes(),
                None => {
                    self.phase = Phase::Reading;
                    return;
                }
            }
        }
        match self.stream.write(&self.unsent) {
            Ok(0) => self.close(),
            Ok(count) => {
                self.unsent.drain(..count);
                if self.unsent.is_empty() && self.answers.is_empty() {
                    self.phase = Phase::Reading;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.close(),
        }
    }
}

/// Reads bytes and the descriptors that ride on them.
fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([std::os::fd::RawFd; FD_LIMIT]);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel just made these descriptors for this process.
            files.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, files))
}
