//! From texts to [`Config`]. Every setting is looked at before the first problem is told.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parse;
use super::problem::Problems;
use super::raw::Raw;
use super::reader::Reader;
use super::{Api, Config, Defaults, Http, LogConfig, LogFormat, Network, Paths, Secret, Tls, absent, host, ssh};
use crate::actors::vm::IdentityPolicy;
use crate::disk::StrategySetting;
use crate::fork::plan::MemorySetting;
use crate::http::proxy::{self, AccessLog};
use crate::ledger::RepairSetting;
use crate::sandbox::capacity::Limits;
use crate::sandbox::{StopMode, restart};
use crate::telemetry;

/// Tokens shorter than this are warned of.
const WEAK_TOKEN: usize = 16;

/// The API caps a poll here (PROTOCOL.md 2.2).
const LONGEST_POLL: Duration = Duration::from_secs(60);

/// The API takes a runner for dead after this long without healthcheck (PROTOCOL.md 3).
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(60);

/// The shipped unit gives the runner this long to stop; longer drains need a longer TimeoutStopSec.
const UNIT_STOP_TIMEOUT: Duration = Duration::from_secs(90);

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Checks all settings.
pub(super) fn check(raw: Raw) -> Result<Config, Problems> {
    let mut reader = Reader::new(raw);
    absent::check(&mut reader);
    let config = config(&mut reader);
    Problems::none_of(std::mem::take(&mut reader.problems))?;
    let Some(config) = config else {
        // A part is missing only after its problem was noted, so this line is never reached; it is here
        // because the types cannot say so.
        return Err(super::Problem::new("the configuration", "is incomplete for an unknown reason").into());
    };
    Ok(Config { warnings: reader.warnings, ignored: reader.ignored, ..config })
}

/// Reads every part first and only then looks whether all of them are there.
fn config(r: &mut Reader) -> Option<Config> {
    let (api, http, paths, network, defaults, log) = (api(r), http(r), paths(r), network(r), defaults(r), log(r));
    let ssh = ssh::read(r);
    let runner_domain = r.optional("RUNNER_DOMAIN", parse::host);
    let ch_binary = r.parse("CH_BINARY", parse::program);
    let kernel_cmdline = r.parse("CH_KERNEL_CMDLINE", kernel_cmdline);
    let daemon_start_timeout = seconds(r, "DAEMON_START_TIMEOUT_SEC", Duration::ZERO, HOUR);
    let sandbox_start_timeout = seconds(r, "SANDBOX_START_TIMEOUT_SEC", SECOND, HOUR);
    let stop_timeout = seconds(r, "RUNNER_STOP_TIMEOUT_SEC", Duration::ZERO, HOUR);
    let drain_timeout = drain_timeout(r);
    let disk_strategy = r.parse("RUNNER_DISK_STRATEGY", disk_strategy);
    let memory = r.parse("RUNNER_MEMORY", memory);
    let stop_mode = r.parse("RUNNER_STOP_MODE", stop_mode);
    let fork_identity = r.parse("RUNNER_FORK_IDENTITY", fork_identity);
    let max_starting = r.parse("RUNNER_MAX_STARTING", max_starting);
    let restart = restarts(r);
    let proxy = proxy(r);
    let max_queued = r.parse("RUNNER_MAX_QUEUED", |text| number32(text, 1, 65_536, " requests"));
    let limits = limits(r);
    let min_free_disk = r.parse("RUNNER_MIN_FREE_DISK_MB", mebibytes);
    let ledger_interval = seconds(r, "RUNNER_LEDGER_INTERVAL_SEC", SECOND, 24 * HOUR);
    let ledger_repair = r.parse("RUNNER_LEDGER_REPAIR", ledger_repair);
    Some(Config {
        api: api?,
        http: http?,
        proxy: proxy?,
        ssh: ssh?,
        runner_domain: runner_domain?,
        paths: paths?,
        ch_binary: ch_binary?,
        kernel_cmdline: kernel_cmdline?,
        network: network?,
        defaults: defaults?,
        daemon_start_timeout: daemon_start_timeout.map(|time| (!time.is_zero()).then_some(time))?,
        sandbox_start_timeout: sandbox_start_timeout?,
        stop_timeout: stop_timeout?,
        drain_timeout: drain_timeout?,
        disk_strategy: disk_strategy?,
        memory: memory?,
        stop_mode: stop_mode?,
        fork_identity: fork_identity?,
        max_starting: max_starting?,
        restart: restart?,
        max_queued: usize::try_from(max_queued?).ok()?,
        limits: limits?,
        min_free_disk: min_free_disk?,
        ledger_interval: ledger_interval?,
        ledger_repair: ledger_repair?,
        log: log?,
        warnings: Vec::new(),
        ignored: Vec::new(),
    })
}

