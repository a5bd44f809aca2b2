//! The store of the real runner: what its operator can do with it, and what a full volume or a broken record does to it.

use std::path::Path;
use std::process::{Command, Output};

#[path = "store/backups.rs"]
mod backups;
mod common;
#[path = "store/full.rs"]
mod full;
#[path = "store/quarantine.rs"]
mod quarantine;

use common::{Host, TOKEN, program};

/// A command of the runner, with nothing set but what it needs.
struct Store {
    env: Vec<(&'static str, String)>,
}

impl Store {
    fn of(state: &Path) -> Self {
        Self { env: vec![("RUNNER_STATE_PATH", state.display().to_string())] }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("runner-ch"));
        command.arg("store").args(arguments).env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        command.output().expect("it runs")
    }

    #[track_caller]
    fn does(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    }

    #[track_caller]
    fn refuses(&self, arguments: &[&str], words: &[&str]) {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    }
}

fn offline(host: &Host) -> Store {
    Store::of(&host.path("state"))
}

fn online(host: &Host) -> Store {
    offline(host).with("API_TOKEN", TOKEN)
}
