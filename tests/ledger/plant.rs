//! Putting things on a host that should not be there.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use runner_ch::net::survey::owner_number;

use crate::common::{Host, eventually};

/// Names of captures and layers are random; these look so.
pub const RANDOM: [&str; 4] = [
    "0d1a1b6e-0000-4000-8000-000000000001",
    "0d1a1b6e-0000-4000-8000-000000000002",
    "0d1a1b6e-0000-4000-8000-000000000003",
    "0d1a1b6e-0000-4000-8000-000000000004",
];

#[track_caller]
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

pub fn has_link(name: &str) -> bool {
    let shown = Command::new("ip").args(["link", "show", name]).stderr(Stdio::null()).stdout(Stdio::null()).status();
    shown.expect("ip runs").success()
}

/// A namespace with the mark of that sandbox, made by the runner with that number.
#[track_caller]
pub fn namespace(name: &str, sandbox: &str, owner: u32) {
    ip(&format!("netns add {name}"));
    let alias = format!("runner-ch {sandbox}");
    let set = ["-n", name, "link", "set", "lo", "alias", &alias];
    assert!(Command::new("ip").args(set).status().expect("ip runs").success());
    ip(&format!("-n {name} link set lo group {owner}"));
}

pub fn our_number(host: &Host) -> u32 {
    owner_number(&host.path("sock"))
}

#[track_caller]
pub fn link(name: &str, address: &str, alias: Option<&str>) {
    ip(&format!("link add {name} address {address} type veth peer name p{name}"));
    if let Some(alias) = alias {
        ip(&format!("link set {name} alias {alias}"));
    }
}

/// A VMM with that API socket, in a session of its own.
pub struct Vmm(pub Child);

impl Vmm {
    pub fn start(host: &Host, socket: &Path) -> Self {
        let mut command = Command::new("setsid");
        command.arg(host.path("vmm")).arg("--api-socket").arg(socket);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a VMM");
        eventually("the VMM serves its socket", || UnixStream::connect(socket).ok());
        Self(child)
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn stale_socket(path: &Path) {
    drop(UnixListener::bind(path).expect("a socket"));
}

pub fn directory(path: PathBuf, mode: u32) -> PathBuf {
    DirBuilder::new().mode(mode).create(&path).expect("a directory");
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its mode");
    path
}

pub fn file(path: PathBuf) -> PathBuf {
    std::fs::write(&path, "planted").expect("a file");
    path
}
