//! The texts of the NoCloud seed: meta-data, user-data and network-config for cloud-init.
//!
//! The toolbox daemon exits without DAYTONA_SANDBOX_ID (PROTOCOL.md 9), and images start it from
//! systemd. So the environment goes into a file that systemd and shells read alike, and a drop-in
//! makes the image's unit read it. The drop-in is written before the environment file, early in boot
//! (`bootcmd` runs ahead of `write_files`); when the daemon has been started before that, it is
//! started again at the end of cloud-init's run, and only then.

use std::collections::BTreeMap;

use super::{Error, Seed};

/// The environment in the guest, read by systemd (`EnvironmentFile=`) and by login shells.
pub(super) const ENVIRONMENT: &str = "/etc/daytona/environment";
/// Makes the image's unit read it.
pub(super) const DROP_IN: &str = "/etc/systemd/system/daytona-daemon.service.d/10-environment.conf";
/// Makes login shells read it.
pub(super) const PROFILE: &str = "/etc/profile.d/10-daytona.sh";

const DROP_IN_TEXT: &str = "[Service]\nEnvironmentFile=-/etc/daytona/environment\n";
const PROFILE_TEXT: &str =
    "if [ -r /etc/daytona/environment ]; then\n  set -a\n  . /etc/daytona/environment\n  set +a\nfi\n";
const RELOAD: &str = "if command -v systemctl >/dev/null; then systemctl daemon-reload; fi";
const START_AGAIN: &str = "\
unit=daytona-daemon.service
systemctl cat \"$unit\" >/dev/null 2>&1 || exit 0
pid=$(systemctl show --property MainPID --value \"$unit\")
if [ \"${pid:-0}\" -gt 0 ] && tr '\\0' '\\n' <\"/proc/$pid/environ\" | grep -q '^DAYTONA_SANDBOX_ID='; then exit 0; fi
systemctl daemon-reload
systemctl reset-failed \"$unit\"
systemctl --no-block restart \"$unit\"
";

/// Longest user-data, in bytes: more environment than a Linux process can be given anyway.
const LONGEST: usize = 1 << 20;

/// Identity of the instance: cloud-init does its once-per-instance work again when the id changes.
pub(super) fn meta_data(seed: &Seed) -> Result<String, Error> {
    let hostname = &seed.hostname;
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if hostname.is_empty() || hostname.len() > 64 || !hostname.chars().all(good) {
        let why = format!("{hostname:?} is no host name; expected 1 to 64 letters, digits, '-', '_' and '.'");
        return Err(Error::Seed { field: "the host name".into(), why });
    }
    Ok(format!("instance-id: {}\nlocal-hostname: {}\n", quoted(seed.sandbox.as_str()), quoted(hostname)))
}

/// The cloud-config document.
pub(super) fn user_data(seed: &Seed) -> Result<String, Error> {
    let files = [(ENVIRONMENT, environment(seed)?), (PROFILE, PROFILE_TEXT.to_owned())];
    let mut text = String::from("#cloud-config\n");
    let (drop_in, directory) = (DROP_IN, DROP_IN.rsplit_once('/').map_or("", |(directory, _)| directory));
    let early = format!("mkdir -p {directory}\ncat >{drop_in} <<'END'\n{DROP_IN_TEXT}END\n{RELOAD}\n");
    text.push_str(&format!("bootcmd:\n  - [cloud-init-per, instance, daytona-unit, sh, -c, {}]\n", quoted(&early)));
    text.push_str("write_files:\n");
    for (path, content) in files {
        let (path, content) = (quoted(path), quoted(&content));
        // Readable by all accounts of the guest: login shells read it, and they are the user's own.
        text.push_str(&format!("  - path: {path}\n    permissions: \"0644\"\n    content: {content}\n"));
    }
    text.push_str(&format!("runcmd:\n  - [sh, -c, {}]\n", quoted(START_AGAIN)));
    if text.len() > LONGEST {
        let why = format!("all of it together has {} bytes; at most {LONGEST} are possible", text.len());
        return Err(Error::Seed { field: "env".into(), why });
    }
    Ok(text)
}

/// Addresses of the guest's one link, found by its MAC; the same in every namespace.
pub(super) fn network_config(mac: [u8; 6], mtu: Option<u16>) -> String {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let mtu = mtu.map(|mtu| format!("    mtu: {mtu}\n")).unwrap_or_default();
    // The route is spelled out instead of `default` or gateway4: netplan of every age takes it.
    format!(
        "version: 2\nethernets:\n  eth0:\n    match:\n      macaddress: {}\n    set-name: eth0\n    dhcp4: false\n{mtu}    \
         addresses: [192.168.0.2/24]\n    routes:\n      - to: 0.0.0.0/0\n        via: 192.168.0.1\n    \
         nameservers:\n      addresses: [8.8.8.8, 8.8.4.4]\n",
        quoted(&mac)
    )
}

/// `NAME="value"` lines. Within double quotes systemd and POSIX shells take the same four characters
/// for special, and both keep line breaks.
fn environment(seed: &Seed) -> Result<String, Error> {
    let mut all: BTreeMap<&str, &str> = seed.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    all.insert("DAYTONA_SANDBOX_ID", seed.sandbox.as_str());
    all.insert("DAYTONA_SANDBOX_USER", &seed.os_user);
    let mut text = String::new();
    for (name, value) in all {
        check(name, value)?;
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            if "\"\\`$".contains(c) {
                text.push('\\');
            }
            text.push(c);
        }
        text.push_str("\"\n");
    }
    Ok(text)
}

fn check(name: &str, value: &str) -> Result<(), Error> {
    let good = |(at, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit());
    if name.is_empty() || !name.char_indices().all(good) {
        let why = "its name has to be letters, digits and '_', the first one no digit".into();
        return Err(Error::Seed { field: format!("the variable {name:?} of env"), why });
    }
    if value.contains('\0') {
        let why = "its value contains a NUL byte, which no process environment can hold".into();
        return Err(Error::Seed { field: format!("the variable {name:?} of env"), why });
    }
    Ok(())
}

/// A double-quoted scalar that JSON and YAML 1.1 readers understand alike. Escaped is what some YAML
/// reader refuses or changes when it stands there as it is: control characters, line separators, the
/// byte order mark. Characters beyond U+FFFF stay: the surrogate pairs of JSON mean something else in
/// YAML.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' | '\u{10000}'.. => out.push(c),
            c => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}