pub(super) fn seconds(r: &mut Reader, name: &str, min: Duration, max: Duration) -> Option<Duration> {
    r.parse(name, |text| parse::duration(text, min, max))
}

fn api(r: &mut Reader) -> Option<Api> {
    let (base_url, token) = (base_url(r), token(r));
    let poll_timeout = poll_timeout(r);
    let poll_limit = r.parse("POLL_LIMIT", |text| number32(text, 1, 100, " jobs"));
    let healthcheck_interval = seconds(r, "HEALTHCHECK_INTERVAL", 10 * SECOND, HOUR);
    if healthcheck_interval.is_some_and(|interval| interval >= UNRESPONSIVE_AFTER) {
        r.warnings.push(
            "HEALTHCHECK_INTERVAL is 60s or more: the API will take this runner for unresponsive between two".into(),
        );
    }
    let healthcheck_timeout = seconds(r, "HEALTHCHECK_TIMEOUT", SECOND, MINUTE);
    let reconcile_interval = seconds(r, "RUNNER_RECONCILE_INTERVAL_SEC", SECOND, HOUR);
    let sync_interval = seconds(r, "RUNNER_SYNC_INTERVAL_SEC", SECOND, HOUR);
    Some(Api {
        base_url: base_url?,
        token: token?,
        poll_timeout: poll_timeout?,
        poll_limit: poll_limit?,
        healthcheck_interval: healthcheck_interval?,
        healthcheck_timeout: healthcheck_timeout?,
        reconcile_interval: reconcile_interval?,
        sync_interval: sync_interval?,
    })
}

/// The newer of two names when it is set, else the older; a word of warning when they disagree.
fn preferred(r: &mut Reader, newer: &'static str, older: &'static str) -> &'static str {
    if !r.raw.is_set(newer) {
        return older;
    }
    if r.raw.is_set(older) && r.text(newer) != r.text(older) {
        r.warnings.push(format!("{newer} and {older} differ; {newer} is used"));
    }
    newer
}

fn base_url(r: &mut Reader) -> Option<String> {
    let name = preferred(r, "DAYTONA_API_URL", "SERVER_URL");
    let url = r.parse(name, parse::base_url)?;
    r.warnings.extend(parse::base_url_warnings(name, &url));
    Some(url)
}

pub(super) fn token(r: &mut Reader) -> Option<Secret> {
    let name = preferred(r, "DAYTONA_RUNNER_TOKEN", "API_TOKEN");
    let token = r.parse(name, parse::token)?;
    if token.len() < WEAK_TOKEN {
        r.warnings
            .push(format!("{name} has fewer than {WEAK_TOKEN} characters; whoever guesses it runs code on this host"));
    }
    Some(Secret::new(token))
}

/// The original let the API cut longer polls; so do we, but tell.
fn poll_timeout(r: &mut Reader) -> Option<Duration> {
    let timeout = seconds(r, "POLL_TIMEOUT", SECOND, HOUR)?;
    if timeout > LONGEST_POLL {
        r.warnings.push("POLL_TIMEOUT is more than 60s; the API cuts polls at 60s, and so 60s are used".into());
    }
    Some(Duration::from_secs(timeout.min(LONGEST_POLL).as_secs()))
}

