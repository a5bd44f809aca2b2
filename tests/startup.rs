//! Starting and ending: what is wrong is said at once and all together, a start that fails leaves
//! nothing, and an end waits for work under way. The API may be anything meanwhile.

use std::net::TcpListener;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::json;

#[path = "startup/api.rs"]
mod api;
mod common;
#[path = "startup/tls.rs"]
mod tls;

use common::{Host, SOON, eventually, leftovers, program};

/// Starts a runner that must end by itself; returns its exit code and what it said.
#[track_caller]
fn refuses(host: &Host, code: i32) -> String {
    let before = host.log().len();
    let mut runner = host.spawn();
    let status = runner.wait();
    let said = runner.log().split_off(before);
    assert_eq!(status.code(), Some(code), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[track_caller]
fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
}

/// No bridge, no namespaces, no processes: a start that was refused has touched nothing.
#[track_caller]
fn untouched(host: &Host) {
    leftovers::none(host);
    let links = Command::new("ip").args(["-o", "link"]).output().unwrap();
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(!links.contains("br0"), "{links}");
}

fn exit_code(arguments: &[&str]) -> (ExitStatus, String) {
    let output = Command::new(program("runner-ch")).args(arguments).env_clear().output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn help_and_version() {
    let (status, text) = exit_code(&["--version"]);
    assert!(status.success());
    assert_eq!(text.trim(), format!("runner-ch {}", env!("CARGO_PKG_VERSION")));
    let (status, text) = exit_code(&["--help"]);
    assert!(status.success());
    says(&text, &["SERVER_URL", "API_TOKEN", "docs/configuration.md"]);
    let (status, text) = exit_code(&["--no-such-option"]);
    assert!(!status.success() && text.contains("--no-such-option"), "{text}");
}

#[test]
fn nothing_set_names_what_is_required() {
    let (status, text) = exit_code(&[]);
    assert_eq!(status.code(), Some(78), "{text}");
    says(&text, &["SERVER_URL", "API_TOKEN"]);
}

#[test]
fn all_wrong_settings_are_told_at_once() {
    let mut host = Host::new();
    let wrong = [
        ("SERVER_URL", "localhost:3000"),
        ("API_PORT", "70000"),
        ("POLL_TIMEOUT", "soon"),
        ("POLL_LIMIT", "0"),
        ("HEALTHCHECK_INTERVAL", "1s"),
        ("CH_DEFAULT_CPUS", "many"),
        ("CH_DEFAULT_MEMORY_MB", "-1"),
        ("CH_SANDBOXES_PATH", "relative/path"),
        ("CH_BRIDGE_NAME", "a-name-that-is-too-long"),
        ("RUNNER_NETWORK_POOL", "192.168.0.0/24"),
        ("RUNNER_DISK_STRATEGY", "copy"),
        ("LOG_FORMAT", "xml"),
        ("CH_SSH_HOST", "root@hypervisor"),
        ("SANDBOX_SSH_PORT", "0"),
        ("ENABLE_TLS", "perhaps"),
    ];
    for (name, value) in wrong {
        host.set(name, value);
    }
    host.set("SSH_GATEWAY_ENABLE", "true");
    host.set("API_TOKEN", "");
    let said = refuses(&host, 78);
    for (name, value) in wrong {
        let line = said.lines().find(|line| line.contains(name));
        let line = line.unwrap_or_else(|| panic!("{name} is not in:\n{said}"));
        assert!(line.contains(value) && line.contains("expected"), "{line}");
    }
    says(&said, &["API_TOKEN: expected", "local mode is the supported one", "SSH_PUBLIC_KEY: expected base64"]);
    untouched(&host);
}

#[test]
fn a_missing_token_is_refused() {
    let mut host = Host::new();
    for token in ["", "  ", "<your-runner-api-token>"] {
        host.set("API_TOKEN", token);
        says(&refuses(&host, 78), &["API_TOKEN"]);
    }
    host.set("API_TOKEN", "two secret words");
    let said = refuses(&host, 78);
    assert!(said.contains("API_TOKEN") && !said.contains("secret"), "the value is never shown: {said}");
    untouched(&host);
}

#[test]
fn remote_mode_and_an_ssh_gateway_without_a_key_are_refused() {
    let mut host = Host::new();
    host.set("CH_SSH_HOST", "root@hypervisor");
    says(&refuses(&host, 78), &["CH_SSH_HOST", "local mode", "/usr/local/bin/runner-ch-local"]);
    host.set("CH_SSH_HOST", "");
    host.set("SSH_GATEWAY_ENABLE", "true");
    says(&refuses(&host, 78), &["SSH_PUBLIC_KEY", "base64 -w0 key.pub"]);
    untouched(&host);
    // Off, however it is written, is no reason to stop.
    host.set("SSH_GATEWAY_ENABLE", "false");
    assert!(host.runner().stop().success());
}

#[test]
fn what_the_host_lacks_is_told_at_once() {
    let mut host = Host::new();
    std::fs::write(host.path("a-file"), "x").unwrap();
    let absent = host.path("absent").display().to_string();
    let (file, below) = (host.path("a-file").display().to_string(), host.path("a-file/below").display().to_string());
    host.set("CH_KERNEL_PATH", &absent);
    host.set("CH_BASE_IMAGE_PATH", format!("{absent}.qcow2"));
    host.set("CH_INITRAMFS_PATH", &absent);
    host.set("CH_BINARY", &file);
    host.set("RUNNER_STATE_PATH", &file);
    host.set("CH_SANDBOXES_PATH", &below);
    let said = refuses(&host, 78);
    for name in [
        "CH_KERNEL_PATH",
        "CH_BASE_IMAGE_PATH",
        "CH_INITRAMFS_PATH",
        "CH_BINARY",
        "RUNNER_STATE_PATH",
        "CH_SANDBOXES_PATH",
    ] {
        let line = said.lines().find(|line| line.contains(name));
        let line = line.unwrap_or_else(|| panic!("{name} is not in:\n{said}"));
        assert!(line.contains(host.dir.path().to_str().unwrap()), "the path is named: {line}");
        assert!(line.contains("; "), "a remedy is named: {line}");
    }
    untouched(&host);
}

#[test]
fn a_state_directory_that_cannot_be_written() {
    let mut host = Host::new();
    let state = host.path("read-only");
    std::fs::create_dir(&state).unwrap();
    mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>).unwrap();
    host.set("RUNNER_STATE_PATH", state.display().to_string());
    says(&refuses(&host, 78), &["RUNNER_STATE_PATH", "read-only", "Read-only file system"]);
    untouched(&host);
    nix::mount::umount(&state).unwrap();
}

#[test]
fn a_pool_that_overlaps_an_address_of_the_host() {
    let mut host = Host::new();
    let ip = |arguments: &[&str]| assert!(Command::new("ip").args(arguments).status().unwrap().success());
    ip(&["link", "add", "office", "type", "bridge"]);
    ip(&["address", "add", "10.220.7.1/24", "dev", "office"]);
    let said = refuses(&host, 1);
    says(&said, &["RUNNER_NETWORK_POOL", "10.220.0.0/16", "10.220.7.1/24", "office"]);
    untouched(&host);
    host.set("RUNNER_NETWORK_POOL", "10.221.0.0/16");
    assert!(host.runner().stop().success());
}

#[test]
fn a_port_in_use() {
    let host = Host::new();
    let other = TcpListener::bind("127.0.0.1:3006").unwrap();
    let said = refuses(&host, 1);
    says(&said, &["127.0.0.1:3006", "in use", "API_PORT"]);
    untouched(&host);
    drop(other);
    assert!(host.runner().stop().success());
}

#[test]
fn a_second_runner_on_the_same_store() {
    let mut host = Host::new();
    let first = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    host.set("API_PORT", "3007");
    let said = refuses(&host, 1);
    says(&said, &["RUNNER_STATE_PATH", host.path("state").to_str().unwrap()]);
    // The first one has not noticed.
    assert_eq!(host.in_guest("box", "echo unharmed"), "unharmed");
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
    assert!(first.stop().success());
}

#[test]
fn both_signals_end_it_in_order() {
    let host = Host::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut runner = host.runner();
        host.api.wait_open_polls(1, SOON);
        runner.signal(signal);
        assert_eq!(runner.wait().code(), Some(0), "{signal}");
        assert!(runner.log().contains(&format!("{signal}: draining")));
    }
    // Also while it is still starting.
    let mut runner = host.spawn();
    eventually("it has begun", || host.http().try_get("/"));
    runner.signal(Signal::SIGTERM);
    assert_eq!(runner.wait().code(), Some(0));
}

