//! One connection to the guest's servers, independent of the sockets below.

use std::time::{Duration, Instant};

use serde_json::json;

use super::http::{BodyReader, Framing, Head, response};
use super::log::{self, Log, Said};
use super::machine::{Machine, Network};
use super::shell::{Job, Progress};
use super::toolbox::{Reply, answer};
use super::ws::{self, Echo};

/// Output is not produced beyond this many waiting bytes.
const OUTPUT_LIMIT: usize = 128 << 10;
/// Bytes of a request body that are kept; the rest is only counted.
const BODY_LIMIT: usize = 72 << 20;
/// Time between two server-sent events.
const EVENT_INTERVAL: Duration = Duration::from_millis(50);

enum State {
    Head,
    Body { head: Head, reader: BodyReader, body: Vec<u8>, length: u64 },
    Job { head: Head, job: Job, next: Instant },
    Stream { head: Head, left: u64 },
    Events { number: u64, next: Instant },
    WebSocket,
    Log { log: Log, next: Instant },
    Closing,
}

/// Protocol state of one connection.
pub struct Conn {
    port: u16,
    input: Vec<u8>,
    output: Vec<u8>,
    state: State,
}

impl Conn {
    /// A new connection to a port.
    pub fn new(port: u16) -> Self {
        Self { port, input: Vec::new(), output: Vec::new(), state: State::Head }
    }

    /// Takes bytes of the client.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Whether more input should be taken from the socket now.
    pub fn wants_input(&self) -> bool {
        let whole_frames = matches!(self.state, State::WebSocket | State::Log { .. });
        (whole_frames || self.input.len() < OUTPUT_LIMIT) && self.output.len() < OUTPUT_LIMIT
    }

    /// Bytes to send.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// Drops bytes that were sent.
    pub fn sent(&mut self, count: usize) {
        self.output.drain(..count);
    }

    /// Whether the server ends the connection once the output is sent.
    pub fn is_closing(&self) -> bool {
        matches!(self.state, State::Closing)
    }

    /// When [`Conn::work`] has something to do again without input.
    pub fn next_time(&self) -> Option<Instant> {
        match &self.state {
            State::Job { next, .. } | State::Events { next, .. } | State::Log { next, .. } => Some(*next),
            _ => None,
        }
    }

    /// Goes on as far as input, output and time allow.
    pub fn work(&mut self, now: Instant, machine: &mut Machine, net: &mut dyn Network) {
        while self.output.len() < OUTPUT_LIMIT && self.step(now, machine, net) {}
    }

    /// One step; false when nothing more can be done now.
    fn step(&mut self, now: Instant, machine: &mut Machine, net: &mut dyn Network) -> bool {
        match std::mem::replace(&mut self.state, State::Closing) {
            State::Head => self.read_head(),
            State::Body { head, mut reader, mut body, mut length } => {
                let keep = |bytes: &[u8]| {
                    length += bytes.len() as u64;
                    if body.len() + bytes.len() <= BODY_LIMIT && head.path() != "/sink" {
                        body.extend_from_slice(bytes);
                    }
                };
                match reader.read(&mut self.input, keep) {
                    Ok(true) => self.reply(head, &body, length, now, machine),
                    Ok(false) => {
                        self.state = State::Body { head, reader, body, length };
                        return false;
                    }
                    Err(()) => {}
                }
                true
            }
            State::Job { head, mut job, .. } => match job.step(now, machine, net) {
                Progress::Waiting(next) => {
                    self.state = State::Job { head, job, next };
                    false
                }
                Progress::Done { code, output } => {
                    let result = json!({"exitCode": code, "result": output});
                    self.full(&head, &Reply::json(200, &result))
                }
                Progress::TimedOut => {
                    let late = Reply::error(408, "command execution timeout", &head);
                    self.full(&head, &late)
                }
            },
            State::Stream { head, left } => {
                let count = usize::try_from(left).unwrap_or(OUTPUT_LIMIT).min(16 << 10);
                self.output.extend((0..count).map(|index| b'a' + (index % 26) as u8));
                match left - count as u64 {
                    0 => self.after(&head),
                    left => self.state = State::Stream { head, left },
                }
                true
            }
            State::Events { number, next } => self.tick(number, next, now),
            State::WebSocket => self.echo_frame(),
            State::Log { log, next } => self.follow(log, next, now),
            State::Closing => false,
        }
    }

