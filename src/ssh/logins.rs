//! How failed logins are slowed down and refused. No I/O, no clock of its own.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// A source's first failure is answered after this, each further one after twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A source with so many failures is refused.
const FAILURES: u32 = 20;
/// For so long.
const REFUSAL: Duration = Duration::from_secs(60);
/// A source that was quiet for so long starts anew.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// So many failures of all sources together within [`MINUTE`], and only sources that have logged in lately are let on.
const ALL_FAILURES: usize = 300;
const MINUTE: Duration = Duration::from_secs(60);
/// How long a login speaks for its source.
const TRUSTED: Duration = Duration::from_secs(24 * 3600);
/// Sources that are remembered at most; the one that was quiet longest is forgotten for a new one.
const SOURCES: usize = 4096;

/// Where a client comes from: its address, or its network where one host has as many addresses as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) >> 64 << 64;
                Self(Ipv6Addr::from(network).into())
            }
            address => Self(address),
        }
    }
}

#[derive(Debug)]
struct History {
    failures: u32,
    /// Of the last failure or login.
    last: Instant,
    refused_until: Option<Instant>,
    login: Option<Instant>,
}

/// What is known about logins so far.
#[derive(Debug, Default)]
pub(super) struct Logins {
    sources: HashMap<Source, History>,
    /// The last failures of all sources, oldest first.
    all: VecDeque<Instant>,
}

impl Logins {
    /// Whether somebody may try to log in; if not, in how long.
    pub fn admit(&mut self, source: Source, now: Instant) -> Result<(), Duration> {
        let refused = self.sources.get(&source).and_then(|history| history.refused_until);
        if let Some(until) = refused.filter(|&until| until > now) {
            return Err(until - now);
        }
        while self.all.front().is_some_and(|&failure| now.saturating_duration_since(failure) >= MINUTE) {
            self.all.pop_front();
        }
        let trusted = self.trusts(source, now);
        match self.all.front() {
            Some(&oldest) if self.all.len() >= ALL_FAILURES && !trusted => {
                Err(MINUTE.saturating_sub(now.saturating_duration_since(oldest)))
            }
            _ => Ok(()),
        }
    }

    /// Somebody from there has logged in lately.
    pub fn trusts(&self, source: Source, now: Instant) -> bool {
        let login = self.sources.get(&source).and_then(|history| history.login);
        login.is_some_and(|login| now.saturating_duration_since(login) < TRUSTED)
    }

    /// Somebody was refused: how long to wait before saying so.
    pub fn failed(&mut self, source: Source, now: Instant) -> Duration {
        self.all.push_back(now);
        if self.all.len() > ALL_FAILURES {
            self.all.pop_front();
        }
        let history = self.history(source, now);
        if now.saturating_duration_since(history.last) >= FORGOTTEN {
            history.failures = 0;
        }
        let pause = FIRST_PAUSE * 2u32.saturating_pow(history.failures.min(10));
        history.failures = history.failures.saturating_add(1);
        history.last = now;
        if history.failures >= FAILURES {
            history.refused_until = Some(now + REFUSAL);
        }
        pause.min(LONGEST_PAUSE)
    }

    /// Somebody has logged in.
    pub fn succeeded(&mut self, source: Source, now: Instant) {
        let history = self.history(source, now);
        *history = History { failures: 0, last: now, refused_until: None, login: Some(now) };
    }

    fn history(&mut self, source: Source, now: Instant) -> &mut History {
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&source) {
            let quietest = self.sources.iter().min_by_key(|(_, history)| (history.login.is_some(), history.last));
            if let Some(quietest) = quietest.map(|(source, _)| *source) {
                self.sources.remove(&quietest);
            }
        }
        let new = || History { failures: 0, last: now, refused_until: None, login: None };
        self.sources.entry(source).or_insert_with(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn pauses_grow_and_end_in_a_refusal_for_a_while() {
        let (mut logins, now) = (Logins::default(), Instant::now());
        let (bad, other) = (source("192.0.2.1"), source("192.0.2.2"));
        let pauses: Vec<u128> = (0..8).map(|_| logins.failed(bad, now).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(logins.admit(bad, now), Ok(()));
        for _ in 8..FAILURES {
            logins.failed(bad, now);
        }
        assert_eq!(logins.admit(bad, now), Err(REFUSAL));
        assert_eq!(logins.admit(other, now), Ok(()), "nobody else is meant");
        assert_eq!(logins.admit(bad, now + REFUSAL), Ok(()));
        logins.failed(bad, now + REFUSAL);
        assert!(logins.admit(bad, now + REFUSAL).is_err(), "the next failure is one too many at once");
        assert_eq!(logins.failed(bad, now + REFUSAL + FORGOTTEN), FIRST_PAUSE);
    }

    #[test]
    fn a_login_ends_it() {
        let (mut logins, now) = (Logins::default(), Instant::now());
        let client = source("192.0.2.1");
        for _ in 0..FAILURES {
            logins.failed(client, now);
        }
        logins.succeeded(client, now);
        assert_eq!(logins.admit(client, now), Ok(()));
        assert_eq!(logins.failed(client, now), FIRST_PAUSE);
    }

    #[test]
    fn failures_from_everywhere_keep_strangers_out_and_not_those_who_have_logged_in() {
        let (mut logins, now) = (Logins::default(), Instant::now());
        let (friend, stranger) = (source("198.51.100.1"), source("198.51.100.2"));
        logins.succeeded(friend, now);
        for n in 0..ALL_FAILURES {
            let network = u16::try_from(n).unwrap();
            logins.failed(Source::from(IpAddr::from([0x2001, 0xdb8, 0, network, 0, 0, 0, 1])), now);
        }
        let in_a_second = now + Duration::from_secs(1);
        assert_eq!(logins.admit(stranger, in_a_second), Err(Duration::from_secs(59)));
        assert_eq!(logins.admit(friend, in_a_second), Ok(()));
        assert_eq!(logins.admit(stranger, now + MINUTE), Ok(()));
    }

    #[test]
    fn addresses_of_one_host_are_one_source() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1:2:3"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
    }

    #[test]
    fn not_more_is_remembered_than_fits() {
        let (mut logins, now) = (Logins::default(), Instant::now());
        let friend = source("198.51.100.1");
        logins.succeeded(friend, now);
        for n in 0..SOURCES + 100 {
            let n = u32::try_from(n).unwrap();
            logins.failed(Source(IpAddr::from(n.to_be_bytes())), now + Duration::from_millis(n.into()));
        }
        assert_eq!(logins.sources.len(), SOURCES);
        assert!(logins.sources.contains_key(&friend), "a friend is forgotten last");
        assert!(logins.all.len() <= ALL_FAILURES);
    }
}