/// A creation whose boot takes `ms`, under way.
fn booting(host: &Host, ms: u64) -> String {
    host.faults(json!([{ "when": "vm.boot", "action": "delay_ms", "value": ms, "times": 1 }]));
    let job = host.api.create_sandbox(&host.spec("box")).unwrap();
    eventually("the VMM runs", || (!leftovers::vmms(&host.path("sock")).is_empty()).then_some(()));
    job
}

#[test]
fn an_end_waits_for_a_create_under_way() {
    let host = Host::new();
    let runner = host.runner();
    let job = booting(&host, 1500);
    assert!(runner.stop().success());
    let job = host.api.job(&job).unwrap();
    assert_eq!(job.status, daytona_sim::JobStatus::Completed, "{:?}\n{}", job.error_message, host.log());
    let _runner = host.runner();
    assert_eq!(host.in_guest("box", "echo up"), "up");
}

#[test]
fn an_end_does_not_wait_for_ever_and_the_next_start_finishes_the_job() {
    let mut host = Host::new();
    host.set("RUNNER_DRAIN_TIMEOUT_SEC", "1");
    let runner = host.runner();
    let job = booting(&host, 8000);
    let began = Instant::now();
    assert_eq!(runner.stop().code(), Some(0));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(7), "{took:?}");
    says(&host.log(), &["continued after the next start"]);
    assert!(host.api.wait_job(&job, Duration::ZERO).is_none(), "no result was invented");
    let _runner = host.runner();
    host.completed(&job);
    assert_eq!(host.in_guest("box", "echo finished"), "finished");
    assert_eq!(leftovers::vmms(&host.path("sock")).len(), 1);
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn nothing_new_is_begun_while_it_ends() {
    let host = Host::new();
    let mut runner = host.runner();
    let job = booting(&host, 2000);
    runner.signal(Signal::SIGTERM);
    eventually("it drains", || runner.log().contains("draining").then_some(()));
    let refused = host.http().post("/sandboxes", r#"{"id":"late","storageQuota":1}"#);
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some() && refused.body.contains("shutting down"), "{refused:?}");
    assert_eq!(host.http().get("/sandboxes/box").json()["state"], "creating", "reads still work");
    assert!(runner.wait().success());
    assert!(host.api.wait_job(&job, Duration::ZERO).is_some());
}