    /// Sends the next event when its time has come; nothing more can be done before.
    fn tick(&mut self, number: u64, next: Instant, now: Instant) -> bool {
        if now < next {
            self.state = State::Events { number, next };
            return false;
        }
        let event = format!("event: tick\ndata: {number}\n\n");
        self.output.extend(format!("{:x}\r\n{event}\r\n", event.len()).bytes());
        self.state = State::Events { number: number + 1, next: now + EVENT_INTERVAL };
        false
    }

    fn read_head(&mut self) -> bool {
        match Head::take(&mut self.input) {
            Ok(Some(head)) => {
                let framing = head.framing();
                if framing != Framing::Length(0) && head.header("expect").is_some() {
                    self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                self.state = State::Body { head, reader: BodyReader::new(framing), body: Vec::new(), length: 0 };
                true
            }
            Ok(None) => {
                self.state = State::Head;
                false
            }
            Err(()) => false,
        }
    }

    fn reply(&mut self, head: Head, body: &[u8], length: u64, now: Instant, machine: &mut Machine) {
        let reply = answer(self.port, &head, body, length, machine);
        match reply {
            Reply::Full { .. } => drop(self.full(&head, &reply)),
            Reply::Run(job) => self.state = State::Job { head, job, next: now },
            Reply::WebSocket => {
                self.output.extend(ws::accept(&head));
                self.state = State::WebSocket;
            }
            Reply::Log(log) => {
                self.output.extend(ws::accept(&head));
                self.state = State::Log { log, next: now };
            }
            Reply::Stream(left) => {
                let text = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\
                     Content-Length: {left}\r\n\r\n"
                );
                self.output.extend(text.bytes());
                self.state = State::Stream { head, left };
            }
            Reply::Events => {
                let text = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                    Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
                self.output.extend(text.bytes());
                self.state = State::Events { number: 0, next: now };
            }
        }
    }

    /// Queues a whole answer; always true, so that the next request is looked at.
    fn full(&mut self, head: &Head, reply: &Reply) -> bool {
        if let Reply::Full { status, media_type, body } = reply {
            self.output.extend(response(*status, media_type, body, head));
        }
        self.after(head);
        true
    }

    fn after(&mut self, head: &Head) {
        self.state = match head.keep_alive {
            true => State::Head,
            false => State::Closing,
        };
    }

    /// Sends a log's next message when its time has come. Of the client only its close frame counts.
    fn follow(&mut self, mut log: Log, next: Instant, now: Instant) -> bool {
        match ws::echo(&mut self.input) {
            Echo::Close(frame) => {
                self.output.extend(frame);
                return true;
            }
            Echo::Send(_) => {
                self.state = State::Log { log, next };
                return true;
            }
            Echo::Wait if now < next => {
                self.state = State::Log { log, next };
                return false;
            }
            Echo::Wait => {}
        }
        match log.next() {
            Said::More(frame) => {
                self.output.extend(frame);
                self.state = State::Log { log, next: now + log::INTERVAL };
            }
            Said::Last(bytes) => self.output.extend(bytes),
        }
        false
    }

    fn echo_frame(&mut self) -> bool {
        match ws::echo(&mut self.input) {
            Echo::Close(frame) => {
                self.output.extend(frame);
                true
            }
            Echo::Send(frame) => {
                self.output.extend(frame);
                self.state = State::WebSocket;
                true
            }
            Echo::Wait => {
                self.state = State::WebSocket;
                false
            }
        }
    }
}
