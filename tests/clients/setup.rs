//! What the clients need: whether they are installed, a sandbox with a server in its place, and a way to run
//! them to their end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common::backend::{Program, StandIn, TOOLBOX};
use super::common::{Host, Runner, TOKEN, eventually, program};

/// So long a client may take for all that it does.
const PATIENCE: Duration = Duration::from_secs(100);
/// Where the runner's API listens in a test.
pub const RUNNER: &str = "127.0.0.1:3006";
/// The sandbox of these tests, by its toolbox and by a port of it.
pub const TOOLBOX_URL: &str = "http://127.0.0.1:3006/sandboxes/box/toolbox";
pub const PORT_URL: &str = "http://127.0.0.1:3006/sandboxes/box/proxy/8080";

/// What a test cannot do without.
pub enum Need {
    /// A program on PATH.
    Program(&'static str),
    /// A program that `make clients` has installed.
    Installed(&'static str),
    /// A package of Node's.
    Node(&'static str),
    /// A module of Python's.
    Python(&'static str),
}

impl Need {
    fn missing(&self) -> Option<String> {
        let (there, name) = match self {
            Self::Program(name) => (found(name).is_some(), name),
            Self::Installed(name) => (dir().join("bin").join(name).exists(), name),
            Self::Node(name) => (found("node").is_some() && dir().join("node/node_modules").join(name).is_dir(), name),
            Self::Python(name) => (has_module(name), name),
        };
        (!there).then(|| format!("{name} is not installed"))
    }
}

fn has_module(name: &str) -> bool {
    let Ok(libraries) = std::fs::read_dir(dir().join("python/lib")) else { return false };
    libraries.flatten().any(|library| library.path().join("site-packages").join(name).is_dir())
}

/// True when something is missing; says what. `make clients` takes that for a failure.
#[track_caller]
pub fn skipped(needs: &[Need]) -> bool {
    let missing: Vec<_> = needs.iter().filter_map(Need::missing).collect();
    if missing.is_empty() {
        return false;
    }
    assert!(!in_full(), "{}", missing.join(", "));
    println!("skipped: {}; make clients installs what is missing", missing.join(", "));
    true
}

/// Whether everything must be there, and long runs are wanted.
pub fn in_full() -> bool {
    std::env::var_os("CLIENTS_REQUIRED").is_some_and(|value| value == "1")
}

/// Where `make clients` puts what is no Debian package: beside the build.
pub fn dir() -> PathBuf {
    let runner = program("runner-ch");
    runner.ancestors().nth(2).expect("a target directory").join("clients")
}

/// Scripts of these tests.
pub fn script(name: &str) -> String {
    format!("{}/tests/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn found(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A sandbox whose guest the test plays.
pub struct Stage {
    pub stand_in: StandIn,
    pub runner: Runner,
    pub host: Host,
}

impl Stage {
    pub fn new() -> Self {
        let host = Host::new();
        let runner = host.runner();
        host.completed(&host.api.create_sandbox(&host.spec("box")).expect("a job"));
        Self { stand_in: StandIn::of(&host, "box"), runner, host }
    }

    /// One of this directory's servers for Node, in the daemon's place.
    #[track_caller]
    pub fn node_server(&self, name: &str) -> Program {
        node_server(&self.host, &self.stand_in, name)
    }
}

#[track_caller]
pub fn node_server(host: &Host, stand_in: &StandIn, name: &str) -> Program {
    let modules = dir().join("node");
    let port = TOOLBOX.to_string();
    let home = host.path("guest-home");
    std::fs::create_dir_all(&home).expect("a directory");
    let env = [("CLIENTS_NODE", &*modules.to_string_lossy()), ("PORT", &port), ("HOME", &*home.to_string_lossy())];
    let mut server = stand_in.spawn("node", &[&script(&format!("node/{name}"))], &env);
    server.listens(TOOLBOX);
    server
}

/// What stands between users and the runner: Daytona's API and proxy, as far as clients look at them.
/// It is what adds the runner's key.
pub struct Front {
    child: Child,
}

impl Front {
    pub const URL: &'static str = "http://127.0.0.1:8000";

    #[track_caller]
    pub fn new(host: &Host) -> Self {
        let log = std::fs::File::create(host.path("front.log")).expect("a log");
        let child = Command::new("node")
            .arg(script("node/front.mjs"))
            .envs([("PORT", "8000"), ("RUNNER", RUNNER), ("TOKEN", TOKEN)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("node");
        let front = Self { child };
        eventually("the front listens", || std::net::TcpStream::connect("127.0.0.1:8000").ok());
        front
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client has said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

/// Runs a client to its end; its output goes through files, so that it cannot be held up by it.
#[track_caller]
pub fn run(host: &Host, command: &mut Command) -> Said {
    run_fed(host, command, Stdio::null())
}

/// The same with an input.
#[track_caller]
pub fn run_fed(host: &Host, command: &mut Command, input: Stdio) -> Said {
    let file = || tempfile::NamedTempFile::new_in(host.dir.path()).expect("a file");
    let (out, err) = (file(), file());
    // Settings of the machine for the world outside.
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_ascii_uppercase());
    }
    for name in ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"] {
        command.env_remove(name);
    }
    let began = Instant::now();
    let mut child = command
        .stdin(input)
        .stdout(out.reopen().expect("a file"))
        .stderr(err.reopen().expect("a file"))
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if began.elapsed() > PATIENCE && !in_full() || began.elapsed() > PATIENCE * 10 {
            let _ = child.kill();
            break child.wait().expect("wait");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    Said { code: status.code(), out: text(out.path()), err: text(err.path()), took: began.elapsed() }
}

/// Runs one of this directory's scripts, which says itself what it found and ends with 0 when all is well.
#[track_caller]
pub fn run_script(host: &Host, name: &str, arguments: &[&str]) -> Said {
    let mut command = match name.ends_with(".py") {
        true => Command::new(dir().join("python/bin/python")),
        false => Command::new("node"),
    };
    command.arg(script(name)).args(arguments).envs([
        ("CLIENTS_NODE", &*dir().join("node").to_string_lossy()),
        ("TOKEN", TOKEN),
        ("TOOLBOX_URL", TOOLBOX_URL),
        ("PORT_URL", PORT_URL),
        ("FRONT_URL", Front::URL),
        ("SCRATCH", &*host.dir.path().to_string_lossy()),
        ("PYTHONDONTWRITEBYTECODE", "1"),
    ]);
    let said = run(host, &mut command);
    println!("{}", said.out);
    assert_eq!(said.code, Some(0), "{name}: {}\n{}\nrunner: {}", said.out, said.err, tail(&host.log()));
    said
}

/// The last lines of a log.
pub fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
