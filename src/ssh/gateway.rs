//! Listens, admits, watches over each connection, and ends all of them in time.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use russh::{Disconnect, MethodKind, MethodSet, SshId, server};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::client::Client;
use super::connection::Connection;
use super::logins::Logins;
use super::sandboxes::Sandboxes;
use super::valve::{Held, Valve};
use super::{Shared, WINDOW, algorithms, guest, key};
use crate::actors::Routes;
use crate::blocking;
use crate::config::Ssh;
use crate::error::{Certainty, ErrorCode, Failure, chain};
use crate::sandbox::Views;

/// Threads of the gateway, at most; fewer on a machine with fewer CPUs.
const THREADS: usize = 8;
/// Connections at the same time that have not logged in.
const STRANGERS: usize = 100;
/// Wrong keys of one connection.
const ATTEMPTS: usize = 6;
/// A client that says nothing is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// So many times before it is given up.
const KEEPALIVES: usize = 4;
/// Open sessions get this long when the runner ends, as HTTP streams do.
const DRAIN: Duration = Duration::from_secs(5);
/// A client takes so long at most to hear a farewell.
const FAREWELL: Duration = Duration::from_secs(1);
/// A listener that cannot accept (too many open files) tries again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The running gateway.
#[derive(Debug)]
pub struct Gateway {
    runtime: Option<Runtime>,
    ending: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

/// Makes the host key if there is none, and listens.
///
/// # Errors
/// The host key cannot be used or made, or the port is taken.
pub async fn start(settings: Ssh, address: IpAddr, routes: Routes, views: Views) -> Result<Gateway, Failure> {
    let internal =
        |error: &(dyn std::error::Error + 'static)| Failure::from_error(ErrorCode::Internal, Certainty::NotDone, error);
    let path = settings.host_key.clone();
    let made = blocking::HOST.run(move || key::load_or_make(&path)).await.map_err(|error| internal(&error))?;
    let host_key = made.map_err(|error| internal(&error))?;
    let path = settings.host_key.display();
    if host_key.new {
        info!(path = %path, "SSH: a host key was made");
    }
    if host_key.exposed {
        warn!(path = %path, "SSH: others can read the host key; chmod 600");
    }
    let address = SocketAddr::new(address, settings.port);
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let listener = listener.map_err(|error| {
        let hint = "another program may use the port (SSH_GATEWAY_PORT), see: ss -ltnp";
        Failure::new(ErrorCode::Conflict, format!("cannot listen on {address} for SSH: {error}; {hint}"))
    })?;
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("ssh")
        .enable_all()
        .build()
        .map_err(|error| internal(&error))?;
    let server = Arc::new(config(host_key.key));
    let shared = Arc::new(Shared {
        admitted: key::Admitted::new(&settings.public_key),
        logins: Mutex::new(Logins::default()),
        sandboxes: Sandboxes::new(settings.max_per_sandbox),
        client: Arc::new(guest::config()),
        settings,
        routes,
        views,
    });
    let (ending, end) = watch::channel(false);
    let (done, ended) = watch::channel(false);
    let entered = runtime.enter();
    let listener = TcpListener::from_std(listener).map_err(|error| internal(&error))?;
    drop(entered);
    runtime.spawn(async move {
        listen(listener, shared, server, end).await;
        done.send_replace(true);
    });
    info!(%address, "SSH: listening");
    Ok(Gateway { runtime: Some(runtime), ending, ended })
}

impl Gateway {
    /// Takes no more connections, gives those that are open a few seconds, and ends them.
    pub async fn stop(mut self) {
        self.ending.send_replace(true);
        // The sender is gone when the listener's task has panicked; then there is nothing to wait for.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn config(host_key: russh::keys::PrivateKey) -> server::Config {
    let mut methods = MethodSet::empty();
    methods.push(MethodKind::PublicKey);
    server::Config {
        server_id: SshId::Standard("SSH-2.0-runner-ch".into()),
        methods,
        // Pauses after failures are our own.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host_key],
        window_size: WINDOW,
        preferred: algorithms(),
        max_auth_attempts: ATTEMPTS,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVES,
        ..server::Config::default()
    }
}

async fn listen(
    listener: TcpListener,
    shared: Arc<Shared>,
    server: Arc<server::Config>,
    mut end: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(shared.settings.max_connections));
    // Those who have logged in lately have places of their own: strangers that do not go on cannot take them.
    let (strangers, acquaintances) = (Arc::new(Semaphore::new(STRANGERS)), Arc::new(Semaphore::new(STRANGERS)));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The sender lives as long as the gateway.
            _ = end.wait_for(|end| *end) => break,
            Some(ended) = open.join_next(), if !open.is_empty() => {
                if let Err(error) = ended {
                    warn!(%error, "SSH: a connection ended by a panic");
                }
                continue;
            }
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "SSH: cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (admitted, known) = {
            let (source, now, mut logins) = (peer.ip().into(), Instant::now(), shared.logins());
            (logins.admit(source, now), logins.trusts(source, now))
        };
        let taken = admitted
            .map_err(|wait| format!("Too many failed logins, try again in {} s", wait.as_secs().max(1)))
            .and_then(|()| {
                let place = places.clone().try_acquire_owned();
                let place = place.map_err(|_| "Too many connections".to_owned())?;
                let strangers = if known { &acquaintances } else { &strangers };
                let stranger = strangers.clone().try_acquire_owned();
                Ok((place, stranger.map_err(|_| "Too many connections that have not logged in".to_owned())?))
            });
        match taken {
            Ok((place, stranger)) => {
                let (shared, server, end) = (shared.clone(), server.clone(), end.clone());
                open.spawn(async move {
                    connection(stream, peer, shared, server, stranger, end).await;
                    drop(place);
                });
            }
            Err(why) => {
                debug!(%peer, why, "SSH: a connection was refused");
                refuse(stream, &why);
            }
        }
    }
    drop(listener);
    let drained =
        timeout(DRAIN + 2 * FAREWELL + Duration::from_secs(1), async { while open.join_next().await.is_some() {} });
    if drained.await.is_err() {
        warn!("SSH: some connections did not end in time");
    }
}

