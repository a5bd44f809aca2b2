//! TLS for the HTTP port, with certificate and key read again when their files change.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{info, warn};

use crate::blocking::HOST;
use crate::config::Tls;
use crate::error::{ErrorCode, Failure, chain};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);

/// The certificate that new connections get.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// The server's side of TLS with these files; they are looked at from now on. Files that cannot be used
/// leave what there was in place, with a line in the log.
pub(super) async fn config(files: &Tls) -> Result<Arc<ServerConfig>, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (seen, key) = look(files.clone(), provider.clone()).await;
    let current = Arc::new(Current(RwLock::new(Arc::new(key?))));
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| problem("cannot set up TLS", &error))?
        .with_no_client_auth()
        .with_cert_resolver(current.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    actix::spawn(watch(files.clone(), provider, current, seen));
    Ok(Arc::new(config))
}

async fn watch(files: Tls, provider: Arc<CryptoProvider>, current: Arc<Current>, mut seen: Option<Stamp>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let paths = files.clone();
        let stamp = HOST.run(move || stamp(&paths)).await.ok().and_then(Result::ok);
        if stamp == seen {
            continue;
        }
        let (stamp, key) = look(files.clone(), provider.clone()).await;
        seen = stamp;
        match key {
            Ok(key) => {
                *current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                info!(certificate = %files.cert.display(), "new TLS certificate; open connections keep the old one");
            }
            Err(error) => warn!(error = %chain(&error), "the TLS certificate in use is kept"),
        }
    }
}

/// What tells that a file has changed: time of the last change, length, inode.
type Stamp = [(SystemTime, u64, u64); 2];

fn stamp(files: &Tls) -> io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let one = |path: &Path| {
        let found = std::fs::metadata(path)?;
        io::Result::Ok((found.modified()?, found.len(), found.ino()))
    };
    Ok([one(&files.cert)?, one(&files.key)?])
}

async fn look(files: Tls, provider: Arc<CryptoProvider>) -> (Option<Stamp>, Result<CertifiedKey, Failure>) {
    let read = move || {
        // The stamp first: what changes meanwhile is seen by the next look.
        (stamp(&files).ok(), read(&files, &provider))
    };
    match HOST.run(read).await {
        Ok(found) => found,
        Err(error) => (None, Err(problem("cannot read the TLS files", &error))),
    }
}

fn problem(what: &str, error: &dyn std::fmt::Display) -> Failure {
    let expected = "expected PEM files in TLS_CERT_FILE and TLS_KEY_FILE";
    Failure::new(ErrorCode::BadRequest, format!("{what}: {error}; {expected}"))
}

fn read(files: &Tls, provider: &CryptoProvider) -> Result<CertifiedKey, Failure> {
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| problem(&format!("cannot read the certificate {}", files.cert.display()), &error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| problem(&format!("cannot read the key {}", files.key.display()), &error))?;
    CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| problem(&format!("certificate and key of {} do not fit", files.cert.display()), &error))
}
