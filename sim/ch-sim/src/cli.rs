//! Command line, as far as it is used without a payload (cloud-hypervisor.md 3).

use std::os::fd::RawFd;

use crate::events::Target;
use crate::version::Version;

/// Where the API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiSocket {
    /// A path to bind.
    Path(String),
    /// A listening socket that was inherited.
    Fd(RawFd),
}

/// A parsed command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub api_socket: Option<ApiSocket>,
    pub event_monitor: Option<Target>,
    pub log_file: Option<String>,
    pub verbosity: u8,
    pub no_shutdown: bool,
    pub restore: Option<String>,
    pub version: bool,
}

/// Why the process ends before it started.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The arguments are not those of the program: exit 2.
    Usage(String),
    /// The value of an option makes no sense: exit 1.
    Value(Vec<String>),
}

const PAYLOAD_OPTIONS: &[&str] = &["--kernel", "--firmware", "--igvm"];

/// Parses the arguments after the program name.
pub fn parse(args: &[String], version: Version) -> Result<Options, Refusal> {
    let mut options = Options::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (arg.as_str(), None),
        };
        let mut value = || match inline.clone().or_else(|| rest.next().cloned()) {
            Some(value) => Ok(value),
            None => Err(Refusal::Usage(format!("error: a value is required for '{name}' but none was supplied"))),
        };
        match name {
            "--api-socket" => options.api_socket = Some(api_socket(&value()?)?),
            "--event-monitor" => options.event_monitor = Some(event_target(&value()?)?),
            "--log-file" => options.log_file = Some(value()?),
            "--log-format" => drop(value()?),
            "--seccomp" => seccomp(&value()?)?,
            "--restore" => options.restore = Some(value()?),
            "--no-shutdown" if version.has_no_shutdown() => options.no_shutdown = true,
            "--version" | "-V" => options.version = true,
            _ if name.len() > 1 && name[1..].bytes().all(|b| b == b'v') => {
                options.verbosity += u8::try_from(name.len() - 1).unwrap_or(u8::MAX);
            }
            _ if PAYLOAD_OPTIONS.contains(&name) => {
                return Err(Refusal::Usage(format!("error: '{name}' is not simulated: create the VM through the API")));
            }
            _ => {
                return Err(Refusal::Usage(format!("error: unexpected argument '{arg}' found")));
            }
        }
    }
    Ok(options)
}

/// Value of `key` in `a=1,b=2`; other text gives `None`.
pub fn member<'a>(list: &'a str, key: &str) -> Option<&'a str> {
    list.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
}

fn api_socket(value: &str) -> Result<ApiSocket, Refusal> {
    if let Some(fd) = member(value, "fd") {
        return match fd.parse() {
            Ok(fd) => Ok(ApiSocket::Fd(fd)),
            Err(error) => Err(Refusal::Value(vec!["Error parsing --api-socket".to_owned(), error.to_string()])),
        };
    }
    let path = member(value, "path").unwrap_or(value);
    Ok(ApiSocket::Path(path.to_owned()))
}

fn event_target(value: &str) -> Result<Target, Refusal> {
    match (member(value, "fd"), member(value, "path")) {
        (Some(fd), _) => fd
            .parse()
            .map(Target::Fd)
            .map_err(|error| Refusal::Value(vec!["Error parsing --event-monitor".to_owned(), error.to_string()])),
        (None, Some(path)) => Ok(Target::Path(path.to_owned())),
        (None, None) => Err(Refusal::Value(vec!["Error parsing --event-monitor: path or fd required".to_owned()])),
    }
}

fn seccomp(value: &str) -> Result<(), Refusal> {
    if ["true", "false", "log", "errno"].contains(&value) {
        return Ok(());
    }
    Err(Refusal::Usage(format!("error: invalid value '{value}' for '--seccomp <seccomp>'")))
}

#[cfg(test)]
mod tests {
    use super::{ApiSocket, Options, Refusal, parse};
    use crate::events::Target;
    use crate::version::Version;

    fn run(args: &[&str], version: &str) -> Result<Options, Refusal> {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        parse(&args, Version::parse(version).unwrap())
    }

    #[test]
    fn the_usual_command_lines_are_understood() {
        let options = run(
            &["--api-socket", "path=/s", "--event-monitor=fd=5", "-vv", "--seccomp", "true", "--no-shutdown"],
            "v53.0",
        )
        .unwrap();
        assert_eq!(options.api_socket, Some(ApiSocket::Path("/s".to_owned())));
        assert_eq!(options.event_monitor, Some(Target::Fd(5)));
        assert!(options.no_shutdown && options.verbosity == 2);
        let bare = run(&["--api-socket", "/t", "-v"], "v44.0").unwrap();
        assert_eq!(bare.api_socket, Some(ApiSocket::Path("/t".to_owned())));
    }

    #[test]
    fn unknown_options_are_usage_errors() {
        for (args, version) in [
            (&["--surprise"][..], "v53.0"),
            (&["--no-shutdown"], "v51.0"),
            (&["--seccomp", "maybe"], "v53.0"),
            (&["--api-socket"], "v53.0"),
        ] {
            assert!(matches!(run(args, version), Err(Refusal::Usage(_))), "{args:?}");
        }
        let value = run(&["--event-monitor", "x"], "v53.0");
        assert!(matches!(value, Err(Refusal::Value(_))));
    }
}
