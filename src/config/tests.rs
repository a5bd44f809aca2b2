//! The configuration as an operator meets it: variables in, settings or all problems out.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const GOOD: &[(&str, &str)] = &[("SERVER_URL", "http://localhost:3000/api"), ("API_TOKEN", "0123456789abcdef0123")];

fn load(more: &[(&str, &str)]) -> Result<Config, Problems> {
    let kept = GOOD.iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name));
    let pairs = kept.chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(pairs)
}

fn problems(more: &[(&str, &str)]) -> String {
    load(more).expect_err("must be refused").to_string()
}

#[test]
fn the_defaults_are_those_of_the_original() {
    let config = load(&[]).unwrap();
    assert_eq!((config.http.port, config.http.address.to_string(), config.http.tls), (3006, "0.0.0.0".into(), None));
    assert_eq!(config.api.base_url, "http://localhost:3000/api");
    assert_eq!((config.api.poll_timeout, config.api.poll_limit), (Duration::from_secs(30), 10));
    assert_eq!(config.api.healthcheck_interval, Duration::from_secs(30));
    assert_eq!(config.api.healthcheck_timeout, Duration::from_secs(10));
    assert_eq!(config.defaults, Defaults { vcpus: 2, memory_mib: 2048, disk_gib: 20 });
    assert_eq!(config.daemon_start_timeout, Some(Duration::from_secs(60)));
    assert_eq!(config.sandbox_start_timeout, Duration::from_secs(30));
    assert_eq!(config.paths.sockets, PathBuf::from("/var/run/cloud-hypervisor"));
    assert_eq!(config.paths.sandboxes, PathBuf::from("/var/lib/cloud-hypervisor/sandboxes"));
    assert_eq!(config.network.bridge.as_str(), "br0");
    assert_eq!(config.network.pool.to_string(), "10.220.0.0/16");
    assert_eq!(config.ch_binary, PathBuf::from("cloud-hypervisor"));
    let limits = Limits { memory_percent: 500, vcpus_per_cpu: 16, min_free_memory: 512 << 20 };
    assert_eq!((config.limits, config.min_free_disk), (limits, 1 << 30));
    assert!(config.max_starting >= 2 && config.max_starting.is_multiple_of(2));
    assert_eq!((config.warnings, config.ignored), (Vec::<String>::new(), Vec::new()));
}

#[test]
fn every_problem_is_told_at_once() {
    let text = Config::load(
        [
            ("API_PORT", "99999"),
            ("POLL_LIMIT", "0"),
            ("HEALTHCHECK_INTERVAL", "5s"),
            ("CH_BRIDGE_NAME", "a/b"),
            ("CH_SSH_HOST", "root@h"),
            ("SERVER_URL", "localhost"),
            ("RUNNER_NETWORK_POOL", "10.220.0.0/33"),
            ("LOG_LEVEL", "loud"),
            ("ENABLE_TLS", "true"),
            ("RUNNER_DISK_STRATEGY", "zfs"),
        ]
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    )
    .unwrap_err()
    .to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 12, "{text}");
    for start in [
        "API_PORT = \"99999\": expected a port",
        "POLL_LIMIT = \"0\": expected a whole number from 1 to 100",
        "HEALTHCHECK_INTERVAL = \"5s\": expected a duration from 10s",
        "CH_BRIDGE_NAME = \"a/b\": expected",
        "CH_SSH_HOST = \"root@h\": expected no value: remote mode was for development",
        "SERVER_URL = \"localhost\": expected an http:// or https:// URL",
        "RUNNER_NETWORK_POOL = \"10.220.0.0/33\": expected",
        "LOG_LEVEL = \"loud\": expected trace, debug",
        "TLS_CERT_FILE: expected a readable PEM file",
        "TLS_KEY_FILE: expected a readable PEM file",
        "RUNNER_DISK_STRATEGY = \"zfs\": expected auto, reflink or overlay",
        "API_TOKEN: expected the runner's API key",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(start)), "{start:?} is missing in\n{text}");
    }
}

#[test]
fn the_newer_names_win() {
    let config =
        load(&[("DAYTONA_API_URL", "https://api.example.org/api/"), ("DAYTONA_RUNNER_TOKEN", "fedcba9876543210")])
            .unwrap();
    assert_eq!(config.api.base_url, "https://api.example.org/api");
    assert_eq!(config.api.token.expose(), "fedcba9876543210");
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(!format!("{config:?}").contains("fedcba9876543210"));
}

