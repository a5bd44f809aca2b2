//! From text to value, for every kind of setting. A failure is the text that says what was expected.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use actix_web::http::Uri;

use crate::net::addresses::Ipv4Net;

/// A whole number within bounds; `unit` says of what.
pub(super) fn number(text: &str, min: u64, max: u64, unit: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("a whole number from {min} to {max}{unit}"))
}

/// What Go's strconv.ParseBool takes, which the original used, and yes, no, on, off.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "f" | "false" | "no" | "off" => Ok(false),
        _ => Err("true or false".into()),
    }
}

/// A duration within bounds.
pub(super) fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let bounds =
        || format!("a duration from {min:?} to {max:?}, such as 30s, 500ms, 2m, 1m30s, or a number of seconds");
    span(text).filter(|span| (min..=max).contains(span)).ok_or_else(bounds)
}

/// `30s`, `500ms`, `2m`, `1h30m`, `1.5s` as Go writes them, or plain seconds.
fn span(text: &str) -> Option<Duration> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_secs);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let after = &rest[digits..];
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let seconds = match &after[..unit] {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let count: f64 = rest[..digits].parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(count * seconds).ok()?)?;
        rest = &after[unit..];
    }
    Some(total)
}

/// An absolute path without `..`: the runner's working directory is nobody's business.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
    if path.is_absolute() && !climbs { Ok(path.to_owned()) } else { Err("an absolute path without '..'".into()) }
}

/// The hypervisor: an absolute path, or a bare name that PATH is searched for.
pub(super) fn program(text: &str) -> Result<PathBuf, String> {
    if !text.is_empty() && !text.contains('/') {
        return Ok(text.into());
    }
    path(text).map_err(|_| "an absolute path, or the name of a program in PATH".into())
}

/// Base URL of the API, without slashes at its end (PROTOCOL.md 1).
pub(super) fn base_url(text: &str) -> Result<String, String> {
    const EXPECTED: &str = "an http:// or https:// URL with a host, such as http://localhost:3000/api";
    let stripped = text.trim_end_matches('/');
    let uri = Uri::from_str(stripped).map_err(|error| format!("{EXPECTED} ({error})"))?;
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let scheme_fits = matches!(uri.scheme_str(), Some("http" | "https"));
    if !scheme_fits || uri.host().is_none_or(str::is_empty) || authority.ends_with(':') {
        return Err(EXPECTED.into());
    }
    if authority.contains('@') || uri.query().is_some() || stripped.contains('#') {
        return Err(format!("{EXPECTED}, without user name, query and fragment"));
    }
    Ok(stripped.to_owned())
}

/// What is odd about a base URL that is formally right.
pub(super) fn base_url_warnings(name: &str, url: &str) -> Vec<String> {
    let Ok(uri) = Uri::from_str(url) else { return Vec::new() };
    let mut warnings = Vec::new();
    if !uri.path().split('/').any(|segment| segment == "api") {
        warnings.push(format!(
            "{name} has no /api in its path; all routes of the Daytona API are below it, try {url}/api if nothing answers"
        ));
    }
    if uri.scheme_str() == Some("http") && !uri.host().is_some_and(is_loopback) {
        warnings
            .push(format!("{name} is plain http to another host: the token travels readable; use https or a tunnel"));
    }
    warnings
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A key that can stand in an HTTP header and is not the guide's sample text.
pub(super) fn token(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("the runner's API key, at least 16 characters; without it anybody could run code here".into());
    }
    if text.starts_with('<') && text.ends_with('>') {
        return Err("the runner's real API key instead of the sample text".into());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("printable ASCII characters without blanks, as the key goes into an HTTP header".into());
    }
    Ok(text.to_owned())
}

/// A host name (RFC 1123) or an address.
pub(super) fn host(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // Digits and dots alone are meant as an address, and a wrong one is no host name.
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let name = !numeric && text.len() <= 253 && text.split('.').all(label);
    if name || text.parse::<IpAddr>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("a host name or an IP address, without scheme and port".into())
    }
}

/// One IPv4 network.
pub(super) fn network(text: &str) -> Result<Ipv4Net, String> {
    text.parse().map_err(|error| format!("an IPv4 network such as 10.220.0.0/16 ({error})"))
}

