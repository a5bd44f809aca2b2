//! A runner with its SSH gateway, a sandbox with a real OpenSSH server, and the real OpenSSH client.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::mount::{MsFlags, mount};

use crate::common::{Host, Runner, eventually};

pub const PORT: u16 = 2220;
const USER_ID: u32 = 54_321;

/// Runs a program that must succeed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a client has said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The host, the runner, and the sandbox `box`.
pub struct World {
    pub runner: Runner,
    sshd: Option<Child>,
    pub host: Host,
}

/// Settings of a host with a gateway; its key is `client`.
pub fn host() -> Host {
    let mut host = Host::new();
    // A mount over these two concerns this test only.
    let key = host.path("client");
    make_key(&key, &["-t", "ed25519"]);
    host.set("SSH_GATEWAY_ENABLE", "true");
    host.set("SSH_PUBLIC_KEY", public_key(&key));
    host.set("SSH_HOST_KEY_PATH", host.path("host_key").display().to_string());
    host
}

pub fn make_key(path: &Path, kind: &[&str]) {
    let made = Command::new("ssh-keygen").args(kind).args(["-q", "-N", "", "-f"]).arg(path).status();
    assert!(made.expect("the package openssh-client is installed").success());
}

pub fn public_key(path: &Path) -> String {
    STANDARD.encode(std::fs::read(path.with_extension("pub")).expect("the public key"))
}

impl World {
    /// A sandbox without an SSH server.
    pub fn bare() -> Self {
        Self::on(host())
    }

    pub fn on(host: Host) -> Self {
        let runner = host.runner();
        host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
        Self { runner, sshd: None, host }
    }

    /// A sandbox with an OpenSSH server.
    pub fn new() -> Self {
        let mut world = Self::bare();
        world.start_sshd();
        world
    }

    /// An OpenSSH server on the guest's address, in the sandbox's namespace; for its user `daytona` it takes the password
    /// that all guests take. The simulated guest is behind the TAP; local addresses win over that.
    pub fn start_sshd(&mut self) {
        self.add_user();
        let path = |name: &str| self.host.path(name).display().to_string();
        make_key(&self.host.path("guest_key"), &["-t", "ed25519"]);
        let settings = [
            "Port 22220".to_owned(),
            "ListenAddress 192.168.0.2".to_owned(),
            format!("HostKey {}", path("guest_key")),
            "UsePAM no\nPasswordAuthentication yes\nStrictModes no\nPidFile none\nUseDNS no".to_owned(),
            "MaxSessions 200\nMaxStartups 500\nAcceptEnv *\nPrintMotd no\nPrintLastLog no\nLogLevel VERBOSE".to_owned(),
            "Subsystem sftp internal-sftp\nAllowStreamLocalForwarding yes\nAllowTcpForwarding yes".to_owned(),
        ];
        std::fs::write(self.host.path("sshd_config"), settings.join("\n")).unwrap();
        std::fs::create_dir_all("/run/sshd").unwrap();
        run("nsenter", &["--net=/run/netns/ns-box", "ip", "link", "set", "lo", "up"]);
        run("nsenter", &["--net=/run/netns/ns-box", "ip", "address", "replace", "192.168.0.2/32", "dev", "lo"]);
        let table = ["inet", "runner_ch", "input", "iifname", "lo", "accept"];
        run("nsenter", &[&["--net=/run/netns/ns-box", "nft", "insert", "rule"], &table[..]].concat());
        // In a process namespace of its own: whatever it starts ends with it.
        let sshd = Command::new("nsenter")
            .args(["--net=/run/netns/ns-box", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["/usr/sbin/sshd", "-D", "-f", &path("sshd_config"), "-E", &path("sshd.log")])
            .stdin(Stdio::null())
            .spawn()
            .expect("the package openssh-server is installed");
        self.sshd = Some(sshd);
        eventually("sshd listens", || self.sshd_log().contains("Server listening").then_some(()));
    }

    fn add_user(&self) {
        let hash = run("openssl", &["passwd", "-6", "sandbox-ssh"]);
        let home = self.host.path("home");
        std::fs::create_dir_all(&home).unwrap();
        // Not root: for that one sshd refuses to pass signals on.
        std::os::unix::fs::chown(&home, Some(USER_ID), Some(USER_ID)).unwrap();
        let reachable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(self.host.path(""), reachable).unwrap();
        let entries = [
            ("/etc/passwd", format!("daytona:x:{USER_ID}:{USER_ID}::{}:/bin/bash\n", home.display())),
            ("/etc/shadow", format!("daytona:{}:19000:0:99999:7:::\n", hash.trim())),
        ];
        for (file, entry) in entries {
            let own = self.host.path(Path::new(file).file_name().unwrap());
            let text = std::fs::read_to_string(file).unwrap();
            std::fs::write(&own, format!("{text}{entry}")).unwrap();
            mount::<_, _, str, str>(Some(&own), file, None, MsFlags::MS_BIND, None).expect("a mount of the test's own");
        }
    }

    pub fn sshd_log(&self) -> String {
        std::fs::read_to_string(self.host.path("sshd.log")).unwrap_or_default()
    }

    /// Logins that the guest's server has seen.
    pub fn guest_logins(&self) -> usize {
        self.sshd_log().matches("Accepted password for daytona").count()
    }

    pub fn kill_sshd(&mut self) {
        if let Some(mut sshd) = self.sshd.take() {
            sshd.kill().unwrap();
            sshd.wait().unwrap();
        }
    }

    pub fn home(&self, file: &str) -> PathBuf {
        self.host.path("home").join(file)
    }

    /// The options that every client program of OpenSSH needs here.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec!["-F".to_owned(), "none".to_owned()];
        let key = format!("IdentityFile={}", self.host.path("client").display());
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "GlobalKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "LogLevel=ERROR",
            "ConnectTimeout=30",
            &format!("Port={PORT}"),
            &key,
        ] {
            options.extend(["-o".to_owned(), option.to_owned()]);
        }
        options
    }

    /// `ssh` with these options to the user; a command may follow.
    pub fn ssh_as(&self, user: &str, options: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command.args(options).args(self.options()).arg(format!("{user}@127.0.0.1"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn ssh(&self, options: &[&str]) -> Command {
        self.ssh_as("box", options)
    }

    /// Runs a command in the guest.
    pub fn exec(&self, command: &str) -> Said {
        self.ssh(&[]).arg(command).output().unwrap().into()
    }

    /// Another client program of OpenSSH.
    pub fn client(&self, program: &str, arguments: &[&str]) -> Said {
        let mut command = Command::new(program);
        command.args(self.options()).args(arguments).stdin(Stdio::null());
        command.output().unwrap().into()
    }

    /// Memory of the runner in bytes.
    pub fn memory(&self) -> u64 {
        let process = procfs::process::Process::new(self.runner.pid()).unwrap();
        process.status().unwrap().vmrss.unwrap() * 1024
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill_sshd();
    }
}