#[test]
fn tokens_are_demanded_masked_and_weighed() {
    assert!(problems(&[("API_TOKEN", "")]).starts_with("API_TOKEN: expected"));
    assert!(problems(&[("API_TOKEN", "<your-runner-api-token>")]).contains("sample text"));
    let text = problems(&[("API_TOKEN", "hunter2 hunter2")]);
    assert!(text.starts_with("API_TOKEN = *** (15 characters)") && !text.contains("hunter2"), "{text}");
    let weak = load(&[("API_TOKEN", "short")]).unwrap().warnings;
    assert!(weak.len() == 1 && weak[0].contains("fewer than 16") && !weak[0].contains("short"), "{weak:?}");
    let text = problems(&[("SERVER_URL", "http://me:hunter2@h/api")]);
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn what_is_missing_is_refused_where_it_is_demanded() {
    for (name, value) in [("GPU_PASSTHROUGH_ENABLED", "1"), ("API_VERSION", "0"), ("CH_SSH_HOST", "h")] {
        assert!(problems(&[(name, value)]).starts_with(name), "{name}");
    }
}

#[test]
fn what_is_missing_is_reported_where_it_is_only_tuning() {
    let config = load(&[
        ("TAP_POOL_ENABLED", "true"),
        ("TAP_POOL_SIZE", "10"),
        ("VMPOOL_ENABLED", "false"),
        ("MEMORY_BALLOONING_ENABLED", "false"),
        ("SSH_GATEWAY_ENABLE", "false"),
        ("GPU_PASSTHROUGH_ENABLED", "false"),
        ("API_VERSION", "2"),
        ("CH_SSH_HOST", ""),
        ("AWS_DEFAULT_BUCKET", "b"),
        ("TLS_CERT_FILE", "/etc/x.pem"),
    ])
    .unwrap();
    let names: Vec<&str> = config.ignored.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["TAP_POOL_ENABLED", "TAP_POOL_SIZE", "AWS_DEFAULT_BUCKET", "TLS_CERT_FILE"]);
    assert!(config.ignored.iter().all(|(_, why)| !why.is_empty()));
    let odd = load(&[("SSH_GATEWAY_ENABLE", "yes")]).unwrap();
    assert!(odd.warnings[0].contains("taken for off"), "{:?}", odd.warnings);
}

#[test]
fn special_values() {
    let config = load(&[
        ("DAEMON_START_TIMEOUT_SEC", "0"),
        ("CH_INITRAMFS_PATH", ""),
        ("API_PORT", "0"),
        ("POLL_TIMEOUT", "90s"),
        ("RUNNER_NETWORK_DENY", "none"),
        ("RUNNER_MAX_STARTING", "3"),
        ("RUNNER_STOP_TIMEOUT_SEC", "0"),
        ("RUNNER_DRAIN_TIMEOUT_SEC", "2m"),
        ("HEALTHCHECK_INTERVAL", "60"),
        ("RUNNER_DISK_STRATEGY", "overlay"),
        ("LOG_FORMAT", "json"),
        ("RUNNER_MEMORY_OVERCOMMIT", "1.5"),
        ("RUNNER_CPU_OVERCOMMIT", "0"),
        ("RUNNER_MAX_QUEUED", "7"),
        ("RUNNER_MIN_FREE_MEMORY_MB", "0"),
        ("RUNNER_MIN_FREE_DISK_MB", "64"),
    ])
    .unwrap();
    assert_eq!(config.limits, Limits { memory_percent: 150, vcpus_per_cpu: 0, min_free_memory: 0 });
    assert_eq!((config.min_free_disk, config.max_queued), (64 << 20, 7));
    assert_eq!((config.daemon_start_timeout, config.paths.initramfs, config.http.port), (None, None, 3006));
    assert_eq!((config.api.poll_timeout, config.max_starting), (Duration::from_secs(60), 3));
    assert!(config.network.deny.is_empty() && config.stop_timeout.is_zero());
    assert_eq!((config.disk_strategy, config.log.format), (StrategySetting::Overlay, LogFormat::Json));
    assert_eq!(config.warnings.len(), 4, "{:?}", config.warnings);
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    for bad in ["-1", "x", "1.234", "1e3", ".5", "1.", "1000.01", "20000", "1.-5", "+1"] {
        let text = problems(&[("RUNNER_MEMORY_OVERCOMMIT", bad)]);
        assert!(text.contains("RUNNER_MEMORY_OVERCOMMIT") && text.contains("a ratio"), "{bad}: {text}");
    }
    assert_eq!(load(&[("RUNNER_MEMORY_OVERCOMMIT", "0.05")]).unwrap().limits.memory_percent, 5);
    assert_eq!(load(&[("RUNNER_MEMORY_OVERCOMMIT", "1000")]).unwrap().limits.memory_percent, 100_000);
    assert!(problems(&[("RUNNER_MIN_FREE_DISK_MB", "1GB")]).contains("MiB"));
}

