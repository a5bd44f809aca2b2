//! HTTPS with a certificate that openssl makes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;

use super::common::{Host, Runner, SOON, eventually};
use super::{refuses, says, untouched};

/// What openssl makes: a certificate for 127.0.0.1 and its key.
fn certificate(host: &Host) -> (String, String) {
    let (cert, key) = (host.path("cert.pem").display().to_string(), host.path("key.pem").display().to_string());
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"])
        .args(["-subj", "/CN=runner", "-addext", "subjectAltName=IP:127.0.0.1", "-addext"])
        .args(["basicConstraints=critical,CA:FALSE", "-keyout", &key, "-out", &cert])
        .output()
        .expect("the package openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (cert, key)
}

fn https_get(cert: &str, path: &str) -> String {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, IpAddr, ServerName};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cert).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let name = ServerName::IpAddress(IpAddr::try_from("127.0.0.1").unwrap());
    let Ok(stream) = TcpStream::connect("127.0.0.1:3006") else { return String::new() };
    let mut stream = rustls::StreamOwned::new(rustls::ClientConnection::new(config, name).unwrap(), stream);
    let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A server may close without the last word of TLS.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn tls() {
    let mut host = Host::new();
    let (cert, key) = certificate(&host);
    host.set("ENABLE_TLS", "true");
    host.set("TLS_CERT_FILE", &cert);
    host.set("TLS_KEY_FILE", &key);
    let runner: Runner = host.spawn();
    let answer = eventually("GET / works over https", || {
        Some(https_get(&cert, "/")).filter(|answer| answer.contains("\"status\":\"ok\""))
    });
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(https_get(&cert, "/info").starts_with("HTTP/1.1 401"));
    let told = host.api.wait_healthchecks(1, SOON).expect("a healthcheck");
    assert!(format!("{told:?}").contains("https://127.0.0.1:3006"), "{told:?}");
    assert!(host.http().try_get("/").is_none_or(|answer| answer.status >= 400), "not over http");
    assert!(runner.stop().success());
}

#[test]
fn tls_files_that_cannot_be_used() {
    let mut host = Host::new();
    let (cert, key) = certificate(&host);
    host.set("ENABLE_TLS", "true");
    says(&refuses(&host, 78), &["TLS_CERT_FILE", "TLS_KEY_FILE"]);
    host.set("TLS_CERT_FILE", &key);
    host.set("TLS_KEY_FILE", host.path("absent").display().to_string());
    says(&refuses(&host, 78), &["TLS_CERT_FILE", "TLS_KEY_FILE"]);
    // Both are fine, but not a pair.
    let other = host.path("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::rename(&key, other.join("key.pem")).unwrap();
    certificate(&host);
    host.set("TLS_CERT_FILE", &cert);
    host.set("TLS_KEY_FILE", other.join("key.pem").display().to_string());
    says(&refuses(&host, 1), &["cert.pem", "TLS_KEY_FILE"]);
    untouched(&host);
}
