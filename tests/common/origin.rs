//! An HTTP server in a guest's place that takes nothing but well-formed requests, remembers each of
//! them, and answers as the test says. What the proxy sends must always be well-formed, so whatever
//! is not is remembered too and is a failure of the proxy.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Host;
use super::backend::{Backend, Conn, StandIn, TOOLBOX};

/// A request that came completely.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which connection it came by, from 0.
    pub connection: usize,
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    /// Without the framing.
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Request {
    /// All values of a header.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// What the server has seen.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Complete requests.
    pub requests: Vec<Request>,
    /// Requests that were begun and not ended; what there was of them.
    pub broken_off: Vec<String>,
    /// What is no HTTP request at all, and why not.
    pub malformed: Vec<String>,
}

/// The server.
pub struct Origin {
    pub backend: Backend,
    record: Arc<Mutex<Record>>,
}

/// How a connection goes on behind an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Keep,
    End,
}

impl Origin {
    /// Answers 200 with the request's target as body.
    #[track_caller]
    pub fn plain(host: &Host, id: &str) -> Self {
        Self::start(host, id, |request, conn| {
            let _ = conn.write_all(&ok(request.target.as_bytes()));
            Then::Keep
        })
    }

    #[track_caller]
    pub fn start(host: &Host, id: &str, answer: impl Fn(&Request, &mut Conn) -> Then + Send + Sync + 'static) -> Self {
        Self::at(&StandIn::of(host, id), answer)
    }

    pub fn at(stand_in: &StandIn, answer: impl Fn(&Request, &mut Conn) -> Then + Send + Sync + 'static) -> Self {
        let record = Arc::new(Mutex::new(Record::default()));
        let shared = record.clone();
        let backend = stand_in.serve(TOOLBOX, move |mut conn| {
            let mut reader = Reader::default();
            loop {
                match reader.request(&mut conn, true) {
                    Ok(Some(request)) => {
                        shared.lock().expect("no panic").requests.push(request.clone());
                        if answer(&request, &mut conn) == Then::End {
                            return;
                        }
                    }
                    Ok(None) => return,
                    Err(Fault::BrokenOff(text)) => return shared.lock().expect("no panic").broken_off.push(text),
                    Err(Fault::Malformed(text)) => return shared.lock().expect("no panic").malformed.push(text),
                }
            }
        });
        Self { backend, record }
    }

    pub fn record(&self) -> Record {
        self.record.lock().expect("no panic").clone()
    }

    /// The record so far; a new one is begun.
    pub fn take(&self) -> Record {
        std::mem::take(&mut self.record.lock().expect("no panic"))
    }
}

/// A plain answer.
pub fn ok(body: &[u8]) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    answer
}

/// Why there is no request.
#[derive(Debug)]
pub enum Fault {
    BrokenOff(String),
    Malformed(String),
}

