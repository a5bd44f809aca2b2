//! Crash points: named places before and after every effect where a test lets the runner die as by SIGKILL.
//!
//! They exist in builds with debug assertions alone, and only when `TEST_CRASH_FILE` names a file. What it holds is
//! looked at each time a point is reached:
//!
//! | content | what happens |
//! |---|---|
//! | nothing, or no file | nothing |
//! | `trace` | the point's name is appended to `{file}.trace` |
//! | `kill NAME N` | the process kills itself when NAME is reached the Nth time since this was written |
//!
//! The points around the [ports](crate::ports) are made by [`ports()`]; those inside an effect of several steps are
//! calls of [`point`].

#[cfg(debug_assertions)]
mod ports;

#[cfg(debug_assertions)]
pub use ports::ports;

/// A place at which the runner can be made to die.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_: &str) {}

/// The ports as they are: this build has no crash points.
#[cfg(not(debug_assertions))]
pub fn ports(ports: crate::ports::Ports) -> crate::ports::Ports {
    ports
}

#[cfg(debug_assertions)]
pub use armed::{enabled, point};

#[cfg(debug_assertions)]
mod armed {
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::sync::{LazyLock, Mutex, PoisonError};

    static FILE: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os("TEST_CRASH_FILE").map(PathBuf::from));

    /// The order under way, and how often its point was reached.
    static REACHED: Mutex<(String, u64)> = Mutex::new((String::new(), 0));

    /// Whether points are looked for at all.
    pub fn enabled() -> bool {
        FILE.is_some()
    }

    /// A place at which the runner can be made to die.
    pub fn point(name: &str) {
        let Some(file) = &*FILE else { return };
        let Ok(order) = std::fs::read_to_string(file) else { return };
        let mut words = order.split_whitespace();
        match (words.next(), words.next(), words.next().and_then(|count| count.parse().ok())) {
            (Some("trace"), ..) => trace(file, name),
            (Some("kill"), Some(wanted), Some(count)) if wanted == name => strike(&order, count),
            _ => {}
        }
    }

    fn trace(file: &Path, name: &str) {
        let path = file.with_added_extension("trace");
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
        // One write, so that lines of several threads do not mix.
        if let Err(error) = opened.and_then(|mut file| file.write_all(format!("{name}\n").as_bytes())) {
            tracing::error!(%error, "a crash point cannot be traced");
        }
    }

    fn strike(order: &str, count: u64) {
        let mut reached = REACHED.lock().unwrap_or_else(PoisonError::into_inner);
        if reached.0 != order {
            *reached = (order.to_owned(), 0);
        }
        reached.1 += 1;
        if reached.1 == count {
            // SAFETY: plain system calls.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
    }
}
