//! TLS towards the API: rustls with ring and the host's own trusted certificates.
//!
//! awc can bring Mozilla's list compiled in, or panics when the host has none; neither suits a self-hosted
//! API behind a private authority. So the host's PEM bundle is read here, once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::error::{Cause, Error};

/// Where distributions keep the bundle (Debian, Fedora, SUSE, Alpine).
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The configuration for https, trusting `SSL_CERT_FILE` or else the host's bundle.
pub(super) fn config() -> Result<Arc<ClientConfig>, Error> {
    let chosen = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let found = chosen.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file()));
    let path = found.ok_or_else(|| Error::Certificates {
        what: "cannot use https without trusted certificates".to_owned(),
        source: Cause(format!("none of {} exists", BUNDLES.join(", "))),
    })?;
    with_bundle(&path)
}

/// The same with the certificates of one PEM file.
fn with_bundle(path: &Path) -> Result<Arc<ClientConfig>, Error> {
    let roots = roots(path)?;
    // The provider is given here and not installed for the process: no order of start-up matters.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Error::Certificates {
        what: "cannot set up TLS".to_owned(),
        source: Cause(error.to_string()),
    })?;
    // No ALPN: HTTP/1.1 is all that is used.
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// A bundle with some certificates that cannot be used is common; one with none is an error.
fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let failed = |cause: String| Error::Certificates {
        what: format!("cannot read trusted certificates from {}", path.display()),
        source: Cause(cause),
    };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    if added == 0 {
        return Err(failed(format!("no usable certificate in it, {ignored} unusable")));
    }
    tracing::debug!(path = %path.display(), added, ignored, "read trusted certificates");
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_empty_bundle_names_file_and_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "no certificate here\n").unwrap();
        for path in [empty, dir.path().join("missing.pem")] {
            let text = with_bundle(&path).unwrap_err().to_string();
            assert!(text.contains(&path.display().to_string()) && text.contains("SSL_CERT_FILE"), "{text}");
        }
    }
}
