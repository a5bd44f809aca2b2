//! The few settings that the commands of the store need. What is wrong with others is not their business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::problem::{Problem, Problems};
use super::raw::{FILE_VARIABLE, Raw};
use super::reader::Reader;
use super::{Secret, Tls, check};

/// How the runner of this configuration is reached from its own host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerAccess {
    /// Where it listens, as seen from here.
    pub address: SocketAddr,
    /// Its certificate and key, if it speaks HTTPS.
    pub tls: Option<Tls>,
    /// Its token.
    pub token: Secret,
}

/// RUNNER_STATE_PATH, from the same places as all settings.
///
/// # Errors
/// It is no path, or the configuration file cannot be read.
pub fn state_path(env: impl Iterator<Item = (String, String)>) -> Result<PathBuf, Problems> {
    read(env, &["RUNNER_STATE_PATH"], |r| r.path("RUNNER_STATE_PATH"))
}

/// What is needed to ask the runner: port, address, token, certificate.
///
/// # Errors
/// One of these is missing or wrong, or the configuration file cannot be read.
pub fn runner_access(env: impl Iterator<Item = (String, String)>) -> Result<RunnerAccess, Problems> {
    const NAMES: &[&str] = &[
        "RUNNER_HTTP_ADDRESS",
        "API_PORT",
        "API_TOKEN",
        "DAYTONA_RUNNER_TOKEN",
        "ENABLE_TLS",
        "TLS_CERT_FILE",
        "TLS_KEY_FILE",
    ];
    read(env, NAMES, |r| {
        let (http, token) = (check::http(r), check::token(r));
        let (http, token) = (http?, token?);
        let address = match http.address {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address => address,
        };
        Some(RunnerAccess { address: SocketAddr::new(address, http.port), tls: http.tls, token })
    })
}

fn read<T>(
    env: impl Iterator<Item = (String, String)>,
    names: &[&str],
    look: impl FnOnce(&mut Reader) -> Option<T>,
) -> Result<T, Problems> {
    let mut reader = Reader::new(Raw::read(env));
    let concerns = |problem: &Problem| {
        let other = reader.raw.get(&problem.subject).is_some() && !names.contains(&problem.subject.as_str());
        !other || problem.subject == FILE_VARIABLE
    };
    let mut problems: Vec<Problem> = reader.problems.iter().filter(|problem| concerns(problem)).cloned().collect();
    reader.problems.clear();
    let found = look(&mut reader);
    problems.append(&mut reader.problems);
    Problems::none_of(problems)?;
    found.ok_or_else(|| Problem::new("the configuration", "is incomplete for an unknown reason").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn what_is_wrong_elsewhere_does_not_matter() {
        let wrong = [("API_PORT", "x"), ("CH_KERNEL_CMDLINE", "a\nb"), ("POLL_LIMIT", "0"), ("API_VERSION", "1")];
        assert_eq!(state_path(env(&wrong)).unwrap(), PathBuf::from("/var/lib/runner-ch/state"));
        let error = state_path(env(&[("RUNNER_STATE_PATH", "state")])).unwrap_err().to_string();
        assert!(error.contains("RUNNER_STATE_PATH") && error.contains("absolute"), "{error}");
        let error = state_path(env(&[("RUNNER_CONFIG_FILE", "/nowhere/x")])).unwrap_err().to_string();
        assert!(error.contains("RUNNER_CONFIG_FILE"), "{error}");
    }

    #[test]
    fn the_runner_is_asked_on_this_host() {
        let token = ("API_TOKEN", "0123456789abcdef");
        let access = |more| runner_access(env(&[token, more])).unwrap();
        assert_eq!(access(("POLL_LIMIT", "0")).address.to_string(), "127.0.0.1:3006");
        assert_eq!(access(("RUNNER_HTTP_ADDRESS", "::")).address.to_string(), "[::1]:3006");
        assert_eq!(access(("RUNNER_HTTP_ADDRESS", "10.1.2.3")).address.to_string(), "10.1.2.3:3006");
        assert!(runner_access(env(&[])).unwrap_err().to_string().contains("API_TOKEN"));
    }
}
