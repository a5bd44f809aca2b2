//! Settings of the SSH gateway (PROTOCOL.md 8 and 12).

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use russh::keys::PublicKey;

use super::reader::Reader;
use super::{check, parse};

/// Longer user names are of no use to any guest (useradd(8) takes 32).
const LONGEST_USER: usize = 32;

/// The SSH gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssh {
    /// Port to listen on, at the address of the HTTP server.
    pub port: u16,
    /// The one key that is let in.
    pub public_key: PublicKey,
    /// Private key by which the gateway is known; made when it is missing.
    pub host_key: PathBuf,
    /// User in the guests.
    pub guest_user: String,
    /// Port of the guests' SSH server.
    pub guest_port: u16,
    /// Longest time from the connection to the login.
    pub login_grace: Duration,
    /// Most connections at the same time, at least 1.
    pub max_connections: usize,
    /// Most connections to one sandbox, at least 1.
    pub max_per_sandbox: usize,
    /// Most open channels of one connection, at least 1.
    pub max_channels: usize,
}

/// The original turned the gateway on by exactly this and took everything else for off (PROTOCOL.md 12).
pub(super) fn enabled(text: &str) -> bool {
    text == "true"
}

/// All of them; `Some(None)` when the gateway is off.
pub(super) fn read(r: &mut Reader) -> Option<Option<Ssh>> {
    let switch = r.text("SSH_GATEWAY_ENABLE");
    if !enabled(&switch) {
        if parse::boolean(&switch) != Ok(false) {
            r.warnings.push(format!(
                "SSH_GATEWAY_ENABLE = {switch:?} is taken for off, as only true turns the SSH gateway on"
            ));
        }
        return Some(None);
    }
    let port = r.parse("SSH_GATEWAY_PORT", port);
    if port.is_some() && r.text("SSH_GATEWAY_PORT") == r.text("API_PORT") {
        r.refuse("SSH_GATEWAY_PORT", "another port than API_PORT");
    }
    let public_key = r.parse("SSH_PUBLIC_KEY", public_key);
    let host_key = r.path("SSH_HOST_KEY_PATH");
    let guest_user = r.parse("SANDBOX_SSH_USER", user);
    let guest_port = r.parse("SANDBOX_SSH_PORT", self::port);
    let login_grace = check::seconds(r, "RUNNER_SSH_LOGIN_GRACE_SEC", Duration::from_secs(1), Duration::from_secs(600));
    let mut limit = |name: &str, unit: &str| r.parse(name, |text| count(text, unit));
    let max_connections = limit("RUNNER_SSH_MAX_CONNECTIONS", " connections");
    let max_per_sandbox = limit("RUNNER_SSH_MAX_PER_SANDBOX", " connections");
    let max_channels = limit("RUNNER_SSH_MAX_CHANNELS", " channels");
    Some(Some(Ssh {
        port: port?,
        public_key: public_key?,
        host_key: host_key?,
        guest_user: guest_user?,
        guest_port: guest_port?,
        login_grace: login_grace?,
        max_connections: max_connections?,
        max_per_sandbox: max_per_sandbox?,
        max_channels: max_channels?,
    }))
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|&port| port > 0).ok_or_else(|| "a port from 1 to 65535".to_owned())
}

fn count(text: &str, unit: &str) -> Result<usize, String> {
    let number = parse::number(text, 1, 65_536, unit)?;
    usize::try_from(number).map_err(|error| error.to_string())
}

fn user(text: &str) -> Result<String, String> {
    let fits = (1..=LONGEST_USER).contains(&text.len());
    let name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits && name && !text.starts_with('-') {
        Ok(text.to_owned())
    } else {
        Err(format!("a user name of 1 to {LONGEST_USER} letters, digits, '.', '_' and '-'"))
    }
}

/// Base64 of a line as `ssh-keygen` writes it: kind, key, comment.
fn public_key(text: &str) -> Result<PublicKey, String> {
    const EXPECTED: &str =
        "base64 of one line as in authorized_keys, without options, as SSH_GATEWAY_ENABLE is true: base64 -w0 key.pub";
    let line = STANDARD.decode(text).map_err(|_| EXPECTED.to_owned())?;
    let line = String::from_utf8(line).map_err(|_| EXPECTED.to_owned())?;
    if line.contains("PRIVATE KEY") {
        return Err(format!("{EXPECTED}; this is a private key, which is nobody's business here: use the other file"));
    }
    PublicKey::from_openssh(line.trim()).map_err(|error| format!("{EXPECTED} ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Problems};

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ a@b";

    fn load(more: &[(&str, &str)]) -> Result<Option<Ssh>, Problems> {
        let key = STANDARD.encode(ED25519);
        let mut pairs = vec![
            ("SERVER_URL", "http://localhost:3000/api"),
            ("API_TOKEN", "0123456789abcdef0123"),
            ("SSH_GATEWAY_ENABLE", "true"),
            ("SSH_PUBLIC_KEY", &key),
        ];
        pairs.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
        let pairs = pairs.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(pairs).map(|config| config.ssh)
    }

    #[test]
    fn the_defaults_are_those_of_the_original() {
        let ssh = load(&[]).unwrap().unwrap();
        assert_eq!((ssh.port, ssh.guest_port, ssh.guest_user.as_str()), (2220, 22220, "daytona"));
        assert_eq!(ssh.host_key, PathBuf::from("/root/.ssh/id_rsa"));
        assert_eq!(ssh.public_key, PublicKey::from_openssh(ED25519).unwrap());
        assert_eq!(load(&[("SSH_PUBLIC_KEY", &STANDARD.encode(format!("{ED25519}\n")))]).unwrap().unwrap(), ssh);
    }

    #[test]
    fn only_true_turns_it_on() {
        for off in ["false", "0", "TRUE", "True", "yes", "1", "on"] {
            assert_eq!(load(&[("SSH_GATEWAY_ENABLE", off)]).unwrap(), None, "{off}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_and_a_key_is_not_shown() {
        let told = |name: &str, value: &str| load(&[(name, value)]).unwrap_err().to_string();
        let private =
            STANDARD.encode("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----");
        let text = told("SSH_PUBLIC_KEY", &private);
        assert!(text.contains("this is a private key") && !text.contains(&private), "{text}");
        for wrong in ["", ED25519, "!!", &STANDARD.encode("hello"), &STANDARD.encode(format!("restrict {ED25519}"))] {
            let text = told("SSH_PUBLIC_KEY", wrong);
            assert!(text.starts_with("SSH_PUBLIC_KEY") && text.contains("base64 -w0 key.pub"), "{wrong}: {text}");
        }
        assert!(told("SSH_GATEWAY_PORT", "0").contains("a port from 1 to 65535"));
        assert!(told("SSH_GATEWAY_PORT", "3006").contains("another port than API_PORT"));
        for user in ["-x", "a b", "a;b", "", &"x".repeat(33)] {
            let text = load(&[("SANDBOX_SSH_USER", user)]).map(|ssh| ssh.map(|ssh| ssh.guest_user));
            assert!(user.is_empty() || text.is_err(), "{user}: {text:?}");
        }
        for name in ["RUNNER_SSH_MAX_CONNECTIONS", "RUNNER_SSH_MAX_PER_SANDBOX", "RUNNER_SSH_MAX_CHANNELS"] {
            assert!(told(name, "0").contains("from 1 to 65536"), "{}", told(name, "0"));
        }
    }
}
