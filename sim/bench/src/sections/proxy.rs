//! Requests for a guest through the runner, next to nginx as a reverse proxy to the same guest.
//!
//! The guest's server is an nginx in the sandbox's namespace that owns the guest's address on `lo`, so that no
//! simulated machine is measured. The runner reaches it by sockets made in there. nginx reaches it twice: from outside
//! over a veth of its own, as a proxy on the host would, and from inside, where its clients cross that veth instead.

use std::time::Duration;

use anyhow::Context;

use super::Section;
use crate::args::Args;
use crate::isolate::{go_on, run};
use crate::process;
use crate::setup::Setup;
use crate::stats::{Samples, median, ratio};
use crate::table::{Cell, Table};
use crate::world::{PORT, TOKEN, World};
use load::Run;
use nginx::Nginx;

mod load;
mod nginx;

const BOX: &str = "proxy";
const NETNS: &str = "ns-proxy";
/// Addresses of the veth: outside, inside.
const OUTSIDE: &str = "10.99.0.1";
const INSIDE: &str = "10.99.0.2";
const GUEST: &str = "192.168.0.2";
/// Where the nginx proxies listen.
const NGINX_PORT: u16 = 3007;
/// As many as the runner has threads for HTTP.
const WORKERS: (usize, usize) = (2, 16);
const CONNECTIONS: [u32; 3] = [1, 32, 256];
const STREAM: u64 = 1 << 30;

/// A proxy that is measured.
struct Proxy {
    name: &'static str,
    url: String,
    pids: Vec<i32>,
}

/// Measures.
pub fn section(setup: &Setup, args: &Args) -> anyhow::Result<Section> {
    let mut section = Section::new("11. Requests for a guest, next to nginx as its reverse proxy");
    let world = World::new(setup, setup.subdir("proxy")?, "auto")?;
    let (runner, _) = world.runner()?;
    world.create(BOX)?;
    wire()?;
    let workers = std::thread::available_parallelism().map_or(WORKERS.0, usize::from).clamp(WORKERS.0, WORKERS.1);
    let guest = Nginx::guest(&setup.subdir("proxy-guest")?, NETNS, STREAM, workers)?;
    let outside = Nginx::proxy(&setup.subdir("proxy-out")?, None, ("127.0.0.1", NGINX_PORT), INSIDE, workers)?;
    let inside = Nginx::proxy(&setup.subdir("proxy-in")?, Some(NETNS), (INSIDE, NGINX_PORT), GUEST, workers)?;
    let proxies = [
        Proxy {
            name: "runner",
            url: format!("http://127.0.0.1:{PORT}/sandboxes/{BOX}/toolbox"),
            pids: vec![runner.pid()],
        },
        Proxy { name: "nginx outside", url: format!("http://127.0.0.1:{NGINX_PORT}"), pids: outside.pids()? },
        Proxy { name: "nginx inside", url: format!("http://{INSIDE}:{NGINX_PORT}"), pids: inside.pids()? },
    ];
    requests(&mut section, &proxies, args)?;
    streams(&mut section, &proxies, args)?;
    section.note(format!(
        "nginx: {workers} worker processes as the runner has threads, keep-alive to the guest, no access log in either"
    ));
    section.note("targets count against nginx outside; load generator, proxy and guest share this machine's CPUs");
    drop((guest, outside, inside));
    world.destroy(BOX)?;
    runner.stop()?;
    Ok(section)
}

/// Gives the guest's address to `lo` of its namespace, and lays a veth there.
fn wire() -> anyhow::Result<()> {
    let inside = format!("{INSIDE}/30");
    let guest = format!("{GUEST}/32");
    let outside = format!("{OUTSIDE}/30");
    for words in [
        vec!["-n", NETNS, "link", "set", "lo", "up"],
        vec!["-n", NETNS, "address", "add", &guest, "dev", "lo"],
        vec!["link", "add", "bench-out", "type", "veth", "peer", "name", "bench-in", "netns", NETNS],
        vec!["address", "add", &outside, "dev", "bench-out"],
        vec!["link", "set", "bench-out", "up"],
        vec!["-n", NETNS, "address", "add", &inside, "dev", "bench-in"],
        vec!["-n", NETNS, "link", "set", "bench-in", "up"],
    ] {
        run("ip", words)?;
    }
    // The runner's rules let nothing in from outside, and nothing of this benchmark either.
    run("ip", ["netns", "exec", NETNS, "nft", "flush", "ruleset"])
}

