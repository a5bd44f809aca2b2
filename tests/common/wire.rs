//! A client that sends whatever it is told to, and reads answers strictly.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::{Host, TOKEN};

/// Patience for an answer, and for the end of a connection.
const PATIENCE: Duration = Duration::from_secs(6);

/// The header that lets a request in.
pub fn key() -> String {
    format!("X-Daytona-Authorization: Bearer {TOKEN}\r\n")
}

/// One connection to the runner.
pub struct Wire {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// Statuses of the informational answers before it.
    pub interim: Vec<(u16, Vec<(String, String)>)>,
    pub version: String,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Reply {
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why there is no whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The connection ended before an answer began.
    Closed,
    /// The same by a reset.
    Reset,
    /// Nothing came in time.
    Silent,
    /// The answer broke off in the head or the body; what there was, the body's length.
    Cut(String, usize),
    /// It is no answer.
    Malformed(String),
}

impl Wire {
    #[track_caller]
    pub fn new(host: &Host) -> Self {
        let stream = host.http().connect().expect("the runner takes connections");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self::of(stream)
    }

    /// The same on a connection that is there.
    pub fn of(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends; false when the server does not take it all any more.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// A request with the key; `headers` is whole lines.
    pub fn request(&mut self, method: &str, path: &str, headers: &str) -> bool {
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: runner\r\n{}{headers}\r\n", key()))
    }

    pub fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).expect("a connection");
    }

    /// The answer to a request of any method but HEAD.
    pub fn answer(&mut self) -> Result<Reply, End> {
        self.answer_to("GET")
    }

    pub fn answer_to(&mut self, method: &str) -> Result<Reply, End> {
        let mut reply = Reply::default();
        loop {
            self.head(&mut reply)?;
            if reply.status >= 200 || reply.status == 101 {
                break;
            }
            let headers = std::mem::take(&mut reply.headers);
            reply.interim.push((reply.status, headers));
        }
        if method != "HEAD" && !matches!(reply.status, 101 | 204 | 304) {
            self.body(&mut reply)?;
        }
        Ok(reply)
    }

    /// Reads one head, an informational one too.
    pub fn head(&mut self, reply: &mut Reply) -> Result<(), End> {
        let end = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            if let Err(error) = self.more() {
                let text = String::from_utf8_lossy(&self.buffer).into_owned();
                return Err(if text.is_empty() { error } else { End::Cut(text, 0) });
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let text = String::from_utf8_lossy(&head[..end]).into_owned();
        let malformed = || End::Malformed(text.clone());
        let mut lines = text.split("\r\n");
        let mut first = lines.next().unwrap_or_default().splitn(3, ' ');
        reply.version = first.next().unwrap_or_default().to_owned();
        let status = first.next().filter(|status| status.len() == 3).and_then(|status| status.parse().ok());
        reply.status = status.ok_or_else(malformed)?;
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(malformed)?;
            if line.contains(['\r', '\n', '\0']) || name.is_empty() || name.contains([' ', '\t']) {
                return Err(malformed());
            }
            reply.headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(())
    }

    /// Reads the body of an answer whose head was read.
    pub fn body(&mut self, reply: &mut Reply) -> Result<(), End> {
        let chunked = !reply.all("transfer-encoding").is_empty();
        let lengths: Vec<String> = reply.all("content-length").into_iter().map(str::to_owned).collect();
        match (chunked, &lengths[..]) {
            (false, [length]) => {
                let length = length.parse().map_err(|_| End::Malformed(length.clone()))?;
                reply.body = self.exactly(length, reply)?;
            }
            (true, []) => self.chunks(reply)?,
            // By the end of the connection.
            (false, []) => loop {
                match self.more() {
                    Ok(()) => {}
                    Err(End::Closed) => break reply.body = std::mem::take(&mut self.buffer),
                    Err(end) => return Err(End::Cut(format!("{reply:?}: {end:?}"), self.buffer.len())),
                }
            },
            _ => return Err(End::Malformed(format!("framing is told twice: {reply:?}"))),
        }
        Ok(())
    }

    fn chunks(&mut self, reply: &mut Reply) -> Result<(), End> {
        while let Some(chunk) = self.chunk(reply)? {
            reply.body.extend(chunk);
        }
        loop {
            let line = self.line(reply)?;
            match line.split_once(':') {
                Some((name, value)) => reply.trailers.push((name.to_owned(), value.trim().to_owned())),
                None if line.is_empty() => return Ok(()),
                None => return Err(End::Malformed(line)),
            }
        }
    }

    /// One chunk of an answer; `None` at the last, whose trailers follow.
    pub fn chunk(&mut self, reply: &Reply) -> Result<Option<Vec<u8>>, End> {
        let line = self.line(reply)?;
        let size = usize::from_str_radix(&line, 16).map_err(|_| End::Malformed(line))?;
        if size == 0 {
            return Ok(None);
        }
        let mut chunk = self.exactly(size + 2, reply)?;
        if !chunk.ends_with(b"\r\n") {
            return Err(End::Malformed("a chunk without its end".to_owned()));
        }
        chunk.truncate(size);
        Ok(Some(chunk))
    }

    fn line(&mut self, reply: &Reply) -> Result<String, End> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.more().map_err(|end| cut(reply, reply.body.len(), &end))?;
        }
    }

    /// This many bytes, of a body or behind an upgrade.
    pub fn exactly(&mut self, length: usize, reply: &Reply) -> Result<Vec<u8>, End> {
        while self.buffer.len() < length {
            self.more().map_err(|end| cut(reply, reply.body.len() + self.buffer.len(), &end))?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    fn more(&mut self) -> Result<(), End> {
        let mut piece = vec![0; 64 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(End::Closed),
            Ok(length) => {
                self.buffer.extend_from_slice(&piece[..length]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Err(End::Silent),
            Err(_) => Err(End::Reset),
        }
    }

    /// How the connection ends, with what still came before that: its bytes, escaped, and their number.
    pub fn ends_after_all(&mut self) -> End {
        loop {
            match self.more() {
                Ok(()) => {}
                Err(End::Closed | End::Reset) if !self.buffer.is_empty() => {
                    return End::Cut(self.buffer.escape_ascii().to_string(), self.buffer.len());
                }
                Err(end) => return end,
            }
        }
    }

    /// How the connection ends, when nothing but its end may come any more.
    pub fn ends(&mut self) -> End {
        match self.more() {
            Err(end) if self.buffer.is_empty() => end,
            _ => End::Malformed(String::from_utf8_lossy(&self.buffer).into_owned()),
        }
    }
}

fn cut(reply: &Reply, length: usize, end: &End) -> End {
    match end {
        End::Silent => End::Silent,
        _ => End::Cut(format!("{} {:?}", reply.status, reply.headers), length),
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|part| part == what)
}
