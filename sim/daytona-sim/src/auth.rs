//! Bearer keys and the count of failed logins (PROTOCOL.md 1).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::options::FailedAuthLimit;

/// Failed logins by client address.
#[derive(Debug, Default)]
pub(crate) struct FailedLogins {
    by_address: HashMap<IpAddr, Attempts>,
}

#[derive(Debug)]
struct Attempts {
    hits: u32,
    window_ends: Instant,
    blocked_until: Option<Instant>,
}

impl FailedLogins {
    /// Time left of the block of this address.
    pub fn blocked(&self, address: IpAddr) -> Option<Duration> {
        let until = self.by_address.get(&address)?.blocked_until?;
        until.checked_duration_since(Instant::now())
    }

    /// Counts a failed login. Returns the length of the block when this one reached the limit.
    pub fn record(&mut self, address: IpAddr, limit: FailedAuthLimit) -> Option<Duration> {
        let now = Instant::now();
        let fresh = Attempts { hits: 0, window_ends: now + limit.ttl, blocked_until: None };
        let attempts = self.by_address.entry(address).or_insert(fresh);
        if now >= attempts.window_ends {
            attempts.hits = 0;
            attempts.window_ends = now + limit.ttl;
        }
        attempts.hits += 1;
        if attempts.hits < limit.limit {
            return None;
        }
        attempts.blocked_until = Some(now + limit.ttl);
        Some(limit.ttl)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.by_address.clear();
    }
}

/// Takes the token out of an `Authorization` header.
pub(crate) fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limiting_login_blocks() {
        let limit = FailedAuthLimit { limit: 2, ttl: Duration::from_secs(60) };
        let address = IpAddr::from([127, 0, 0, 1]);
        let mut logins = FailedLogins::default();
        assert_eq!(logins.record(address, limit), None);
        assert_eq!(logins.blocked(address), None);
        assert_eq!(logins.record(address, limit), Some(limit.ttl));
        assert!(logins.blocked(address).is_some());
        assert_eq!(logins.blocked(IpAddr::from([127, 0, 0, 2])), None);
    }

    #[test]
    fn bearer_headers() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer abc"), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        assert_eq!(bearer("Bearer "), None);
        assert_eq!(bearer("abc"), None);
    }
}
