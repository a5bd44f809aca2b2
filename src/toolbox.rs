//! The daemon inside the guest (PROTOCOL.md 9), as far as starting a sandbox needs it: is it up, which
//! version is it, and here is its token. What users send to it goes through [`crate::http::proxy`].

mod renew;

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::error::{Certainty, ErrorCode, Failure};
use crate::ids::SandboxId;
use crate::net::{self, Namespace};

/// Port of the toolbox daemon in every guest.
pub const PORT: u16 = 2280;
/// One answer, once connected; the original allows as much for a whole try (PROTOCOL.md 9).
const TRY: Duration = Duration::from_secs(1);
/// One connection while the guest boots. A guest that is not there yet loses the first packet, and TCP
/// repeats it only after a second: it is faster to begin anew soon.
const FIRST_CONNECT: Duration = Duration::from_millis(5);
const LONGEST_CONNECT: Duration = Duration::from_millis(250);
/// A guest that does not listen yet drops or refuses: ask again soon at first, then at leisure.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// A version answer is a few dozen bytes.
const ANSWER_LIMIT: usize = 64 << 10;

/// Calls to the daemon inside a guest.
pub trait Toolbox {
    /// Waits until `GET /version` answers and returns the guest's version; gives up after `patience`
    /// with the last reason.
    fn wait_ready<'a>(
        &'a self,
        netns: &'a Namespace,
        patience: Duration,
    ) -> LocalBoxFuture<'a, Result<String, Failure>>;

    /// `POST /init` with the sandbox's token.
    fn init<'a>(&'a self, netns: &'a Namespace, token: &'a str) -> LocalBoxFuture<'a, Result<(), Failure>>;

    /// Gives a guest that woke up as a copy of another one an identity of its own, and waits until it has confirmed
    /// that: the hook `runner-ch-identity` in the guest, run through the daemon (docs/identity.md). An error says why it
    /// is not confirmed; a guest without the hook is one.
    fn renew<'a>(&'a self, netns: &'a Namespace, renewal: &'a Renewal) -> LocalBoxFuture<'a, Result<(), Failure>>;
}

/// What makes a copied guest another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The new sandbox: host name, and what the hook's confirmation repeats.
    pub sandbox: SandboxId,
    /// New machine id (machine-id(5)).
    pub machine_id: [u8; 16],
    /// For the kernel's random generator, from the host's.
    pub entropy: [u8; 64],
    /// The time, in nanoseconds since 1970.
    pub unix_nanos: u128,
}

