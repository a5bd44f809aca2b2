//! The hypervisor's HTTP API over its unix socket: a fresh connection per request, a deadline per
//! call, one request in flight (cloud-hypervisor.md 2).

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Empty, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::Error;
use io_adapter::{Io, Sent};

mod io_adapter;
mod words;

/// Largest request body that v53.0 and all before it read, in bytes (cloud-hypervisor.md 2.1).
pub const MAX_BODY: usize = 51_200;
/// Largest answer that is read, in bytes; `vm.info` of a sandbox has some tens of KiB.
const MAX_ANSWER: usize = 4 << 20;
/// How long a refusal for "too many open connections" is tried again.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// Pause between attempts while the socket's backlog or connection table is full.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// How long each call may take.
#[derive(Debug, Clone)]
pub struct Deadlines {
    /// `vmm.ping`.
    pub ping: Duration,
    /// `vm.info`.
    pub info: Duration,
    /// `vm.create`.
    pub create: Duration,
    /// `vm.boot`: opens disks, reads the kernel, and maps memory.
    pub boot: Duration,
    /// `vm.delete`: shuts a running VM down, which flushes its disks.
    pub delete: Duration,
    /// `vm.power-button`.
    pub power_button: Duration,
    /// `vm.pause`: waits for disk work that is under way.
    pub pause: Duration,
    /// `vm.resume`.
    pub resume: Duration,
    /// `vm.snapshot`: writes up to all of the guest's RAM.
    pub snapshot: Duration,
    /// `vm.restore`: reads up to all of the guest's RAM.
    pub restore: Duration,
    /// `vm.resize`.
    pub resize: Duration,
    /// `vmm.shutdown`, where no grace is given.
    pub shutdown: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            ping: Duration::from_secs(5),
            info: Duration::from_secs(10),
            create: Duration::from_secs(10),
            boot: Duration::from_secs(60),
            delete: Duration::from_secs(60),
            power_button: Duration::from_secs(10),
            // A pause waits for disk work under way, which may take half a minute (cloud-hypervisor.md 5.1).
            pause: Duration::from_secs(60),
            resume: Duration::from_secs(10),
            snapshot: Duration::from_secs(120),
            restore: Duration::from_secs(120),
            resize: Duration::from_secs(10),
            shutdown: Duration::from_secs(60),
        }
    }
}

/// A call of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Version of the VMM.
    Ping,
    /// Configuration and state of the VM.
    Info,
    /// Stores a configuration.
    Create,
    /// Makes and starts the VM.
    Boot,
    /// Ends the VM and forgets its configuration.
    Delete,
    /// Presses the guest's ACPI power button.
    PowerButton,
    /// Stops the guest's processors and its disk work.
    Pause,
    /// Lets them go on.
    Resume,
    /// Writes a paused VM into a directory.
    Snapshot,
    /// Makes a paused VM from a directory.
    Restore,
    /// Changes the number of processors.
    Resize,
    /// Ends the VM and the process.
    Shutdown,
}

impl Call {
    /// Name as in the path and in error texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ping => "vmm.ping",
            Self::Info => "vm.info",
            Self::Create => "vm.create",
            Self::Boot => "vm.boot",
            Self::Delete => "vm.delete",
            Self::PowerButton => "vm.power-button",
            Self::Pause => "vm.pause",
            Self::Resume => "vm.resume",
            Self::Snapshot => "vm.snapshot",
            Self::Restore => "vm.restore",
            Self::Resize => "vm.resize",
            Self::Shutdown => "vmm.shutdown",
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Ping | Self::Info => Method::GET,
            _ => Method::PUT,
        }
    }

    fn limit(self, deadlines: &Deadlines) -> Duration {
        match self {
            Self::Ping => deadlines.ping,
            Self::Info => deadlines.info,
            Self::Create => deadlines.create,
            Self::Boot => deadlines.boot,
            Self::Delete => deadlines.delete,
            Self::PowerButton => deadlines.power_button,
            Self::Pause => deadlines.pause,
            Self::Resume => deadlines.resume,
            Self::Snapshot => deadlines.snapshot,
            Self::Restore => deadlines.restore,
            Self::Resize => deadlines.resize,
            Self::Shutdown => deadlines.shutdown,
        }
    }
}

/// Client of one VMM's API socket.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    deadlines: Deadlines,
    /// Held during a request: the VMM works serially, so a second one would only wait there, with
    /// its deadline running (cloud-hypervisor.md 1).
    turn: Mutex<()>,
}