fn requests(section: &mut Section, proxies: &[Proxy], args: &Args) -> anyhow::Result<()> {
    let columns = ["", "n", "requests/s", "p50 ms", "p99 ms", "CPU us each", "failed", "requests : nginx outside"];
    let mut table = Table::new("Requests of 96 bytes, medians of runs taken in turns", &columns);
    for (connections, keep) in CONNECTIONS.map(|count| (count, true)).into_iter().chain([(32, false)]) {
        let mut runs: Vec<Vec<Run>> = proxies.iter().map(|_| Vec::new()).collect();
        for _ in 0..args.proxy_runs {
            for (proxy, runs) in proxies.iter().zip(&mut runs) {
                go_on()?;
                runs.push(load::wrk(&format!("{}/small", proxy.url), TOKEN, connections, keep, args, &proxy.pids)?);
            }
        }
        let rates: Vec<u64> = runs.iter().map(|runs| median(runs.iter().map(|run| run.per_second).collect())).collect();
        let of = |which: usize, part: fn(&Run) -> Duration| runs[which].iter().map(part).collect::<Samples>().median();
        let kind = if keep { "" } else { ", each on a new connection" };
        for (which, proxy) in proxies.iter().enumerate() {
            table.row(
                format!("{}, {connections} at once{kind}", proxy.name),
                [
                    Cell::Number(runs[which].len() as f64, 0),
                    Cell::Number(rates[which] as f64, 0),
                    Cell::ms(of(which, |run| run.p50)),
                    Cell::ms(of(which, |run| run.p99)),
                    Cell::Number(of(which, |run| run.cpu).as_secs_f64() * 1e6, 1),
                    Cell::Number(runs[which].iter().map(|run| run.failed).sum::<u64>() as f64, 0),
                    Cell::Number(rates[which] as f64 / rates[1] as f64, 2),
                ],
            );
        }
        let what = format!("{connections} at once{kind}: requests");
        section.at_least(&what, rates[0] as f64 / rates[1] as f64, 0.95, " x nginx");
        if keep {
            let p99 = ratio(of(0, |run| run.p99), of(1, |run| run.p99));
            section.at_most(&format!("{connections} at once: p99"), p99, 1.2, " x nginx");
        }
    }
    section.tables.push(table);
    Ok(())
}

fn streams(section: &mut Section, proxies: &[Proxy], args: &Args) -> anyhow::Result<()> {
    let columns = ["", "n", "MB/s", ": nginx outside", "RSS before MiB", "most meanwhile MiB"];
    let mut table = Table::new("1 GiB from the guest, medians of runs taken in turns", &columns);
    let mut rates: Vec<Vec<u64>> = proxies.iter().map(|_| Vec::new()).collect();
    let mut memory = vec![(u64::MAX, 0); proxies.len()];
    for _ in 0..args.proxy_runs {
        for (which, proxy) in proxies.iter().enumerate() {
            go_on()?;
            let rss = || proxy.pids.iter().map(|&pid| Ok(process::memory(pid)?.rss)).sum::<anyhow::Result<u64>>();
            let before = rss()?;
            let (took, most) = load::download(&format!("{}/large", proxy.url), TOKEN, STREAM, rss)
                .with_context(|| format!("1 GiB through {}", proxy.name))?;
            rates[which].push((STREAM as f64 / 1e6 / took.as_secs_f64()) as u64);
            memory[which] = (memory[which].0.min(before), memory[which].1.max(most));
        }
    }
    let rates: Vec<u64> = rates.into_iter().map(median).collect();
    for (which, proxy) in proxies.iter().enumerate() {
        let mib = |kib: u64| Cell::Number(kib as f64 / 1024.0, 1);
        table.row(
            proxy.name,
            [
                Cell::Number(f64::from(args.proxy_runs), 0),
                Cell::Number(rates[which] as f64, 0),
                Cell::Number(rates[which] as f64 / rates[1] as f64, 2),
                mib(memory[which].0),
                mib(memory[which].1),
            ],
        );
    }
    section.at_least("1 GiB from the guest", rates[0] as f64 / rates[1] as f64, 0.9, " x nginx");
    section.tables.push(table);
    Ok(())
}
