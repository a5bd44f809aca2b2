//! The files that are shipped beside the program say what the program does: every setting stands in the
//! sample and in the documentation with its default, the sample loads, the units are good systemd.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use runner_ch::config::Config;

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(shipped(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Variable and default, as text, of every key in config/default.toml.
fn defaults() -> BTreeMap<String, String> {
    let keys = text("config/default.toml");
    let pairs = keys.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
    pairs.map(|(key, value)| (key.to_uppercase(), value.trim_matches('"').to_owned())).collect()
}

/// The variables of an environment file as systemd reads it; with `all`, those in comments too.
fn variables(file: &str, all: bool) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in file.lines() {
        let line = if all { line.strip_prefix('#').unwrap_or(line) } else { line };
        let Some((name, value)) = line.split_once('=') else { continue };
        if !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_') {
            found.push((name.to_owned(), value.to_owned()));
        }
    }
    found
}

fn filled_in(variables: Vec<(String, String)>) -> impl Iterator<Item = (String, String)> {
    variables.into_iter().map(|(name, value)| match name.as_str() {
        "SERVER_URL" => (name, "http://localhost:3000/api".to_owned()),
        "API_TOKEN" => (name, "0123456789abcdef0123456789abcdef".to_owned()),
        _ => (name, value),
    })
}

#[test]
fn every_default_is_explained_where_it_stands() {
    let keys = text("config/default.toml");
    let lines: Vec<&str> = keys.lines().collect();
    for pair in lines.windows(2).filter(|pair| pair[1].contains(" = ") && !pair[1].starts_with('#')) {
        assert!(pair[0].starts_with("# ") && !pair[0].starts_with("# ---"), "{:?} has no comment", pair[1]);
    }
    assert!(defaults().len() > 60);
}

#[test]
fn the_sample_has_every_variable_once_and_no_other() {
    let sample = variables(&text("config/runner-ch-local.env.sample"), true);
    let known = defaults();
    let mut names: Vec<&str> = sample.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let expected: Vec<&str> = known.keys().map(String::as_str).collect();
    assert_eq!(names, expected);
}

#[test]
fn what_the_sample_shows_in_comments_are_the_defaults() {
    let sample = text("config/runner-ch-local.env.sample");
    let active: Vec<(String, String)> = variables(&sample, false);
    let shown = variables(&sample, true).into_iter().filter(|pair| !active.contains(pair));
    let known = defaults();
    for (name, value) in shown {
        assert_eq!(value, known[&name], "{name}");
    }
}

#[test]
fn the_sample_demands_url_and_token_and_then_loads_without_a_word() {
    let sample = text("config/runner-ch-local.env.sample");
    let problems = Config::load(variables(&sample, false).into_iter()).unwrap_err().to_string();
    assert_eq!(problems.lines().count(), 2, "{problems}");
    let config = Config::load(filled_in(variables(&sample, false))).unwrap();
    assert_eq!((config.warnings, config.ignored), (Vec::<String>::new(), Vec::new()));
    let config = Config::load(filled_in(variables(&sample, true))).unwrap();
    assert_eq!(config.warnings, Vec::<String>::new(), "all defaults, written down");
}

#[test]
fn the_environment_file_of_the_guide_loads() {
    let guide = "ENVIRONMENT=production\nLOG_LEVEL=info\nSERVER_URL=\nAPI_PORT=3006\nAPI_TOKEN=\nSSH_GATEWAY_ENABLE=false\n\
        CH_SOCKETS_PATH=/var/run/cloud-hypervisor\nCH_SANDBOXES_PATH=/var/lib/cloud-hypervisor/sandboxes\n\
        CH_SNAPSHOTS_PATH=/var/lib/cloud-hypervisor/snapshots\nCH_KERNEL_PATH=/var/lib/cloud-hypervisor/kernels/vmlinuz\n\
        CH_INITRAMFS_PATH=/var/lib/cloud-hypervisor/kernels/initrd.img\n\
        CH_BASE_IMAGE_PATH=/var/lib/cloud-hypervisor/snapshots/ubuntu-base.1/disk.qcow2\nCH_BRIDGE_NAME=br0\n\
        CH_DEFAULT_CPUS=2\nCH_DEFAULT_MEMORY_MB=2048\nCH_DEFAULT_DISK_GB=20\n";
    let config = Config::load(filled_in(variables(guide, false))).unwrap();
    assert!(config.ignored.is_empty(), "{:?}", config.ignored);
    assert_eq!(config.log.environment.as_deref(), Some("production"));
}

#[test]
fn the_documentation_has_every_variable_with_its_default() {
    let docs = text("docs/configuration.md");
    let rows: Vec<Vec<&str>> = docs
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
        .collect();
    let known = defaults();
    for (name, default) in &known {
        let row = rows.iter().find(|row| row[1] == name).unwrap_or_else(|| panic!("{name} is missing"));
        let expected = if default.is_empty() { "—" } else { default };
        assert_eq!(row[2], expected, "{name}");
    }
    for row in rows {
        assert!(known.contains_key(row[1]), "{} is no setting", row[1]);
    }
}

#[test]
fn stopping_the_unit_leaves_the_vms_alone() {
    let unit = text("systemd/runner-ch.service");
    let lines: Vec<&str> = unit.lines().collect();
    for line in [
        "Type=notify",
        "NotifyAccess=main",
        "KillMode=process",
        "OOMPolicy=continue",
        "Delegate=yes",
        "RuntimeDirectoryPreserve=yes",
        "Restart=on-failure",
        "RestartPreventExitStatus=64 78",
        "EnvironmentFile=/etc/runner-ch-local.env",
        "ExecStart=/usr/local/bin/runner-ch-local",
        "StandardOutput=append:/var/log/runner-ch-local.log",
        "StandardError=append:/var/log/runner-ch-local.log",
    ] {
        assert!(lines.contains(&line), "{line} is missing");
    }
    let stop = lines.iter().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let drain = &defaults()["RUNNER_DRAIN_TIMEOUT_SEC"];
    assert!(stop.parse::<u64>().unwrap() > 2 * drain.parse::<u64>().unwrap());
    for mounts in ["PrivateTmp=", "ProtectSystem=", "ProtectHome=", "PrivateDevices=", "PrivateMounts="] {
        assert!(!lines.iter().any(|line| line.starts_with(mounts)), "{mounts} hides /run/netns from the host");
    }
}

#[test]
fn the_units_are_good_systemd() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("systemd-analyze is not installed: the units were not verified");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for unit in ["runner-ch.service", "daytona-tunnel.service"] {
        // The programs that the units start need not be installed where the tests run.
        let own = text(&format!("systemd/{unit}"));
        let own = own.replace("/usr/local/bin/runner-ch-local", "/bin/true").replace("/usr/bin/ssh ", "/bin/true ");
        let path = dir.path().join(unit);
        std::fs::write(&path, own).unwrap();
        let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
        let told = String::from_utf8_lossy(&verified.stderr);
        // Faults of a unit do not always change the exit code, and other units' faults are told too.
        let ours: Vec<&str> = told.lines().filter(|line| line.contains(unit)).collect();
        assert!(verified.status.success() && ours.is_empty(), "{unit}: {told}");
    }
}
