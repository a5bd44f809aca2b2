//! Variables of the original for what this version does not have. A value that merely tunes such a
//! thing, or asks for it as an optimisation, is accepted and reported; a value that demands something
//! an operator would miss is refused with the reason.

use super::reader::Reader;
use super::{parse, ssh};

const SSH: &str = "SSH_GATEWAY_ENABLE is not true";
const TAPS: &str = "the runner makes each TAP itself, inside the sandbox's namespace";
const VMS: &str = "no VMs are kept in stock; each sandbox starts its own";
const BALLOON: &str = "this version takes no memory back from running sandboxes";
const REMOTE: &str = "it belongs to remote mode; the runner works on its own host only";
const S3: &str = "this version has no object storage: snapshots stay on this host";
const CACHE: &str = "snapshots are removed when the API says so, not by age";
const FIRMWARE: &str = "guests boot CH_KERNEL_PATH directly";
const TLS: &str = "ENABLE_TLS is not true";

/// Never with an effect, whatever their value.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("CH_FIRMWARE_PATH", FIRMWARE),
    ("CH_TAP_CREATE_SCRIPT", TAPS),
    ("CH_TAP_DELETE_SCRIPT", TAPS),
    ("TAP_POOL_SIZE", TAPS),
    ("VMPOOL_SIZE", VMS),
    ("MEMORY_BALLOONING_INTERVAL_SEC", BALLOON),
    ("MEMORY_BALLOONING_MIN_VM_GB", BALLOON),
    ("MEMORY_BALLOONING_BUFFER_GB", BALLOON),
    ("MEMORY_BALLOONING_BUFFER_RATIO", BALLOON),
    ("CH_SSH_KEY_PATH", REMOTE),
    ("CACHE_RETENTION_DAYS", CACHE),
    ("AWS_REGION", S3),
    ("AWS_ENDPOINT_URL", S3),
    ("AWS_ACCESS_KEY_ID", S3),
    ("AWS_SECRET_ACCESS_KEY", S3),
    ("AWS_DEFAULT_BUCKET", S3),
];

/// Without an effect while the gateway is off.
const OF_SSH_GATEWAY: &[(&str, &str)] = &[
    ("SSH_GATEWAY_PORT", SSH),
    ("SSH_PUBLIC_KEY", SSH),
    ("SSH_HOST_KEY_PATH", SSH),
    ("SANDBOX_SSH_USER", SSH),
    ("SANDBOX_SSH_PORT", SSH),
    ("RUNNER_SSH_LOGIN_GRACE_SEC", SSH),
    ("RUNNER_SSH_MAX_CONNECTIONS", SSH),
    ("RUNNER_SSH_MAX_PER_SANDBOX", SSH),
    ("RUNNER_SSH_MAX_CHANNELS", SSH),
];

/// Optimisations of the original: off is what we do anyway, on is reported.
const OPTIMISATIONS: &[(&str, &str)] =
    &[("TAP_POOL_ENABLED", TAPS), ("VMPOOL_ENABLED", VMS), ("MEMORY_BALLOONING_ENABLED", BALLOON)];

/// Goes through all of them.
pub(super) fn check(reader: &mut Reader) {
    refuse_remote_mode(reader);
    if reader.parse("GPU_PASSTHROUGH_ENABLED", parse::boolean) == Some(true) {
        reader.refuse("GPU_PASSTHROUGH_ENABLED", "false: this version passes no GPUs through to sandboxes");
    }
    if reader.text("API_VERSION") != "2" {
        reader.refuse(
            "API_VERSION",
            "2: this runner polls for jobs; the older protocol, where the API calls the runner, is not served",
        );
    }
    for &(name, why) in OPTIMISATIONS {
        if reader.raw.is_set(name) && reader.parse(name, parse::boolean) == Some(true) {
            reader.ignored.push((name, why));
        }
    }
    let without_tls = [("TLS_CERT_FILE", TLS), ("TLS_KEY_FILE", TLS)];
    let tls_off = parse::boolean(&reader.text("ENABLE_TLS")) == Ok(false);
    let ssh_off = !ssh::enabled(&reader.text("SSH_GATEWAY_ENABLE"));
    let more = without_tls.iter().filter(|_| tls_off).chain(OF_SSH_GATEWAY.iter().filter(|_| ssh_off));
    for &(name, why) in WITHOUT_EFFECT.iter().chain(more) {
        if reader.raw.is_set(name) {
            reader.ignored.push((name, why));
        }
    }
}

fn refuse_remote_mode(reader: &mut Reader) {
    if reader.raw.is_set("CH_SSH_HOST") {
        reader.refuse(
            "CH_SSH_HOST",
            "no value: remote mode was for development, local mode is the supported one. Run the runner on that host: \
             copy the program to its /usr/local/bin/runner-ch-local and this configuration, without CH_SSH_HOST, to its \
             /etc/runner-ch-local.env, then enable runner-ch.service there (docs/configuration.md)",
        );
    }
}
