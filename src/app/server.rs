//! The HTTP server: where it listens, with which limits.

use std::net::SocketAddr;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Http, Tls};
use crate::error::{ErrorCode, Failure};
use crate::http::{State, configure};

/// As in the original (PROTOCOL.md 6): header read 10 s, idle 70 s, no limit on bodies or answers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(70);
/// Connections of one worker; more wait in the backlog until one ends. Streams into guests count.
const CONNECTIONS: usize = 4096;
/// Connections that the kernel completes before somebody takes them.
const BACKLOG: u32 = 1024;
/// Threads that serve HTTP: one per CPU, within these.
const WORKERS: (usize, usize) = (2, 16);
/// Open streams get this long when the runner ends.
const SHUTDOWN_SECONDS: u64 = 5;

pub(super) fn start(http: &Http, state: State) -> Result<ServerHandle, Failure> {
    let address = SocketAddr::new(http.address, http.port);
    let server = HttpServer::new(move || App::new().configure(configure(state.clone())))
        // The runner has its own: SIGINT would be a forced stop here.
        .disable_signals()
        .workers(std::thread::available_parallelism().map_or(WORKERS.0, usize::from).clamp(WORKERS.0, WORKERS.1))
        .max_connections(CONNECTIONS)
        .backlog(BACKLOG)
        .client_request_timeout(HEADER_TIMEOUT)
        .keep_alive(IDLE)
        .shutdown_timeout(SHUTDOWN_SECONDS);
    let server = match &http.tls {
        None => server.bind(address),
        Some(tls) => server.bind_rustls_0_23(address, tls_config(tls)?),
    };
    let server = server.map_err(|error| {
        Failure::new(
            ErrorCode::Conflict,
            format!("cannot listen on {address}: {error}; another program may use the port (API_PORT), see: ss -ltnp"),
        )
    })?;
    let server = server.run();
    let handle = server.handle();
    actix::spawn(server);
    Ok(handle)
}

fn tls_config(tls: &Tls) -> Result<ServerConfig, Failure> {
    let problem = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(
            ErrorCode::BadRequest,
            format!("{what}: {error}; expected PEM files in TLS_CERT_FILE and TLS_KEY_FILE"),
        )
    };
    let chain = CertificateDer::pem_file_iter(&tls.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| problem(&format!("cannot read the certificate {}", tls.cert.display()), &error))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|error| problem(&format!("cannot read the key {}", tls.key.display()), &error))?;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| problem("cannot set up TLS", &error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| problem(&format!("certificate and key of {} do not fit", tls.cert.display()), &error))
}
