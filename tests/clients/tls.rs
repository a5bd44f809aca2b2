//! TLS on the runner's own port (`ENABLE_TLS`): clients that check certificates, and a certificate that is replaced
//! while the runner runs.

use std::path::Path;
use std::process::Command;

use super::common::backend::{StandIn, TOOLBOX};
use super::common::{Host, Runner, TOKEN, eventually};
use super::guest;
use super::setup::{Need, Said, Stage, run, run_script, skipped, tail};

const URL: &str = "https://127.0.0.1:3006";

/// A self-signed certificate for the runner's address, and its key.
fn certificate(host: &Host, name: &str) {
    let file = |suffix: &str| host.path(format!("{name}.{suffix}")).display().to_string();
    let status = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", &format!("/CN={name}"), "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"])
        .args(["-keyout", &file("key"), "-out", &file("crt")])
        .stderr(std::process::Stdio::null())
        .status()
        .expect("openssl");
    assert!(status.success());
}

fn curl(host: &Host, authority: &str, arguments: &[&str]) -> Said {
    let mut command = Command::new("curl");
    command.args(["-q", "--silent", "--show-error", "--noproxy", "*", "--max-time", "30", "--cacert"]);
    command.arg(host.path(format!("{authority}.crt")));
    command.args(["--header", &format!("X-Daytona-Authorization: Bearer {TOKEN}")]).args(arguments);
    run(host, &mut command)
}

/// A sandbox made before TLS is switched on; its VMM outlives the change.
fn with_tls() -> (Host, Runner, StandIn) {
    let Stage { stand_in, runner, mut host } = Stage::new();
    runner.stop();
    for name in ["first", "second"] {
        certificate(&host, name);
    }
    replace(&host, "first");
    host.set("ENABLE_TLS", "true");
    host.set("TLS_CERT_FILE", host.path("live.crt").display().to_string());
    host.set("TLS_KEY_FILE", host.path("live.key").display().to_string());
    let mut runner = host.spawn();
    eventually("the runner answers by TLS", || {
        if let Some(status) = runner.child.try_wait().expect("wait") {
            panic!("the runner ended with {status}: {}", tail(&runner.log()));
        }
        curl(&host, "first", &[&format!("{URL}/")]).out.contains("\"ok\"").then_some(())
    });
    (host, runner, stand_in)
}

/// Puts a certificate where the runner reads it, by rename.
fn replace(host: &Host, name: &str) {
    for suffix in ["key", "crt"] {
        put(host, &host.path(format!("{name}.{suffix}")), &format!("live.{suffix}"));
    }
}

fn put(host: &Host, source: &Path, target: &str) {
    std::fs::write(host.path("next"), std::fs::read(source).expect("a file")).expect("a file");
    std::fs::rename(host.path("next"), host.path(target)).expect("a file");
}

#[test]
fn curl_checks_the_certificate_and_sees_a_new_one() {
    let (host, _runner, stand_in) = with_tls();
    let _guest = stand_in.serve(TOOLBOX, guest::serve);
    let page = format!("{URL}/sandboxes/box/proxy/8080/small");
    assert_eq!(curl(&host, "first", &[&page]).out.len(), 96);
    let stranger = curl(&host, "second", &[&page]);
    assert_eq!(stranger.code, Some(60), "another's certificate: {stranger:?}");
    // Who speaks no TLS hears that at once, if not nicely.
    let plain = curl(&host, "first", &["http://127.0.0.1:3006/"]);
    assert!(plain.code != Some(0) || plain.out.contains("400"), "{plain:?}");

    let file = host.path("large");
    std::fs::write(&file, guest::file()).expect("a file");
    let upload = format!("{URL}/sandboxes/box/toolbox/upload");
    let seen = curl(&host, "first", &["--upload-file", &file.display().to_string(), &upload]);
    assert!(seen.out.contains(&guest::sha256(&guest::file())), "{seen:?}");

    // What is no certificate is not taken, and does no harm.
    std::fs::write(host.path("garbage"), "no certificate").expect("a file");
    put(&host, &host.path("garbage"), "live.crt");
    assert_eq!(curl(&host, "first", &[&page]).out.len(), 96);
    replace(&host, "second");
    eventually("new connections are shown the new certificate", || {
        (curl(&host, "second", &[&page]).code == Some(0)).then_some(())
    });
    assert_eq!(curl(&host, "first", &[&page]).code, Some(60));
}

#[test]
fn python_goes_on_while_the_certificate_is_replaced() {
    if skipped(&[Need::Node("ws"), Need::Python("requests"), Need::Python("websockets")]) {
        return;
    }
    let (host, _runner, stand_in) = with_tls();
    let _server = super::setup::node_server(&host, &stand_in, "app.mjs");
    let path = |name: &str| host.path(name).display().to_string();
    let files = [path("live.crt"), path("live.key"), path("second.crt"), path("second.key")];
    run_script(&host, "python/tls.py", &files.each_ref().map(String::as_str));
}
