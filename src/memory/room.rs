//! How much room is made for guest pages before a pause.

use procfs::{Current, Meminfo};

/// The guest goes on writing between the first scan and the pause.
const MARGIN: u64 = 16 << 20;
/// In units of huge pages.
const UNIT: u64 = 2 << 20;

/// Bytes for a VM that has written `written` bytes, never more than `cap` and than half of what the host
/// has left. What does not fit is written to the file during the pause, which takes longer.
pub(super) fn wanted(written: u64, cap: u64) -> usize {
    let ideal = written.saturating_add(written / 4).saturating_add(MARGIN);
    let bytes = ideal.min(cap).min(available() / 2);
    if bytes < written {
        tracing::warn!(written, room = bytes, "not all written pages fit in memory: the pause will be longer");
    }
    // A few MiB at most here, and all of it on a host that the kernel does not lie about.
    usize::try_from(bytes.next_multiple_of(UNIT).max(UNIT)).unwrap_or(UNIT as usize)
}

/// Bytes that the host can give without swapping. Where the kernel does not tell, nothing but the cap
/// limits the room, and the kernel itself refuses what it cannot give.
fn available() -> u64 {
    match Meminfo::current() {
        Ok(Meminfo { mem_available: Some(bytes), .. }) => bytes,
        other => {
            tracing::debug!(?other, "the host's free memory is not known");
            u64::MAX
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_margin_within_the_cap() {
        assert_eq!(wanted(0, 1 << 30), 16 << 20);
        assert_eq!(wanted(64 << 20, 1 << 30), 96 << 20);
        assert_eq!(wanted(64 << 20, 8 << 20), 8 << 20);
        assert_eq!(wanted(64 << 20, 0), 2 << 20);
        let most = usize::try_from(available() / 2).unwrap();
        assert!(wanted(u64::MAX, u64::MAX) < most + most / 2, "a host cannot be exhausted");
    }
}