pub(super) fn http(r: &mut Reader) -> Option<Http> {
    let address =
        r.parse("RUNNER_HTTP_ADDRESS", |text| text.parse::<IpAddr>().map_err(|_| "an IP address to listen on".into()));
    let port = port(r);
    let tls = tls(r);
    Some(Http { address: address?, port: port?, tls: tls? })
}

fn proxy(r: &mut Reader) -> Option<proxy::Limits> {
    let header = r.parse("RUNNER_PROXY_MAX_HEADER_KB", |text| parse::number(text, 8, 1024, " KiB"));
    let body = r.parse("RUNNER_PROXY_MAX_BODY_MB", mebibytes);
    let connections = r.parse("RUNNER_PROXY_CONNECTIONS", |text| number32(text, 1, 1_000_000, " connections"));
    let wait = seconds(r, "RUNNER_PROXY_WAIT_SEC", Duration::ZERO, HOUR);
    let autostart = r.parse("RUNNER_PROXY_AUTOSTART", parse::boolean);
    let ping = seconds(r, "RUNNER_PROXY_PING_SEC", SECOND, HOUR);
    let access = r.parse("RUNNER_ACCESS_LOG", |text| match text.to_ascii_lowercase().as_str() {
        "off" => Ok(AccessLog::Off),
        "errors" => Ok(AccessLog::Errors),
        "all" => Ok(AccessLog::All),
        _ => Err("off, errors or all".into()),
    });
    Some(proxy::Limits {
        header: usize::try_from(header? << 10).ok()?,
        body: body.map(|limit| (limit > 0).then_some(limit))?,
        connections: usize::try_from(connections?).ok()?,
        wait: wait?,
        autostart: autostart?,
        access: access?,
        ping: ping?,
    })
}

fn port(r: &mut Reader) -> Option<u16> {
    const DEFAULT: u16 = 3006;
    let port = r.parse("API_PORT", |text| {
        text.parse::<u16>().map_err(|_| format!("a port from 1 to 65535, or 0 for {DEFAULT}"))
    })?;
    Some(if port == 0 { DEFAULT } else { port })
}

fn tls(r: &mut Reader) -> Option<Option<Tls>> {
    if !r.parse("ENABLE_TLS", parse::boolean)? {
        return Some(None);
    }
    let cert = r.parse("TLS_CERT_FILE", |text| pem(text, "-----BEGIN CERTIFICATE", "a certificate"));
    let key = r.parse("TLS_KEY_FILE", |text| pem(text, "PRIVATE KEY-----", "a private key"));
    Some(Some(Tls { cert: cert?, key: key? }))
}

fn pem(text: &str, mark: &str, what: &str) -> Result<PathBuf, String> {
    let expected = format!("a readable PEM file with {what}, as ENABLE_TLS is true");
    let path = parse::path(text).map_err(|_| expected.clone())?;
    let content = std::fs::read(&path).map_err(|error| format!("{expected}: {error}"))?;
    if String::from_utf8_lossy(&content).contains(mark) {
        Ok(path)
    } else {
        Err(format!("{expected}; there is none in it"))
    }
}

fn paths(r: &mut Reader) -> Option<Paths> {
    let sockets = r.parse("CH_SOCKETS_PATH", |text| parse::path(text).and_then(host::short_enough_for_sockets));
    let (sandboxes, snapshots) = (r.path("CH_SANDBOXES_PATH"), r.path("CH_SNAPSHOTS_PATH"));
    let (state, kernel) = (r.path("RUNNER_STATE_PATH"), r.path("CH_KERNEL_PATH"));
    let state_reserve = r.parse("RUNNER_STATE_RESERVE", |text| parse::number(text, 1, 4096, " MiB"));
    let initramfs = r.optional("CH_INITRAMFS_PATH", parse::path);
    let base_image = base_image(r);
    let firmware = r.path("CH_FIRMWARE_PATH");
    Some(Paths {
        sockets: sockets?,
        sandboxes: sandboxes?,
        snapshots: snapshots?,
        state: state?,
        state_reserve: state_reserve.map(|mib| mib << 20)?,
        kernel: kernel?,
        initramfs: initramfs?,
        base_image: base_image?,
        firmware: firmware?,
    })
}