/// The daemon, reached through a socket made in the sandbox's namespace.
#[derive(Debug, Clone, Copy, Default)]
pub struct GuestToolbox;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot connect to the guest's port {PORT}")]
    Connect(#[source] net::Error),
    #[error("cannot set up the connection to the guest")]
    Linger(#[source] std::io::Error),
    #[error("the guest's daemon did not answer {call} within {:.1} s", patience.as_secs_f64())]
    Slow { call: &'static str, patience: Duration },
    #[error("the guest's daemon broke off {call}")]
    Broken { call: &'static str, source: hyper::Error },
    #[error("the guest's daemon answered {call} with status {status}")]
    Status { call: &'static str, status: StatusCode },
    #[error("the guest's daemon answered {call} with something that is not {expected}")]
    Answer { call: &'static str, expected: &'static str },
    #[error("cannot make the request for {call}")]
    Request { call: &'static str, source: hyper::http::Error },
}

/// A request to the daemon. Its name is method and path.
struct Call {
    name: &'static str,
    method: Method,
    path: &'static str,
    body: Bytes,
    /// How long the answer may take, once connected.
    patience: Duration,
}

const VERSION: &str = "GET /version";
const INIT: &str = "POST /init";
/// What an answer should have been.
const A_VERSION: &str = "a version";

async fn call(netns: &Namespace, call: Call, connect: Duration) -> Result<Bytes, Error> {
    let Call { name, method, path, body, patience } = call;
    let stream = netns.connect(net::guest(PORT), connect).await.map_err(Error::Connect)?;
    // Closed by a reset: a farewell that the guest does not live to answer would hold the namespace.
    stream.set_zero_linger().map_err(Error::Linger)?;
    let exchange = async {
        let broken = |source| Error::Broken { call: name, source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", format!("{}:{PORT}", net::GUEST))
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|source| Error::Request { call: name, source })?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            if !response.status().is_success() {
                return Err(Error::Status { call: name, status: response.status() });
            }
            let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
            let expected = "a short answer";
            body.map(|body| body.to_bytes()).map_err(|_| Error::Answer { call: name, expected })
        };
        // The connection has to be polled for the answer to arrive; it ends with this exchange.
        tokio::select! {
            answer = answer => answer,
            Err(source) = connection => Err(Error::Broken { call: name, source }),
        }
    };
    timeout(patience, exchange).await.unwrap_or(Err(Error::Slow { call: name, patience }))
}

async fn version(netns: &Namespace, connect: Duration) -> Result<String, Error> {
    let ask = Call { name: VERSION, method: Method::GET, path: "/version", body: Bytes::new(), patience: TRY };
    let body = call(netns, ask, connect).await?;
    let wrong = || Error::Answer { call: VERSION, expected: A_VERSION };
    let answer: serde_json::Value = serde_json::from_slice(&body).map_err(|_| wrong())?;
    match answer.get("version").and_then(|version| version.as_str()) {
        // The guest is not trusted: no control characters get into the API's database.
        Some(version) => Ok(version.chars().filter(|c| !c.is_control()).take(128).collect()),
        None => Err(wrong()),
    }
}

async fn wait(netns: &Namespace, patience: Duration) -> Result<String, Failure> {
    let deadline = Instant::now() + patience;
    let (mut pause, mut connect) = (FIRST_PAUSE, FIRST_CONNECT);
    let mut last = None;
    loop {
        let began = Instant::now();
        match timeout_at(deadline, version(netns, connect)).await {
            Ok(Ok(version)) => return Ok(version),
            // A connection that timed out has waited long enough.
            Ok(Err(error @ Error::Connect(_))) if began.elapsed() >= connect => {
                last = Some(crate::error::chain(&error));
                connect = (connect * 5 / 4).min(LONGEST_CONNECT);
                continue;
            }
            Ok(Err(error)) => last = Some(crate::error::chain(&error)),
            Err(_) => {}
        }
        if Instant::now() + pause >= deadline {
            let last = last.unwrap_or_else(|| "no try was finished".to_owned());
            return Err(Failure::new(
                ErrorCode::Timeout,
                format!(
                    "timeout while starting: the guest's toolbox did not answer {VERSION} on port {PORT} within {} s (DAEMON_START_TIMEOUT_SEC); last try: {last}",
                    patience.as_secs()
                ),
            ));
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        connect = (connect * 5 / 4).min(LONGEST_CONNECT);
    }
}

impl Toolbox for GuestToolbox {
    fn wait_ready<'a>(
        &'a self,
        netns: &'a Namespace,
        patience: Duration,
    ) -> LocalBoxFuture<'a, Result<String, Failure>> {
        wait(netns, patience).boxed_local()
    }

    fn renew<'a>(&'a self, netns: &'a Namespace, renewal: &'a Renewal) -> LocalBoxFuture<'a, Result<(), Failure>> {
        async move { renew::renew(netns, renewal, renew::PATIENCE).await.map_err(Failure::from) }.boxed_local()
    }

    fn init<'a>(&'a self, netns: &'a Namespace, token: &'a str) -> LocalBoxFuture<'a, Result<(), Failure>> {
        async move {
            let body = serde_json::json!({ "token": token }).to_string();
            let body = Bytes::from(body);
            let order = Call { name: INIT, method: Method::POST, path: "/init", body, patience: TRY };
            call(netns, order, TRY)
                .await
                .map(drop)
                .map_err(|error| Failure::from_error(ErrorCode::Internal, Certainty::Unknown, &error))
        }
        .boxed_local()
    }
}