#[test]
fn tls_files_are_looked_into() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cert = file("cert.pem", "-----BEGIN CERTIFICATE-----\n");
    let key = file("key.pem", "-----BEGIN PRIVATE KEY-----\n");
    let with = |cert: &str, key: &str| load(&[("ENABLE_TLS", "true"), ("TLS_CERT_FILE", cert), ("TLS_KEY_FILE", key)]);
    let tls = with(&cert, &key).unwrap().http.tls.unwrap();
    assert_eq!((tls.cert.to_str(), tls.key.to_str()), (Some(cert.as_str()), Some(key.as_str())));
    let swapped = with(&key, &cert).unwrap_err().to_string();
    assert_eq!(swapped.matches("there is none in it").count(), 2, "{swapped}");
}

#[test]
fn the_base_image_may_lie_in_either_place() {
    let dir = tempfile::tempdir().unwrap();
    let flat = dir.path().join("ubuntu-base.1.qcow2");
    let nested = dir.path().join("ubuntu-base.1/disk.qcow2");
    let used = |named: &PathBuf| load(&[("CH_BASE_IMAGE_PATH", named.to_str().unwrap())]).unwrap();
    assert_eq!(used(&nested).paths.base_image, nested, "nothing is there: the name stays");
    std::fs::write(&flat, "x").unwrap();
    let config = used(&nested);
    assert_eq!(config.paths.base_image, flat);
    assert!(config.warnings[0].contains("is used"), "{:?}", config.warnings);
    std::fs::create_dir(nested.parent().unwrap()).unwrap();
    std::fs::write(&nested, "x").unwrap();
    assert_eq!((used(&nested).paths.base_image, used(&flat).paths.base_image), (nested.clone(), flat.clone()));
    std::fs::remove_file(&flat).unwrap();
    assert_eq!(used(&flat).paths.base_image, nested);
}

#[test]
fn a_host_without_anything_is_told_everything() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let env = [
        ("CH_SOCKETS_PATH", at("run")),
        ("CH_SANDBOXES_PATH", at("lib/sandboxes")),
        ("CH_SNAPSHOTS_PATH", at("lib/snapshots")),
        ("RUNNER_STATE_PATH", at("state")),
        ("CH_KERNEL_PATH", at("vmlinuz")),
        ("CH_INITRAMFS_PATH", at("initrd")),
        ("CH_BASE_IMAGE_PATH", at("base/disk.qcow2")),
        ("CH_BINARY", at("chv")),
    ];
    let pairs: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let config = load(&pairs).unwrap();
    let text = config.check_host().unwrap_err().to_string();
    for name in ["CH_KERNEL_PATH", "CH_INITRAMFS_PATH", "CH_BASE_IMAGE_PATH", "CH_BINARY"] {
        assert_eq!(text.lines().filter(|line| line.starts_with(name)).count(), 1, "{name} in\n{text}");
    }
    assert!(text.contains("base.qcow2 was looked for too"), "{text}");
    assert!(config.paths.state.is_dir() && config.paths.sandboxes.is_dir(), "directories are made all the same");
}

proptest! {
    // A case reads the built-in defaults anew, some 50 ms without optimisation.
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever stands in the variables: an answer, never a panic, and no token in it.
    #[test]
    fn any_text_is_answered(values in proptest::collection::vec("\\PC{0,40}|[0-9smh.]{0,8}|[0-9./,]{0,20}", 100)) {
        let names: Vec<String> = raw::DEFAULTS
            .lines()
            .filter_map(|line| line.split_once(" = "))
            .filter(|(key, _)| !key.starts_with('#') && *key != "runner_config_file")
            .map(|(key, _)| key.to_uppercase())
            .collect();
        prop_assert!(names.len() > 60 && names.len() <= values.len());
        let token = "hunter2-hunter2-hunter2 ";
        let env = names.into_iter().zip(values).map(|(name, value)| {
            let value = if name.contains("TOKEN") { format!("{token}{value}") } else { value };
            (name, value)
        });
        let told = format!("{:?}", Config::load(env));
        prop_assert!(!told.contains("hunter2"));
    }
}