/// The guide knows two places for one image; where only the other one is there, that one is meant.
fn base_image(r: &mut Reader) -> Option<PathBuf> {
    let named = r.path("CH_BASE_IMAGE_PATH")?;
    match other_layout(&named) {
        Some(other) if !named.exists() && other.exists() => {
            r.warnings.push(format!(
                "CH_BASE_IMAGE_PATH: {} is not there; {} is used",
                named.display(),
                other.display()
            ));
            Some(other)
        }
        _ => Some(named),
    }
}

/// `{name}/disk.qcow2` for `{name}.qcow2`, and the reverse.
pub(super) fn other_layout(image: &Path) -> Option<PathBuf> {
    if image.file_name()? == "disk.qcow2" {
        let dir = image.parent()?;
        let mut name = dir.file_name()?.to_owned();
        name.push(".qcow2");
        return Some(dir.with_file_name(name));
    }
    let stem = image.file_stem().filter(|_| image.extension().is_some_and(|extension| extension == "qcow2"))?;
    Some(image.with_file_name(stem).join("disk.qcow2"))
}

fn network(r: &mut Reader) -> Option<Network> {
    let bridge = r.parse("CH_BRIDGE_NAME", |text| {
        text.parse().map_err(|error| format!("a link name of 1 to 15 characters ({error})"))
    });
    let pool = r.parse("RUNNER_NETWORK_POOL", parse::pool);
    let deny = r.parse("RUNNER_NETWORK_DENY", parse::networks);
    if deny.as_ref().is_some_and(Vec::is_empty) {
        r.warnings.push(
            "RUNNER_NETWORK_DENY = none: sandboxes can reach link-local addresses, such as a cloud's metadata server"
                .into(),
        );
    }
    Some(Network { bridge: bridge?, pool: pool?, deny: deny? })
}

fn defaults(r: &mut Reader) -> Option<Defaults> {
    let vcpus = r.parse("CH_DEFAULT_CPUS", |text| number32(text, 1, 254, " vCPUs"));
    let memory_mib = r.parse("CH_DEFAULT_MEMORY_MB", |text| parse::number(text, 128, 16 << 20, " MiB"));
    let disk_gib = r.parse("CH_DEFAULT_DISK_GB", |text| parse::number(text, 1, 64 << 10, " GiB"));
    Some(Defaults { vcpus: vcpus?, memory_mib: memory_mib?, disk_gib: disk_gib? })
}

fn number32(text: &str, min: u32, max: u32, unit: &str) -> Result<u32, String> {
    let number = parse::number(text, min.into(), max.into(), unit)?;
    u32::try_from(number).map_err(|error| error.to_string())
}

fn log(r: &mut Reader) -> Option<LogConfig> {
    let level = r.parse("LOG_LEVEL", |text| telemetry::filter(text).map(|_| text.to_owned()));
    let format = r.parse("LOG_FORMAT", |text| match text.to_ascii_lowercase().as_str() {
        "human" | "text" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err("human or json".into()),
    });
    let file = r.optional("LOG_FILE_PATH", parse::path);
    let environment = Some(r.text("ENVIRONMENT")).filter(|text| !text.is_empty());
    Some(LogConfig { level: level?, format: format?, file: file?, environment })
}

fn drain_timeout(r: &mut Reader) -> Option<Duration> {
    let timeout = seconds(r, "RUNNER_DRAIN_TIMEOUT_SEC", Duration::ZERO, HOUR)?;
    if timeout >= UNIT_STOP_TIMEOUT {
        r.warnings.push(
            "RUNNER_DRAIN_TIMEOUT_SEC is 90s or more: set a longer TimeoutStopSec in runner-ch.service too".into(),
        );
    }
    Some(timeout)
}

fn memory(text: &str) -> Result<MemorySetting, String> {
    match text {
        "private" => Ok(MemorySetting::Private),
        "shared" => Ok(MemorySetting::Shared),
        "file" => Ok(MemorySetting::File),
        _ => Err("private, shared or file".to_owned()),
    }
}

