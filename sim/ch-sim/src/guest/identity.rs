//! What tells a guest from its copies, and the hook `runner-ch-identity` that renews it: the same arguments
//! and the same confirmation as guest/runner-ch-identity (docs/identity.md).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::machine::Machine;
use super::state::State;
use crate::faults::{Action, Faults};

/// Where images have the hook.
pub const PATH: &str = "/usr/local/sbin/runner-ch-identity";
/// Its name.
pub const NAME: &str = "runner-ch-identity";
/// Environment variable: guests have no hook when it is 1.
const ABSENT_VARIABLE: &str = "CH_SIM_NO_IDENTITY";
const MACHINE_ID: &str = "/etc/machine-id";
const HOST_KEY: &str = "/etc/ssh/ssh_host_ed25519_key";

/// How the hook goes on after its fault point.
#[derive(Debug, PartialEq, Eq)]
pub enum Begin {
    /// As it should.
    Run,
    /// The same, later.
    After(Duration),
    /// It is over already: exit code and output.
    Over(i32, String),
    /// It hangs.
    Never,
}

/// Looks at what was ordered for the hook: fault point `identity`, and [`ABSENT_VARIABLE`].
pub fn begin(faults: &Faults) -> Begin {
    if std::env::var_os(ABSENT_VARIABLE).is_some_and(|value| value == "1") {
        return Begin::Over(127, format!("sh: {NAME}: command not found\n"));
    }
    let failed = |text: &str| Begin::Over(1, format!("{NAME}: {text}\n"));
    match faults.at("identity") {
        // The kernel panics at the boot only.
        None | Some(Action::Panic) => Begin::Run,
        Some(Action::Delay(time)) => Begin::After(time),
        Some(Action::Hang) => Begin::Never,
        Some(Action::Exit(code)) => Begin::Over(code, String::new()),
        Some(Action::Error(text)) => failed(&text),
        Some(Action::Enospc) => failed("No space left on device"),
        // Ends well without a word.
        Some(Action::Ignore) => Begin::Over(0, String::new()),
        Some(Action::Crash(_)) => {
            // SAFETY: plain system calls.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            Begin::Never
        }
    }
}

/// Gives a machine that boots for the first time what it keeps from then on.
pub fn first_boot(state: &mut State) {
    let (id, key) = (state.rng.hex(), state.rng.hex());
    // The file system of a booting guest has room for two lines.
    let _ = state.files.write(MACHINE_ID, format!("{id}\n").as_bytes(), false);
    let _ = state.files.write(HOST_KEY, format!("simulated key {key}\n").as_bytes(), false);
    state.epoch_ms = host_time_ms();
}

/// The guest's time in milliseconds since 1970.
pub fn time_ms(machine: &Machine) -> i64 {
    machine.state.epoch_ms + i64::try_from(machine.clock.running_ms()).unwrap_or(i64::MAX)
}

/// Carries the hook out: exit code and output.
pub fn run(args: &[String], machine: &mut Machine) -> (i32, String) {
    let given = match Given::parse(args) {
        Ok(given) => given,
        Err(problem) => return (2, format!("{NAME}: {problem}\n")),
    };
    match given.apply(machine) {
        Ok(()) => (0, format!("{NAME} ok {} rng,clock,machine-id,hostname,ssh\n", given.sandbox)),
        Err(error) => (1, format!("{NAME}: {error}\n")),
    }
}

/// The hook's arguments.
struct Given {
    sandbox: String,
    machine_id: String,
    entropy: String,
    time_ms: i64,
}

impl Given {
    fn parse(args: &[String]) -> Result<Self, &'static str> {
        let value = |name: &str| {
            let at = args.iter().position(|arg| arg == name)?;
            args.get(at + 1).cloned()
        };
        let hex = |name, digits: usize| {
            let text: Option<String> = value(name);
            text.filter(|text| text.len() == digits && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')))
        };
        let id_char = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let good_id = |id: &String| {
            id.len() <= 64 && id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(id_char)
        };
        let time = value("--time").filter(|text| (18..=20).contains(&text.len()));
        let time = time.and_then(|text| text.parse::<u128>().ok()).and_then(|ns| i64::try_from(ns / 1_000_000).ok());
        if args.len() != 8 {
            return Err("usage: --sandbox ID --machine-id 32HEX --entropy 128HEX --time NANOSECONDS");
        }
        Ok(Self {
            sandbox: value("--sandbox").filter(good_id).ok_or("--sandbox is no sandbox id")?,
            machine_id: hex("--machine-id", 32).ok_or("--machine-id is not 32 lowercase hex digits")?,
            entropy: hex("--entropy", 128).ok_or("--entropy is not 128 lowercase hex digits")?,
            time_ms: time.ok_or("--time is not in nanoseconds since 1970")?,
        })
    }

    fn apply(&self, machine: &mut Machine) -> Result<(), super::fs::FsError> {
        let running = i64::try_from(machine.clock.running_ms()).unwrap_or(i64::MAX);
        let state = &mut machine.state;
        state.rng.reseed(self.entropy.as_bytes());
        state.epoch_ms = self.time_ms.saturating_sub(running);
        state.files.write(MACHINE_ID, format!("{}\n", self.machine_id).as_bytes(), false)?;
        state.hostname.clone_from(&self.sandbox);
        state.files.write("/etc/hostname", format!("{}\n", self.sandbox).as_bytes(), false)?;
        let key = state.rng.hex();
        state.files.write(HOST_KEY, format!("simulated key {key}\n").as_bytes(), false)
    }
}

fn host_time_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::{Begin, Given, begin};
    use crate::faults::Faults;

    fn args(sandbox: &str, machine_id: &str, entropy: &str, time: &str) -> Vec<String> {
        let all = ["--sandbox", sandbox, "--machine-id", machine_id, "--entropy", entropy, "--time", time];
        all.map(str::to_owned).to_vec()
    }

    #[test]
    fn arguments_are_checked_like_the_script_does() {
        let (id, entropy, time) = ("a".repeat(32), "0".repeat(128), "1700000000123456789");
        let good = Given::parse(&args("box_1", &id, &entropy, time)).ok().unwrap();
        assert_eq!(good.time_ms, 1_700_000_000_123);
        let (upper, long) = ("A".repeat(32), "x".repeat(65));
        for bad in [
            args("", &id, &entropy, time),
            args("_a", &id, &entropy, time),
            args("a.b", &id, &entropy, time),
            args(&long, &id, &entropy, time),
            args("a", &upper, &entropy, time),
            args("a", &id, "00", time),
            args("a", &id, &entropy, "17"),
            args("a", &id, &entropy, "-700000000123456789"),
            vec![],
        ] {
            assert!(Given::parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn faults_stand_in_front_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faults");
        let ordered = |text: &str| {
            std::fs::write(&path, text).unwrap();
            begin(&Faults::new(Some(path.clone()), "a".to_owned()))
        };
        assert_eq!(ordered("[]"), Begin::Run);
        assert_eq!(ordered(r#"[{"when":"identity","action":"hang"}]"#), Begin::Never);
        let absent = ordered(r#"[{"when":"identity","action":"exit","value":127}]"#);
        assert_eq!(absent, Begin::Over(127, String::new()));
        let failed = ordered(r#"[{"when":"identity","action":"error","value":"no"}]"#);
        assert_eq!(failed, Begin::Over(1, "runner-ch-identity: no\n".to_owned()));
    }
}
