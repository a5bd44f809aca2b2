use std::time::Duration;

use super::*;
use crate::hypervisor::snapshot::files::{CONFIG, STATE};

fn refusal(words: &[&str]) -> Result<(), Error> {
    let words = words.iter().map(|&word| word.to_owned()).collect();
    Err(Error::Api { call: "vm.snapshot", socket: "/s".into(), status: 500, words })
}

fn provoked() -> Result<(), Error> {
    refusal(&[
        "Error from API",
        "Error creating memory snapshot file \"/d/memory-ranges\"",
        "File exists (os error 17)",
    ])
}

fn placed() -> (tempfile::TempDir, Placeholder) {
    let dir = tempfile::tempdir().unwrap();
    let placeholder = Placeholder::put(dir.path()).unwrap();
    (dir, placeholder)
}

fn complete(dir: &Path) {
    for name in [CONFIG, STATE] {
        fs::write(dir.join(name), "{\"a\": [1, 2]}").unwrap();
    }
}

#[test]
fn the_provoked_refusal_and_a_success_without_memory() {
    let unnamed = ["Error from API", "Failed to send migratable component snapshot", "File exists (os error 17)"];
    let line = ["Error from API: Failed to send migratable component snapshot: File exists (os error 17)"];
    for answer in [provoked(), Ok(()), refusal(&unnamed), refusal(&line)] {
        let (dir, placeholder) = placed();
        complete(dir.path());
        placeholder.settle(answer).unwrap();
        assert!(!dir.path().join(MEMORY).exists());
    }
}

#[test]
fn other_refusals_are_errors() {
    for words in [
        &["Error from API", "Error creating VM config snapshot file", "File exists (os error 17)"][..],
        &["Error creating memory snapshot file \"/d/memory-ranges\"", "No space left on device (os error 28)"],
        &["VM is not running"],
    ] {
        let (dir, placeholder) = placed();
        complete(dir.path());
        assert!(matches!(placeholder.settle(refusal(words)).unwrap_err(), Error::Api { .. }));
        assert!(!dir.path().join(MEMORY).exists());
    }
}

#[test]
fn both_files_must_be_complete() {
    for (name, text) in [(CONFIG, None), (STATE, None), (STATE, Some("{\"a\": [1,")), (STATE, Some(""))] {
        let (dir, placeholder) = placed();
        complete(dir.path());
        match text {
            Some(text) => fs::write(dir.path().join(name), text).unwrap(),
            None => fs::remove_file(dir.path().join(name)).unwrap(),
        }
        let error = placeholder.settle(provoked()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert!(!dir.path().join(MEMORY).exists());
    }
}

#[test]
fn memory_that_was_written_all_the_same_is_an_error() {
    let (dir, placeholder) = placed();
    complete(dir.path());
    fs::write(dir.path().join(MEMORY), "memory").unwrap();
    let error = placeholder.settle(Ok(())).unwrap_err();
    assert!(matches!(error, Error::SnapshotMismatch { .. }), "{error}");
}

#[test]
fn the_placeholder_stays_while_the_hypervisor_may_still_be_at_work() {
    let (dir, placeholder) = placed();
    let late = Error::Deadline { call: "vm.snapshot", socket: "/s".into(), limit: Duration::from_secs(1), sent: true };
    assert!(matches!(placeholder.settle(Err(late)).unwrap_err(), Error::Deadline { .. }));
    assert!(dir.path().join(MEMORY).exists());
}

#[test]
fn only_an_empty_directory_will_do() {
    let (dir, _placeholder) = placed();
    let error = Placeholder::put(dir.path()).unwrap_err();
    assert!(error.to_string().ends_with("cannot be used: it is not empty"), "{error}");
    let error = Placeholder::put(&dir.path().join("none")).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
}
