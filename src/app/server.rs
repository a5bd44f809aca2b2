//! The HTTP server: where it listens, with which limits, and how it ends.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_server::{Server, ServerHandle};
use actix_service::fn_factory;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::tls;
use crate::config::Http;
use crate::error::{ErrorCode, Failure};
use crate::http::State;
use crate::http::front::{Front, Wire};
use crate::http::proxy::Limits;

/// Connections of one thread; more wait in the backlog until one ends. Tunnels into guests count.
const CONNECTIONS: usize = 32_768;
/// Connections that the kernel completes before somebody takes them.
const BACKLOG: i32 = 4096;
/// Threads that serve HTTP: one per CPU, within these.
const WORKERS: (usize, usize) = (2, 16);
/// Open streams get this long when the runner ends.
const SHUTDOWN_SECONDS: u64 = 5;
/// A client that wants TLS speaks at once.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The running server.
pub(super) struct Running {
    handle: ServerHandle,
    closing: watch::Sender<bool>,
}

impl Running {
    /// Takes no more connections, lets what is in hand end, and waits for that a few seconds.
    pub async fn stop(self) {
        self.closing.send_replace(true);
        self.handle.stop(true).await;
    }
}

pub(super) async fn start(http: &Http, limits: Limits, state: State) -> Result<Running, Failure> {
    let address = SocketAddr::new(http.address, http.port);
    let tls = match &http.tls {
        Some(files) => Some(tls::config(files).await?),
        None => None,
    };
    let listener = bound(address).map_err(|error| {
        Failure::new(
            ErrorCode::Conflict,
            format!("cannot listen on {address}: {error}; another program may use the port (API_PORT), see: ss -ltnp"),
        )
    })?;
    let (closing, ends) = watch::channel(false);
    let workers = std::thread::available_parallelism().map_or(WORKERS.0, usize::from).clamp(WORKERS.0, WORKERS.1);
    let server = Server::build()
        // The runner has its own: SIGINT would be a forced stop here.
        .disable_signals()
        .workers(workers)
        .max_concurrent_connections(CONNECTIONS)
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .listen("http", listener, move || {
            let (state, ends, tls) = (state.clone(), ends.clone(), tls.clone());
            fn_factory(move || {
                let (state, ends, tls) = (state.clone(), ends.clone(), tls.clone());
                async move {
                    let front = Rc::new(Front::new(state, limits, ends).await?);
                    Ok::<_, ()>(actix_service::fn_service(move |stream: TcpStream| {
                        let (front, tls) = (front.clone(), tls.clone());
                        async move {
                            connection(&front, tls, stream).await;
                            Ok::<_, ()>(())
                        }
                    }))
                }
            })
        })
        .map_err(|error| Failure::new(ErrorCode::Internal, format!("cannot serve HTTP on {address}: {error}")))?
        .run();
    let handle = server.handle();
    actix::spawn(server);
    Ok(Running { handle, closing })
}

fn bound(address: SocketAddr) -> nix::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    // Connections of the runner before this one may still be saying goodbye.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

async fn connection(front: &Rc<Front>, tls: Option<Arc<ServerConfig>>, stream: TcpStream) {
    // Answers are written whole: to wait for more would only delay them.
    let (Ok(peer), Ok(())) = (stream.peer_addr(), stream.set_nodelay(true)) else { return };
    let wire = match tls {
        None => Wire::Plain(stream),
        Some(config) => match timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
            Ok(Ok(stream)) => Wire::Tls(Box::new(stream)),
            Ok(Err(error)) => return debug!(%peer, %error, "a TLS handshake failed"),
            Err(_) => return debug!(%peer, "a TLS handshake took too long"),
        },
    };
    Front::clone(front).serve(wire, peer).await;
}