fn stop_mode(text: &str) -> Result<StopMode, String> {
    match text {
        "checkpoint" => Ok(StopMode::Checkpoint),
        "shutdown" => Ok(StopMode::Shutdown),
        "kill" => Ok(StopMode::Kill),
        _ => Err("checkpoint, shutdown or kill".to_owned()),
    }
}

fn fork_identity(text: &str) -> Result<IdentityPolicy, String> {
    match text {
        "require" => Ok(IdentityPolicy::Require),
        "request" => Ok(IdentityPolicy::Request),
        "off" => Ok(IdentityPolicy::Off),
        _ => Err("require, request or off".to_owned()),
    }
}

fn restarts(r: &mut Reader) -> Option<restart::Settings> {
    let policy = r.parse("RUNNER_RESTART_POLICY", |text| match text {
        "never" => Ok(restart::Policy::Never),
        "on-failure" => Ok(restart::Policy::OnFailure),
        "always" => Ok(restart::Policy::Always),
        _ => Err("never, on-failure or always".to_owned()),
    });
    let most = r.parse("RUNNER_RESTART_MAX", |text| number32(text, 1, 1000, " restarts"));
    let window = seconds(r, "RUNNER_RESTART_WINDOW_SEC", SECOND, 24 * HOUR);
    Some(restart::Settings { policy: policy?, most: most?, window: window? })
}

fn ledger_repair(text: &str) -> Result<RepairSetting, String> {
    match text {
        "off" => Ok(RepairSetting::Off),
        "auto" => Ok(RepairSetting::Auto),
        _ => Err("off or auto".to_owned()),
    }
}

fn disk_strategy(text: &str) -> Result<StrategySetting, String> {
    match text {
        "auto" => Ok(StrategySetting::Auto),
        "reflink" => Ok(StrategySetting::Reflink),
        "overlay" => Ok(StrategySetting::Overlay),
        _ => Err("auto, reflink or overlay".into()),
    }
}

fn max_starting(text: &str) -> Result<usize, String> {
    if text == "auto" {
        // Unknown only where /proc and the affinity calls are withheld; two CPUs are a modest guess.
        return Ok(2 * std::thread::available_parallelism().map_or(2, usize::from));
    }
    let number = parse::number(text, 1, 1024, ", or auto for twice the number of CPUs")?;
    usize::try_from(number).map_err(|error| error.to_string())
}

fn limits(r: &mut Reader) -> Option<Limits> {
    let memory_percent = r.parse("RUNNER_MEMORY_OVERCOMMIT", overcommit);
    let vcpus_per_cpu = r.parse("RUNNER_CPU_OVERCOMMIT", |text| parse::number(text, 0, 1000, "; 0 for no limit"));
    let min_free_memory = r.parse("RUNNER_MIN_FREE_MEMORY_MB", mebibytes);
    Some(Limits { memory_percent: memory_percent?, vcpus_per_cpu: vcpus_per_cpu?, min_free_memory: min_free_memory? })
}

/// A ratio as whole percent: 1.5 is 150.
fn overcommit(text: &str) -> Result<u64, String> {
    let expected = || "a ratio from 0.01 to 1000 such as 1.5, or 0 for no limit".to_owned();
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 2 {
        return Err(expected());
    }
    let percent = |text: &str| text.parse::<u64>().map_err(|_| expected());
    let percent = percent(whole)? * 100 + percent(part)? * if part.len() == 1 { 10 } else { 1 };
    if percent <= 100_000 { Ok(percent) } else { Err(expected()) }
}

fn mebibytes(text: &str) -> Result<u64, String> {
    parse::number(text, 0, 16 << 20, " MiB; 0 for no limit").map(|mib| mib << 20)
}

/// The kernel reads at most 2048 bytes on x86-64 (COMMAND_LINE_SIZE) and drops the rest silently.
fn kernel_cmdline(text: &str) -> Result<String, String> {
    if text.len() < 2048 {
        Ok(text.to_owned())
    } else {
        Err("fewer than 2048 bytes; the kernel ignores the rest".into())
    }
}