/// The addresses for the namespaces: room for more than a handful, and not where the guests live.
pub(super) fn pool(text: &str) -> Result<Ipv4Net, String> {
    let pool = network(text)?;
    let guests = Ipv4Net::around(crate::net::GUEST, crate::net::GUEST_PREFIX);
    if !(8..=28).contains(&pool.prefix()) {
        return Err("an IPv4 network with a prefix length from 8 to 28".into());
    }
    if pool.overlaps(&guests) {
        return Err(format!("an IPv4 network apart from {guests}, which is inside every sandbox"));
    }
    Ok(pool)
}

/// A comma-separated list of IPv4 networks, or `none`.
pub(super) fn networks(text: &str) -> Result<Vec<Ipv4Net>, String> {
    if text == "none" {
        return Ok(Vec::new());
    }
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| network(entry).map_err(|expected| format!("a comma-separated list; {entry:?} is not {expected}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let millis = |text: &str| span(text).map(|span| span.as_millis());
        let good =
            [("30", 30_000), ("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("1h30m", 5_400_000), ("1.5s", 1500)];
        for (text, expected) in good.into_iter().chain([("1m0.25s", 60_250), ("0", 0)]) {
            assert_eq!(millis(text), Some(expected), "{text:?}");
        }
        for bad in ["s", "30 s", "-1s", "1x", "1m30", "..s", "1..5s", "99999999999999999999h", "1e3s", "NaN"] {
            assert_eq!(millis(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn durations_have_bounds() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(60));
        assert!(duration("60s", min, max).is_ok());
        for bad in ["", "0", "999ms", "61", "18446744073709551616"] {
            let expected = duration(bad, min, max).unwrap_err();
            assert!(expected.starts_with("a duration from 1s to 60s"), "{bad:?}: {expected}");
        }
    }

    #[test]
    fn base_urls() {
        for good in ["http://localhost:3000/api", "https://api.example.org/api///", "http://[::1]:3000/api", "http://h"]
        {
            let url = base_url(good).unwrap();
            assert!(!url.ends_with('/'), "{url}");
        }
        for bad in [
            "",
            "/api",
            "localhost:3000",
            "ftp://x/api",
            "http://",
            "http:///api",
            "http://u:p@h/api",
            "http://h/api?x=1",
            "http://h/a#b",
            "http://h:",
            "http://a b/",
        ] {
            assert!(base_url(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn odd_base_urls_are_warned_of() {
        let count = |url: &str| base_url_warnings("SERVER_URL", url).len();
        assert_eq!(count("http://localhost:3000/api"), 0);
        assert_eq!(count("http://[::1]:3000/v2/api"), 0);
        assert_eq!(count("https://api.example.org"), 1);
        assert_eq!(count("http://api.example.org/apiary"), 2);
    }

    #[test]
    fn hosts() {
        for good in ["10.1.2.3", "::1", "runner-1.example.org", "localhost"] {
            assert!(host(good).is_ok(), "{good:?} must be accepted");
        }
        for bad in ["10.1.2", "256.1.1.1", "http://x", "x:1", "a..b", "-a", "a-", "a_b", "ä", "a b", &"a".repeat(64)] {
            assert!(host(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn pools_stay_away_from_the_guests() {
        for good in ["10.220.0.0/16", "172.16.0.0/12", "10.0.0.0/28", "192.168.1.0/24"] {
            assert!(pool(good).is_ok(), "{good:?}: {:?}", pool(good));
        }
        for bad in
            ["192.168.0.0/24", "192.168.0.0/16", "192.168.0.128/25", "10.0.0.0/29", "10.0.0.0/33", "10.0.0.0", "x"]
        {
            assert!(pool(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn lists_of_networks() {
        assert_eq!(networks("169.254.0.0/16, 10.0.0.0/8,").unwrap().len(), 2);
        assert!(networks("none").unwrap().is_empty());
        assert!(networks("10.0.0.0/8,nope").unwrap_err().contains("\"nope\""));
    }

    #[test]
    fn tokens() {
        assert!(token("0123456789abcdef").is_ok());
        for bad in ["", "<your-runner-api-token>", "two words", "ümlaut"] {
            assert!(token(bad).is_err(), "{bad:?} must be refused");
        }
    }
}