/// Reads requests strictly.
#[derive(Default)]
pub struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    /// The next request with its body; `None` at an end between two of them. `go_on` answers an
    /// expectation with 100.
    pub fn request(&mut self, conn: &mut Conn, go_on: bool) -> Result<Option<Request>, Fault> {
        let Some(mut request) = self.head(conn)? else { return Ok(None) };
        if go_on && !request.all("expect").is_empty() {
            let _ = conn.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.body(conn, &mut request)?;
        Ok(Some(request))
    }

    /// The next head.
    pub fn head(&mut self, conn: &mut Conn) -> Result<Option<Request>, Fault> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return parse(conn.number(), &head[..end]).map(Some).map_err(Fault::Malformed);
            }
            if !self.more(conn) {
                let rest = std::mem::take(&mut self.buffer);
                return if rest.is_empty() { Ok(None) } else { Err(broken_off(&rest)) };
            }
        }
    }

    /// The body of a request whose head was read.
    pub fn body(&mut self, conn: &mut Conn, request: &mut Request) -> Result<(), Fault> {
        self.watch(conn, request, |_| {})
    }

    /// The same; `look` sees what there is of it whenever more has come.
    pub fn watch(&mut self, conn: &mut Conn, request: &mut Request, mut look: impl FnMut(&[u8])) -> Result<(), Fault> {
        let length = request.all("content-length").first().map(|length| length.parse::<usize>());
        if let Some(length) = length {
            let length = length.map_err(|error| Fault::Malformed(format!("length: {error}")))?;
            while request.body.len() < length {
                let left = (length - request.body.len()).min(self.buffer.len());
                if left == 0 && !self.more(conn) {
                    return Err(broken_off(format!("{request:?}").as_bytes()));
                }
                request.body.extend(self.buffer.drain(..left));
                look(&request.body);
            }
        }
        while !request.all("transfer-encoding").is_empty() {
            let line = self.line(conn, request)?;
            let size = line.split(';').next().unwrap_or_default();
            let hex = (1..=8).contains(&size.len()) && size.bytes().all(|byte| byte.is_ascii_hexdigit());
            let size = usize::from_str_radix(size, 16).ok().filter(|_| hex);
            let size = size.ok_or_else(|| Fault::Malformed(format!("chunk size {line:?}")))?;
            if size == 0 {
                return self.trailers(conn, request);
            }
            let mut chunk = self.exactly(conn, size + 2, request)?;
            if !chunk.ends_with(b"\r\n") {
                return Err(Fault::Malformed(format!("chunk without its end: {request:?}")));
            }
            chunk.truncate(size);
            request.body.extend(chunk);
            look(&request.body);
        }
        Ok(())
    }

    /// Reads a body that must be `count` times `piece`, without keeping it.
    pub fn takes(&mut self, conn: &mut Conn, request: &Request, piece: &[u8], count: usize) -> Result<(), String> {
        self.pieces(conn, request, piece, count, Duration::ZERO)
    }

    /// The same by somebody who rests now and then.
    pub fn takes_slowly(
        &mut self,
        conn: &mut Conn,
        request: &Request,
        piece: &[u8],
        count: usize,
    ) -> Result<(), String> {
        self.pieces(conn, request, piece, count, Duration::from_millis(50))
    }

    fn pieces(
        &mut self,
        conn: &mut Conn,
        request: &Request,
        piece: &[u8],
        count: usize,
        rest: Duration,
    ) -> Result<(), String> {
        let told = |fault: Fault| format!("{fault:?}");
        let chunked = !request.all("transfer-encoding").is_empty();
        let (mut at, total) = (0, piece.len() * count);
        while at < total {
            let size = match chunked {
                true => usize::from_str_radix(&self.line(conn, request).map_err(told)?, 16)
                    .map_err(|error| error.to_string())?,
                false => piece.len(),
            };
            if size == 0 {
                return Err(format!("ends after {at}"));
            }
            if !rest.is_zero() && at % (32 * piece.len()) == 0 {
                std::thread::sleep(rest);
            }
            let bytes = self.exactly(conn, size, request).map_err(told)?;
            // Chunks need not be cut as they were sent.
            let mut left = &bytes[..];
            while !left.is_empty() {
                let from = at % piece.len();
                let length = left.len().min(piece.len() - from);
                if left[..length] != piece[from..from + length] {
                    return Err(format!("differs at {at}"));
                }
                (left, at) = (&left[length..], at + length);
            }
            if chunked {
                self.line(conn, request).map_err(told)?;
            }
        }
        if chunked
            && (self.line(conn, request).map_err(told)? != "0" || !self.line(conn, request).map_err(told)?.is_empty())
        {
            return Err("no last chunk".to_owned());
        }
        Ok(())
    }

    /// What was read ahead of an upgrade, and more until there are this many bytes.
    pub fn rest(&mut self, conn: &mut Conn, length: usize) -> Vec<u8> {
        while self.buffer.len() < length && self.more(conn) {}
        std::mem::take(&mut self.buffer)
    }

    fn trailers(&mut self, conn: &mut Conn, request: &mut Request) -> Result<(), Fault> {
        loop {
            let line = self.line(conn, request)?;
            if line.is_empty() {
                return Ok(());
            }
            let pair = field(&line).map_err(Fault::Malformed)?;
            request.trailers.push(pair);
        }
    }

    fn line(&mut self, conn: &mut Conn, request: &Request) -> Result<String, Fault> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.more(conn) {
                return Err(broken_off(format!("{request:?}").as_bytes()));
            }
        }
    }

    fn exactly(&mut self, conn: &mut Conn, length: usize, request: &Request) -> Result<Vec<u8>, Fault> {
        while self.buffer.len() < length {
            if !self.more(conn) {
                return Err(broken_off(format!("{request:?}").as_bytes()));
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    fn more(&mut self, conn: &mut Conn) -> bool {
        let mut piece = vec![0; 64 << 10];
        let length = conn.read(&mut piece).unwrap_or(0);
        self.buffer.extend_from_slice(&piece[..length]);
        length > 0
    }
}

fn broken_off(what: &[u8]) -> Fault {
    Fault::BrokenOff(String::from_utf8_lossy(what).into_owned())
}

fn parse(connection: usize, head: &[u8]) -> Result<Request, String> {
    let text = String::from_utf8_lossy(head).into_owned();
    let fault = |why: &str| Err(format!("{why}: {text:?}"));
    let mut lines = text.split("\r\n");
    let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = first[..] else { return fault("request line") };
    let headers = lines.map(field).collect::<Result<Vec<_>, _>>()?;
    let request = Request {
        connection,
        method: method.to_owned(),
        target: target.to_owned(),
        headers,
        body: Vec::new(),
        trailers: Vec::new(),
    };
    let (lengths, codings) = (request.all("content-length"), request.all("transfer-encoding"));
    if !method.bytes().all(is_token)
        || method.is_empty()
        || !target.bytes().all(|byte| byte.is_ascii_graphic() || byte >= 0x80)
    {
        return fault("request line");
    }
    if !target.starts_with('/') {
        return fault("target");
    }
    if request.all("host").len() != 1 {
        return fault("Host");
    }
    if lengths.len() + codings.len() > 1 {
        return fault("framing is told twice");
    }
    if lengths.iter().any(|length| length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit())) {
        return fault("length");
    }
    if codings.iter().any(|coding| *coding != "chunked") {
        return fault("coding");
    }
    Ok(request)
}

fn field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or_else(|| format!("no colon in {line:?}"))?;
    let plain = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    match !name.is_empty() && name.bytes().all(is_token) && value.bytes().all(plain) {
        true => Ok((name.to_owned(), value.trim().to_owned())),
        false => Err(format!("field {line:?}")),
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
