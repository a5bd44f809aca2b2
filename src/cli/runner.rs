//! Asking the runner of this host for what only it can tell while it has the store open.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use awc::Client;
use awc::http::StatusCode;
use awc::http::header::AUTHORIZATION;
use futures::StreamExt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::Error;
use crate::config::Tls;
use crate::config::offline::RunnerAccess;

/// It is on this host; a runner that does not answer by then does not work.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest answer to anything but a backup.
const LIMIT: usize = 16 << 20;

/// The running runner.
pub(super) struct Runner {
    base: String,
    authorization: String,
    tls: Option<Arc<ClientConfig>>,
}

impl Runner {
    pub fn new(access: &RunnerAccess) -> Result<Self, Error> {
        let scheme = if access.tls.is_some() { "https" } else { "http" };
        Ok(Self {
            base: format!("{scheme}://{}", access.address),
            authorization: format!("Bearer {}", access.token.expose()),
            tls: access.tls.as_ref().map(pinned).transpose()?,
        })
    }

    /// Where it was asked.
    pub fn address(&self) -> &str {
        &self.base
    }

    /// `GET /store`.
    pub fn summary(&self) -> Result<serde_json::Value, Error> {
        self.ask("/store", async |mut answer, failed| {
            let body = answer.body().limit(LIMIT).await.map_err(|error| failed(error.to_string()))?;
            serde_json::from_slice(&body).map_err(|error| failed(error.to_string()))
        })
    }

    /// `GET /store/backup` into this file, piece by piece.
    pub fn backup(&self, file: &mut File, path: &Path) -> Result<(), Error> {
        self.ask("/store/backup", async |mut answer, failed| {
            while let Some(piece) = answer.next().await {
                let piece = piece.map_err(|error| failed(error.to_string()))?;
                let written = file.write_all(&piece);
                written.map_err(|source| Error::File { what: "write", path: path.to_owned(), source })?;
            }
            Ok(())
        })
    }

    fn ask<T>(
        &self,
        path: &str,
        read: impl AsyncFnOnce(Answer, &dyn Fn(String) -> Error) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let url = format!("{}{path}", self.base);
        let failed = |reason| Error::Runner { url: url.clone(), reason };
        actix::System::new().block_on(async {
            let mut connector = awc::Connector::new().timeout(CONNECT);
            if let Some(tls) = &self.tls {
                connector = connector.rustls_0_23(tls.clone());
            }
            let client = Client::builder().connector(connector).disable_redirects().disable_timeout().finish();
            let request = client.get(&url).insert_header((AUTHORIZATION, self.authorization.as_str()));
            let mut answer = request.no_decompress().send().await.map_err(|error| failed(error.to_string()))?;
            if answer.status() != StatusCode::OK {
                let body = answer.body().limit(LIMIT).await.unwrap_or_default();
                let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                let why = json["message"].as_str().unwrap_or("it says no more").to_owned();
                return Err(failed(format!("status {}: {why}", answer.status().as_u16())));
            }
            read(answer, &failed).await
        })
    }
}

type Answer = awc::ClientResponse;

/// The runner's certificate is a file of this configuration: whoever has just that one is the runner, whatever names
/// are in it and whoever signed it.
fn pinned(tls: &Tls) -> Result<Arc<ClientConfig>, Error> {
    let failed = |what: String| Error::File {
        what: "use the certificate",
        path: tls.cert.clone(),
        source: std::io::Error::other(what),
    };
    let certificate = CertificateDer::from_pem_file(&tls.cert).map_err(|error| failed(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Pin { certificate, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failed(error.to_string()))?;
    Ok(Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

#[derive(Debug)]
struct Pin {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("its certificate is not the one in TLS_CERT_FILE".to_owned()))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