/// Says why before the protocol begins (RFC 4253, 4.2), and closes. Waits for nobody: what does not fit into an empty
/// socket's buffer is not said.
fn refuse(stream: TcpStream, why: &str) {
    if let Err(error) = stream.try_write(format!("{why}\r\n").as_bytes()) {
        debug!(%error, "SSH: a client was refused without a word");
    }
}

/// One connection of a client, from its first byte to its last.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    server: Arc<server::Config>,
    stranger: OwnedSemaphorePermit,
    mut end: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "SSH: a client was gone before it was served");
        return;
    }
    let grace = shared.settings.login_grace;
    let valve = Valve::new(i64::MAX / 16);
    let _cut = Cut(valve.clone());
    let connection = Arc::new(Connection::new(shared, peer, valve.clone()));
    let handler = Client::new(connection.clone(), stranger);
    let mut login = connection.login.subscribe();
    let late = async {
        sleep(grace).await;
        // The sender is in the connection, which is still there.
        !*login.borrow_and_update()
    };
    tokio::pin!(late);
    let session = tokio::select! {
        session = server::run_stream(server, Held::new(stream, valve.clone()), handler) => session,
        _ = &mut late => return debug!(%peer, "SSH: a client did not say in time that it speaks SSH"),
        _ = end.wait_for(|end| *end) => return,
    };
    let mut session = match session {
        Ok(session) => session,
        Err(error) => return debug!(%peer, error = %chain(&error), "SSH: a client does not speak SSH"),
    };
    let handle = session.handle();
    let mut graced = false;
    let ended = loop {
        tokio::select! {
            ended = &mut session => break Some(ended),
            late = &mut late, if !graced => {
                graced = true;
                if late {
                    debug!(%peer, seconds = grace.as_secs(), "SSH: a client did not log in in time");
                    farewell(&handle, &mut session, Disconnect::ByApplication, "the login took too long").await;
                    break None;
                }
            }
            () = drained(&mut end) => {
                farewell(&handle, &mut session, Disconnect::ByApplication, "the runner is being stopped").await;
                break None;
            }
        }
    };
    let in_order = match &ended {
        Some(Ok(())) => true,
        Some(Err(error)) => {
            debug!(%peer, error = %chain(error), "SSH: a connection ended early");
            false
        }
        None => false,
    };
    valve.cut();
    connection.end(in_order).await;
}

/// Ends when the time that open sessions are given has passed.
async fn drained(end: &mut watch::Receiver<bool>) {
    let _ = end.wait_for(|end| *end).await;
    sleep(DRAIN).await;
}

async fn farewell(
    handle: &server::Handle,
    session: &mut server::RunningSession<Client>,
    reason: Disconnect,
    words: &str,
) {
    let told = async {
        if handle.disconnect(reason, words.to_owned(), String::new()).await.is_ok() {
            // However it ends.
            let _ = session.await;
        }
    };
    let _ = timeout(FAREWELL, told).await;
}

/// Cuts a connection when whoever watches over it ends, by a panic too.
struct Cut(Arc<Valve>);

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.cut();
    }
}