impl Api {
    /// A client; connects at the first call.
    pub fn new(socket: PathBuf, deadlines: Deadlines) -> Self {
        Self { socket, deadlines, turn: Mutex::new(()) }
    }

    /// The API socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A call without a body whose answer has none that matters.
    pub async fn put(&self, call: Call) -> Result<(), Error> {
        self.call(call, None).await.map(drop)
    }

    /// A call with a JSON body.
    pub async fn put_json(&self, call: Call, body: &impl Serialize) -> Result<(), Error> {
        let name = call.name();
        let body = serde_json::to_vec(body).map_err(|source| Error::Encode { call: name, source })?;
        self.call(call, Some(body.into())).await.map(drop)
    }

    /// A call that answers with JSON.
    pub async fn get<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        let answer = self.call(call, None).await?;
        serde_json::from_slice(&answer).map_err(|source| Error::Reply {
            call: call.name(),
            socket: self.socket.clone(),
            body: words::excerpt(&answer),
            source,
        })
    }

    /// Sends one request once it is its turn; its deadline starts then. Answers with the body of a
    /// 2xx reply.
    async fn call(&self, call: Call, body: Option<Bytes>) -> Result<Bytes, Error> {
        let len = body.as_ref().map_or(0, Bytes::len);
        if len > MAX_BODY {
            return Err(Error::BodyTooLarge { call: call.name(), len, max: MAX_BODY });
        }
        let _turn = self.turn.lock().await;
        let limit = call.limit(&self.deadlines);
        let sent = Sent::default();
        match timeout(limit, self.until_taken(call, body, &sent)).await {
            Ok(answer) => answer,
            Err(_) => {
                Err(Error::Deadline { call: call.name(), socket: self.socket.clone(), limit, sent: sent.happened() })
            }
        }
    }

    /// The VMM takes ten connections and turns the next one away unread (cloud-hypervisor.md 2.1);
    /// such a refusal passes when some other client goes away.
    async fn until_taken(&self, call: Call, body: Option<Bytes>, sent: &Sent) -> Result<Bytes, Error> {
        let give_up = Instant::now() + FULL_RETRY;
        loop {
            let (status, answer) = self.exchange(call, body.clone(), sent).await?;
            if status.is_success() {
                return Ok(answer);
            }
            if status != StatusCode::SERVICE_UNAVAILABLE || Instant::now() >= give_up {
                return Err(Error::Api {
                    call: call.name(),
                    socket: self.socket.clone(),
                    status: status.as_u16(),
                    words: words::of(&answer),
                });
            }
            sleep(FULL_PAUSE).await;
        }
    }

    async fn exchange(&self, call: Call, body: Option<Bytes>, sent: &Sent) -> Result<(StatusCode, Bytes), Error> {
        let broke = |source| Error::Exchange { call: call.name(), socket: self.socket.clone(), source };
        let stream = connect(&self.socket).await.map_err(|source| Error::Connect {
            call: call.name(),
            socket: self.socket.clone(),
            source,
        })?;
        let io = Io::new(stream, sent.clone());
        let (mut sender, connection) = http1::handshake(io).await.map_err(|error| broke(error.into()))?;
        // No body at all, not an empty one, where the call takes none: anything else is a 400.
        let body = body.map_or_else(|| Either::Left(Empty::new()), |bytes| Either::Right(Full::new(bytes)));
        let request = Request::builder()
            .method(call.method())
            .uri(format!("/api/v1/{}", call.name()))
            .header("host", "localhost")
            .body(body)
            .map_err(|error| broke(error.into()))?;
        let answer = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            // Never read to the end of the stream: the VMM keeps the connection open.
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes();
            Ok((status, body))
        };
        beside(connection, answer).await.map_err(broke)
    }
}

/// Connects; waits while the socket's backlog is full.
pub async fn connect(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(FULL_PAUSE).await,
            other => return other,
        }
    }
}

/// Runs the connection only as long as the answer is wanted, in the same task, so that a dropped call
/// leaves no task behind and closes its socket.
async fn beside<T>(connection: impl Future, answer: impl Future<Output = T>) -> T {
    let (mut connection, mut answer) = (pin!(connection), pin!(answer));
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            done = &mut answer => return done,
            // How it ended reaches `answer` too, which then resolves.
            _ = &mut connection, if open => open = false,
        }
    }
}

#[cfg(test)]
mod tests;
