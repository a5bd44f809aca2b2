//! What `/proc` tells about a process.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// Memory of a process in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Pages that are resident.
    pub rss: u64,
    /// The same, shared pages divided by the number of their users.
    pub pss: u64,
}

/// Reads `/proc/PID/smaps_rollup`.
pub fn memory(pid: i32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.with_context(|| format!("{path} has no {name}"))
    };
    Ok(Memory { rss: field("Rss:")?, pss: field("Pss:")? })
}

/// CPU time of a process, all its threads, user and system, in the kernel's ticks of usually 10 ms.
pub fn cpu(pid: i32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let ticks = ticks(&text).with_context(|| format!("{path} has no known form"))?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// utime and stime, the 14th and 15th field; the second one is a name that may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Number of threads.
pub fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Pids of VMMs whose API socket lies in this directory.
pub fn vmms(sockets: &Path) -> Vec<i32> {
    let mark = format!("{}/", sockets.display());
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut arguments = command.split(|&byte| byte == 0);
        arguments.any(|argument| argument == b"--api-socket")
            && arguments.next().is_some_and(|socket| socket.starts_with(mark.as_bytes()))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_odd_names() {
        assert_eq!(ticks("7 (a) b) S 1 7 7 0 -1 4194304 1 2 3 4 150 25 0 0 20 0"), Some(175));
        assert_eq!(ticks("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_can_be_measured() {
        let pid = std::process::id().cast_signed();
        let memory = memory(pid).unwrap();
        assert!(memory.rss >= memory.pss && memory.pss > 0);
        assert!(cpu(pid).is_ok() && threads(pid) > 0);
    }
}
