//! Load: wrk for requests, curl for streams.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::args::Args;
use crate::isolate::until;
use crate::process;

const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a proxy's memory.
const LOOK: Duration = Duration::from_millis(10);

/// What wrk has measured.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Answers per second.
    pub per_second: u64,
    /// Median latency.
    pub p50: Duration,
    /// Latency of the slowest hundredth.
    pub p99: Duration,
    /// CPU time of the proxy per request.
    pub cpu: Duration,
    /// Answers that were no 2xx, and broken connections.
    pub failed: u64,
}

/// Asks with so many connections for as long as the arguments say.
pub fn wrk(url: &str, token: &str, connections: u32, keep: bool, args: &Args, pids: &[i32]) -> anyhow::Result<Run> {
    let cpu = || pids.iter().map(|&pid| process::cpu(pid)).sum::<anyhow::Result<Duration>>();
    let mut command = Command::new("wrk");
    command.args(["-t", "1", "--latency", "-c", &connections.to_string(), "-d", &format!("{}s", args.proxy_seconds)]);
    command.arg("-H").arg(format!("Authorization: Bearer {token}"));
    if !keep {
        command.args(["-H", "Connection: close"]);
    }
    let before = cpu()?;
    let output = command.arg(url).stdin(Stdio::null()).output().context("cannot start wrk")?;
    let used = cpu()? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk {url} failed: {}", String::from_utf8_lossy(&output.stderr));
    let mut run = read(&text).with_context(|| format!("wrk {url} said:\n{text}"))?;
    let (requests, took) = (run.cpu.as_secs_f64(), used.as_secs_f64());
    run.cpu = Duration::from_secs_f64(if requests > 0.0 { took / requests } else { 0.0 });
    Ok(run)
}

/// Reads wrk's report; `cpu` is the number of requests for now.
fn read(text: &str) -> Option<Run> {
    let after = |mark: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(mark))?;
        line.trim_start().strip_prefix(mark)?.split_whitespace().next()
    };
    let line = text.lines().find(|line| line.contains(" requests in "))?;
    let requests: f64 = line.split_whitespace().next()?.parse().ok()?;
    let numbers = |mark: &str| {
        let rest = text.lines().find_map(|line| line.trim_start().strip_prefix(mark)).unwrap_or_default();
        rest.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>()
    };
    Some(Run {
        per_second: after("Requests/sec:")?.parse::<f64>().ok()? as u64,
        p50: duration(after("50%")?)?,
        p99: duration(after("99%")?)?,
        cpu: Duration::from_secs_f64(requests),
        failed: numbers("Socket errors:") + numbers("Non-2xx or 3xx responses:"),
    })
}

fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let scale = match &text[unit..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Some(Duration::from_secs_f64(text[..unit].parse::<f64>().ok()? * scale))
}

/// Fetches so many bytes; how long it took, and the most that `rss` told meanwhile.
pub fn download(
    url: &str,
    token: &str,
    bytes: u64,
    rss: impl Fn() -> anyhow::Result<u64>,
) -> anyhow::Result<(Duration, u64)> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--output", "/dev/null", "--write-out", "%{size_download}"]);
    command.arg("--header").arg(format!("Authorization: Bearer {token}")).arg(url);
    let began = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start curl")?;
    let mut most = 0;
    let took = until("curl ends", PATIENCE, LOOK, || {
        let ended = child.try_wait()?.map(|_| began.elapsed());
        most = most.max(rss()?);
        Ok(ended)
    })?;
    let output = child.wait_with_output()?;
    let size = String::from_utf8_lossy(&output.stdout).trim().parse::<u64>();
    ensure!(output.status.success() && size == Ok(bytes), "curl ended with {}, {size:?} bytes", output.status);
    Ok((took, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let text = "Running 1s test\n  Latency Distribution\n     50%  512.00us\n     75%    1.00ms\n     99%    2.50ms\n  \
            1000 requests in 1.00s, 1.00MB read\n  Socket errors: connect 1, read 2, write 0, timeout 3\n  \
            Non-2xx or 3xx responses: 4\nRequests/sec:    999.50\n";
        let run = read(text).unwrap();
        assert_eq!((run.per_second, run.failed, run.cpu), (999, 10, Duration::from_secs(1000)));
        assert_eq!((run.p50, run.p99), (Duration::from_micros(512), Duration::from_micros(2500)));
        assert!(read("no report").is_none());
    }
}
